"""The pure layer's small files: geometry, flow, condition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from svi import flow
from svi.condition import ClipCondition
from svi.geometry import Geometry

WAN = Geometry()
CLEAN, NOISE = torch.randn(2, 3, 4, 2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_wan_shapes():
    assert WAN.latent_shape(81, 480, 832) == (16, 21, 60, 104)
    assert WAN.size_multiple == 16


@given(st.integers(1, 100))
def test_frames_and_latent_frames_are_inverse(latent_frames):
    frames = WAN.frames_of(latent_frames)
    assert frames == 4 * (latent_frames - 1) + 1
    assert latent_frames == 1 or WAN.latent_frames(frames) == latent_frames


@pytest.mark.parametrize(("frames", "nearest"), [(80, 81), (82, 81), (1, 5), (0, 5), (-7, 5), (19, 17), (20, 21)])
def test_a_wrong_length_names_the_nearest(frames, nearest):
    with pytest.raises(ValueError, match=f"the nearest is {nearest}$"):
        WAN.latent_frames(frames)


@pytest.mark.parametrize(
    ("height", "width", "nearest"), [(480, 830, "832x480"), (1, 832, "832x16"), (0, 0, "16x16"), (-16, 32, "32x16")]
)
def test_a_wrong_size_names_the_nearest(height, width, nearest):
    with pytest.raises(ValueError, match=f"the nearest is {nearest}$"):
        WAN.latent_shape(81, height, width)


def test_latent_frames_below_one_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        WAN.frames_of(0)


@given(st.floats(0, 1))
def test_flow_round_trip(sigma):
    noisy, velocity = flow.interpolate(CLEAN, NOISE, sigma), flow.velocity(CLEAN, NOISE)
    assert torch.allclose(flow.to_clean(noisy, velocity, sigma), CLEAN)
    assert torch.allclose(flow.to_noise(noisy, velocity, sigma), NOISE)


def test_flow_takes_one_sigma_per_sample():
    sigma = torch.tensor([0.0, 0.5, 1.0])
    noisy = flow.interpolate(CLEAN, NOISE, sigma)
    assert torch.equal(noisy[0], CLEAN[0])
    assert torch.equal(noisy[2], NOISE[2])
    for index in range(3):
        alone = flow.interpolate(CLEAN[index : index + 1], NOISE[index : index + 1], sigma[index])
        assert torch.equal(noisy[index : index + 1], alone)


@pytest.mark.parametrize("sigma", [torch.zeros(2), torch.zeros(3, 1)])
def test_flow_refuses_sigmas_that_would_broadcast_wrongly(sigma):
    with pytest.raises(ValueError, match="sigma must be"):
        flow.interpolate(CLEAN, NOISE, sigma)


def condition(**changes):
    parts = dict(values=torch.zeros(2, 16, 5, 2, 3), known=torch.zeros(2, 4, 5, 2, 3), text=torch.zeros(2, 6, 8))
    return ClipCondition(**{**parts, **changes})


def test_condition_says_what_is_to_be_denoised():
    assert condition().latent_shape == (2, 16, 5, 2, 3)
    assert condition().batch_size == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"values": torch.zeros(16, 5, 2, 3)},
        {"known": torch.zeros(2, 4, 4, 2, 3)},
        {"known": torch.zeros(1, 4, 5, 2, 3)},
        {"text": torch.zeros(3, 6, 8)},
        {"image": torch.zeros(1, 7, 8)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_condition_refuses_parts_that_do_not_fit(changes):
    with pytest.raises(ValueError, match=r"has batch|fit|are \(B"):
        condition(**changes)


def test_one_negative_text_serves_all_clips():
    other = condition().with_text(torch.ones(1, 6, 8))
    assert torch.equal(other.text, torch.ones(2, 6, 8))
    assert other.values is not None


def test_image_error_is_added_to_the_values_only():
    clean = condition()
    assert clean.with_error(None) is clean
    disturbed = clean.with_error(torch.ones_like(clean.values))
    assert torch.equal(disturbed.values, torch.ones_like(clean.values))
    assert torch.equal(disturbed.known, clean.known)
    assert torch.equal(clean.values, torch.zeros_like(clean.values))
