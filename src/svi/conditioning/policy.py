"""How clips hand over to one another: one row of ``PRESETS`` per member of the SVI family.

``MECHANISMS`` has a row per mechanism that the family is compared with. Data, no behaviour: ``build.py``, ``memory.py`` and
the rollout read these fields, and nothing else in the project branches on a preset's name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from svi.errors import UserError, nearest


@dataclass(frozen=True)
class ConditioningPolicy:
    """One way to condition a clip on what came before.

    Attributes:
        name: key in ``PRESETS`` or ``MECHANISMS``.
        summary: one line for users.
        hand_off: ``pixel`` (last decoded frames, encoded again by the VAE) or ``latent`` (last latents, no VAE round trip);
            ``inverted``: clips are made from the last to the first, each begins at the reference and ends in the first
            latents of the clip that comes after it in the video, which is made already.
        motion_frames: frames carried over by pixel hand-off.
        motion_latents: latent frames carried over by latent and inverted hand-off.
        reference_frames: what fills the window after the motion frames (published name ``ref_pad_num``): -1 = the
            reference image repeated, 0 = grey frames (zeros in [-1, 1]), k > 0 = k reference frames, then grey. Not with
            latent hand-off.
        history_noise: noise level in [0, 1) of what is carried over from a made clip: noise is added to its latents, which are
            not scaled; 0 = none. The user's own image stays clean, as an anchor and as the start of the first clip.
        history_guidance: scale of guidance towards what is carried over (Song et al. 2025), a third evaluation per step;
            None or 1 = none.
        known: which given frames the mask flags: the ``first`` frame of the window, or all ``motion`` frames.
        overlap: frames of a clip that its neighbours show as well, dropped when joining: at the front of a later clip, which
            re-renders what the earlier one showed; with inverted hand-off those of the later clip at its end, and the
            reference at its front.
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
    hand_off: Literal["pixel", "latent", "inverted"] = "pixel"
    motion_frames: int = 1
    motion_latents: int = 0
    reference_frames: int = 0
    history_noise: float = 0.0
    history_guidance: float | None = None
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
        if self.hand_off == "inverted" and (self.motion_frames or self.motion_latents < 1):
            raise ValueError(
                f"{self.name}: inverted hand-off ends in at least one latent, and carries no motion frames"
            )
        if self.hand_off == "inverted" and (self.history_noise or self.history_guidance is not None):
            raise ValueError(
                f"{self.name}: inverted hand-off carries the future: there is no history to noise or guide"
            )
        if not 0 <= self.history_noise < 1:
            raise ValueError(f"{self.name}: history_noise is a noise level in [0, 1), not {self.history_noise}")
        if self.history_guidance is not None and self.drive_guidance is not None:
            raise ValueError(f"{self.name}: only one of history and drive is guided beside the text")
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

# Mechanisms of the methods that the paper compares with (Table 1), each alone on the plain base: all but one field is as in
# ``wan``, so that nothing else differs. Not those methods: their networks were trained for it, this one was not. The
# fourth mechanism, padding with an anchor, is ``shot`` without its LoRA.

# Noise-augmented history: SkyReels-V2 diffusion forcing carries over latents at noise level 20 of 1000
# (``addnoise_condition=20``, its recommendation for long video). Its model is told so; an image-to-video base cannot be, so
# the noise is added at that signal-to-noise ratio without scaling the picture down.
_NOISY_HISTORY = replace(
    _WAN, name="noisy-history", summary="as wan, with noise on the frame carried over", history_noise=0.02
)

# Vanilla history guidance (Song et al. 2025, arXiv 2502.06764). Their model was trained with missing history; this base never
# was: it is told that nothing is given, as it is told of every frame to be made (grey, not flagged). 1.5 is our choice.
_HISTORY_GUIDANCE = replace(
    _WAN,
    name="history-guidance",
    summary="as wan, guided towards the frame carried over",
    history_guidance=1.5,
)

# Inverted anti-drifting order (FramePack, Zhang & Agrawala 2025, arXiv 2504.12626): the end of the video is made first, each
# section sees the user's image, and the section after it. Its model reads both at their distance in time. This base knows a
# first frame only, so each section begins at the user's image (and that frame is dropped), and its last latent is held
# on that of the section after it while sampling, which needs no training. So sections circle around the image.
_INVERTED = replace(
    _WAN,
    name="inverted",
    summary="from the last clip to the first, each between the image and its successor",
    hand_off="inverted",
    motion_frames=0,
    motion_latents=1,
    overlap=5,
)

MECHANISMS: dict[str, ConditioningPolicy] = {
    policy.name: policy for policy in (_NOISY_HISTORY, _HISTORY_GUIDANCE, _INVERTED)
}
POLICIES: dict[str, ConditioningPolicy] = {**PRESETS, **MECHANISMS}
"""Everything that can be asked for by name."""


def get_policy(name: str) -> ConditioningPolicy:
    """The preset or mechanism of that name.

    Raises:
        UserError: for a name that is neither; the message names the nearest.
    """
    if name not in POLICIES:
        raise UserError(f"unknown preset {name!r}: {nearest(name, POLICIES)}")
    return POLICIES[name]
