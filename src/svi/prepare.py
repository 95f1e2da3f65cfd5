"""From what a user hands in to checked inputs of a run, before any weights are loaded.

Every mistake ends here in a UserError, the cheap checks first. Knows nothing about the command line; makes no video and
writes no file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svi.backends.base import ModelInfo
from svi.backends.lora import check_lora, names_file, parse_spec
from svi.backends.memory import Window
from svi.backends.peek import peek
from svi.backends.placement import NO_QUANTISATION, Placement, choose
from svi.backends.weights import find_model
from svi.conditioning.policy import get_policy
from svi.data.film import Film, is_film
from svi.errors import UserError
from svi.generation.images import Reference, load_reference
from svi.generation.live import check_loras
from svi.generation.manifest import ModelRecord, RunSettings, resolve_settings
from svi.generation.prompts import load_prompts
from svi.generation.stitch import clips_for_seconds
from svi.generation.storyboard import Storyboard, storyboard_from_prompts
from svi.geometry import Geometry
from svi.speed import get_speed

if TYPE_CHECKING:
    from svi.generation.images import Source

Prompts = str | PathLike[str] | Sequence[str] | Storyboard
AS_PUBLISHED: dict[str, Any] = {"speed": get_speed("reference"), "quantise": NO_QUANTISATION, "merge_loras": False}
"""Knobs as a run has them for which none was turned."""


@dataclass(frozen=True)
class Sampling:
    """What a user may ask of the pictures; None = the storyboard's, else the model's, else the preset's."""

    preset: str | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    solver: str | None = None
    num_frames: int | None = None
    negative_prompt: str | None = None
    size: tuple[int, int] | None = None
    anchor: Source | None = None
    new_only: bool = False


@dataclass(frozen=True)
class Length:
    """How long a video shall be; at most one of the three. All left out: as long as the story."""

    clips: int | None = None
    seconds: float | None = None
    endless: bool = False

    def __post_init__(self) -> None:
        given = [name for name in ("clips", "seconds", "endless") if getattr(self, name) not in (None, False)]
        if len(given) > 1:
            raise UserError(f"give only one of {', '.join(given)}: they contradict each other")
        if self.clips is not None and self.clips < 1:
            raise UserError(f"clips must be at least 1, not {self.clips}")
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise UserError(f"seconds must be a positive number, not {self.seconds}")

    @property
    def given(self) -> bool:
        return self.clips is not None or self.seconds is not None or self.endless

    def target(self, storyboard: Storyboard, settings: RunSettings) -> int | None:
        """Clips of the run in all; None = endless."""
        if self.endless:
            return None
        if self.clips is not None:
            return self.clips
        if self.seconds is not None:
            return self.in_clips(settings)
        if storyboard.clips == "endless":
            return None
        return storyboard.clips or storyboard.planned_clips

    def in_clips(self, settings: RunSettings) -> int:
        """Clips of a whole video that lasts ``seconds``."""
        assert self.seconds is not None
        overlap = get_policy(settings.preset).overlap
        return clips_for_seconds(self.seconds, settings.fps, settings.num_frames, overlap)

    def added(self, settings: RunSettings) -> int | None:
        """Clips that make a video longer by ``clips`` or ``seconds``; None = endless."""
        if self.seconds is None:
            return self.clips
        new = settings.num_frames - get_policy(settings.preset).overlap
        return math.ceil(Fraction(str(self.seconds)) * settings.fps / new)


@dataclass(frozen=True)
class Prepared:
    """Checked inputs of a run.

    Attributes:
        reference: the user's image; of a user's video its first frame, or the anchor given beside it.
        target: clips in all, None = endless.
        notes: what a user should know.
        film: the user's own video that the run goes on from.
        whole: whether that video stands before the clips.
    """

    storyboard: Storyboard
    reference: Reference
    settings: RunSettings
    target: int | None
    notes: tuple[str, ...] = ()
    film: Film | None = None
    whole: bool = True


@dataclass(frozen=True)
class ModelChoice:
    """Which model, where and how; see ``svi.load``.

    Attributes:
        running: knobs of :func:`svi.backends.placement.choose` that were turned.
        window: of the clips, for the estimate of memory.
        text_cache: as ``load_backend`` has it.
    """

    model: str = "pocket"
    loras: tuple[str, ...] = ()
    device: str | None = None
    dtype: str | None = None
    download: bool = False
    running: Mapping[str, Any] = field(default_factory=dict)
    window: Window | None = None
    text_cache: bool | None = None

    def check(self) -> None:
        """Refuse an unknown device, dtype, knob or LoRA, without loading anything; LoRA files before a model is fetched."""
        self.look()
        named = [spec for spec in self.loras if not names_file(spec)]
        for spec in self.loras:
            if spec not in named:
                check_lora(spec, None)
        for spec in named:
            check_lora(spec, find_model(self.model, allow_download=self.download))

    @property
    def place(self) -> dict[str, Any]:
        """The arguments of ``load_backend`` beside model and LoRAs."""
        where = {"device": self.device, "dtype": self.dtype, "allow_download": self.download}
        where["text_cache"] = self.text_cache
        return {**where, **self._running()}

    def look(self) -> Placement:
        """How it would run, as far as that can be told without looking at the model.

        Raises:
            UserError: for what this machine or nobody has.
        """
        disk = self.running.get("disk")
        if disk is not None and Path(disk).exists() and not Path(disk).is_dir():
            raise UserError(f"blocks cannot wait in {disk}: it is no folder")
        return choose(self.device, self.dtype, download=self.download, **self._knobs())

    def _knobs(self) -> dict[str, Any]:
        disk = self.running.get("disk")
        return {**self.running, "disk": None if disk is None else Path(disk)}

    def _window(self) -> Window:
        geometry, _ = self.peek()
        return Window(geometry.height, geometry.width, geometry.num_frames)

    def _running(self) -> dict[str, Any]:
        """As ``load_backend`` takes it. A card is looked at; a CPU works where the weights are, so nothing is decided unasked."""
        card = choose(self.device).device.type == "cuda"
        if not card and all(AS_PUBLISHED.get(name) == value for name, value in self.running.items()):
            return {}
        memory = {"memory": "auto" if card else "resident"}
        return {**memory, **self._knobs(), "window": self.window or self._window(), "download": self.download}

    def peek(self) -> tuple[Geometry, ModelInfo]:
        """Shapes, recommended settings and LoRA strengths of the model, without its weights."""
        geometry, info = peek(self.model, allow_download=self.download)
        specs = [parse_spec(spec) for spec in self.loras]
        return geometry, replace(info, lora_strengths={spec.name: spec.strength for spec in specs})


def prepare(
    story: Story,
    *,
    length: Length,
    sampling: Sampling,
    geometry: Geometry,
    info: ModelInfo,
) -> Prepared:
    """Check everything that decides a run, against the shapes of the model.

    Raises:
        UserError: for the first mistake found.
    """
    storyboard = story.storyboard.with_overrides(negative_prompt=sampling.negative_prompt)
    reference = load_reference(story.image, sampling.size, geometry)
    if story.anchor is not None:
        reference = load_reference(story.anchor, (reference.width, reference.height), geometry)
    elif story.film is not None:
        reference = replace(reference, source=str(story.film.path))
    settings = settings_for(storyboard, sampling, geometry, info, (reference.width, reference.height))
    notes = reference.notes
    if story.film is None:
        target = length.target(storyboard, settings)
    else:
        notes = (*notes, *check_film(story.film, settings, geometry))
        target = length.target(storyboard, settings) if length.seconds is None else length.added(settings)
    return Prepared(storyboard, reference, settings, target, notes, story.film, not sampling.new_only)


@dataclass(frozen=True)
class Story:
    """What a video starts from: prompts, and an image that is not converted yet.

    Attributes:
        film: the user's own video, where it goes on from one; ``image`` is then its first frame.
        anchor: what presets hold on to instead of that frame.
    """

    storyboard: Storyboard
    image: Source
    film: Film | None = None
    anchor: Source | None = None

    @classmethod
    def read(cls, image: Source | None, prompts: Prompts | None, anchor: Source | None = None) -> Story:
        """From what a user gave; without image and prompts, the bundled example.

        Raises:
            UserError: for prompts or a video that cannot be read, where prompts or image are missing, and for an ``anchor``
                without a video.
        """
        if prompts is None:
            prompts = _example_story(image)
        storyboard, base = read_story(prompts)
        found = image if image is not None else story_image(storyboard, base)
        if not is_film(found):
            if anchor is not None:
                raise UserError(
                    "an anchor belongs to a video that is to go on; an image is its own anchor: leave it out"
                )
            return cls(storyboard, found)
        assert isinstance(found, str | PathLike)
        film = Film.open(Path(found))
        return cls(storyboard, film.first(), film, anchor)

    def check_image(self) -> None:
        """Refuse an image that cannot be read, before its size is known to fit a model."""
        anything = Geometry()
        load_reference(self.image, (anything.width, anything.height), anything)


def check_film(film: Film, settings: RunSettings, geometry: Geometry) -> tuple[str, ...]:
    """Refuse a video that a preset cannot go on from; returns what a user should know.

    Raises:
        UserError: for one that is too short, and for a preset that makes the end of a video first.
    """
    policy = get_policy(settings.preset)
    if policy.hand_off not in ("pixel", "latent"):
        raise UserError(f"preset {policy.name} makes a video from its end, so it cannot go on from {film.path}")
    there = len(film.numbers(settings.fps))
    needed = max(policy.motion_frames, 1 + policy.motion_latents * geometry.temporal_scale)
    if there < needed:
        raise UserError(
            f"{film.path} has {there} frames at {settings.fps} per second, preset {policy.name} goes on from {needed}: "
            "give a longer video, or one picture of it"
        )
    if there == 1 or abs(film.info.fps - settings.fps) < 0.01 * settings.fps:
        return ()
    return (
        f"{film.path} has {film.info.fps:.4g} frames per second, the model {settings.fps}: it is taken at that rate",
    )


def settings_for(
    storyboard: Storyboard,
    sampling: Sampling,
    geometry: Geometry,
    info: ModelInfo,
    size: tuple[int, int],
    **fixed: Any,
) -> RunSettings:
    """Settings of a run; a LoRA strength in the storyboard that names no loaded LoRA is refused.

    ``fixed``: settings that no option sets (``fps``, ``shift``).
    """
    negative = sampling.negative_prompt if sampling.negative_prompt is not None else storyboard.negative_prompt
    settings = resolve_settings(
        geometry,
        info,
        storyboard,
        width=size[0],
        height=size[1],
        preset=sampling.preset,
        seed=sampling.seed,
        steps=sampling.steps,
        guidance=sampling.guidance,
        solver=sampling.solver,
        num_frames=sampling.num_frames,
        negative_prompt=negative,
        loras=dict(info.lora_strengths),
        **fixed,
    )
    check_loras(storyboard, settings)
    policy = get_policy(settings.preset)
    if policy.drive is not None:
        raise UserError(
            f"preset {settings.preset} is driven by {policy.drive}, which cannot be given yet: choose another preset"
        )
    if policy.hand_off == "inverted":
        raise UserError(
            f"preset {settings.preset} makes a video from its end: svi bench generate and svi drift can, a run cannot"
        )
    return settings


def _example_story(image: Source | None) -> Path:
    from svi.examples import STORYBOARD

    if image is not None:
        raise UserError(
            "there are no prompts: say what happens with --prompt TEXT, --prompts FILE or --storyboard FILE"
        )
    return STORYBOARD


def read_story(prompts: Prompts) -> tuple[Storyboard, Path]:
    """The storyboard that ``prompts`` stands for, and the folder that its image is relative to."""
    if isinstance(prompts, Storyboard):
        return prompts, Path()
    if isinstance(prompts, str):
        return _from_texts([prompts]), Path()
    if isinstance(prompts, PathLike):
        return load_prompts(Path(prompts)), Path(prompts).parent
    return _from_texts(list(prompts)), Path()


def _from_texts(texts: Sequence[str]) -> Storyboard:
    if any(not text.strip() for text in texts):
        raise UserError("a prompt is empty: say what happens in the clip")
    return storyboard_from_prompts(texts)


def story_image(storyboard: Storyboard, base: Path) -> Path:
    """The image that a storyboard names, relative to its folder."""
    if storyboard.image is None:
        raise UserError("there is no image: give one (svi generate IMAGE ...), or name one in the storyboard")
    return base / storyboard.image


def run_loras(record: ModelRecord, settings: RunSettings) -> tuple[str, ...]:
    """The LoRAs that a run was made with, as ``SOURCE:STRENGTH``."""
    return tuple(f"{record.lora_sources.get(name, name)}:{settings.loras.get(name, 1.0)!r}" for name in record.loras)


def window_of(settings: RunSettings) -> Window:
    """The shape of a run's clips, as estimates of memory take it."""
    return Window(settings.height, settings.width, settings.num_frames)
