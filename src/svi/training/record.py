"""The log of a training: one JSON line per report, with the loss by noise level and the state of the banks."""

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svi.error_bank import ErrorBanks

LEVELS = 10


class Record:
    """Gathers numbers between two reports and appends them to a file of JSON lines.

    Args:
        path: of the log; appended to, so that a resumed training goes on in it.
        enabled: False in all processes but the first.
    """

    def __init__(self, path: Path, *, enabled: bool = True) -> None:
        self.path, self.enabled = path, enabled
        self._begun = time.monotonic()
        self._clear()

    def _clear(self) -> None:
        self._sums, self._counts = torch.zeros(LEVELS), torch.zeros(LEVELS)
        self._latest: dict[str, list[float]] = {}

    def add(self, sigma: Tensor, losses: Tensor) -> None:
        """Losses of samples at noise levels, ``(B,)`` each."""
        level = (sigma * LEVELS).long().clamp(0, LEVELS - 1)
        self._sums.index_add_(0, level, losses.float())
        self._counts.index_add_(0, level, torch.ones(len(losses)))

    def set(self, **numbers: float) -> None:
        """Numbers of a step; the report has their means."""
        for name, value in numbers.items():
            self._latest.setdefault(name, []).append(value)

    def flush(self, step: int, banks: ErrorBanks) -> dict[str, float]:
        """Write what was gathered, and return what people want to see of it."""
        shown = {name: sum(values) / len(values) for name, values in self._latest.items()}
        by_sigma = [round(float(s / n), 6) if n else None for s, n in zip(self._sums, self._counts, strict=True)]
        stats = banks.stats()
        row: dict[str, Any] = {
            "step": step,
            **{name: float(f"{value:.6g}") for name, value in shown.items()},
            "loss_by_sigma": by_sigma,
            "memory_mb": round(peak_memory_mb()),
            "elapsed_s": round(time.monotonic() - self._begun, 1),
        }
        for name, bank in stats.items():
            filled = [value for value in bank.rms if value is not None]
            replaced = [value for value in bank.replacement if value is not None]
            row[f"{name}_bank"] = {
                "errors": sum(bank.fill),
                "rms": round(sum(filled) / len(filled), 5) if filled else None,
                "rms_by_bucket": [None if value is None else round(value, 4) for value in bank.rms],
                "replacement": round(sum(replaced) / len(replaced), 5) if replaced else None,
                "seen": bank.seen,
            }
            shown[f"{name}_errors"] = float(sum(bank.fill))
            if filled:
                shown[f"{name}_error_rms"] = sum(filled) / len(filled)
        self.write(row)
        self._clear()
        return shown

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one line."""
        if not self.enabled:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def environment() -> dict[str, str]:
    """Versions of what computed, for the record."""
    names = ("svi", "torch", "diffusers", "transformers", "peft", "accelerate")
    found = {name: _version(name) for name in names}
    return {"python": platform.python_version(), "platform": platform.platform(), **found}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, or of its GPU where it has one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3
