"""Replay memory of error-recycling fine-tuning: what the model got wrong, by noise level (paper section 4.3).

A bank has one bucket for each noise level of inference. A full bucket replaces the entry that its policy names. Entries are
rounded as the :class:`~svi.bank_plan.StoragePlan` says and live on the CPU; what comes out is fp32. Randomness comes from the
generator passed in, and each call takes the same number of draws whatever the bank holds. Knows nothing about models,
losses, probabilities, or which error is injected where.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from svi.bank_bucket import DTYPES, Bucket, Packed, pack
from svi.bank_plan import BLOCK, StoragePlan
from svi.errors import UserError, nearest
from svi.schedule import SigmaBuckets

Policy = Literal["nearest", "random", "fifo"]
BankName = Literal["video", "noise"]
BANKS: tuple[BankName, ...] = ("video", "noise")
FORMAT = 1
NONE = -1.0
"""Distance of an entry that replaced nothing."""


@dataclass(frozen=True)
class Added:
    """Where an error went.

    Attributes:
        bucket, slot: its place.
        distance: L2 distance from the entry that it replaced; None where there was room.
    """

    bucket: int
    slot: int
    distance: float | None


@dataclass(frozen=True)
class BankStats:
    """State of a bank in numbers; tuples have one value per bucket, None where it is empty.

    Attributes:
        fill: entries.
        rms: root mean square of the stored values: the size of the errors beside latents of unit variance.
        age: mean age of the entries, counted in errors that the bank has taken since.
        replacement: mean L2 distance from what an entry replaced, over its own norm; None where none replaced another.
            Falling means that new errors resemble what is there.
        seen: errors taken so far.
        allocated_bytes: memory (or disk, where spilled) in use.
    """

    fill: tuple[int, ...]
    rms: tuple[float | None, ...]
    age: tuple[float | None, ...]
    replacement: tuple[float | None, ...]
    seen: int
    allocated_bytes: int


class ErrorBank:
    """Buckets of errors.

    Args:
        plan: shape, capacity and storage, from :func:`~svi.bank_plan.plan_storage`.
        policy: what a full bucket replaces: the entry ``nearest`` in L2 (published ``l2_batch``; keeps the bank diverse), a
            ``random`` one, or the oldest (``fifo``).
        rank: of this process, where the plan shares buckets out; only buckets it owns can be filled or read.
        folder: where to map files, where the plan spills.

    Raises:
        UserError: for an unknown policy, or a plan that needs a folder when none is given.
    """

    def __init__(
        self, plan: StoragePlan, *, policy: Policy = "nearest", rank: int = 0, folder: Path | None = None
    ) -> None:
        if policy not in get_args(Policy):
            raise UserError(f"unknown replacement policy {policy!r}: {nearest(policy, get_args(Policy))}")
        if plan.spilled and folder is None:
            raise UserError("this bank spills to disk and needs a folder; name one, or plan without spill_memory")
        if not 0 <= rank < plan.shards:
            raise ValueError(f"rank must lie in 0 to {plan.shards - 1} (the plan's shards), not {rank}")
        self.plan, self.policy, self.rank = plan, policy, rank
        self._folder = folder if plan.spilled else None
        self._clear()

    def _clear(self) -> None:
        size = (len(self.plan.buckets), self.plan.capacity)
        self._buckets = [Bucket(self.plan, self._folder) for _ in range(size[0])]
        self._squared_norms = torch.zeros(size, dtype=torch.float64)
        self._born = torch.zeros(size, dtype=torch.int64)
        self._distances = torch.full(size, NONE, dtype=torch.float64)
        self._seen = 0

    @property
    def fill(self) -> tuple[int, ...]:
        """Entries of each bucket; 0 for those of other ranks."""
        return tuple(bucket.fill for bucket in self._buckets)

    def __len__(self) -> int:
        return sum(self.fill)

    def add(self, error: Tensor, bucket: int, generator: torch.Generator) -> Added:
        """Take an error ``(C, F, h, w)``, of any floating dtype and device, into a bucket.

        Takes two draws. Where the plan keeps fewer latent frames, a window of them at a random place.

        Raises:
            ValueError: for another shape, a bucket that is not here, or values that are not finite; the bank stays as it was.
        """
        if tuple(error.shape) != self.plan.shape:
            raise ValueError(
                f"an error of shape {tuple(error.shape)} does not fit a bank of {self.plan.shape}: videos of another size or "
                "length need a bank of their own"
            )
        home = self._home(bucket)
        where, which = torch.rand(2, generator=generator, device=generator.device, dtype=torch.float64).tolist()
        start = index(where, self.plan.shape[1] - self.plan.frames + 1)
        packed = pack(error[:, start : start + self.plan.frames], self.plan)
        slot, distance = home.fill, None
        if home.fill == self.plan.capacity:
            slot, distance = self._replaced(bucket, packed, which)
        home.write(slot, packed)
        self._seen += 1
        self._squared_norms[bucket, slot] = packed.squared_norm
        self._born[bucket, slot] = self._seen
        self._distances[bucket, slot] = NONE if distance is None else distance
        return Added(bucket, slot, distance)

    def entry(self, bucket: int, slot: int) -> Tensor:
        """An entry ``(C, frames, h, w)``: fp32, on the CPU, a copy."""
        return self._home(bucket).read(slot)

    def sample(self, bucket: int, generator: torch.Generator) -> Tensor | None:
        """A uniformly drawn entry of a bucket, or None if that is empty. Takes one draw."""
        which = _draw(generator)
        fill = self._home(bucket).fill
        return self.entry(bucket, index(which, fill)) if fill else None

    def sample_any(self, generator: torch.Generator) -> Tensor | None:
        """A uniformly drawn entry of all buckets, so that fuller buckets are drawn more often, or None. Takes one draw."""
        which = _draw(generator)
        return self.entry(*locate(index(which, len(self)), self.fill)) if len(self) else None

    def stats(self) -> BankStats:
        """Fill, size, age and replacement distance of each bucket."""
        norms, fills = self._squared_norms.sqrt(), self.fill
        values = math.prod(self.plan.kept_shape)
        kept = self._distances >= 0
        return BankStats(
            fill=fills,
            rms=_per_bucket(self._squared_norms / values, fills, root=True),
            age=_per_bucket((self._seen - self._born).double(), fills),
            replacement=_per_bucket((self._distances / norms).where(kept & (norms > 0), math.nan), fills),
            seen=self._seen,
            allocated_bytes=sum(bucket.allocated_bytes for bucket in self._buckets),
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed bank needs to go on with the same bits: ``meta`` (plain data) and ``tensors`` by name.

        Full chunks are the bank's own memory, not copies: write them before the bank changes.
        """
        tensors = {
            "squared_norms": self._squared_norms.clone(),
            "born": self._born.clone(),
            "distances": self._distances.clone(),
        }
        for number, bucket in enumerate(self._buckets):
            for first, chunk in zip(range(0, bucket.fill, bucket.rows), bucket.chunks, strict=False):
                used = min(chunk.rows, bucket.fill - first)
                tensors[f"{number}.{first}.values"] = chunk.values[:, :used].contiguous()
                if chunk.scales is not None:
                    tensors[f"{number}.{first}.scales"] = chunk.scales[:, :used].contiguous()
        return {"meta": {**self._meta(), "fill": list(self.fill), "seen": self._seen}, "tensors": tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the content by that of :meth:`state_dict` from a bank of the same plan.

        Raises:
            UserError: if the state is of another plan or rank, or not whole; the bank stays as it was.
        """
        meta, tensors = _parts(state)
        for name, own in self._meta().items():
            if meta.get(name) != own:
                raise UserError(
                    f"this error bank has {name} {own}, the saved one {meta.get(name)}: resume with what it had"
                )
        expected = self._expected(meta.get("fill"))
        for name, (shape, dtype) in expected.items():
            found = tensors.get(name)
            if found is None or tuple(found.shape) != shape or found.dtype != dtype:
                was = "missing" if found is None else f"{found.dtype} {tuple(found.shape)}, not {dtype} {shape}"
                raise UserError(f"the saved error bank is not whole: {name!r} is {was}; take an earlier checkpoint")
        self._clear()
        self._seen = int(meta["seen"])
        for own, name in ((self._squared_norms, "squared_norms"), (self._born, "born"), (self._distances, "distances")):
            own.copy_(tensors[name])
        for number, (bucket, fill) in enumerate(zip(self._buckets, meta["fill"], strict=True)):
            bucket.reserve(fill)
            bucket.fill = fill
            for first, chunk in zip(range(0, fill, bucket.rows), bucket.chunks, strict=True):
                used = min(chunk.rows, fill - first)
                chunk.values[:, :used] = tensors[f"{number}.{first}.values"]
                if chunk.scales is not None:
                    chunk.scales[:, :used] = tensors[f"{number}.{first}.scales"]

    def _home(self, bucket: int) -> Bucket:
        if not 0 <= bucket < len(self._buckets):
            raise ValueError(f"bucket must lie in 0 to {len(self._buckets) - 1}, not {bucket}")
        if self.plan.owner(bucket) != self.rank:
            raise ValueError(f"bucket {bucket} lies with rank {self.plan.owner(bucket)}, this is rank {self.rank}")
        return self._buckets[bucket]

    def _replaced(self, bucket: int, packed: Packed, which: float) -> tuple[int, float]:
        """Slot that a new error takes in a full bucket, and its distance from the entry there."""
        home = self._buckets[bucket]
        if self.policy == "nearest":
            return home.nearest(packed, self._squared_norms[bucket])
        slot = index(which, home.fill) if self.policy == "random" else int(self._born[bucket].argmin())
        return slot, home.distance(packed, slot)

    def _meta(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "format": FORMAT,
            "shape": list(plan.shape),
            "frames": plan.frames,
            "storage": plan.storage,
            "capacity": plan.capacity,
            "steps": plan.buckets.steps,
            "shift": plan.buckets.shift,
            "shards": plan.shards,
            "rank": self.rank,
        }

    def _expected(self, fill: object) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name, shape and dtype of each tensor of a state with that fill."""
        size = (len(self._buckets), self.plan.capacity)
        if not isinstance(fill, list) or len(fill) != size[0] or not all(0 <= f <= size[1] for f in fill):
            raise UserError(
                "the saved error bank is not whole: its fill is no list of counts; take an earlier checkpoint"
            )
        expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "squared_norms": (size, torch.float64),
            "born": (size, torch.int64),
            "distances": (size, torch.float64),
        }
        for number, (bucket, entries) in enumerate(zip(self._buckets, fill, strict=True)):
            for first in range(0, entries, bucket.rows):
                rows = (self.plan.blocks, min(bucket.rows, entries - first))
                expected[f"{number}.{first}.values"] = ((*rows, BLOCK), DTYPES[self.plan.storage])
                if self.plan.storage == "int8":
                    expected[f"{number}.{first}.scales"] = (rows, torch.float32)
        return expected


@dataclass(frozen=True)
class ErrorBanks:
    """Video errors and noise errors of one training; a bank that nothing is drawn from is None."""

    buckets: SigmaBuckets
    video: ErrorBank | None = None
    noise: ErrorBank | None = None

    @classmethod
    def create(
        cls,
        plan: StoragePlan,
        names: Sequence[BankName] = BANKS,
        *,
        policy: Policy = "nearest",
        rank: int = 0,
        folder: Path | None = None,
    ) -> ErrorBanks:
        """Empty banks of these names (``RecyclingConfig.banks``)."""
        made = {name: ErrorBank(plan, policy=policy, rank=rank, folder=folder) for name in names}
        return cls(plan.buckets, **made)

    def items(self) -> tuple[tuple[BankName, ErrorBank], ...]:
        """The banks that exist, by name."""
        pairs = tuple((name, getattr(self, name)) for name in BANKS)
        return tuple((name, bank) for name, bank in pairs if bank is not None)

    @property
    def fills(self) -> dict[str, tuple[int, ...]]:
        """Entries per bucket of each bank that exists."""
        return {name: bank.fill for name, bank in self.items()}

    def stats(self) -> dict[str, BankStats]:
        return {name: bank.stats() for name, bank in self.items()}

    def state_dict(self) -> dict[str, Any]:
        return {name: bank.state_dict() for name, bank in self.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict` of banks of the same names and plan.

        Raises:
            UserError: if it is of others, or not whole.
        """
        names = {name for name, _ in self.items()}
        if names != set(state):
            raise UserError(
                f"the checkpoint has the error banks {sorted(state)}, this training has {sorted(names)}: resume with the "
                "probabilities it had"
            )
        for name, bank in self.items():
            bank.load_state_dict(state[name])


def index(draw: float, count: int) -> int:
    """A uniform draw from [0, 1) as one of ``count`` indices."""
    return min(int(draw * count), count - 1)


def locate(number: int, fill: tuple[int, ...]) -> tuple[int, int]:
    """Bucket and slot of entry ``number``, counted through all buckets."""
    for bucket, entries in enumerate(fill):
        if number < entries:
            return bucket, number
        number -= entries
    raise IndexError("there are fewer entries than that")


def _draw(generator: torch.Generator) -> float:
    return float(torch.rand(1, generator=generator, device=generator.device, dtype=torch.float64))


def _per_bucket(values: Tensor, fills: tuple[int, ...], *, root: bool = False) -> tuple[float | None, ...]:
    """Mean over the entries of each bucket that are not NaN; None where there are none."""
    means = [float(row[:fill].nanmean()) for row, fill in zip(values, fills, strict=True)]
    return tuple(None if math.isnan(mean) else math.sqrt(mean) if root else mean for mean in means)


def _parts(state: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    meta, tensors = state.get("meta"), state.get("tensors")
    if not isinstance(meta, Mapping) or not isinstance(tensors, Mapping):
        raise UserError(
            "this is no state of an error bank (it has no `meta` and `tensors`); take an earlier checkpoint"
        )
    return meta, tensors
