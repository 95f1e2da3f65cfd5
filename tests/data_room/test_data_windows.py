"""Which frames make a window: the arithmetic, for every preset and any length of video."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from svi.conditioning.policy import PRESETS
from svi.data.degrade import degrade
from svi.data.windows import (
    Bucket,
    WindowRule,
    degradation,
    draw_crop,
    generator_for,
    lay_out,
    picture_kept,
    published_rule,
    reach,
    uses_reference,
    window_start,
)
from svi.errors import UserError
from svi.geometry import Geometry

SCALE = 4
PLAIN = [name for name, policy in PRESETS.items() if policy.drive is None]


@settings(max_examples=60, deadline=None)
@given(
    preset=st.sampled_from(PLAIN),
    reference=st.sampled_from(["inside", "outside"]),
    extra=st.integers(0, 200),
    length=st.sampled_from([5, 17, 81]),
    hop=st.one_of(st.none(), st.integers(1, 90)),
    per_video=st.one_of(st.none(), st.integers(1, 3)),
    epoch=st.integers(0, 3),
    first=st.floats(0, 1),
)
def test_windows_lie_in_their_span(preset, reference, extra, length, hop, per_video, epoch, first):
    policy = PRESETS[preset]
    rule = WindowRule(reference=reference, hop=hop, windows_per_video=per_video, first_clip_prob=first)
    needed = reach(policy, rule, length, SCALE)
    span = range(needed.total + extra)
    count = needed.windows(len(span), rule)
    assert 1 <= count <= (per_video or count)
    starts = [window_start(needed, rule, len(span), k, generator_for(0, "phase", epoch)) for k in range(count)]
    assert [b - a for a, b in pairwise(starts)] == [hop or length] * (count - 1)
    for k, start in enumerate(starts):
        layout = lay_out(policy, rule, start, span, length, SCALE, generator_for(0, f"w{k}", epoch))
        assert set(layout.numbers) <= set(span)
        window = range(start, start + length)
        if layout.reference is not None:
            assert uses_reference(policy)
            assert (layout.reference in window) == (reference == "inside")
        if layout.first or policy.hand_off == "pixel":
            assert layout.frames == tuple(window)
            assert not layout.context
        else:  # the reference leads, then the frames of the motion latents again
            assert len(layout.frames) == length - 1
            assert layout.context[-SCALE:] == layout.frames[:SCALE]
            assert len(layout.context) == 2 * SCALE + 1


def test_too_short_a_span_has_no_window():
    policy, rule = PRESETS["pro"], published_rule(PRESETS["pro"])
    needed = reach(policy, rule, 81, SCALE)
    assert (needed.before, needed.inside, needed.outside) == (5, 81, 1)
    assert needed.windows(needed.total - 1, rule) == 0
    assert reach(PRESETS["shot"], published_rule(PRESETS["shot"]), 81, SCALE).total == 81
    assert reach(PRESETS["wan"], WindowRule(reference="outside"), 81, SCALE).total == 81  # it has no reference


def test_published_rules():
    rules = {name: published_rule(PRESETS[name]) for name in PLAIN}
    assert {name for name, rule in rules.items() if rule.reference == "outside"} == {"svi2-wan21", "svi2-wan22", "pro"}
    first = {name: rule.first_clip_prob for name, rule in rules.items()}
    assert first["film"] == first["svi2-wan21"] == first["pro"] == 0.1
    assert first["shot"] == first["wan"] == first["tom"] == 0


@pytest.mark.parametrize(
    "value", [{"reference": "insid"}, {"first_clip_prob": 2}, {"degraded_prob": -1}, {"crop_min": 0}, {"hop": 0}]
)
def test_a_rule_that_makes_no_sense(value):
    with pytest.raises(UserError, match=next(iter(value))):
        WindowRule(**value)


@settings(max_examples=60, deadline=None)
@given(
    source=st.tuples(st.integers(16, 4000), st.integers(16, 4000)),
    target=st.tuples(st.sampled_from([32, 480, 832]), st.sampled_from([48, 480, 832])),
    smallest=st.floats(0.5, 1),
    epoch=st.integers(0, 9),
)
def test_crops_have_the_shape_of_the_target(source, target, smallest, epoch):
    crop = draw_crop(source, target, smallest, generator_for(1, "crop", epoch))
    assert -1e-9 <= crop.left <= crop.right <= 1 + 1e-9
    assert -1e-9 <= crop.top <= crop.bottom <= 1 + 1e-9
    height, width = (crop.bottom - crop.top) * source[0], (crop.right - crop.left) * source[1]
    assert width / height == pytest.approx(target[1] / target[0], rel=1e-6)
    limiting = max(crop.bottom - crop.top, crop.right - crop.left)
    assert smallest - 1e-9 <= limiting <= 1 + 1e-9


def test_draws_depend_on_names_and_nothing_else():
    draw = lambda *key: torch.rand(4, generator=generator_for(*key)).tolist()  # noqa: E731
    assert draw(0, "a", 1) == draw(0, "a", 1)
    assert len({tuple(draw(*key)) for key in [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2)]}) == 4


def test_references_spread_over_the_window():
    policy, rule = PRESETS["shot"], WindowRule()
    span = range(81)
    drawn = [lay_out(policy, rule, 0, span, 81, SCALE, generator_for(0, str(k), 0)).reference for k in range(400)]
    assert min(drawn) < 5
    assert max(drawn) > 75
    assert 30 < sum(drawn) / len(drawn) < 50


def test_first_clips_have_no_past():
    rule = WindowRule(first_clip_prob=1, reference="outside")
    layout = lay_out(PRESETS["pro"], rule, 5, range(40), 17, SCALE, generator_for(0, "x", 0))
    assert layout.first
    assert layout.numbers == tuple(range(5, 22))


def test_buckets():
    assert Bucket.parse("81x480x832") == Bucket(81, 480, 832) == Bucket.of(Geometry())
    assert str(Bucket(17, 64, 96)) == "17x64x96"
    with pytest.raises(UserError, match="FRAMESxHEIGHTxWIDTH"):
        Bucket.parse("832x480")
    with pytest.raises(UserError, match=r"bucket 80x480x832.*the nearest is 81"):
        replace(Bucket.of(Geometry()), num_frames=80).check(Geometry())
    assert picture_kept((480, 832), (480, 832)) == 1
    assert picture_kept((832, 480), (480, 832)) == pytest.approx((480 / 832) ** 2)


def test_handcrafted_errors_are_seen_and_repeat():
    frames = torch.randint(0, 256, (3, 16, 24, 3), dtype=torch.uint8)
    made = [degrade(frames, torch.Generator().manual_seed(seed)) for seed in range(12)]
    assert all(each.shape == frames.shape and each.dtype == torch.uint8 for each in made)
    assert torch.equal(made[3], degrade(frames, torch.Generator().manual_seed(3)))
    changes = [(each.float() - frames.float()).abs().mean() for each in made]
    assert min(changes) > 1
    sharpness = {
        round(float(each.float().diff(dim=2).abs().mean() / frames.float().diff(dim=2).abs().mean()), 2)
        for each in made
    }
    assert min(sharpness) < 0.6  # blurred
    assert max(sharpness) > 1.02  # sharpened
    assert len(degrade(frames[:0], torch.Generator())) == 0


def test_degraded_windows_are_drawn_by_name():
    rule = WindowRule(degraded_prob=0.3, seed=1)
    drawn = [degradation(rule, f"clip {n}", 0) is not None for n in range(500)]
    assert 0.2 < sum(drawn) / 500 < 0.4
    assert drawn == [degradation(rule, f"clip {n}", 0) is not None for n in range(500)]
