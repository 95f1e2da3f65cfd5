"""Going on from a user's own video: what is carried over, what the new video holds, and that it resumes to the same bytes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import svi
from svi.conditioning.window import to_video
from svi.data.film import Film
from svi.generation.events import Event
from svi.generation.export import export
from svi.generation.writer import read_frames

sys.path.insert(0, str(Path(__file__).parents[1]))

from data_videos import counted_frames, number_of, world_frames, write_video

FRAMES = 20  # of the user's video
NEW = {"wan": 8, "film": 4, "pro": 4}  # frames that a clip of 9 adds


def small(count: int) -> np.ndarray:
    """``(count, 32, 48, 3)`` uint8 of a world in motion."""
    return world_frames(count)[:, ::2, ::2]


@pytest.fixture(scope="module")
def backend(model_folder: Path) -> svi.Backend:
    return svi.load(model_folder, device="cpu")


@pytest.fixture
def film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_video(tmp_path / "film.mkv", small(FRAMES), codec="ffv1")


def make(film: Path, backend: svi.Backend, out: str = "run", **options: Any) -> svi.Run:
    return svi.generate(
        film, ["a ball", "it stops"], model=backend, out=out, **{"steps": 1, "guidance": 1.0, **options}
    )


def clips_of(run: svi.Run) -> list[str]:
    return [clip.frames_sha256 for clip in run.clips()]


@pytest.mark.parametrize("preset", NEW)
def test_the_video_holds_the_users_and_goes_on(film: Path, backend: svi.Backend, preset: str):
    run = make(film, backend, preset=preset)
    video = np.stack(list(read_frames(run.path / "video.mp4")))
    assert len(video) == run.status().frames == FRAMES + 2 * NEW[preset]
    first, second = run.clips()
    assert (first.start_frame, second.start_frame) == (FRAMES, FRAMES + NEW[preset])
    theirs = small(FRAMES)
    assert np.abs(video[:FRAMES].astype(int) - theirs).mean() < 12  # H.264 of small pictures
    assert run.playlist.read_text().count("#EXTINF") == 3 + 2  # 20 frames in pieces of at most 9, two clips
    np.testing.assert_array_equal(run.reference().numpy(), theirs[0])


def test_what_is_carried_over_is_exact(film: Path, backend: svi.Backend):
    memory = make(film, backend, preset="pro", clips=1).start_memory()
    theirs = torch.from_numpy(small(FRAMES).copy())
    assert torch.equal(memory.frames[0], theirs[-5:])
    wanted = backend.encode_video(to_video(theirs[None, -9:]))[:, :, -1:]
    assert memory.latents is not None
    assert torch.equal(memory.latents, wanted)


@pytest.mark.parametrize("preset", ["wan", "pro"])
def test_the_first_clip_is_conditioned_on_the_end(film: Path, backend: svi.Backend, preset: str):
    """Another end is another first clip; another beginning is not, but for the anchor."""
    frames = small(FRAMES)
    ends = write_video(Path("other.mkv"), np.concatenate([frames[:-9], frames[:9]]), codec="ffv1")
    begins = write_video(Path("begins.mkv"), np.concatenate([frames[:1], frames[4:]]), codec="ffv1")
    made = [
        clips_of(make(path, backend, str(n), preset=preset, clips=1)) for n, path in enumerate((film, ends, begins))
    ]
    assert made[0] != made[1]
    assert made[0] == made[2]


@pytest.mark.parametrize("preset", ["film", "pro"])
def test_it_resumes_without_the_file_to_the_same_bytes(film: Path, backend: svi.Backend, preset: str):
    whole = make(film, backend, "whole", preset=preset, clips=3)
    stopped = make(
        film, backend, "stopped", preset=preset, clips=3, should_stop=lambda: Path("stopped/clips/0000").exists()
    )
    assert 0 < stopped.count < 3
    film.unlink()
    svi.resume(stopped, model=backend)
    assert clips_of(stopped) == clips_of(whole)
    assert (Path("stopped/video.mp4").read_bytes()) == Path("whole/video.mp4").read_bytes()
    before = clips_of(stopped)
    svi.retake(stopped, 0, seed=stopped.settings.seed, model=backend)
    assert clips_of(stopped) == before


def test_ours_alone_and_another_anchor(film: Path, backend: svi.Backend):
    alone = make(film, backend, "alone", clips=1, new_only=True)
    assert alone.status().frames == NEW["wan"]
    red = np.full((64, 96, 3), (200, 0, 0), np.uint8)
    anchored = make(film, backend, "anchored", preset="shot", clips=1, anchor=red)
    assert anchored.reference().unique(dim=0).shape[0] == 1
    assert anchored.reference()[0, 0].tolist() == [200, 0, 0]
    assert clips_of(anchored) != clips_of(make(film, backend, "plain", preset="shot", clips=1))


def test_a_branch_has_the_same_start(film: Path, backend: svi.Backend):
    run = make(film, backend, preset="wan", clips=1)
    twig = svi.branch(run, 0, model=backend, preset="pro", out="twig", clips=1)
    assert twig.film_frames == FRAMES
    assert twig.status().frames == FRAMES + NEW["pro"]
    assert clips_of(twig) == clips_of(make(film, backend, "new", preset="pro", clips=1))


def test_its_rate_is_taken_to_the_models_and_told(
    tmp_path: Path, backend: svi.Backend, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    said: list[str] = []

    def hear(event: Event) -> None:
        said.append(str(getattr(event, "message", "")))

    fast = write_video(tmp_path / "fast.mp4", counted_frames(40, (32, 48)), fps=32)
    run = make(fast, backend, clips=1, on_event=hear)
    assert run.film_frames == 20
    assert number_of(run.start_memory().frames[0, -1].numpy()) == 39
    assert any("32 frames per second, the model 16" in line for line in said)


def test_seconds_count_what_is_made(film: Path, backend: svi.Backend):
    assert make(film, backend, seconds=1.0, preset="wan").count == 2  # 16 new frames


def test_frames_of_a_part_in_seconds_may_be_the_users(film: Path, backend: svi.Backend, tmp_path: Path):
    run = make(film, backend, clips=1)
    folder = export(run, tmp_path / "frames", format="frames", range="1-1.5s")
    assert len(list(folder.iterdir())) == 8
    assert run.verify().ok
    (run.path / "start" / "0001.mp4").write_bytes(b"x")
    report = run.verify()
    assert "0001.mp4 is damaged" in str(report.problems[0])
    with pytest.raises(svi.UserError, match=r"0001\.mp4 is damaged"):
        run.finish()


def test_streams_go_on_as_well(film: Path, backend: svi.Backend):
    (clip,) = svi.stream(film, "a ball", model=backend, clips=1, steps=1, guidance=1.0)
    assert clip.new_frames.shape[0] == NEW["wan"]
    run = make(film, backend, clips=1)
    assert torch.equal(clip.memory.frames, run.store.memory(0).frames)


def test_what_cannot_go_on_is_refused(film: Path, backend: svi.Backend):
    short = write_video(Path("short.mkv"), small(3), codec="ffv1")
    assert Film.open(short).numbers(16) == [0, 1, 2]
    for preset, needed in (("film", 5), ("pro", 5)):
        with pytest.raises(
            svi.UserError, match=rf"has 3 frames at 16 per second, preset {preset} goes on from {needed}"
        ):
            make(short, backend, preset=preset)
    assert make(short, backend, clips=1).film_frames == 3  # one frame is enough for wan
    with pytest.raises(svi.UserError, match="belongs to a video"):
        svi.generate(small(1)[0], "a", model=backend, anchor="cat.png")
    with pytest.raises(svi.UserError, match="does not exist"):
        make(Path("no.mp4"), backend, "other")
    assert not Path("other").exists()
