"""Segments, the joined file and the playlist: every frame once, in order, with the right time."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from svi.errors import UserError
from svi.generation.playlist import Entry, Playlist
from svi.generation.writer import encode_segment, header_size, join_segments, read_frames, read_info

FPS = 16


def frames(count: int, first: int = 0) -> torch.Tensor:
    """Flat grey frames whose level tells their number, with a moving bar."""
    video = torch.zeros(count, 64, 96, 3, dtype=torch.uint8)
    for i in range(count):
        video[i] = 40 + 3 * (first + i)
        video[i, :, (4 * (first + i)) % 96] = 255
    return video


@pytest.fixture
def segments(tmp_path: Path) -> list[Path]:
    """Three segments of 17, 16 and 16 frames."""
    paths, start = [], 0
    for k, count in enumerate((17, 16, 16)):
        paths.append(tmp_path / f"{k}.mp4")
        paths[-1].write_bytes(encode_segment(frames(count, start), fps=FPS, start_frame=start))
        start += count
    return paths


def levels(path: Path) -> list[float]:
    return [round((float(np.median(frame)) - 40) / 3) for frame in read_frames(path)]


def test_same_frames_same_bytes() -> None:
    assert encode_segment(frames(9, 5), fps=FPS, start_frame=5) == encode_segment(frames(9, 5), fps=FPS, start_frame=5)


def test_a_segment_plays_on_its_own_from_its_place_in_the_video(segments: list[Path]) -> None:
    with av.open(str(segments[1])) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert [packet.pts * packet.time_base for packet in packets] == [Fraction(17 + i, FPS) for i in range(16)]
        assert [packet.pts for packet in packets] == [packet.dts for packet in packets]
        assert [packet.is_keyframe for packet in packets] == [True] + [False] * 15
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert levels(segments[1]) == list(range(17, 33))


def test_colours_survive(tmp_path: Path) -> None:
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [90, 140, 200]])
    video = colours.to(torch.uint8).view(6, 1, 1, 3).expand(6, 32, 48, 3)
    (tmp_path / "c.mp4").write_bytes(encode_segment(video, fps=FPS, start_frame=0))
    for shown, colour in zip(read_frames(tmp_path / "c.mp4"), colours, strict=True):
        assert np.abs(np.median(shown, (0, 1)) - colour.numpy()).max() <= 4


def test_joining_copies_every_packet(segments: list[Path], tmp_path: Path) -> None:
    video = tmp_path / "video.mp4"
    info = {"seed": 7, "prompts": ["ein Kätzchen", "猫"]}
    assert join_segments(segments, video, fps=FPS, info=info, title="The cat") == 49
    assert levels(video) == list(range(49))
    assert read_info(video) == info
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        assert container.metadata["title"] == "The cat"
        assert stream.average_rate == FPS
        assert stream.frames == 49
        assert stream.duration * stream.time_base == Fraction(49, FPS)
        packets = [packet for packet in container.demux(stream) if packet.size]
    assert [packet.pts * packet.time_base for packet in packets] == [Fraction(i, FPS) for i in range(49)]
    originals = [bytes(packet) for path in segments for packet in av.open(str(path)).demux(video=0) if packet.size]
    assert [bytes(packet) for packet in packets] == originals
    data = video.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.mp4", "1.mp4", "2.mp4", "video.mp4"]


def test_a_damaged_segment_is_named_and_leaves_the_old_video(segments: list[Path], tmp_path: Path) -> None:
    video = tmp_path / "video.mp4"
    join_segments(segments[:1], video, fps=FPS)
    before = video.read_bytes()
    segments[1].write_bytes(b"rubbish" * 100)
    with pytest.raises(UserError, match=r"1\.mp4 is missing or damaged"):
        join_segments(segments, video, fps=FPS)
    with pytest.raises(UserError, match=r"1\.mp4 is missing or damaged"):
        list(read_frames(segments[1]))
    with pytest.raises(UserError, match="no finished clips"):
        join_segments([], video, fps=FPS)
    assert video.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 4


def test_playlist_grows_and_is_the_whole_video_to_a_player(segments: list[Path], tmp_path: Path) -> None:
    playlist = Playlist(tmp_path / "video.m3u8", fps=FPS, longest_frames=17)
    playlist.rebuild([])
    counts = (17, 16, 16)
    for k, (path, count) in enumerate(zip(segments, counts, strict=True)):
        playlist.append(Entry(path, count))
        now = tmp_path / f"until-{k}.m3u8"  # with an end: a player of the growing one waits for more
        now.write_text(playlist.path.read_text() + "#EXT-X-ENDLIST\n")
        assert levels(now) == list(range(sum(counts[: k + 1])))
    grown = playlist.path.read_text()
    assert grown.count("#EXT-X-MAP") == 1
    assert "ENDLIST" not in grown
    playlist.end()
    playlist.end()
    assert playlist.path.read_text() == grown + "#EXT-X-ENDLIST\n"
    playlist.rebuild(Entry(path, count) for path, count in zip(segments, counts, strict=True))
    assert playlist.path.read_text() == grown


def test_header_of_a_segment(segments: list[Path], tmp_path: Path) -> None:
    sizes = {header_size(path) for path in segments}
    assert len(sizes) == 1
    assert segments[0].read_bytes()[sizes.pop() + 4 :][:4] == b"moof"
    (tmp_path / "bad.mp4").write_bytes(b"\x00\x00\x00\x01moov")
    with pytest.raises(UserError, match="damaged"):
        header_size(tmp_path / "bad.mp4")
