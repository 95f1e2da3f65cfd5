"""A whole fine-tuning, from a configuration to a LoRA: model, encoded clips, trainer, and a folder that holds it all.

The run folder: ``config.yaml``, ``environment.json``, ``cache`` (encoded clips, unless they lie elsewhere), ``checkpoints``,
``log.jsonl``, ``validation`` (contact sheets), ``lora.safetensors``. The same call in the same folder goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from svi.backends.wan import WanBackend, load_backend
from svi.conditioning.policy import get_policy
from svi.data.dataset import CachedDataset, Dataset
from svi.data.encode import EncodeConfig, Progress, cache_settings, encode, encoder_files, has_image_branch
from svi.data.endless import EndlessSource
from svi.data.ingest import VideoSource, WindowSource
from svi.data.manifest import load_manifest
from svi.data.windows import published_rule
from svi.errors import UserError
from svi.generation.events import Listener, silent
from svi.geometry import Geometry
from svi.pocket.clips import PocketClips
from svi.pocket.recipes import POCKET_RECIPES
from svi.pocket.train_vae import HELD_OUT
from svi.training.config import TrainingConfig, load_config
from svi.training.events import Note
from svi.training.recipes import RECIPES
from svi.training.record import environment
from svi.training.trainer import Finished, Trainer
from svi.training.validate import MiniRollout, reference_windows

ALL_RECIPES = {**RECIPES, **POCKET_RECIPES}
POCKET_WORLD = "pocket-world"


@dataclass(frozen=True)
class Places:
    """Where the parts of a fine-tuning lie."""

    folder: Path

    @property
    def config(self) -> Path:
        """The complete configuration."""
        return self.folder / "config.yaml"

    @property
    def cache(self) -> Path:
        """Encoded clips."""
        return self.folder / "cache"


def windows(config: TrainingConfig, geometry: Geometry, *, held_out: bool = False) -> WindowSource:
    """The clips that a configuration trains on, not yet encoded; ``held_out``: those it is looked at with.

    Raises:
        UserError: for a source that is not there or has nothing usable.
    """
    data, policy = config.data, get_policy(config.data.preset)
    rule = published_rule(policy, seed=config.loop.seed)
    if data.reference is not None:
        rule = replace(rule, reference=data.reference)
    if data.first_clip_prob is not None:
        rule = replace(rule, first_clip_prob=data.first_clip_prob)
    if data.source == POCKET_WORLD:
        count, start = (config.loop.validation_worlds, HELD_OUT) if held_out else (data.clips, 0)
        return EndlessSource(PocketClips(geometry.fps), geometry, policy, rule, count=count, start=start)
    return VideoSource(load_manifest(data.source), geometry, policy, rule)


def fine_tune(
    config: TrainingConfig,
    folder: Path | str,
    *,
    device: str | None = None,
    allow_download: bool = False,
    listener: Listener = silent,
    on_encode: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Finished:
    """Train the LoRA that ``config`` describes in ``folder``, or go on with it.

    In several processes (torchrun, ``accelerate launch``) each calls this with the same arguments.

    Args:
        config: from :func:`svi.training.config.load_config`.
        folder: run folder.
        device: left out, the best there is.
        allow_download: whether a hub model that is not here may be fetched.
        listener: told every event, in the first process.
        on_encode: told how far encoding is.
        should_stop: asked after every step; True saves and ends.

    Raises:
        UserError: for a model, data, folder or setting that will not do; nothing is lost.
        FloatingPointError: when the loss is no longer finite; the last checkpoint is intact.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device == "cpu")
    folder = Path(folder)
    say = listener if accelerator.is_main_process else silent
    backend = load_backend(
        config.model.name,
        device=device or str(accelerator.device),
        dtype=config.model.dtype,
        allow_download=allow_download,
        progress=lambda line: say(Note(line)),
    )
    if not isinstance(backend, WanBackend):
        raise UserError(f"{config.model.name} cannot be trained: it is no Wan model")
    if config.model.gradient_checkpointing:
        backend.transformer.enable_gradient_checkpointing()
    if accelerator.is_main_process:
        _describe(config, Places(folder))
    accelerator.wait_for_everyone()
    dataset = _dataset(config, backend, folder, main=accelerator.is_main_process, on_encode=on_encode)
    accelerator.wait_for_everyone()
    looked_at = windows(config, backend.geometry, held_out=True) if config.data.source == POCKET_WORLD else None
    trainer = Trainer(
        config,
        folder,
        backend,
        dataset,
        accelerator=accelerator,
        listener=listener,
        validation=None
        if looked_at is None
        else MiniRollout(
            folder / "validation",
            reference_windows(looked_at),
            preset=config.data.preset,
            clips=config.loop.validation_clips,
        ),
    )
    return trainer.run(should_stop)


def _describe(config: TrainingConfig, places: Places) -> None:
    """Write what is trained, where a run is new; one with other settings is refused by the trainer."""
    places.folder.mkdir(parents=True, exist_ok=True)
    if not places.config.exists():
        places.config.write_text(config.to_yaml(), encoding="utf-8")
        (places.folder / "environment.json").write_text(json.dumps(environment(), indent=1) + "\n", encoding="utf-8")


def _dataset(
    config: TrainingConfig, backend: WanBackend, folder: Path, *, main: bool, on_encode: Callable[[Progress], None]
) -> Dataset:
    """The encoded clips: written by the first process where they are missing, read by all."""
    source, writing = windows(config, backend.geometry), EncodeConfig(batch_size=8)
    cache, files = Path(config.data.cache or Places(folder).cache), encoder_files(backend.info)
    if main:
        encode(source, backend, cache, writing, files=files, on_progress=on_encode)
    return CachedDataset(cache, cache_settings(source, writing, files, image_branch=has_image_branch(backend)))


def find_config(name: str, overrides: list[str]) -> TrainingConfig:
    """:func:`svi.training.config.load_config` over all recipes, the pocket model's included."""
    return load_config(name, ALL_RECIPES, overrides)
