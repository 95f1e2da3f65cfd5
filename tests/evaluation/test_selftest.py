"""The self-test on a true pocket world: the rules hold, and a rule that cannot hold is found out."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest

from svi.errors import UserError
from svi.evaluation.fakes import FAKES, Shape
from svi.evaluation.selftest import RULES, Finding, Rule, Source, run
from svi.pocket.world import World

SHAPE = Shape(num_frames=8 * 16, clip_frames=16)


@pytest.fixture(scope="module")
def source() -> Source:
    world = World.sample(1, family="things", camera="pans", lighting="day")
    frames = world.clip(0.0, SHAPE.num_frames)
    return Source("world 1", lambda: iter(frames), 16, SHAPE)


@pytest.fixture(scope="module")
def findings(source: Source) -> list[Finding]:
    return run([source])


def test_every_rule_that_can_be_judged_holds(findings: list[Finding]):
    broken = [f"{f.rule} (is {f.figure:.3g}): {f.rule.why}" for f in findings if f.passed is False]
    assert not broken, "\n".join(broken)
    assert len(findings) == len(RULES)
    unjudged = [finding for finding in findings if finding.passed is None]
    if "cv2" in sys.modules:
        assert not unjudged
    assert all("cannot be scored here" in finding.about for finding in unjudged)


def test_every_fake_is_under_a_rule():
    assert {rule.case for rule in RULES} | {"truth"} == set(FAKES)
    assert all(rule.why for rule in RULES)


def test_a_rule_that_does_not_hold_is_found_out(source: Source):
    wrong = Rule("darken", "look_luma", low=0, why="it gets darker, not brighter")
    unknown = Rule("darken", "smell", low=0)
    found = run([source], [wrong, unknown])
    assert [finding.passed for finding in found] == [False, None]
    assert found[0].figure is not None
    assert found[0].figure < -6
    assert found[1].about == "world 1: smell cannot be scored here"
    assert str(wrong) == "darken: look_luma - truth >= 0"


def test_bad_input_is_refused(source: Source):
    with pytest.raises(UserError, match="at least one"):
        run([])
    with pytest.raises(UserError, match="less than four clips"):
        run([Source("short", source.frames, 16, Shape(32, 16))])


def levels(count: int) -> Iterator[np.ndarray]:
    """Frame k is grey level k."""
    return (np.full((12, 16, 3), k, np.uint8) for k in range(count))


def shown(case: str, shape: Shape, count: int | None = None) -> list[int]:
    frames = list(FAKES[case].make(levels(count or shape.num_frames), shape))
    assert all(frame.dtype == np.uint8 and frame.shape == (12, 16, 3) for frame in frames)
    return [int(frame[0, 0, 0]) for frame in frames]


def test_what_foolers_show():
    shape = Shape(10, 4)
    assert shown("truth", shape) == [*range(10)]
    assert shown("copy-clips", shape) == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert shown("ping-pong", shape) == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3]
    assert shown("copy-reference", shape) == [0] * 10
    assert shown("freeze", shape) == [0, 1, 2, 3, 4, 4, 4, 4, 4, 4]
    dying = shown("motion-dies", Shape(40, 10))
    assert dying[:11] == [*range(11)]
    assert dying == sorted(dying)
    assert dying[-1] < 20
    assert dying[-1] - dying[-10] <= 2


@pytest.mark.parametrize("case", [name for name, kind in FAKES.items() if kind.role == "drift"])
def test_drifts_start_clean_last_as_long_and_are_the_same_every_time(case: str):
    shape, true = Shape(24, 6, seed=3), list(levels(24))
    made, again = (list(FAKES[case].make(levels(24), shape)) for _ in range(2))
    assert len(made) == 24
    np.testing.assert_array_equal(made, again)
    np.testing.assert_array_equal(made[:6], true[:6])


def test_fakes_read_no_further_than_they_must():
    """So a video may be endless."""

    def endless() -> Iterator[np.ndarray]:
        k = 0
        while True:
            yield np.full((12, 16, 3), k % 256, np.uint8)
            k += 1

    for kind in FAKES.values():
        assert sum(1 for _ in kind.make(endless(), Shape(20, 5))) == 20
