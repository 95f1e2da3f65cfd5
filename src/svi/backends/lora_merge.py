"""Merging LoRAs into a model: a new model folder whose weights have them, written shard by shard.

The sum is made in fp32 and stored in the base's type. What was merged is written down in ``svi.json``, so that the same
LoRA is never added twice, neither here nor when it is attached to the merged model.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svi.backends import lora_read
from svi.backends.lora import FOLDER, MERGED, LoraSpec, find_lora, misfits, parse_spec, refuse, refuse_merged
from svi.backends.lora_base import BaseWeights, Reader, base_weights, fingerprint, part_of, weights_sha256
from svi.backends.lora_read import LoraFile, refuse_empty
from svi.backends.lora_write import dtype_name, refuse_existing
from svi.backends.weights import HUB_FILES, SETTINGS_FILE, find_model, read_json, sha256
from svi.backends.weights import OFFICIAL_STEM as STEM
from svi.errors import UserError
from svi.files import new_folder

SHARD_BYTES = 4 * 2**30
LINKED_BYTES = 64 * 2**20  # files above are hard-linked where the file system can, not copied


@dataclass(frozen=True)
class MergeReport:
    """What :func:`merge` did.

    Attributes:
        out: the new model folder.
        loras: name, strength, hashes and origin of each LoRA, as ``svi.json`` records it.
        changed, unchanged: number of tensors.
        rounding: error of storing the sum in the base's type, relative to what the LoRAs change (norms over all tensors);
            0.1 means that a tenth of their effect is noise.
        dtype: the base's type.
        size_bytes: of the weights that were written.
    """

    out: Path
    loras: tuple[Mapping[str, Any], ...]
    changed: int
    unchanged: int
    rounding: float
    dtype: str
    size_bytes: int


@dataclass(frozen=True, eq=False)
class _Planned:
    lora: LoraFile
    strength: float
    part: str
    record: dict[str, Any]


@dataclass
class _Tally:
    changed: int = 0
    unchanged: int = 0
    error: float = 0.0
    effect: float = 0.0
    size_bytes: int = 0
    dtypes: set[str] = field(default_factory=set)


def merge(
    base: str,
    loras: Sequence[str | LoraSpec],
    out: Path,
    *,
    expert: str | None = None,
    any_base: bool = False,
    allow_download: bool = False,
    shard_bytes: int = SHARD_BYTES,
    say: Callable[[str], None] = lambda line: None,
) -> MergeReport:
    """Write a model folder, in the layout of ``base``, whose transformer has ``loras`` in its weights.

    Args:
        base: model by name, folder or hub id.
        loras: ``NAME|FILE[:STRENGTH]`` each; whole-tensor differences (``diff``, ``diff_b``) in them are added too.
        out: the new folder.
        expert: ``high`` or ``low``, for a model of two experts; otherwise each LoRA's metadata say it.
        any_base: accept LoRAs whose metadata name other weights than these.
        shard_bytes: largest weight file to write, which is also about the memory needed.
        say: called with one line per stage.

    Raises:
        UserError: for LoRAs that do not fit, are in the weights already or belong to another base; for a value that
            leaves the range of the base's type; where ``out`` exists or does not fit on the disk.
    """
    refuse_existing(out)
    folder = find_model(base, allow_download=allow_download)
    specs = [parse_spec(spec) if isinstance(spec, str) else spec for spec in loras]
    if not specs:
        raise UserError("no LoRA is given: name at least one to merge")
    planned = _plan(base, folder, specs, expert, any_base, say)
    parts = {part: base_weights(folder, part) for part in dict.fromkeys(plan.part for plan in planned)}
    _refuse_full_disk(out, parts.values())
    tally = _Tally()
    with new_folder(out) as temporary:
        for part, weights in parts.items():
            place = temporary / weights.weights.relative_to(folder)
            place.mkdir(exist_ok=True)
            _write_part(weights, [plan for plan in planned if plan.part == part], place, shard_bytes, tally, say)
        _take_over(folder, temporary, {weights.weights for weights in parts.values()})
        settings = _settings(folder)
        merged = [*(settings.get(MERGED) or []), *(plan.record for plan in planned)]
        text = json.dumps({**settings, MERGED: merged}, indent=2, ensure_ascii=False) + "\n"
        (temporary / SETTINGS_FILE).write_text(text, encoding="utf-8")
    rounding = (tally.error / tally.effect) ** 0.5 if tally.effect else 0.0
    records = tuple(plan.record for plan in planned)
    return MergeReport(
        out, records, tally.changed, tally.unchanged, rounding, " + ".join(sorted(tally.dtypes)), tally.size_bytes
    )


# -- what to merge -----------------------------------------------------------------------------------------------------


def _plan(
    base: str, folder: Path, specs: Sequence[LoraSpec], expert: str | None, any_base: bool, say: Callable[[str], None]
) -> list[_Planned]:
    planned: list[_Planned] = []
    for spec in specs:
        if Path(spec.source).is_dir():
            raise UserError(f"{spec.source} is a folder: make one file of it first (svi lora convert)")
        path = find_lora(spec.source, folder)
        say(f"checking {path}")
        lora = lora_read.read(path)
        refuse_empty(lora)
        part = part_of(folder, expert or lora.metadata.expert, str(path))
        refuse(lora, misfits(lora, base_weights(folder, part).shapes))
        refuse_merged(lora, path, folder)
        base_hash = weights_sha256(folder, part)
        if not any_base:
            _refuse_other_base(lora, path, folder, base_hash)
        mark = fingerprint(lora)
        if any(plan.record["fingerprint"] == mark for plan in planned):
            raise UserError(
                f"{path} is given twice, maybe under another name: give it once, with the sum of the strengths"
            )
        record = {
            "name": spec.name,
            "strength": spec.strength,
            "preset": lora.metadata.preset,
            "expert": expert or lora.metadata.expert,
            "sha256": sha256(path),
            "fingerprint": mark,
            "base": base,
            "base_sha256": base_hash,
        }
        planned.append(_Planned(lora, spec.strength, part, {k: v for k, v in record.items() if v is not None}))
    return planned


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS_FILE
    return read_json(path) if path.is_file() else {}


def _refuse_other_base(lora: LoraFile, path: Path, folder: Path, base_hash: str) -> None:
    wanted = lora.metadata.base_sha256
    earlier = {merged.get("base_sha256") for merged in _settings(folder).get(MERGED) or []}
    if wanted is None or wanted == base_hash or wanted in earlier:
        return
    raise UserError(
        f"{path} was trained on {lora.metadata.base or 'another model'} (weights {wanted[:12]}), {folder} has other "
        f"weights ({base_hash[:12]}): take that base, or add --any-base if you mean it"
    )


# -- writing -----------------------------------------------------------------------------------------------------------


def _refuse_full_disk(out: Path, parts: Any) -> None:
    needed = sum(entry.size_bytes for weights in parts for entry in weights.entries.values())
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        gib = 2**30
        raise UserError(
            f"{out} needs {needed / gib:.1f} GiB, {free / gib:.1f} GiB are free: take another disk for --out"
        )


def _write_part(
    weights: BaseWeights,
    planned: Sequence[_Planned],
    place: Path,
    shard_bytes: int,
    tally: _Tally,
    say: Callable[[str], None],
) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    shards = _shards(weights, shard_bytes)
    names = [f"{STEM}-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else [f"{STEM}.safetensors"]
    weight_map: dict[str, str] = {}
    with Reader(weights) as reader:
        for file, shard in zip(names, shards, strict=True):
            say(f"writing {file}")
            tensors = {weights.entries[name].name: _merged(reader[name], name, planned, tally) for name in shard}
            try:
                save_file(tensors, place / file, metadata={"format": "pt"})
            except SafetensorError as error:
                raise UserError(f"cannot write {file}: {error}") from error
            weight_map.update(dict.fromkeys(tensors, file))
    total = sum(entry.size_bytes for entry in weights.entries.values())
    tally.size_bytes += total
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (place / f"{STEM}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(weights: BaseWeights, limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, entry in weights.entries.items():
        if shards[-1] and size + entry.size_bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += entry.size_bytes
    return shards


def _merged(weight: Tensor, name: str, planned: Sequence[_Planned], tally: _Tally) -> Tensor:
    """``weight`` plus what the LoRAs add to it: fp32 sums, stored in its own type."""
    changes = [change for plan in planned if (change := _change(name, plan)) is not None]
    if not changes:
        tally.unchanged += 1
        return weight
    change = sum(changes[1:], changes[0])
    exact = weight.float() + change
    stored = exact.to(weight.dtype)
    if not stored.isfinite().all():
        raise UserError(
            f"{name} leaves the range of {dtype_name(weight.dtype)} with these LoRAs: lower their strength, or take a "
            "base in bf16 or fp32"
        )
    tally.changed += 1
    tally.dtypes.add(dtype_name(weight.dtype))
    tally.error += float((stored.float() - exact).square().sum(dtype=torch.float64))
    tally.effect += float(change.square().sum(dtype=torch.float64))
    return stored


def _change(name: str, plan: _Planned) -> Tensor | None:
    pair = plan.lora.pairs.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
    difference = plan.lora.differences.get(name)
    if pair is None and difference is None:
        return None
    changes: list[Tensor] = []
    if pair is not None:
        changes.append(pair.scale * (pair.b.float() @ pair.a.float()))
    if difference is not None:
        changes.append(difference[0].float())
    return plan.strength * sum(changes[1:], changes[0])


def _take_over(folder: Path, target: Path, written: set[Path]) -> None:
    """Everything else of the model: large files linked where that is possible, small ones copied.

    No weights from the folders of which new ones were ``written``: another variant of them would lack the LoRA.
    """
    for file in sorted(folder.rglob("*")):
        relative = file.relative_to(folder)
        hidden = any(piece.startswith(".") for piece in relative.parts)
        replaced = file.parent in written and file.name.startswith(STEM)
        if not file.is_file() or hidden or replaced or relative.parts[0] == FOLDER:
            continue
        if relative == Path(SETTINGS_FILE) or not any(fnmatch.fnmatch(file.name, pattern) for pattern in HUB_FILES):
            continue
        copy = target / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        real = file.resolve()  # a hub cache holds links
        if real.stat().st_size < LINKED_BYTES:
            shutil.copyfile(real, copy)
            continue
        try:
            os.link(real, copy)
        except OSError:
            shutil.copyfile(real, copy)
