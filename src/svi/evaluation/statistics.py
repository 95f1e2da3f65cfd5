"""Means with intervals, paired differences, tests of booleans, slopes: what may be said from so many videos.

Pure numpy; NaN = a sample that has no such value. What is drawn again are whole samples (videos, worlds), since frames and
clips of one video depend on each other; inside one video, blocks of neighbours are drawn. Every draw is seeded: the same
data give the same interval. Knows nothing about videos and metrics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from statistics import NormalDist

import numpy as np

DRAWS = 2000
PAIRED_DRAWS = 10_000
LATE = 10  # the end of a rollout is its last tenth
PAIRED = 120  # clips, evenly chosen, between all pairs of which slopes are taken
EXACT_SIGNS = 14  # up to so many differences all 2^n signs are tried, 16,384 of them


@dataclass(frozen=True)
class Estimate:
    """A mean over samples with its 95 % bootstrap interval; NaN where no sample has a value."""

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


# -- means over samples ------------------------------------------------------------------------------------------------


def curve(values: np.ndarray, *, seed: int = 0, draws: int = DRAWS) -> Curve:
    """Mean over samples of ``(samples, K)``, each clip on its own, with its 95 % interval; of one sample, which has none: NaN."""
    return _mean_of_groups(np.where(np.isnan(values), 0.0, values), (~np.isnan(values)).astype(np.float64), seed, draws)


def estimate(values: np.ndarray, *, seed: int = 0, draws: int = DRAWS) -> Estimate:
    """Mean of ``(samples,)`` with its interval."""
    return _first(curve(np.asarray(values, dtype=np.float64)[:, None], seed=seed, draws=draws))


def paired(
    ours: np.ndarray,
    theirs: np.ndarray,
    *,
    clusters: Sequence[str] | None = None,
    seed: int = 0,
    draws: int = PAIRED_DRAWS,
) -> Estimate:
    """Mean of ``ours - theirs``, paired by sample, with its 95 % interval (percentile bootstrap over samples).

    Args:
        ours, theirs: ``(samples,)``; a sample where either is NaN does not count.
        clusters: samples of one cluster (seeds of one image) are drawn together; ``n`` of the result counts clusters.

    Raises:
        ValueError: lengths differ.
    """
    sums, counts = _clustered(_differences(ours, theirs), clusters)
    return _first(_mean_of_groups(sums[:, None], counts[:, None], seed, draws))


def row_mean(values: np.ndarray) -> np.ndarray:
    """Mean of each row of ``(samples, K)`` over what is not NaN."""
    counts = (~np.isnan(values)).sum(1)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nansum(values, 1) / np.where(counts, counts, np.nan))


def late(values: np.ndarray) -> np.ndarray:
    """Mean of ``(samples, K)`` over the last tenth of the clips (one at least), ``(samples,)``."""
    return row_mean(values[:, -max(1, values.shape[1] // LATE) :])


def _mean_of_groups(sums: np.ndarray, counts: np.ndarray, seed: int, draws: int) -> Curve:
    """Means of columns of ``(groups, K)`` sums over counts; groups are drawn again, with replacement."""
    drawn = _drawn(len(sums), seed, draws)
    groups = (counts > 0).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums.sum(0) / counts.sum(0)
        means = (drawn @ sums) / (drawn @ counts)
    low, high = np.full(sums.shape[1], np.nan), np.full(sums.shape[1], np.nan)
    several = groups > 1
    if several.any():
        low[several], high[several] = np.nanquantile(means[:, several], (0.025, 0.975), axis=0)
    return Curve(mean, low, high, groups)


@lru_cache(maxsize=8)
def _drawn(count: int, seed: int, draws: int) -> np.ndarray:
    """How often each of ``count`` groups is drawn in each of the bootstrap's draws, ``(draws, count)``."""
    rng = np.random.Generator(np.random.PCG64(seed))
    if not count:
        return np.zeros((draws, 0))
    return rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)


def _first(found: Curve) -> Estimate:
    return Estimate(float(found.mean[0]), float(found.low[0]), float(found.high[0]), int(found.n[0]))


def _differences(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"{a.shape} and {b.shape} values cannot be paired: one per sample, in the same order")
    return a - b


def _clustered(values: np.ndarray, clusters: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values that are not NaN, per cluster; without clusters, per sample."""
    if clusters is not None and len(clusters) != len(values):
        raise ValueError(f"{len(clusters)} clusters for {len(values)} samples: name one per sample")
    names = list(range(len(values))) if clusters is None else list(clusters)
    where = np.unique(names, return_inverse=True)[1] if names else np.zeros(0, dtype=int)
    size = int(where.max()) + 1 if len(where) else 0
    good = ~np.isnan(values)
    sums = np.bincount(where, np.where(good, values, 0.0), size)
    return sums, np.bincount(where, good.astype(np.float64), size)


# -- tests -------------------------------------------------------------------------------------------------------------


def permutation_p(
    ours: np.ndarray,
    theirs: np.ndarray,
    *,
    clusters: Sequence[str] | None = None,
    seed: int = 0,
    draws: int = PAIRED_DRAWS,
) -> float:
    """Two-sided p of "no difference" by flipping the signs of paired differences; NaN without any pair.

    All signs up to 14 differences (clusters), else ``draws`` random ones, the observed one counted among them.
    """
    sums, counts = _clustered(_differences(ours, theirs), clusters)
    sums = sums[counts > 0]
    n = len(sums)
    if not n:
        return float("nan")
    if n <= EXACT_SIGNS:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        rng = np.random.Generator(np.random.PCG64(seed))
        signs = np.concatenate([np.ones((1, n)), rng.choice((-1.0, 1.0), size=(draws, n))])
    reached = np.abs(signs @ sums)
    return float(np.mean(reached >= reached[0] * (1 - 1e-12)))


def wilson(successes: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share by Wilson's score; ``(0, 1)`` of nothing.

    Raises:
        ValueError: more successes than trials.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if not n:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p, scale = successes / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Exact two-sided p of McNemar's test for paired booleans ``(samples,)``: do the disagreements lean to one side?

    Raises:
        ValueError: lengths differ.
    """
    a, b = np.asarray(ours, dtype=bool), np.asarray(theirs, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} and {len(b)} booleans cannot be paired")
    only_ours, only_theirs = int((a & ~b).sum()), int((~a & b).sum())
    n = only_ours + only_theirs
    tail = sum(math.comb(n, k) for k in range(min(only_ours, only_theirs) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**n)))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """P values corrected for their number by Holm's step-down method, in the order given; NaN stays and does not count."""
    tested = sorted((value, name) for name, value in p.items() if not math.isnan(value))
    corrected, highest = dict(p), 0.0
    for rank, (value, name) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * value))
        corrected[name] = highest
    return corrected


def detectable(differences: np.ndarray, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """The least mean difference that so many pairs with this spread would show, with ``power``; NaN below two.

    ``(t(1 - alpha / 2) + t(power)) * sd / sqrt(n)`` with Student's t of n - 1 degrees of freedom. A difference that was
    not found, but lies below this, is not shown to be absent.
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[~np.isnan(values)]
    n = len(values)
    if n < 2:
        return float("nan")
    return (t_quantile(1 - alpha / 2, n - 1) + t_quantile(power, n - 1)) * float(values.std(ddof=1)) / math.sqrt(n)


def t_quantile(p: float, degrees: int) -> float:
    """Quantile of Student's t, ``p`` in [0.5, 1); beyond 300 degrees of freedom the normal one."""
    if degrees > 300:
        return NormalDist().inv_cdf(p)
    low, high = 0.0, 1.0
    while _t_within(high, degrees) < 2 * p - 1:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, degrees) < 2 * p - 1 else (low, middle)
    return high


def _t_within(t: float, degrees: int) -> float:
    """P(|T| < t), the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(2 + odd, degrees + 1, 2):
        total += term
        term *= cosine * cosine * (k - 1) / k
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def equivalent(low: float, high: float, margin: float) -> bool:
    """Whether an interval lies within ``-margin .. margin``: an effect that large is excluded on both sides.

    With a 90 % interval these are two one-sided tests (TOST) at 5 %; with a 95 % one, at 2.5 %. A wide interval
    proves nothing: "not significant" is not "none". False where an end is NaN.
    """
    return -margin < low and high < margin


# -- slopes ------------------------------------------------------------------------------------------------------------


def theil_sen(x: np.ndarray, y: np.ndarray) -> float:
    """The median of the slopes between all pairs of points ``(n,)``; NaN below two. At most 120 evenly chosen points count."""
    x, y = _thinned(x, y)
    return float("nan") if len(x) < 2 else float(np.median(_pair_slopes(x, y[None])))


def slope(values: np.ndarray) -> float:
    """Theil-Sen slope of ``(K,)`` per clip.

    The first clip, which has the true image to start from, does not count where there are three or more.
    """
    skip = 1 if len(values) > 2 else 0
    return theil_sen(np.arange(len(values))[skip:], values[skip:])


def slopes(values: np.ndarray) -> np.ndarray:
    """:func:`slope` of each row of ``(samples, K)``."""
    return np.array([slope(row) for row in values])


def slope_interval(
    x: np.ndarray, y: np.ndarray, *, block: int, seed: int = 0, draws: int = 1000, level: float = 0.95
) -> Estimate:
    """Theil-Sen slope of one series with its moving-block bootstrap interval; ``n`` counts points.

    Residuals around the line are drawn in blocks of ``block`` neighbours, so that what neighbours share (a slow
    movement) widens the interval as it should. NaN below two points, without interval below four.
    """
    x, y = _thinned(x, y)
    n, found = len(x), theil_sen(x, y)
    if n < 4:
        return Estimate(found, float("nan"), float("nan"), n)
    line = found * x + np.median(y - found * x)
    block = int(np.clip(block, 1, n // 2))
    rng = np.random.Generator(np.random.PCG64(seed))
    starts = rng.integers(0, n - block + 1, size=(draws, -(-n // block)))
    chosen = (starts[:, :, None] + np.arange(block)).reshape(draws, -1)[:, :n]
    drawn = np.median(_pair_slopes(x, line + (y - line)[chosen]), axis=1)
    low, high = np.quantile(drawn, (0.5 - level / 2, 0.5 + level / 2))
    return Estimate(found, float(low), float(high), n)


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    good = np.flatnonzero(~np.isnan(y))
    if len(good) > PAIRED:
        good = good[np.linspace(0, len(good) - 1, PAIRED).round().astype(int)]
    return np.asarray(x, dtype=np.float64)[good], np.asarray(y, dtype=np.float64)[good]


def _pair_slopes(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Slopes between all pairs of points, for each row of ``(m, n)``: ``(m, n (n - 1) / 2)``."""
    left, right = np.triu_indices(len(x), 1)
    return np.asarray((rows[:, right] - rows[:, left]) / (x[right] - x[left]))
