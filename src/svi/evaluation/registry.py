"""Metrics by name and in profiles. Imports a metric's module only when the metric is asked for.

A row names the class; options that all networks share (mode, device, weights) are handed to those that have them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from svi.errors import UserError, nearest
from svi.evaluation.metric import Metric

ROOM = "svi.evaluation.metrics"
Kind = Literal["pixels", "network"]


@dataclass(frozen=True)
class Place:
    """Where a metric's class is: ``kind`` says whether it takes :class:`~svi.evaluation.metrics.extract.Setup`."""

    module: str
    attribute: str
    kind: Kind
    group: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """What the user decides for all metrics.

    Attributes:
        mode: ``vbench`` with the quirks of VBench's code, ``clean`` without.
        device, dtype: of networks.
        weights: folder of weight files; None = what ``SVI_METRIC_WEIGHTS`` says and the caches of other programs.
        paths: weight files by name.
        hashes: SHA-256 by name, of weight files that are programs and whose hash is not published (FVD's network).
        interpolator: ``package.module:function`` that makes the frame between two, for ``motion_smoothness``.
        batch_size: frames that a network takes at a time.
    """

    mode: Literal["vbench", "clean"] = "vbench"
    device: str | None = None
    dtype: str = "float32"
    weights: Path | None = None
    paths: Mapping[str, Path] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    interpolator: str | None = None
    batch_size: int = 8


@dataclass(frozen=True)
class Profile:
    """Metrics that belong together. ``long``: networks score 2 s clips as VBench-Long does."""

    name: str
    about: str
    metrics: tuple[str, ...]
    long: bool = False


def _networks(group: str, module: str, **classes: str) -> dict[str, Place]:
    return {name: Place(f"{ROOM}.{module}", attribute, "network", group) for name, attribute in classes.items()}


def _looks(*measures: str) -> dict[str, Place]:
    """Change over a video by itself, and against the true video."""
    found = {}
    for against, group, start in (("start", "Drift", "look"), ("truth", "Against truth", "look_truth")):
        for measure in (None, *measures):
            options = {"measure": measure, "against": against}
            found["_".join([start, *([measure] if measure else [])])] = Place(
                f"{ROOM}.series", "Look", "pixels", group, options
            )
    return found


def _motions(*figures: str) -> dict[str, Place]:
    return {name: Place(f"{ROOM}.motion", "Motion", "pixels", "Motion", {"figure": name}) for name in figures}


def _compared(*names: str) -> dict[str, Place]:
    """Frame by frame with the true video, and with the reference image."""
    return {
        name if against == "truth" else f"{name}_{against}": Place(
            f"{ROOM}.pixels", name.title(), "pixels", "Against truth", {"against": against}
        )
        for name in names
        for against in ("truth", "reference")
    }


METRICS: dict[str, Place] = {
    **_networks(
        "VBench",
        "consistency",
        subject_consistency="SubjectConsistency",
        background_consistency="BackgroundConsistency",
    ),
    **_networks("VBench", "aesthetic", aesthetic_quality="AestheticQuality"),
    **_networks("VBench", "imaging", imaging_quality="ImagingQuality"),
    **_networks("VBench", "dynamic", dynamic_degree="DynamicDegree"),
    **_networks(
        "VBench", "smoothness", motion_smoothness="MotionSmoothness", motion_smoothness_flow="MotionSmoothnessFlow"
    ),
    **_networks("Against truth", "lpips", lpips_truth="LpipsTruth", lpips_reference="LpipsReference"),
    **_networks("Against truth", "fvd", fvd="Fvd"),
    **_networks("Sound", "sync", sync_c="SyncC", sync_d="SyncD"),
    **_looks("luma", "contrast", "chroma", "colourfulness", "colour", "clipped", "sharpness", "detail", "noise"),
    **_motions(
        "motion",
        "motion_retained",
        "flicker",
        "seam_ratio",
        "duplicate_share",
        "unique_share",
        "reference_copies",
        "black_share",
    ),
    **_compared("psnr", "ssim"),
}
GROUPS = ("VBench", "Drift", "Motion", "Against truth", "Sound", "Pocket world", "Other")

SIX = (
    "subject_consistency",
    "background_consistency",
    "aesthetic_quality",
    "imaging_quality",
    "dynamic_degree",
    "motion_smoothness",
)
LOOKS = tuple(name for name, place in METRICS.items() if place.group == "Drift")
SETS = ("fvd",)  # compare whole sets of videos
YES_NO = ("dynamic_degree", "dynamic_degree_clean")  # of a whole video: a share of videos, with the intervals of one
MOTIONS = tuple(name for name, place in METRICS.items() if place.group == "Motion")
_LIST = (
    Profile("paper", "the six VBench metrics on whole videos, as the paper used them", SIX),
    Profile("vbench-long", "the six on clips of 2 s, averaged, as VBench-Long does", SIX, long=True),
    Profile("drift", "what changes from beginning to end, without any weights", (*LOOKS, *MOTIONS)),
    Profile(
        "fast-cpu", "all that needs no weights; offline, in minutes", (*LOOKS, *MOTIONS, "look_truth", "psnr", "ssim")
    ),
    Profile("talk", "do lips follow the sound", ("sync_c", "sync_d", "fvd")),
    Profile("dance", "against the true video", ("fvd", "psnr", "ssim", "lpips_truth")),
)
PROFILES: dict[str, Profile] = {profile.name: profile for profile in _LIST}


def group_of(metric: str) -> str:
    """Under which heading a metric stands in tables; modes and profiles of networks under that of their base."""
    base = metric.removesuffix("_long").removesuffix("_clean")
    if metric.startswith("pocket"):
        return "Pocket world"
    return METRICS[base].group if base in METRICS else "Other"


def get_profile(name: str) -> Profile:
    """A profile by name.

    Raises:
        UserError: for an unknown one; the nearest is named.
    """
    if name not in PROFILES:
        raise UserError(f"unknown profile {name!r}: {nearest(name, PROFILES)}")
    return PROFILES[name]


def make(names: Iterable[str], options: Options | None = None, *, long: bool = False) -> list[Metric]:
    """Metrics by name, ready to be asked what they miss; nothing is loaded yet.

    Raises:
        UserError: for an unknown name; the nearest is named.
    """
    chosen = list(dict.fromkeys(names))
    for name in chosen:
        if name not in METRICS:
            raise UserError(f"unknown metric {name!r}: {nearest(name, METRICS)} (or a profile: {', '.join(PROFILES)})")
    return [_make(METRICS[name], options or Options(), long) for name in chosen]


def of_profile(name: str, options: Options | None = None, *, more: Sequence[str] = ()) -> list[Metric]:
    """The metrics of a profile, ``more``, and what the gates look at, without which nothing is ranked.

    Raises:
        UserError: for an unknown name.
    """
    from svi.evaluation.gates import METRICS as GATED

    profile = get_profile(name)
    return make((*profile.metrics, *more, *GATED), options, long=profile.long)


def _make(place: Place, options: Options, long: bool) -> Metric:
    found = getattr(importlib.import_module(place.module), place.attribute)
    if place.kind == "pixels":
        made: Metric = found(**place.options)
        return made
    from svi.backends.placement import choose
    from svi.evaluation.metrics.extract import Setup
    from svi.evaluation.metrics.weights import Places

    setup = Setup(
        mode=options.mode,
        profile="long" if long else "paper",
        places=Places(paths=options.paths, folder=options.weights, hashes=options.hashes),
        device=str(choose(options.device).device),
        dtype=options.dtype,
        batch_size=options.batch_size,
    )
    plugin = {"plugin": options.interpolator} if place.attribute == "MotionSmoothness" else {}
    network: Metric = found(setup, **plugin, **place.options)
    return network
