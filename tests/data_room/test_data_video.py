"""What is in a video file, and the right frames out of it: odd rates, sizes, turns and damage."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from data_videos import counted_frames, number_of, world_frames, write_video

from svi.data import video
from svi.data.ingest import moving_runs, on_clock
from svi.data.manifest import VideoItem
from svi.data.video import UnusableVideoError, probe, read_frames


def as_is(frame: np.ndarray) -> np.ndarray:
    return frame


def clock(path: Path, rate: float | None = None, **part: float) -> np.ndarray:
    """Numbers on a clock of 16 fps; ``rate`` replaces the file's."""
    return on_clock(probe(path, fps=rate), VideoItem("x", path, "x", **part), 16)


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "ffv1"), ("a.avi", "ffv1")])
def test_frames_come_back_exactly(tmp_path: Path, name: str, codec: str) -> None:
    frames = world_frames(40)
    path = write_video(tmp_path / name, frames, codec=codec)
    info = probe(path)
    assert (info.num_frames, info.width, info.height, info.codec) == (40, 96, 64, codec)
    assert info.fps == pytest.approx(16, rel=0.02)
    assert info.duration_s == pytest.approx(2.5, abs=0.01)
    wanted = [39, 3, 4, 5, 3, 0]
    np.testing.assert_array_equal(read_frames(path, info, wanted, as_is), frames[wanted])


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.avi"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_frames_of_lossy_files(tmp_path: Path, name: str, codec: str) -> None:
    """B-frames come out of order from the file and in order from here."""
    path = write_video(tmp_path / name, counted_frames(60, (32, 32)), codec=codec, options={"bf": "2", "g": "12"})
    info = probe(path)
    assert info.num_frames == 60
    for wanted in ([0, 1, 2, 3], [41, 30, 59], [13]):
        assert [number_of(frame) for frame in read_frames(path, info, wanted, as_is)] == wanted


def test_only_what_is_near_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", counted_frames(120, (16, 16)), options={"g": "10", "bf": "0"})
    info = probe(path)
    decoded = []
    original = video.decoded
    monkeypatch.setattr(video, "GAP", 20)
    monkeypatch.setattr(video, "decoded", lambda *args: (decoded.append(1) or frame for frame in original(*args)))
    assert [number_of(frame) for frame in read_frames(path, info, [5, 115], as_is)] == [5, 115]
    assert len(decoded) <= 6 + 10


def test_colours_survive(tmp_path: Path) -> None:
    """The writer of runs tags BT.709; a reader that takes it for BT.601 is off by 20 and more in saturated colours."""
    from torch import from_numpy

    from svi.generation.writer import encode_segment

    frames = np.zeros((17, 64, 96, 3), np.uint8)
    frames[:, :, :32, 0] = frames[:, :, 32:64, 1] = frames[:, :, 64:, 2] = 200
    path = tmp_path / "a.mp4"
    path.write_bytes(encode_segment(from_numpy(frames), fps=16, start_frame=0))
    found = read_frames(path, probe(path), [8], as_is)[0]
    for x in (16, 48, 80):
        np.testing.assert_allclose(found[32, x].astype(int), frames[8, 32, x].astype(int), atol=4)


@pytest.mark.parametrize("turn", [90, 180, -90])
def test_turned_videos_stand_upright(tmp_path: Path, turn: int) -> None:
    frames = world_frames(3)
    path = write_video(tmp_path / "a.mp4", frames, rotation=turn, options={"crf": "1"})
    info = probe(path)
    upright = np.rot90(frames[1], turn // 90 % 4)
    assert (info.height, info.width) == upright.shape[:2]
    found = read_frames(path, info, [1], as_is)[0]
    assert np.abs(found.astype(int) - upright).mean() < 6


def test_odd_sizes(tmp_path: Path) -> None:
    frames = world_frames(3)[:, :63, :95]
    path = write_video(tmp_path / "a.mkv", frames, codec="ffv1")
    info = probe(path)
    assert (info.height, info.width) == (63, 95)
    np.testing.assert_array_equal(read_frames(path, info, [2], as_is)[0], frames[2])


# -- the clock ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fps", "step"), [(16, 1), (32, 2), (48, 3), (30, 30 / 16), (24, 1.5), (23.976, 23.976 / 16)])
def test_other_rates_are_resampled_by_time(tmp_path: Path, fps: float, step: float) -> None:
    path = write_video(tmp_path / "a.mp4", counted_frames(96, (16, 16)), fps)
    numbers = clock(path)
    assert np.abs(numbers - step * np.arange(len(numbers))).max() <= 0.51
    assert len(moving_runs(numbers)) == 1
    assert len(numbers) == pytest.approx(96 / step, abs=1)


def test_almost_the_same_rate_is_taken_frame_by_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", counted_frames(120, (16, 16)), 15.9)
    np.testing.assert_array_equal(clock(path), np.arange(120))


def test_variable_rates_go_by_their_timestamps(tmp_path: Path) -> None:
    """30 fps, then 60: ticks of 16 fps lie where the timestamps say, whatever the header's average."""
    times = np.concatenate([np.arange(30) / 30, 1 + np.arange(60) / 60])
    path = write_video(tmp_path / "a.mp4", counted_frames(90, (16, 16)), 30, times=times)
    numbers = clock(path)
    assert len(numbers) == 32
    ticks = np.arange(32) / 16
    assert np.abs(times[numbers] - ticks).max() <= 1 / 60 + 1e-3


def test_gaps_and_slow_videos_repeat_frames_and_so_are_cut(tmp_path: Path) -> None:
    slow = write_video(tmp_path / "slow.mp4", counted_frames(30, (16, 16)), 10)
    assert max(len(run) for run in moving_runs(clock(slow))) <= 3
    times = np.concatenate([np.arange(40) / 16, 3 + np.arange(40) / 16])  # half a second is missing
    gap = write_video(tmp_path / "gap.mp4", counted_frames(80, (16, 16)), times=times)
    numbers = clock(gap)
    runs = [run for run in moving_runs(numbers) if len(run) > 10]
    assert [(numbers[run.start], numbers[run.stop - 1]) for run in runs] in ([(0, 39), (40, 79)], [(0, 39), (39, 79)])


def test_parts_and_given_rates(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", counted_frames(64, (16, 16)), 16)
    np.testing.assert_array_equal(clock(path, start_s=1.0, end_s=2.0), np.arange(16, 32))
    assert len(clock(path, start_s=9.0)) == 0
    slow = write_video(tmp_path / "slow.mp4", counted_frames(40, (16, 16)), 8)
    np.testing.assert_array_equal(clock(slow, rate=16.0), np.arange(40))


# -- damage ------------------------------------------------------------------------------------------------------------


def sound_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def test_damaged_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    frames = world_frames(60)
    cases = {
        "cut short": cut(write_video(tmp_path / "front.mp4", frames, faststart=True), 0.6),
        "cannot be opened": cut(write_video(tmp_path / "end.mp4", frames), 0.6),
        "the file is empty": tmp_path / "empty.mp4",
        "no video, only sound": sound_only(tmp_path / "sound.mp4"),
    }
    cases["the file is empty"].write_bytes(b"")
    text = tmp_path / "text.mp4"
    text.write_text("not a video at all " * 50)
    for words, path in [*cases.items(), ("cannot be opened", text), ("cannot be opened", tmp_path / "gone.mp4")]:
        with pytest.raises(UnusableVideoError, match=words) as caught:
            probe(path)
        assert caught.value.remedy


def test_a_frame_that_is_not_there(tmp_path: Path) -> None:
    long = write_video(tmp_path / "a.mkv", counted_frames(40, (16, 16)), codec="ffv1")
    info = probe(long)
    write_video(long, counted_frames(20, (16, 16)), codec="ffv1")
    with pytest.raises(UnusableVideoError, match="frame 30 cannot be decoded"):
        read_frames(long, info, [10, 30], as_is)
