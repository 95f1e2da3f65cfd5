"""A user's own video as a model goes on from it: counted back from its end, at the model's rate and size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_videos import counted_frames, number_of, world_frames, write_video

from svi.cli.parser import VIDEOS
from svi.data.film import Film, is_film
from svi.data.manifest import VIDEO_SUFFIXES
from svi.errors import UserError


def film(path: Path, count: int = 40, fps: float = 16, **options: object) -> Film:
    return Film.open(write_video(path, counted_frames(count, (32, 48)), fps, **options))  # type: ignore[arg-type]  # test


@pytest.mark.parametrize(
    ("fps", "wanted", "last"),
    [
        (16, 16, [35, 36, 37, 38, 39]),
        (32, 16, [31, 33, 35, 37, 39]),
        (8, 16, [37, 38, 38, 39, 39]),
        (24, 16, [33, 34, 36, 37, 39]),
    ],
)
def test_frames_are_counted_back_from_the_last(tmp_path: Path, fps: float, wanted: int, last: list[int]):
    found = film(tmp_path / "a.mp4", fps=fps)
    numbers = found.numbers(wanted)
    assert len(numbers) == pytest.approx(40 * wanted / fps, abs=1.01)
    assert numbers[-1] == 39
    assert [abs(a - b) <= 1 for a, b in zip(numbers[-5:], last, strict=True)] == [True] * 5
    assert [number_of(frame) for frame in found.last(5, wanted, (48, 32))] == numbers[-5:]


def test_the_same_rate_takes_every_frame_once(tmp_path: Path):
    assert film(tmp_path / "a.mkv").numbers(16) == list(range(40))  # a container of milliseconds


def test_pieces_hold_all_of_it_in_order(tmp_path: Path):
    pieces = list(film(tmp_path / "a.mp4").pieces(16, (48, 32), 17))
    assert [len(piece) for piece in pieces] == [17, 17, 6]
    assert [number_of(frame) for frame in np.concatenate(pieces)] == list(range(40))


def test_frames_are_scaled_and_upright(tmp_path: Path):
    turned = Film.open(write_video(tmp_path / "a.mp4", world_frames(5), rotation=90))
    assert turned.first().shape == (96, 64, 3)
    assert turned.last(2, 16, (32, 48)).shape == (2, 48, 32, 3)


def test_one_frame_is_a_film(tmp_path: Path):
    single = film(tmp_path / "a.mp4", 1)
    assert single.numbers(16) == [0]
    assert len(single.last(5, 16, (48, 32))) == 1


def test_what_is_no_video_is_one_line(tmp_path: Path):
    whole = write_video(tmp_path / "a.mp4", counted_frames(40))
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "folder.mp4").mkdir()
    for name in ("cut", "text", "empty", "folder", "missing"):
        with pytest.raises(UserError, match=rf"{name}\.mp4") as refused:
            Film.open(tmp_path / f"{name}.mp4")
        assert "\n" not in str(refused.value)


def test_films_are_told_by_their_ending():
    assert is_film("a.MP4")
    assert is_film(Path("b.mkv"))
    assert not is_film("a.png")
    assert not is_film(np.zeros((4, 4, 3), np.uint8))
    assert set(VIDEOS) == set(VIDEO_SUFFIXES)  # the command line's copy
