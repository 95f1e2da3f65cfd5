"""Noise levels against the published schedule, densities against their distribution."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from svi.schedule import (
    SigmaBuckets,
    bell_weight,
    logit_normal_density,
    shift_sigma,
    shifted_sigmas,
    stratified_density,
    uniform_density,
)

STEPS, SHIFTS = (2, 4, 10, 20, 50), (3.0, 5.0, 8.0)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("steps", STEPS)
def test_schedule_is_bit_equal_to_the_published_one(steps, shift):
    from diffusers import FlowMatchEulerDiscreteScheduler

    published = FlowMatchEulerDiscreteScheduler(shift=shift)
    published.set_timesteps(sigmas=torch.linspace(1, 0, steps + 1)[:-1].numpy())
    ours = shifted_sigmas(steps, shift)
    assert ours.dtype == torch.float32
    assert ours.shape == (steps + 1,)
    assert (ours - published.sigmas).abs().max() == 0.0


@given(steps=st.integers(1, 200), shift=st.floats(0.2, 12))
def test_schedule_falls_from_one_to_zero(steps, shift):
    sigmas = shifted_sigmas(steps, shift)
    assert sigmas[-1] == 0
    assert sigmas[0] == pytest.approx(1, abs=1e-6)
    assert (sigmas.diff() < 0).all()


@pytest.mark.parametrize(("steps", "shift"), [(0, 5.0), (-3, 5.0), (10, 0.0), (10, -1.0)])
def test_impossible_schedules_are_refused(steps, shift):
    with pytest.raises(ValueError, match="must be"):
        shifted_sigmas(steps, shift)


def published_table(shift=5.0):
    """The 1000 training levels, written out as the published scheduler makes them."""
    sigmas = torch.linspace(1.0, 0.0, 1001)[:-1]
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_uniform_density_draws_every_entry_of_the_table_alike():
    drawn = uniform_density(200_000, generator())
    table = published_table()
    assert torch.isin(drawn, table).all()
    counts = torch.bincount(1000 - torch.searchsorted(table.flip(0), drawn, right=True), minlength=1000)
    assert counts.shape == (1000,)
    assert counts.min() > 120  # mean 200, standard deviation 14
    assert counts.max() < 280


def test_stratified_density_draws_once_from_each_stratum_in_random_order():
    drawn = stratified_density(64, generator(), shift=5.0)
    straight = drawn / (5 - 4 * drawn)  # undo the shift
    assert sorted((straight * 64).ceil().int().tolist()) == list(range(1, 65))
    assert not (drawn.diff() < 0).all()
    assert (drawn > 0).all()
    assert (drawn <= 1).all()


def test_stratified_density_estimates_a_mean_with_less_variance():
    g = generator()
    spread = [
        torch.stack([density(16, g).mean() for _ in range(200)]).std()
        for density in (uniform_density, stratified_density)
    ]
    assert spread[1] < spread[0] / 5


def test_logit_normal_density_has_its_median_at_the_shifted_middle():
    drawn = logit_normal_density(50_000, generator(), shift=3.0)
    assert drawn.median() == pytest.approx(0.75, abs=0.01)  # 3 * 0.5 / (1 + 2 * 0.5)
    assert (drawn > 0).all()
    assert (drawn < 1).all()


@pytest.mark.parametrize("density", [uniform_density, stratified_density, logit_normal_density])
def test_densities_repeat_by_seed_and_leave_the_global_state_alone(density):
    before = torch.get_rng_state()
    first, again, other = density(8, generator(1)), density(8, generator(1)), density(8, generator(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (8,)
    assert first.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), before)


def test_bell_weight_is_the_published_weight_on_the_published_table():
    timesteps = 1000 * published_table()
    bell = torch.exp(-2 * ((timesteps - 500) / 1000) ** 2)
    above = bell - bell.min()
    published = above * (1000 / above.sum())
    ours = bell_weight(published_table())
    assert torch.allclose(ours, published, atol=1e-5)
    assert ours.mean() == pytest.approx(1, abs=1e-5)
    assert ours.min() == 0


@given(st.floats(0, 1))
def test_bell_weight_is_never_negative(sigma):
    assert bell_weight(torch.tensor(sigma)) >= 0


def test_buckets_are_the_levels_of_the_fifty_step_run():
    buckets = SigmaBuckets()
    assert len(buckets) == 50
    assert torch.equal(buckets.sigmas, shifted_sigmas(50, 5.0)[:-1])
    assert torch.equal(buckets.bucket_of(buckets.sigmas), torch.arange(50))


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20))
def test_bucket_is_the_nearest_and_falls_as_sigma_grows(levels):
    buckets = SigmaBuckets(steps=20, shift=3.0)
    sigma = torch.tensor(sorted(levels))
    index = buckets.bucket_of(sigma)
    assert index.dtype == torch.int64
    assert (index.diff() <= 0).all()
    nearest = (sigma[:, None] - buckets.sigmas).abs().min(dim=1).values
    assert torch.equal((sigma - buckets.sigmas[index]).abs(), nearest)


def test_a_published_timestep_of_999_falls_into_the_first_bucket():
    assert SigmaBuckets().bucket_of(torch.tensor(0.999)) == 0


def test_empty_buckets_are_refused():
    with pytest.raises(ValueError, match="steps"):
        SigmaBuckets(steps=0)


@given(st.floats(0, 1), st.floats(0.5, 8))
def test_shift_keeps_the_ends_and_can_be_undone(sigma, shift):
    level = torch.tensor(sigma, dtype=torch.float64)
    back = shift_sigma(shift_sigma(level, shift), 1 / shift)
    assert back == pytest.approx(sigma, abs=1e-9)
