"""Looking at a run folder: where it stands, what it holds, whether it is intact. Changes nothing, takes no lock.

Knows nothing about how clips are made. Every damage is a :class:`~svi.errors.UserError` that says what can be saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from svi.backends.base import ModelInfo
from svi.conditioning.memory import ClipMemory
from svi.errors import UserError
from svi.files import sha256
from svi.generation.clip_store import ClipInfo, ClipStore
from svi.generation.journal import Journal
from svi.generation.live import read_storyboard
from svi.generation.lock import holder
from svi.generation.manifest import Manifest, RunSettings, check_model
from svi.generation.run_state import RunState, read_state
from svi.generation.start import checked_pieces, read_memory
from svi.generation.storyboard import Storyboard
from svi.generation.textfile import read_text
from svi.generation.verify import DamageReport, examine


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands.

    Attributes:
        count: finished clips; ``target``: clips in all, None = endless.
        frames: of the video so far.
        retake: clip whose retake is still to be made.
        running_pid: process that works on the run just now.
        mean_clip_s: seconds per clip, mean of the last ten.
        video: ``video.mp4``, where there is one; it may be older than the last clips.
    """

    path: Path
    count: int
    target: int | None
    frames: int
    fps: int
    width: int
    height: int
    preset: str
    model: str
    retake: int | None
    running_pid: int | None
    mean_clip_s: float | None
    playlist: Path
    video: Path | None

    @property
    def seconds(self) -> float:
        """Length of the video so far."""
        return self.frames / self.fps

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.target is not None and self.count >= self.target and self.retake is None


class RunView:
    """A run folder, to look at. Holds no clip in memory; counts and states are read from the disk when asked for."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.store = ClipStore(path / "clips")
        self.log = Journal(path / "journal.jsonl")

    @property
    def settings(self) -> RunSettings:
        """Settings of the run, fixed when it was made."""
        return self.manifest.settings

    @property
    def count(self) -> int:
        """Finished clips, from clip 0 without a gap."""
        return self.store.count()

    @property
    def target(self) -> int | None:
        """How many clips there are to be; None = endless."""
        return self.state().target

    @property
    def playlist(self) -> Path:
        """The video so far, for players."""
        return self.path / "video.m3u8"

    @property
    def storyboard_path(self) -> Path:
        return self.path / "storyboard.yaml"

    @property
    def _state_path(self) -> Path:
        return self.path / "state.json"

    @property
    def _lock_path(self) -> Path:
        return self.path / ".lock"

    def state(self) -> RunState:
        """Target and pending retake, read from the disk."""
        return read_state(self._state_path)

    def storyboard(self) -> Storyboard:
        """The storyboard as it stands in the folder now."""
        return read_storyboard(read_text(self.storyboard_path, "storyboard"), self.storyboard_path, self.settings)

    def reference(self) -> Tensor:
        """The reference image, ``(H, W, 3)`` uint8, checked against its hash."""
        file = self._reference_file()
        try:
            with Image.open(file, formats=("PNG",)) as image:
                pixels = np.array(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(
                f"{file} is damaged ({error}); any finished clip holds a copy in its memory.safetensors"
            ) from None
        if sha256(pixels.tobytes()) != self.manifest.reference.sha256:
            raise UserError(f"{file} is not the image that this run was made with")
        return torch.from_numpy(pixels)

    def _reference_file(self) -> Path:
        file = self.path / "reference.png"
        if not file.is_file():
            raise UserError(f"{file} is missing; any finished clip holds a copy in its memory.safetensors")
        return file

    def start_memory(self) -> ClipMemory:
        """What the first clip continues: the reference image, or the end of the user's video."""
        start = self.manifest.start
        return ClipMemory.start(self.reference()) if start is None else read_memory(self.path, start)

    def film(self) -> list[tuple[Path, int]]:
        """Files of the user's video that stand before the clips, in order, with their numbers of frames; mostly none."""
        return checked_pieces(self.path, self.manifest.start)

    @property
    def film_frames(self) -> int:
        """Frames of the user's video that stand before the clips."""
        return 0 if self.manifest.start is None else self.manifest.start.frames

    def clips(self) -> Iterator[ClipInfo]:
        """The current take of every finished clip, read one by one."""
        for clip in range(self.store.count()):
            yield self.store.info(clip)

    def journal(self) -> Iterator[dict[str, Any]]:
        """What happened, oldest first."""
        return self.log.read()

    def verify(self) -> DamageReport:
        """Read every file of the run and compare hashes: what is damaged, and what can be saved."""
        return examine(self)

    def checked_count(self) -> int:
        """Number of finished clips.

        Raises:
            UserError: if clips are missing in between.
        """
        numbers = self.store.numbers()
        count = self.store.count()
        if count < len(numbers):
            raise UserError(
                f"{self.path}: clip {count} is missing, though {len(numbers) - count} later ones exist; "
                f"`svi branch {self.path} --at {count}` goes on from there"
            )
        return count

    def check_model(self, info: ModelInfo) -> None:
        """Raise UserError, naming the difference, if ``info`` is not the model that this run was made with."""
        check_model(self.manifest.model, info)

    def status(self) -> RunStatus:
        """Where the run stands."""
        state = self.state()
        count = self.store.count()
        last = [self.store.info(clip) for clip in range(max(0, count - 10), count)]
        times = [sum(info.timing.values()) for info in last if info.timing]
        video = self.path / "video.mp4"
        settings = self.settings
        return RunStatus(
            path=self.path,
            count=count,
            target=state.target,
            frames=last[-1].end_frame if last else 0,
            fps=settings.fps,
            width=settings.width,
            height=settings.height,
            preset=settings.preset,
            model=self.manifest.model.name,
            retake=state.retake.clip if state.retake else None,
            running_pid=holder(self._lock_path),
            mean_clip_s=sum(times) / len(times) if times else None,
            playlist=self.playlist,
            video=video if video.is_file() else None,
        )
