"""How clips hand over to one another: one row of ``PRESETS`` per member of the SVI family.

Data, no behaviour: ``build.py`` and ``memory.py`` read these fields, and nothing else in the project branches on
a preset's name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from svi.errors import UserError, nearest


@dataclass(frozen=True)
class ConditioningPolicy:
    """One way to condition a clip on what came before.

    Attributes:
        name: key in ``PRESETS``.
        summary: one line for users.
        hand_off: ``pixel`` (last decoded frames, encoded again by the VAE) or ``latent`` (last latents, no VAE round trip).
        motion_frames: frames carried over by pixel hand-off.
        motion_latents: latent frames carried over by latent hand-off.
        reference_frames: what fills the window after the motion frames (published name ``ref_pad_num``): -1 = the
            reference image repeated, 0 = grey frames (zeros in [-1, 1]), k > 0 = k reference frames, then grey. Pixel hand-off only.
        known: which given frames the mask flags: the ``first`` frame of the window, or all ``motion`` frames.
        overlap: frames at the front of a later clip that re-render what the earlier clip already showed; dropped when joining.
        image_feature: frame whose CLIP feature conditions the clip, on a model that has an image branch: the first
            ``motion`` frame, or the ``reference``; None = no feature at all.
        base: model the member was trained on.
        drive: driving signal the member needs beside text.
        steps, guidance, shift: published sampling settings; ``guidance`` is the text scale.
        drive_guidance: scale of the driving signal in three-way guidance (Talk); None = the drive stays in all branches.
        fps: frames per second of the trained model (not the published writer's 24, which plays 1.5 times too fast).
        expert_boundary: sigma at which the high-noise expert hands over to the low-noise one (Wan 2.2).
        seed_stride: noise of clip k is seeded ``seed + seed_stride * k``.
    """

    name: str
    summary: str
    hand_off: Literal["pixel", "latent"] = "pixel"
    motion_frames: int = 1
    motion_latents: int = 0
    reference_frames: int = 0
    known: Literal["first", "motion"] = "first"
    overlap: int = 1
    image_feature: Literal["motion", "reference"] | None = "motion"
    base: str = "Wan2.1-I2V-14B-480P"
    drive: Literal["audio", "pose"] | None = None
    steps: int = 50
    guidance: float = 5.0
    drive_guidance: float | None = None
    shift: float = 5.0
    fps: int = 16
    expert_boundary: float | None = None
    seed_stride: int = 42

    def __post_init__(self) -> None:
        if self.hand_off == "pixel" and (self.motion_frames < 1 or self.motion_latents):
            raise ValueError(f"{self.name}: pixel hand-off carries at least one frame, and no latents")
        if self.hand_off == "latent" and (self.motion_frames or self.motion_latents < 0 or self.reference_frames):
            raise ValueError(
                f"{self.name}: latent hand-off carries latents; it has no motion frames and no padding frames"
            )
        if self.reference_frames < -1:
            raise ValueError(f"{self.name}: reference_frames is -1 (all), 0 or a number, not {self.reference_frames}")
        if self.overlap < 0:
            raise ValueError(f"{self.name}: overlap must not be negative, not {self.overlap}")


# Sources: [1.0] the published code at 34e4c50 (test_svi*.py, scripts/test/*.sh, diffsynth/pipelines/svi_video*.py);
# [2.0] its branch svi_wan22 (docs/svi/svi_2.0_pro.md, wan_video_svi*.py) and scripts/test/svi_2.0.sh.
# All: 50 steps of Euler at shift 5, mask on the first frame only, noise of clip k seeded 42 * k.

# Plain image-to-video, chained by its last frame: the baseline that drifts. It samples as the SVI presets do, so that
# they compare; Wan's own scripts take 40 steps at shift 3.
_WAN = ConditioningPolicy("wan", "plain image-to-video, chained by its last frame: the baseline that drifts")

# [1.0] svi_shot.sh: --num_motion_frames 1 --ref_pad_num -1 --cfg_scale_text 5.0; svi-shot.safetensors; written at 24 fps.
_SHOT = ConditioningPolicy(
    "shot", "one endless scene: last frame, then the reference image as anchor", reference_frames=-1
)

# [1.0] svi_film.sh: --num_motion_frames 5 --ref_pad_num 0 --cfg_scale_text 5.0; svi-film.safetensors; written at 24 fps.
# Five frames are given, one is flagged (ref_pad_cfg off).
_FILM = ConditioningPolicy("film", "a story in many scenes: last five frames, no anchor", motion_frames=5, overlap=5)

# [1.0] test_svi_talk.py: m = 1, ref_pad_num -1, text 2.0, audio 5.0, 50 steps whatever --num_steps says.
# Published code drops nothing where clips join, and so shows one frame twice per seam; here 1 is dropped. MultiTalk
# gives each frame the features of one step of audio at 25 steps per second, so 25 fps is right for it.
_TALK = ConditioningPolicy(
    "talk",
    "a talking person, driven by audio",
    reference_frames=-1,
    base="Wan2.1-I2V-14B-480P + MultiTalk",
    drive="audio",
    guidance=2.0,
    drive_guidance=5.0,
    fps=25,
)

# [1.0] svi_dance.sh: m = 1, ref_pad_num -1, text 2.0, the negative branch keeps the pose; written at 25 fps.
_DANCE = ConditioningPolicy(
    "dance",
    "a dancing person, driven by a skeleton",
    reference_frames=-1,
    base="Wan2.1-I2V-14B-480P + UniAnimate-DiT",
    drive="pose",
    guidance=2.0,
)

# [2.0] scripts/test/svi_2.0.sh: 5 motion frames (1 works too), --ref_pad_num -1, cfg 5; written at 24 fps.
_SVI2_WAN21 = ConditioningPolicy(
    "svi2-wan21",
    "SVI 2.0: last five frames, then the reference image as anchor",
    motion_frames=5,
    reference_frames=-1,
    overlap=5,
)

# [2.0] wan_video_svi.py: as shot, on two experts that change at 0.875 (Wan's own configuration: 0.9); cfg 5.0; written
# at 15 fps. Wan 2.2 has no image branch, so no CLIP feature reaches it; a base that has one gets what shot gives it.
_SVI2_WAN22 = ConditioningPolicy(
    "svi2-wan22",
    "SVI 2.0 for Wan 2.2: last frame, then the reference image as anchor",
    reference_frames=-1,
    base="Wan2.2-I2V-A14B",
    expert_boundary=0.875,
)

# [2.0] wan_video_svi_pro.py: anchor latent, last latent, zeros of the normalised latent space; cfg 4.0 and 5 frames of
# overlap are the README's command (the code's defaults are 5.0 and 4, but anchor and motion latent decode to 1 + 4
# frames, so 4 leaves one frame doubled); written at 15 fps. Wan 2.2 has no image branch; a base that has one gets the
# feature of the anchor, which costs one encoding per run.
_PRO = ConditioningPolicy(
    "pro",
    "SVI 2.0 Pro: anchor latent and last latent, never through the VAE",
    hand_off="latent",
    motion_frames=0,
    motion_latents=1,
    overlap=5,
    image_feature="reference",
    base="Wan2.2-I2V-A14B",
    guidance=4.0,
    expert_boundary=0.875,
)

PRESETS: dict[str, ConditioningPolicy] = {
    policy.name: policy
    for policy in (
        _WAN,
        _SHOT,
        _FILM,
        # [1.0] svi-film-transitions and svi-film-opt-10212025: other LoRAs, conditioned as film is.
        replace(_FILM, name="film-transitions", summary="film, trained for cuts and transitions between scenes"),
        replace(_FILM, name="film-opt", summary="film, trained with a cleaner error bank"),
        # [1.0] svi_tom.sh: --num_motion_frames 1 --ref_pad_num 0 --cfg_scale_text 5.0; svi-tom.safetensors; written at 24 fps.
        replace(_WAN, name="tom", summary="a cartoon of many scenes: last frame, no anchor"),
        _TALK,
        _DANCE,
        _SVI2_WAN21,
        _SVI2_WAN22,
        _PRO,
    )
}


def get_policy(name: str) -> ConditioningPolicy:
    """The preset of that name.

    Raises:
        UserError: for a name that is no preset; the message names the nearest.
    """
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}: {nearest(name, PRESETS)}")
    return PRESETS[name]
