"""The log of a training: one JSON line per report, with the loss by noise level and the state of the banks.

The same numbers go to whatever trackers were asked for. Knows nothing about what is trained.
"""

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from svi.error_bank import BankStats
from svi.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

LEVELS = 10


class Record:
    """Gathers numbers between two reports and appends them to a file of JSON lines.

    Args:
        path: of the log; appended to, so that a resumed training goes on in it.
        accelerator: whose trackers get the numbers too (:func:`start_trackers`); nothing is written but in its first process.
    """

    def __init__(self, path: Path, accelerator: Accelerator) -> None:
        self.path, self.accelerator = path, accelerator
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

    def flush(self, step: int, banks: Mapping[str, BankStats]) -> dict[str, float]:
        """Write what was gathered, and return what people want to see of it."""
        shown = {name: sum(values) / len(values) for name, values in self._latest.items()}
        by_sigma = [round(float(s / n), 6) if n else None for s, n in zip(self._sums, self._counts, strict=True)]
        row: dict[str, Any] = {
            "step": step,
            **{name: float(f"{value:.6g}") for name, value in shown.items()},
            "loss_by_sigma": by_sigma,
            "memory_mb": round(peak_memory_mb()),
            "elapsed_s": round(time.monotonic() - self._begun, 1),
            **{f"{name}_bank": bank_row(stats) for name, stats in banks.items()},
        }
        for name in banks:
            found = row[f"{name}_bank"]
            shown |= {f"{name}_errors": float(found["errors"])}
            shown |= {} if found["rms"] is None else {f"{name}_error_rms": found["rms"]}
        self.write(row)
        levels = {f"loss_at_sigma/{k / LEVELS:.1f}": loss for k, loss in enumerate(by_sigma) if loss is not None}
        self.accelerator.log({**shown, **levels, "memory_mb": row["memory_mb"]}, step=step)
        self._clear()
        return shown

    def looked(self, step: int, numbers: Mapping[str, float], sheet: str) -> None:
        """Write what a validation found. ``sheet``: path of its picture, or empty."""
        self.write({"step": step, "validation": dict(numbers), "sheet": sheet})
        self.accelerator.log({f"validation/{name}": value for name, value in numbers.items()}, step=step)
        for tracker in self.accelerator.trackers if sheet else ():
            if hasattr(tracker, "log_images"):
                import numpy as np
                from PIL import Image

                tracker.log_images({"validation": np.asarray(Image.open(sheet))[None]}, step=step)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one line."""
        if not self.accelerator.is_main_process:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def bank_row(stats: BankStats) -> dict[str, Any]:
    """A bank in one entry of the log; lists have one value per bucket, None where it is empty."""
    return {
        "errors": sum(stats.fill),
        "seen": stats.seen,
        "rms": _mean(stats.rms),
        "age": _mean(stats.age),
        "replacement": _mean(stats.replacement),
        "fill_by_bucket": list(stats.fill),
        "rms_by_bucket": [None if value is None else round(value, 4) for value in stats.rms],
        "memory_mb": round(stats.allocated_bytes / 1e6, 1),
    }


def _mean(values: tuple[float | None, ...]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 5) if known else None


def check_trackers(wanted: tuple[str, ...]) -> None:
    """Raise UserError for a tracker whose package is missing; accelerate would pass over it with a mere warning."""
    for name in wanted:
        if find_spec(name) is None:
            raise UserError(f"loop.trackers names {name}, which is not installed: pip install {name}, or leave it out")


def start_trackers(accelerator: Accelerator, settings: Mapping[str, Any]) -> None:
    """Begin to log to the trackers that the accelerator was made with."""
    plain = {key: value if isinstance(value, int | float | str) else str(value) for key, value in settings.items()}
    accelerator.init_trackers("svi", config=plain)


def environment() -> dict[str, str]:
    """Versions of what computed, for the record."""
    names = ("svi", "torch", "diffusers", "transformers", "peft", "accelerate")
    found = {name: _version(name) for name in names}
    return {"python": platform.python_version(), "platform": platform.platform(), **found}


def _version(package: str) -> str:
    if package == "svi":
        from svi import __version__

        return __version__
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
