"""What a training is: one frozen tree of settings, and how a file or the command line changes it.

A recipe (``recipes.py``) returns a complete :class:`TrainingConfig`; a YAML file names a recipe and overrides; an
unknown key is an error that names the nearest. Knows nothing about tensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from svi.errors import UserError, nearest
from svi.recycling import RecyclingConfig

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=1)]
Natural = Annotated[int, Field(strict=True, ge=0)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Model(_Settings):
    """The frozen base."""

    name: str = Field("pocket", description="pocket, a model folder, or a hub id.")
    expert: Literal["high", "low"] | None = Field(
        None, description="Which of Wan 2.2's two experts; None = a model of one."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("bfloat16", description="Type that the base computes in.")
    quantisation: Literal["fp8", "int8", "nf4"] | None = Field(
        None, description="How the frozen matrices are stored: fp8 and int8 need torchao, nf4 bitsandbytes."
    )
    gradient_checkpointing: bool = Field(True, description="Compute activations again in the backward pass.")
    offload_activations: bool = Field(
        False,
        description="Keep what the backward pass needs in main memory; with gradient_checkpointing that is little.",
    )


class Lora(_Settings):
    """What is trained."""

    rank: Count = 128
    alpha: Positive = 128.0
    targets: tuple[str, ...] = Field(
        ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"),
        description="Names of the matrices that get an adapter, in both attentions (published: q, k, v, o, ffn.0, ffn.2).",
    )
    init: Literal["kaiming", "gaussian"] = Field(
        "kaiming", description="Of the first matrix; the second starts at zero."
    )
    start: str | None = Field(
        None, description="LoRA file whose weights a new training begins with; its layers and rank have to be these."
    )


class Data(_Settings):
    """What it learns from."""

    source: str = Field(
        "pocket-world", description="pocket-world, a manifest (.jsonl), a folder, or an encoded folder."
    )
    preset: str = Field("shot", description="How clips are conditioned: svi.PRESETS.")
    reference: Literal["inside", "outside"] | None = Field(
        None,
        description="Where the anchor comes from: the clip itself (1.0), or outside it (2.0); None = the preset's release.",
    )
    first_clip_prob: Probability | None = Field(
        None,
        description="Share of clips conditioned as a first clip, without a past; None = as published for the preset.",
    )
    degraded_prob: Probability = Field(
        0.0,
        description="Share of clips whose past gets a handcrafted error: colour shift, blur or sharpening (paper, Table 6).",
    )
    cache: str | None = Field(None, description="Folder for encoded clips; None = 'cache' in the run folder.")
    clips: Count = Field(4096, description="Clips to encode, for an endless source.")
    held_out: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.02, description="Share of the videos that is looked at in validation and not trained on."
    )
    batch_size: Count = Field(1, description="Clips per step and process.")
    prefetch: Natural = Field(1, description="Batches prepared ahead, in the background.")


class Bank(_Settings):
    """Where errors are kept: :mod:`svi.error_bank`."""

    buckets: Count = Field(50, description="Noise levels of the bank: the steps of sampling.")
    shift: Positive = Field(5.0, description="Of that sampling.")
    capacity: Count = Field(500, description="Errors per bucket (Z of the paper).")
    policy: Literal["nearest", "random", "fifo"] = Field("nearest", description="Which error a full bucket gives up.")
    warmup_steps: Natural = Field(50, description="Steps whose errors are gathered from all processes.")
    memory_gb: Positive | None = Field(
        None, description="Memory for the banks of a process; None = its share of half of what is free."
    )
    spill_gb: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Disk for them, in the run folder, where memory is short."
    )


class Loss(_Settings):
    """Which noise levels, and how they count."""

    density: Literal["uniform", "stratified", "logit_normal"] = "uniform"
    shift: Positive = 5.0
    weight: Literal["bell", "none"] = "bell"
    boundary: Probability = Field(
        0.875, description="Noise level at which two experts change; one of them sees its side only."
    )
    text_dropout: Probability = Field(0.0, description="Share of prompts replaced by the empty one.")


class Optimizer(_Settings):
    """How it learns."""

    lr: Positive = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Positive = 1.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Natural = 0
    accumulation: Count = Field(1, description="Batches per step.")
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None


class Loop(_Settings):
    """How long, and what is kept and looked at on the way."""

    steps: Count = 1000
    seed: Natural = 0
    save_every: Count = Field(100, description="Steps between checkpoints.")
    keep: Count = Field(3, description="Checkpoints kept.")
    log_every: Count = 10
    validate_every: Natural = Field(500, description="Steps between validations; 0 = none.")
    validation_items: Count = Field(4, description="Held-out items in a validation.")
    validation_clips: Annotated[int, Field(strict=True, ge=3)] = Field(3, description="Clips of the mini rollout.")
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        (), description="Where numbers go beside log.jsonl; each is a package of its own."
    )


class Parallel(_Settings):
    """How several processes share the work."""

    strategy: Literal["ddp", "fsdp2", "zero2"] = Field(
        "ddp",
        description="ddp: the whole base in every process; fsdp2: its blocks shared out; zero2: DeepSpeed, as published.",
    )
    timeout_minutes: Positive = Field(
        120.0, description="How long a process waits for the others, in a validation say."
    )


class TrainingConfig(_Settings):
    """A whole training."""

    recipe: str = Field(description="Name of the recipe it came from.")
    sources: tuple[str, ...] = Field((), description="Where its values were published, and what contradicts them.")
    model: Model = Model()
    lora: Lora = Lora()
    data: Data = Data()
    recycling: RecyclingConfig = Field(
        RecyclingConfig(), description="Errors; clean_prob 1 is the control: the same training without any."
    )
    bank: Bank = Bank()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    loop: Loop = Loop()
    parallel: Parallel = Parallel()

    @model_validator(mode="after")
    def _fits_together(self) -> TrainingConfig:
        strategy = self.parallel.strategy
        if strategy == "zero2" and self.optimizer.ema_decay is not None:
            raise ValueError(
                "optimizer.ema_decay needs the weights in every process: take parallel.strategy=ddp or fsdp2"
            )
        if strategy != "ddp" and self.model.quantisation is not None:
            raise ValueError(
                f"model.quantisation and parallel.strategy={strategy} exclude each other, since quantised weights stay in one "
                "piece: take ddp, or leave the base as it is"
            )
        return self

    def to_yaml(self) -> str:
        """The complete configuration; :func:`load_config` reads it back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)

    def pinned(self) -> dict[str, Any]:
        """What decides what the tensors of a checkpoint mean, by dotted name: a resumed training has to have the same.

        Not how long it runs, how often it is saved and looked at, where things lie, and what changes memory only.
        """
        free: dict[str, Any] = {
            "sources": True,
            "loop": set(Loop.model_fields) - {"seed"},
            "data": {"cache", "prefetch"},
            "bank": {"memory_gb", "spill_gb"},
            "model": {"gradient_checkpointing", "offload_activations"},
            "parallel": {"timeout_minutes"},
            "lora": {"start"},
        }
        return dict(_flat(self.model_dump(mode="json", exclude=free)))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two :meth:`TrainingConfig.pinned` differ in, one phrase each: ``lora.rank 4, now 8``."""
    names = [*before, *(name for name in now if name not in before)]
    return [
        f"{name} {before.get(name, 'not set')}, now {now.get(name, 'not set')}"
        for name in names
        if before.get(name, names) != now.get(name, names)
    ]


Recipes = Mapping[str, Callable[[], TrainingConfig]]


def load_config(name: str, recipes: Recipes, overrides: Sequence[str] = ()) -> TrainingConfig:
    """The configuration that a user means.

    Args:
        name: a recipe, or a YAML file: ``recipe: NAME`` and whatever differs from it.
        recipes: the known ones.
        overrides: ``a.b=value`` each, the value in YAML (``optimizer.lr=2e-5``, ``lora.targets=[to_q]``).

    Raises:
        UserError: for anything unknown or out of range; the message names the place and the nearest name.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml", ".json") or path.is_file():
        changes, place = _read(path), str(path)
        base = changes.pop("recipe", None)
        if not isinstance(base, str):
            raise UserError(
                f"{path}: a configuration begins with 'recipe: NAME'; recipes: {', '.join(sorted(recipes))}"
            )
    else:
        changes, place, base = {}, f"recipe {name}", name
    if base not in recipes:
        raise UserError(f"unknown recipe {base!r}: {nearest(base, recipes)}")
    data = _merged(recipes[base]().model_dump(), changes, place, ())
    for override in overrides:
        key, given, value = override.partition("=")
        if not given:
            raise UserError(f"{override!r} is not of the form a.b=value")
        data = _merged(data, _nested(key.strip().split("."), _value(value, override)), override, ())
    return _validated(data, place)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no configuration {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} holds no configuration: it begins with 'recipe: NAME'")
    return data


def _value(text: str, override: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"cannot read {override!r}: {' '.join(str(error).split())}") from None
    if isinstance(value, str):  # YAML 1.1 takes 2e-5 for a word
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    return {path[0]: value if len(path) == 1 else _nested(path[1:], value)}


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any], place: str, path: tuple[str, ...]) -> dict[str, Any]:
    """``base`` with ``changes``, section by section; every changed key has to be there already."""
    result = dict(base)
    for key, value in changes.items():
        if key not in base:
            raise UserError(f"{place}: there is no {'.'.join((*path, str(key)))!r}: {nearest(str(key), base)}")
        if isinstance(base[key], dict):
            if not isinstance(value, dict):
                raise UserError(f"{place}: {'.'.join((*path, key))} is a section; its keys: {', '.join(base[key])}")
            result[key] = _merged(base[key], value, place, (*path, key))
        else:
            result[key] = value
    return result


def _validated(data: Mapping[str, Any], place: str) -> TrainingConfig:
    try:
        return TrainingConfig.model_validate_json(json.dumps(data))
    except ValidationError as error:
        mistake = error.errors()[0]
        where = ".".join(str(part) for part in mistake["loc"])
        if not where:  # settings that exclude one another
            raise UserError(f"{place}: {mistake['msg'].removeprefix('Value error, ')}") from None
        raise UserError(f"{place}: {where} is {mistake['input']!r}: {mistake['msg'].lower()}") from None
