"""GGUF files: quantised weights, read back as the numbers they stand for.

Reading is the ``gguf`` library's (extra ``svi[gguf]``), which maps the file. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import torch

from svi.backends.weights import Tensors, reading
from svi.errors import UserError

MAGIC = b"GGUF"
# GGUF has at most four dimensions: the converters of ComfyUI store the shape of a video convolution under this name.
SHAPE_FIELD = "comfy.gguf.orig_shape."


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a GGUF file, by name.

    Raises:
        UserError: for a file that is missing or damaged, and where the library is not installed.
    """
    with _reader(path) as reader:
        return {tensor.name: _shape(reader, tensor) for tensor in reader.tensors}


def tensors(path: Path) -> Tensors:
    """Names and tensors in fp32 (or fp16, where stored so), one in memory at a time.

    Raises:
        UserError: as :func:`shapes`.
    """
    with _reader(path) as reader:
        gguf = _library(path)
        for tensor in reader.tensors:
            with _damage(path):
                if tensor.tensor_type in {gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16}:
                    values = tensor.data
                else:
                    values = gguf.dequantize(tensor.data, tensor.tensor_type)
                value = torch.from_numpy(values.copy()).reshape(_shape(reader, tensor))
            yield tensor.name, value


@contextmanager
def _reader(path: Path) -> Iterator[Any]:
    with reading(path), path.open("rb") as stream:
        if stream.read(4) != MAGIC:
            raise ValueError("not a GGUF file")
    gguf = _library(path)
    with _damage(path):
        reader = gguf.GGUFReader(path)
        end = max((tensor.data_offset + tensor.n_bytes for tensor in reader.tensors), default=0)
        if end > path.stat().st_size:
            raise ValueError(f"{end} bytes are announced, {path.stat().st_size} are there")
    yield reader


def _library(path: Path) -> Any:
    try:
        return import_module("gguf")
    except ImportError:
        raise UserError(f"reading {path} needs the library gguf: pip install 'stable-video-infinity[gguf]'") from None


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """The library knows no error of its own: what it trips over in a damaged file is one of these."""
    with reading(path):
        try:
            yield
        except (IndexError, KeyError, AssertionError, OverflowError, UnicodeDecodeError, MemoryError) as error:
            raise ValueError(f"{type(error).__name__} {error}") from error


def _shape(reader: Any, tensor: Any) -> tuple[int, ...]:
    field = reader.get_field(f"{SHAPE_FIELD}{tensor.name}")
    stored = tuple(int(size) for size in reversed(tensor.shape))
    if field is None:
        return stored
    shape = tuple(int(field.parts[part][0]) for part in field.data)
    if prod(shape) != prod(stored):
        raise ValueError(f"{tensor.name} is stored as {stored}, and said to be {shape}")
    return shape
