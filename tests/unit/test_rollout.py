"""Clip after clip with a model in closed form: continuity, laziness, stopping, and what is computed once."""

import itertools
from dataclasses import replace

import pytest
import torch
from closed_form import HEIGHT, NUM_FRAMES, WIDTH, ClosedFormBackend, picture

from svi.conditioning.encodings import Encodings
from svi.conditioning.memory import ClipMemory
from svi.conditioning.policy import PRESETS
from svi.generation.clip import ClipPlan
from svi.generation.rollout import Stopped, rollout, rollout_batch

TEXT_ONLY = [policy for policy in PRESETS.values() if policy.drive is None]


def plan(index, **changes):
    settings = dict(
        index=index,
        prompt="a ball",
        negative_prompt="blur",
        seed=42 * index,
        num_frames=NUM_FRAMES,
        height=HEIGHT,
        width=WIDTH,
        steps=3,
        guidance=2.0,
    )
    return ClipPlan(**{**settings, **changes})


def plans(count=None, **changes):
    return (plan(index, **changes) for index in (itertools.count() if count is None else range(count)))


def make(count, policy, memory=None, backend=None, **changes):
    """The first ``count`` clips of an endless rollout."""
    memory = memory or ClipMemory.start(picture(1))
    clips = rollout(plans(**changes), memory, backend=backend or ClosedFormBackend(), policy=policy)
    return list(itertools.islice(clips, count))


def same(left, right):
    return torch.equal(left.frames, right.frames) and torch.equal(left.latents, right.latents)


@pytest.mark.parametrize("policy", TEXT_ONLY, ids=lambda policy: policy.name)
def test_no_frame_is_doubled_or_lost(policy):
    clips = make(4, policy)
    assert [clip.overlap for clip in clips] == [0] + [policy.overlap] * 3
    assert sum(len(clip.new_frames) for clip in clips) == NUM_FRAMES + 3 * (NUM_FRAMES - policy.overlap)
    for clip in clips:
        assert clip.frames.dtype == torch.uint8
        assert clip.frames.shape == (NUM_FRAMES, HEIGHT, WIDTH, 3)
        assert clip.latents.shape == (1, 4, 5, HEIGHT // 8, WIDTH // 8)
        assert set(clip.timing) == {"condition_s", "denoise_s", "decode_s"}


@pytest.mark.parametrize("name", ["film", "pro"])
def test_each_clip_hands_over_what_the_next_one_continues(name):
    policy = PRESETS[name]
    for index, clip in enumerate(make(3, policy)):
        assert clip.memory.clip_index == index + 1
        if name == "film":
            assert torch.equal(clip.memory.frames[0], clip.frames[-5:])
            assert clip.memory.latents is None
        else:
            assert torch.equal(clip.memory.latents, clip.latents[:, :, -1:])


@pytest.mark.parametrize("policy", TEXT_ONLY, ids=lambda policy: policy.name)
def test_a_rollout_resumed_from_any_memory_gives_the_same_bytes(policy):
    whole = make(4, policy)
    for k in (1, 2, 3):
        saved = ClipMemory.from_tensors(whole[k - 1].memory.tensors())
        rest = rollout((plan(index) for index in range(k, 4)), saved, backend=ClosedFormBackend(), policy=policy)
        assert all(same(left, right) for left, right in zip(rest, whole[k:], strict=True))


@pytest.mark.parametrize("name", ["film", "shot", "pro"])
def test_videos_made_together_are_those_made_alone(name):
    policy, backend = PRESETS[name], ClosedFormBackend()
    prompts, pictures = ["a ball", "a cube", "a cone"], [picture(1), picture(2), picture(3)]
    alone = [
        make(3, policy, memory=ClipMemory.start(image), prompt=prompt)
        for image, prompt in zip(pictures, prompts, strict=True)
    ]
    groups = ([plan(index, prompt=prompt) for prompt in prompts] for index in range(3))
    memory = ClipMemory.start(torch.stack(pictures))
    together = list(rollout_batch(groups, memory, backend=backend, policy=policy))
    for video, clips in enumerate(alone):
        assert all(same(clip, made[video]) for clip, made in zip(clips, together, strict=True))


def test_videos_made_together_share_their_settings():
    memory = ClipMemory.start(torch.stack([picture(1), picture(2)]))
    for other in (plan(0, steps=4), plan(0, guidance=1.0), plan(1)):
        with pytest.raises(ValueError, match="may differ in prompt and seed only"):
            next(rollout_batch([[plan(0), other]], memory, backend=ClosedFormBackend(), policy=PRESETS["wan"]))
    with pytest.raises(ValueError, match=r"1 clip\(s\) are planned, but the memory holds 2"):
        next(rollout(plans(1), memory, backend=ClosedFormBackend(), policy=PRESETS["wan"]))


def test_clips_differ_by_seed_prompt_and_what_came_before():
    wan = PRESETS["wan"]
    first, second = make(2, wan)
    assert not same(first, second)
    assert not same(make(1, wan, prompt="a cube")[0], first)
    # The closed-form model forgets its noise; its second clip differs by its memory alone.
    assert not same(make(1, wan, memory=ClipMemory.start(picture(9)))[0], first)


def test_the_bytes_do_not_depend_on_a_shared_cache():
    backend = ClosedFormBackend()
    cache = Encodings(backend)
    runs = [
        list(rollout(plans(3), ClipMemory.start(picture(1)), backend=backend, policy=PRESETS["film"], encodings=cache))
        for _ in range(2)
    ]
    assert all(same(left, right) for left, right in zip(*runs, strict=True))


def test_pro_encodes_text_anchor_and_image_once_per_run():
    backend = ClosedFormBackend()
    cache = Encodings(backend)
    list(rollout(plans(20), ClipMemory.start(picture(1)), backend=backend, policy=PRESETS["pro"], encodings=cache))
    assert cache.calls == {"encode_text": 2, "encode_video": 1, "encode_image": 1}  # prompt and negative prompt


def test_pixel_hand_off_encodes_only_its_window_and_image_per_clip():
    backend = ClosedFormBackend()
    cache = Encodings(backend)
    story = (plan(index, prompt=f"scene {index // 5}") for index in range(20))
    list(rollout(story, ClipMemory.start(picture(1)), backend=backend, policy=PRESETS["shot"], encodings=cache))
    assert cache.calls["encode_text"] == 4 + 1  # each prompt once, however many clips it lasts, and the negative one
    assert cache.calls["encode_video"] == cache.calls["encode_image"] <= 20
    assert len(cache) <= cache.capacity


def test_guidance_one_encodes_no_negative_prompt_and_halves_the_forward_passes():
    backend = ClosedFormBackend()
    cache = Encodings(backend)
    quiet = plans(2, guidance=1.0)
    list(rollout(quiet, ClipMemory.start(picture(1)), backend=backend, policy=PRESETS["wan"], encodings=cache))
    assert cache.calls["encode_text"] == 1
    assert backend.forward_passes == 2 * 3


def test_a_plan_is_pulled_only_when_the_clip_before_it_was_taken():
    pulled = []

    def edited_live():
        for index in itertools.count():
            pulled.append(index)
            yield plan(index)

    clips = rollout(edited_live(), ClipMemory.start(picture(1)), backend=ClosedFormBackend(), policy=PRESETS["wan"])
    assert pulled == []
    next(clips)
    assert pulled == [0]
    next(clips)
    assert pulled == [0, 1]


def test_lora_strengths_are_set_when_they_change():
    backend = ClosedFormBackend()
    strengths = [{}, {}, {"a": 0.5}, {"a": 0.5}, {}, {"a": 1.0}]
    story = (plan(index, loras=loras) for index, loras in enumerate(strengths))
    list(rollout(story, ClipMemory.start(picture(1)), backend=backend, policy=PRESETS["wan"]))
    # Set for the first clip too: whoever used the backend before may have left others.
    assert backend.strengths == [{}, {"a": 0.5}, {}, {"a": 1.0}]


@pytest.mark.parametrize(
    ("stop_after", "clips_made", "steps_done"), [(0, 0, 0), (2, 0, 2), (3, 1, 3), (4, 1, 4), (7, 2, 7)]
)
def test_stopping(stop_after, clips_made, steps_done):
    """3 steps a clip: asked to stop in the middle of a clip, it is given up; at its last step, it is finished."""
    steps, made = [], []
    clips = rollout(
        plans(),
        ClipMemory.start(picture(1)),
        backend=ClosedFormBackend(),
        policy=PRESETS["film"],
        on_step=lambda step, total: steps.append((step, total)),
        should_stop=lambda: len(steps) >= stop_after,
    )
    with pytest.raises(Stopped):
        made.extend(clips)  # extend keeps what came before the exception
    assert len(made) == clips_made
    assert len(steps) == steps_done
    assert all(total == 3 for _, total in steps)


def test_stopped_between_clips_pulls_no_plan():
    pulled, stop = [], []

    def story():
        for index in itertools.count():
            pulled.append(index)
            yield plan(index)

    memory, backend = ClipMemory.start(picture(1)), ClosedFormBackend()
    clips = rollout(story(), memory, backend=backend, policy=PRESETS["wan"], should_stop=lambda: bool(stop))
    next(clips)
    stop.append(True)
    with pytest.raises(Stopped):
        next(clips)
    assert pulled == [0]


def test_frames_are_ordinary_tensors_and_memory_is_not_touched_by_editing_them():
    clip = make(1, PRESETS["pro"])[0]
    kept = clip.memory.latents.clone()
    clip.frames.zero_()
    clip.latents.zero_()
    assert torch.equal(clip.memory.latents, kept)
    assert not clip.memory.frames.eq(0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": WIDTH + 16}, "planned at 48x16, but the reference image is 32x16"),
        ({"num_frames": 18}, "the nearest is 17"),
        ({"solver": "nonsense"}, "unknown solver"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_plans_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(1, PRESETS["film"], **changes)


def test_a_clip_that_would_add_no_frame_is_refused():
    with pytest.raises(ValueError, match="clip 1 has 17 frames, and all of them overlap"):
        make(2, replace(PRESETS["wan"], overlap=17))


def test_driven_presets_say_what_they_lack():
    with pytest.raises(ValueError, match="dance is driven by pose"):
        make(1, PRESETS["dance"])
