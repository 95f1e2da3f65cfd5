"""The arithmetic of a video's course in time: flicker, seams, retained motion, frames that come again.

Pure numpy on numbers and thumbnails; knows nothing about how they were taken from a video.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

STILL = 0.5  # % of the short side per second; what is slower at its start cannot be said to lose its motion
LEAST_STEP = 0.05  # grey levels; where neighbours differ less, a seam has nothing to stand out from
SAME, REPEATED = 1.0, 0.25  # grey levels RMS between thumbnails: a copy is nearer than something between them
CODED = 1 / 8  # of what the picture goes meanwhile: so near are copies to each other, encoded at CRF 30 even
DRAWS = 1000  # of the bootstrap of retained motion


def flicker(values: np.ndarray) -> float:
    """Mean of ``|L_{t+1} - 2 L_t + L_{t-1}|`` over ``(T,)``: steady brightening is none, back and forth is."""
    return float(np.abs(np.diff(values, n=2)).mean())


def seam_ratios(steps: np.ndarray, borders: Sequence[int]) -> np.ndarray:
    """How much more the picture changes into each of ``borders`` than inside the two clips that meet there: 1 = no more.

    Args:
        steps: ``(T,)`` difference of each frame to the one before it, NaN for the first.
        borders: first frames of clips 1, 2, ...

    Returns:
        ``(len(borders),)``; NaN where both clips stand still.
    """
    edges = [0, *borders, len(steps)]
    seams = np.asarray(borders, dtype=int)
    inside = steps.copy()
    inside[seams] = np.nan
    ratios = []
    for left, seam, right in zip(edges, seams, edges[2:], strict=False):
        around = inside[left:right]
        around = around[~np.isnan(around)]
        usual = float(np.median(around)) if len(around) else 0.0
        ratios.append(float(steps[seam]) / usual if usual >= LEAST_STEP else math.nan)
    return np.array(ratios)


def nearest_elsewhere(thumbs: np.ndarray, apart: int) -> np.ndarray:
    """RMS distance in grey levels of each of ``(T, P)`` thumbnails to the nearest one at least ``apart`` frames away.

    NaN for a frame that has none so far away. Works in blocks: memory grows with T, time with its square.
    """
    rows = thumbs.astype(np.float32)
    rows -= rows.mean(0)  # smaller numbers, finer differences
    squares = np.einsum("ij,ij->i", rows, rows)
    found = np.full(len(rows), np.nan)
    number = np.arange(len(rows))
    for start in range(0, len(rows), 512):
        part = slice(start, start + 512)
        distance = squares[part, None] + squares - 2 * rows[part] @ rows.T
        distance[np.abs(number[part, None] - number) < apart] = np.inf
        found[part] = distance.min(1)
    found[~np.isfinite(found)] = np.nan
    return np.asarray(np.sqrt(np.maximum(found, 0) / rows.shape[1]))


def same(distance: np.ndarray, local: np.ndarray) -> np.ndarray:
    """Which frames are copies of what they were compared with, ``(T,)`` bool.

    A calm video comes near to itself without repeating anything. So a copy must be nearer than half of what the picture itself
    goes in a quarter of a second (``local``), but need not be nearer than a quarter of a grey level (what nothing
    comes to by chance), nor than an eighth of ``local``, and else is never farther than one. The eighth is for the codec,
    whose error grows with motion: at 64x96 copies were up to 4 grey levels apart where the picture went 42.

    Args:
        distance, local: ``(T,)`` RMS differences of thumbnails in grey levels.
    """
    return np.asarray(distance < np.maximum(np.clip(local / 2, REPEATED, SAME), CODED * local))


def retained(speeds: np.ndarray, early: np.ndarray, late: np.ndarray, block: int) -> tuple[float, float, float]:
    """Median late speed over median early speed, with the 95 % interval of a moving-block bootstrap; NaN if still at first.

    Args:
        speeds: ``(n,)``.
        early, late: ``(n,)`` bool, which speeds count as which.
        block: neighbours that are drawn together.
    """
    before, after = speeds[early], speeds[late]
    if not len(before) or not len(after) or np.median(before) < STILL:
        return math.nan, math.nan, math.nan
    rng = np.random.Generator(np.random.PCG64(0))
    drawn = _block_medians(after, block, rng) / np.maximum(_block_medians(before, block, rng), STILL)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(np.median(after) / np.median(before)), float(low), float(high)


def _block_medians(values: np.ndarray, block: int, rng: np.random.Generator) -> np.ndarray:
    block = min(block, max(1, len(values) // 2))
    starts = rng.integers(0, len(values) - block + 1, size=(DRAWS, -(-len(values) // block)))
    chosen = (starts[:, :, None] + np.arange(block)).reshape(DRAWS, -1)[:, : len(values)]
    return np.asarray(np.median(values[chosen], axis=1))
