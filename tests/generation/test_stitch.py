"""Frame arithmetic: no frame doubled, none lost, whatever the number of clips."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from svi.conditioning.memory import ClipMemory
from svi.errors import UserError
from svi.generation import stitch
from svi.generation.clip import Clip, ClipPlan


@given(clips=st.integers(1, 60), latent=st.integers(1, 25), overlap=st.integers(0, 4))
def test_joined_clips_show_every_frame_once(clips: int, latent: int, overlap: int) -> None:
    num_frames = 4 * latent + 1
    shown: list[int] = []
    memory = ClipMemory.start(torch.zeros(8, 8, 3, dtype=torch.uint8))
    for k in range(clips):
        begin = k * (num_frames - overlap)  # a later clip re-renders the last `overlap` frames
        frames = torch.arange(begin, begin + num_frames)
        plan = ClipPlan(k, "", "", 0, num_frames, 8, 8, 1, 1.0)
        shown += Clip(plan, frames, frames, overlap if k else 0, memory).new_frames.tolist()
    assert shown == list(range(len(shown)))
    assert len(shown) == stitch.total_frames(clips, num_frames, overlap)


@given(frames=st.integers(1, 5000), latent=st.integers(1, 25), overlap=st.integers(0, 4))
def test_clips_for_frames_is_the_fewest(frames: int, latent: int, overlap: int) -> None:
    num_frames = 4 * latent + 1
    clips = stitch.clips_for_frames(frames, num_frames, overlap)
    assert stitch.total_frames(clips, num_frames, overlap) >= frames
    assert clips == 1 or stitch.total_frames(clips - 1, num_frames, overlap) < frames


def test_published_length() -> None:
    assert stitch.total_frames(10, 81, 5) == 9 * 76 + 81
    assert stitch.total_frames(0, 81, 5) == 0


def test_clips_for_seconds_counts_exact_decimals() -> None:
    assert stitch.clips_for_seconds(1.1, 10, 5, 1) == 3  # 11 frames, not 12 by float rounding: 5 + 4 = 9, + 4
    assert stitch.clips_for_seconds(0.9, 10, 5, 1) == 2


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_bad_seconds(seconds: float) -> None:
    with pytest.raises(UserError, match="positive number of seconds"):
        stitch.clips_for_seconds(seconds, 16, 17, 1)


def test_overlap_must_leave_a_frame() -> None:
    with pytest.raises(ValueError, match="leaves nothing"):
        stitch.total_frames(2, 5, 5)
