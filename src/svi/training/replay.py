"""The error banks of a training: planned within the memory there is, drawn from and filled, alone or together with other ranks.

Every shape of windows has banks of its own. Where a bank does not fit into one process, its buckets are shared out over all of
them; then errors travel to the rank that owns their bucket, and the drawn ones back. What a checkpoint was written with is
kept, whatever memory is free when it is gone on with. Knows nothing about models or losses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from svi import recycling
from svi.bank_plan import StoragePlan
from svi.error_bank import BankStats, ErrorBanks
from svi.recycling import ErrorPlan, Errors
from svi.schedule import SigmaBuckets
from svi.training.config import TrainingConfig
from svi.training.distributed import exchange_errors, gather_errors, least, sum_over_ranks

if TYPE_CHECKING:
    from accelerate import Accelerator

Shape = tuple[int, int, int, int]
PINNED = ("frames", "storage", "capacity", "shards", "spilled")
"""What of a plan a checkpoint keeps; the rest follows from the settings."""


class Replay:
    """What was got wrong, to be learnt from again.

    Args:
        config: of the training.
        shapes: ``(C, F, h, w)`` of all latents that will come; the same in all processes.
        folder: run folder, where banks spill to.
        accelerator: processes.
        saved: :meth:`state_dict` of a checkpoint to go on with.
        tell: told what was chosen and why.

    Raises:
        UserError: where no form of the banks fits the memory, and for a state of other banks.
    """

    def __init__(
        self,
        config: TrainingConfig,
        shapes: Sequence[Shape],
        folder: Path,
        accelerator: Accelerator,
        *,
        saved: Mapping[str, Any] | None = None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.config, self.accelerator = config.recycling, accelerator
        self.warmup_steps = config.bank.warmup_steps
        rank = accelerator.process_index
        room = None if saved else bank_memory(config, accelerator) // len(shapes)
        self.banks: dict[Shape, ErrorBanks] = {}
        for shape in shapes:
            plan = self._plan(config, shape, room, len(shapes))
            if saved is not None and (kept := saved["plans"].get(_name(shape))) is not None:
                plan = replace(plan, **kept, reasons=("as the checkpoint has it",))
            for line in plan.reasons:
                tell(f"error bank{_which(shape, shapes)}: {line}")
            spill = folder / "bank" / f"rank-{rank:03d}" if plan.spilled else None
            if spill is not None:
                spill.mkdir(parents=True, exist_ok=True)
            self.banks[shape] = ErrorBanks.create(
                plan, self.config.banks, policy=config.bank.policy, rank=rank % plan.shards, folder=spill
            )
            if saved is not None and _name(shape) in saved["banks"]:
                self.banks[shape].load_state_dict(saved["banks"][_name(shape)])

    def _plan(self, config: TrainingConfig, shape: Shape, room: int | None, share: int) -> StoragePlan:
        bank = config.bank
        return recycling.plan_banks(
            self.config,
            shape,
            bank_memory=room,
            capacity=bank.capacity,
            buckets=SigmaBuckets(bank.buckets, bank.shift),
            ranks=self.accelerator.num_processes,
            spill_memory=int(bank.spill_gb * 1e9) // share,
        )

    def draw(self, shape: Shape, sigma: torch.Tensor, generator: torch.Generator) -> ErrorPlan:
        """Errors for a batch of latents of ``shape`` at noise levels ``sigma`` ``(B,)``: :func:`svi.recycling.draw`."""
        banks = self.banks[shape]
        if not _shared(banks):
            return recycling.draw(self.config, banks, sigma, generator)
        bucket = banks.buckets.bucket_of(sigma.detach().cpu()).tolist()
        fills = {name: sum_over_ranks(fill, self.accelerator) for name, fill in banks.fills.items()}
        frames = 1 if banks.video is None else banks.video.plan.frames
        choice = recycling.choose(self.config, bucket, fills, banks.buckets, frames, generator)
        return exchange_errors(
            choice, lambda asked: recycling.fetch(asked, banks, self.config), shape, self.accelerator
        )

    def store(self, shape: Shape, errors: Errors, step: int, generator: torch.Generator) -> None:
        """Keep the errors of a batch; those of all ranks while the banks warm up, and where ranks share them."""
        banks = self.banks[shape]
        if not banks.items():
            return
        enters = recycling.admitted(errors, self.config, generator)
        if step < self.warmup_steps or _shared(banks):
            errors, enters = gather_errors(errors, enters, self.accelerator)
        recycling.store(banks, errors, enters, generator)

    def stats(self) -> dict[str, BankStats]:
        """State of each bank of this process by name: ``video``, or ``video 16x21x60x104`` where there are several shapes."""
        return {
            name + _which(shape, list(self.banks)): stats
            for shape, banks in self.banks.items()
            for name, stats in banks.stats().items()
        }

    def state_dict(self) -> dict[str, Any]:
        """The banks and how they are stored."""
        plans = {
            _name(shape): {key: getattr(bank.plan, key) for key in PINNED}
            for shape, banks in self.banks.items()
            for _, bank in banks.items()
        }
        return {"plans": plans, "banks": {_name(shape): banks.state_dict() for shape, banks in self.banks.items()}}


def bank_memory(config: TrainingConfig, accelerator: Accelerator) -> int:
    """Bytes for the banks of this process: as set, or an equal share of half of what is free; the same in all of them."""
    return least(memory_for_banks(config), accelerator)


def memory_for_banks(config: TrainingConfig) -> int:
    """The same as this process sees it."""
    if config.bank.memory_gb is not None:
        return int(config.bank.memory_gb * 1e9)
    import psutil

    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes on this machine
    return int(psutil.virtual_memory().available) // 2 // beside


def _shared(banks: ErrorBanks) -> bool:
    return any(bank.plan.shards > 1 for _, bank in banks.items())


def _name(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _which(shape: Shape, shapes: Sequence[Shape]) -> str:
    return f" {_name(shape)}" if len(shapes) > 1 else ""
