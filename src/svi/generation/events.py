"""What happens during a run, as typed events: one stream feeds progress bars, JSON lines and a server.

Knows nothing about who listens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Event:
    """Something that happened. ``kind`` names it in JSON."""

    kind: ClassVar[str] = "event"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, ``kind`` first."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class RunStarted(Event):
    """Generation begins at clip ``first``; ``target`` clips in all (None = endless), ``steps`` per clip."""

    kind: ClassVar[str] = "run_started"
    path: str
    first: int
    target: int | None
    steps: int


@dataclass(frozen=True)
class ClipStarted(Event):
    """Work on a clip begins."""

    kind: ClassVar[str] = "clip_started"
    clip: int
    target: int | None
    prompt: str
    seed: int
    scene: int
    beat: int
    take: int
    steps: int


@dataclass(frozen=True)
class Step(Event):
    """Denoising step ``step`` (from 1) of ``steps`` is done."""

    kind: ClassVar[str] = "step"
    clip: int
    step: int
    steps: int


@dataclass(frozen=True)
class ClipFinished(Event):
    """A clip is on disk for good. ``seconds``: wall time since its start; ``frames``: that it added."""

    kind: ClassVar[str] = "clip_finished"
    clip: int
    target: int | None
    seconds: float
    frames: int
    path: str


@dataclass(frozen=True)
class Notice(Event):
    """Something the user should know; work goes on."""

    kind: ClassVar[str] = "notice"
    message: str


@dataclass(frozen=True)
class Stopped(Event):
    """Ended early, as asked; ``clip`` is the one that will be made next."""

    kind: ClassVar[str] = "stopped"
    clip: int
    message: str


@dataclass(frozen=True)
class Finished(Event):
    """All clips are made. ``seconds`` is the length of the video."""

    kind: ClassVar[str] = "finished"
    count: int
    frames: int
    seconds: float
    video: str


Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """A listener that ignores everything."""
