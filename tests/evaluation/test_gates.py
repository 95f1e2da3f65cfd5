"""Gates: bounds, certainty, controls, and what was never measured."""

from __future__ import annotations

import pytest

from svi.evaluation import gates
from svi.evaluation.metric import Score, Skipped

GOOD = {
    "motion_retained": Score(1.0, extra={"low": 0.8, "high": 1.2}),
    "duplicate_share": Score(0.0),
    "unique_share": Score(1.0),
    "reference_copies": Score(0.0),
    "look_clipped": Score(0.0, extra={"excursion": 0.2}),
    "black_share": Score(0.0),
}


def names(changed: dict[str, Score | Skipped], control: dict[str, Score | Skipped] | None = None) -> list[str]:
    return [failure.gate.name for failure in gates.failed({**GOOD, **changed}, control)]


def test_a_good_video_passes():
    assert gates.failed(GOOD) == []
    assert gates.unknown(GOOD) == {}
    assert set(gates.METRICS) == set(GOOD)


@pytest.mark.parametrize(
    ("changed", "gate"),
    [
        ({"motion_retained": Score(0.1, extra={"low": 0.0, "high": 0.3})}, "motion not retained"),
        ({"motion_retained": Score(2.0, extra={"low": 1.5, "high": 2.5})}, "motion not retained"),
        ({"duplicate_share": Score(0.5)}, "frames come again"),
        ({"unique_share": Score(0.1)}, "frames are exact copies"),
        ({"reference_copies": Score(1.0)}, "the reference comes again"),
        ({"look_clipped": Score(0.0, extra={"excursion": 4.0})}, "clipped"),
        ({"black_share": Score(0.2)}, "black"),
    ],
)
def test_each_fault_fails_its_gate_alone(changed: dict[str, Score], gate: str):
    assert names(changed) == [gate]


def test_a_figure_whose_interval_reaches_into_the_bounds_does_not_fail():
    assert names({"motion_retained": Score(0.6, extra={"low": 0.3, "high": 0.9})}) == []


def test_less_clipping_than_at_the_start_is_no_fault():
    assert names({"look_clipped": Score(0.0, extra={"excursion": -5.0})}) == []


def test_what_the_true_video_does_too_is_not_held_against_a_video():
    calm = {**GOOD, "motion_retained": Score(0.3), "duplicate_share": Score(0.4), "unique_share": Score(0.7)}
    assert names(calm) == ["motion not retained", "frames come again", "frames are exact copies"]
    assert names(calm, control=calm) == []
    frozen = {**calm, "motion_retained": Score(0.0, extra={"low": 0.0, "high": 0.0}), "duplicate_share": Score(1.0)}
    assert names(frozen, control=calm) == ["motion not retained", "frames come again"]


def test_a_failure_says_what_was_found_and_what_is_allowed():
    failures = gates.failed({**GOOD, "look_clipped": Score(0.0, extra={"excursion": 4.0}), "unique_share": Score(0.1)})
    assert [str(failure) for failure in failures] == [
        "frames are exact copies (unique_share 0.1, allowed at least 0.98)",
        "clipped (look_clipped 4 %, allowed at most 1 %)",
    ]


def test_what_was_not_measured_is_unknown_and_fails_nothing():
    some = {**GOOD, "motion_retained": Skipped("OpenCV is not installed"), "look_clipped": Score(0.0)}
    del some["black_share"]
    assert gates.failed(some) == []
    assert gates.unknown(some) == {
        "motion not retained": "OpenCV is not installed",
        "clipped": "look_clipped has no excursion",
        "black": "black_share was not scored",
    }
