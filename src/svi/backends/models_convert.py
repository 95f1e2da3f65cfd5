"""Writing any model as a diffusers folder, once: tensor by tensor, so that the model need not fit into memory.

What the reference keeps in fp32 stays in fp32, so that the new folder loads to the same bits as the old one in that type.
Knows nothing about LoRAs (``svi lora merge`` puts those into weights).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svi.backends.experts import WAN_BOUNDARY
from svi.backends.folders import STEM, STEMS
from svi.backends.models_parts import EXACT, STAGES, Part, survey
from svi.backends.placement import DTYPES
from svi.backends.weights import SETTINGS_FILE, checked, find_model, quiet_libraries, read_json
from svi.errors import UserError, nearest
from svi.files import new_folder, sync_file, write_synced

SHARD_BYTES = 5 * 10**9
CLASSES = {
    "transformer": ("diffusers", "WanTransformer3DModel"),
    "transformer_2": ("diffusers", "WanTransformer3DModel"),
    "vae": ("diffusers", "AutoencoderKLWan"),
    "text_encoder": ("transformers", "UMT5EncoderModel"),
    "image_encoder": ("transformers", "CLIPVisionModel"),
}


@dataclass
class Converted:
    """What :func:`convert` wrote: bytes by part, in ``folder``."""

    folder: Path
    bytes: dict[str, int] = field(default_factory=dict)


def convert(
    model: str,
    out: Path,
    *,
    dtype: str = "bf16",
    shard_bytes: int = SHARD_BYTES,
    say: Callable[[str], None] = lambda line: None,
) -> Converted:
    """Write ``model`` as a new diffusers folder.

    Args:
        model: a folder of any layout, or a hub id in the cache.
        out: the new folder; it appears when it is whole.
        dtype: of transformer and text encoder; VAE and CLIP stay in fp32, as do the transformer's norms and modulation.
        shard_bytes: a weight file holds at most so much; it is also what is in memory at once.
        say: called with one line per part.

    Raises:
        UserError: for a model that is missing, damaged or no Wan; for a folder that exists; for too little room on the disk.
    """
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}: {nearest(dtype, DTYPES)}")
    if out.exists():
        raise UserError(f"{out} exists already: give another folder, or remove it")
    source = find_model(model)
    found = survey(source)
    kind = DTYPES[dtype]
    modules = {name: part.verify() for name, part in found.parts.items()}
    needed = sum(_bytes(name, module, kind) for name, module in modules.items())
    _room(out, needed)
    done = Converted(out)
    with new_folder(out) as folder, quiet_libraries():
        for name, part in found.parts.items():
            say(f"writing {STAGES[name]}")
            done.bytes[name] = _write_part(folder / name, part, modules[name], kind, shard_bytes)
        if found.tokenizer is not None:
            _copy(found.tokenizer, folder / "tokenizer")
        _write_json(folder / "model_index.json", _index(found.parts, found.boundary, modules))
        (folder / "scheduler").mkdir()
        _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
        settings = source / SETTINGS_FILE
        defaults = {**found.defaults, **(read_json(settings) if settings.is_file() else {})}
        if defaults:
            _write_json(folder / SETTINGS_FILE, defaults)
    return done


# Euler on the shifted schedule, which is what SVI samples with; the folders on the hub have UniPC at shift 3.
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 5.0}


def _index(parts: Any, boundary: float | None, modules: Any) -> dict[str, Any]:
    index: dict[str, Any] = {"_class_name": "WanImageToVideoPipeline"}
    index |= {name: list(CLASSES[name]) if name in parts else [None, None] for name in CLASSES}
    index |= {"tokenizer": ["transformers", "T5TokenizerFast"], "image_processor": [None, None]}
    index["scheduler"] = ["diffusers", SCHEDULER["_class_name"]]
    if "transformer_2" in parts:
        index["boundary_ratio"] = WAN_BOUNDARY if boundary is None else boundary
    if modules["vae"].config.patch_size is not None:
        index["expand_timesteps"] = True
    return index


def _type_of(part: str, module: Any, tensor: str, dtype: torch.dtype) -> torch.dtype:
    keep = module._keep_in_fp32_modules or () if part.startswith("transformer") else ()
    return torch.float32 if part in EXACT or any(word in tensor.split(".") for word in keep) else dtype


def _bytes(part: str, module: Any, dtype: torch.dtype) -> int:
    return sum(
        value.numel() * _type_of(part, module, name, dtype).itemsize for name, value in module.state_dict().items()
    )


def _room(out: Path, needed: int) -> None:
    place = next(parent for parent in out.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{place} has {free / 1e9:.1f} GB free, the converted model takes {needed / 1e9:.1f} GB: free some"
        )


def _write_part(folder: Path, part: Part, module: Any, dtype: torch.dtype, shard_bytes: int) -> int:
    folder.mkdir()
    writer = _Shards(folder, STEMS.get(part.name, STEM), shard_bytes)
    for name, tensor in checked(module, part.tensors(), source=part.place, optional=part.optional):
        writer.add(name, tensor.to(_type_of(part.name, module, name, dtype)).contiguous())
    if part.name in STEMS:
        config = {**module.config.to_dict(), "architectures": [CLASSES[part.name][1]]}
    else:
        config = {"_class_name": CLASSES[part.name][1]} | {
            name: value for name, value in module.config.items() if not name.startswith("_")
        }
    _write_json(folder / "config.json", config)
    return writer.finish()


class _Shards:
    """Safetensors files of limited size, numbered when it is known how many there are."""

    def __init__(self, folder: Path, stem: str, limit: int) -> None:
        self.folder, self.stem, self.limit = folder, stem, limit
        self.pending: dict[str, Tensor] = {}
        self.files: list[tuple[Path, list[str]]] = []
        self.total = self.held = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one tensor."""
        size = tensor.numel() * tensor.element_size()
        if self.pending and self.held + size > self.limit:
            self._flush()
        # A tensor that shares its memory with another (a slice) would be written whole.
        self.pending[name] = tensor.clone()
        self.held += size
        self.total += size

    def _flush(self) -> None:
        from safetensors.torch import save_file

        path = self.folder / f"part-{len(self.files)}.safetensors"
        save_file(self.pending, path, metadata={"format": "pt"})
        sync_file(path)
        self.files.append((path, list(self.pending)))
        self.pending, self.held = {}, 0

    def finish(self) -> int:
        """Write the rest and the index; returns bytes of all tensors."""
        if self.pending:
            self._flush()
        count = len(self.files)
        weight_map: dict[str, str] = {}
        for number, (path, names) in enumerate(self.files, 1):
            single = f"{self.stem}.safetensors"
            name = single if count == 1 else f"{self.stem}-{number:05d}-of-{count:05d}.safetensors"
            path.rename(self.folder / name)
            weight_map |= dict.fromkeys(names, name)
        if count > 1:
            index = {"metadata": {"total_size": self.total}, "weight_map": weight_map}
            _write_json(self.folder / f"{self.stem}.safetensors.index.json", index)
        return self.total


def _copy(source: Path, target: Path) -> None:
    target.mkdir()
    for path in sorted(source.glob("*")):
        if path.is_file() and path.suffix in {".json", ".model", ".txt"}:
            shutil.copyfile(path, target / path.name)


def _write_json(path: Path, value: Any) -> None:
    write_synced(path, (json.dumps(value, indent=2, default=str) + "\n").encode())
