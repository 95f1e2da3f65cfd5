"""Mechanisms against drift that other methods have: what each changes in a clip, and that it changes nothing else."""

import itertools
from dataclasses import replace

import pytest
import torch
from closed_form import CHANNELS, HEIGHT, NUM_FRAMES, WIDTH, ClosedFormBackend, picture

from svi.conditioning.build import build, ending
from svi.conditioning.encodings import Encodings
from svi.conditioning.memory import ClipMemory
from svi.conditioning.policy import MECHANISMS, PRESETS
from svi.conditioning.window import padded_video, to_video
from svi.errors import UserError
from svi.generation.clip import ClipPlan
from svi.generation.rollout import as_made, as_seen, rollout, rollout_batch, shared_frames
from svi.generation.sampler import clip_noise

NOISY, GUIDED, INVERTED = (MECHANISMS[name] for name in ("noisy-history", "history-guidance", "inverted"))
WAN, FILM, SHOT, PRO = (PRESETS[name] for name in ("wan", "film", "shot", "pro"))
LATENTS = (1, CHANNELS, 5, HEIGHT // 8, WIDTH // 8)
STEP = 12  # frames from one window to the next with inverted hand-off: 17, less the 5 that neighbours show


def plan(index, **changes):
    settings = dict(
        index=index,
        prompt=f"part {index}",
        negative_prompt="blur",
        seed=42 * index,
        num_frames=NUM_FRAMES,
        height=HEIGHT,
        width=WIDTH,
        steps=3,
        guidance=2.0,
    )
    return ClipPlan(**{**settings, **changes})


@pytest.fixture
def make(backend):
    def made(policy, memory, **changes):
        settings = dict(encodings=Encodings(backend), num_frames=NUM_FRAMES, geometry=backend.geometry)
        return build(policy, memory, backend.encode_text(["a ball"]), **{**settings, **changes})

    return made


def clips_of(policy, count=3, **changes):
    memory, backend = ClipMemory.start(picture(1)), ClosedFormBackend()
    plans = as_made([[plan(index, **changes)] for index in range(count)], policy)
    return as_made([clip for (clip,) in rollout_batch(plans, memory, backend=backend, policy=policy)], policy)


# -- noise on what is carried over -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "noisy"), [(WAN, [0]), (SHOT, [0]), (FILM, [0, 1]), (PRO, [1])], ids=["wan", "shot", "film", "pro"]
)
def test_noise_reaches_what_is_carried_over_and_nothing_else(make, later_memory, policy, noisy):
    noise = clip_noise(5, LATENTS)
    clean, spoilt = make(policy, later_memory), make(replace(policy, history_noise=0.25), later_memory, noise=noise)
    wanted = clean.values.clone()
    wanted[:, :, noisy] += noise[:, :, noisy] / 3  # a level of 1/4 has three parts of picture to one of noise
    assert torch.allclose(spoilt.values, wanted)
    assert torch.equal(spoilt.known, clean.known)
    assert torch.equal(spoilt.image, clean.image)


def test_the_users_own_image_stays_clean(make, first_memory):
    assert torch.equal(make(NOISY, first_memory).values, make(WAN, first_memory).values)


def test_noise_that_is_not_given_is_missed(make, later_memory):
    with pytest.raises(ValueError, match="noisy-history adds noise"):
        make(NOISY, later_memory)


def test_the_noise_is_that_of_the_clips_seed(make):
    first, second = clips_of(NOISY, 2), clips_of(NOISY, 2)
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(first, second, strict=True))
    plain = clips_of(WAN, 2)
    assert torch.equal(first[0].latents, plain[0].latents)
    assert not torch.equal(first[1].latents, plain[1].latents)
    other = clips_of(NOISY, 2, seed=7)  # the model in closed form forgets its own noise: what differs is the history's
    assert not torch.equal(other[1].latents, first[1].latents)


# -- guidance by history -----------------------------------------------------------------------------------------------


def test_without_history_nothing_is_given(make, backend, later_memory):
    condition = make(WAN, later_memory, history=False)
    assert torch.equal(condition.values, backend.encode_video(torch.zeros(1, 3, NUM_FRAMES, HEIGHT, WIDTH)))
    assert not condition.known.any()
    grey = torch.full((1, 1, HEIGHT, WIDTH, 3), 128, dtype=torch.uint8)
    assert torch.equal(condition.image, backend.encode_image(to_video(grey)[:, :, 0]))


def test_an_anchor_is_no_history(make, backend, later_memory):
    padded = make(SHOT, later_memory, history=False)
    reference = later_memory.reference
    assert torch.equal(padded.values, backend.encode_video(padded_video(picture(1, 1, 0), reference, -1, NUM_FRAMES)))
    latent = make(PRO, later_memory, history=False)
    first = make(PRO, ClipMemory.start(reference))
    assert torch.equal(latent.values, first.values)
    assert torch.equal(latent.known, first.known)


def test_guidance_by_history_takes_a_third_pass_and_scale_one_takes_none():
    backend = ClosedFormBackend()
    memory = ClipMemory.start(picture(1))
    guided = next(rollout([plan(0)], memory, backend=backend, policy=GUIDED))
    assert backend.forward_passes == 3 * 3
    plain = next(rollout([plan(0)], memory, backend=ClosedFormBackend(), policy=WAN))
    assert not torch.equal(guided.latents, plain.latents)
    off = next(rollout([plan(0)], memory, backend=backend, policy=replace(GUIDED, history_guidance=1.0)))
    assert backend.forward_passes == 3 * 3 + 3 * 2
    assert torch.equal(off.latents, plain.latents)


# -- inverted order ----------------------------------------------------------------------------------------------------


def test_inverted_clips_are_made_from_the_last_and_end_in_the_next_one():
    clips = clips_of(INVERTED)
    assert [clip.plan.index for clip in clips] == [0, 1, 2]
    assert [clip.memory.clip_index for clip in clips] == [3, 2, 1]  # the last one was made first
    for clip, after in itertools.pairwise(clips):
        assert torch.allclose(clip.latents[:, :, -1:], after.latents[:, :, 1:2], atol=1e-4)


def test_inverted_clips_all_begin_at_the_image(make, backend, later_memory):
    condition = make(INVERTED, later_memory)
    start = make(WAN, ClipMemory.start(later_memory.reference))
    assert torch.equal(condition.values, start.values)
    assert torch.equal(condition.known, start.known)
    assert torch.equal(condition.image, start.image)


def test_inverted_order_loses_and_doubles_no_frame():
    clips = clips_of(INVERTED, 4)
    assert [len(clip.new_frames) for clip in clips] == [13, 12, 12, 16]
    assert (
        sum(len(clip.new_frames) for clip in clips) == NUM_FRAMES + 3 * STEP
    )  # as many as every other preset makes of them
    assert torch.equal(clips[0].new_frames, clips[0].frames[:13])  # the image is shown once
    assert torch.equal(clips[3].new_frames, clips[3].frames[1:])


def test_a_video_is_seen_in_its_order():
    plans = [[plan(index)] for index in range(3)]
    for policy in (WAN, INVERTED):
        seen = as_seen(plans, ClipMemory.start(picture(1)), backend=ClosedFormBackend(), policy=policy)
        made = clips_of(policy)
        assert all(torch.equal(frames, clip.new_frames) for (frames,), clip in zip(seen, made, strict=True))


@pytest.mark.parametrize("policy", MECHANISMS.values(), ids=MECHANISMS)
def test_a_video_of_any_mechanism_goes_on_from_a_saved_memory(policy):
    plans = as_made([[plan(index)] for index in range(3)], policy)
    start, backend = ClipMemory.start(picture(1)), ClosedFormBackend()
    whole = [clip for (clip,) in rollout_batch(plans, start, backend=backend, policy=policy)]
    saved = ClipMemory.from_tensors(whole[0].memory.tensors())
    rest = [clip for (clip,) in rollout_batch(plans[1:], saved, backend=backend, policy=policy)]
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(rest, whole[1:], strict=True))


def test_frames_that_clips_share():
    geometry = ClosedFormBackend().geometry
    assert shared_frames(FILM, 0, begun=False, geometry=geometry) == (0, 0)
    assert shared_frames(FILM, 3, begun=True, geometry=geometry) == (5, 0)
    assert shared_frames(INVERTED, 3, begun=False, geometry=geometry) == (1, 0)
    assert shared_frames(INVERTED, 2, begun=True, geometry=geometry) == (1, 4)
    assert shared_frames(INVERTED, 0, begun=True, geometry=geometry) == (0, 4)


def test_an_endless_rollout_cannot_begin_at_its_end():
    with pytest.raises(UserError, match="inverted makes a video from its end"):
        next(rollout([plan(0)], ClipMemory.start(picture(1)), backend=ClosedFormBackend(), policy=INVERTED))


def test_a_memory_of_another_preset_has_no_ending(later_memory):
    assert ending(INVERTED, ClipMemory.start(picture(1))) is None
    assert ending(WAN, later_memory) is None
    with pytest.raises(ValueError, match="left no latents"):
        ending(INVERTED, replace(later_memory, latents=None))
