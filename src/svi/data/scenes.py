"""Cutting long videos into scenes: a manifest in, a manifest with ``start_s`` and ``end_s`` out.

Done once and written down, so that cuts can be looked at and corrected before anything is encoded. Finding cuts is the work of
PySceneDetect, an optional extra.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from svi.data.manifest import Manifest, Skipped, VideoItem, manifest_line
from svi.errors import UserError, nearest
from svi.files import write_atomic

DETECTORS = {"adaptive": "AdaptiveDetector", "content": "ContentDetector", "threshold": "ThresholdDetector"}
MARGIN_S = 0.1  # left out on both sides of a cut: where a cut lies is known to a frame or two
EXTRA = "finding scenes needs PySceneDetect: pip install 'stable-video-infinity[data]'"


def load_detector(name: str = "adaptive") -> Callable[[VideoItem], list[tuple[float, float]]]:
    """A function that gives the scenes of a video as (start, end) in seconds; empty = one scene without cuts.

    Args:
        name: ``adaptive`` (fast camera moves are no cuts), ``content`` or ``threshold`` (fades to black).

    Raises:
        UserError: for an unknown name, or where PySceneDetect is not installed.
    """
    if name not in DETECTORS:
        raise UserError(f"unknown detector {name!r}: {nearest(name, DETECTORS)}")
    try:
        library: Any = importlib.import_module("scenedetect")
    except ImportError:
        raise UserError(EXTRA) from None

    def detect(item: VideoItem) -> list[tuple[float, float]]:
        detector = getattr(library, DETECTORS[name])()
        found = library.detect(str(item.path), detector, start_in_scene=True)
        return [(start.seconds, end.seconds) for start, end in found]

    return detect


def split_scenes(
    manifest: Manifest,
    detect: Callable[[VideoItem], Sequence[tuple[float, float]]],
    *,
    shortest_s: float = 1.0,
    on_item: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """One item per scene, called ``<id>@<start>``; scenes shorter than ``shortest_s`` are left out.

    A video that the detector cannot read is listed as skipped.
    """
    items: list[VideoItem] = []
    skipped = list(manifest.skipped)
    for done, item in enumerate(manifest.items, 1):
        try:
            found = detect(item)
        except (OSError, RuntimeError, ValueError) as error:
            skipped.append(Skipped(item.id, f"its scenes cannot be found ({str(error)[:80]})", "leave it out"))
            found = None
        if found is not None:
            scenes = [scene for scene in _scenes(item, found) if _length(scene) >= shortest_s]
            items += scenes
            if not scenes:
                skipped.append(Skipped(item.id, f"no scene lasts {shortest_s:g} s", "leave it out"))
        on_item(done, len(manifest.items))
    return replace(manifest, items=tuple(items), skipped=tuple(skipped))


def _scenes(item: VideoItem, found: Sequence[tuple[float, float]]) -> list[VideoItem]:
    """The part of ``item`` in each scene, with a margin at every cut."""
    if len(found) < 2:
        return [item]
    scenes = []
    for number, (start, end) in enumerate(found):
        low = start + MARGIN_S if number else 0.0
        high = end - MARGIN_S if number < len(found) - 1 else None
        low = max(low, item.start_s)
        high = item.end_s if high is None else min(high, item.end_s or high)
        if high is None or high > low:
            scenes.append(
                replace(item, id=f"{item.id}@{low:.2f}", start_s=round(low, 3), end_s=high and round(high, 3))
            )
    return scenes


def _length(item: VideoItem) -> float:
    return float("inf") if item.end_s is None else item.end_s - item.start_s


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write the items as JSON lines, with paths relative to the file.

    Raises:
        UserError: it exists, or cannot be written.
    """
    if path.exists():
        raise UserError(f"{path} exists already and is not replaced: give another --out")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: the folder {path.parent} does not exist")
    lines = [manifest_line(item, path.parent) for item in manifest.items]
    write_atomic(path, ("\n".join(lines) + "\n").encode())
