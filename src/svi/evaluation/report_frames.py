"""What a report shows of the pictures themselves: frames at even times, the worst ones, and how alike all times are.

Reads a video once more, front to back, and keeps small pictures only. Knows nothing about pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from svi.data.video import UnusableVideoError
from svi.evaluation.metric import Better
from svi.evaluation.reader import frames, look
from svi.evaluation.store import MetricNote, Result, Row

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the video, whose frames are shown
WIDTH = 320  # of a picture at most
THUMBS = 64  # times that are compared with each other
THUMB = (32, 18)
ALIKE = 32.0  # grey levels RMS at which two frames have nothing in common
WORST = 2
# Whose worst frame is shown, in this order: what a viewer would call bad comes first.
TELLING = (
    "imaging_quality",
    "aesthetic_quality",
    "subject_consistency",
    "look_sharpness",
    "look_colour",
    "look_luma",
    "psnr",
)


@dataclass(frozen=True)
class Picture:
    """A frame in a report: ``why`` is empty for those at even times."""

    frame: int
    seconds: float
    pixels: np.ndarray
    why: str = ""


@dataclass(frozen=True)
class Sheet:
    """The pictures of one video; ``alike``: ``(k, k)`` in [0, 1]; ``fault``: why there are none."""

    method: str
    sample: str
    pictures: tuple[Picture, ...] = ()
    alike: np.ndarray | None = None
    fault: str = ""


def make_sheet(method: str, row: Row, results: Mapping[str, Result], notes: Mapping[str, MetricNote]) -> Sheet:
    """Pictures of one video. What cannot be read says why; a report of scores needs no videos."""
    if row.excluded:
        return Sheet(method, row.name, fault=row.excluded)
    count, fps = int(row.facts["num_frames"]), float(row.facts["fps"])
    wanted = {round(share * (count - 1)): "" for share in SHARES}
    wanted |= worst_frames(results, notes)
    spread = set(np.unique(np.linspace(0, count - 1, min(THUMBS, count)).round().astype(int)).tolist())
    pictures, thumbs = [], []
    try:
        for number, frame in enumerate(frames(look(Path(row.video), limit=count))):
            if number in wanted:
                pictures.append(Picture(number, number / fps, _small(frame), wanted[number]))
            if number in spread:
                thumbs.append(np.asarray(Image.fromarray(frame).convert("L").resize(THUMB, Image.Resampling.BOX)))
    except UnusableVideoError as error:
        return Sheet(method, row.name, fault=f"its frames are not shown: {error}")
    return Sheet(method, row.name, tuple(pictures), similarity(np.stack(thumbs)))


def worst_frames(results: Mapping[str, Result], notes: Mapping[str, MetricNote], count: int = WORST) -> dict[int, str]:
    """Frames at which telling metrics are worst, and which say so. By distance from the first value where none is best."""
    found: dict[int, str] = {}
    for metric in TELLING:
        result, note = results.get(metric), notes.get(metric)
        if result is None or note is None or result.status != "ok":
            continue
        series = max(result.series.values(), key=lambda pair: len(pair[0]), default=None)
        if series is None or not len(series[0]):
            continue
        at, values = series[0], np.array(series[1], dtype=np.float64)
        better = Better(note.better)
        if better in (Better.ZERO, Better.NEITHER):
            values = np.abs(values - values[0])
        score = values if better is Better.HIGHER else -values
        if not np.isfinite(score).any():
            continue
        frame = int(at[int(np.nanargmin(score))])
        found.setdefault(frame, f"worst by {metric.replace('_', ' ')}")
        if len(found) == count:
            break
    return found


def similarity(thumbs: np.ndarray) -> np.ndarray:
    """How alike frames ``(k, h, w)`` are, ``(k, k)``: 1 = the same, 0 = 32 grey levels RMS apart or more."""
    rows = thumbs.reshape(len(thumbs), -1).astype(np.float64)
    apart = np.sqrt(np.maximum(0, ((rows[:, None] - rows[None]) ** 2).mean(-1)))
    return np.asarray(np.clip(1 - apart / ALIKE, 0, 1))


def pick(rows: Sequence[Row], shared: Sequence[str], count: int) -> list[str]:
    """Samples to show: the first ones that all methods have."""
    names = [row.name for row in rows]
    common = [name for name in names if name in set(shared)]
    return (common or names)[:count]


def _small(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    if width <= WIDTH:
        return frame.copy()
    size = (WIDTH, max(1, round(height * WIDTH / width)))
    return np.array(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
