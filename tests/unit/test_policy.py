"""Each preset against the published facts, row by row."""

import dataclasses

import pytest

from svi.conditioning.policy import MECHANISMS, POLICIES, PRESETS, ConditioningPolicy, get_policy
from svi.errors import UserError
from svi.geometry import Geometry

WAN21, WAN22 = "Wan2.1-I2V-14B-480P", "Wan2.2-I2V-A14B"

# name: hand-off, motion frames, motion latents, padding (ref_pad_num), frames dropped where clips join, text scale,
# drive scale, drive, base, expert boundary, fps. Published where not said otherwise; the writers' 24 (1.0), 15 (Wan 2.2)
# and 25 (Dance) frames per second are not the model's 16.
PUBLISHED = {
    "wan": ("pixel", 1, 0, 0, 1, 5.0, None, None, WAN21, None, 16),
    "shot": ("pixel", 1, 0, -1, 1, 5.0, None, None, WAN21, None, 16),
    "film": ("pixel", 5, 0, 0, 5, 5.0, None, None, WAN21, None, 16),
    "film-transitions": ("pixel", 5, 0, 0, 5, 5.0, None, None, WAN21, None, 16),
    "film-opt": ("pixel", 5, 0, 0, 5, 5.0, None, None, WAN21, None, 16),
    "tom": ("pixel", 1, 0, 0, 1, 5.0, None, None, WAN21, None, 16),
    # Published Talk drops 0 frames and so shows one twice per seam; 1 is dropped here. Its audio has 25 steps a second.
    "talk": ("pixel", 1, 0, -1, 1, 2.0, 5.0, "audio", f"{WAN21} + MultiTalk", None, 25),
    "dance": ("pixel", 1, 0, -1, 1, 2.0, None, "pose", f"{WAN21} + UniAnimate-DiT", None, 16),
    "svi2-wan21": ("pixel", 5, 0, -1, 5, 5.0, None, None, WAN21, None, 16),
    "svi2-wan22": ("pixel", 1, 0, -1, 1, 5.0, None, None, WAN22, 0.875, 16),
    "pro": ("latent", 0, 1, 0, 5, 4.0, None, None, WAN22, 0.875, 16),
}


def test_every_member_of_the_family_has_a_row():
    assert set(PRESETS) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_preset_is_as_published(name):
    policy = PRESETS[name]
    row = (
        policy.hand_off,
        policy.motion_frames,
        policy.motion_latents,
        policy.reference_frames,
        policy.overlap,
        policy.guidance,
        policy.drive_guidance,
        policy.drive,
        policy.base,
        policy.expert_boundary,
        policy.fps,
    )
    assert row == PUBLISHED[name]
    assert policy.name == name
    assert policy.summary
    # What all of them share: 50 steps, shift 5, only the first frame flagged, noise of clip k seeded 42 * k.
    assert (policy.steps, policy.shift, policy.known, policy.seed_stride) == (50, 5.0, "first", 42)


CHANGED = {
    "noisy-history": {"history_noise"},
    "history-guidance": {"history_guidance"},
    "inverted": {"hand_off", "motion_frames", "motion_latents", "overlap"},
}


def test_a_mechanism_differs_from_the_plain_base_in_itself_alone():
    assert set(MECHANISMS) == set(CHANGED)
    assert not set(MECHANISMS) & set(PRESETS)
    plain = dataclasses.asdict(PRESETS["wan"])
    for name, policy in MECHANISMS.items():
        fields = dataclasses.asdict(policy)
        changed = {field for field, value in fields.items() if value != plain[field]}
        assert changed == CHANGED[name] | {"name", "summary"}
        assert get_policy(name) is policy


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_overlap_is_exactly_what_a_later_clip_renders_again(policy):
    rendered_again = policy.motion_frames
    if policy.hand_off != "pixel":  # anchor and motion latents decode to 1 + 4 frames
        rendered_again = Geometry().frames_of(1 + policy.motion_latents)
    assert policy.overlap == rendered_again


def test_image_feature():
    """Published: the first motion frame. Wan 2.2 reads none; the anchor's feature never changes within a run."""
    assert {name: policy.image_feature for name, policy in PRESETS.items() if policy.image_feature != "motion"} == {
        "pro": "reference"
    }


def test_unknown_preset_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'film'"):
        get_policy("flim")
    assert get_policy("film") is PRESETS["film"]


@pytest.mark.parametrize(
    "changes",
    [
        {"motion_frames": 0},
        {"motion_latents": 1},
        {"hand_off": "latent"},
        {"hand_off": "latent", "motion_frames": 0, "motion_latents": -1},
        {"hand_off": "latent", "motion_frames": 0, "reference_frames": -1},
        {"hand_off": "inverted"},
        {"hand_off": "inverted", "motion_frames": 0},
        {"hand_off": "inverted", "motion_frames": 0, "motion_latents": 1, "history_noise": 0.1},
        {"hand_off": "inverted", "motion_frames": 0, "motion_latents": 1, "history_guidance": 2.0},
        {"history_noise": 1.0},
        {"history_guidance": 2.0, "drive_guidance": 5.0},
        {"reference_frames": -2},
        {"overlap": -1},
    ],
    ids=str,
)
def test_contradictory_policies_are_refused(changes):
    with pytest.raises(ValueError, match="mine: "):
        ConditioningPolicy("mine", "", **changes)


def test_policies_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["film"].overlap = 4
