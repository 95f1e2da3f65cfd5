"""The collectives of a training, all of them, in one place.

Each is called by every process at every step at which it can be called at all, with equal shapes, so that no process waits
for another for ever. Everything random is local.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

from svi.recycling import Errors

if TYPE_CHECKING:
    from accelerate import Accelerator


def gather_errors(errors: Errors, admitted: torch.Tensor, accelerator: Accelerator) -> tuple[Errors, torch.Tensor]:
    """Errors of all processes in the order of their ranks, with who of them enters a bank: the bank's warm-up."""
    if accelerator.num_processes == 1:
        return errors, admitted
    device = accelerator.device
    parts = [errors.video, errors.noise, errors.bucket, errors.clean.long(), admitted.long()]
    video, noise, bucket, clean, enters = (accelerator.gather(part.to(device).contiguous()) for part in parts)
    return Errors(video, noise, bucket.cpu(), clean.bool().cpu()), enters.bool().cpu()


def agree(healthy: bool, accelerator: Accelerator) -> bool:
    """Whether every process is healthy; all get the same answer."""
    if accelerator.num_processes == 1:
        return healthy
    flags = accelerator.gather(torch.tensor([healthy], device=accelerator.device, dtype=torch.int32))
    return bool(flags.min())


def mean_over_ranks(values: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """Mean of ``values`` over all processes, on the CPU."""
    if accelerator.num_processes == 1:
        return values.cpu()
    mean: torch.Tensor = accelerator.reduce(values.to(accelerator.device), "mean")
    return mean.cpu()


def step_generator(seed: int, rank: int, step: int, micro: int = 0) -> torch.Generator:
    """All randomness of one batch: a CPU generator that is a function of these four numbers.

    Nothing has to be saved to go on with the same draws, and ranks never see each other's.
    """
    digest = hashlib.sha256(f"{seed}/{rank}/{step}/{micro}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
