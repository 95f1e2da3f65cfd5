"""What a run starts from where that is more than an image: the end of a user's own video, kept in the run without loss.

::

    start/memory.safetensors   what the first clip continues, as any clip leaves it for the next
    start/0000.mp4 ...         the user's video at the run's rate and size, where it is to stand before the clips

The user's file is never needed again. Knows nothing about how a video is read or encoded for a model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save
from torch import Tensor

from svi.conditioning.memory import ClipMemory
from svi.errors import UserError
from svi.files import explained, file_sha256, link_or_copy, sha256, sync_folder, write_synced
from svi.generation.writer import encode_segment

FOLDER, MEMORY = "start", "memory.safetensors"


class Piece(BaseModel):
    """A part of the user's video in the run: ``file`` in the folder of the start, how many ``frames``, its hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    frames: int
    sha256: str


class StartRecord(BaseModel):
    """The user's video that a run continues: its name, the hash of what is carried over, and its pieces in the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    sha256: str
    pieces: tuple[Piece, ...] = ()

    @property
    def frames(self) -> int:
        """Frames of the user's video at the front of the run's."""
        return sum(piece.frames for piece in self.pieces)


@dataclass(frozen=True)
class Start:
    """What a new run is given to start from.

    Attributes:
        memory: what its first clip continues.
        source: name of the user's video.
        pieces: ``(n, H, W, 3)`` uint8 frames of it, to stand before the clips; empty = the clips alone.
    """

    memory: ClipMemory
    source: str
    pieces: Iterable[Tensor] = ()


def write_start(run: Path, start: Start, fps: int) -> StartRecord:
    """Put a start in the folder of a new run; returns what ``run.json`` has to say of it."""
    folder = run / FOLDER
    with explained(folder, "create"):
        folder.mkdir()
    tensors = save({name: tensor.contiguous() for name, tensor in start.memory.tensors().items()})
    write_synced(folder / MEMORY, tensors)
    pieces: list[Piece] = []
    begins = 0
    for number, frames in enumerate(start.pieces):
        data = encode_segment(frames, fps=fps, start_frame=begins)
        piece = Piece(file=f"{number:04d}.mp4", frames=int(frames.shape[0]), sha256=sha256(data))
        write_synced(folder / piece.file, data)
        pieces.append(piece)
        begins += piece.frames
    with explained(folder):
        sync_folder(folder)
    return StartRecord(source=start.source, sha256=sha256(tensors), pieces=tuple(pieces))


def read_memory(run: Path, record: StartRecord) -> ClipMemory:
    """What the first clip of a run continues.

    Raises:
        UserError: where the file is missing or damaged.
    """
    path = run / FOLDER / MEMORY
    _check(path, record.sha256)
    return ClipMemory.from_tensors(load_file(path))


def checked_pieces(run: Path, record: StartRecord | None) -> list[tuple[Path, int]]:
    """Files of the user's video in a run, in order, each with its number of frames; their hashes are right.

    Raises:
        UserError: where one is missing or damaged.
    """
    pieces = () if record is None else record.pieces
    for piece in pieces:
        _check(run / FOLDER / piece.file, piece.sha256)
    return [(run / FOLDER / piece.file, piece.frames) for piece in pieces]


def copy_start(run: Path, other: Path, record: StartRecord) -> None:
    """Give another run the same start, by hard links where possible."""
    checked_pieces(run, record)
    read_memory(run, record)
    with explained(other / FOLDER, "create"):
        (other / FOLDER).mkdir()
        for name in (MEMORY, *(piece.file for piece in record.pieces)):
            link_or_copy(run / FOLDER / name, other / FOLDER / name)
        sync_folder(other / FOLDER)


def _check(path: Path, expected: str) -> None:
    with explained(path, "read"):
        what = "is missing" if not path.is_file() else "is damaged (its hash differs)"
        whole = path.is_file() and file_sha256(path) == expected
    if not whole:
        raise UserError(f"{path} {what}: it holds the user's video that this run goes on from; start a new run with it")
