"""The window, the cache of encodings, the memory and the condition that comes of them."""

from dataclasses import replace

import pytest
import torch
from closed_form import CHANNELS, HEIGHT, NUM_FRAMES, WIDTH, picture
from hypothesis import given
from hypothesis import strategies as st

from svi.conditioning.build import build
from svi.conditioning.encodings import Encodings
from svi.conditioning.memory import ClipMemory
from svi.conditioning.policy import PRESETS
from svi.conditioning.window import known_mask, padded_video, to_video

FILM, SHOT, PRO = PRESETS["film"], PRESETS["shot"], PRESETS["pro"]
LATENT_FRAMES = 5


@pytest.fixture
def encodings(backend):
    return Encodings(backend)


@pytest.fixture
def make(backend, encodings):
    """``build`` with everything that most tests do not vary."""

    def made(policy, memory, **changes):
        settings = dict(encodings=encodings, num_frames=NUM_FRAMES, geometry=backend.geometry)
        return build(policy, memory, backend.encode_text(["a ball"]), **{**settings, **changes})

    return made


# --- window ---------------------------------------------------------------------------------------------------------


def test_pixels_become_floats_as_published():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16, 1).expand(-1, -1, -1, -1, 3)
    published = levels.numpy().astype("float32") * (2 / 255) - 1
    video = to_video(levels)
    assert video.shape == (1, 3, 1, 16, 16)
    assert video.is_contiguous()
    assert torch.equal(video, torch.from_numpy(published).permute(0, 4, 1, 2, 3))
    back = ((video + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(back.permute(0, 2, 3, 4, 1), levels)


@pytest.mark.parametrize(("reference_frames", "shown"), [(0, 0), (3, 3), (12, 12), (-1, 12)])
def test_padding(reference_frames, shown):
    motion, reference = picture(1, 2, 5), picture(2, 2)
    video = padded_video(motion, reference, reference_frames, 17)
    assert torch.equal(video[:, :, :5], to_video(motion))
    assert torch.equal(video[:, :, 5 : 5 + shown], to_video(reference[:, None]).expand(-1, -1, shown, -1, -1))
    assert (video[:, :, 5 + shown :] == 0).all()
    assert video.shape == (2, 3, 17, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("motion", "reference_frames", "message"),
    [(17, 0, "nothing to generate"), (20, -1, "nothing to generate"), (5, 13, "do not fit in 17")],
)
def test_windows_that_cannot_be_filled_are_refused(motion, reference_frames, message):
    with pytest.raises(ValueError, match=message):
        padded_video(picture(1, 1, motion), picture(2, 1), reference_frames, 17)


def test_window_refuses_floats_and_other_sizes():
    with pytest.raises(ValueError, match="uint8"):
        to_video(torch.zeros(1, 1, 8, 8, 3))
    with pytest.raises(ValueError, match="does not fit"):
        padded_video(picture(1, 1, 1), picture(2, 1)[:, :8], 0, 17)


def published_mask(frames, latent_frames, known_frames):
    """Wan's recipe, written out: repeat the first frame four times, then group by four."""
    flags = torch.zeros(frames)
    flags[:known_frames] = 1
    repeated = torch.cat([flags[:1].repeat(4), flags[1:]])
    return repeated.view(latent_frames, 4).transpose(0, 1)


@given(latent_frames=st.integers(2, 21), data=st.data())
def test_mask_is_the_published_one(latent_frames, data):
    frames = 4 * latent_frames - 3
    known_frames = data.draw(st.integers(0, frames))
    mask = known_mask(known_frames, (2, latent_frames, 3, 2), 4)
    assert mask.shape == (2, 4, latent_frames, 3, 2)
    expected = published_mask(frames, latent_frames, known_frames)[None, :, :, None, None]
    assert torch.equal(mask, expected.expand_as(mask))


# --- pixel hand-off -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wan", "shot", "film", "tom", "svi2-wan21", "svi2-wan22"])
def test_pixel_hand_off(make, backend, later_memory, name):
    policy = PRESETS[name]
    condition = make(policy, later_memory)
    motion = later_memory.frames[:, -policy.motion_frames :]
    video = padded_video(motion, later_memory.reference, policy.reference_frames, NUM_FRAMES)
    assert torch.equal(condition.values, backend.encode_video(video))
    assert torch.equal(condition.known, known_mask(1, (1, LATENT_FRAMES, HEIGHT // 8, WIDTH // 8), 4))
    assert torch.equal(condition.image, backend.encode_image(to_video(motion)[:, :, 0]))
    assert torch.equal(condition.text, backend.encode_text(["a ball"]))


def test_values_and_mask_are_independent(make, later_memory):
    """Film gives five frames and flags one; the variant that flags all has the same values."""
    one, all_five = make(FILM, later_memory), make(replace(FILM, known="motion"), later_memory)
    assert torch.equal(one.values, all_five.values)
    assert one.known.sum() == 4 * HEIGHT // 8 * WIDTH // 8
    assert all_five.known[0, :, :, 0, 0].T.tolist() == [[1] * 4, [1] * 4] + [[0] * 4] * 3


def test_first_clip_of_film_has_one_frame_as_published(make, backend, first_memory):
    condition = make(replace(FILM, known="motion"), first_memory)
    video = padded_video(first_memory.reference[:, None], first_memory.reference, 0, NUM_FRAMES)
    assert torch.equal(condition.values, backend.encode_video(video))
    assert torch.equal(condition.known, known_mask(1, (1, LATENT_FRAMES, HEIGHT // 8, WIDTH // 8), 4))


def test_image_feature_of_the_reference_and_of_nothing(make, backend, later_memory):
    reference = make(replace(SHOT, image_feature="reference"), later_memory).image
    assert torch.equal(reference, backend.encode_image(to_video(later_memory.reference[:, None])[:, :, 0]))
    assert make(replace(SHOT, image_feature=None), later_memory).image is None


def test_batches_are_built_as_single_clips_are(make, backend, encodings):
    """Training builds many conditions at once; generation one. They must agree."""
    for policy in (FILM, SHOT, PRO):
        latents = torch.randn(3, CHANNELS, 1, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(5))
        batch = ClipMemory(picture(1, 3), picture(2, 3, 5), latents, clip_index=1)
        together = make(policy, batch)
        assert together.text.shape[0] == 3
        for index in range(3):
            part = slice(index, index + 1)
            alone = make(policy, ClipMemory(batch.reference[part], batch.frames[part], latents[part], 1))
            assert torch.equal(together.values[part], alone.values)
            assert torch.equal(together.known[part], alone.known)
            assert torch.equal(together.image[part], alone.image)


# --- latent hand-off ------------------------------------------------------------------------------------------------


def test_first_clip_of_pro_is_the_anchor_and_literal_zeros(make, backend, first_memory):
    condition = make(PRO, first_memory)
    anchor = backend.encode_video(to_video(first_memory.reference[:, None]))
    assert torch.equal(condition.values[:, :, :1], anchor)
    assert (condition.values[:, :, 1:] == 0).all()
    assert condition.known[:, :, 0].eq(1).all()
    assert condition.known[:, :, 1:].eq(0).all()


def test_later_clips_of_pro_carry_the_last_latent_unflagged(make, backend, later_memory):
    condition = make(PRO, later_memory)
    anchor = backend.encode_video(to_video(later_memory.reference[:, None]))
    assert torch.equal(condition.values[:, :, :1], anchor)
    assert torch.equal(condition.values[:, :, 1:2], later_memory.latents[:, :, -1:])
    assert (condition.values[:, :, 2:] == 0).all()
    assert condition.known[:, :, 1:].eq(0).all()


def test_pro_without_motion_latents_falls_back_to_the_anchor(make, later_memory, first_memory):
    alone = make(replace(PRO, motion_latents=0), later_memory)
    assert torch.equal(alone.values, make(PRO, first_memory).values)


def test_latent_hand_off_that_flags_all_it_gives(make, later_memory):
    condition = make(replace(PRO, motion_latents=2, known="motion"), later_memory)
    assert condition.known[0, :, :, 0, 0].T.tolist() == [[1] * 4] * 3 + [[0] * 4] * 2


# --- errors ---------------------------------------------------------------------------------------------------------


def test_memory_of_another_preset_is_refused(make, later_memory):
    with pytest.raises(ValueError, match="film continues from 5 frames, but clip 0 left 1"):
        make(FILM, replace(later_memory, frames=later_memory.frames[:, :1]))
    with pytest.raises(ValueError, match="pro continues from 1 latent frames, but clip 0 left 0"):
        make(PRO, replace(later_memory, latents=None))


def test_windows_too_short_are_refused(make, later_memory):
    with pytest.raises(ValueError, match="nothing to generate"):
        make(FILM, later_memory, num_frames=5)
    with pytest.raises(ValueError, match="make the clip longer"):
        make(PRO, later_memory, num_frames=5)
    with pytest.raises(ValueError, match="the nearest is 17"):
        make(FILM, later_memory, num_frames=18)


def test_a_missing_drive_is_refused(make, later_memory):
    with pytest.raises(ValueError, match="talk is driven by audio"):
        make(PRESETS["talk"], later_memory)
    audio = torch.ones(1, 17, 3)
    assert make(PRESETS["talk"], later_memory, drive={"audio": audio}).drive["audio"] is audio


def test_a_reference_of_the_wrong_size_names_the_nearest(make, later_memory):
    cropped = replace(later_memory, reference=later_memory.reference[:, :, :20])
    with pytest.raises(ValueError, match="the nearest is 16x16"):
        make(SHOT, cropped)


# --- encodings ------------------------------------------------------------------------------------------------------


def test_what_was_encoded_is_not_encoded_again(backend, encodings):
    frames = picture(4, 1)
    first = encodings.text(["a", "b"]), encodings.image(frames), encodings.anchor(frames)
    window = encodings.window(frames[:, None], frames, -1, 17)
    again = encodings.text(["a", "b"]), encodings.image(frames.clone()), encodings.anchor(frames.clone())
    assert all(torch.equal(left, right) for left, right in zip(first, again, strict=True))
    assert encodings.window(frames.clone()[:, None], frames, -1, 17) is window
    assert encodings.calls == {"encode_text": 2, "encode_image": 1, "encode_video": 2}


def test_other_content_or_settings_miss(encodings):
    frames = picture(4, 1)
    settings = [(frames, -1, 17), (frames, 0, 17), (frames, 3, 17), (frames, -1, 13), (picture(5, 1), -1, 17)]
    windows = [encodings.window(one[:, None], frames, pad, length) for one, pad, length in settings]
    assert encodings.calls["encode_video"] == len(windows)
    encodings.window(frames[:, None], picture(6, 1), -1, 17)  # another reference, same motion
    assert encodings.calls["encode_video"] == len(windows) + 1
    encodings.window(frames[:, None], picture(6, 1), 0, 17)  # a reference that is not shown does not count
    assert encodings.calls["encode_video"] == len(windows) + 1


def test_cache_is_bounded_and_keeps_what_is_in_use(backend):
    encodings = Encodings(backend, capacity=3)
    for index in range(50):
        encodings.text(["always"])
        encodings.text([f"prompt {index}"])
        assert len(encodings) <= 3
    assert encodings.calls["encode_text"] == 51


def test_capacity_zero_computes_always(backend):
    encodings = Encodings(backend, capacity=0)
    assert torch.equal(encodings.text(["a"]), encodings.text(["a"]))
    assert encodings.calls["encode_text"] == 2
    assert len(encodings) == 0
    with pytest.raises(ValueError, match="capacity"):
        Encodings(backend, capacity=-1)


def test_a_model_without_image_branch_is_asked_once(backend):
    backend.encode_image = lambda images: None
    encodings = Encodings(backend)
    assert encodings.image(picture(1, 1)) is None
    assert encodings.image(picture(1, 1)) is None
    assert encodings.calls["encode_image"] == 1


def test_a_bare_string_is_not_a_list_of_prompts(encodings):
    with pytest.raises(ValueError, match="sequence"):
        encodings.text("a ball")
    with pytest.raises(ValueError, match="non-empty"):
        encodings.text([])


def test_cached_tensors_can_be_trained_on(backend):
    encodings = Encodings(backend)
    with torch.inference_mode():
        encodings.text(["a"])
        encodings.anchor(picture(1, 1))
    weight = torch.ones((), requires_grad=True)
    ((encodings.text(["a"]) * weight).sum() + (encodings.anchor(picture(1, 1)) * weight).sum()).backward()
    assert weight.grad is not None


# --- memory ---------------------------------------------------------------------------------------------------------


def test_memory_starts_from_one_image():
    image = picture(1)
    memory = ClipMemory.start(image)
    assert torch.equal(memory.reference, image[None])
    assert torch.equal(memory.frames, image[None, None])
    assert memory.latents is None
    assert memory.clip_index == 0
    for wrong in (image.float(), image[0], image[..., :2]):
        with pytest.raises(ValueError, match="reference must be uint8"):
            ClipMemory.start(wrong)


@pytest.mark.parametrize("policy", PRESETS.values(), ids=PRESETS)
def test_memory_keeps_what_the_policy_carries_and_owns_it(policy, first_memory):
    frames, latents = picture(2, 1, NUM_FRAMES), torch.randn(1, 4, 5, 2, 4, generator=torch.Generator().manual_seed(1))
    memory = first_memory.update(frames, latents, policy)
    assert torch.equal(memory.frames, frames[:, -max(1, policy.motion_frames) :])
    assert (memory.latents is None) == (policy.motion_latents == 0)
    assert memory.latents is None or torch.equal(memory.latents, latents[:, :, -policy.motion_latents :])
    assert memory.clip_index == 1
    assert torch.equal(memory.reference, first_memory.reference)
    # A view would keep the whole clip alive, and an endless run would grow.
    assert memory.frames.untyped_storage().nbytes() == memory.frames.numel()


@pytest.mark.parametrize("with_latents", [True, False])
def test_memory_survives_being_saved(later_memory, with_latents):
    memory = later_memory if with_latents else replace(later_memory, latents=None)
    restored = ClipMemory.from_tensors(memory.tensors())
    assert restored.clip_index == memory.clip_index
    assert torch.equal(restored.frames, memory.frames)
    assert torch.equal(restored.reference, memory.reference)
    assert (restored.latents is None) != with_latents
    assert not with_latents or torch.equal(restored.latents, memory.latents)
