"""Frames of a video file or a folder of PNGs, in batches, as a viewer would see them. Knows nothing about metrics.

A video is decoded once, from front to back, and never held: a batch is all there is in memory. What cannot be read in
full (cut short, damaged, no frames, no such codec, transparent) raises :class:`~svi.data.video.UnusableVideoError` with
reason and remedy, so that it is named and left out, never scored as 0. What is read in another way than it is stored
(10 bit, variable frame rate) says so in ``Video.notes``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from svi.data.video import UnusableVideoError, VideoInfo, decoded, opened, probe, upright
from svi.files import file_sha256

BATCH = 16  # frames
PICTURES_FPS = 16.0  # of a folder of PNGs whose rate nobody gave: that of the paper
JITTER = 0.1  # of a frame: timestamps in whole milliseconds are not a variable rate
RATES = (8.0, 10.0, 12.0, 12.5, 15.0, 16.0, 20.0, 23.976, 24.0, 25.0, 29.97, 30.0, 48.0, 50.0, 59.94, 60.0)
ROUNDED = 0.001  # of a rate
HELD = 4  # a variable rate that would need more than so many times the frames it has is refused
SMALLEST = 16  # pixels
PIXELS = 2**28  # of a PNG at most

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Video:
    """What a video is, as it is scored.

    Attributes:
        path: file, or folder of PNG frames.
        fps: frames per second, constant.
        num_frames, height, width: as they come out of :func:`batches`.
        codec: ``h264``, ``png`` ...
        notes: what was done to make it so.
        shown: how often each stored frame is shown, ``(n,)``; None = each once (constant rate).
        info: of a file, as probed.
    """

    path: Path
    fps: float
    num_frames: int
    height: int
    width: int
    codec: str
    notes: tuple[str, ...] = ()
    shown: Array | None = None
    info: VideoInfo | None = None

    @property
    def duration_s(self) -> float:
        """Until the end of the last frame."""
        return self.num_frames / self.fps


def look(path: Path, fps: float | None = None, *, limit: int | None = None) -> Video:
    """Look at a video without reading it all: its first frame and its timestamps.

    Args:
        path: file, or folder of PNG frames.
        fps: frames are this many per second, whatever the file says.
        limit: leave out what comes after so many frames.

    Raises:
        UnusableVideoError: with reason and remedy.
    """
    if not path.exists():
        raise UnusableVideoError("there is no such file", "correct the path")
    video = _look_at_pictures(path, fps) if path.is_dir() else _look_at_file(path, fps)
    if min(video.height, video.width) < SMALLEST:
        raise UnusableVideoError(f"{video.width}x{video.height} pixels are too few", "score the original")
    if limit is not None and limit < video.num_frames:
        note = f"the first {limit} of {video.num_frames} frames"
        return replace(video, num_frames=limit, notes=(*video.notes, note))
    return video


def batches(video: Video, size: int = BATCH) -> Iterator[Array]:
    """The frames in order, ``(n, H, W, 3)`` uint8, ``n`` = ``size`` but for the last batch.

    Raises:
        UnusableVideoError: where a frame is missing or damaged, or not like the first one.
    """
    batch = np.empty((size, video.height, video.width, 3), np.uint8)
    filled = 0
    for frame in frames(video):
        batch[filled] = frame
        filled += 1
        if filled == size:
            yield batch.copy()
            filled = 0
    if filled:
        yield batch[:filled].copy()


def frames(video: Video) -> Iterator[Array]:
    """The frames one by one, ``(H, W, 3)`` uint8 RGB, upright; see :func:`batches`."""
    source = _picture_frames(video.path) if video.info is None else _file_frames(video.path, video.info)
    count = 0
    for number, frame in enumerate(source):
        if frame.shape != (video.height, video.width, 3):
            change = f"{video.width}x{video.height} to {frame.shape[1]}x{frame.shape[0]}"
            raise UnusableVideoError(f"the picture changes from {change} at frame {number}", "score its parts")
        for _ in range(1 if video.shown is None else int(video.shown[number])):
            count += 1
            yield frame
            if count == video.num_frames:
                return
    raise UnusableVideoError(f"cut short: {count} of {video.num_frames} frames can be decoded")


def content_hash(path: Path) -> str:
    """SHA-256 of a file; of a folder, of the names and hashes of its pictures in order.

    Raises:
        UnusableVideoError: where there is nothing to read.
    """
    try:
        if not path.is_dir():
            return file_sha256(path)
        whole = hashlib.sha256()
        for picture in pictures(path):
            whole.update(f"{picture.name}\0{file_sha256(picture)}\n".encode())
        return whole.hexdigest()
    except FileNotFoundError:
        raise UnusableVideoError("there is no such file", "correct the path") from None
    except OSError as error:
        raise UnusableVideoError(f"cannot be read ({error.strerror or error})") from None


def pictures(folder: Path) -> list[Path]:
    """PNG files of a folder in the order of their names, numbers by value (``2`` before ``10``)."""
    found = [path for path in folder.iterdir() if path.suffix.lower() == ".png" and not path.name.startswith(".")]
    return sorted(found, key=lambda path: natural(path.name))


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts names with numbers in them by value."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


# -- files


def _look_at_file(path: Path, fps: float | None) -> Video:
    with opened(path) as (_, stream):
        if stream.codec_context is None:
            raise UnusableVideoError("nothing here can decode its codec", "encode it as H.264")
    info = probe(path, fps=fps)
    notes: list[str] = []
    with opened(path) as (container, stream):
        first = next(iter(decoded(container, stream)), None)
        if first is None:
            raise UnusableVideoError("it holds no frames")
        height, width = upright(first).shape[:2]
        _check_opaque(first, 0)
        components = first.format.components
        bits = max((part.bits for part in components), default=8)
        if bits > 8:
            notes.append(f"{bits} bit, scored as 8 bit")
        if any(part.is_alpha for part in components):
            notes.append("an alpha channel that hides nothing was dropped")
        if (width, height) != (info.width, info.height):
            notes.append(f"pixels are not square ({info.width}x{info.height} as shown), scored as stored")
    rate, shown = _steady(info, notes)
    count = info.num_frames if shown is None else int(shown.sum())
    return Video(path, rate, count, height, width, info.codec, tuple(notes), shown, info)


def _steady(info: VideoInfo, notes: list[str]) -> tuple[float, Array | None]:
    """A constant rate, and how often each frame is shown at it."""
    if info.num_frames < 2:
        notes.append(f"a single frame: taken for {PICTURES_FPS:g} fps")
        return PICTURES_FPS, None
    gaps = np.diff(info.times)
    usual = float(np.median(gaps))
    if np.abs(gaps - usual).max() <= JITTER * usual:
        return _usual_rate((info.num_frames - 1) / float(info.times[-1])), None
    fps = _usual_rate(1 / float(gaps[np.abs(gaps - usual) <= JITTER * usual].mean()))
    usual = 1 / fps
    # As a player shows it: at each tick the latest frame whose time has come.
    ticks = np.arange(round(float(info.times[-1]) / usual) + 1) * usual
    if len(ticks) > HELD * info.num_frames:
        held = f"its {info.num_frames} frames are shown over {info.times[-1]:.1f} s"
        raise UnusableVideoError(f"variable frame rate: {held}, most of it standing", "encode it at a constant rate")
    latest = np.searchsorted(info.times, ticks + 0.25 * usual, side="right") - 1
    shown = np.bincount(latest, minlength=info.num_frames)
    notes.append(f"variable frame rate: {info.num_frames} frames shown as {len(ticks)} at {fps:g} fps")
    return fps, shown


def _usual_rate(fps: float) -> float:
    """The rate that is meant: timestamps in whole milliseconds are a little off."""
    nearest = min(RATES, key=lambda rate: abs(rate - fps))
    return nearest if abs(nearest / fps - 1) < ROUNDED else round(fps, 3)


def _file_frames(path: Path, info: VideoInfo) -> Iterator[Array]:
    wanted = None if info.counted else {int(pts) for pts in info.pts}
    with opened(path) as (container, stream):
        number = 0
        for frame in decoded(container, stream):
            if wanted is not None:
                if frame.pts not in wanted:  # outside what the container's edit list shows
                    continue
                wanted.remove(frame.pts)
            _check_opaque(frame, number)
            yield upright(frame)
            number += 1


def _check_opaque(frame: Any, number: int) -> None:
    """What lies under transparent pixels is nobody's picture."""
    if not any(part.is_alpha for part in frame.format.components):
        return
    alpha = frame.to_ndarray(format="rgba")[..., 3]
    if alpha.min() < 255:
        raise _transparent(number)


def _transparent(number: int) -> UnusableVideoError:
    return UnusableVideoError(f"frame {number} is partly transparent", "flatten it over the background it is meant for")


# -- folders


def _look_at_pictures(path: Path, fps: float | None) -> Video:
    found = pictures(path)
    if not found:
        raise UnusableVideoError("it holds no PNG pictures", "give a video, or a folder of PNG frames")
    notes: list[str] = []
    height, width = _read_picture(found[0], 0, notes.append).shape[:2]
    if fps is None:
        notes.append(f"no frame rate given: taken for {PICTURES_FPS:g} fps")
    return Video(path, fps or PICTURES_FPS, len(found), height, width, "png", tuple(notes))


def _picture_frames(path: Path) -> Iterator[Array]:
    for number, picture in enumerate(pictures(path)):
        yield _read_picture(picture, number, lambda note: None)


def _read_picture(path: Path, number: int, note: Callable[[str], None]) -> Array:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.width * image.height > PIXELS:
                raise UnusableVideoError(f"{path.name} has {image.width}x{image.height} pixels")
            if image.mode.startswith("I"):
                note("16 bit, scored as 8 bit")
                grey = (np.asarray(image).astype(np.float64) / 257).round().astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            if "A" in image.mode or "transparency" in image.info:
                pixels = np.array(image.convert("RGBA"))
                if pixels[..., 3].min() < 255:
                    raise _transparent(number)
                note("an alpha channel that hides nothing was dropped")
                return np.ascontiguousarray(pixels[..., :3])
            return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        if isinstance(error, UnusableVideoError):
            raise
        raise UnusableVideoError(f"{path.name} is no readable PNG") from None
