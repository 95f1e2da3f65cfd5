"""Trainings of the pocket model: the published recipes in miniature, for two CPU cores.

What differs from the published ones is named in ``sources``, with the reason; the experiments behind it are in docs/log.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from svi.training.config import Loop, Lora, Loss, Model, Optimizer, TrainingConfig
from svi.training.recipes import RECIPES

MODEL = Model(name="pocket", gradient_checkpointing=False)
SMALL = (
    "pocket: rank 32, batches of 16 and stratified noise levels (a step costs half a second, not half a minute)",
    "pocket: lr 5e-4: some thousand steps have to do",
)


# Latent frames that get an image error: those that a preset hands over. Published are 3 of 21 for all 1.0 presets; a pocket
# clip has 5, and 3 of them would leave little of an anchor to go by.
HANDED_OVER = {"shot": 1, "film": 2, "svi2": 2, "pro": 1}


def _pocket(name: str, published: str) -> TrainingConfig:
    base, frames = RECIPES[published](), HANDED_OVER[name]
    return base.model_copy(
        update={
            "recipe": f"pocket-{name}",
            "sources": (
                f"recipe {published}",
                *SMALL,
                f"pocket: image error on {frames} of 5 latents [script: 3 of 21]",
            ),
            "model": MODEL,
            "lora": Lora(rank=32, alpha=32.0),
            "data": base.data.model_copy(
                update={"source": "pocket-world", "preset": base.data.preset, "batch_size": 16, "clips": 2048}
            ),
            "recycling": replace(base.recycling, image_error_frames=frames),
            "loss": Loss(density="stratified"),
            "optimizer": Optimizer(lr=5e-4, warmup_steps=50, schedule="cosine"),
            "loop": Loop(steps=1500, save_every=250, validate_every=500),
        }
    )


def pocket_shot() -> TrainingConfig:
    """One scene for ever."""
    return _pocket("shot", "shot")


def pocket_film() -> TrainingConfig:
    """A story on five motion frames, without an anchor."""
    return _pocket("film", "film-opt")


def pocket_svi2() -> TrainingConfig:
    """Five motion frames and an anchor from outside the window."""
    return _pocket("svi2", "svi2-wan21")


def pocket_pro() -> TrainingConfig:
    """Anchor latent and last latent."""
    return _pocket("pro", "pro")


POCKET_RECIPES: dict[str, Callable[[], TrainingConfig]] = {
    recipe().recipe: recipe for recipe in (pocket_shot, pocket_film, pocket_svi2, pocket_pro)
}
