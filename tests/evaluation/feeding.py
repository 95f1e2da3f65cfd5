"""Videos of known numbers, and how they are fed to a metric: in batches of any length, as the reader does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from svi.evaluation.metric import Frames, Metric, Sample, Score, Skipped


class Fake:
    """An extractor from a function; remembers how many frames it was given at a time."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray], key: str = "fake") -> None:
        self.function, self.key = function, key
        self.sizes: list[int] = []

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        self.sizes.append(len(frames))
        return self.function(frames)


def sample(num_frames: int, fps: float = 16, size: tuple[int, int] = (8, 8), **known: Any) -> Sample:
    return Sample("a", Path("a.mp4"), fps, num_frames, *size, **known)


def flat(levels: Sequence[int], size: tuple[int, int] = (8, 8)) -> np.ndarray:
    """Frames of one grey level each, ``(n, H, W, 3)``."""
    return np.broadcast_to(np.array(levels, np.uint8)[:, None, None, None], (len(levels), *size, 3)).copy()


def numbered(num_frames: int, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    """Frame k is grey level k, so that an extractor can tell which frame it sees; up to 256."""
    return flat(range(num_frames), size)


def number(frames: np.ndarray) -> np.ndarray:
    """The inverse of :func:`numbered`, for groups of frames too."""
    return frames[..., 0, 0, 0].astype(int)


def table(rows: np.ndarray) -> Fake:
    """An extractor that looks frame k of :func:`numbered` up in a table."""
    return Fake(lambda frames: np.asarray(rows)[number(frames)])


def feed(
    metric: Metric, frames: np.ndarray, about: Sample | None = None, batch: int = 5, **more: Any
) -> Score | Skipped:
    about = about or sample(len(frames))
    reading = metric.start(about)
    for start in range(0, len(frames), batch):
        truth = more.get("truth")
        reading.add(
            Frames(start, frames[start : start + batch], None if truth is None else truth[start : start + batch])
        )
    return reading.result()


def scored(metric: Metric, frames: np.ndarray, about: Sample | None = None, batch: int = 5, **more: Any) -> Score:
    result = feed(metric, frames, about, batch, **more)
    assert isinstance(result, Score), result
    return result


def series(result: Score, name: str) -> Iterator[tuple[int, float]]:
    at, values = result.series[name]
    return zip(at, values, strict=True)
