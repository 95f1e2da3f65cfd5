"""Windows of real videos: how many there are, which frames they show, and what is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_videos import captioned, counted_frames, number_of, world_frames, write_video

from svi.conditioning.policy import PRESETS
from svi.data.check import report
from svi.data.endless import EndlessSource
from svi.data.ingest import VideoSource, Window
from svi.data.manifest import load_manifest
from svi.data.windows import Bucket, WindowRule, published_rule
from svi.errors import UserError
from svi.geometry import Geometry
from svi.pocket.world import World

GEOMETRY = Geometry(height=64, width=96, num_frames=17, fps=16)
WHOLE = WindowRule(crop_min=1.0)


def source(folder: Path, preset: str = "shot", rule: WindowRule = WHOLE, buckets: Sequence[Bucket] = ()) -> VideoSource:
    return VideoSource(load_manifest(folder), GEOMETRY, PRESETS[preset], rule, buckets)


def shown(window: Window) -> list[int]:
    return [number_of(frame) for frame in window.frames.numpy()]


def test_a_video_of_exactly_one_window_gives_all_its_frames(tmp_path: Path) -> None:
    """The published loader takes 16 frames of these 17 and repeats the last."""
    frames = world_frames(17)
    captioned(write_video(tmp_path / "a.mkv", frames, codec="ffv1"))
    found = source(tmp_path)
    assert (found.size, found.window_id(0)) == (1, "a.mkv#0")
    window = found.read(0, 0)
    np.testing.assert_array_equal(window.frames.numpy(), frames)
    assert window.caption == "a red ball rolls over green hills"
    assert any(torch.equal(window.reference, frame) for frame in window.frames)
    assert not window.first
    assert len(window.context) == 0


def test_several_windows_of_a_long_video(tmp_path: Path) -> None:
    captioned(write_video(tmp_path / "a.mp4", counted_frames(60)))
    found = source(tmp_path)
    assert found.size == 3
    for epoch in range(3):
        windows = [shown(found.read(index, epoch)) for index in range(3)]
        start = windows[0][0]
        assert [number for window in windows for number in window] == list(
            range(start, start + 51)
        )  # one after the other, none twice
    assert len({found.layout(0, epoch).frames for epoch in range(20)}) > 3  # the phase is drawn anew
    assert source(tmp_path, rule=replace(WHOLE, hop=8)).size == 6
    assert source(tmp_path, rule=replace(WHOLE, windows_per_video=1)).size == 1


def test_a_window_is_a_pure_function(tmp_path: Path) -> None:
    captioned(write_video(tmp_path / "a.mp4", world_frames(60)))
    rule = published_rule(PRESETS["film"])
    one, two = source(tmp_path, "film", rule), source(tmp_path, "film", rule)
    for index, epoch in [(2, 1), (0, 0)]:
        a, b = one.read(index, epoch), two.read(index, epoch)
        assert torch.equal(a.frames, b.frames)
        assert torch.equal(a.reference, b.reference)
    assert not torch.equal(one.read(0, 0).frames, one.read(0, 1).frames)
    other = source(tmp_path, "film", replace(rule, seed=1))
    assert not torch.equal(one.read(0, 0).frames, other.read(0, 0).frames)


def test_reference_from_outside_the_window(tmp_path: Path) -> None:
    captioned(write_video(tmp_path / "long/a.mp4", counted_frames(40)))
    captioned(write_video(tmp_path / "exact/b.mp4", counted_frames(17)))
    rule = replace(published_rule(PRESETS["svi2-wan21"]), crop_min=1.0, first_clip_prob=0)
    found = source(tmp_path / "long", "svi2-wan21", rule)
    for epoch in range(4):
        window = found.read(0, epoch)
        assert number_of(window.reference.numpy()) not in shown(window)
    alone = source(tmp_path / "exact", "svi2-wan21", rule)
    assert alone.size == 0
    assert alone.skipped[0].reason == "too short: 17 frames at 16 fps, a window of svi2-wan21 needs 18"


def test_latent_hand_off_shows_its_anchor_and_then_goes_on(tmp_path: Path) -> None:
    captioned(write_video(tmp_path / "a.mp4", counted_frames(40)))
    rule = WindowRule(reference="outside", crop_min=1.0)
    window = source(tmp_path, "pro", rule).read(0, 0)
    numbers, past = shown(window), [number_of(frame) for frame in window.context.numpy()]
    assert numbers[0] == number_of(window.reference.numpy())
    assert numbers[1:] == list(range(numbers[1], numbers[1] + 16))
    assert past == list(range(numbers[1] - 5, numbers[1] + 4))
    first = source(tmp_path, "pro", replace(rule, first_clip_prob=1.0)).read(0, 0)
    assert first.first
    assert shown(first)[0] == number_of(first.reference.numpy())
    assert np.all(np.diff(shown(first)) == 1)


def test_what_is_left_out_and_why(tmp_path: Path) -> None:
    captioned(write_video(tmp_path / "good.mp4", counted_frames(20)))
    captioned(write_video(tmp_path / "short.mp4", counted_frames(16)))
    captioned(write_video(tmp_path / "slow.mp4", counted_frames(40), 10))
    gaps = [k / 16 + 0.2 * (k // 10) for k in range(40)]
    captioned(write_video(tmp_path / "gaps.mp4", counted_frames(40), times=gaps))
    data = captioned(write_video(tmp_path / "cut.mp4", world_frames(40), faststart=True)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.mp4").write_text("no video")
    captioned(tmp_path / "text.mp4")
    write_video(tmp_path / "silent.mp4", counted_frames(20))
    found = source(tmp_path)
    reasons = {entry.name: entry.reason for entry in found.skipped}
    assert {item for item in ("good.mp4", "cut.mp4") if item not in reasons} == {"good.mp4"}
    assert reasons["short.mp4"] == "too short: 16 frames at 16 fps, a window of shot needs 17"
    assert reasons["slow.mp4"] == "10 fps, the model needs 16: frames would show twice"
    assert reasons["gaps.mp4"].startswith("frames are missing: 1")
    assert reasons["text.mp4"].startswith("cannot be opened as a video")
    assert reasons["silent.mp4"] == "no caption: there is no silent.txt beside it"
    assert '"fps": 16' in next(entry.remedy for entry in found.skipped if entry.name == "slow.mp4")
    counts = report(found)
    assert (counts.videos, counts.usable, counts.windows) == (7, 1, 1)
    assert counts.shown_hours == pytest.approx(17 / 16 / 3600)


def test_windows_do_not_go_across_a_gap(tmp_path: Path) -> None:
    times = [k / 16 + 5.0 * (k >= 30) for k in range(60)]
    captioned(write_video(tmp_path / "a.mp4", counted_frames(60), times=times))
    found = source(tmp_path)
    assert found.size == 2
    for epoch in range(3):
        for index in range(2):
            numbers = shown(found.read(index, epoch))
            assert np.all(np.diff(numbers) == 1)
            assert numbers[0] >= 29 or numbers[-1] <= 30
    assert "gaps in their timestamps" in report(found).notes[0]


def test_buckets_by_shape_and_length(tmp_path: Path) -> None:
    captioned(write_video(tmp_path / "wide.mkv", world_frames(20), codec="ffv1"))
    captioned(write_video(tmp_path / "tall.mkv", world_frames(20).transpose(0, 2, 1, 3), codec="ffv1"))
    captioned(write_video(tmp_path / "brief.mkv", world_frames(12), codec="ffv1"))
    wide, tall, brief = Bucket(17, 64, 96), Bucket(17, 96, 64), Bucket(9, 64, 96)
    found = source(tmp_path, buckets=[wide, tall, brief])
    shapes = {found.item_of(index).id: found.bucket_of(index) for index in range(found.size)}
    assert shapes == {"brief.mkv": brief, "tall.mkv": tall, "wide.mkv": wide}
    assert found.read(1, 0).frames.shape == (17, 96, 64, 3)
    with pytest.raises(UserError, match="bucket 18x64x96"):
        source(tmp_path, buckets=[Bucket(18, 64, 96)])
    notes = report(source(tmp_path)).notes
    assert "1 videos lose more than half of their picture" in " ".join(notes)
    assert "1.5 times" in " ".join(notes)  # 64 wide to 96


def test_crops_are_the_same_for_all_frames_of_a_window(tmp_path: Path) -> None:
    still = np.repeat(world_frames(1, size=(96, 160)), 17, axis=0)
    captioned(write_video(tmp_path / "a.mkv", still, codec="ffv1"))
    found = source(tmp_path, rule=WindowRule())
    windows = [found.read(0, epoch).frames for epoch in range(3)]
    for frames in windows:
        assert frames.shape == (17, 64, 96, 3)
        assert torch.equal(frames, frames[:1].expand_as(frames))
    assert not torch.equal(windows[0], windows[1])


def test_a_preset_that_needs_a_drive_is_refused(tmp_path: Path) -> None:
    captioned(write_video(tmp_path / "a.mp4", counted_frames(20)))
    with pytest.raises(UserError, match="driven by audio"):
        source(tmp_path, "talk")


# -- endless -----------------------------------------------------------------------------------------------------------


class Worlds:
    """Pocket world as endless clips: clip k is beat 2 of world k."""

    identity, size, around = "pocket-world", (64, 96), (16, 16)

    def frames(self, index: int, offsets: Sequence[int]) -> np.ndarray:
        world = World.sample(index, size=self.size)
        return np.stack([world.render(2 * world.beat_s + offset / 16) for offset in offsets])

    def caption(self, index: int) -> str:
        return World.sample(index, size=self.size).caption(2)


def test_pocket_world_is_an_endless_source() -> None:
    found = EndlessSource(Worlds(), GEOMETRY, PRESETS["pro"], WindowRule(reference="outside"))
    assert found.size is None
    window = found.read(123456, 0)
    world = World.sample(123456, size=(64, 96))
    np.testing.assert_array_equal(window.frames[1:].numpy(), world.clip(2 * world.beat_s, 16))
    np.testing.assert_array_equal(window.context.numpy(), world.clip(2 * world.beat_s - 5 / 16, 9))
    assert window.caption == world.caption(2)
    assert torch.equal(found.read(123456, 0).frames, window.frames)
    assert EndlessSource(Worlds(), GEOMETRY, PRESETS["shot"], WHOLE, count=10, start=7).window_id(2) == "pocket-world#9"


def test_endless_clips_that_do_not_reach_far_enough() -> None:
    class Brief(Worlds):
        around = (0, 0)

    with pytest.raises(UserError, match="5 frames before a window"):
        EndlessSource(Brief(), GEOMETRY, PRESETS["pro"], WindowRule(reference="outside"))
    EndlessSource(Brief(), GEOMETRY, PRESETS["shot"], WindowRule())
