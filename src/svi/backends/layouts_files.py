"""Weight files of every kind behind two functions: names and shapes from headers alone, and tensors one at a time.

safetensors (plain, fp8, scaled fp8), ``.pth`` checkpoints of plain tensors, GGUF. Nothing is unpickled but tensors. Knows nothing
about what the tensors are for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from svi.backends import fp8, gguf
from svi.backends.weights import Tensors, checkpoint, reading
from svi.errors import UserError

SAFETENSORS, GGUF = ".safetensors", ".gguf"
CHECKPOINTS = (".pth", ".pt", ".ckpt", ".bin")
SUFFIXES = (SAFETENSORS, GGUF, *CHECKPOINTS)


@dataclass(frozen=True)
class Header:
    """What a weight file says about itself.

    Attributes:
        shapes: of its tensors by stored name, without the helpers of quantisation.
        quantised: ``fp8``, ``scaled fp8``, ``GGUF``, or None.
        metadata: words that a safetensors file carries.
    """

    shapes: Mapping[str, tuple[int, ...]]
    quantised: str | None
    metadata: Mapping[str, str]


def header(path: Path) -> Header:
    """Names and shapes in a weight file; no tensor is read.

    Raises:
        UserError: for a file that is missing, cut short, of another kind, or quantised in a way that cannot be read.
    """
    if path.suffix == GGUF:
        return Header(gguf.shapes(path), "GGUF", {})
    if path.suffix in CHECKPOINTS:
        state = checkpoint(path, headers=True)
        return Header({name: tuple(value.shape) for name, value in state.items()}, None, {})
    if path.suffix != SAFETENSORS:
        raise UserError(f"{path} is no weight file: those end in {', '.join(SUFFIXES)}")
    from safetensors import safe_open

    with reading(path), safe_open(str(path), framework="pt", device="cpu") as handle:
        pieces = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 - the handle is no mapping
        shapes = {name: tuple(piece.get_shape()) for name, piece in pieces.items()}
        types = {name: str(piece.get_dtype()) for name, piece in pieces.items()}
        metadata: dict[str, str] = dict(handle.metadata() or {})
    fp8.refuse_unknown(path, types, shapes)
    kept = {name: shape for name, shape in shapes.items() if not fp8.is_helper(name)}
    return Header(kept, fp8.kind(types), metadata)


def headers(paths: Sequence[Path]) -> Tensors:
    """Names and tensors without values (meta device) of weight files: what :func:`tensors` gives, before reading."""
    for path in paths:
        for name, shape in header(path).shapes.items():
            yield name, torch.empty(shape, device="meta")


def tensors(paths: Sequence[Path]) -> Tensors:
    """Names and tensors of weight files, one tensor in memory at a time; quantised ones as the numbers they stand for.

    Raises:
        UserError: as :func:`header`.
    """
    for path in paths:
        if path.suffix == GGUF:
            yield from gguf.tensors(path)
        elif path.suffix == SAFETENSORS:
            yield from fp8.tensors(path)
        else:
            state = checkpoint(path)
            while state:  # what was used is let go
                name = next(iter(state))
                yield name, state.pop(name)


def shapes_of(stream: Iterable[tuple[str, Tensor]]) -> dict[str, tuple[int, ...]]:
    """Shapes of a stream of tensors by name."""
    return {name: tuple(value.shape) for name, value in stream}


def size_bytes(paths: Sequence[Path]) -> int:
    """Bytes of files on disk."""
    return sum(path.stat().st_size for path in paths)
