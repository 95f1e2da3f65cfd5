"""A user's own video as a model goes on from it: its frames at the model's rate and size.

Frames are counted back from the last one, so that what follows begins where the video ends. Knows nothing about models, runs
or captions.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from svi.data.manifest import VIDEO_SUFFIXES
from svi.data.video import UnusableVideoError, VideoInfo, decoded, opened, probe, upright
from svi.errors import UserError

Array = np.ndarray[Any, Any]


def is_film(source: object) -> bool:
    """Whether what a user gave is the name of a video, by its ending."""
    return isinstance(source, str | PathLike) and str(source).lower().endswith(VIDEO_SUFFIXES)


@dataclass(frozen=True)
class Film:
    """A video file that was looked at.

    Attributes:
        path: of the file.
        info: what it holds.
    """

    path: Path
    info: VideoInfo

    @classmethod
    def open(cls, path: Path | str) -> Film:
        """Look at a video.

        Raises:
            UserError: for a file that is missing, damaged, or no video.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"video {path} does not exist" if not path.exists() else f"{path} is no file")
        with _named(path):
            return cls(path, probe(path))

    def numbers(self, fps: int) -> list[int]:
        """Its frames at ``fps`` per second: the nearest one to each instant, the last of which is that of its last frame."""
        times = self.info.times
        if len(times) == 1:
            return [0]
        # Containers round times to milliseconds: an instant just before the first frame is that frame's.
        ticks = np.arange(times[-1], times[0] - 0.25 / fps, -1 / fps)[::-1]
        after = np.clip(np.searchsorted(times, ticks), 1, len(times) - 1)
        nearest = np.where(ticks - times[after - 1] < times[after] - ticks, after - 1, after)
        return [int(number) for number in nearest]

    def first(self) -> Array:
        """Its first frame, ``(H, W, 3)`` uint8, upright and with square pixels.

        Raises:
            UserError: where it cannot be decoded.
        """
        return next(iter(self.frames([0], (self.info.width, self.info.height))))

    def frames(self, numbers: Sequence[int], size: tuple[int, int]) -> Iterator[Array]:
        """Frames by ascending number, also repeatedly, one at a time: ``(H, W, 3)`` uint8 of ``size`` (width, height).

        Decodes the file once, to the last number; squashed like a reference image, with the same filter.

        Raises:
            UserError: where one cannot be decoded.
        """
        left = Counter(numbers)
        where = None if self.info.counted else {int(pts): number for number, pts in enumerate(self.info.pts)}
        with _named(self.path), opened(self.path) as (container, stream):
            for count, frame in enumerate(decoded(container, stream)):
                number = count if where is None else where.get(frame.pts, -1)
                if (times := left.pop(number, 0)) > 0:
                    yield from itertools.repeat(_sized(upright(frame), size), times)
                if not left:
                    return
            raise UnusableVideoError(f"frame {min(left)} cannot be decoded")

    def last(self, count: int, fps: int, size: tuple[int, int]) -> Array:
        """Its last frames, ``(at most count, H, W, 3)`` uint8."""
        return np.stack(list(self.frames(self.numbers(fps)[-count:], size)))

    def pieces(self, fps: int, size: tuple[int, int], length: int) -> Iterator[Array]:
        """All of it in pieces of at most ``length`` frames, ``(n, H, W, 3)`` uint8 each; one piece in memory at a time."""
        frames = self.frames(self.numbers(fps), size)
        while piece := list(itertools.islice(frames, length)):
            yield np.stack(piece)


def _sized(picture: Array, size: tuple[int, int]) -> Array:
    if picture.shape[1::-1] == size:
        return picture
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except UnusableVideoError as error:
        raise UserError(f"video {path}: {error}") from None
