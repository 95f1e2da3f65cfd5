"""What a video file holds, and the frames at given places in it. Knows nothing about models, captions or windows.

A frame counts where its timestamp says, not where a header's rate says, so variable rates come out right. Pictures come
out upright (display rotation) and their size is that of square pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace

FETCH = "fetch or export it again"
GAP = 250  # frames between two wanted ones from which seeking beats decoding on
HD_HEIGHT = 720  # untagged video of at least this height is BT.709, as players take it; smaller is BT.601
# Containers that tell in which order frames are decoded, not when they are shown: their frames are counted.
COUNTED = frozenset({"avi", "h264", "hevc", "m4v", "mpegvideo"})
UNSPECIFIED = 2  # colour matrix of ISO/IEC 23091-2

Array = np.ndarray[Any, Any]


class UnusableVideoError(ValueError):
    """A video that cannot be used; ``reason`` and ``remedy`` for a list, the message for a line."""

    def __init__(self, reason: str, remedy: str = FETCH) -> None:
        super().__init__(f"{reason}: {remedy}")
        self.reason, self.remedy = reason, remedy


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """What a file holds.

    Attributes:
        width, height: as shown, upright and with square pixels, rounded.
        pts: ``(n,)`` int64 timestamps in the stream's own unit, ascending.
        times: ``(n,)`` float64 seconds since the first frame.
        codec: name of the codec.
        counted: the container has no timestamps of its own, ``pts`` are frame numbers, and frames are found by counting.
    """

    width: int
    height: int
    pts: Array
    times: Array
    codec: str
    counted: bool = False

    @property
    def num_frames(self) -> int:
        return len(self.pts)

    @property
    def fps(self) -> float:
        """Typical rate: one over the median distance of frames; 0 for a single frame."""
        return 0.0 if len(self.times) < 2 else float(1 / np.median(np.diff(self.times)))

    @property
    def duration_s(self) -> float:
        """Until the end of the last frame."""
        return float(self.times[-1]) + (1 / self.fps if self.fps else 0.0)


def probe(path: Path, *, fps: float | None = None) -> VideoInfo:
    """Look at a video: decodes its first frame, reads the timestamps of all.

    Args:
        path: of the file.
        fps: frames are this many per second, whatever their timestamps say.

    Raises:
        UnusableVideoError: not a video, damaged or cut short.
    """
    with opened(path) as (container, stream):
        first = next(iter(decoded(container, stream)), None)
        if first is None:
            raise UnusableVideoError("it holds no frames")
        aspect = stream.sample_aspect_ratio
        width, height = first.width * float(aspect or 1), first.height
        if _quarter_turns(first) % 2:
            width, height = height, width
    width, height = max(1, round(width)), max(1, round(height))
    with opened(path) as (container, stream):
        pts = _timestamps(container, stream)
        unit, codec = float(stream.time_base), str(stream.codec_context.name)
    if pts is not None:
        ordered = np.unique(np.asarray(pts, dtype=np.int64))
        times = (ordered - ordered[0]) * unit
    else:
        with opened(path) as (container, stream):
            ordered = np.arange(sum(1 for _ in decoded(container, stream)))
            times = ordered / float(stream.average_rate or fps or 1)
    times = times if fps is None else np.arange(len(ordered)) / fps
    return VideoInfo(width, height, ordered, times, codec, counted=pts is None)


def read_frames(path: Path, info: VideoInfo, numbers: Sequence[int], view: Callable[[Array], Array]) -> Array:
    """Frames by their number, each passed through ``view`` as soon as it is decoded.

    Args:
        path: of the file.
        info: as :func:`probe` gave it.
        numbers: frames wanted, in any order, also repeatedly.
        view: ``(H, W, 3)`` uint8, upright -> ``(h, w, 3)`` uint8; crop and scale here, so that large frames do not pile up.

    Returns:
        ``(len(numbers), h, w, 3)`` uint8.

    Raises:
        UnusableVideoError: a frame cannot be decoded.
    """
    found: dict[int, Array] = {}
    for group in _groups(sorted(set(numbers))):
        wanted = {int(info.pts[number]): number for number in group}
        # Some files lead a seek astray: then from the beginning.
        for seek in (False,) if info.counted else (True, False):
            for pts, frame in _frames_at(path, wanted, seek=seek, counted=info.counted):
                found[wanted[pts]] = view(upright(frame))
            if all(number in found for number in group):
                break
        else:
            lost = next(number for number in group if number not in found)
            raise UnusableVideoError(f"frame {lost} cannot be decoded")
    return np.stack([found[number] for number in numbers])


def _groups(numbers: list[int]) -> Iterator[list[int]]:
    start = 0
    for end in range(1, len(numbers) + 1):
        if end == len(numbers) or numbers[end] - numbers[end - 1] > GAP:
            yield numbers[start:end]
            start = end


def _frames_at(path: Path, wanted: Iterable[int], *, seek: bool, counted: bool) -> Iterator[tuple[int, Any]]:
    """Decoded frames whose timestamps (``counted``: numbers) are wanted, up to the last one."""
    left = set(wanted)
    with opened(path) as (container, stream):
        if seek and min(left) > 0:
            with contextlib.suppress(av.FFmpegError, OSError):
                container.seek(min(left), stream=stream, backward=True)
        for number, frame in enumerate(decoded(container, stream)):
            pts = number if counted else frame.pts
            if pts in left:
                left.remove(pts)
                yield pts, frame
            if not left:
                return


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream."""
    try:
        if path.stat().st_size == 0:
            raise UnusableVideoError("the file is empty")
        container: Any = av.open(str(path), "r", options={"protocol_whitelist": "file"})
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _explained(error, "cannot be opened as a video") from None
    with container:
        stream = container.streams.best("video")
        if stream is None:
            raise UnusableVideoError("it holds no video, only sound or data", "leave it out")
        stream.thread_type = "AUTO"
        yield container, stream


def decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Frames of an open container, in order; a damaged one ends with an :class:`UnusableVideoError`."""
    try:
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise UnusableVideoError("damaged: a frame is corrupt")
            yield frame
    except (av.FFmpegError, OSError, EOFError, ValueError) as error:
        raise _explained(error, "damaged: it cannot be decoded") from None


def _explained(error: Exception, what: str) -> UnusableVideoError:
    if isinstance(error, UnusableVideoError):
        return error
    return UnusableVideoError(f"{what} ({getattr(error, 'strerror', None) or str(error)[:80]})")


def _timestamps(container: Any, stream: Any) -> list[int] | None:
    """Timestamps of all frames without decoding them; None where the container does not tell when a frame is shown."""
    if container.format.name in COUNTED:
        return None
    found: list[int | None] = []
    count = 0
    try:
        for packet in container.demux(stream):
            if not packet.size:  # the last one is an empty flush packet
                continue
            count += 1
            if packet.is_corrupt:
                raise UnusableVideoError(f"damaged or cut short at frame {count}")
            if not packet.is_discard:
                found.append(packet.pts)
        listed = len(stream.index_entries)  # of all frames in mp4, of some in mkv
    except (av.FFmpegError, OSError, EOFError, ValueError) as error:
        raise _explained(error, f"damaged after {count} frames") from None
    if count < listed:
        raise UnusableVideoError(f"cut short: {count} of {listed} frames are there")
    if not found:
        raise UnusableVideoError("it holds no frames")
    return None if None in found else [int(pts) for pts in found if pts is not None]


def _quarter_turns(frame: Any) -> int:
    """How often to turn the picture by 90 degrees, counterclockwise."""
    return round(int(frame.rotation or 0) / 90) % 4


def upright(frame: Any) -> Array:
    """``(H, W, 3)`` uint8 RGB, turned as the file says."""
    untagged_hd = int(frame.colorspace) == UNSPECIFIED and frame.height >= HD_HEIGHT
    matrix = {"src_colorspace": Colorspace.ITU709} if untagged_hd else {}
    picture: Array = frame.to_ndarray(format="rgb24", **matrix)
    return np.ascontiguousarray(np.rot90(picture, _quarter_turns(frame)))
