"""Compiled transformer blocks: what fuses norm, modulation and gate, and saves a step of bf16 a sixth of its time.

Every block is the same code, so one of them is compiled and serves all (regional compilation): seconds instead of minutes.
What the compiler fuses stays in fp32 between the operations, as the modulation of Wan demands, and differs from uncompiled
blocks by less than bf16 rounds. Knows torch's compiler; nothing about models beyond their list of blocks.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from typing import Any

import torch

from svi.errors import UserError


def obstacle(device: torch.device) -> str | None:
    """Why blocks cannot be compiled for a device, or None."""
    if device.type == "cuda":
        return None if find_spec("triton") else "triton is not installed: pip install triton"
    if device.type == "cpu":
        return None if any(shutil.which(name) for name in ("c++", "g++", "clang++")) else "there is no C++ compiler"
    return f"torch does not compile for {device.type}"


def compile_blocks(transformer: Any, device: torch.device, *, whole: bool = False, backend: str = "inductor") -> None:
    """Compile the blocks of ``transformer``, at their first call for a shape.

    LoRAs that change their strength from clip to clip work on. So do hooks on blocks (moved or 8-bit weights, step caching, split
    tokens), which go on first and each break a block into a few graphs. ``dynamic=False``: a video has one shape, and
    code for one shape is the fastest.

    Args:
        transformer: a model of diffusers.
        device: what for.
        whole: whether a block has to be one graph; anything less is an error then, instead of a loss of speed.
        backend: of torch.compile; ``eager`` captures the graph and compiles nothing.

    Raises:
        UserError: where it cannot be done here.
    """
    reason = obstacle(device) if backend == "inductor" else None
    if reason is not None:
        raise UserError(f"the blocks cannot be compiled: {reason}; leave compiling out")
    transformer.compile_repeated_blocks(backend=backend, fullgraph=whole, dynamic=False)


def is_compiled(transformer: Any) -> bool:
    """Whether :func:`compile_blocks` was called."""
    return any(getattr(block, "_compiled_call_impl", None) is not None for block in transformer.blocks)
