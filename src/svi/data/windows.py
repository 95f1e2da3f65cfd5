"""Which frames make a training window: pure arithmetic on frame numbers, and draws that depend on names alone.

Knows nothing about files or tensors. Frames are counted on the model's clock (``fps`` of its geometry) from the start of a
span, a run of moving frames of one video. What is random about a window (phase, reference, crop, first clip or later one)
is a pure function of (seed, name, epoch), so a window can be made again anywhere, in any order.

Sources: [1.0] train_svi*.py at 34e4c50: start uniform over the video, reference uniform over the frames of the window,
crop of 13/14 to all of the limiting side, film sees one motion frame instead of five in 10 % of the steps
(p_motion_threshold 0.9). [2.0] README of svi_wan22: the reference never lies in the generated window.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

import torch

from svi.conditioning.policy import ConditioningPolicy
from svi.errors import UserError, nearest
from svi.geometry import Geometry

CROP_MIN = 13 / 14


@dataclass(frozen=True, order=True)
class Bucket:
    """A shape of windows: batches are made of windows of one bucket. Pixels and frames."""

    num_frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.num_frames}x{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str) -> Bucket:
        """``81x480x832`` -> frames, height, width.

        Raises:
            UserError: for anything else.
        """
        match = re.fullmatch(r"(\d{1,5})[xX×](\d{1,5})[xX×](\d{1,5})", text.strip())
        if match is None:
            raise UserError(f"a bucket is FRAMESxHEIGHTxWIDTH, for instance 81x480x832, not {text!r}")
        return cls(*(int(number) for number in match.groups()))

    @classmethod
    def of(cls, geometry: Geometry) -> Bucket:
        """The window that the model was trained on."""
        return cls(geometry.num_frames, geometry.height, geometry.width)

    def check(self, geometry: Geometry) -> None:
        """Raise UserError for a shape that the model cannot take."""
        try:
            geometry.latent_shape(self.num_frames, self.height, self.width)
        except ValueError as error:
            raise UserError(f"bucket {self}: {error}") from None


@dataclass(frozen=True)
class WindowRule:
    """How windows are cut from videos.

    Attributes:
        reference: where the reference frame is drawn from: ``inside`` the window (1.0) or ``outside`` it (2.0).
        first_clip_prob: share of windows that are conditioned as the first clip of a video, which has no past.
        hop: frames from one window of a span to the next; None = the length of the window, no overlap.
        windows_per_video: at most so many of a span in an epoch; None = as many as fit. The published loader takes 1.
        crop_min: smallest share of the limiting side that the random crop keeps; 1 = the largest crop, at a random place.
        degraded_prob: share of windows whose past, as the condition shows it, gets a handcrafted error (``degrade``).
        seed: of all draws.
    """

    reference: Literal["inside", "outside"] = "inside"
    first_clip_prob: float = 0.0
    hop: int | None = None
    windows_per_video: int | None = None
    crop_min: float = CROP_MIN
    degraded_prob: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.reference not in ("inside", "outside"):
            raise UserError(f"reference {self.reference!r}: {nearest(self.reference, ('inside', 'outside'))}")
        if not 0 <= self.first_clip_prob <= 1:
            raise UserError(f"first_clip_prob lies between 0 and 1, not at {self.first_clip_prob}")
        if not 0 <= self.degraded_prob <= 1:
            raise UserError(f"degraded_prob lies between 0 and 1, not at {self.degraded_prob}")
        if not 0 < self.crop_min <= 1:
            raise UserError(f"crop_min lies above 0 and up to 1, not at {self.crop_min}")
        if min(self.hop or 1, self.windows_per_video or 1) < 1 or 0 in (self.hop, self.windows_per_video):
            raise UserError("hop and windows_per_video must be at least 1")


# Where a release drew its reference from; 1.0 for all others. Pro's training was never published; it follows 2.0.
PUBLISHED_REFERENCE: dict[str, Literal["inside", "outside"]] = {
    "svi2-wan21": "outside",
    "svi2-wan22": "outside",
    "pro": "outside",
}


def published_rule(policy: ConditioningPolicy, *, seed: int = 0) -> WindowRule:
    """The rule a preset was trained with: where its reference lies, and 10 % first clips where those look different.

    With one motion frame and pixel hand-off a first clip is a later one whose reference is its own first frame, and the
    published training makes no case of it.
    """
    special = policy.motion_frames > 1 or policy.motion_latents > 0
    return WindowRule(
        reference=PUBLISHED_REFERENCE.get(policy.name, "inside"), first_clip_prob=0.1 if special else 0.0, seed=seed
    )


def uses_reference(policy: ConditioningPolicy) -> bool:
    """Whether the reference image enters the condition at all."""
    return policy.hand_off == "latent" or policy.reference_frames != 0 or policy.image_feature == "reference"


@dataclass(frozen=True)
class Reach:
    """Frames that a window needs: ``before`` its start, ``inside`` it, and ``outside`` it for the reference."""

    before: int
    inside: int
    outside: int

    @property
    def total(self) -> int:
        return self.before + self.inside + self.outside

    def windows(self, span: int, rule: WindowRule) -> int:
        """How many windows fit into a span of so many frames."""
        if span < self.total:
            return 0
        fitting = 1 + (span - self.total) // (rule.hop or self.inside)
        return min(fitting, rule.windows_per_video or fitting)


def reach(policy: ConditioningPolicy, rule: WindowRule, num_frames: int, temporal_scale: int) -> Reach:
    """What a window of ``num_frames`` frames needs around it.

    Latent hand-off needs the past whose last latents it continues: to encode n latents that stand inside a video, the
    frames of one more latent and a first one, ``scale * (n + 1) + 1`` in all, of which ``scale * n`` lie in the window.
    """
    before = temporal_scale + 1 if policy.motion_latents else 0
    outside = int(rule.reference == "outside" and uses_reference(policy))
    return Reach(before, num_frames, outside)


@dataclass(frozen=True)
class Layout:
    """Frame numbers of one window, counted on the span's clock.

    Attributes:
        frames: of the window's moving part: all of it, or all but the reference that leads it (latent hand-off).
        reference: of the reference image; None = the first of ``frames``.
        context: of the past that latent hand-off continues, its last ``scale * motion_latents`` frames are the first
            of ``frames``; empty otherwise.
        first: whether it is conditioned as the first clip of a video.
    """

    frames: tuple[int, ...]
    reference: int | None
    context: tuple[int, ...]
    first: bool

    @property
    def numbers(self) -> tuple[int, ...]:
        """All frames to read: moving part, context, reference."""
        return (*self.frames, *self.context, *(() if self.reference is None else (self.reference,)))


def lay_out(
    policy: ConditioningPolicy,
    rule: WindowRule,
    start: int,
    span: range,
    num_frames: int,
    temporal_scale: int,
    generator: torch.Generator,
) -> Layout:
    """Draw what is random about the window of ``num_frames`` frames that begins at ``start`` in ``span``."""
    first = bool(torch.rand((), generator=generator) < rule.first_clip_prob)
    first = first or (policy.hand_off == "latent" and not policy.motion_latents)
    place = float(torch.rand((), generator=generator, dtype=torch.float64))
    if first or not uses_reference(policy):
        return Layout(tuple(range(start, start + num_frames)), None, (), first)
    inside = range(start, start + num_frames)
    choice = list(inside) if rule.reference == "inside" else [n for n in span if n not in inside]
    assert choice, "a span is long enough for its windows"
    reference = choice[min(int(place * len(choice)), len(choice) - 1)]
    if policy.hand_off == "pixel":
        return Layout(tuple(inside), reference, (), first)
    # The clip shows its anchor, then renders the motion latents again: that part of the video begins at ``start``.
    context = range(start - temporal_scale - 1, start + temporal_scale * policy.motion_latents)
    return Layout(tuple(inside[:-1]), reference, tuple(context), first)


def window_start(reach_: Reach, rule: WindowRule, span: int, window: int, phase: torch.Generator) -> int:
    """Where window number ``window`` of a span of ``span`` frames begins.

    All windows of a span move together by a random phase, so that they stay ``hop`` apart and every frame is seen.
    """
    count, hop = reach_.windows(span, rule), rule.hop or reach_.inside
    slack = span - reach_.total - (count - 1) * hop
    return reach_.before + window * hop + int(torch.randint(slack + 1, (), generator=phase))


def generator_for(seed: int, name: str, epoch: int) -> torch.Generator:
    """A generator that depends on these three and nothing else."""
    digest = hashlib.blake2b(f"{seed}\0{epoch}\0{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def degradation(rule: WindowRule, name: str, epoch: int) -> torch.Generator | None:
    """What draws the handcrafted error of window ``name`` in an epoch; None = it gets none."""
    generator = generator_for(rule.seed, f"degrade {name}", epoch)
    return generator if float(torch.rand((), generator=generator)) < rule.degraded_prob else None


@dataclass(frozen=True)
class Crop:
    """A part of a picture: ``left, top, right, bottom`` as shares of its width and height, 0 to 1."""

    left: float
    top: float
    right: float
    bottom: float


def draw_crop(source: tuple[int, int], target: tuple[int, int], smallest: float, generator: torch.Generator) -> Crop:
    """A random crop of the target's shape, as published.

    The limiting side keeps a share drawn from [smallest, 1], the other follows from the shape, the place is drawn.

    Args:
        source, target: ``(height, width)`` in pixels.
        smallest: share of the limiting side that is kept at least.
        generator: three numbers are drawn.
    """
    share, down, right = (float(value) for value in torch.rand(3, generator=generator, dtype=torch.float64))
    kept = smallest + (1 - smallest) * share
    scale = kept * min(source[0] / target[0], source[1] / target[1])
    height, width = (min(1.0, scale * side / whole) for side, whole in zip(target, source, strict=True))
    top, left = down * (1 - height), right * (1 - width)
    return Crop(left, top, left + width, top + height)


def picture_kept(source: tuple[int, int], target: tuple[int, int]) -> float:
    """Share of the picture's area that the largest crop of the target's shape keeps. ``(height, width)`` each."""
    ratios = source[0] / target[0], source[1] / target[1]
    return min(ratios) / max(ratios)
