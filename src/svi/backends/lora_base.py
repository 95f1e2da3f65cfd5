"""The transformer weights that LoRAs are made for: read tensor by tensor, in either layout, and told apart by a hash.

Headers tell names and shapes; tensors are read one at a time, so that a 14B model never has to be in memory. Knows
nothing about LoRAs but their fingerprint.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from svi.backends.lora_read import LoraFile
from svi.backends.official import dit_name
from svi.backends.weights import EXPERT_FOLDERS, layout, reading, safetensors_files
from svi.backends.weights import OFFICIAL_STEM as STEM
from svi.errors import UserError

# Which folder of a diffusers model holds which expert of Wan 2.2; models with one transformer have the first alone.
PARTS = {"high": "transformer", "low": "transformer_2"}
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Entry:
    """One tensor of the base: its file, its name there, its shape and type (as safetensors call it)."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class BaseWeights:
    """The transformer of a model folder, by diffusers names, in the order in which it is stored.

    Attributes:
        folder: the model folder; ``weights``: the folder inside it that holds the tensors.
        files: the weight files.
    """

    folder: Path
    weights: Path
    files: tuple[Path, ...]
    entries: Mapping[str, Entry]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by diffusers names."""
        return {name: entry.shape for name, entry in self.entries.items()}


def base_weights(folder: Path, part: str = "transformer") -> BaseWeights:
    """What the headers say of the transformer in a model folder.

    Args:
        part: folder of the transformer in the diffusers layout; see ``PARTS``.

    Raises:
        UserError: for a folder that is no model, damaged or missing files, quantised weights, another model's tensors.
    """
    from safetensors import safe_open

    official = layout(folder) == "official"
    place = _official_place(folder, part) if official else folder / part
    files = safetensors_files(place, STEM)
    entries: dict[str, Entry] = {}
    for file in files:
        with reading(file), safe_open(str(file), framework="pt", device="cpu") as handle:
            for stored in handle.keys():  # noqa: SIM118 - the handle is no mapping
                piece = handle.get_slice(stored)
                entry = Entry(file, stored, tuple(piece.get_shape()), str(piece.get_dtype()))
                name = dit_name(stored.removeprefix("model.diffusion_model.")) if official else stored
                if name is None:
                    raise UserError(f"{file} holds {stored}, which a Wan model does not have")
                if entry.dtype not in ITEM_BYTES:
                    raise UserError(
                        f"{file} holds {stored} in {entry.dtype}: LoRAs are merged into full weights and extracted from "
                        "them; take the bf16 model, and quantise afterwards"
                    )
                entries[name] = entry
    return BaseWeights(folder, place, tuple(files), entries)


def experts(folder: Path) -> bool:
    """Whether the model in ``folder`` has two experts (Wan 2.2)."""
    return (folder / PARTS["low"]).is_dir() or (folder / EXPERT_FOLDERS[1]).is_dir()


def _official_place(folder: Path, part: str) -> Path:
    """Where the official layout has a transformer: in the folder itself, or in one per expert."""
    own = folder / EXPERT_FOLDERS[part == PARTS["low"]]
    return own if own.is_dir() else folder


def part_of(folder: Path, expert: str | None, what: str) -> str:
    """The folder of the transformer that ``expert`` means.

    Raises:
        UserError: for a model of two experts where none is named, and for the low-noise expert of a model without one.
    """
    if not experts(folder):
        if expert == "low":
            raise UserError(f"{what} is for the low-noise expert, {folder} has one transformer only: take its own base")
        return PARTS["high"]
    if expert is None:
        raise UserError(
            f"{folder} has two experts, and nothing says which of them {what} is for: add --expert high|low"
        )
    return PARTS[expert]


class Reader:
    """Reads the tensors of a base one at a time; a context manager that holds its files open."""

    def __init__(self, base: BaseWeights) -> None:
        self._base, self._stack = base, ExitStack()
        self._handles: dict[Path, Any] = {}

    def __enter__(self) -> Reader:
        from safetensors import safe_open

        for file in self._base.files:
            with reading(file):
                self._handles[file] = self._stack.enter_context(safe_open(str(file), framework="pt", device="cpu"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handles.clear()
        self._stack.close()

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of that diffusers name, in its own type."""
        entry = self._base.entries[name]
        with reading(entry.file):
            tensor: Tensor = self._handles[entry.file].get_tensor(entry.name)
        return tensor


# -- identity ----------------------------------------------------------------------------------------------------------


def weights_sha256(folder: Path, part: str = "transformer") -> str:
    """Hash of a transformer's weights: the same in both layouts and however they are sharded, another per type.

    Over name, type, shape and bytes of each tensor, by diffusers names in alphabetical order. Reads all of them once per
    process.
    """
    base = base_weights(folder, part)
    stamps = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in base.files)
    return _weights_sha256(str(folder), part, stamps)


@lru_cache(maxsize=64)
def _weights_sha256(folder: str, part: str, stamps: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    base = base_weights(Path(folder), part)
    with Reader(base) as reader:
        for name in sorted(base.entries):
            _add(digest, name, reader[name])
    return digest.hexdigest()


def fingerprint(lora: LoraFile) -> str:
    """Hash of what a LoRA adds to the weights: the same under every naming, and whether alpha is stated or multiplied in."""
    digest = hashlib.sha256()
    for module in sorted(lora.pairs):
        pair = lora.pairs[module]
        _add(digest, f"{module}.A", pair.a.float())
        _add(digest, f"{module}.B", pair.b.float() * pair.scale)
    for name in sorted(lora.differences):
        _add(digest, name, lora.differences[name][0].float())
    return digest.hexdigest()


def _add(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
