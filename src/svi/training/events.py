"""What a training tells while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from svi.generation.events import Event


@dataclass(frozen=True)
class Note(Event):
    """Something worth a line: a choice with its reason, a checkpoint that was passed over."""

    kind: ClassVar[str] = "note"
    message: str


@dataclass(frozen=True)
class Stepped(Event):
    """An optimizer step. ``numbers``: loss, learning rate, norms, bank statistics ... since the last such event."""

    kind: ClassVar[str] = "step"
    step: int
    steps: int
    left_s: float
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved(Event):
    """A checkpoint is on the disk."""

    kind: ClassVar[str] = "saved"
    step: int
    folder: str


@dataclass(frozen=True)
class Validated(Event):
    """A look at the model so far. ``sheet``: contact sheet, or empty."""

    kind: ClassVar[str] = "validated"
    step: int
    numbers: Mapping[str, float] = field(default_factory=dict)
    sheet: str = ""
