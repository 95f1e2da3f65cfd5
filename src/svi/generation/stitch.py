"""Joining clips: pure arithmetic on frame counts.

Knows nothing about files or models. A later clip re-renders the last ``overlap`` frames of the clip before it; those
frames are dropped from the front of the later clip (``Clip.new_frames``). The published code drops them from the end of
the earlier one instead, which needs to know the last clip in advance and keeps the frames that went through the VAE
once more.
"""

from __future__ import annotations

import math
from fractions import Fraction

from svi.errors import UserError


def total_frames(clips: int, num_frames: int, overlap: int) -> int:
    """Frames of a video of ``clips`` clips: ``(clips - 1) (num_frames - overlap) + num_frames``; 0 for none."""
    check_overlap(num_frames, overlap)
    return 0 if clips <= 0 else (clips - 1) * (num_frames - overlap) + num_frames


def clips_for_frames(frames: int, num_frames: int, overlap: int) -> int:
    """The fewest clips whose video has at least ``frames`` frames; at least 1."""
    check_overlap(num_frames, overlap)
    return 1 + max(0, math.ceil((frames - num_frames) / (num_frames - overlap)))


def clips_for_seconds(seconds: float, fps: int, num_frames: int, overlap: int) -> int:
    """The fewest clips whose video lasts at least ``seconds``.

    Raises:
        UserError: for a length that is not positive and finite.
    """
    if not math.isfinite(seconds) or seconds <= 0:
        raise UserError(f"the length must be a positive number of seconds, not {seconds}")
    return clips_for_frames(math.ceil(Fraction(str(seconds)) * fps), num_frames, overlap)


def check_overlap(num_frames: int, overlap: int) -> None:
    """Raise ValueError unless a clip adds at least one frame."""
    if not 0 <= overlap < num_frames:
        raise ValueError(f"an overlap of {overlap} frames leaves nothing of a clip of {num_frames}")
