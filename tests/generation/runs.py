"""What the tests of runs compare: everything that has to come out the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from svi.generation.clip_store import LATENTS, MEMORY, SEGMENT, THUMBNAIL
from svi.generation.events import Event, Notice
from svi.generation.run import Run

OUTPUTS = (MEMORY, LATENTS, SEGMENT, THUMBNAIL)


def outputs(run: Run) -> list[dict[str, Any]]:
    """Bytes of every file of every clip, the hash of its decoded frames, and the whole video."""
    clips: list[dict[str, Any]] = [
        {"frames": info.frames_sha256, "plan": info.plan, **{name: (info.path / name).read_bytes() for name in OUTPUTS}}
        for info in run.clips()
    ]
    return [*clips, {"playlist": run.playlist.read_text(), "video": (run.path / "video.mp4").read_bytes()}]


class Listener:
    """Keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events if event.kind != "step"]

    @property
    def notices(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Notice)]


def left_over(path: Path) -> list[Path]:
    """Temporary files and folders that should not be there."""
    return [found for found in path.rglob("*") if ".tmp-" in found.name]
