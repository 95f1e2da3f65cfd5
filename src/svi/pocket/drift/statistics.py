"""Means with intervals, slopes and paired differences over worlds. Pure numpy; NaN = a world that has no such value.

Worlds are the unit that is drawn again: clips of one rollout depend on each other. The bootstrap is the percentile one,
seeded, so that the same data give the same interval.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np

DRAWS = 2000
LATE = 10  # the end of a rollout is its last tenth
PAIRED = 120  # clips, evenly chosen, between all pairs of which slopes are taken


@dataclass(frozen=True)
class Estimate:
    """A mean over worlds with its 95 % bootstrap interval; NaN where no world has a value."""

    mean: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float | int | None]:
        """Plain data, None for NaN."""
        return {key: None if np.isnan(value) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Curve:
    """An :class:`Estimate` per clip: arrays ``(K,)``."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: np.ndarray


def curve(values: np.ndarray, *, seed: int = 0) -> Curve:
    """Mean over worlds of ``(worlds, K)``, each clip on its own, with its 95 % interval. One world has no interval: NaN."""
    valid = ~np.isnan(values)
    filled = np.where(valid, values, 0.0)
    counts = valid.sum(0)
    drawn = _drawn(len(values), seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = filled.sum(0) / counts
        means = (drawn @ filled) / (drawn @ valid.astype(np.float64))
    low, high = np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    several = counts > 1
    if several.any():
        low[several], high[several] = np.nanquantile(means[:, several], (0.025, 0.975), axis=0)
    return Curve(mean, low, high, counts)


@lru_cache(maxsize=8)
def _drawn(count: int, seed: int) -> np.ndarray:
    """How often each of ``count`` worlds is drawn in each of the bootstrap's draws, ``(DRAWS, count)``."""
    rng = np.random.Generator(np.random.PCG64(seed))
    return rng.multinomial(count, np.full(count, 1 / count), size=DRAWS).astype(np.float64)


def estimate(values: np.ndarray, *, seed: int = 0) -> Estimate:
    """Mean of ``(worlds,)`` with its interval."""
    found = curve(np.asarray(values, dtype=np.float64)[:, None], seed=seed)
    return Estimate(float(found.mean[0]), float(found.low[0]), float(found.high[0]), int(found.n[0]))


def slope(values: np.ndarray) -> float:
    """Theil-Sen slope of ``(K,)`` per clip: the median of the slopes between all pairs of clips.

    The first clip, which has the true image to start from, does not count where there are three or more.
    """
    clips = np.arange(len(values))
    skip = 1 if len(values) > 2 else 0
    good = np.flatnonzero(~np.isnan(values[skip:]))
    if len(good) > PAIRED:
        good = good[np.linspace(0, len(good) - 1, PAIRED).round().astype(int)]
    x, y = clips[skip:][good].astype(np.float64), values[skip:][good]
    if len(x) < 2:
        return float("nan")
    left, right = np.triu_indices(len(x), 1)
    return float(np.median((y[right] - y[left]) / (x[right] - x[left])))


def slopes(values: np.ndarray) -> np.ndarray:
    """:func:`slope` of each row of ``(worlds, K)``."""
    return np.array([slope(row) for row in values])


def late(values: np.ndarray) -> np.ndarray:
    """Mean of ``(worlds, K)`` over the last tenth of the clips (one at least), ``(worlds,)``."""
    last = values[:, -max(1, values.shape[1] // LATE) :]
    return row_mean(last)


def row_mean(values: np.ndarray) -> np.ndarray:
    """Mean of each row of ``(worlds, K)`` over what is not NaN."""
    counts = (~np.isnan(values)).sum(1)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nansum(values, 1) / np.where(counts, counts, np.nan))
