"""Denoising with a model in closed form."""

from dataclasses import replace

import pytest
import torch
from closed_form import CHANNELS, TEXT_DIM, TEXT_LENGTH, picture

from svi.condition import ClipCondition
from svi.generation.sampler import clip_noise, denoise
from svi.guidance import Guidance
from svi.schedule import shifted_sigmas
from svi.solvers import SOLVERS

SHAPE = (1, CHANNELS, 5, 2, 4)


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def condition():
    return ClipCondition(
        values=normal(1, *SHAPE),
        known=torch.zeros(1, 4, *SHAPE[2:]),
        text=normal(2, 1, TEXT_LENGTH, TEXT_DIM),
        drive={"audio": torch.full((1, 3), 0.25)},
    )


NEGATIVE = normal(3, 1, TEXT_LENGTH, TEXT_DIM)
SETTINGS = dict(noise=clip_noise(0, SHAPE), sigmas=shifted_sigmas(6, 5.0), guidance=1.0)


def test_noise_is_that_of_the_published_code():
    published = torch.randn(SHAPE, generator=torch.Generator("cpu").manual_seed(84), device="cpu", dtype=torch.float32)
    assert torch.equal(clip_noise(84, SHAPE), published)
    assert not torch.equal(clip_noise(84, SHAPE), clip_noise(42, SHAPE))


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_clean_latents_are_reached(backend, condition, solver):
    latents = denoise(backend.velocity, condition, None, **SETTINGS, solver=solver)
    assert latents.dtype == torch.float32
    assert torch.allclose(latents, backend.clean(condition), atol=1e-5)


def test_scale_one_needs_one_forward_pass_per_step_and_no_negative(backend, condition):
    denoise(backend.velocity, condition, None, **SETTINGS)
    assert backend.forward_passes == 6


def test_text_guidance_extrapolates_from_the_negative_prompt(backend, condition):
    latents = denoise(backend.velocity, condition, NEGATIVE, **{**SETTINGS, "guidance": 3.0})
    wanted, unwanted = backend.clean(condition), backend.clean(condition.with_text(NEGATIVE))
    assert torch.allclose(latents, unwanted + 3 * (wanted - unwanted), atol=1e-4)
    assert backend.forward_passes == 12


def test_prompt_is_evaluated_before_the_negative_prompt(backend, condition):
    texts = []

    def velocity(noisy, sigma, given):
        texts.append(given.text)
        return backend.velocity(noisy, sigma, given)

    denoise(velocity, condition, NEGATIVE, **{**SETTINGS, "guidance": 3.0})
    assert all(torch.equal(text, condition.text) for text in texts[::2])
    assert all(torch.equal(text, NEGATIVE) for text in texts[1::2])


def test_three_way_guidance_silences_the_drive_once(backend, condition):
    latents = denoise(backend.velocity, condition, NEGATIVE, **{**SETTINGS, "guidance": Guidance(2.0, drive=5.0)})
    text_gap = (condition.text.mean() - NEGATIVE.mean()).item()
    silent = backend.clean(condition) - text_gap - 0.25
    assert torch.allclose(latents, silent + 2.0 * text_gap + 5.0 * 0.25, atol=1e-4)
    assert backend.forward_passes == 18


def test_guidance_by_history_extrapolates_from_the_clip_without_it(backend, condition):
    alone = replace(condition, values=torch.zeros_like(condition.values))
    guidance = Guidance(3.0, history=2.0)
    settings = {**SETTINGS, "guidance": guidance}
    latents = denoise(backend.velocity, condition, NEGATIVE, **settings, without_history=alone)
    full, no_text = backend.clean(condition), backend.clean(condition.with_text(NEGATIVE))
    nothing = backend.clean(alone.with_text(NEGATIVE))
    assert torch.allclose(latents, nothing + 3 * (full - no_text) + 2 * (no_text - nothing), atol=1e-4)
    assert backend.forward_passes == 18
    with pytest.raises(ValueError, match="needs the condition without it"):
        denoise(backend.velocity, condition, NEGATIVE, **settings)


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_ending_is_reached_and_as_noisy_as_the_rest_on_the_way(backend, condition, solver):
    ending, seen = normal(4, 1, CHANNELS, 2, *SHAPE[3:]), []

    def velocity(noisy, sigma, given):
        seen.append((float(sigma[0]), noisy.clone()))
        return backend.velocity(noisy, sigma, given)

    latents = denoise(velocity, condition, None, **SETTINGS, solver=solver, ending=ending)
    assert torch.allclose(latents[:, :, -2:], ending, atol=1e-4)
    assert torch.allclose(latents[:, :, :-2], backend.clean(condition)[:, :, :-2], atol=1e-4)
    if solver == "euler":
        noise = SETTINGS["noise"][:, :, -2:]
        for sigma, noisy in seen:
            assert torch.allclose(noisy[:, :, -2:], (1 - sigma) * ending + sigma * noise, atol=1e-5)


def test_experts_have_their_own_scale(backend, condition):
    guidance = Guidance(3.0, low_noise_text=1.0, boundary=0.8)
    denoise(backend.velocity, condition, NEGATIVE, **{**SETTINGS, "guidance": guidance})
    high = int((SETTINGS["sigmas"][:-1] >= 0.8).sum())
    assert 0 < high < 6
    assert backend.forward_passes == 6 + high


def test_guidance_without_a_negative_prompt_is_refused(backend, condition):
    with pytest.raises(ValueError, match="negative prompt"):
        denoise(backend.velocity, condition, None, **{**SETTINGS, "guidance": 5.0})


def test_state_stays_fp32_under_a_bf16_model(backend, condition):
    """A state in bf16 loses two to three digits within the 50 steps; rounding the velocity alone does not."""
    state_types = set()

    def rounded(noisy, sigma, given):
        state_types.add(noisy.dtype)
        return backend.velocity(noisy, sigma, given).bfloat16()

    settings = {**SETTINGS, "sigmas": shifted_sigmas(50)}
    exact, latents = (denoise(model, condition, None, **settings) for model in (backend.velocity, rounded))
    assert state_types == {torch.float32}
    assert latents.dtype == torch.float32
    assert (latents - exact).norm() / exact.norm() < 2e-3


def test_steps_are_reported_and_may_end_the_clip(backend, condition):
    seen = []

    def on_step(step, steps):
        seen.append((step, steps))
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        denoise(backend.velocity, condition, None, **SETTINGS, on_step=on_step)
    assert seen == [(1, 6), (2, 6), (3, 6), (4, 6)]
    assert not torch.is_inference_mode_enabled()


def test_a_clip_can_be_denoised_in_two_parts(backend, condition):
    halves = []

    def velocity(noisy, sigma, given):
        halves.append(noisy.clone())
        return backend.velocity(noisy, sigma, given)

    whole = denoise(velocity, condition, None, **SETTINGS)
    rest = denoise(backend.velocity, condition, None, **{**SETTINGS, "noise": halves[3]}, start=3)
    assert torch.equal(rest, whole)


def test_latents_are_ordinary_tensors(backend, condition):
    latents = denoise(backend.velocity, condition, None, **SETTINGS)
    latents += 1  # refused for tensors that remember inference mode
    assert not latents.is_inference()


def test_what_does_not_fit_is_refused(backend, condition):
    with pytest.raises(ValueError, match="does not fit condition"):
        denoise(backend.velocity, condition, None, **{**SETTINGS, "noise": picture(1).float()})
    for start in (-1, 6):
        with pytest.raises(ValueError, match=r"start must be in \[0, 5\]"):
            denoise(backend.velocity, condition, None, **SETTINGS, start=start)
    with pytest.raises(ValueError, match="unknown solver 'eular': did you mean 'euler'"):
        denoise(backend.velocity, condition, None, **SETTINGS, solver="eular")
