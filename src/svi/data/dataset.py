"""Training windows as samples: from a cache, or encoded on the fly, behind one interface.

A dataset maps (index, epoch) to a sample and has no state; order and position are the business of ``sampler``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from svi.conditioning.encodings import Encoder, Encodings
from svi.data.cache import open_cache
from svi.data.encode import empty_text, encode_windows
from svi.data.ingest import WindowSource
from svi.data.manifest import VideoItem
from svi.data.sample import Sample, TrainingBatch, collate, padded
from svi.data.video import UnusableVideoError
from svi.data.windows import Bucket
from svi.errors import UserError

Key = tuple[int, int]  # (index of a window, epoch)


class Dataset(Protocol):
    """Training windows.

    Attributes:
        size: windows in an epoch; None = endless.
    """

    @property
    def size(self) -> int | None: ...

    def bucket_of(self, index: int) -> Bucket:
        """Shape of window ``index``: a batch is made of windows of one bucket."""
        ...

    def window_id(self, index: int) -> str:
        """Name of window ``index``; of a video ``clip.mp4`` they are ``clip.mp4#0``, ``clip.mp4#1`` ..."""
        ...

    def sample(self, index: int, epoch: int) -> Sample:
        """A window as it looks in an epoch."""
        ...

    def empty_text(self) -> Tensor:
        """``(1, L, D)``, the empty prompt as a batch's condition holds texts: for text dropout."""
        ...


def batch_of(dataset: Dataset, keys: Sequence[Key]) -> TrainingBatch:
    """The samples of these keys as one batch."""
    return collate([dataset.sample(index, epoch) for index, epoch in keys])


class CachedDataset:
    """Windows that were encoded before; epoch e reads the draws of epoch ``e % variants``.

    Args:
        folder: of the cache.
        expected: what it must have been made with; see :func:`svi.data.cache.open_cache`.
        items: the videos that it must have been made from; None = not compared.

    Attributes:
        cache: what is read.

    Raises:
        UserError: the cache is missing, unfinished, damaged or stale; the message names what differs and the remedy.
    """

    def __init__(
        self,
        folder: Path | str,
        expected: Mapping[str, Any] | None = None,
        items: Iterable[VideoItem] | None = None,
    ) -> None:
        self.cache = open_cache(folder, expected)
        if items is not None:
            self.cache.check_videos(items)
        if not self.cache.windows:
            raise UserError(f"{folder} holds no windows: all videos were left out (`svi data check` lists the reasons)")

    @property
    def size(self) -> int:
        return len(self.cache.windows)

    def bucket_of(self, index: int) -> Bucket:
        return self.cache.bucket_of(self.cache.windows[index])

    def window_id(self, index: int) -> str:
        return self.cache.windows[index]

    def sample(self, index: int, epoch: int) -> Sample:
        return self.cache.read(self.cache.windows[index], epoch % self.cache.variants)

    def empty_text(self) -> Tensor:
        return padded(*self.cache.empty_text())[None]


class LiveDataset:
    """Windows decoded and encoded when they are asked for: slower, nothing on disk, new draws in every epoch.

    Args:
        source: where windows come from, with their preset and geometry.
        encoder: of the model.
    """

    def __init__(self, source: WindowSource, encoder: Encoder) -> None:
        if source.size == 0:
            raise UserError("there is nothing to train on: no window is usable (`svi data check` lists the reasons)")
        self.source = source
        self.encodings = Encodings(encoder)

    @property
    def size(self) -> int | None:
        return self.source.size

    def bucket_of(self, index: int) -> Bucket:
        return self.source.bucket_of(index)

    def window_id(self, index: int) -> str:
        return self.source.window_id(index)

    def sample(self, index: int, epoch: int) -> Sample:
        """See :class:`Dataset`.

        Raises:
            UserError: the video cannot be decoded there.
        """
        try:
            window = self.source.read(index, epoch)
        except UnusableVideoError as error:
            name = self.source.window_id(index)
            raise UserError(f"{name}: {error}; `svi data encode` leaves such windows out") from None
        return encode_windows([window], self.encodings, self.source.policy, self.source.geometry)[0]

    def empty_text(self) -> Tensor:
        return padded(*empty_text(self.encodings))[None]
