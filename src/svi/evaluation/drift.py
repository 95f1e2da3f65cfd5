"""From a series of values over a video to drift: how much, how fast, since when, and whether it came back.

Pure numpy on numbers; knows nothing about pictures. No single figure sees every course: the contrast of end and start and
the slope miss what comes back ("dark, then back"), the excursion and the late-weighted change see it; a slope has an
interval, an excursion has none. So a :class:`Change` has them all.
Sources: start and end 15 %: FramePack, arXiv:2504.12626, equation 7 (there without the sign); late-weighted change: VDE of
LV-Bench, but normalised and with weights that rise with time; slope: Theil and Sen, moving-block bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from svi.evaluation.statistics import slope_interval

SHARE = 0.15  # of the video is its start, and as much its end
WINDOW_S = 5.0  # clips of a video whose clip borders are not known
FEWEST = 4  # windows that a short video without clip borders is cut into
POINTS = 60  # that a slope is laid through
THRESHOLD, IN_A_ROW = 3.0, 2  # sigmas, clips: from where on a clip is no longer what the first one was
MAD_TO_SIGMA = 1.4826  # of a normal distribution


@dataclass(frozen=True)
class Change:
    """How a series changed; in its own unit. NaN where a video is too short to say.

    Attributes:
        start, end: mean over the first and last 15 % of the video.
        difference: ``end - start``, signed.
        excursion: of the clip whose mean is farthest from the first clip's: the difference, signed.
        late: ``sum(i * |s_i - s_0|) / sum(i)`` over clips 1, 2, ...: what comes late and stays counts most.
        slope, slope_low, slope_high: Theil-Sen, per minute, and its 95 % interval.
        threshold_s: when the first clip began that, with the one after it, lies 3 sigmas from the first clip, NaN = never.
        sigma: spread inside the first clip (1.4826 times the median absolute deviation), at least the floor.
    """

    start: float
    end: float
    difference: float
    excursion: float
    late: float
    slope: float
    slope_low: float
    slope_high: float
    threshold_s: float
    sigma: float

    def numbers(self) -> dict[str, float]:
        """By name, without what is NaN."""
        return {name: value for name, value in asdict(self).items() if not np.isnan(value)}


def clip_starts(borders: Sequence[int], num_frames: int, fps: float) -> np.ndarray:
    """First frames of clips 0, 1, ...: of the clips where ``borders`` (first frames of clips 1, 2, ...) are known.

    Else windows of 5 s, at least four; a last one shorter than half of that belongs to the one before.
    """
    inside = sorted({int(border) for border in borders if 0 < border < num_frames})
    if inside:
        return np.array([0, *inside])
    length = max(1, min(round(WINDOW_S * fps), num_frames // FEWEST))
    count = max(1, int(num_frames / length + 0.5))
    return np.arange(count) * length


def clip_means(at: np.ndarray, values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Mean of the values ``(n,)`` that stand at frames ``at`` in each clip, ``(K,)``; NaN for a clip without any."""
    good = ~np.isnan(values)
    clip = np.searchsorted(starts, at[good], side="right") - 1
    counts = np.bincount(clip, minlength=len(starts))
    sums = np.bincount(clip, values[good], minlength=len(starts))
    return np.asarray(sums / np.where(counts, counts, np.nan))


def change(
    at: Sequence[int] | np.ndarray,
    values: Sequence[float] | np.ndarray,
    num_frames: int,
    fps: float,
    starts: np.ndarray,
    *,
    floor: float,
    seed: int = 0,
) -> Change:
    """How a series changed over a video.

    Args:
        at: ``(n,)`` frames where values stand, ascending.
        values: ``(n,)``; NaN where undefined.
        num_frames, fps: of the video.
        starts: first frame of each clip, as from :func:`clip_starts`.
        floor: what coding alone changes, in the unit of the values; sigma is not smaller.
        seed: of the bootstrap.

    Raises:
        ValueError: not as many values as frames.
    """
    where, series = np.asarray(at, dtype=np.int64), np.asarray(values, dtype=np.float64)
    if where.shape != series.shape:
        raise ValueError(f"{len(series)} values at {len(where)} frames")
    begin = _mean(series[where < SHARE * num_frames])
    end = _mean(series[where >= (1 - SHARE) * num_frames])
    clips = clip_means(where, series, starts)
    first = series[where < (starts[1] if len(starts) > 1 else num_frames)]
    sigma = max(MAD_TO_SIGMA * _mad(first), floor)
    away = clips[1:] - clips[0]
    minutes, binned = _binned(where / fps / 60, series)
    per_clip = len(binned) / len(starts)
    line = slope_interval(minutes, binned, block=max(2, round(per_clip)), seed=seed)
    return Change(
        start=begin,
        end=end,
        difference=end - begin,
        excursion=_farthest(away),
        late=_late(away),
        slope=line.mean,
        slope_low=line.low,
        slope_high=line.high,
        threshold_s=_since(away / sigma, starts, fps),
        sigma=sigma,
    )


def _mean(values: np.ndarray) -> float:
    good = values[~np.isnan(values)]
    return float(good.mean()) if len(good) else float("nan")


def _mad(values: np.ndarray) -> float:
    good = values[~np.isnan(values)]
    return float(np.median(np.abs(good - np.median(good)))) if len(good) else 0.0


def _farthest(away: np.ndarray) -> float:
    good = away[~np.isnan(away)]
    return float(good[np.argmax(np.abs(good))]) if len(good) else float("nan")


def _late(away: np.ndarray) -> float:
    weights = np.where(np.isnan(away), 0.0, np.arange(1, len(away) + 1))
    return float(np.sum(weights * np.abs(np.nan_to_num(away))) / weights.sum()) if weights.any() else float("nan")


def _since(z: np.ndarray, starts: np.ndarray, fps: float) -> float:
    """Seconds at which the first of two clips in a row began that lie beyond the threshold; ``z`` is of clips 1, 2, ..."""
    beyond = np.abs(np.nan_to_num(z)) > THRESHOLD
    for clip in range(len(beyond) - IN_A_ROW + 1):
        if beyond[clip : clip + IN_A_ROW].all():
            return float(starts[clip + 1] / fps)
    return float("nan")


def _binned(times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of at most 60 equal runs of points: slopes of all pairs of thousands of frames would tell no more."""
    good = ~np.isnan(values)
    times, values = times[good], values[good]
    count = min(POINTS, len(values))
    if not count:
        return times, values
    edges = np.linspace(0, len(values), count + 1).round().astype(int)[:-1]
    sizes = np.diff([*edges, len(values)])
    return np.add.reduceat(times, edges) / sizes, np.add.reduceat(values, edges) / sizes
