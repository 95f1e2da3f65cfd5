"""What the metrics with networks share: options, loading once, frames in batches, and pictures as networks want them.

Knows nothing about a particular network or score. A metric is handed an extractor (frames in, rows of numbers out) by
whoever tests it, or loads the real one at its first video; missing weights or libraries are a reason, never a 0.
"""

from __future__ import annotations

import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from svi.errors import UserError, nearest
from svi.evaluation.metric import Better, Frames, Kept, Need, Reading, Sample, Score, Skipped, split
from svi.evaluation.metrics import weights
from svi.evaluation.metrics.formulas import Mode, Profile, Window, mean_over_windows, windows

if TYPE_CHECKING:
    import torch

VBENCH = "Huang et al., VBench, CVPR 2024, arXiv:2311.17982; code of github.com/Vchitect/VBench"


class Extractor(Protocol):
    """Frames to rows of numbers.

    Attributes:
        key: what its numbers depend on, as text.
    """

    key: str

    def __call__(self, frames: np.ndarray, /) -> np.ndarray:
        """``(n, H, W, 3)`` uint8, or groups of frames ``(n, k, H, W, 3)``, to ``(n, ...)``."""


@dataclass(frozen=True)
class Setup:
    """How metrics with networks run.

    Attributes:
        mode: ``"vbench"`` keeps the quirks of VBench's code; ``"clean"`` does what was meant.
        profile: ``"paper"`` scores whole videos; ``"long"`` VBench-Long's 2 s clips, and averages.
        places: where weights are.
        device, dtype: where and in which precision networks run, as :func:`svi.backends.placement.choose` takes them.
        batch_size: frames at a time.
    """

    mode: Mode = "vbench"
    profile: Profile = "paper"
    places: weights.Places = field(default_factory=weights.Places)
    device: str = "cpu"
    dtype: str = "float32"
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("mode", self.mode, ("vbench", "clean")),
            ("profile", self.profile, ("paper", "long")),
        ):
            if value not in choices:
                raise UserError(f"{name} {value!r} is unknown: {nearest(value, choices)}")
        if self.batch_size < 1:
            raise UserError(f"batch_size {self.batch_size}: use at least 1")


class NetworkMetric(ABC):
    """A metric with a network behind it; subclasses say which, and what becomes of its numbers.

    The name tells mode and profile, so that two of them never share a column: ``subject_consistency``,
    ``subject_consistency_clean``, ``subject_consistency_long``.
    """

    base: ClassVar[str]
    files: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ()  # beyond what the package depends on
    version: str = "1"
    unit: str = "%"
    better: Better = Better.HIGHER
    needs: frozenset[Need] = frozenset()
    source: str = VBENCH

    def __init__(self, setup: Setup | None = None, extractor: Extractor | None = None) -> None:
        self.setup = setup or Setup()
        suffixes = ["" if self.setup.mode == "vbench" else "_clean", "" if self.setup.profile == "paper" else "_long"]
        self.name: str = self.base + "".join(suffixes)
        self._given = extractor
        self._loaded: Extractor | None = extractor

    def key(self) -> str:
        """Mode, profile, precision and the hashes of the weights, as JSON."""
        facts: dict[str, object] = {"mode": self.setup.mode, "profile": self.setup.profile, **self.parameters()}
        if self._given is not None:
            facts["extractor"] = self._given.key
        else:
            facts["dtype"] = self.setup.dtype
            facts["weights"] = {name: weights.fingerprint(name, self.setup.places) for name in self.files}
        return json.dumps(facts, sort_keys=True)

    def parameters(self) -> dict[str, object]:
        """Further settings that the score depends on."""
        return {}

    def missing(self) -> str | None:
        """Which weights or libraries are not there, and the remedy."""
        if self._given is not None:
            return None
        for library in self.libraries:
            if importlib.util.find_spec(library) is None:
                return f"{self.name} needs the library {library}: pip install {library}"
        reasons = (weights.why_missing(name, self.setup.places) for name in self.files)
        return next((f"{self.name}: {reason}" for reason in reasons if reason), None)

    def extractor(self) -> Extractor:
        """The network, loaded at the first call and kept.

        Raises:
            UserError: weights are missing or not what was published.
        """
        if self._loaded is None:
            self._loaded = self.load()
        return self._loaded

    @abstractmethod
    def load(self) -> Extractor:
        """Read the weights and build the network."""

    @abstractmethod
    def start(self, sample: Sample) -> Reading:
        """Begin a video."""

    def windows(self, num_frames: int, sample: Sample) -> list[Window]:
        """What of a video is scored on its own under the profile."""
        return windows(num_frames, sample.fps, self.setup.mode, self.setup.profile)

    def averaged(self, values: Sequence[float], counts: Sequence[int]) -> float:
        """Windows to one score in percent."""
        return 100 * mean_over_windows(values, counts, self.setup.mode)


class FrameMetric(NetworkMetric):
    """A metric that needs one row of features per frame, and computes from all rows of a video at its end."""

    def start(self, sample: Sample) -> Reading:
        return RowReading(self.extractor(), self.setup.batch_size, lambda rows: self.finish(rows, sample))

    @abstractmethod
    def finish(self, rows: np.ndarray, sample: Sample) -> Score | Skipped:
        """The score from ``(num_frames, d)`` float32."""


class RowReading:
    """Sends frames through an extractor as they come and keeps its rows: memory grows by a row per frame."""

    def __init__(self, extractor: Extractor, batch_size: int, finish: Callable[[np.ndarray], Score | Skipped]) -> None:
        self._extractor, self._batch_size, self._finish = extractor, batch_size, finish
        self._rows = Kept()

    def add(self, batch: Frames) -> None:
        for part in split(batch, self._batch_size):
            rows = np.asarray(self._extractor(part.frames), dtype=np.float32)
            self._rows.add(rows.reshape(len(part.frames), -1))

    def result(self) -> Score | Skipped:
        return self._finish(self._rows.all()) if len(self._rows) else Skipped("the video has no frames")


class GroupReading:
    """Sends groups of frames (pairs, triples, windows) through an extractor as soon as their last frame has come.

    Only frames that a later group needs are kept. A video that ends before its last group is a reason to skip: the
    groups were laid out for ``sample.num_frames``.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        extractor: Extractor,
        batch_size: int,
        finish: Callable[[dict[tuple[int, ...], np.ndarray]], Score | Skipped],
    ) -> None:
        # Groups of overlapping windows may be the same; each is computed once.
        self._groups = sorted({tuple(group) for group in groups}, key=lambda group: (group[-1], group))
        self._last_use = {frame: group[-1] for group in self._groups for frame in group}  # ascending: the last wins
        self._extractor, self._batch_size, self._finish = extractor, batch_size, finish
        self._kept: dict[int, np.ndarray] = {}
        self._ready: list[tuple[int, ...]] = []
        self._done = 0
        self._rows: dict[tuple[int, ...], np.ndarray] = {}

    def add(self, batch: Frames) -> None:
        for offset, frame in enumerate(batch.frames):
            self._take(batch.start + offset, frame)

    def _take(self, index: int, frame: np.ndarray) -> None:
        if index in self._last_use:
            self._kept[index] = frame.copy()  # a view would keep the whole batch alive
        while self._done < len(self._groups) and self._groups[self._done][-1] == index:
            self._ready.append(self._groups[self._done])
            self._done += 1
            if len(self._ready) == self._batch_size:
                self._compute()

    def _compute(self) -> None:
        if not self._ready:
            return
        stacked = np.stack([np.stack([self._kept[frame] for frame in group]) for group in self._ready])
        for group, value in zip(self._ready, np.asarray(self._extractor(stacked)), strict=True):
            self._rows[group] = value
        self._ready.clear()
        reached = self._groups[self._done - 1][-1]
        self._kept = {frame: kept for frame, kept in self._kept.items() if self._last_use[frame] >= reached}

    def result(self) -> Score | Skipped:
        self._compute()
        if self._done < len(self._groups):
            return Skipped("the video ends before the frames that its header promises: make or convert it again")
        return self._finish(self._rows)


class Unscored:
    """A reading that says from the start why there will be no score."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def add(self, batch: Frames) -> None:
        """Let the frames pass."""

    def result(self) -> Skipped:
        return Skipped(self._reason)


def video_float(frames: np.ndarray, device: torch.device) -> torch.Tensor:
    """``(n, H, W, 3)`` uint8 to ``(n, 3, H, W)`` float32 in 0..255 on ``device``."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(frames)).to(device).permute(0, 3, 1, 2).float()


def resized(images: torch.Tensor, size: tuple[int, int], kind: str, mode: Mode) -> torch.Tensor:
    """Resize ``(n, 3, H, W)`` in 0..255; ``"vbench"`` without antialiasing and without clamping what overshoots."""
    from torch.nn.functional import interpolate

    if tuple(images.shape[-2:]) == tuple(size):
        return images
    out = interpolate(images, size=size, mode=kind, align_corners=False, antialias=mode == "clean")
    return out if mode == "vbench" else out.clamp(0, 255)


def shorter_side(height: int, width: int, side: int) -> tuple[int, int]:
    """The size whose shorter side is ``side``; the longer one is truncated, as torchvision does."""
    shorter, longer = min(height, width), max(height, width)
    other = int(side * longer / shorter)
    return (side, other) if height <= width else (other, side)


def centre_crop(images: torch.Tensor, side: int) -> torch.Tensor:
    """The middle ``side x side`` of ``(n, 3, H, W)``; odd margins as torchvision rounds them (half to even)."""
    height, width = images.shape[-2:]
    top, left = round((height - side) / 2), round((width - side) / 2)
    return images[..., top : top + side, left : left + side]


def normalise(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """0..255 to zero mean and unit variance per channel."""
    average = images.new_tensor(list(mean)).view(3, 1, 1)
    spread = images.new_tensor(list(std)).view(3, 1, 1)
    return (images / 255 - average) / spread
