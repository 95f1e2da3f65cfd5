"""From series to drift: courses whose figures can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from svi.evaluation.drift import MAD_TO_SIGMA, Change, change, clip_means, clip_starts

FPS, CLIP, CLIPS = 10.0, 10, 20
N = CLIP * CLIPS  # 20 s
STARTS = np.arange(CLIPS) * CLIP


def course(values: np.ndarray, floor: float = 0.1) -> Change:
    return change(np.arange(N), values, N, FPS, STARTS, floor=floor)


def per_clip(*levels: float) -> np.ndarray:
    return np.array([*levels, *[levels[-1]] * (CLIPS - len(levels))], float).repeat(CLIP)


def test_nothing_changes():
    found = course(np.full(N, 7.0))
    assert (found.start, found.end, found.difference, found.excursion, found.late) == (7, 7, 0, 0, 0)
    assert (found.slope, found.slope_low, found.slope_high) == (0, 0, 0)
    assert math.isnan(found.threshold_s)
    assert found.sigma == 0.1  # the floor


def test_a_steady_rise():
    """From 0 to 1: the outer 15 % have means .075 and .925; 20 s are a third of a minute."""
    found = course((np.arange(N) + 0.5) / N)
    assert found.difference == pytest.approx(0.85)
    assert found.excursion == pytest.approx(19 / 20)
    assert found.slope == pytest.approx(3.0)
    assert (found.slope_low, found.slope_high) == pytest.approx((3, 3))
    steps = np.arange(1, CLIPS)
    assert found.late == pytest.approx(np.sum(steps * steps / 20) / steps.sum())


def test_the_sign_is_kept():
    found = course(-(np.arange(N) + 0.5) / N)
    assert found.difference < 0
    assert found.excursion < 0
    assert found.slope < 0
    assert found.late > 0  # a size, not a direction


def test_what_comes_back_is_seen_by_excursion_and_late_change_only():
    there_and_back = per_clip(*[50 - 10 * math.sin(math.pi * k / 19) for k in range(CLIPS)])
    found = course(there_and_back)
    assert abs(found.difference) < 0.1
    assert abs(found.slope) < 1
    assert found.excursion == pytest.approx(-10, abs=0.1)
    assert found.late > 5


def test_what_comes_late_counts_more_than_what_came_early():
    early, late = per_clip(0, *[1] * 5, 0), per_clip(*[0] * 15, 1)
    assert course(late).late > 2 * course(early).late
    assert course(late).late == pytest.approx(sum(range(15, 20)) / sum(range(1, 20)))


def test_the_threshold_takes_two_clips_in_a_row():
    spike, stays = per_clip(0, 0, 0, 9, 0), per_clip(0, 0, 0, 9, 0, 0, 9, 9)
    assert math.isnan(course(spike, floor=1).threshold_s)
    assert course(stays, floor=1).threshold_s == 6.0
    assert math.isnan(course(stays, floor=4).threshold_s)
    assert math.isnan(course(per_clip(*[0] * 19, 9)).threshold_s)  # the last clip has no one to confirm it


def test_sigma_is_the_spread_inside_the_first_clip():
    values = per_clip(0, 5)
    values[:CLIP] = [-2, -1, -1, 0, 0, 0, 0, 1, 1, 20]  # median 0, absolute deviations 0 0 0 0 1 1 1 1 2 20
    assert course(values).sigma == pytest.approx(MAD_TO_SIGMA * 1.0)


def test_holes_are_left_out():
    values = (np.arange(N) + 0.5) / N
    values[::3] = np.nan
    values[60:80] = np.nan
    found = course(values)
    assert found.difference == pytest.approx(0.85, abs=0.01)
    assert found.slope == pytest.approx(3.0, rel=0.02)
    nothing = course(np.full(N, np.nan)).numbers()
    assert set(nothing) == {"sigma"}


@pytest.mark.parametrize(
    ("borders", "num_frames", "starts"),
    [
        ([4, 8], 12, [0, 4, 8]),
        ([8, 4, 4, 12, 0, 99], 12, [0, 4, 8]),  # in any order; what is no border inside does not count
        ([], 200, [0, 50, 100, 150]),
        ([], 220, [0, 50, 100, 150]),  # a rest below half a window belongs to the last
        ([], 230, [0, 50, 100, 150, 200]),
        ([], 40, [0, 10, 20, 30]),
        ([], 3, [0, 1, 2]),
        ([], 1, [0]),
    ],
)
def test_clips_and_windows(borders: list[int], num_frames: int, starts: list[int]):
    assert clip_starts(borders, num_frames, FPS).tolist() == starts


def test_means_of_clips():
    means = clip_means(np.array([0, 2, 4, 6, 8]), np.array([1.0, 3.0, np.nan, 5.0, 7.0]), np.array([0, 4, 5, 8]))
    np.testing.assert_array_equal(means, [2, np.nan, 5, 7])


def test_as_many_values_as_frames():
    with pytest.raises(ValueError, match="2 values at 3 frames"):
        change(range(3), [1.0, 2.0], 3, FPS, np.array([0]), floor=1)
