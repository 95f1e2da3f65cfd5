"""The collectives of a training, all of them, in one place, and how processes are set up.

Each is called by every process at every step at which it can be called at all, with equal shapes, so that no process waits
for another for ever. Everything random is local.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from svi.errors import UserError
from svi.recycling import KINDS, Choice, ErrorPlan, Errors, Pick
from svi.training.config import TrainingConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

# What accelerate's launcher may say, and the strategy that it goes with.
LAUNCHED = {"ACCELERATE_USE_FSDP": None, "ACCELERATE_USE_DEEPSPEED": "zero2"}


def make_accelerator(config: TrainingConfig, folder: Path, *, cpu: bool) -> Accelerator:
    """Device, processes, strategy and trackers of a training.

    Precision is not accelerate's business here: the base computes in ``model.dtype``, the LoRA is fp32.

    Raises:
        UserError: for a package that the strategy or a tracker needs, and a launcher that was told another strategy.
    """
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    strategy = config.parallel.strategy
    for variable, meant in LAUNCHED.items():
        if os.environ.get(variable, "false").lower() == "true" and strategy != meant:
            raise UserError(
                "accelerate's configuration shares the model out by itself: set its distributed_type to MULTI_GPU; how a "
                f"training is shared out is its own setting, parallel.strategy={strategy}"
            )
    if strategy == "zero2" and cpu:
        raise UserError("parallel.strategy=zero2 is for GPUs: take ddp or fsdp2 on a CPU")
    return Accelerator(
        cpu=cpu,
        mixed_precision="bf16" if strategy == "zero2" else "no",
        deepspeed_plugin=_zero2(config) if strategy == "zero2" else None,
        gradient_accumulation_steps=config.optimizer.accumulation,
        log_with=list(config.loop.trackers) or None,
        project_dir=str(folder),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=config.parallel.timeout_minutes))],
    )


def _zero2(config: TrainingConfig) -> Any:
    from accelerate import DeepSpeedPlugin
    from accelerate.utils import is_deepspeed_available

    if not is_deepspeed_available():
        raise UserError("parallel.strategy=zero2 needs DeepSpeed: pip install deepspeed, or take ddp or fsdp2")
    optimizer = config.optimizer
    return DeepSpeedPlugin(
        hf_ds_config={
            "train_micro_batch_size_per_gpu": config.data.batch_size,
            "gradient_accumulation_steps": optimizer.accumulation,
            "gradient_clipping": optimizer.clip_norm,
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": 2, "overlap_comm": True, "contiguous_gradients": True},
            "zero_allow_untested_optimizer": True,
        }
    )


def share_out(transformer: Any, accelerator: Accelerator) -> None:
    """FSDP2: every process holds its part of each block, and gets the whole of one when it works.

    Through torch itself: accelerate's own way is for GPUs only, and passes over the wish on a CPU without a word.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for block in transformer.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(transformer, mesh=mesh)


# -- collectives -------------------------------------------------------------------------------------------------------


def gather_errors(errors: Errors, admitted: Tensor, accelerator: Accelerator) -> tuple[Errors, Tensor]:
    """Errors of all processes in the order of their ranks, with who of them enters a bank."""
    if accelerator.num_processes == 1:
        return errors, admitted
    device = accelerator.device
    parts = [errors.video, errors.noise, errors.bucket, errors.clean.long(), admitted.long()]
    video, noise, bucket, clean, enters = (accelerator.gather(part.to(device).contiguous()) for part in parts)
    return Errors(video, noise, bucket.cpu(), clean.bool().cpu()), enters.bool().cpu()


def exchange_errors(
    choice: Choice, fetch: Callable[[Choice], ErrorPlan], shape: tuple[int, ...], accelerator: Accelerator
) -> ErrorPlan:
    """The errors of a choice from the banks of all ranks that share them.

    Args:
        choice: what this rank drew.
        fetch: what of a choice lies here, zero elsewhere.
        shape: ``(C, F, h, w)`` of an error.
    """
    device, size = accelerator.device, len(choice.clean)
    rows = [
        [
            [-1.0] * 4 if pick is None else [pick.bucket, pick.slot, pick.start, pick.strength]
            for pick in choice.picks[kind]
        ]
        for kind in KINDS
    ]
    asked = accelerator.gather(torch.tensor([rows], dtype=torch.float64, device=device)).tolist()
    mine = torch.zeros(0)
    for rank, wanted in enumerate(asked):
        picks = {kind: tuple(_pick(row) for row in wanted[number]) for number, kind in enumerate(KINDS)}
        found = fetch(Choice(choice.clean, choice.bucket, picks, {}))
        parts = [torch.zeros(size, *shape) if t is None else t for t in (found.image, found.video, found.noise)]
        whole = torch.stack(parts).to(device)
        torch.distributed.reduce(whole, dst=rank)
        if rank == accelerator.process_index:
            mine = whole.cpu()
    image, video, noise = (part if any(choice.picks[kind]) else None for part, kind in zip(mine, KINDS, strict=True))
    return ErrorPlan(choice, image, video, noise)


def _pick(row: Sequence[float]) -> Pick | None:
    bucket, slot, start, strength = row
    return None if bucket < 0 else Pick(int(bucket), int(slot), int(start), strength)


def agree(healthy: bool, accelerator: Accelerator) -> bool:
    """Whether every process is healthy; all get the same answer."""
    return bool(least(int(healthy), accelerator))


def least(number: int, accelerator: Accelerator) -> int:
    """The smallest ``number`` of all processes."""
    if accelerator.num_processes == 1:
        return number
    return int(accelerator.gather(torch.tensor([number], device=accelerator.device, dtype=torch.int64)).min())


def sum_over_ranks(numbers: Sequence[int], accelerator: Accelerator) -> tuple[int, ...]:
    """Element by element, over all processes."""
    mine = torch.tensor([list(numbers)], device=accelerator.device, dtype=torch.int64)
    return tuple(int(n) for n in accelerator.gather(mine).sum(0))


def mean_over_ranks(values: Tensor, accelerator: Accelerator) -> Tensor:
    """Mean of ``values`` over all processes, on the CPU."""
    if accelerator.num_processes == 1:
        return values.cpu()
    mean: Tensor = accelerator.reduce(values.to(accelerator.device), "mean")
    return mean.cpu()


def step_generator(seed: int, rank: int, step: int, micro: int = 0) -> torch.Generator:
    """All randomness of one batch: a CPU generator that is a function of these four numbers.

    Nothing has to be saved to go on with the same draws, and ranks never see each other's.
    """
    digest = hashlib.sha256(f"{seed}/{rank}/{step}/{micro}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
