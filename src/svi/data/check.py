"""What a data set is worth before anything is encoded: windows, hours, sizes, and what is left out and why.

Counts only; opens nothing that :class:`~svi.data.ingest.VideoSource` has not opened.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from svi.data.ingest import VideoSource
from svi.data.manifest import Skipped
from svi.data.windows import Bucket, picture_kept

CROPPED = 0.5  # of a picture's area; a video that keeps less deserves another bucket


@dataclass(frozen=True)
class BucketCount:
    """Windows of one shape. ``hours``: of video that they show in one epoch."""

    bucket: str
    videos: int
    windows: int
    hours: float


@dataclass(frozen=True)
class Report:
    """What a data set holds.

    Attributes:
        videos: listed, with or without fault.
        usable: videos that give at least one window.
        windows: in one epoch.
        hours: of video in the usable ones; ``shown_hours``: that an epoch shows.
        buckets: by shape.
        sizes: ``{"832x480": videos}``, the most frequent first.
        skipped: what is left out, why, and what to do.
        notes: what a user should know.
    """

    videos: int
    usable: int
    windows: int
    hours: float
    shown_hours: float
    buckets: tuple[BucketCount, ...]
    sizes: dict[str, int]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def report(source: VideoSource) -> Report:
    """Count what a source holds."""
    fps, size = source.geometry.fps, source.size
    per_bucket: dict[Bucket, list[str]] = {}
    for index in range(size):
        per_bucket.setdefault(source.bucket_of(index), []).append(source.item_of(index).id)
    buckets = tuple(
        BucketCount(str(bucket), len(set(ids)), len(ids), len(ids) * bucket.num_frames / fps / 3600)
        for bucket, ids in sorted(per_bucket.items())
    )
    used = {item for ids in per_bucket.values() for item in ids}
    shapes = Counter(f"{source.seen[name].width}x{source.seen[name].height}" for name in used)
    return Report(
        videos=len(used) + len({entry.name for entry in source.skipped} - used),
        usable=len(used),
        windows=size,
        hours=sum(len(span.frames) for span in source.spans) / fps / 3600,
        shown_hours=sum(count.hours for count in buckets),
        buckets=buckets,
        sizes=dict(shapes.most_common()),
        skipped=tuple(source.skipped),
        notes=_notes(source),
    )


def _notes(source: VideoSource) -> tuple[str, ...]:
    spans = {span.item.id: span for span in source.spans}.values()
    small = [span for span in spans if _enlarged(span.info.height, span.info.width, span.bucket) > 1.01]
    cut = [
        span
        for span in spans
        if picture_kept((span.info.height, span.info.width), (span.bucket.height, span.bucket.width)) < CROPPED
    ]
    notes = []
    if small:
        worst = max(small, key=lambda span: _enlarged(span.info.height, span.info.width, span.bucket))
        times = _enlarged(worst.info.height, worst.info.width, worst.bucket)
        notes.append(
            f"{len(small)} videos are smaller than their bucket and get enlarged, {worst.item.id} {times:.1f} times: "
            "the model learns their blur"
        )
    if cut:
        one = cut[0]
        notes.append(
            f"{len(cut)} videos lose more than half of their picture to the crop, for instance {one.item.id} "
            f"({one.info.width}x{one.info.height}): add a bucket of their shape"
        )
    parts = Counter(span.item.id for span in source.spans)
    broken = [name for name, count in parts.items() if count > 1]
    if broken:
        notes.append(f"{len(broken)} videos have gaps in their timestamps; no window goes across one ({broken[0]} ...)")
    return tuple(notes)


def _enlarged(height: int, width: int, bucket: Bucket) -> float:
    """How many times a picture is scaled up to fill a bucket."""
    return max(bucket.height / height, bucket.width / width)
