"""Windows of real videos: which there are, and the pixels of each.

Opens every video once to see what it holds, keeps runs of moving frames that are long enough, and leaves out the rest
with the reason. No frame is ever repeated to fill a window: the published loader repeats the last one (81 frames of an
81-frame video become 80 and a copy), which teaches the model to stop where the next clip begins. Knows nothing about models
beyond a :class:`~svi.geometry.Geometry`, or about latents.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from svi.conditioning.policy import ConditioningPolicy
from svi.data.degrade import degrade
from svi.data.manifest import Manifest, Skipped, VideoItem
from svi.data.video import Array, UnusableVideoError, VideoInfo, probe, read_frames
from svi.data.windows import (
    Bucket,
    Crop,
    Layout,
    Reach,
    WindowRule,
    degradation,
    draw_crop,
    generator_for,
    lay_out,
    reach,
    window_start,
)
from svi.errors import UserError
from svi.geometry import Geometry

SAME_RATE = 0.02  # a constant rate this near to the model's is taken frame by frame
PROBES = 8


@dataclass(frozen=True, eq=False)
class Window:
    """The pixels of one training window, and what they are.

    Attributes:
        id: of the window, the same in every epoch.
        caption: what happens in it.
        frames: ``(T, H, W, 3)`` uint8, what the clip shows; under latent hand-off a later clip shows its reference first.
        reference: ``(H, W, 3)`` uint8.
        handed: ``(M, H, W, 3)`` uint8, the motion frames that pixel hand-off continues: the first of ``frames``, or what a
            handcrafted error made of them.
        context: ``(K, H, W, 3)`` uint8, the past that latent hand-off continues, likewise; K may be 0.
        first: whether it is conditioned as the first clip of a video.
    """

    id: str
    caption: str
    frames: Tensor
    reference: Tensor
    handed: Tensor
    context: Tensor
    first: bool


class WindowSource(Protocol):
    """Where windows come from: videos (:class:`VideoSource`) or an endless maker of clips (``endless.EndlessSource``)."""

    policy: ConditioningPolicy
    geometry: Geometry

    @property
    def size(self) -> int | None:
        """Number of windows of an epoch; None = endless."""
        ...

    def bucket_of(self, index: int) -> Bucket:
        """Shape of window ``index``."""
        ...

    def window_id(self, index: int) -> str:
        """Name of window ``index``."""
        ...

    def item_of(self, index: int) -> VideoItem | None:
        """The video that window ``index`` is cut from, None where there is none."""
        ...

    def read(self, index: int, epoch: int) -> Window:
        """The window as it looks in an epoch; a pure function of its arguments.

        Raises:
            UnusableVideoError: the video cannot be decoded there.
        """
        ...

    def describe(self) -> Mapping[str, Any]:
        """What decides the windows beside the videos themselves, JSON-ready: part of a cache's fingerprint."""
        ...


@dataclass(frozen=True, eq=False)
class Span:
    """A run of frames in which something moves: ``frames[k]`` is the number of the video's frame that shows at ``k / fps``."""

    item: VideoItem
    info: VideoInfo
    bucket: Bucket
    frames: Array
    start_s: float


def on_clock(info: VideoInfo, item: VideoItem, fps: float) -> Array:
    """Numbers ``(n,)`` of the video's frames on a clock of ``fps`` ticks per second, within the part that the item uses.

    Each tick takes the frame that is nearest in time. A constant rate within 2 % of ``fps`` is taken frame by frame.
    """
    low = int(np.searchsorted(info.times, item.start_s - 1e-6))
    high = info.num_frames if item.end_s is None else int(np.searchsorted(info.times, item.end_s - 1e-6))
    times = info.times[low:high]
    if not len(times):
        return np.zeros(0, dtype=np.int64)
    gaps = np.diff(times)
    steady = len(gaps) == 0 or float(np.ptp(gaps)) < 0.1 * float(np.median(gaps))
    if steady and abs(info.fps / fps - 1) < SAME_RATE:
        return np.arange(low, high)
    reach_s = times[-1] - times[0] + 0.5 / max(info.fps, fps)
    ticks = times[0] + np.arange(math.floor(reach_s * fps) + 1) / fps
    middles = (times[1:] + times[:-1]) / 2
    return np.asarray(low + np.searchsorted(middles, ticks - 1e-6))


def moving_runs(frames: Array) -> list[range]:
    """Positions between which no frame shows twice."""
    cuts = [0, *(int(k) + 1 for k in np.flatnonzero(np.diff(frames) == 0)), len(frames)]
    return [range(a, b) for a, b in itertools.pairwise(cuts) if b > a]


class VideoSource:
    """All windows of the videos of a manifest.

    Attributes:
        policy, geometry, rule, buckets: as given.
        spans: what windows are cut from.
        skipped: what is left out, those of the manifest included.
        seen: ``{id: VideoInfo}`` of every video that could be opened.
    """

    def __init__(
        self,
        manifest: Manifest,
        geometry: Geometry,
        policy: ConditioningPolicy,
        rule: WindowRule,
        buckets: Sequence[Bucket] = (),
        on_probe: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Open every video once.

        Args:
            manifest: what there is.
            geometry: of the model.
            policy, rule: how a window is conditioned and where it may lie.
            buckets: shapes of windows; a video gets the one of the nearest aspect ratio. Left out: the model's own.
            on_probe: called with (done, total) after each video.

        Raises:
            UserError: for a bucket that the model cannot take, or a preset that needs a drive.
        """
        if policy.drive is not None:
            raise UserError(f"preset {policy.name} is driven by {policy.drive}, which cannot be encoded yet")
        self.policy, self.geometry, self.rule = policy, geometry, rule
        self.buckets = tuple(sorted(set(buckets))) or (Bucket.of(geometry),)
        for bucket in self.buckets:
            bucket.check(geometry)
        self.seen: dict[str, VideoInfo] = {}
        self.spans: list[Span] = []
        self.skipped: list[Skipped] = list(manifest.skipped)
        for done, (item, found) in enumerate(_probed(manifest.items), 1):
            if isinstance(found, VideoInfo):
                self.seen[item.id] = found
                self._cut(item, found)
            else:
                self.skipped.append(Skipped(item.id, found.reason, found.remedy))
            on_probe(done, len(manifest.items))
        self._windows = [(span, k) for span in self.spans for k in range(self._count(span))]
        numbers: dict[str, int] = {}
        self._ids = []
        for span, _ in self._windows:
            number = numbers[span.item.id] = numbers.get(span.item.id, -1) + 1
            self._ids.append(f"{span.item.id}#{number}")

    # -- windows

    @property
    def size(self) -> int:
        return len(self._windows)

    def bucket_of(self, index: int) -> Bucket:
        return self._windows[index][0].bucket

    def window_id(self, index: int) -> str:
        return self._ids[index]

    def item_of(self, index: int) -> VideoItem:
        return self._windows[index][0].item

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "videos", "rule": asdict(self.rule), "buckets": [str(bucket) for bucket in self.buckets]}

    def layout(self, index: int, epoch: int) -> Layout:
        """Which frames of its span the window shows in an epoch."""
        span, number = self._windows[index]
        phase = generator_for(self.rule.seed, f"phase {span.item.id} {span.start_s:.4f}", epoch)
        start = window_start(self._reach(span.bucket), self.rule, len(span.frames), number, phase)
        drawn = generator_for(self.rule.seed, f"window {self._ids[index]}", epoch)
        whole, scale = range(len(span.frames)), self.geometry.temporal_scale
        return lay_out(self.policy, self.rule, start, whole, span.bucket.num_frames, scale, drawn)

    def read(self, index: int, epoch: int) -> Window:
        """See :class:`WindowSource`.

        Raises:
            UnusableVideoError: the video cannot be decoded there.
        """
        span, _ = self._windows[index]
        layout, bucket = self.layout(index, epoch), span.bucket
        target = bucket.height, bucket.width
        drawn = generator_for(self.rule.seed, f"crop {self._ids[index]}", epoch)
        crop = draw_crop((span.info.height, span.info.width), target, self.rule.crop_min, drawn)
        numbers = [int(span.frames[number]) for number in layout.numbers]
        pixels = read_frames(span.item.path, span.info, numbers, lambda frame: cropped(frame, crop, target))
        spoil = degradation(self.rule, self._ids[index], epoch)
        return window_of(self._ids[index], span.item.caption, torch.from_numpy(pixels), layout, self.policy, spoil)

    # -- what windows are cut from

    def _reach(self, bucket: Bucket) -> Reach:
        return reach(self.policy, self.rule, bucket.num_frames, self.geometry.temporal_scale)

    def _count(self, span: Span) -> int:
        return self._reach(span.bucket).windows(len(span.frames), self.rule)

    def _cut(self, item: VideoItem, info: VideoInfo) -> None:
        """Add the spans of a video, or the reason why it has none."""
        frames = on_clock(info, item, self.geometry.fps)
        runs = moving_runs(frames)
        made = [self._span(item, info, frames, run) for run in runs]
        usable = [span for span in made if span is not None]
        self.spans += usable
        if not usable:
            self.skipped.append(self._why_none(item, info, frames, max((len(run) for run in runs), default=0)))

    def _span(self, item: VideoItem, info: VideoInfo, frames: Array, run: range) -> Span | None:
        """The run with the bucket of the nearest shape, and of those the longest, that it has the frames for."""
        fitting = [bucket for bucket in self.buckets if self._reach(bucket).total <= len(run)]
        if not fitting:
            return None
        shape = math.log(info.width / info.height)
        bucket = min(fitting, key=lambda b: (abs(math.log(b.width / b.height) - shape), -b.num_frames, -b.height))
        return Span(item, info, bucket, frames[run.start : run.stop], float(info.times[frames[run.start]]))

    def _why_none(self, item: VideoItem, info: VideoInfo, frames: Array, longest: int) -> Skipped:
        fps = self.geometry.fps
        needed = min(self._reach(bucket).total for bucket in self.buckets)
        length = f"{len(frames)} frames at {fps} fps, a window of {self.policy.name} needs {needed}"
        if len(frames) < needed:
            return Skipped(item.id, f"too short: {length}", "leave it out, or take a bucket of fewer frames")
        if info.fps < fps:
            reason = f"{info.fps:.3g} fps, the model needs {fps}: frames would show twice"
            faster = f"{fps / info.fps:.2g} times faster" if info.fps else "as it is"
            return Skipped(item.id, reason, f'leave it out, or give it "fps": {fps} in a manifest to play it {faster}')
        reason = f"frames are missing: {longest} in a row at most, a window needs {needed}"
        return Skipped(item.id, reason, "export it again at a constant rate, or leave it out")


def _probed(items: Sequence[VideoItem]) -> Iterator[tuple[VideoItem, VideoInfo | UnusableVideoError]]:
    """What each video holds, in order; several are opened at once."""

    def look(item: VideoItem) -> VideoInfo | UnusableVideoError:
        try:
            return probe(item.path, fps=item.fps)
        except UnusableVideoError as error:
            return error

    with ThreadPoolExecutor(min(PROBES, os.cpu_count() or 1)) as pool:
        yield from zip(items, pool.map(look, items), strict=True)


def cropped(frame: Array, crop: Crop, size: tuple[int, int]) -> Array:
    """``(H, W, 3)`` uint8 -> the crop, scaled to ``size`` (height, width), bilinear (antialiased where it shrinks)."""
    height, width = frame.shape[:2]
    box = (crop.left * width, crop.top * height, crop.right * width, crop.bottom * height)
    if (height, width) == size and np.allclose(box, (0, 0, width, height)):
        return frame
    box = (max(0.0, box[0]), max(0.0, box[1]), min(float(width), box[2]), min(float(height), box[3]))
    picture = Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)
    return np.asarray(picture)


def window_of(
    name: str,
    caption: str,
    pixels: Tensor,
    layout: Layout,
    policy: ConditioningPolicy,
    spoil: torch.Generator | None = None,
) -> Window:
    """A window from the pixels of ``layout.numbers``, ``(n, H, W, 3)`` uint8; ``spoil`` draws an error into its past."""
    moving, past = len(layout.frames), len(layout.context)
    frames, context = pixels[:moving], pixels[moving : moving + past]
    handed = frames[: max(1, policy.motion_frames)]
    reference = frames[0] if layout.reference is None else pixels[-1]
    if past:
        frames = torch.cat([reference[None], frames])
    if spoil is not None:
        handed, context = (handed, degrade(context, spoil)) if past else (degrade(handed, spoil), context)
    return Window(name, caption, frames, reference, handed, context, layout.first)
