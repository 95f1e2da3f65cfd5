"""Replacing the nearest entry of a full error bucket: the bank against the published way, in alternation.

The published way keeps a list of tensors, stacks it, subtracts the new error and takes norms, all in the tensors' own dtype
(bf16). The bank reads its bucket once. Both see the same bucket and the same error; fp64 says which entry is nearest. Errors
are correlated as a model's are: directions of falling weight that all share, and noise.

The default sizes take seconds on a laptop. One bucket at the real size takes some minutes and about 9 GB of memory:

    python benchmarks/error_bank.py --shape 16 21 60 104 --capacity 500 --updates 20 --wanted 15
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from common import machine, table, write_section
from torch import Tensor

from svi.bank_plan import StoragePlan, plan_storage, readable
from svi.error_bank import ErrorBank
from svi.schedule import SigmaBuckets

RANK, NOISE = 8, 0.3


class Errors:
    """A stream of errors like a model's: eight directions, each weaker than the one before, and noise; bf16."""

    def __init__(self, shape: tuple[int, ...], seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.shape = shape
        self.directions = torch.randn(RANK, *shape, generator=self.generator)
        self.weights = NOISE * 2.0 ** (-torch.arange(RANK) / 2)

    def next(self) -> Tensor:
        """The next error ``(C, F, h, w)``."""
        weights = self.weights * torch.randn(RANK, generator=self.generator)
        error = torch.einsum("k,kcfhw->cfhw", weights, self.directions)
        return error.add_(torch.randn(self.shape, generator=self.generator), alpha=NOISE).bfloat16()


def published_nearest(entries: list[Tensor], error: Tensor) -> int:
    """The published way to name the entry that is replaced."""
    stacked = torch.stack(entries).flatten(start_dim=1)
    return int(torch.norm(stacked - error.flatten()[None], p=2, dim=1).argmin())


def nearest_in_fp64(bank: ErrorBank, error: Tensor) -> int:
    """The same by differences in fp64, entry by entry: slow and plain. All as the bank stores them."""
    single = ErrorBank(bank_plan(bank.plan.shape, 1, bank.plan.storage))
    single.add(error, 0, torch.Generator())
    new = single.entry(0, 0).double()
    distances = [float((bank.entry(0, slot).double() - new).square_().sum()) for slot in range(bank.plan.capacity)]
    return min(range(len(distances)), key=distances.__getitem__)


def bank_plan(shape: tuple[int, int, int, int], capacity: int, storage: str) -> StoragePlan:
    """A bank of one bucket."""
    return plan_storage(
        shape,
        banks=1,
        capacity=capacity,
        storage=storage,  # type: ignore[arg-type]  # a word of the command line; plan_storage refuses unknown ones
        buckets=SigmaBuckets(steps=1),
    )


@dataclass
class Measured:
    """What the updates of one full bucket took and named."""

    fill_s: float = 0.0
    bank_s: list[float] = field(default_factory=list)
    published_s: list[float] = field(default_factory=list)
    bank_agrees: list[bool] = field(default_factory=list)
    published_agrees: list[bool] = field(default_factory=list)
    bank_bytes: int = 0
    published_bytes: int = 0

    @property
    def ratio(self) -> float:
        """Median time of the published way over that of the bank's whole update."""
        return statistics.median(self.published_s) / statistics.median(self.bank_s)


def measure(bank: ErrorBank, errors: Errors, updates: int, checks: int) -> Measured:
    """Fill a bucket, then replace ``updates`` times; fp64 is asked for the first ``checks`` of them."""
    measured, generator, entries = Measured(), torch.Generator().manual_seed(0), []
    began = time.perf_counter()
    for _ in range(bank.plan.capacity):
        entries.append(errors.next())
        bank.add(entries[-1], 0, generator)
    measured.fill_s = time.perf_counter() - began
    for number in range(updates):
        error = errors.next()
        truth = nearest_in_fp64(bank, error) if number < checks else None
        began = time.perf_counter()
        published = published_nearest(entries, error)
        between = time.perf_counter()
        slot = bank.add(error, 0, generator).slot
        measured.bank_s.append(time.perf_counter() - between)
        measured.published_s.append(between - began)
        entries[slot] = error  # both go on with the same bucket
        if truth is not None:
            measured.bank_agrees.append(slot == truth)
            measured.published_agrees.append(published == truth)
    measured.bank_bytes = bank.stats().allocated_bytes
    measured.published_bytes = sum(entry.nbytes for entry in entries)
    return measured


def section(bank: ErrorBank, measured: Measured) -> str:
    """The measurement as Markdown."""
    plan, checked = bank.plan, len(measured.bank_agrees)
    size = "x".join(map(str, plan.shape))

    def agreement(agrees: list[bool]) -> str:
        return f"{sum(agrees)} of {checked} ({sum(agrees) / checked:.1%})" if checked else "not asked"

    rows = [
        (
            name,
            f"{1000 * statistics.median(seconds):.2f}",
            f"{1000 * min(seconds):.2f} to {1000 * max(seconds):.2f}",
            readable(size_bytes),
            extra,
            agreement(agrees),
        )
        for name, seconds, size_bytes, extra, agrees in (
            (
                "published: stack, subtract, norms (bf16)",
                measured.published_s,
                measured.published_bytes,
                readable(2 * measured.published_bytes),
                measured.published_agrees,
            ),
            (f"error bank ({plan.storage})", measured.bank_s, measured.bank_bytes, "little", measured.bank_agrees),
        )
    ]
    header = ["update of a full bucket", "median, ms", "range, ms", "bucket", "copies made", "names fp64's entry"]
    return "\n".join(
        [
            f"{len(measured.bank_s)} updates of {plan.capacity} errors of {size}, in alternation; the published way takes "
            f"**{measured.ratio:.1f}** times as long. A bank of 50 such buckets: {readable(50 * plan.bank_bytes)}.",
            "",
            table(header, rows),
        ]
    )


def main() -> int:
    """Measure and print; 1 if an entry was misnamed or the ratio is below what is wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shape",
        type=int,
        nargs=4,
        default=[16, 5, 16, 24],
        metavar=("C", "F", "H", "W"),
        help="latents of an error (default: 16 5 16 24; 81 frames of 480x832: 16 21 60 104)",
    )
    parser.add_argument("--capacity", type=int, default=100, help="errors per bucket (default: 100; published: 500)")
    parser.add_argument("--updates", type=int, default=1000, help="updates of the full bucket (default: 1000)")
    parser.add_argument("--checks", type=int, help="of those, how many fp64 is asked for (default: all)")
    parser.add_argument("--storage", default="bf16", help="fp32, bf16 or int8 (default: bf16)")
    parser.add_argument("--seed", type=int, default=0, help="of the errors (default: 0)")
    parser.add_argument("--wanted", type=float, default=0.0, help="fail if the ratio is below this")
    parser.add_argument("--out", type=Path, help="write everything measured to this JSON file")
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    options = parser.parse_args()
    if options.updates < 1:
        parser.error("--updates must be at least 1")
    channels, frames, height, width = options.shape
    shape = (channels, frames, height, width)
    bank = ErrorBank(bank_plan(shape, options.capacity, options.storage))
    checks = options.updates if options.checks is None else options.checks
    measured = measure(bank, Errors(shape, options.seed), options.updates, checks)
    body = section(bank, measured)
    print(f"{machine()}\n\n{body}")
    if options.out is not None:
        facts = {"shape": shape, "capacity": options.capacity, "storage": options.storage, "seed": options.seed}
        whole = {**facts, "machine": machine(), "ratio": measured.ratio, **asdict(measured)}
        options.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    if options.write:
        write_section("error bank", body)
    return int(not all(measured.bank_agrees) or measured.ratio < options.wanted)


if __name__ == "__main__":
    raise SystemExit(main())
