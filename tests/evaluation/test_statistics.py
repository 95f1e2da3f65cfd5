"""Statistics: textbook values, closed forms, and what an interval must do when the data change."""

from __future__ import annotations

import math

import numpy as np
import pytest

from svi.evaluation import statistics as st

NAN = float("nan")


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(3, 14, 0.0757, 0.4759), (2, 14, 0.0401, 0.3994), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (0, 0, 0.0, 1.0)],
)
def test_wilson_interval_of_shares(successes: int, n: int, low: float, high: float):
    assert st.wilson(successes, n) == pytest.approx((low, high), abs=1e-4)


def test_wilson_refuses_more_successes_than_trials():
    with pytest.raises(ValueError, match="3 successes of 2"):
        st.wilson(3, 2)


@pytest.mark.parametrize(
    ("p", "degrees", "t"),
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.30265),
        (0.975, 5, 2.57058),
        (0.975, 13, 2.16037),
        (0.975, 30, 2.04227),
        (0.8, 13, 0.87015),
        (0.975, 100_000, 1.95996),
        (0.5, 4, 0.0),
    ],
)
def test_quantiles_of_student(p: float, degrees: int, t: float):
    assert st.t_quantile(p, degrees) == pytest.approx(t, abs=2e-5)


def test_least_detectable_difference():
    values = np.tile([-1.0, 1.0], 7)  # n = 14
    spread = math.sqrt(14 / 13)
    assert st.detectable(values) == pytest.approx((2.16037 + 0.87015) * spread / math.sqrt(14), rel=1e-4)
    assert st.detectable(np.tile(values, 4)) < st.detectable(values)
    assert math.isnan(st.detectable(np.array([1.0, NAN])))


def test_mcnemar_counts_disagreements_only():
    ours = np.array([True] * 8 + [False] + [True] * 50)
    theirs = np.array([False] * 8 + [True] + [True] * 50)
    assert st.mcnemar(ours, theirs) == pytest.approx(2 * (1 + 9) / 2**9)
    assert st.mcnemar(ours, ours) == 1.0
    assert 0 < st.mcnemar(np.ones(450, bool), np.arange(450) % 10 == 0) < 1e-100
    with pytest.raises(ValueError, match="cannot be paired"):
        st.mcnemar(ours, theirs[:3])


def test_holm_steps_down_and_leaves_out_what_was_not_tested():
    corrected = st.holm({"a": 0.01, "b": 0.04, "c": NAN, "d": 0.03})
    assert list(corrected) == ["a", "b", "c", "d"]
    assert [corrected[name] for name in "abd"] == pytest.approx([0.03, 0.06, 0.06])
    assert math.isnan(corrected["c"])
    assert st.holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_permutation_is_exact_for_few_pairs_and_drawn_for_many():
    zeros = np.zeros(40)
    assert st.permutation_p(np.array([1.0, 2, 3, 4, 5]), zeros[:5]) == 2 / 32
    assert st.permutation_p(zeros[:5], zeros[:5]) == 1.0
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(40)
    assert st.permutation_p(noise + 1.5, zeros) == pytest.approx(1 / 10_001)
    assert st.permutation_p(noise, zeros) == st.permutation_p(noise, zeros)
    assert st.permutation_p(noise - noise.mean(), zeros) > 0.9
    assert math.isnan(st.permutation_p(np.array([NAN]), zeros[:1]))


def test_seeds_of_one_image_are_no_independent_pairs():
    differences = np.array([0.2, -0.1, 0.4, 0.3, 0.1, 0.5, -0.3, 0.2])
    thrice, names = differences.repeat(3), [str(k) for k in np.arange(8).repeat(3)]
    plain = st.paired(differences, np.zeros(8))
    clustered = st.paired(thrice, np.zeros(24), clusters=names)
    assert (clustered.mean, clustered.low, clustered.high) == pytest.approx((plain.mean, plain.low, plain.high))
    assert clustered.n == 8
    naive = st.paired(thrice, np.zeros(24))
    assert naive.high - naive.low < 0.7 * (plain.high - plain.low)
    assert st.permutation_p(thrice, np.zeros(24), clusters=names) == st.permutation_p(differences, np.zeros(8))


def test_pairs_take_out_what_samples_have_in_common():
    common = np.linspace(0, 100, 20)
    found = st.paired(common + 1.0, common)
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((1, 1, 1, 20))
    holes = st.paired(np.array([1.0, NAN, 3.0]), np.array([0.0, 0.0, NAN]))
    assert (holes.mean, holes.n) == (1.0, 1)
    assert math.isnan(holes.low)
    for bad in (dict(theirs=np.zeros(2)), dict(theirs=np.zeros(3), clusters=["a"])):
        with pytest.raises(ValueError, match=r"cannot be paired|name one per sample"):
            st.paired(np.zeros(3), **bad)


def test_intervals_hold_what_they_promise():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        found = st.estimate(rng.normal(3.0, 2.0, size=40))
        held += found.low <= 3.0 <= found.high
    assert 0.89 <= held / 200 <= 0.99


def test_equivalence_needs_the_whole_interval_inside():
    assert st.equivalent(-0.4, 0.3, 0.5)
    assert not st.equivalent(-0.6, 0.3, 0.5)
    assert not st.equivalent(-0.4, 0.5, 0.5)
    assert not st.equivalent(NAN, NAN, 0.5)


def test_theil_sen_ignores_a_fifth_of_outliers_and_holes():
    x = np.linspace(0, 10, 50)
    y = 2 * x - 3
    y[::5] += 100
    y[3] = NAN
    assert st.theil_sen(x, y) == pytest.approx(2.0, abs=0.2)
    assert st.theil_sen(np.arange(1000.0), np.arange(1000.0) / 4) == pytest.approx(0.25)
    assert math.isnan(st.theil_sen(np.array([1.0]), np.array([1.0])))


def test_slope_interval_is_wider_where_neighbours_are_alike():
    rng = np.random.default_rng(2)
    x, walk = np.arange(100.0), np.zeros(100)
    for k in range(1, 100):
        walk[k] = 0.9 * walk[k - 1] + rng.standard_normal()
    single, blocks = (st.slope_interval(x, walk + x, block=block) for block in (1, 15))
    assert single.mean == blocks.mean == pytest.approx(1.0, abs=0.1)
    assert blocks.low < blocks.mean < blocks.high
    assert blocks.high - blocks.low > 1.5 * (single.high - single.low)
    assert blocks == st.slope_interval(x, walk + x, block=15)


def test_slope_of_an_exact_line_has_no_width_and_of_too_little_no_interval():
    x = np.arange(20.0)
    exact = st.slope_interval(x, 3 * x, block=4)
    assert (exact.mean, exact.low, exact.high, exact.n) == pytest.approx((3, 3, 3, 20))
    short = st.slope_interval(x[:3], 3 * x[:3], block=4)
    assert short.mean == 3
    assert math.isnan(short.low)
