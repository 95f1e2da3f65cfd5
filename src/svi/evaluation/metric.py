"""What a metric is: it reads the frames of one video as they pass by, and ends with a score or the reason why there is none.

Knows nothing about models, suites or reports. A video is read once, in batches, for all metrics together; a metric keeps
what it needs (a running sum, a row of features), never the video.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import numpy as np

FIRST_ROOM = 256  # frames that values are kept of before more room is made


class Better(StrEnum):
    """Which way a score is good."""

    HIGHER = "higher"
    LOWER = "lower"
    ZERO = "closer to zero"
    NEITHER = "neither"  # describes (speed, luma), ranks nothing


class Need(StrEnum):
    """What a metric needs beside the video."""

    REFERENCE = "reference image"
    TRUTH = "true video"
    PROMPTS = "prompts"
    CLIPS = "clip borders"
    AUDIO = "audio"


@dataclass(frozen=True)
class Sample:
    """One video to score and what is known about it; paths are opened by the reader, not by metrics.

    Attributes:
        name: unique in its suite; results are paired by it.
        video: file, or folder of PNG frames.
        fps: frames per second, as played.
        num_frames, height, width: of the video, upright.
        reference: the image that the video started from, ``(H, W, 3)`` uint8, in the video's size.
        truth: the video as it should be, file or folder, frame by frame.
        prompts: one per beat, with the frame at which it begins.
        borders: first frames of clips 1, 2, ... (ascending; clip 0 begins at 0).
        audio: what drove it.
    """

    name: str
    video: Path
    fps: float
    num_frames: int
    height: int
    width: int
    reference: np.ndarray | None = None
    truth: Path | None = None
    prompts: Sequence[tuple[int, str]] = ()
    borders: Sequence[int] = ()
    audio: Path | None = None


@dataclass(frozen=True)
class Frames:
    """Consecutive frames of a video.

    Attributes:
        start: index of the first one.
        frames: ``(n, H, W, 3)`` uint8.
        truth: ``(n, H, W, 3)`` uint8 of the true video, for metrics that need it.
    """

    start: int
    frames: np.ndarray
    truth: np.ndarray | None = None


@dataclass(frozen=True)
class Score:
    """What a metric found in one video.

    Attributes:
        value: the score; for sets (FVD) None, the features speak.
        series: per-frame or per-clip values by name, with the frame at which each stands; NaN where undefined.
        extra: further plain numbers by name.
        features: ``(n, d)`` for metrics that compare whole sets of videos.
        weight: how much the video counts in a mean over videos (frames, where a protocol says so).
    """

    value: float | None
    series: Mapping[str, tuple[Sequence[int], Sequence[float]]] = field(default_factory=dict)
    extra: Mapping[str, float] = field(default_factory=dict)
    features: np.ndarray | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Skipped:
    """Why there is no score (weights missing, too short, no reference): never counted as 0."""

    reason: str


class Reading(Protocol):
    """One metric while one video passes by."""

    def add(self, batch: Frames) -> None:
        """Take the next frames; batches come in order, without gaps, of any length."""

    def result(self) -> Score | Skipped:
        """After the last frame."""


class Metric(Protocol):
    """A way to score videos.

    Attributes:
        name: as in tables, ``subject_consistency``.
        version: changes whenever the same video may get another score; part of the key of stored results.
        unit: "dB", "%", "" ...; ``value`` is in it.
        better: which way is good.
        needs: what a sample must have; the runner skips with a reason what lacks it.
        source: paper and equation, or a link.
    """

    name: str
    version: str
    unit: str
    better: Better
    needs: frozenset[Need]
    source: str

    def key(self) -> str:
        """Everything beside the video that a score depends on, as text: parameters, mode, hash of weights."""

    def missing(self) -> str | None:
        """Why this metric cannot run at all here (weights, a library) and the remedy, or None. Fast: loads nothing."""

    def start(self, sample: Sample) -> Reading:
        """Begin a video; heavy models are loaded at the first call and kept."""


class SetMetric(Metric, Protocol):
    """A metric of sets: the score of one set of videos against another, from the features of each video."""

    def compare(self, features: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> Score:
        """Features of the videos of one method, and of the true ones, ``(n_i, d)`` each."""


class Kept:
    """Values per frame ``(T, ...)``, handed in batch by batch, in one array that doubles when it is full.

    Not a list of small arrays: each of those would be allocated amid the large ones of its batch and stay when they go, and
    the C library cannot join what lies on both sides of it. So a few bytes a frame made memory grow by a megabyte a frame.
    """

    def __init__(self) -> None:
        self._room: np.ndarray | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, values: np.ndarray) -> None:
        """Take the next ``(n, ...)``; the type is that of the first ones."""
        end = self._count + len(values)
        if self._room is None:
            self._room = np.empty((max(FIRST_ROOM, 2 * end), *values.shape[1:]), values.dtype)
        elif end > len(self._room):
            larger = np.empty((2 * end, *values.shape[1:]), self._room.dtype)
            larger[: self._count] = self.all()
            self._room = larger
        self._room[self._count : end] = values
        self._count = end

    def all(self) -> np.ndarray:
        """All so far, ``(T, ...)``: a view, to be taken after the last frame."""
        return np.zeros(0) if self._room is None else self._room[: self._count]


def split(batch: Frames, size: int) -> Iterator[Frames]:
    """The same frames in pieces of at most ``size``."""
    for offset in range(0, len(batch.frames), size):
        part = slice(offset, offset + size)
        truth = None if batch.truth is None else batch.truth[part]
        yield Frames(batch.start + offset, batch.frames[part], truth)
