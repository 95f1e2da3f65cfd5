"""Measuring time and memory on a device: what has been asked of it is done before the clock is read.

Knows torch's devices; nothing about models.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


class Marks:
    """Points in time, each after what was under way on the device is done."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: list[float] = []

    def __call__(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.times.append(time.perf_counter())

    def median(self) -> float:
        """Median seconds between neighbouring points."""
        return statistics.median(after - before for before, after in pairwise(self.times))


def timed(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median seconds of ``work``, after one call to warm up."""
    work()
    marks = Marks(device)
    marks()
    for _ in range(repeats):
        work()
        marks()
    return marks.median()


@contextmanager
def peak_memory(name: str, device: torch.device, peaks: dict[str, int]) -> Iterator[None]:
    """Most bytes in use on a device inside a block, into ``peaks[name]``; of a CPU, whose peaks cannot be reset, of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield
    if device.type == "cuda":
        peaks[name] = torch.cuda.max_memory_allocated(device)
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        peaks["the process so far"] = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def matmul_flops(device: torch.device, dtype: torch.dtype, shapes: Sequence[tuple[int, int, int]] = ()) -> float:
    """Most floating-point operations per second that a matrix product of random numbers reaches here.

    Args:
        shapes: ``(rows, inner, columns)`` to try beside a large square.
    """
    side = 8192 if device.type == "cuda" else 1024
    best = 0.0
    for rows, inner, columns in ((side, side, side), *shapes):
        left, right = (
            normal(shape, device, seed).to(dtype) for seed, shape in enumerate(((rows, inner), (inner, columns)))
        )
        best = max(best, 2 * rows * inner * columns / _fastest(left, right, device))
    return best


def _fastest(left: Tensor, right: Tensor, device: torch.device) -> float:
    """Seconds of the fastest of ten products: what disturbs a ceiling only lowers it."""
    marks = Marks(device)
    for _ in range(13):
        _ = left @ right
        marks()
    return min(after - before for before, after in list(pairwise(marks.times))[2:])


def normal(shape: Sequence[int], device: torch.device, seed: int) -> Tensor:
    """Normally distributed fp32 numbers, drawn on ``device``."""
    return torch.randn(tuple(shape), generator=torch.Generator(device).manual_seed(seed), device=device)
