"""What a run is, fixed when it is made: ``run.json``. Settings, model, reference image, software.

Knows nothing about clips. Everything here decides pixels, so a run never changes it; a branch starts a new one.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from svi import __version__
from svi.backends.base import Backend, ModelInfo
from svi.backends.placement import NO_QUANTISATION, Placement
from svi.conditioning.policy import get_policy
from svi.errors import UserError, nearest
from svi.generation.start import StartRecord
from svi.generation.storyboard import MAX_SEED, Storyboard
from svi.geometry import Geometry
from svi.solvers import SOLVERS
from svi.speed import get_speed

DEFAULT_PRESET = "wan"
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "safetensors", "av", "pillow", "numpy")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunSettings(_Frozen):
    """Settings of a whole run, resolved: nothing is left to defaults that could change later.

    Those in ``RUNNING`` say how the model ran, as far as it changes pixels; a run from before they were kept had the defaults, and
    nobody knows its ``dtype``.
    """

    preset: str
    height: int
    width: int
    num_frames: int
    fps: int = Field(ge=1, le=240)
    seed: int = Field(ge=0, le=MAX_SEED)
    steps: int = Field(ge=1, le=1000)
    guidance: float = Field(ge=0, le=100, allow_inf_nan=False)
    shift: float = Field(gt=0, le=100, allow_inf_nan=False)
    solver: str = "euler"
    negative_prompt: str = ""
    loras: dict[str, float] = Field(default_factory=dict)
    speed: str = "reference"
    attention: str = "native"
    quantise: str = NO_QUANTISATION
    cache_threshold: float | None = None
    dtype: str = ""


RUNNING = ("speed", "attention", "quantise", "cache_threshold", "dtype")


class ModelRecord(_Frozen):
    """Which weights a run uses; see :class:`~svi.backends.base.ModelInfo`."""

    name: str
    files: dict[str, str] = Field(default_factory=dict)
    loras: dict[str, str] = Field(default_factory=dict)
    lora_sources: dict[str, str] = Field(default_factory=dict)


class ReferenceRecord(_Frozen):
    """The reference image: ``sha256`` of its raw RGB bytes, and the name it came under."""

    sha256: str
    source: str = ""


class Parent(_Frozen):
    """Where a branch came from: the run, and the first clip that is its own."""

    run: str
    at: int


class Manifest(_Frozen):
    """The content of ``run.json``.

    Attributes:
        device: where the run was begun, for people: another device may go on with it.
        start: the user's video that it continues; None = it starts from the reference image.
    """

    schema_version: Literal[1] = 1
    created: str
    software: dict[str, str]
    model: ModelRecord
    settings: RunSettings
    reference: ReferenceRecord
    parent: Parent | None = None
    device: str = ""
    start: StartRecord | None = None


def resolve_settings(
    geometry: Geometry, info: ModelInfo, storyboard: Storyboard, *, width: int, height: int, **flags: Any
) -> RunSettings:
    """Settings from, in this order: ``flags`` (None = not given), the storyboard, the model's defaults, the preset.

    Args:
        geometry, info: of the backend.
        width, height: of the reference image, in pixels.
        flags: any other field of :class:`RunSettings`.

    Raises:
        UserError: for an unknown preset or solver, or a value out of range; the message names the remedy.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    story = {name: getattr(storyboard, name) for name in ("preset", "seed", "steps", "guidance", "negative_prompt")}
    asked = {**{name: value for name, value in story.items() if value is not None}, **given}
    model = {name: value for name, value in info.defaults.items() if name in RunSettings.model_fields}
    policy = get_policy(str(asked.get("preset") or model.get("preset") or DEFAULT_PRESET))
    defaults = {
        **{name: getattr(policy, name) for name in ("steps", "guidance", "shift", "fps")},
        "num_frames": geometry.num_frames,
        "seed": 0,
        **model,
    }
    settings = checked_settings({**defaults, **asked, "preset": policy.name, "width": width, "height": height})
    try:
        geometry.check_size(height, width)
        geometry.check_num_frames(settings.num_frames)
    except ValueError as error:
        raise UserError(str(error)) from None
    if settings.num_frames <= policy.overlap:
        raise UserError(
            f"{settings.num_frames} frames per clip are too few: preset {policy.name} overlaps {policy.overlap}"
        )
    return settings


def checked_settings(fields: Mapping[str, Any]) -> RunSettings:
    """Settings from plain data; the first mistake becomes a UserError."""
    try:
        settings = RunSettings.model_validate(fields)
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in mistake["loc"])
        if mistake["type"] == "extra_forbidden":
            raise UserError(f"unknown setting {name!r}; {nearest(name, RunSettings.model_fields)}") from None
        what = str(mistake["msg"]).replace("Input should", "should")
        raise UserError(f"{name}: {what}, not {mistake.get('input')!r}") from None
    if settings.solver not in SOLVERS:
        raise UserError(f"unknown solver {settings.solver!r}; {nearest(settings.solver, SOLVERS)}")
    return settings


def check_settings(settings: RunSettings, made_with: Mapping[str, Any], clip: int) -> None:
    """Refuse settings that differ from those that ``clip`` of the same run was made with.

    Raises:
        UserError: naming every difference.
    """
    before = {**{name: RunSettings.model_fields[name].default for name in RUNNING}, **made_with}
    changed = [
        f"{name} was {before.get(name)!r}, is {value!r}"
        for name, value in settings.model_dump(mode="json").items()
        if value != before.get(name)
    ]
    if changed:
        raise UserError(
            f"run.json changed since clip {clip} was made: {'; '.join(changed)}; put it back: a run keeps its settings, "
            "`svi branch` goes on with others"
        )


def check_running(settings: RunSettings, running: Mapping[str, Any]) -> None:
    """Refuse a model that runs otherwise than the run's clips were made. ``running``: values of ``RUNNING`` by name.

    Raises:
        UserError: naming every difference.
    """
    was = {name: getattr(settings, name) for name in running}
    unknown = {name for name in running if name == "dtype" and not was[name]}
    changed = [
        f"{name} was {was[name]!r}, is {value!r}"
        for name, value in running.items()
        if value != was[name] and name not in unknown
    ]
    if changed:
        raise UserError(
            f"this run was made in another way: {'; '.join(changed)}; leave that out to go on as it was, "
            "or use `svi branch` to go on otherwise"
        )


def running_record(placement: Placement) -> dict[str, Any]:
    """What of a placement changes pixels, under the names of ``RunSettings``."""
    return {
        "speed": placement.speed.name,
        "attention": placement.attention,
        "quantise": placement.quantise or NO_QUANTISATION,
        "cache_threshold": placement.speed.cache_threshold,
        "dtype": str(placement.dtype).removeprefix("torch."),
    }


def running_of(backend: Backend) -> dict[str, Any]:
    """:func:`running_record` of a loaded model; empty where it does not say how it runs."""
    placement = _placement(backend)
    return {} if placement is None else running_record(placement)


def device_of(backend: Backend) -> str:
    """Where a loaded model computes, for the record (``cuda, NVIDIA H200``); empty where it does not say."""
    placement = _placement(backend)
    if placement is None:
        return ""
    device = placement.device
    return f"{device.type}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def _placement(backend: Backend) -> Placement | None:
    found = getattr(getattr(backend, "backend", backend), "placement", None)  # ``Leading`` holds the model
    return found if isinstance(found, Placement) else None


def run_running(settings: RunSettings, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Knobs for going on with a run: what is asked for, else as its clips were made.

    Raises:
        UserError: where ``run.json`` names a speed preset that nobody knows.
    """
    name, *changes = settings.speed.split("+")
    words = dict(change.partition("=")[::2] for change in changes)
    switches = {knob: words[knob] == "True" for knob in ("compile", "merge_loras") if knob in words}
    speed = get_speed(name, **switches)
    speed = replace(speed, name=settings.speed, attention=settings.attention, cache_threshold=settings.cache_threshold)
    return {"speed": speed, "quantise": settings.quantise, **asked}


def merges_loras(settings: RunSettings) -> bool:
    """Whether LoRAs are part of the weights in a run (:func:`svi.backends.lora_fuse.why_apart`)."""
    return bool(run_running(settings, {})["speed"].merge_loras) and settings.quantise == NO_QUANTISATION


def check_model(record: ModelRecord, info: ModelInfo) -> None:
    """Refuse weights other than those a run was made with.

    Raises:
        UserError: naming the first files and LoRAs that differ, with short hashes.
    """
    changed = [*_differences("", record.files, info.files), *_differences("LoRA ", record.loras, info.loras)]
    if not changed and list(record.loras) != list(info.loras):
        changed = [f"LoRAs were loaded in the order {', '.join(record.loras)}, now {', '.join(info.loras)}"]
    if changed:
        more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"the model is not the one this run was made with: {'; '.join(changed[:3])}{more}; "
            "give the same files, or use `svi branch` to go on with others"
        )


def _differences(kind: str, before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if old is None or new is None:
            found.append(f"{kind}{name} is {'new' if old is None else 'missing'}")
        else:
            found.append(f"{kind}{name} was {old[:8]}, is {new[:8]}")
    return found


def model_record(info: ModelInfo) -> ModelRecord:
    """The record of a loaded model."""
    return ModelRecord(
        name=info.name, files=dict(info.files), loras=dict(info.loras), lora_sources=dict(info.lora_sources)
    )


def software_versions() -> dict[str, str]:
    """Versions of this package, Python and every library that can change bits."""
    versions = {"svi": __version__, "python": platform.python_version()}
    return {**versions, **{name: _version(name) for name in LIBRARIES}}


def software_changes(before: Mapping[str, str]) -> list[str]:
    """What is installed in another version than ``before`` says: ``torch 2.12 -> 2.13``."""
    now = software_versions()
    return [f"{name} {before[name]} -> {now[name]}" for name in now if name in before and before[name] != now[name]]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def now() -> str:
    """The present time, UTC, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def parse_manifest(text: bytes, path: Path) -> Manifest:
    """Read the content of ``run.json``.

    Raises:
        UserError: if it is damaged; the message says what can be saved.
    """
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in mistake["loc"]) or "it"
    raise UserError(
        f"{path} is damaged ({place}: {mistake['msg']}): the run cannot go on, but its finished clips can be saved "
        f"with `svi export {path.parent}`"
    )
