"""Pictures of an experiment: per world a contact sheet with a row per arm, and videos.

Knows frames, files and PIL; nothing about models or measures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from svi.files import explained, replacing
from svi.generation.writer import encode_segment, join_segments
from svi.pocket.drift.cells import Cell

COLUMNS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # clips that a sheet shows, counted from 1; and the last
VIDEO_CLIPS = 50
SCALE, GAP, HEAD, SIDE, FONT_PX = 2, 4, 18, 150, 12
INK, PAPER, PALE = (32, 32, 36), (255, 255, 255), (120, 120, 128)


def pictured_clips(clips: int) -> tuple[int, ...]:
    """Clips, counted from 0, of which a sheet shows the last frame."""
    return tuple(sorted({*(column - 1 for column in COLUMNS if column <= clips), clips - 1}))


def save_strip(path: Path, pictures: Sequence[np.ndarray]) -> None:
    """Frames side by side as PNG, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(Image.fromarray(np.concatenate(list(pictures), axis=1)), path)


def read_strip(path: Path, count: int) -> list[Image.Image] | None:
    """The ``count`` frames of a strip; None where it is missing or is another."""
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except (OSError, ValueError):
        return None
    if count < 1 or picture.width % count:
        return None
    width = picture.width // count
    return [picture.crop((i * width, 0, (i + 1) * width, picture.height)) for i in range(count)]


def sheet(
    title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Image.Image | None]]], path: Path
) -> None:
    """A contact sheet: a header over each column, a label before each row."""
    first = next(picture for _, pictures in rows for picture in pictures if picture is not None)
    cell = (first.width * SCALE, first.height * SCALE)
    width = SIDE + len(columns) * (cell[0] + GAP)
    page = Image.new("RGB", (width, 2 * HEAD + len(rows) * (cell[1] + GAP)), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=FONT_PX)
    draw.text((GAP, 2), _fitting(title, width), fill=INK, font=font)
    for column, text in enumerate(columns):
        draw.text((SIDE + column * (cell[0] + GAP), HEAD), text, fill=PALE, font=font)
    for row, (label, pictures) in enumerate(rows):
        y = 2 * HEAD + row * (cell[1] + GAP)
        draw.text((GAP, y + cell[1] // 2 - FONT_PX), label, fill=INK, font=font)
        for column, picture in enumerate(pictures):
            if picture is not None:
                enlarged = picture.resize(cell, Image.Resampling.NEAREST)
                page.paste(enlarged, (SIDE + column * (cell[0] + GAP), y))
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(page, path)


def _fitting(text: str, width: int) -> str:
    room = int(width / (FONT_PX * 0.5))
    return text if len(text) <= room else text[: room - 3] + "..."


def _save(image: Image.Image, path: Path) -> None:
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


class Film:
    """A video of the first clips of a cell, encoded clip by clip; a context that leaves nothing half-made."""

    def __init__(self, out: Path, cell: Cell, fps: int) -> None:
        self._target = out / "videos" / f"{cell.scene}-{cell.index}-{cell.arm}.mp4"
        self._fps, self._frames = fps, 0
        self._segments: list[Path] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Film:
        with explained(self._target, "create"):
            self._target.parent.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix="svi-drift-")
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._folder is not None
        self._folder.cleanup()

    def add(self, frames: np.ndarray) -> None:
        """One clip more, ``(T, H, W, 3)`` uint8."""
        assert self._folder is not None
        if len(self._segments) == VIDEO_CLIPS:
            return
        path = Path(self._folder.name) / f"{len(self._segments):04d}.mp4"
        path.write_bytes(encode_segment(torch.from_numpy(frames), fps=self._fps, start_frame=self._frames))
        self._segments.append(path)
        self._frames += len(frames)

    def finish(self) -> None:
        """Join the clips into the video."""
        join_segments(self._segments, self._target, fps=self._fps)
