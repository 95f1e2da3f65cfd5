"""The published trainings, one function each, value for value, with what contradicts them.

``[script]`` is a training script of the 1.0 release, ``[default]`` the default of its program where the script is
silent, ``[paper]`` table 9 of the paper, ``[2.0]`` what the 2.0 release says. Where they disagree, the recipe takes what the
published weights were made with (the script) and names the rest in ``sources``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from svi.recycling import RecyclingConfig
from svi.training.config import Data, Loop, Model, Optimizer, TrainingConfig

WAN21 = Model(name="Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", offload_activations=True)
WAN22 = Model(name="Wan-AI/Wan2.2-I2V-A14B-Diffusers", expert="high", offload_activations=True)
MIXKIT_STEPS = 6_000 * 10  # [paper] ten epochs over 6K videos, one clip per step and process
LR_NOTE = "lr 1e-4 [script]; 2e-5 [paper]"
WARMUP_NOTE = "bank warm-up 50 steps [script]; 20 [paper]"
MOTION_NOTE = "motion frames in 0.9 of clips [default]; 0.95 [paper]"


def shot() -> TrainingConfig:
    """One scene for ever, held by its reference image (svi_shot.sh)."""
    return TrainingConfig(
        recipe="shot",
        sources=(
            "svi_shot.sh [script]",
            LR_NOTE,
            WARMUP_NOTE,
            "clean 0.2 [script]; 0.5 [paper]",
            "image error on 3 latents though one motion frame fills one: errors also lie on two latents of padding [script]",
        ),
        model=WAN21,
        data=Data(source="data/train", preset="shot"),
        recycling=RecyclingConfig(clean_prob=0.2, image_error_frames=3),
        optimizer=Optimizer(lr=1e-4, weight_decay=0.01),
        loop=Loop(steps=MIXKIT_STEPS, validate_every=1000, validation_items=2),
    )


def film() -> TrainingConfig:
    """A story of many scenes on five motion frames (svi_film.sh)."""
    base = shot()
    return base.model_copy(
        update={
            "recipe": "film",
            "sources": (
                "svi_film.sh [script]",
                LR_NOTE,
                WARMUP_NOTE,
                MOTION_NOTE,
                "the first film weights banked the errors of every clean sample; film-opt 0.1 of them [DevLog]",
            ),
            "data": Data(source="data/train", preset="film"),
            "recycling": RecyclingConfig(clean_prob=0.5, image_error_frames=3, clean_buffer_update_prob=1.0),
        }
    )


def film_opt() -> TrainingConfig:
    """Film with a cleaner bank: errors of clean samples enter it with probability 0.1 (svi-film-opt-10212025)."""
    base = film()
    return base.model_copy(
        update={
            "recipe": "film-opt",
            "sources": ("svi_film.sh [script], which has this value already", *base.sources[1:4]),
            "data": base.data.model_copy(update={"preset": "film-opt"}),
            "recycling": replace(base.recycling, clean_buffer_update_prob=0.1),
        }
    )


def film_transitions() -> TrainingConfig:
    """Film for cuts between scenes. No script was published; only the data differs, as far as is known."""
    base = film()
    return base.model_copy(
        update={
            "recipe": "film-transitions",
            "sources": ("no script published: film's values", *base.sources[1:]),
            "data": base.data.model_copy(update={"preset": "film-transitions"}),
        }
    )


def tom() -> TrainingConfig:
    """A cartoon of many scenes: one motion frame, no anchor. No script was published: film's values on one frame."""
    base = film()
    return base.model_copy(
        update={
            "recipe": "tom",
            "sources": (
                "no script published: film's values with the conditioning of svi_tom.sh (test)",
                *base.sources[1:],
            ),
            "data": base.data.model_copy(update={"preset": "tom"}),
        }
    )


def svi2_wan21() -> TrainingConfig:
    """SVI 2.0 on Wan 2.1: five motion frames and an anchor from outside the window."""
    base = shot()
    return base.model_copy(
        update={
            "recipe": "svi2-wan21",
            "sources": (
                "no script published: shot's values [script]",
                "the anchor never lies in the generated window [2.0]",
                "five motion frames or one [2.0]: a tenth of the clips start from one",
                LR_NOTE,
                WARMUP_NOTE,
            ),
            "data": Data(source="data/train", preset="svi2-wan21"),
        }
    )


def svi2_wan22() -> TrainingConfig:
    """SVI 2.0 on one expert of Wan 2.2; train ``model.expert=high`` and ``low`` apart."""
    base = svi2_wan21()
    return base.model_copy(
        update={
            "recipe": "svi2-wan22",
            "sources": (
                "no script published: shot's values [script]",
                "high and low are trained apart [2.0]; they change at 0.875 [2.0], 0.9 in Wan's configuration",
                "the anchor never lies in the generated window [2.0]",
                LR_NOTE,
            ),
            "model": WAN22,
            "data": Data(source="data/train", preset="svi2-wan22"),
        }
    )


def pro() -> TrainingConfig:
    """SVI 2.0 Pro on one expert of Wan 2.2: anchor latent, last latent, no trip through the VAE."""
    base = svi2_wan22()
    return base.model_copy(
        update={
            "recipe": "pro",
            "sources": (
                "training code never published: values of svi2-wan22, conditioning of wan_video_svi_pro.py [2.0]",
                *base.sources[1:],
            ),
            "data": Data(source="data/train", preset="pro"),
            # behind the anchor latent lies the motion latent: the one that carries errors from clip to clip
            "recycling": RecyclingConfig(clean_prob=0.2, image_error_frames=1, image_error_start=1),
        }
    )


RECIPES: dict[str, Callable[[], TrainingConfig]] = {
    recipe().recipe: recipe for recipe in (shot, film, film_opt, film_transitions, tom, svi2_wan21, svi2_wan22, pro)
}
