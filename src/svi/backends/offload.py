"""Weights that wait in main memory or on disk while others work, and come to the device in time.

The blocks of a transformer come one by one, the next on its own stream while one computes (group offloading of diffusers);
an encoder comes as a whole for the moment it is needed. Both move bytes and change none. Knows hooks of diffusers and
accelerate; nothing about which layout a machine needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from svi.errors import UserError


def stream_blocks(transformer: Any, device: torch.device, *, disk: Path | None = None, spare_ram: bool = False) -> None:
    """Let the blocks of ``transformer`` wait in RAM (or on ``disk``) and visit ``device`` one at a time.

    LoRAs, quantisation and step caching come first: they belong to the blocks that move.

    Args:
        transformer: a model of diffusers, with its weights in RAM.
        device: where it computes. A CPU moves nothing and computes the same; it is there for tests.
        disk: folder for the blocks, which then take no RAM; written once per process.
        spare_ram: pin each block when it moves instead of all of them beforehand: slower, without a second copy.

    Raises:
        UserError: where the folder cannot be written.
    """
    if disk is not None:
        try:
            disk.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot keep weights in {disk}: {error.strerror or error}; name another folder") from None
    streams = device.type == "cuda"
    transformer.enable_group_offload(
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=streams,
        record_stream=streams,
        low_cpu_mem_usage=spare_ram,
        offload_to_disk_path=None if disk is None else str(disk),
    )


def visit(module: nn.Module, device: torch.device) -> None:
    """Let ``module`` live where it is, and come to ``device`` as a whole for each call.

    Its inputs go along; its outputs come back to where the inputs were, so that callers notice nothing.
    """
    from accelerate.hooks import ModelHook, add_hook_to_module
    from accelerate.utils import send_to_device

    home = next(module.parameters()).device

    class Visit(ModelHook):
        """Move there before a call and back after it, however it ends well."""

        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            module.to(device)
            return send_to_device(args, device), send_to_device(kwargs, device)

        def post_forward(self, module: nn.Module, output: Any) -> Any:
            module.to(home)
            return send_to_device(output, home)

    add_hook_to_module(module, Visit())
