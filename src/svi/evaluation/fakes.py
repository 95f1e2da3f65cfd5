"""Videos that must score badly, made from a true one: naive foolers, and drifts put in by a known amount.

Pure functions from frames to frames that hold at most one clip, so a video may be of any length. They take frames one by
one, ``(H, W, 3)`` uint8, and give as many back. Nothing here knows how videos are scored.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

Array = np.ndarray
Picture = Callable[[Array, float, np.random.Generator], Array]  # frame (float32), strength 0..1, randomness -> frame


@dataclass(frozen=True)
class Shape:
    """What a fake must know of the video: its length and clips.

    Attributes:
        num_frames: to be made.
        clip_frames: new frames per clip; faults grow from clip to clip, since that is how errors enter.
        seed: of what is random.
    """

    num_frames: int
    clip_frames: int
    seed: int = 0

    def strength(self, frame: int) -> float:
        """How far the faults have grown: 0 in the first clip, 1 in the last."""
        last = max(1, (self.num_frames - 1) // self.clip_frames)
        return (frame // self.clip_frames) / last


Fake = Callable[[Iterable[Array], Shape], Iterator[Array]]


@dataclass(frozen=True)
class Kind:
    """A row of the table: how it is made, and whether it fools (shows what was shown) or drifts (shows it worse)."""

    make: Fake
    role: Literal["truth", "fooler", "drift"]
    about: str


# -- foolers -----------------------------------------------------------------------------------------------------------


def truth(frames: Iterable[Array], shape: Shape) -> Iterator[Array]:
    """The true video itself."""
    return itertools.islice(iter(frames), shape.num_frames)


def copy_clips(frames: Iterable[Array], shape: Shape) -> Iterator[Array]:
    """The first clip, over and over."""
    clip = list(itertools.islice(iter(frames), shape.clip_frames))
    return itertools.islice(itertools.cycle(clip), shape.num_frames)


def ping_pong(frames: Iterable[Array], shape: Shape) -> Iterator[Array]:
    """The first clip forwards, backwards, forwards ..."""
    clip = list(itertools.islice(iter(frames), shape.clip_frames))
    return itertools.islice(itertools.cycle([*clip, *clip[-2:0:-1]]), shape.num_frames)


def copy_reference(frames: Iterable[Array], shape: Shape) -> Iterator[Array]:
    """The first frame, for ever."""
    return itertools.repeat(next(iter(frames)), shape.num_frames)


# -- faults of single frames -------------------------------------------------------------------------------------------


def _tint(x: Array, u: float, rng: np.random.Generator) -> Array:
    return np.asarray(x * (1 + u * np.array((0.12, 0.0, -0.12), np.float32)))


def _saturate(x: Array, u: float, rng: np.random.Generator) -> Array:
    grey = x.mean(-1, keepdims=True)
    return np.asarray(grey + (1 + 0.5 * u) * (x - grey))


def _contrast(x: Array, u: float, rng: np.random.Generator) -> Array:
    return 128 + (1 + 0.35 * u) * (x - 128)


def _darken(x: Array, u: float, rng: np.random.Generator) -> Array:
    return x * (1 - 0.3 * u)


def _blur(x: Array, u: float, rng: np.random.Generator) -> Array:
    return _smooth(x, 1.5 * u)


def _sharpen(x: Array, u: float, rng: np.random.Generator) -> Array:
    return np.asarray(x + u * (x - _smooth(x, 1.0)))


def _noise(x: Array, u: float, rng: np.random.Generator) -> Array:
    return np.asarray(x + 6.0 * u * rng.standard_normal(x.shape, dtype=np.float32))


def _flicker(x: Array, u: float, rng: np.random.Generator) -> Array:
    return np.asarray(x * np.float32(1 + rng.uniform(-0.04, 0.04))) if u else x


def _dark_then_back(x: Array, u: float, rng: np.random.Generator) -> Array:
    return x * np.float32(1 - 0.3 * (1 - abs(2 * u - 1)))


def _shift(x: Array, u: float, rng: np.random.Generator) -> Array:
    """To the side by a tenth of the width, what comes in being the edge."""
    by = round(0.1 * u * x.shape[1])
    return np.concatenate([x[:, :1].repeat(by, 1), x[:, : x.shape[1] - by]], axis=1)


def _smooth(x: Array, sigma: float) -> Array:
    """Gaussian blur of ``(H, W, 3)``, edges repeated."""
    if sigma <= 0:
        return x
    reach = min(int(np.ceil(3 * sigma)), min(x.shape[:2]) - 1)
    at = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (at / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (0, 1):
        margins = [(0, 0)] * 3
        margins[axis] = (reach, reach)
        padded, size = np.pad(x, margins, mode="edge"), x.shape[axis]
        x = sum((w * padded.take(range(k, k + size), axis) for k, w in enumerate(weights)), np.zeros_like(x))
    return x


def per_frame(fault: Picture) -> Fake:
    """A fake that spoils each frame by itself, as far as its clip says."""

    def make(frames: Iterable[Array], shape: Shape) -> Iterator[Array]:
        rng = np.random.Generator(np.random.PCG64(shape.seed))
        for number, frame in enumerate(itertools.islice(iter(frames), shape.num_frames)):
            spoilt = fault(frame.astype(np.float32), shape.strength(number), rng)
            yield np.clip(spoilt.round(), 0, 255).astype(np.uint8)

    return make


# -- faults of time ----------------------------------------------------------------------------------------------------


def freeze(frames: Iterable[Array], shape: Shape) -> Iterator[Array]:
    """Stands still from the middle on."""
    half = max(1, shape.num_frames // 2)
    last: Array | None = None
    for last in itertools.islice(iter(frames), half):
        yield last
    assert last is not None, "a video without frames"
    yield from itertools.repeat(last, shape.num_frames - half)


def motion_dies(frames: Iterable[Array], shape: Shape) -> Iterator[Array]:
    """Runs ever slower: at a tenth of its speed in the last clip; between frames it blends, so none is a copy."""
    source = iter(frames)
    before = after = next(source)
    reached = 0  # source frames passed
    time = 0.0
    for number in range(shape.num_frames):
        while reached < time:
            before, after = after, next(source)
            reached += 1
        blend = np.float32(1 - (reached - time))
        mixed = before.astype(np.float32) * (1 - blend) + after.astype(np.float32) * blend
        yield mixed.round().astype(np.uint8)
        time += 0.1 ** shape.strength(number)


FAKES: dict[str, Kind] = {
    "truth": Kind(truth, "truth", "the true video"),
    "copy-clips": Kind(copy_clips, "fooler", "the first clip over and over"),
    "ping-pong": Kind(ping_pong, "fooler", "the first clip to and fro"),
    "copy-reference": Kind(copy_reference, "fooler", "the first frame for ever"),
    "freeze": Kind(freeze, "fooler", "stands still from the middle on"),
    "motion-dies": Kind(motion_dies, "fooler", "a tenth of its speed at the end"),
    "tint": Kind(per_frame(_tint), "drift", "red up and blue down by 12 %"),
    "saturate": Kind(per_frame(_saturate), "drift", "colours half as strong again"),
    "contrast": Kind(per_frame(_contrast), "drift", "contrast up by 35 %"),
    "darken": Kind(per_frame(_darken), "drift", "30 % darker"),
    "blur": Kind(per_frame(_blur), "drift", "blur of sigma 1.5 pixels"),
    "sharpen": Kind(per_frame(_sharpen), "drift", "unsharp mask at strength 1"),
    "noise": Kind(per_frame(_noise), "drift", "noise of 6 grey levels"),
    "flicker": Kind(per_frame(_flicker), "drift", "brightness up to 4 % off from frame to frame"),
    "dark-then-back": Kind(per_frame(_dark_then_back), "drift", "30 % darker in the middle, as before at the end"),
    "shift": Kind(per_frame(_shift), "drift", "everything a tenth of the width to the right"),
}
