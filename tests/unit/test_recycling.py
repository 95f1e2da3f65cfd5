"""Error recycling in closed form: which errors are drawn, where they go, and what is harvested."""

import math
from dataclasses import replace

import pytest
import torch

from svi import flow, recycling
from svi.bank_plan import plan_storage
from svi.condition import ClipCondition
from svi.error_bank import ErrorBanks
from svi.errors import UserError
from svi.recycling import RecyclingConfig, choose, draw, harvest, inject
from svi.schedule import SigmaBuckets

SHAPE = (2, 6, 2, 2)
BUCKETS = SigmaBuckets(steps=4, shift=3.0)
ALWAYS = RecyclingConfig(0.0, 1.0, 1.0, 1.0, image_error_frames=2)
NEVER = RecyclingConfig(clean_prob=1.0)
FULL = {"video": (3, 0, 2, 5), "noise": (1, 2, 3, 4)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def code(bucket, slot):
    """An error that tells where it comes from: bucket, slot and latent frame are digits of its values."""
    frames = torch.arange(SHAPE[1]).view(1, -1, 1, 1) / 10
    return (bucket + 1) * 100 + slot * 10 + frames.expand(SHAPE)


def banks_of(fills=None):
    banks = ErrorBanks.create(plan_storage(SHAPE, capacity=5, storage="fp32", buckets=BUCKETS))
    for name, bank in banks.items():
        for bucket, entries in enumerate((fills or FULL)[name]):
            for slot in range(entries):
                sign = 1 if name == "video" else -1
                bank.add(sign * code(bucket, slot), bucket, generator())
    return banks


def chosen(config, bucket, fills=None, seed=0):
    return choose(config, bucket, fills or FULL, BUCKETS, SHAPE[1], generator(seed))


def share(flags):
    flags = list(flags)
    return sum(flags) / len(flags)


# --- what is drawn --------------------------------------------------------------------------------------------------


def test_probabilities_are_those_of_the_configuration():
    config = RecyclingConfig(clean_prob=0.3, image_error_prob=0.9, video_error_prob=0.6, noise_error_prob=0.2)
    choice = chosen(config, [0] * 10_000)
    assert share(choice.clean) == pytest.approx(0.3, abs=0.02)
    has = {kind: [pick is not None for pick in choice.picks[kind]] for kind in recycling.KINDS}
    for kind, prob in (("image", 0.9), ("video", 0.6), ("noise", 0.2)):
        assert share(has[kind]) == pytest.approx(0.7 * prob, abs=0.02)
    both = share(a and b for a, b in zip(has["image"], has["video"], strict=True))
    assert both == pytest.approx(0.7 * 0.9 * 0.6, abs=0.02)  # independent, given that the sample is not clean
    assert not any(clean and any(flags) for clean, *flags in zip(choice.clean, *has.values(), strict=True))


def test_a_sample_without_luck_is_not_a_clean_one():
    """Nothing injected, but not drawn to be clean: as published, its errors enter the bank."""
    choice = chosen(RecyclingConfig(0.0, 0.0, 0.0, 0.0), [0, 1])
    assert choice.clean == (False, False)
    assert all(pick is None for picks in choice.picks.values() for pick in picks)


def test_video_and_noise_errors_come_from_the_bucket_of_the_level():
    choice = chosen(ALWAYS, [0, 2, 3] * 500)
    for kind in ("video", "noise"):
        for own, pick in zip(choice.bucket, choice.picks[kind], strict=True):
            assert pick.bucket == own
            assert 0 <= pick.slot < FULL[kind][own]
    slots = torch.tensor([pick.slot for pick in choice.picks["video"] if pick.bucket == 3])
    assert (torch.bincount(slots, minlength=5) - 100).abs().max() < 40  # standard deviation 9


def test_image_errors_come_from_all_entries_alike_and_from_any_frame():
    choice = chosen(ALWAYS, [0] * 5000)
    picks = choice.picks["image"]
    places = [(pick.bucket, pick.slot) for pick in picks]
    entries = [(bucket, slot) for bucket, n in enumerate(FULL["video"]) for slot in range(n)]
    assert set(places) == set(entries)
    assert all(abs(places.count(entry) - 500) < 100 for entry in entries)  # standard deviation 21
    starts = torch.bincount(torch.tensor([pick.start for pick in picks]))
    assert len(starts) == SHAPE[1] - 2 + 1
    assert (starts - 1000).abs().max() < 140  # standard deviation 28


def test_image_errors_can_be_limited_to_a_range_of_levels():
    levels = BUCKETS.sigmas.tolist()
    config = RecyclingConfig(0.0, 1.0, 0.0, 0.0, image_error_sigmas=(levels[3], levels[2]))
    assert {pick.bucket for pick in chosen(config, [0] * 200).picks["image"]} == {2, 3}
    only_empty = RecyclingConfig(0.0, 1.0, 0.0, 0.0, image_error_sigmas=(levels[1], levels[1]))
    assert chosen(only_empty, [0, 0]).missing["image"] == (0, 1)


def test_an_empty_bucket_gives_no_error_and_the_plan_says_so():
    plan = draw(ALWAYS, banks_of(), BUCKETS.sigmas[[1, 2]], generator())
    assert plan.choice.missing == {"image": (), "video": (0,), "noise": ()}
    assert (plan.video[0] == 0).all()
    assert (plan.video[1] > 0).all()
    nothing = {"video": (0,) * 4, "noise": (0,) * 4}
    empty = draw(ALWAYS, banks_of(nothing), BUCKETS.sigmas[[1, 2]], generator())
    assert (empty.image, empty.video, empty.noise) == (None, None, None)
    assert empty.choice.missing == dict.fromkeys(recycling.KINDS, (0, 1))
    assert empty.choice.clean == (False, False)


def test_samples_are_drawn_independently():
    config = RecyclingConfig(0.3, 0.7, 0.6, 0.5, strength_jitter=0.5)
    together = chosen(config, [3] * 40)
    alone = chosen(config, [3])
    others = chosen(config, [3] + [2] * 39)
    for kind in recycling.KINDS:
        assert alone.picks[kind][0] == together.picks[kind][0] == others.picks[kind][0]
    assert len({pick.slot for pick in together.picks["video"] if pick}) > 1


def test_draws_do_not_depend_on_what_is_given():
    states = []
    for config, fills in ((ALWAYS, FULL), (NEVER, FULL), (ALWAYS, {})):
        g = generator()
        choose(config, [0, 1, 2], fills or {"video": (0,) * 4}, BUCKETS, SHAPE[1], g)
        states.append(g.get_state())
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


def test_a_plan_repeats_by_seed_and_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    config = RecyclingConfig(0.2, 0.9, 0.9, 0.9, image_error_frames=2, strength_jitter=0.3)
    sigma, banks = BUCKETS.sigmas[[0, 2, 3, 3, 2, 0]], banks_of()
    first, again, other = (draw(config, banks, sigma, generator(seed)) for seed in (1, 1, 2))
    assert first.choice == again.choice
    assert first.choice != other.choice
    assert torch.equal(first.image, again.image)
    assert torch.equal(torch.get_rng_state(), before)


def test_strength_and_jitter():
    config = RecyclingConfig(0.0, 1.0, 1.0, 1.0, video_error_strength=0.5, strength_jitter=0.2)
    picks = chosen(config, [3] * 3000).picks
    video = torch.tensor([pick.strength for pick in picks["video"]])
    image = torch.tensor([pick.strength for pick in picks["image"]])
    assert video.min() >= 0.4
    assert video.max() <= 0.6
    assert video.mean() == pytest.approx(0.5, abs=0.005)
    assert image.mean() == pytest.approx(1.0, abs=0.01)
    assert image.std() == pytest.approx(0.4 / math.sqrt(12), rel=0.05)
    assert torch.corrcoef(torch.stack([video, image]))[0, 1].abs() < 0.08


# --- where it goes --------------------------------------------------------------------------------------------------


def test_each_error_is_the_banked_one_times_its_strength():
    config = RecyclingConfig(0.0, 1.0, 1.0, 1.0, image_error_frames=2, strength_jitter=0.5)
    plan = draw(config, banks_of(), BUCKETS.sigmas[[0, 3]], generator())
    for sample in range(2):
        picks = {kind: plan.choice.picks[kind][sample] for kind in recycling.KINDS}
        video, noise, image = (picks[kind] for kind in ("video", "noise", "image"))
        assert torch.allclose(plan.video[sample], code(video.bucket, video.slot) * video.strength)
        assert torch.allclose(plan.noise[sample], -code(noise.bucket, noise.slot) * noise.strength)
        window = code(image.bucket, image.slot)[:, image.start : image.start + 2] * image.strength
        assert torch.allclose(plan.image[sample, :, :2], window)
        assert (plan.image[sample, :, 2:] == 0).all()


def test_image_errors_can_stand_behind_an_anchor_latent():
    config = RecyclingConfig(0.0, 1.0, 0.0, 0.0, image_error_frames=1, image_error_start=1)
    image = draw(config, banks_of(), BUCKETS.sigmas[:1], generator()).image
    assert [bool(frame.any()) for frame in image[0].unbind(1)] == [False, True, False, False, False, False]


def test_a_plan_fits_the_condition_and_other_dtypes_and_devices():
    plan = draw(ALWAYS, banks_of(), BUCKETS.sigmas[[2, 3]], generator())
    values = torch.randn(2, *SHAPE, generator=generator()).bfloat16()
    condition = ClipCondition(values, known=torch.zeros(2, 4, *SHAPE[1:]), text=torch.zeros(2, 1, 1))
    changed = condition.with_error(plan.to(values).image)
    assert changed.values.dtype == torch.bfloat16
    assert torch.equal(changed.values[:, :, 2:], values[:, :, 2:])
    assert torch.equal(changed.values, values + plan.image.bfloat16())
    assert inject(values, plan.video).dtype == torch.bfloat16
    assert plan.to(values.to("meta")).noise.device.type == "meta"


def test_injecting_nothing_changes_nothing():
    tensor = torch.zeros(3)
    assert inject(tensor, None) is tensor


# --- target and harvest ---------------------------------------------------------------------------------------------


def step(sigma_of=(0.05, 0.9, 1.0), seed=3):
    """A batch with every error in it: clean, noise with its error, noisy, sigma, plan."""
    g = generator(seed)
    sigma = torch.tensor(sigma_of)
    plan = draw(ALWAYS, banks_of({"video": (3, 1, 2, 5), "noise": (1, 2, 3, 4)}), sigma, g)
    clean, noise = torch.randn(2, len(sigma), *SHAPE, generator=g)
    noise = inject(noise, plan.noise)
    return clean, noise, flow.interpolate(inject(clean, plan.video), noise, sigma), sigma, plan


def close(one, other):
    return torch.allclose(one, other, rtol=1e-4, atol=2e-3)  # values up to 500


def test_the_target_points_from_the_clean_latents_to_the_noise_with_its_error():
    clean, noise, noisy, sigma, plan = step()
    velocity = recycling.target(clean, noise)
    assert torch.equal(velocity, noise - clean)
    left = (1 - flow.expand(sigma, clean)) * plan.video
    assert close(flow.to_clean(noisy, velocity, sigma), clean + left)
    assert close(flow.to_noise(noisy, velocity, sigma), noise + left)


def test_an_oracle_makes_no_errors():
    clean, noise, _, sigma, plan = step()
    target = recycling.target(clean, noise)
    errors = harvest(target, target, sigma, plan)
    assert (errors.video == 0).all()
    assert (errors.noise == 0).all()
    accumulated = harvest(target, target, sigma, plan, how="accumulated")
    assert close(accumulated.video, (1 - flow.expand(sigma, clean)) * plan.video)  # what was injected and not undone
    assert (accumulated.noise == 0).all()


@pytest.mark.parametrize("how", ["increment", "accumulated"])
def test_harvest_is_the_difference_of_one_step_estimates(how):
    clean, noise, noisy, sigma, plan = step()
    target = recycling.target(clean, noise)
    predicted = target + torch.randn(target.shape, generator=generator(4))
    errors = harvest(predicted, target, sigma, plan, how=how)
    reached = flow.to_clean(noisy, predicted, sigma)
    aim = clean if how == "accumulated" else flow.to_clean(noisy, target, sigma)
    assert close(errors.video, reached - aim)
    assert close(errors.noise, flow.to_noise(noisy, predicted, sigma) - flow.to_noise(noisy, target, sigma))


def test_a_known_error_is_harvested_in_closed_form():
    """The published formula: -sigma * r at the clean end, (1 - sigma) * r at the noise end."""
    clean, noise, _, _, plan = step(sigma_of=(0.0, 0.25, 1.0))
    target = recycling.target(clean, noise)
    errors = harvest(target + 2.0, target, torch.tensor([0.0, 0.25, 1.0]), plan)
    for sample, (video, noise_end) in enumerate([(0.0, 2.0), (-0.5, 1.5), (-2.0, 0.0)]):
        assert torch.allclose(errors.video[sample], torch.tensor(video), atol=1e-4)
        assert torch.allclose(errors.noise[sample], torch.tensor(noise_end), atol=1e-4)


def test_harvest_is_fp32_and_without_gradients():
    clean, noise, _, sigma, plan = step()
    target = recycling.target(clean, noise).bfloat16()
    predicted = (target + 1).requires_grad_()
    errors = harvest(predicted, target, sigma, plan, how="accumulated")
    assert errors.video.dtype == errors.noise.dtype == torch.float32
    assert not errors.video.requires_grad
    assert errors.bucket.tolist() == BUCKETS.bucket_of(sigma).tolist()
    assert errors.clean.tolist() == [False] * 3


def closed_loop(how, rounds=30):
    """Train with a model that is wrong by 1 everywhere: size of the errors in the bank at the end."""
    banks, g = banks_of({"video": (0,) * 4, "noise": (0,) * 4}), generator(7)
    sigma = BUCKETS.sigmas[[2]]
    for _ in range(rounds):
        plan = draw(ALWAYS, banks, sigma, g)
        clean, noise = torch.randn(2, 1, *SHAPE, generator=g)
        target = recycling.target(clean, inject(noise, plan.noise))
        errors = harvest(target - 1, target, sigma, plan, how=how)
        recycling.store(banks, errors, recycling.admitted(errors, ALWAYS, g), g)
    return banks.video.stats().rms[2], float(sigma)


def test_increments_do_not_pile_up_and_accumulated_errors_do():
    size, sigma = closed_loop("increment")
    assert size == pytest.approx(sigma, rel=1e-3)
    piled, _ = closed_loop("accumulated")
    assert piled > 1.2 * sigma
    assert piled < 1.001  # the series sigma * (1 + (1 - sigma) + ...) ends at 1


# --- what enters the banks ------------------------------------------------------------------------------------------


def errors_of(clean, value=1.0, bucket=2):
    count = len(clean)
    full = torch.full((count, *SHAPE), value)
    return recycling.Errors(full, -full, torch.full((count,), bucket), torch.tensor(clean))


def test_errors_of_clean_samples_enter_with_their_probability():
    errors = recycling.Errors(torch.empty(0), torch.empty(0), torch.empty(0), torch.arange(20_000) % 2 == 0)
    enters = recycling.admitted(errors, RecyclingConfig(clean_buffer_update_prob=0.1), generator())
    assert enters[1::2].all()
    assert enters[::2].float().mean() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(enters, recycling.admitted(errors, RecyclingConfig(), generator()))
    for prob in (0.0, 1.0):
        enters = recycling.admitted(errors, RecyclingConfig(clean_buffer_update_prob=prob), generator())
        assert enters[::2].float().mean() == prob


def test_admitted_errors_enter_both_banks_in_the_bucket_of_their_level():
    banks = banks_of({"video": (0,) * 4, "noise": (0,) * 4})
    recycling.store(banks, errors_of([False, True, False]), torch.tensor([True, False, True]), generator())
    assert banks.fills == {"video": (0, 0, 2, 0), "noise": (0, 0, 2, 0)}
    assert (banks.video.entry(2, 0) == 1).all()
    assert (banks.noise.entry(2, 1) == -1).all()


def test_shared_banks_take_what_they_own():
    plan = plan_storage(SHAPE, capacity=5, buckets=BUCKETS, bank_memory=21_000, ranks=4)
    assert plan.shards == 4
    banks = [ErrorBanks.create(plan, rank=rank) for rank in range(4)]
    for rank in range(4):
        recycling.store(banks[rank], errors_of([False], bucket=2), torch.tensor([True]), generator())
    assert [len(b.video) for b in banks] == [0, 0, 1, 0]


def test_plans_of_shared_banks_add_up_to_the_plan_of_one():
    plan = plan_storage(SHAPE, capacity=5, buckets=BUCKETS, storage="fp32")
    whole, shared = (
        ErrorBanks.create(plan),
        [ErrorBanks.create(replace(plan, shards=2), rank=rank) for rank in range(2)],
    )
    for bucket in range(4):
        error = recycling.Errors(
            *(torch.randn(2, 1, *SHAPE, generator=generator(bucket))), torch.tensor([bucket]), None
        )
        for banks in (whole, *shared):
            recycling.store(banks, error, torch.tensor([True]), generator())
    fills = {name: tuple(map(sum, zip(*(banks.fills[name] for banks in shared), strict=True))) for name in whole.fills}
    assert fills == whole.fills
    choice = choose(ALWAYS, [0, 1, 2, 3], fills, BUCKETS, SHAPE[1], generator())
    expected, parts = recycling.fetch(choice, whole, ALWAYS), [recycling.fetch(choice, b, ALWAYS) for b in shared]
    for kind in recycling.KINDS:
        assert torch.equal(sum(getattr(part, kind) for part in parts), getattr(expected, kind))
    with pytest.raises(ValueError, match="shared out over ranks"):
        draw(ALWAYS, shared[0], torch.ones(1), generator())


# --- configuration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(clean_prob=1.5), "clean_prob is a probability"),
        (dict(noise_error_prob=-0.1), "noise_error_prob is a probability"),
        (dict(video_error_prob=math.nan), "video_error_prob is a probability"),
        (dict(image_error_frames=0), "image_error_prob to 0"),
        (dict(strength_jitter=2), "strength_jitter"),
        (dict(image_error_sigmas=(0.8, 0.2)), "rising"),
        (dict(harvest="both"), "'increment' or 'accumulated'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        RecyclingConfig(**options)


def test_only_banks_that_something_is_drawn_from_are_kept():
    assert RecyclingConfig().banks == ("video", "noise")
    assert RecyclingConfig(noise_error_prob=0).banks == ("video",)
    assert RecyclingConfig(noise_error_prob=0, video_error_prob=0).banks == ("video",)
    assert RecyclingConfig(image_error_prob=0, video_error_prob=0).banks == ("noise",)
    assert NEVER.banks == ()
    plan = draw(NEVER, ErrorBanks.create(recycling.plan_banks(NEVER, SHAPE), NEVER.banks), torch.ones(2), generator())
    assert plan.choice.clean == (True, True)
    assert (plan.image, plan.video, plan.noise) == (None, None, None)


def test_a_bank_for_image_errors_alone_keeps_the_frames_of_one_where_memory_is_short():
    config = RecyclingConfig(0.0, 1.0, 0.0, 0.0, image_error_frames=2)
    assert recycling.plan_banks(config, SHAPE).frames == 6
    plan = recycling.plan_banks(config, (16, 6, 60, 104), bank_memory=15 * 10**9)
    assert (plan.banks, plan.frames, plan.storage) == (1, 2, "bf16")
    small = recycling.plan_banks(config, (32, 6, 8, 8), bank_memory=250_000, capacity=5, buckets=BUCKETS)
    assert small.frames == 2
    banks, g = ErrorBanks.create(small, config.banks), generator()
    banks.video.add(torch.ones(32, 6, 8, 8), 0, g)
    image = draw(config, banks, torch.ones(1), g).image
    assert (image[:, :, :2] == 1).all()
    assert (image[:, :, 2:] == 0).all()


def test_image_errors_that_reach_beyond_the_clip_are_refused():
    with pytest.raises(UserError, match="a clip has 6"):
        recycling.plan_banks(RecyclingConfig(image_error_frames=6, image_error_start=1), SHAPE)
