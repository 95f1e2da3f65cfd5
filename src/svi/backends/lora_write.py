"""Writing LoRAs: names and alpha as each format wants them, metadata completed, files whole or not at all.

:func:`save_lora` is what training calls. What a format cannot say is refused, never dropped unseen.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svi import __version__
from svi.backends.lora_formats import Format, difference_name, factor_name
from svi.backends.lora_read import DIFFUSERS_METADATA, METADATA, LoraFile, LoraMetadata, Pair, assemble, refuse_empty
from svi.errors import UserError
from svi.files import replacing, sync_file

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What formats cannot say, and why.
NO_DIFFERENCES = {
    "diffusers": "diffusers drops or refuses them",
    "official": "the published code passes over them",
}
NO_NETWORKS = {
    "diffusers": "diffusers refuses files that hold them",
    "comfyui": "ComfyUI passes over them",
}


def save_lora(
    path: Path,
    source: Mapping[str, Tensor] | Any,
    metadata: LoraMetadata | None = None,
    *,
    adapter: str = "default",
    to: Format = "diffusers",
    dtype: torch.dtype | None = None,
    replace: bool = False,
) -> LoraMetadata:
    """Write a LoRA as safetensors, so that ``load_backend(loras=[path])`` reads it back.

    Args:
        source: tensors by any dialect's names (``blocks.0.attn1.to_q.lora_A.weight``: (rank, in), B: (out, rank)), or a
            transformer with a peft adapter (not wrapped by DDP or FSDP: gather the tensors first).
        metadata: what is known; rank, alpha, targets and version are completed. Its ``alpha`` counts for tensors that
            state none; without any the scale is 1.
        adapter: which adapter of a transformer.
        dtype: storage type, default as they are.
        replace: whether a file that exists may be replaced.

    Returns:
        The metadata as written.

    Raises:
        UserError: for tensors that are no LoRA, metadata that contradict them, or a file that cannot be written.
    """
    stated = metadata or LoraMetadata()
    if isinstance(source, Mapping):
        config = None if stated.alpha is None else {"lora_alpha": stated.alpha}
        lora = assemble(source, str(path), config=config)
    else:
        tensors, config = _adapter(source, adapter)
        lora = assemble(tensors, str(path), config=config)
    refuse_empty(lora)
    found = completed(stated, lora)
    for name in ("rank", "alpha"):
        said, is_ = getattr(stated, name), getattr(found, name)
        if said is not None and said != is_:
            raise UserError(f"{path}: the metadata say {name} {said:g}, the tensors {is_:g}: leave {name} out")
    return write_lora(path, suited(lora, to, dtype=dtype), stated, to, replace=replace)


def write_lora(
    path: Path, lora: LoraFile, metadata: LoraMetadata, to: Format, *, replace: bool = False
) -> LoraMetadata:
    """Write ``lora``, which must suit format ``to`` (:func:`suited`); returns the metadata, completed."""
    described = completed(metadata, lora)
    write(path, spelled(lora, to), entries(described, lora, to), replace=replace)
    return described


def _adapter(transformer: Any, adapter: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from peft import get_peft_model_state_dict

    configs = getattr(transformer, "peft_config", None) or {}
    if adapter not in configs:
        raise UserError(f"the transformer has no LoRA called {adapter!r}; it has {', '.join(configs) or 'none'}")
    tensors = get_peft_model_state_dict(transformer, adapter_name=adapter)
    return {name: tensor.detach() for name, tensor in tensors.items()}, configs[adapter].to_dict()


def completed(metadata: LoraMetadata, lora: LoraFile) -> LoraMetadata:
    """``metadata`` with what the tensors show: rank, alpha, kinds of targets; and the version that writes."""
    ranks = Counter(pair.rank for pair in lora.pairs.values())
    rank = ranks.most_common(1)[0][0] if ranks else None
    alphas = Counter(_alpha(pair) for pair in lora.pairs.values() if pair.rank == rank)
    alpha = alphas.most_common(1)[0][0] if alphas else None
    targets = tuple(sorted({kind(module) for module in lora.pairs}))
    return metadata.model_copy(update=dict(rank=rank, alpha=alpha, targets=targets, version=__version__))


def kind(module: str) -> str:
    """``blocks.7.attn1.to_q`` -> ``attn1.to_q``: a module without the number of its block."""
    return module.split(".", 2)[2] if module.startswith("blocks.") else module


def _alpha(pair: Pair) -> float:
    return float(pair.rank) if pair.alpha is None else pair.alpha


def suited(lora: LoraFile, to: Format, *, dtype: torch.dtype | None = None, lora_only: bool = False) -> LoraFile:
    """``lora`` as format ``to`` can say it.

    A and B stay as they are, to the byte, with these exceptions: ``dtype`` changes their type, and ``official``, which
    knows no alpha, gets ``alpha / rank`` multiplied into B where it is not 1 (refused where that would round).

    Args:
        lora_only: leave out what is no LoRA instead of refusing it.

    Raises:
        UserError: for what the format cannot say, and values beyond the range of ``dtype``.
    """
    if lora_only:
        lora = replace_fields(lora, differences={}, networks={}, foreign={})
    _refuse_loss(lora, to)
    pairs = {}
    for module, pair in lora.pairs.items():
        b, alpha = (_folded(pair, lora.source, dtype), None) if to == "official" else (pair.b, pair.alpha)
        a, b = (_cast(side, dtype, pair.stem, lora.source) for side in (pair.a, b))
        pairs[module] = Pair(a, b, alpha, pair.stem)
    differences = {
        parameter: (_cast(tensor, dtype, name, lora.source), name)
        for parameter, (tensor, name) in lora.differences.items()
    }
    return replace_fields(lora, pairs=pairs, differences=differences)


def spelled(lora: LoraFile, to: Format) -> dict[str, Tensor]:
    """The tensors of ``lora``, which must suit format ``to``, under their names there."""
    tensors: dict[str, Tensor] = {}
    for module, pair in lora.pairs.items():
        tensors[factor_name(module, "A", to)] = pair.a
        tensors[factor_name(module, "B", to)] = pair.b
        if to == "comfyui":
            tensors[factor_name(module, "alpha", to)] = torch.tensor(_alpha(pair))
    tensors.update((difference_name(parameter, to), tensor) for parameter, (tensor, _) in lora.differences.items())
    return {**tensors, **lora.networks}


def _refuse_loss(lora: LoraFile, to: Format) -> None:
    remedy = "--lora-only leaves them out"
    if lora.foreign:
        name, what = next(iter(lora.foreign.items()))
        raise UserError(
            f"{lora.source} holds {len(lora.foreign)} tensors that are no LoRA of a Wan model and have no name in any "
            f"format, the first {name!r} ({what}): {remedy}"
        )
    if lora.differences and to in NO_DIFFERENCES:
        name = next(iter(lora.differences.values()))[1]
        raise UserError(
            f"{lora.source} changes {len(lora.differences)} whole tensors beside its LoRA, the first {name!r}, which the "
            f"{to} format cannot say ({NO_DIFFERENCES[to]}): {remedy}, --to comfyui keeps them, and svi lora merge applies them"
        )
    if lora.networks and to in NO_NETWORKS:
        name = next(iter(lora.networks))
        raise UserError(
            f"{lora.source} holds {len(lora.networks)} tensors of another network, the first {name!r}, which the {to} "
            f"format cannot say ({NO_NETWORKS[to]}): {remedy}, and --to official keeps them"
        )


def _folded(pair: Pair, source: str, dtype: torch.dtype | None) -> Tensor:
    """B times the scale: exactly, or in fp32, where rounding stays below 1e-7."""
    if pair.scale == 1:
        return pair.b
    exact = pair.b.double() * pair.scale
    b = exact.to(dtype or pair.b.dtype)
    if b.dtype == torch.float32 or torch.equal(b.double(), exact):
        return b
    raise UserError(
        f"{source} has alpha / rank = {pair.scale:g}, which the official format cannot say, and multiplying it into B of "
        f"{pair.stem} would round in {dtype_name(b.dtype)}: add --dtype float32, or take another format"
    )


def _cast(tensor: Tensor, dtype: torch.dtype | None, name: str, source: str) -> Tensor:
    if dtype is None or dtype == tensor.dtype:
        return tensor
    changed = tensor.to(dtype)
    if not torch.equal(changed.isfinite(), tensor.float().isfinite()):
        raise UserError(f"{source}: values of {name} are beyond {dtype_name(dtype)}: take --dtype bfloat16")
    return changed


def dtype_name(dtype: torch.dtype) -> str:
    """``bfloat16`` of ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def entries(metadata: LoraMetadata, lora: LoraFile, to: Format) -> dict[str, str]:
    """The metadata of a safetensors file: ours, diffusers' own where it is their format, and what was there before."""
    kept = {name: value for name, value in lora.raw.items() if name not in {METADATA, DIFFUSERS_METADATA}}
    ours = metadata.model_dump(exclude_defaults=True, mode="json")
    result = {"format": "pt", **kept, METADATA: json.dumps(ours, ensure_ascii=False, allow_nan=False)}
    if to == "diffusers":
        result[DIFFUSERS_METADATA] = json.dumps(_lora_config(metadata, lora))
    return result


def _lora_config(metadata: LoraMetadata, lora: LoraFile) -> dict[str, Any]:
    """What diffusers hands to peft's LoraConfig; the only place of its format where alpha can be said."""
    rank, alpha = metadata.rank, metadata.alpha
    return {
        "transformer.r": rank,
        "transformer.lora_alpha": alpha,
        "transformer.target_modules": list(lora.pairs),
        "transformer.rank_pattern": {m: pair.rank for m, pair in lora.pairs.items() if pair.rank != rank},
        "transformer.alpha_pattern": {m: _alpha(pair) for m, pair in lora.pairs.items() if _alpha(pair) != alpha},
    }


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, replace: bool = False) -> None:
    """Write safetensors under a temporary name, sync, rename.

    Raises:
        UserError: where the file exists (unless ``replace``), or cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    refuse_existing(path, replace=replace)
    if path.suffix != ".safetensors":
        raise UserError(f"{path} must end in .safetensors: that is the only kind of file written here")
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with replacing(path) as temporary:
            save_file(whole, temporary, metadata=dict(metadata))
            sync_file(temporary)
    except SafetensorError as error:
        raise UserError(f"cannot write {path}: {error}") from error


def refuse_existing(path: Path, *, replace: bool = False) -> None:
    """Raise UserError where ``path`` is taken, or its folder is not there."""
    if path.exists() and not replace:
        raise UserError(f"{path} exists already and is not replaced: give another name")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: the folder {path.parent} does not exist")
