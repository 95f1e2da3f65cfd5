"""An endless maker of clips as a source of training windows: the same interface as videos, and no end.

Knows nothing about who makes the clips; whatever can show any frame of clip ``index`` plugs in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
import torch

from svi.conditioning.policy import ConditioningPolicy
from svi.data.ingest import Window, window_of
from svi.data.manifest import VideoItem
from svi.data.windows import Bucket, WindowRule, degradation, generator_for, lay_out, reach
from svi.errors import UserError
from svi.geometry import Geometry

DECISIVE = ("reference", "first_clip_prob", "degraded_prob", "seed")  # what of a rule matters where nothing is cropped


class EndlessClips(Protocol):
    """Captioned clips by number, without end: a pure function of the number.

    Attributes:
        identity: what tells these clips from others (name, version, seed): part of a cache's fingerprint.
        size: ``(height, width)`` of its frames.
        around: frames that can be asked for before a clip's first frame and after its last one.
    """

    identity: str
    size: tuple[int, int]
    around: tuple[int, int]

    def frames(self, index: int, offsets: Sequence[int]) -> np.ndarray[Any, Any]:
        """``(len(offsets), H, W, 3)`` uint8; offset 0 is the clip's first frame, in the model's frames per second."""
        ...

    def caption(self, index: int) -> str:
        """What happens in clip ``index`` from offset 0 on."""
        ...


class EndlessSource:
    """Windows of an :class:`EndlessClips`. Frames are used as they are, without a crop.

    Args:
        clips: what makes them.
        geometry: of the model.
        policy, rule: how a window is conditioned; ``hop``, ``windows_per_video`` and ``crop_min`` do not matter here.
        num_frames: length of a window; None = the model's own.
        count: this many windows make an epoch; None = endless.
        start: number of the first clip, to keep validation apart from training.

    Raises:
        UserError: where the clips do not fit the model, or do not reach as far around a window as the preset needs.
    """

    def __init__(
        self,
        clips: EndlessClips,
        geometry: Geometry,
        policy: ConditioningPolicy,
        rule: WindowRule,
        *,
        num_frames: int | None = None,
        count: int | None = None,
        start: int = 0,
    ) -> None:
        if policy.drive is not None:
            raise UserError(f"preset {policy.name} is driven by {policy.drive}, which cannot be encoded yet")
        self.clips, self.geometry, self.policy, self.rule = clips, geometry, policy, rule
        self.bucket = Bucket(num_frames or geometry.num_frames, *clips.size)
        self.bucket.check(geometry)
        self.count, self.start = count, start
        before, after = clips.around
        needed = reach(policy, rule, self.bucket.num_frames, geometry.temporal_scale)
        if before < needed.before or before - needed.before + after < needed.outside:
            raise UserError(
                f"preset {policy.name} needs {needed.before} frames before a window and {needed.outside} more outside it; "
                f"{clips.identity} shows {before} before and {after} after"
            )

    @property
    def size(self) -> int | None:
        return self.count

    def bucket_of(self, index: int) -> Bucket:
        return self.bucket

    def window_id(self, index: int) -> str:
        return f"{self.clips.identity}#{self.start + index}"

    def item_of(self, index: int) -> VideoItem | None:
        return None

    def describe(self) -> Mapping[str, Any]:
        rule = {name: value for name, value in asdict(self.rule).items() if name in DECISIVE}
        return {"kind": self.clips.identity, "rule": rule, "buckets": [str(self.bucket)], "start": self.start}

    def read(self, index: int, epoch: int) -> Window:
        name, (before, after) = self.window_id(index), self.clips.around
        length, scale = self.bucket.num_frames, self.geometry.temporal_scale
        span, drawn = range(-before, length + after), generator_for(self.rule.seed, f"window {name}", epoch)
        layout = lay_out(self.policy, self.rule, 0, span, length, scale, drawn)
        pixels = self.clips.frames(self.start + index, layout.numbers)
        caption, spoil = self.clips.caption(self.start + index), degradation(self.rule, name, epoch)
        return window_of(name, caption, torch.from_numpy(pixels), layout, self.policy, spoil)
