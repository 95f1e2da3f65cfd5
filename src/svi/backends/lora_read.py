"""LoRA files in memory: read from safetensors, from checkpoints of trainers, or from their folders.

Only what belongs to a LoRA is read, by name: of a training checkpoint that holds the whole model a small part. Nothing is
unpickled but plain tensors. Knows nothing about the model that a LoRA goes to.
"""

from __future__ import annotations

import json
import math
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from svi.backends.lora_formats import format_of, natural, other_adapter, parse
from svi.backends.weights import read_json, reading
from svi.errors import UserError

CHECKPOINT_SUFFIXES = frozenset({".ckpt", ".pt", ".pth", ".bin"})
SUFFIXES = CHECKPOINT_SUFFIXES | {".safetensors"}
METADATA = "svi"  # our entry in the metadata of a safetensors file
DIFFUSERS_METADATA = "lora_adapter_metadata"  # diffusers' entry: what LoraConfig takes
# What a folder may hold, tried in this order; the last are DeepSpeed's own files.
FOLDER_FILES = (
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "lora_weights*.safetensors",
    "model*.safetensors",
    "pytorch_model*.bin",
    "mp_rank_*_model_states.pt",
    "checkpoint/mp_rank_*_model_states.pt",
)
# Under which entry trainers keep their tensors: Lightning, DeepSpeed, others.
WRAPPERS = ("state_dict", "module", "model_state_dict", "model")
WHOLE_MODEL = re.compile(r"model(-\d+-of-\d+)?\.safetensors")  # written by zero_to_fp32.py --safe_serialization
PART = re.compile(r"(?P<n>\d+)(?P<of>[-_]of[-_])(?P<total>\d+)")
STORED = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
ADAPTER = re.compile(r"lora|lokr|dora|hada|\.alpha$|\.diff(_[bm])?$")
ZERO_TO_FP32 = "run `python zero_to_fp32.py . OUT --safe_serialization` in its folder and give OUT"


class LoraMetadata(BaseModel):
    """What a LoRA says about itself.

    Attributes:
        preset: member of the SVI family that it was trained for.
        base: name of the model that it was trained on.
        base_sha256: :func:`svi.backends.lora_base.weights_sha256` of that model's transformer.
        rank, alpha: the commonest of the file; the LoRA adds ``strength * alpha / rank * B @ A``.
        targets: kinds of modules that it changes (``attn1.to_q``), by diffusers names.
        recipe: training recipe.
        expert: expert of a two-expert model (Wan 2.2) that it belongs to.
        strength: strength that its makers advise.
        version: version of svi that wrote the file.
        details: anything else, as JSON has it (the resolved training configuration, the environment ...).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str | None = None
    base: str | None = None
    base_sha256: str | None = None
    rank: int | None = None
    alpha: float | None = None
    targets: tuple[str, ...] = ()
    recipe: str | None = None
    expert: Literal["high", "low"] | None = None
    strength: float | None = None
    version: str | None = None
    details: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Pair:
    """The LoRA of one module: ``a`` (rank, in), ``b`` (out, rank), ``alpha`` if stated, ``stem``: its name in the file."""

    a: Tensor
    b: Tensor
    alpha: float | None
    stem: str

    @property
    def rank(self) -> int:
        """Number of rows of ``a``."""
        return self.a.shape[0]

    @property
    def scale(self) -> float:
        """What ``B @ A`` is multiplied with: alpha / rank, 1 where no alpha is stated (as the published merge has it)."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclass(frozen=True, eq=False)
class LoraFile:
    """A LoRA as read.

    Attributes:
        source: where it came from, for messages.
        format: the dialect of its names.
        pairs: by diffusers name of the module, block after block.
        differences: tensors to add to whole parameters, by the parameter's diffusers name; their names in the file.
        networks: tensors of other networks that came along, by their own names.
        foreign: names that no Wan LoRA has, each with its type and shape.
        skipped: number of the base model's and optimizer's tensors passed over in a training checkpoint.
        metadata: what the file says about itself; ``raw``: all its entries, as they are.
    """

    source: str
    format: str
    pairs: Mapping[str, Pair]
    differences: Mapping[str, tuple[Tensor, str]] = field(default_factory=dict)
    networks: Mapping[str, Tensor] = field(default_factory=dict)
    foreign: Mapping[str, str] = field(default_factory=dict)
    skipped: int = 0
    metadata: LoraMetadata = field(default_factory=LoraMetadata)
    raw: Mapping[str, str] = field(default_factory=dict)


def read(path: Path) -> LoraFile:
    """A LoRA from a file, one part of a sharded set, or the folder of a trainer.

    Raises:
        UserError: for what is missing, damaged, not whole, or holds more than tensors.
    """
    files = _files(path)
    tensors: dict[str, Tensor] = {}
    foreign: dict[str, str] = {}
    raw: dict[str, str] = {}
    skipped = 0
    for file in files:
        whole_model = file.suffix in CHECKPOINT_SUFFIXES or WHOLE_MODEL.fullmatch(file.name) is not None
        for key, value in _tensors(file, raw):
            if key in tensors or key in foreign:
                raise UserError(f"{path} holds {key!r} twice")
            if isinstance(value, Tensor):
                tensors[key] = value
            elif whole_model and not ADAPTER.search(key):
                skipped += 1
            else:
                foreign[key] = value
    config = _adapter_config(files[0], raw)
    return assemble(tensors, str(path), foreign=foreign, skipped=skipped, raw=raw, config=config)


def assemble(
    tensors: Mapping[str, Tensor],
    source: str,
    *,
    foreign: Mapping[str, str] | None = None,
    skipped: int = 0,
    raw: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> LoraFile:
    """Tensors by any dialect's names -> a LoRA.

    Args:
        config: ``r``, ``lora_alpha`` ... as peft's LoraConfig; its alpha counts where the tensors state none.

    Raises:
        UserError: for half a pair, factors that do not multiply, a tensor that is there twice.
    """
    sides: dict[str, dict[str, Tensor]] = {}
    stems: dict[str, str] = {}
    differences: dict[str, tuple[Tensor, str]] = {}
    networks: dict[str, Tensor] = {}
    unknown = dict(foreign or {})
    for name, tensor in tensors.items():
        key = parse(name)
        if key.kind == "foreign":
            unknown[name] = described(tensor.dtype, tensor.shape)
        elif key.kind == "network":
            networks[name] = tensor
        elif key.kind == "difference":
            if key.target in differences:
                raise UserError(f"{source} holds {name!r} twice under different names")
            differences[key.target] = (tensor, name)
        else:
            if key.kind in sides.setdefault(key.target, {}):
                raise UserError(f"{source} holds {name!r} twice under different names")
            sides[key.target][key.kind] = tensor
            stems[key.target] = key.stem
    pairs = {
        module: _pair(sides[module], module, stems[module], source, config) for module in sorted(sides, key=natural)
    }
    named = [*(f"{pair.stem}.lora_A.weight" for pair in pairs.values()), *(name for _, name in differences.values())]
    metadata = _metadata(raw or {}, source)
    return LoraFile(source, format_of(named), pairs, differences, networks, unknown, skipped, metadata, dict(raw or {}))


def _pair(sides: Mapping[str, Tensor], module: str, stem: str, source: str, config: Mapping[str, Any] | None) -> Pair:
    if "A" not in sides or "B" not in sides:
        raise UserError(f"{source} has only half of the LoRA for {module} ({stem}): the file is not whole")
    a, b = sides["A"], sides["B"]
    if 0 in (a.numel(), b.numel()):
        raise UserError(
            f"{source} has the name of {stem}, but not its values, as ZeRO stage 3 saves models: {ZERO_TO_FP32}"
        )
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not (a.is_floating_point() and b.is_floating_point()):
        raise UserError(f"{source}: A {tuple(a.shape)} and B {tuple(b.shape)} of {stem} are no factors of one matrix")
    if "alpha" in sides:
        if sides["alpha"].numel() != 1:
            raise UserError(f"{source}: alpha of {stem} must be one number, not {tuple(sides['alpha'].shape)}")
        alpha: float | None = float(sides["alpha"])
    else:
        alpha = _stated_alpha(config, module, a.shape[0])
    if alpha is not None and not math.isfinite(alpha):
        raise UserError(f"{source}: alpha of {stem} is {alpha}: fetch the file again")
    return Pair(a, b, alpha, stem)


def _stated_alpha(config: Mapping[str, Any] | None, module: str, rank: int) -> float | None:
    """Alpha of a module as a peft configuration says, such that ``alpha / rank`` is its scale."""
    if not config or config.get("lora_alpha") is None:
        return None
    alpha = float(config["lora_alpha"])
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):  # peft's rule
            alpha = float(value)
            break
    return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def described(dtype: object, shape: Sequence[int]) -> str:
    """``float32 4x96``: type (of torch, or as safetensors call it) and shape, for people to read."""
    name = str(dtype).removeprefix("torch.")
    return f"{STORED.get(name, name)} {'x'.join(map(str, shape)) or 'scalar'}"


# -- metadata ----------------------------------------------------------------------------------------------------------


def _metadata(raw: Mapping[str, str], source: str) -> LoraMetadata:
    if METADATA not in raw:
        return LoraMetadata()
    try:
        stated = json.loads(raw[METADATA])
        known = {name: value for name, value in stated.items() if name in LoraMetadata.model_fields}
        # What a later version adds is kept.
        later = {name: value for name, value in stated.items() if name not in known}
        known["details"] = {**known.get("details", {}), **later}
        return LoraMetadata(**known)
    except (ValueError, TypeError, AttributeError, ValidationError) as error:
        reason = str(error).replace("\n", " ")[:120]
        raise UserError(f"the metadata of {source} is damaged ({reason}): fetch the file again") from None


def _adapter_config(file: Path, raw: Mapping[str, str]) -> dict[str, Any] | None:
    """The LoraConfig that diffusers puts into the file, or peft beside it."""
    beside = file.with_name("adapter_config.json")
    if file.name == "adapter_model.safetensors" and beside.is_file():
        config = read_json(beside)
    elif DIFFUSERS_METADATA in raw:
        with reading(file):
            config = json.loads(raw[DIFFUSERS_METADATA])
            if not isinstance(config, dict):
                raise ValueError(f"{DIFFUSERS_METADATA} is no JSON object")
            config = {name.removeprefix("transformer."): value for name, value in config.items()}
    else:
        return None
    if config.get("use_dora"):
        raise UserError(f"{file} is a DoRA, not a LoRA: merge it with the tool that made it")
    return config


# -- files -------------------------------------------------------------------------------------------------------------


def _files(path: Path) -> list[Path]:
    """The files that hold the LoRA at ``path``, all parts of a sharded set."""
    if not path.is_dir():
        if path.suffix not in SUFFIXES:
            raise UserError(
                f"LoRA {path} is not a .safetensors file (or a checkpoint: {', '.join(sorted(CHECKPOINT_SUFFIXES))})"
            )
        return _parts(path)
    latest = path / "latest"  # DeepSpeed: the name of the newest checkpoint in the folder
    tag = latest.read_text(encoding="utf-8").strip() if latest.is_file() else ""
    folders = [path / tag, path] if tag and Path(tag).name == tag else [path]
    found = next((f for folder in folders for pattern in FOLDER_FILES if (f := sorted(folder.glob(pattern)))), None)
    if found is None:
        raise UserError(f"{path} is a folder without a LoRA: it holds none of {', '.join(FOLDER_FILES)}")
    files = _parts(found[0])
    if len(found) > 1 and "mp_rank" in found[0].name:
        raise UserError(f"{path} was saved by several model-parallel ranks: {ZERO_TO_FP32}")
    if set(found) - set(files):
        raise UserError(f"{path} holds several LoRAs ({found[0].name}, {found[1].name} ...): give one file")
    return files


def _parts(file: Path) -> list[Path]:
    match = PART.search(file.name)
    if match is None or file.suffix not in SUFFIXES:
        return [file]
    width, total = len(match["n"]), int(match["total"])
    start, end = file.name[: match.start()], file.name[match.end() :]
    parts = [
        file.with_name(f"{start}{n:0{width}}{match['of']}{match['total']}{end}")
        for n in range(1, min(total, 10_000) + 1)
    ]
    for part in parts:
        if not part.is_file():
            raise UserError(f"{part} is missing: {file.name} is one of {total} parts, all of them are needed")
    return parts


def _tensors(file: Path, raw: dict[str, str]) -> Iterator[tuple[str, Tensor | str]]:
    """Names with tensors where a LoRA can have them, otherwise with a description; metadata goes to ``raw``."""
    if file.suffix == ".safetensors":
        yield from _safetensors(file, raw)
        return
    for key, tensor in _state(_unpickled(file), file).items():
        yield key, described(tensor.dtype, tensor.shape) if parse(key).kind == "foreign" else tensor


def _safetensors(file: Path, raw: dict[str, str]) -> Iterator[tuple[str, Tensor | str]]:
    from safetensors import safe_open

    with reading(file):
        with file.open("rb") as stream:
            start = stream.read(8)
        # A safetensors file begins with the length of its header, a pickle with a mark that would be a huge length.
        pickled = start[:2] == b"PK" or start[:1] == b"\x80"
        if pickled and int.from_bytes(start, "little") > file.stat().st_size:
            raise UserError(
                f"{file} is a pickle with the ending of safetensors: rename it to .ckpt to read its tensors"
            )
        handle: Any = safe_open(str(file), framework="pt", device="cpu")
    with handle:
        raw.update(handle.metadata() or {})
        for key in list(handle.keys()):
            with reading(file):
                if parse(key).kind == "foreign":
                    part = handle.get_slice(key)
                    found: Tensor | str = described(part.get_dtype(), part.get_shape())
                else:
                    found = handle.get_tensor(key)
            yield key, found


def _unpickled(file: Path) -> Any:
    with reading(file):
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        except pickle.UnpicklingError as error:
            named = re.search(r"(?:GLOBAL|class|instance of|reference) `?([\w.]+\.\w+)", str(error))
            if named is None:
                raise
            raise UserError(
                f"{file} holds Python objects beside tensors ({named[1]}), which are never unpickled here: export the "
                f"weights as safetensors; of a DeepSpeed checkpoint, {ZERO_TO_FP32}"
            ) from None


def _state(content: Any, file: Path) -> dict[str, Tensor]:
    """The state dict inside what a trainer saved."""
    inner = content
    while isinstance(inner, Mapping):
        content = inner
        inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
    if not isinstance(content, Mapping):
        raise UserError(f"{file} holds a {type(content).__name__}, not named tensors: give another file")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{file} holds no named tensors: optimizer states and settings are no LoRA")
    return tensors


def refuse_empty(lora: LoraFile) -> None:
    """Raise UserError where ``lora`` has nothing that a Wan transformer could take, naming the nearest."""
    if lora.pairs or lora.differences:
        return
    if not lora.foreign:
        raise UserError(f"{lora.source} holds no LoRA weights")
    first = next(iter(lora.foreign))
    kind = other_adapter(first)
    what = f"it is {kind}, which is not supported" if kind else f"its first tensor is called {first!r}"
    raise UserError(f"{lora.source} holds no LoRA for a Wan model: {what}")
