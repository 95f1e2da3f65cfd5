"""What ``svi lora info`` and ``svi lora convert`` do: say what a LoRA file is, and write it under other names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svi.backends import lora_read
from svi.backends.lora import find_lora, misfits
from svi.backends.lora_base import base_weights, part_of, weights_sha256
from svi.backends.lora_formats import Format, hint, official_module, owner_of
from svi.backends.lora_read import DIFFUSERS_METADATA, METADATA, LoraFile, LoraMetadata, refuse_empty
from svi.backends.lora_write import dtype_name, kind, refuse_existing, suited, write_lora
from svi.backends.weights import find_model, sha256
from svi.errors import UserError

# What their makers say about strengths, by file name; SVI's page for ComfyUI (docs/svi/comfyui.md) has the first.
ADVICE = (
    (re.compile(r"lightx2v|lightning|distill", re.I), "beside SVI: 0.5 on the high-noise expert, 1.0 on the low-noise"),
    (re.compile(r"svi", re.I), "1.0, as published"),
)


@dataclass(frozen=True)
class LoraInfo:
    """What a LoRA file is.

    Attributes:
        path, size_bytes, sha256: the file; no hash for a folder.
        format: dialect of its names.
        parameters: numbers in A and B.
        ranks, scales, dtypes: how many modules have which rank, which alpha / rank; how many tensors which type.
        alphas: how many modules state which alpha; ``none`` = the scale is 1.
        targets: how many modules of each kind; ``blocks``: number of blocks that are changed.
        differences: whole tensors that it changes, by their names in the file.
        networks: tensors of other networks, with their reader.
        foreign: tensors that no Wan LoRA has, with type and shape.
        skipped: tensors of the base model in a training checkpoint, passed over.
        metadata: ours; ``other_metadata``: what other tools wrote.
        advice: strength that its makers advise, as far as known.
        model: what it was held against; ``misfits``: every reason why it does not fit; None = no model was given.
        base: whether it was trained on that model: ``same weights``, ``other weights``, or ``not stated``.
    """

    path: str
    size_bytes: int
    sha256: str | None
    format: str
    parameters: int
    ranks: dict[str, int]
    alphas: dict[str, int]
    scales: dict[str, int]
    dtypes: dict[str, int]
    targets: dict[str, int]
    blocks: int
    differences: list[str]
    networks: dict[str, str]
    foreign: dict[str, str]
    skipped: int
    metadata: dict[str, Any]
    other_metadata: dict[str, str]
    advice: str | None
    model: str | None = None
    misfits: list[str] | None = None
    base: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def info(source: str, *, model: str | None = None, expert: str | None = None, allow_download: bool = False) -> LoraInfo:
    """What the LoRA ``source`` (file, trainer's folder, or name in the model's folder) is, and whether it fits ``model``.

    Reads headers only of the model, unless the LoRA names the hash of its base.

    Raises:
        UserError: for files that are missing, damaged or not whole.
    """
    folder = None if model is None else find_model(model, allow_download=allow_download)
    path = locate(source, folder)
    lora = lora_read.read(path)
    found = _described(lora, path)
    if folder is None:
        return LoraInfo(**found)
    part = part_of(folder, expert or lora.metadata.expert, str(path))
    reasons = misfits(lora, base_weights(folder, part).shapes)
    if not lora.pairs and not lora.differences and not reasons:
        reasons = ["it holds no LoRA weights"]
    wanted = lora.metadata.base_sha256
    same = None if wanted is None else wanted == weights_sha256(folder, part)
    base = {None: "not stated", True: "same weights", False: "other weights"}[same]
    return LoraInfo(**found, model=model, misfits=reasons, base=base)


def locate(source: str, folder: Path | None = None) -> Path:
    """The LoRA called ``source``: a file, a trainer's folder, or a name in a model ``folder``."""
    path = Path(source).expanduser()
    return path if path.is_dir() else find_lora(source, folder)


def _described(lora: LoraFile, path: Path) -> dict[str, Any]:
    pairs = lora.pairs
    tensors: list[Tensor] = [side for pair in pairs.values() for side in (pair.a, pair.b)]
    tensors += [tensor for tensor, _ in lora.differences.values()] + list(lora.networks.values())
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    blocks = {name.split(".")[1] for name in [*pairs, *lora.differences] if name.startswith("blocks.")}
    other = {name: text for name, text in lora.raw.items() if name not in {METADATA, DIFFUSERS_METADATA, "format"}}
    return dict(
        path=str(path),
        size_bytes=sum(file.stat().st_size for file in files),
        sha256=sha256(path) if path.is_file() else None,
        format=lora.format,
        parameters=sum(pair.a.numel() + pair.b.numel() for pair in pairs.values()),
        ranks=_counted(str(pair.rank) for pair in pairs.values()),
        alphas=_counted("none" if pair.alpha is None else f"{pair.alpha:g}" for pair in pairs.values()),
        scales=_counted(f"{pair.scale:g}" for pair in pairs.values()),
        dtypes=_counted(dtype_name(tensor.dtype) for tensor in tensors),
        targets=_counted(sorted(kind(module) for module in pairs)),
        blocks=len(blocks),
        differences=[name for _, name in lora.differences.values()],
        networks={name: owner_of(name) for name in lora.networks},
        foreign=dict(lora.foreign),
        skipped=lora.skipped,
        metadata=lora.metadata.model_dump(exclude_defaults=True, mode="json"),
        other_metadata=other,
        advice=_advice(lora.metadata, path),
    )


def _counted(values: Any) -> dict[str, int]:
    return dict(Counter(values))


def _advice(metadata: LoraMetadata, path: Path) -> str | None:
    if metadata.strength is not None:
        return f"{metadata.strength:g}, says the file"
    return next((text for pattern, text in ADVICE if pattern.search(path.name)), None)


# -- convert -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conversion:
    """What :func:`convert` did: the file, its format, its metadata, number of modules, and remarks for the user."""

    out: Path
    format: Format
    metadata: Mapping[str, Any]
    modules: int
    notes: tuple[str, ...] = field(default=())


def convert(
    source: str,
    out: Path,
    to: Format,
    *,
    dtype: torch.dtype | None = None,
    lora_only: bool = False,
    drop: Sequence[str] = (),
    known: LoraMetadata | None = None,
) -> Conversion:
    """Write the LoRA ``source`` under the names of format ``to``; A and B stay as they are, to the byte.

    Args:
        source: file, part of a sharded set, DeepSpeed or trainer's folder or checkpoint.
        dtype: other storage type.
        lora_only: leave out what is no LoRA (named in the remarks) instead of refusing it.
        drop: patterns of modules to leave out, by diffusers or official names (``*.k_img``: Wan 2.2 has no such layers).
        known: metadata to set, beside those of the file.

    Raises:
        UserError: for what is damaged, not whole, no LoRA for a Wan model, or beyond what ``to`` can say.
    """
    refuse_existing(out)
    path = locate(source)
    lora = lora_read.read(path)
    refuse_empty(lora)
    _refuse_not_finite(lora)
    kept = without(lora, drop)
    ready = suited(kept, to, dtype=dtype, lora_only=lora_only)
    metadata = lora.metadata.model_copy(update={} if known is None else known.model_dump(exclude_defaults=True))
    origin = {"file": path.name, "format": lora.format, "sha256": sha256(path) if path.is_file() else None}
    details = {"converted_from": origin, **metadata.details}  # the first one is the source
    written = write_lora(out, ready, metadata.model_copy(update={"details": details}), to)
    notes = tuple(_notes(kept, path, to, lora_only=lora_only))
    dropped = len(lora.pairs) + len(lora.differences) - len(kept.pairs) - len(kept.differences)
    if dropped:
        notes = (f"{dropped} layers and differences were left out, as asked", *notes)
    return Conversion(out, to, written.model_dump(exclude_defaults=True, mode="json"), len(ready.pairs), notes)


def without(lora: LoraFile, patterns: Sequence[str]) -> LoraFile:
    """``lora`` without the modules that ``patterns`` name, and the differences of their parameters.

    Raises:
        UserError: for a pattern that matches nothing, and where nothing would be left.
    """
    names = {module: (module, official_module(module) or module) for module in lora.pairs}
    for parameter in lora.differences:
        module = parameter.rpartition(".")[0]
        names.setdefault(parameter, (module, official_module(module) or module))
    left_out: set[str] = set()
    for pattern in patterns:
        found = {name for name, known in names.items() if any(fnmatchcase(one, pattern) for one in known)}
        if not found:
            near = hint(pattern, (one for known in names.values() for one in known))
            raise UserError(f"--drop {pattern!r} matches nothing in {lora.source}{near}")
        left_out |= found
    if left_out and left_out >= set(names):
        raise UserError(f"{lora.source}: --drop leaves nothing of it")
    return replace(
        lora,
        pairs={name: pair for name, pair in lora.pairs.items() if name not in left_out},
        differences={name: value for name, value in lora.differences.items() if name not in left_out},
    )


def _refuse_not_finite(lora: LoraFile) -> None:
    for pair in lora.pairs.values():
        if not (pair.a.float().isfinite().all() and pair.b.float().isfinite().all()):
            raise UserError(f"{lora.source} holds NaN or infinity in {pair.stem}: fetch the file again")


def _notes(lora: LoraFile, path: Path, to: Format, *, lora_only: bool) -> list[str]:
    notes = []
    if lora.skipped:
        notes.append(f"{lora.skipped} tensors of the base model were passed over")
    left = [*lora.foreign, *lora.networks, *(name for _, name in lora.differences.values())] if lora_only else []
    if left:
        notes.append(
            f"{len(left)} tensors that are no LoRA were left out: {', '.join(left[:3])}{' ...' * (len(left) > 3)}"
        )
    scales = sorted({pair.scale for pair in lora.pairs.values()} - {1.0})
    if scales and to == "official":
        notes.append(f"alpha / rank = {', '.join(f'{scale:g}' for scale in scales)} was multiplied into B")
    if scales and to == "diffusers":
        notes.append("alpha is not the rank: it stands in the metadata, which old loaders pass over")
    low = any(pair.a.dtype != torch.float32 for pair in lora.pairs.values())
    if low and path.is_dir() and lora.skipped:
        notes.append("these are 16-bit working copies; zero_to_fp32.py gives the fp32 masters")
    return notes
