"""A whole fine-tuning, from a configuration to a LoRA: model, encoded clips, trainer, and a folder that holds it all.

The run folder: ``config.yaml``, ``environment.json``, ``cache`` (encoded clips, unless they lie elsewhere), ``checkpoints``,
``log.jsonl``, ``validation`` (contact sheets), ``lora.safetensors``. The same call in the same folder goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from svi.backends.base_memory import base_sizes
from svi.backends.frozen import park_encoders
from svi.backends.lora_base import part_of, weights_sha256
from svi.backends.wan import WanBackend, load_backend
from svi.backends.weights import find_model
from svi.conditioning.policy import MECHANISMS, get_policy
from svi.data.cache import INDEX
from svi.data.dataset import CachedDataset, Dataset, LiveDataset
from svi.data.encode import (
    EncodeConfig,
    Progress,
    cache_settings,
    encode,
    encoder_files,
    has_image_branch,
    model_settings,
)
from svi.data.endless import EndlessSource
from svi.data.ingest import VideoSource, WindowSource
from svi.data.manifest import load_manifest
from svi.data.sampler import held_out
from svi.data.windows import published_rule
from svi.errors import UserError
from svi.files import write_atomic, write_json
from svi.generation.events import Listener, silent
from svi.geometry import Geometry
from svi.pocket.clips import PocketClips
from svi.pocket.recipes import POCKET_RECIPES
from svi.pocket.train_vae import HELD_OUT
from svi.training.config import TrainingConfig, load_config
from svi.training.distributed import make_accelerator
from svi.training.estimate import Need, needs
from svi.training.events import Note
from svi.training.methods import sigma_range
from svi.training.recipes import RECIPES
from svi.training.record import check_trackers, environment, start_trackers
from svi.training.replay import memory_for_banks
from svi.training.trainer import Finished, Trainer
from svi.training.validate import Look

ALL_RECIPES = {**RECIPES, **POCKET_RECIPES}
POCKET_WORLD = "pocket-world"
CONFIG_FILE = "config.yaml"
ENCODED_PIXELS = 2**23  # encoded at once: one window at 480x832, many of the pocket model's


def windows(config: TrainingConfig, geometry: Geometry, *, looked_at: bool = False) -> WindowSource:
    """The clips that a configuration trains on, not yet encoded; ``looked_at``: those of pocket world it is looked at with.

    Raises:
        UserError: for a source that is not there or has nothing usable.
    """
    data, policy = config.data, get_policy(config.data.preset)
    if policy.name in MECHANISMS:
        raise UserError(
            f"preset {policy.name} is a way to sample, and nothing is trained for it: take one of svi presets"
        )
    rule = replace(published_rule(policy, seed=config.loop.seed), degraded_prob=data.degraded_prob)
    if data.reference is not None:
        rule = replace(rule, reference=data.reference)
    if data.first_clip_prob is not None:
        rule = replace(rule, first_clip_prob=data.first_clip_prob)
    if data.source == POCKET_WORLD:
        count, start = (config.loop.validation_items, HELD_OUT) if looked_at else (data.clips, 0)
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
    folder = Path(folder)
    check_trackers(config.loop.trackers)
    accelerator = make_accelerator(config, folder, cpu=device == "cpu")
    main = accelerator.is_main_process
    start_trackers(accelerator, config.pinned())
    for need in memory_needs(config, ranks=accelerator.num_processes) if main else ():
        listener(Note(f"memory: {need}"))
    backend = _backend(config, device or str(accelerator.device), allow_download, listener if main else silent)
    if main:
        _describe(config, folder)
    accelerator.wait_for_everyone()
    dataset = _dataset(config, backend, folder, main=main, on_encode=on_encode)
    accelerator.wait_for_everyone()
    indices, validation = _sides(config, dataset, backend, folder / "validation" if main else None)
    park_encoders(backend)
    trainer = Trainer(
        config,
        folder,
        backend,
        dataset,
        accelerator=accelerator,
        listener=listener,
        base_sha256=_base_sha256(config) if main else None,
        indices=indices,
        validation=validation,
    )
    return trainer.run(should_stop)


def _backend(config: TrainingConfig, device: str, allow_download: bool, listener: Listener) -> WanBackend:
    backend = load_backend(
        config.model.name,
        device=device,
        dtype=config.model.dtype,
        allow_download=allow_download,
        expert=config.model.expert,
        progress=lambda line: listener(Note(line)),
    )
    if not isinstance(backend, WanBackend):
        raise UserError(f"{config.model.name} cannot be trained: it is no Wan model")
    return backend


def _base_sha256(config: TrainingConfig) -> str:
    """Hash of the weights that the LoRA is for."""
    folder = find_model(config.model.name)
    return weights_sha256(folder, part_of(folder, config.model.expert, f"recipe {config.recipe}"))


def _describe(config: TrainingConfig, folder: Path) -> None:
    """Write what is trained, where a run is new; one with other settings is refused by the trainer."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / CONFIG_FILE).exists():
        write_json(folder / "environment.json", environment())
        write_atomic(folder / CONFIG_FILE, config.to_yaml().encode())


def _dataset(
    config: TrainingConfig, backend: WanBackend, folder: Path, *, main: bool, on_encode: Callable[[Progress], None]
) -> Dataset:
    """The encoded clips: as they are where the source is an encoded folder; else written by the first process, read by all."""
    files, branch = encoder_files(backend.info), has_image_branch(backend)
    given = Path(config.data.source)
    if (given / INDEX).is_file():
        policy = get_policy(config.data.preset)
        return CachedDataset(given, model_settings(policy, backend.geometry, files, image_branch=branch))
    source = windows(config, backend.geometry)
    pixels = backend.geometry.num_frames * backend.geometry.height * backend.geometry.width
    writing = EncodeConfig(batch_size=max(1, min(8, ENCODED_PIXELS // pixels)))
    cache = Path(config.data.cache or folder / "cache")
    if main:
        encode(source, backend, cache, writing, files=files, on_progress=on_encode)
    return CachedDataset(cache, cache_settings(source, writing, files, image_branch=branch))


def _sides(
    config: TrainingConfig, dataset: Dataset, backend: WanBackend, sheets: Path | None
) -> tuple[Sequence[int] | None, Look | None]:
    """Clips to train on (None = all), and the look at those that are held out, if there are any."""
    loop, data = config.loop, config.data
    trained: Sequence[int] | None = None
    shown: Dataset = dataset
    kept = list(range(loop.validation_items))
    if data.source == POCKET_WORLD:
        shown = LiveDataset(windows(config, backend.geometry, looked_at=True), backend)
    else:
        trained, kept = held_out(dataset, data.held_out)
        if not trained:
            raise UserError(
                f"data.held_out={data.held_out:g} keeps every video of {data.source} for validation: lower it"
            )
    if not loop.validate_every or not kept:
        return trained, None
    clips = 0 if config.model.expert else loop.validation_clips
    look = Look(shown, kept[: loop.validation_items], data.preset, clips, sigma_range(config), sheets)
    return trained, look


def memory_needs(config: TrainingConfig, *, ranks: int = 1) -> list[Need]:
    """What a training will take in each of ``ranks`` processes, line by line; nothing is loaded.

    Raises:
        UserError: for a model that is neither here nor known.
    """
    sizes, window = base_sizes(config.model.name)
    return needs(config, sizes, window, ranks=ranks, bank_memory=memory_for_banks(config))


def find_config(name: str, overrides: list[str]) -> TrainingConfig:
    """:func:`svi.training.config.load_config` over all recipes, the pocket model's included."""
    return load_config(name, ALL_RECIPES, overrides)
