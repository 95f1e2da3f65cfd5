"""Takes and branches: what is kept, what is made again."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import Listener, left_over, outputs
from tiny import INFO, TinyBackend, new_run, settings

from svi.backends.base import ModelInfo
from svi.errors import UserError
from svi.generation.clip_store import SEGMENT
from svi.generation.plans import RETAKE_STRIDE
from svi.generation.run import Run
from svi.generation.storyboard import storyboard_from_prompts
from svi.generation.storyboard_edit import followed_by
from svi.generation.writer import read_frames


def hashes(run: Run) -> list[str]:
    return [info.frames_sha256 for info in run.clips()]


def test_retake_makes_what_follows_again(made: Run, backend: TinyBackend) -> None:
    before = hashes(made)
    assert made.retake(1) == 1
    assert made.status().retake == 1
    assert not made.status().finished
    told = Listener()
    made.generate(backend, on_event=told)
    after = hashes(made)
    assert after[0] == before[0]
    assert all(new != old for new, old in zip(after[1:], before[1:], strict=True))
    assert [info.take for info in made.clips()] == [0, 1, 1, 1]
    assert [info.seed for info in made.clips()] == [7, 49 + RETAKE_STRIDE, 91, 133]
    names = [sorted(path.name for path in made.store.folder(k).iterdir()) for k in range(4)]
    assert names == [["take-0"], ["take-0", "take-1"], ["take-0.old", "take-1"], ["take-0.old", "take-1"]]
    assert made.status().finished
    assert made.verify().ok
    assert "clips/0001/take-1" in made.playlist.read_text()
    assert len(list(read_frames(made.path / "video.mp4"))) == made.status().frames


def test_retake_with_the_old_seed_gives_the_old_clip(made: Run, backend: TinyBackend) -> None:
    before = hashes(made)
    made.retake(2, seed=91)
    made.generate(backend)
    assert hashes(made) == before


def test_retake_that_keeps_the_rest(made: Run, backend: TinyBackend) -> None:
    before, old = hashes(made), (made.path / "clips/0002/take-0" / SEGMENT).read_bytes()
    made.retake(2, keep_rest=True, seed=1234)
    told = Listener()
    made.generate(backend, on_event=told)
    after = hashes(made)
    assert told.kinds.count("clip_started") == 1
    assert [new == was for new, was in zip(after, before, strict=True)] == [True, True, False, True]
    assert (made.path / "clips/0002/take-0" / SEGMENT).read_bytes() == old
    assert made.store.info(2).seed == 1234
    assert len(list(read_frames(made.playlist))) == len(list(read_frames(made.path / "video.mp4"))) == 33


def test_a_stopped_retake_goes_on(made: Run, backend: TinyBackend) -> None:
    made.retake(1)
    made.generate(backend, should_stop=lambda: True)
    assert made.status().retake == 1
    again = Run.open(made.path)
    again.generate(backend)
    assert [info.take for info in again.clips()] == [0, 1, 1, 1]


def test_retakes_add_up(made: Run, backend: TinyBackend) -> None:
    for take in (1, 2, 3):
        assert made.retake(3) == take
        made.generate(backend)
    assert made.store.info(3).takes == 4
    assert len({made.store.info(3, take).frames_sha256 for take in range(4)}) == 4


def test_a_retake_can_be_followed_by_more(made: Run, backend: TinyBackend) -> None:
    made.retake(0)
    made.extend(2)
    assert made.generate(backend).count == 6


@pytest.mark.parametrize("clip", [-1, 4, 99])
def test_no_such_clip(made: Run, clip: int) -> None:
    with pytest.raises(UserError, match=f"has no clip {clip}: choose 0 to 3"):
        made.retake(clip)


def test_a_branch_shares_its_first_clips(made: Run, tmp_path: Path, backend: TinyBackend) -> None:
    before = outputs(made)
    branch = made.branch(
        2, tmp_path / "branch", clips=5, storyboard=followed_by(made.storyboard(), 2, storyboard_from_prompts(["x"]))
    )
    assert (branch.count, branch.target, branch.manifest.parent.at) == (2, 5, 2)
    shared = [branch.store.info(1).segment, made.store.info(1).segment]
    assert shared[0].stat().st_ino == shared[1].stat().st_ino
    branch.generate(backend)
    assert [info.prompt for info in branch.clips()] == ["a", "b", "x", "x", "x"]
    assert hashes(branch)[:2] == hashes(made)[:2]
    assert outputs(made) == before
    assert branch.verify().ok
    assert len(list(read_frames(branch.path / "video.mp4"))) == 41
    assert not left_over(tmp_path)


def test_a_branch_with_nothing_changed_ends_the_same(made: Run, tmp_path: Path, backend: TinyBackend) -> None:
    branch = made.branch(3, tmp_path / "branch", clips=4)
    branch.generate(backend)
    assert outputs(branch) == outputs(made)


@pytest.mark.parametrize(("preset", "overlap"), [("film", 5), ("pro", 5), ("shot", 1)])
def test_a_branch_may_change_settings_and_preset(
    made: Run, tmp_path: Path, backend: TinyBackend, preset: str, overlap: int
) -> None:
    branch = made.branch(2, tmp_path / "branch", clips=4, settings=settings(preset=preset, steps=4, num_frames=13))
    branch.generate(backend)
    assert [info.new_frames for info in branch.clips()] == [9, 8, 13 - overlap, 13 - overlap]
    assert [info.start_frame for info in branch.clips()] == [0, 9, 17, 30 - overlap]
    assert len(list(read_frames(branch.playlist))) == branch.status().frames


def test_a_branch_may_change_the_model(made: Run, tmp_path: Path) -> None:
    other = ModelInfo("other", files={"weights.safetensors": "9" * 64}, loras=INFO.loras)
    branch = made.branch(1, tmp_path / "branch", clips=2, model=other)
    assert branch.generate(TinyBackend(other)).finished
    with pytest.raises(UserError, match="the model is not the one"):
        branch.generate(TinyBackend())


def test_branches_that_cannot_be(made: Run, tmp_path: Path) -> None:
    for at, more, message in (
        (5, {}, "has 4 clips: branch at 0 to 4, not 5"),
        (-1, {}, "branch at 0 to 4"),
        (2, {"settings": settings(width=64)}, "keeps the width of its run, 48"),
        (2, {"settings": settings(fps=16)}, "keeps the fps"),
        (2, {"clips": 1}, "already has 2 clips"),
    ):
        with pytest.raises(UserError, match=message):
            made.branch(at, tmp_path / "branch", **{"clips": 6, **more})
    with pytest.raises(UserError, match="already holds a run"):
        made.branch(2, made.path, clips=6)
    assert not (tmp_path / "branch").exists()


def test_a_branch_at_nought_is_a_new_run(made: Run, tmp_path: Path, backend: TinyBackend) -> None:
    branch = made.branch(0, tmp_path / "branch", clips=2, settings=settings(seed=99))
    branch.generate(backend)
    fresh = new_run(tmp_path / "fresh", clips=2, seed=99)
    fresh.generate(backend)
    assert outputs(branch) == outputs(fresh)


def test_edit_checks_loras(made: Run) -> None:
    story = storyboard_from_prompts(["a"]).model_dump()
    story["scenes"][0]["beats"][0]["loras"] = {"nope": 1.0}
    with pytest.raises(UserError, match="LoRA 'nope'"):
        made.edit(type(made.storyboard()).model_validate(story))
