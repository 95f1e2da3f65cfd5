"""How an error bank is stored within a budget of bytes: pure arithmetic, decided before anything is allocated.

The published bank keeps 50 buckets x 500 errors as bf16: 105 GB at 81 frames of 480x832, twice that for both banks, in every
process. :func:`plan_storage` takes the first form that fits, from the published one to ever cheaper ones, and says in one
line each what was tried and why. Knows nothing about tensors, files or ranks' communication.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from svi.errors import UserError, nearest
from svi.schedule import SigmaBuckets

Storage = Literal["fp32", "bf16", "int8"]

BLOCK = 1024
"""Values of an entry that lie together, share a scale (int8) and are summed in one go: as many as fp32 sums of products of
int8 values can take exactly (127 * 127 * 1024 < 2^24)."""

VALUE_BYTES: dict[str, int] = {"fp32": 4, "bf16": 2, "int8": 1}
SCALE_BYTES: dict[str, int] = {"fp32": 0, "bf16": 0, "int8": 4}
"""Per block."""
BOOKKEEPING_BYTES = 24
"""Per entry: squared norm, age, distance to what it replaced."""


@dataclass(frozen=True)
class StoragePlan:
    """How the errors of one training are kept; the video bank and the noise bank follow the same plan.

    Attributes:
        shape: ``(C, F, h, w)`` of the errors that come in.
        frames: latent frames kept of each error: all F, or a window of fewer, taken at a random place.
        storage: how values are stored. ``int8`` has a scale for each 1024 values and errs by 0.8 % (rms) on Gaussian values;
            8-bit floats (e4m3) would err by 2.7 % at the same size.
        capacity: errors per bucket (the paper's Z).
        buckets: noise levels of the buckets.
        banks: banks that are kept (video, noise).
        shards: processes that share one bank; each holds every ``shards``-th bucket.
        spilled: whether entries lie in memory-mapped files.
        reasons: what was tried and why, one line each.
    """

    shape: tuple[int, int, int, int]
    frames: int
    storage: Storage = "bf16"
    capacity: int = 500
    buckets: SigmaBuckets = field(default_factory=SigmaBuckets)
    banks: int = 2
    shards: int = 1
    spilled: bool = False
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join(self.reasons)

    @property
    def kept_shape(self) -> tuple[int, int, int, int]:
        """``(C, frames, h, w)`` of an entry."""
        channels, _, height, width = self.shape
        return channels, self.frames, height, width

    @property
    def blocks(self) -> int:
        """Blocks of 1024 values per entry; the last one is padded with zeros."""
        return -(-math.prod(self.kept_shape) // BLOCK)

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry, scales and bookkeeping included."""
        return self.blocks * (BLOCK * VALUE_BYTES[self.storage] + SCALE_BYTES[self.storage]) + BOOKKEEPING_BYTES

    @property
    def bank_bytes(self) -> int:
        """Bytes of one full bank in one process."""
        return -(-len(self.buckets) // self.shards) * self.capacity * self.entry_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes of all full banks of one process, in memory or (``spilled``) on disk."""
        return self.banks * self.bank_bytes

    def owner(self, bucket: int) -> int:
        """Rank, among those that share the bank, that holds ``bucket``."""
        return bucket % self.shards


def readable(size_bytes: float) -> str:
    """``1234567`` as ``1.3 MB``: decimal units, one digit, rounded up, so that what is advised suffices."""
    for unit in ("bytes", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} bytes" if unit == "bytes" else f"{math.ceil(size_bytes * 10) / 10:.1f} {unit}"
        size_bytes /= 1000
    return f"{math.ceil(size_bytes * 10) / 10:.1f} GB"


def plan_storage(
    shape: tuple[int, int, int, int],
    *,
    bank_memory: int | None = None,
    banks: int = 2,
    injected_frames: int | None = None,
    capacity: int = 500,
    buckets: SigmaBuckets | None = None,
    storage: Storage | None = None,
    ranks: int = 1,
    spill_memory: int = 0,
) -> StoragePlan:
    """Choose how errors are stored: the first of these that fits.

    1. bf16, whole, in memory: what was published.
    2. bf16, only the latent frames that are ever injected (``injected_frames``).
    3. int8, in memory.
    4. bf16, then int8, with the buckets shared out over ``ranks``.
    5. int8 in memory-mapped files.

    Args:
        shape: ``(C, F, h, w)`` of an error.
        bank_memory: bytes of memory for all banks of this process; None = no limit.
        banks: how many banks are kept (2: video and noise).
        injected_frames: latent frames of an entry that are used at a time, where that is fewer than F; None = all.
        capacity: errors per bucket.
        buckets: noise levels; None = the published 50.
        storage: insist on one form instead.
        ranks: processes that could share one bank.
        spill_memory: bytes of disk that this process may fill; 0 = none.

    Raises:
        UserError: if nothing fits (the message says what would), or for sizes that make no sense.
    """
    frames = shape[1] if injected_frames is None else injected_frames
    _check(shape, frames, bank_memory, capacity, storage, ranks, spill_memory)
    whole = StoragePlan(shape, shape[1], storage or "bf16", capacity, buckets or SigmaBuckets(), banks)
    tried = [_summary(whole)]
    smallest = whole
    for plan in _forms(whole, frames, storage, ranks, spill_memory > 0):
        limit = spill_memory if plan.spilled else bank_memory
        need, room = readable(plan.total_bytes), "spill_memory" if plan.spilled else "bank_memory"
        if limit is None:
            return replace(plan, reasons=(*tried, f"{_describe(plan)}: {need} when full; bank_memory sets no limit"))
        if plan.total_bytes <= limit:
            return replace(
                plan, reasons=(*tried, f"{_describe(plan)}: {need} when full, within {room} {readable(limit)}")
            )
        tried.append(f"{_describe(plan)}: {need} when full is over {room} {readable(limit)}")
        if not plan.spilled:
            smallest = min(smallest, plan, key=lambda p: p.total_bytes)
    raise UserError(_remedy(smallest, bank_memory or 0, storage, spill_memory > 0))


def _forms(whole: StoragePlan, frames: int, storage: Storage | None, ranks: int, spill: bool) -> Iterator[StoragePlan]:
    """Forms in order of preference: first those that lose nothing, then precision, then locality, then speed."""
    chosen: tuple[Storage, ...] = (storage,) if storage else ("bf16", "int8")
    yield whole
    if frames < whole.frames:
        yield replace(whole, frames=frames)
    for name in chosen[1:]:
        yield replace(whole, frames=frames, storage=name)
    for name in chosen if ranks > 1 else ():
        yield replace(whole, frames=frames, storage=name, shards=ranks)
    if spill:
        yield replace(whole, frames=frames, storage=chosen[-1], spilled=True)


def _describe(plan: StoragePlan) -> str:
    parts: list[str] = ["int8 with a scale per 1024 values" if plan.storage == "int8" else plan.storage]
    if plan.frames < plan.shape[1]:
        parts.append(f"only {plan.frames} of {plan.shape[1]} latent frames (no more are injected at a time)")
    if plan.shards > 1:
        parts.append(f"buckets shared out over {plan.shards} ranks (errors cross the network)")
    if plan.spilled:
        parts.append("in memory-mapped files (slow: `nearest` reads a whole bucket per update)")
    return ", ".join(parts)


def _summary(plan: StoragePlan) -> str:
    size = "x".join(map(str, plan.shape))
    count = plan.banks * len(plan.buckets) * plan.capacity
    return f"{plan.banks} x {len(plan.buckets)} buckets x {plan.capacity} errors of {size}: {count} entries"


def _check(
    shape: tuple[int, ...],
    frames: int,
    bank_memory: int | None,
    capacity: int,
    storage: str | None,
    ranks: int,
    spill_memory: int,
) -> None:
    if len(shape) != 4 or min(shape) < 1:
        raise UserError(f"errors are latents (C, F, h, w) of at least one value each way, not {tuple(shape)}")
    if storage is not None and storage not in get_args(Storage):
        raise UserError(f"unknown storage {storage!r}: {nearest(storage, get_args(Storage))}")
    if bank_memory is not None and bank_memory <= 0:
        raise UserError(f"bank_memory must be a positive number of bytes, not {bank_memory}; leave it out for no limit")
    if spill_memory < 0:
        raise UserError(f"spill_memory must be a number of bytes, 0 for none, not {spill_memory}")
    if capacity < 1 or ranks < 1:
        raise UserError(f"capacity and ranks must be at least 1, not {capacity} and {ranks}")
    if not 1 <= frames <= shape[1]:
        raise UserError(f"injected_frames must lie in 1 to {shape[1]} (the latent frames of an error), not {frames}")


def _remedy(plan: StoragePlan, bank_memory: int, storage: str | None, spill: bool) -> str:
    """One line: what the cheapest form in memory needs, and every way out."""
    per_capacity = plan.total_bytes // plan.capacity
    ways = [f"raise bank_memory to {readable(plan.total_bytes)}"]
    if bank_memory >= per_capacity:
        ways.append(f"lower the capacity to {bank_memory // per_capacity}")
    if storage is not None and storage != "int8":
        ways.append("do not insist on " + storage)
    ways.append("raise spill_memory" if spill else "name a folder to spill to")
    return (
        f"no error bank fits into bank_memory {readable(bank_memory)}: the smallest form ({_describe(plan)}) needs "
        f"{readable(plan.total_bytes)}; {', or '.join(ways)}"
    )
