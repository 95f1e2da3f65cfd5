"""Frames as a viewer sees them, and every kind of broken video named with a reason instead of scored."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from data_videos import counted_frames, number_of, write_video
from PIL import Image

from svi.data.video import UnusableVideoError
from svi.evaluation.reader import batches, content_hash, look, pictures

COUNT = 40


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return counted_frames(COUNT)


def numbers(path: Path, **options: object) -> list[int]:
    video = look(path, **options)  # type: ignore[arg-type]
    found = [number_of(frame) for batch in batches(video, 7) for frame in batch]
    assert len(found) == video.num_frames
    return found


def write_frames(path: Path, frames: np.ndarray, codec: str, pix_fmt: str, times: list[float] | None = None) -> Path:
    """Any pixel format; rgba frames keep their alpha."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=16)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        stream.codec_context.time_base = Fraction(1, 16000)
        kind = "rgba" if frames.shape[-1] == 4 else "rgb24"
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=kind)
            at = number / 16 if times is None else times[number]
            picture.pts, picture.time_base = round(at * 16000), Fraction(1, 16000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def test_all_frames_come_once_and_in_order(tmp_path: Path, frames: np.ndarray):
    path = write_video(tmp_path / "a.mp4", frames, 24, options={"bf": "3", "g": "8"})
    video = look(path)
    assert (video.fps, video.num_frames, video.height, video.width, video.notes) == (24.0, COUNT, 64, 96, ())
    assert numbers(path) == list(range(COUNT))
    assert [len(batch) for batch in batches(video, 16)] == [16, 16, 8]
    assert all(batch.dtype == np.uint8 for batch in batches(video, 16))


def test_a_limit_stops_early_and_says_so(tmp_path: Path, frames: np.ndarray):
    path = write_video(tmp_path / "a.mp4", frames)
    assert numbers(path, limit=9) == list(range(9))
    assert "first 9 of 40" in look(path, limit=9).notes[0]
    assert look(path, limit=99).notes == ()


def test_a_batch_is_not_overwritten_by_the_next(tmp_path: Path, frames: np.ndarray):
    found = list(batches(look(write_video(tmp_path / "a.mp4", frames)), 8))
    assert [number_of(batch[0]) for batch in found] == [0, 8, 16, 24, 32]


def test_pictures_are_read_in_the_order_of_their_numbers(tmp_path: Path, frames: np.ndarray):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(12):
        Image.fromarray(frames[number]).save(folder / f"frame_{number}.png")
    assert [path.name for path in pictures(folder)][:3] == ["frame_0.png", "frame_1.png", "frame_2.png"]
    assert numbers(folder) == list(range(12))
    assert look(folder).fps == 16
    assert "no frame rate" in look(folder).notes[0]
    assert look(folder, 25).notes == ()
    before = content_hash(folder)
    Image.fromarray(frames[30]).save(folder / "frame_3.png")
    assert content_hash(folder) != before


def test_pictures_with_alpha_or_16_bit(tmp_path: Path, frames: np.ndarray):
    folder = tmp_path / "frames"
    folder.mkdir()
    opaque = np.dstack([frames[5], np.full((64, 96), 255, np.uint8)])
    Image.fromarray(opaque, "RGBA").save(folder / "0.png")
    assert numbers(folder) == [5]
    opaque[:4, :4, 3] = 7
    Image.fromarray(opaque, "RGBA").save(folder / "1.png")
    with pytest.raises(UnusableVideoError, match="frame 1 is partly transparent"):
        numbers(folder)
    deep = tmp_path / "deep"
    deep.mkdir()
    Image.fromarray((frames[9, ..., 0].astype(np.uint16)) * 257).save(deep / "0.png")
    assert numbers(deep) == [9]
    assert "16 bit" in look(deep).notes[0]


def test_10_bit_is_scored_as_8_bit(tmp_path: Path, frames: np.ndarray):
    path = write_frames(tmp_path / "deep.mkv", frames, "ffv1", "yuv420p10le")
    assert numbers(path) == list(range(COUNT))
    assert look(path).notes == ("10 bit, scored as 8 bit",)


def test_alpha_that_hides_nothing_is_dropped_and_other_alpha_refused(tmp_path: Path, frames: np.ndarray):
    opaque = np.concatenate([frames, np.full((*frames.shape[:3], 1), 255, np.uint8)], axis=3)
    assert numbers(write_frames(tmp_path / "opaque.mkv", opaque, "ffv1", "bgra")) == list(range(COUNT))
    opaque[20:, :8, :8, 3] = 0
    path = write_frames(tmp_path / "clear.mkv", opaque, "ffv1", "bgra")
    with pytest.raises(UnusableVideoError, match="frame 20 is partly transparent: flatten"):
        numbers(path)


def test_a_variable_rate_is_shown_as_a_player_would(tmp_path: Path, frames: np.ndarray):
    times = [number / 16 + (0.5 if number >= 20 else 0) for number in range(COUNT)]  # stands for half a second
    path = write_frames(tmp_path / "vfr.mkv", frames, "ffv1", "bgr0", times)
    assert numbers(path) == [*range(19), *[19] * 9, *range(20, COUNT)]
    assert "variable frame rate: 40 frames shown as 48 at 16 fps" in look(path).notes[0]
    assert numbers(path, fps=16) == list(range(COUNT))


def test_a_mostly_standing_variable_rate_is_refused(tmp_path: Path, frames: np.ndarray):
    times = [number / 16 + (3600 if number == COUNT - 1 else 0) for number in range(COUNT)]
    path = write_frames(tmp_path / "vfr.mkv", frames, "ffv1", "bgr0", times)
    with pytest.raises(UnusableVideoError, match="variable frame rate"):
        look(path)


def test_milliseconds_are_no_variable_rate(tmp_path: Path, frames: np.ndarray):
    path = write_video(tmp_path / "a.mkv", frames, 24)  # matroska: 41 or 42 ms
    assert look(path).shown is None
    assert look(path).fps == 24


def test_odd_sizes_are_read_whole(tmp_path: Path, frames: np.ndarray):
    path = write_frames(tmp_path / "odd.mkv", frames[:, :63, :95], "ffv1", "bgr0")
    assert next(batches(look(path))).shape == (16, 63, 95, 3)


def truncated(path: Path, frames: np.ndarray) -> Path:
    whole = write_video(path, frames, faststart=True)
    whole.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.6)])
    return whole


def no_frames(path: Path, frames: np.ndarray) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        stream.layout = "mono"
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
    return path


def unknown_codec(path: Path, frames: np.ndarray) -> Path:
    write_frames(path, frames, "ffv1", "bgr0")
    path.write_bytes(path.read_bytes().replace(b"V_FFV1", b"V_XYZ1"))
    return path


def tiny(path: Path, frames: np.ndarray) -> Path:
    return write_frames(path, frames[:, :8, :12], "ffv1", "bgr0")


BROKEN = {
    "truncated.mp4": (truncated, "cut short|damaged"),
    "sound.mkv": (no_frames, "no video"),
    "codec.mkv": (unknown_codec, "codec|decode|video"),
    "tiny.mkv": (tiny, "too few"),
    "empty.mp4": (lambda path, frames: path.touch() or path, "empty"),
    "text.mp4": (lambda path, frames: path.write_text("hello") and path, "cannot be opened"),
    "gone.mp4": (lambda path, frames: path, "no such file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_videos_say_why(tmp_path: Path, frames: np.ndarray, name: str):
    make, reason = BROKEN[name]
    path = make(tmp_path / name, frames)
    with pytest.raises(UnusableVideoError, match=reason) as caught:
        list(batches(look(path)))
    assert caught.value.remedy


def test_an_empty_folder_says_why(tmp_path: Path):
    with pytest.raises(UnusableVideoError, match="no PNG"):
        look(tmp_path)
