"""One bucket of an error bank: errors packed into blocks, and the search for the nearest of them.

An error is flattened and cut into blocks of 1024 values; a bucket keeps entries in chunks ``(blocks, rows, 1024)`` that are
allocated as it fills and never copied. So the products of a new error with all entries are one batched matrix-vector
product that reads the bucket once. Knows nothing about noise levels, policies or ages.

*Nearest* is exact in this sense: among the entries as they would be sampled (rounded to the bank's storage), the one whose L2
distance from the new error, rounded likewise, is least in fp64; of equals, the one in the lowest slot. The fast products
are only a filter with a proven margin; what it lets through is measured again in fp64.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from svi.bank_plan import BLOCK, StoragePlan, readable
from svi.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
CHUNK_BYTES = 160 * 2**20
"""Largest chunk, so that little is allocated before it is needed; rows are shared out evenly."""
PIECE = 256
"""Blocks that are turned into fp64 at a time: 2 MB."""
BUFFER_VALUES = 2**18
"""fp32 values converted at a time: 1 MB, which stays in a core's cache."""

MANY = 8
"""If more candidates than this pass the bf16 filter (all errors much alike), those of fp32 sums are taken instead."""

LARGEST = 1e6
"""Largest value of an error: latents have unit variance, so a larger one means that training has diverged."""

# The margin of the filter. A sum of BLOCK products errs by at most BLOCK * 2^-24 of the sum of their magnitudes, in any
# order of summation (Higham, Accuracy and Stability, 3.1), and by Cauchy-Schwarz those add up to at most the product of the
# norms; int8 sums are exact, and only the rounding of each value by its scale counts. Doubled, for safety.
SUM_ERROR = 2 * BLOCK * 2.0**-24
BF16_ERROR = 2.0**-8  # a block's sum, rounded to bf16 on output, again doubled
REDUCED_ERROR = 2.0**-6  # inputs rounded to bf16 or tf32: what torch.set_float32_matmul_precision may allow
FP64_ERROR = 1e-11
UNDERFLOW = 1e-31  # per value: products of numbers that are flushed to zero


@dataclass(frozen=True)
class Packed:
    """An error as it is stored.

    Attributes:
        values: ``(blocks, 1024)`` in the storage's dtype.
        scales: ``(blocks,)`` fp32, int8 only.
        squared_norm: of what is stored, summed in fp64.
    """

    values: Tensor
    scales: Tensor | None
    squared_norm: float


def pack(error: Tensor, plan: StoragePlan) -> Packed:
    """Round and cut ``(C, frames, h, w)``.

    Raises:
        ValueError: if a value is not finite, or far too large to be an error of a latent.
    """
    flat = error.detach().cpu().flatten()
    low, high = flat.aminmax()
    largest = max(-float(low), float(high))
    if not largest <= LARGEST:  # true of NaN too
        raise ValueError(
            f"an error that is not finite or beyond {LARGEST:g} is refused: the model's prediction has diverged; skip this "
            "step, and lower the learning rate if it comes again"
        )
    int8 = plan.storage == "int8"
    blocks = torch.zeros(plan.blocks, BLOCK, dtype=torch.float32 if int8 else DTYPES[plan.storage])
    blocks.view(-1)[: flat.numel()] = flat
    scales = None
    if int8:
        scales = (blocks.abs().amax(dim=1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        blocks = (blocks / scales[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    return Packed(blocks, scales, _squared_distance(blocks, scales))


def unpack(values: Tensor, scales: Tensor | None) -> Tensor:
    """``(blocks, 1024)`` as stored -> fp32, as sampled."""
    return values.float() if scales is None else values.float() * scales[:, None]


def _squared_distance(
    values: Tensor, scales: Tensor | None, others: Tensor | None = None, other_scales: Tensor | None = None
) -> float:
    """Squared L2 distance of two entries as sampled, or of one from zero, in fp64; piece by piece, to stay in cache."""

    def exact(blocks: Tensor, scales: Tensor | None, first: int) -> Tensor:
        piece = slice(first, first + PIECE)
        return blocks[piece].double() if scales is None else unpack(blocks[piece], scales[piece]).double()

    total = 0.0
    for first in range(0, len(values), PIECE):
        part = exact(values, scales, first)
        if others is not None:
            part -= exact(others, other_scales, first)
        part = part.view(-1)
        total += float(part.dot(part))
    return total


@dataclass(frozen=True)
class Chunk:
    """Room for some entries: values ``(blocks, rows, 1024)``, scales ``(blocks, rows)`` for int8."""

    values: Tensor
    scales: Tensor | None

    @property
    def rows(self) -> int:
        return self.values.shape[1]


class Bucket:
    """Errors of one noise level.

    Args:
        plan: how entries are stored.
        folder: where to map files; None = in memory.
    """

    def __init__(self, plan: StoragePlan, folder: Path | None = None) -> None:
        self.plan, self.folder = plan, folder
        self.fill = 0
        self.rows = -(-plan.capacity // -(-plan.capacity * plan.entry_bytes // CHUNK_BYTES))
        self.chunks: list[Chunk] = []

    @property
    def allocated_bytes(self) -> int:
        return sum(t.nbytes for c in self.chunks for t in (c.values, c.scales) if t is not None)

    def reserve(self, entries: int) -> None:
        """Allocate chunks until there is room for ``entries``."""
        while (first := len(self.chunks) * self.rows) < entries:
            shape = (self.plan.blocks, min(self.rows, self.plan.capacity - first), BLOCK)
            dtype = DTYPES[self.plan.storage]
            scales = _allocate(shape[:2], torch.float32, self.folder) if self.plan.storage == "int8" else None
            self.chunks.append(Chunk(_allocate(shape, dtype, self.folder), scales))

    def write(self, slot: int, packed: Packed) -> None:
        """Put an entry into ``slot``: one of those filled, or the next."""
        assert slot <= self.fill < self.plan.capacity or slot < self.fill
        self.reserve(slot + 1)
        chunk, row = self._place(slot)
        chunk.values[:, row] = packed.values
        if chunk.scales is not None:
            assert packed.scales is not None
            chunk.scales[:, row] = packed.scales
        self.fill = max(self.fill, slot + 1)

    def read(self, slot: int) -> Tensor:
        """Entry ``(C, frames, h, w)``, fp32: a copy."""
        shape = self.plan.kept_shape
        return unpack(*self._row(slot)).flatten()[: math.prod(shape)].view(shape).clone()

    def distance(self, packed: Packed, slot: int) -> float:
        """L2 distance between a packed error and an entry, in fp64."""
        return math.sqrt(_squared_distance(packed.values, packed.scales, *self._row(slot)))

    def nearest(self, packed: Packed, squared_norms: Tensor) -> tuple[int, float]:
        """Slot and distance of the entry nearest to a packed error.

        Args:
            packed: the new error.
            squared_norms: ``(fill,)`` fp64 of the entries.
        """
        slots = self._candidates(packed, squared_norms, fast=True)
        if len(slots) > MANY:
            slots = self._candidates(packed, squared_norms, fast=False)
        distances = [self.distance(packed, slot) for slot in slots]
        best = min(range(len(slots)), key=distances.__getitem__)
        return slots[best], distances[best]

    def _candidates(self, packed: Packed, squared_norms: Tensor, *, fast: bool) -> list[int]:
        """Slots that may be the nearest, for all that rounding can have done."""
        with torch.autocast("cpu", enabled=False):
            products, uncertain = self._products(packed, fast)
        norms = packed.squared_norm + squared_norms
        uncertain += _sum_error(self.plan.storage) * (packed.squared_norm * squared_norms).sqrt()
        margin = 2 * (uncertain + UNDERFLOW * BLOCK * self.plan.blocks) + FP64_ERROR * norms
        squared = norms - 2 * products
        slots: list[int] = ((squared - margin) <= (squared + margin).min()).nonzero().flatten().tolist()
        return slots

    def _place(self, slot: int) -> tuple[Chunk, int]:
        return self.chunks[slot // self.rows], slot % self.rows

    def _row(self, slot: int) -> tuple[Tensor, Tensor | None]:
        if not 0 <= slot < self.fill:
            raise IndexError(f"slot {slot} of a bucket that holds {self.fill} errors")
        chunk, row = self._place(slot)
        return chunk.values[:, row], None if chunk.scales is None else chunk.scales[:, row]

    def _products(self, packed: Packed, fast: bool) -> tuple[Tensor, Tensor]:
        """Inner products with all entries, and what rounding of the blocks' sums may have changed. ``(fill,)`` fp64 both."""
        products, uncertain = [], []
        for first, chunk in zip(range(0, self.fill, self.rows), self.chunks, strict=False):
            used = min(chunk.rows, self.fill - first)
            sums = torch.cat(list(_block_sums(chunk.values[:, :used], packed.values, fast)))
            rounding = BF16_ERROR if sums.dtype == torch.bfloat16 else 0.0
            sums = sums.double()
            if chunk.scales is not None:
                assert packed.scales is not None
                sums *= chunk.scales[:, :used].double().mul_(packed.scales[:, None])
            products.append(sums.sum(dim=0))
            uncertain.append(sums.abs_().sum(dim=0) * rounding)
        return torch.cat(products), torch.cat(uncertain)


def _block_sums(values: Tensor, query: Tensor, fast: bool) -> Iterator[Tensor]:
    """Inner products block by block, ``(blocks, rows)`` in pieces.

    Args:
        values: ``(blocks, rows, 1024)``.
        query: ``(blocks, 1024)`` of the same dtype.
        fast: bf16 products may be summed to bf16.
    """
    if values.dtype == torch.float32 or (fast and values.dtype == torch.bfloat16 and _bf16_sums_in_fp32()):
        yield torch.bmm(values, query[..., None])[..., 0]
        return
    rows = values.shape[1]
    step = max(1, BUFFER_VALUES // (rows * BLOCK))
    buffer = torch.empty(step, rows, BLOCK)
    for first in range(0, len(values), step):
        piece, part = values[first : first + step], query[first : first + step]
        yield buffer[: len(piece)].copy_(piece).mul_(part[:, None]).sum(dim=-1)


@lru_cache(maxsize=1)
def _bf16_sums_in_fp32() -> bool:
    """Whether bf16 products are fast here and summed in fp32: 1024 ones, summed in bf16, would stop at 256."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    ones = torch.ones(2, 32, BLOCK, dtype=torch.bfloat16)
    return bool((torch.bmm(ones, ones[:, :1].mT) == BLOCK).all())


def _sum_error(storage: str) -> float:
    """Bound on a sum's error, relative to the product of the norms."""
    if storage == "int8":
        return 2.0**-22  # sums of integers below 2^24 are exact; entries as sampled are rounded once per value
    if storage == "fp32" and torch.get_float32_matmul_precision() != "highest":
        return REDUCED_ERROR
    return SUM_ERROR


def _allocate(shape: tuple[int, ...], dtype: torch.dtype, folder: Path | None) -> Tensor:
    return torch.zeros(shape, dtype=dtype) if folder is None else _mapped(folder, shape, dtype)


def _mapped(folder: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros in a memory-mapped file that has no name, so that its space is freed however the process ends.

    Raises:
        UserError: if the disk has no room; it is reserved at once, for a full disk met later would kill the process.
    """
    size = math.prod(shape) * dtype.itemsize
    try:
        handle, name = tempfile.mkstemp(prefix="error-bank-", suffix=".bin", dir=folder)
    except OSError as error:
        raise UserError(
            f"cannot spill the error bank to {folder}: {error.strerror}; name a folder to write to"
        ) from error
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
        else:
            os.ftruncate(handle, size)
        return torch.from_file(name, shared=True, size=math.prod(shape), dtype=dtype).view(shape)
    except OSError as error:
        raise UserError(
            f"cannot spill another {readable(size)} of the error bank to {folder}: {error.strerror}; free some space, or lower "
            "the capacity"
        ) from error
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):
            os.unlink(name)
