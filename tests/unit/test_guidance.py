"""Guidance against the published formulas, and which branches it needs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from svi.guidance import Guidance, combine_further, combine_text

A, D, U = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PREDICTIONS = {"full": A, "without_text": D, "without_both": U, "without_history": U}
scales = st.sampled_from([0.0, 1.0, 2.0, 5.0]) | st.floats(0, 8)


def test_text_guidance_formula():
    assert torch.equal(combine_text(A, D, 5.0), D + 5.0 * (A - D))


def test_three_way_formula_is_the_one_of_talk():
    assert torch.equal(combine_further(A, D, U, 2.0, 5.0), U + 2.0 * (A - D) + 5.0 * (D - U))


@pytest.mark.parametrize("thing", ["drive", "history"])
@given(text=scales, scale=scales)
@settings(deadline=None)  # the first example of a process is slower
def test_three_way_guidance_equals_the_formula_whatever_branches_it_spares(thing, text, scale):
    guidance = Guidance(text, **{thing: scale})
    needed = {branch: PREDICTIONS[branch] for branch in guidance.branches(0.5)}
    assert torch.allclose(guidance.combine(0.5, needed), U + text * (A - D) + scale * (D - U), atol=1e-12)


@pytest.mark.parametrize(
    ("guidance", "branches"),
    [
        (Guidance(1.0), ("full",)),
        (Guidance(5.0), ("full", "without_text")),
        (Guidance(2.0, drive=5.0), ("full", "without_text", "without_both")),
        (Guidance(1.0, drive=1.0), ("full",)),
        (Guidance(3.0, drive=3.0), ("full", "without_both")),
        (Guidance(3.0, drive=1.0), ("full", "without_text")),
        (Guidance(1.0, drive=3.0), ("full", "without_text", "without_both")),
        (Guidance(3.0, history=1.0), ("full", "without_text")),  # none: as plain text guidance, pass by pass
        (Guidance(1.0, history=1.0), ("full",)),
        (Guidance(3.0, history=1.5), ("full", "without_text", "without_history")),
        (Guidance(3.0, history=3.0), ("full", "without_history")),
    ],
)
def test_branches_that_count(guidance, branches):
    assert guidance.branches(0.5) == branches
    assert guidance.needs_negative == (len(branches) > 1)


def test_scale_of_each_expert():
    guidance = Guidance(3.5, low_noise_text=1.0, boundary=0.875)
    assert guidance.text_scale(0.875) == 3.5  # the boundary belongs to the high-noise expert
    assert guidance.text_scale(0.8749) == 1.0
    assert guidance.branches(0.9) == ("full", "without_text")
    assert guidance.branches(0.5) == ("full",)
    assert guidance.needs_negative
    assert torch.equal(guidance.combine(0.5, {"full": A}), A)
    assert torch.equal(guidance.combine(0.9, PREDICTIONS), combine_text(A, D, 3.5))


def test_negative_prompt_is_needed_if_only_the_low_noise_expert_wants_it():
    assert Guidance(1.0, low_noise_text=4.0, boundary=0.9).needs_negative
    assert not Guidance(1.0, low_noise_text=1.0, boundary=0.9).needs_negative
    assert not Guidance(1.0, boundary=0.9).needs_negative


def test_a_scale_of_the_second_expert_needs_a_boundary():
    with pytest.raises(ValueError, match="boundary"):
        Guidance(3.5, low_noise_text=4.0)


def test_a_further_branch_is_needed_where_any_expert_wants_it():
    assert Guidance(3.0, history=1.5).needs("without_history")
    assert not Guidance(3.0, history=1.0).needs("without_history")
    assert not Guidance(3.0, drive=1.5).needs("without_history")
    assert Guidance(1.5, low_noise_text=3.0, boundary=0.9, history=1.5).needs("without_text")


def test_drive_and_history_are_not_guided_together():
    with pytest.raises(ValueError, match="only one of drive and history"):
        Guidance(3.0, drive=2.0, history=2.0)


def test_a_level_on_the_boundary_belongs_to_the_high_noise_expert():
    level = float(torch.tensor(0.9))
    assert level < 0.9
    assert Guidance(5.0, low_noise_text=3.0, boundary=0.9).text_scale(level) == 5.0
