"""Small trainings of a tiny random model, shared by the tests of the trainer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from svi.finetune import find_config
from svi.training import state
from svi.training.config import TrainingConfig

SMALL = (
    "data.clips=6",
    "data.batch_size=2",
    "lora.rank=4",
    "lora.alpha=4.0",
    "loop.validate_every=0",
    "loop.log_every=1",
)
FAST = ("bank.capacity=3", "bank.buckets=4", "optimizer.warmup_steps=0", "data.prefetch=0", "optimizer.ema_decay=0.5")


def config(model: Path, *changes: str, recipe: str = "pocket-shot") -> TrainingConfig:
    """A recipe made small."""
    return find_config(recipe, [f"model.name={model}", *SMALL, *FAST, *changes])


def final(folder: Path) -> dict[str, Any]:
    """Everything in the last checkpoint of a run."""
    found, complaints = state.latest(folder / "checkpoints")
    assert found is not None
    assert not complaints
    names = (state.SHARED, *(state.rank_file(rank) for rank in range(found.ranks)))
    return {name: state.load(found, name) for name in names}


def same(a: Any, b: Any) -> bool:
    """Whether two checkpoints hold the same bits."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def in_two_processes(out: Path, *changes: str) -> subprocess.CompletedProcess[str]:
    """``svi train pocket-shot`` under torchrun, on CPUs."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["-m", "svi.cli", "train", "pocket-shot", *SMALL, *FAST, *changes, "--device", "cpu", "--json", "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, *words, str(out)], capture_output=True, text=True, check=False, timeout=600, env=environment
    )
