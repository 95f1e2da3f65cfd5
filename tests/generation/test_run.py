"""A run from beginning to end, stopped and resumed; what it refuses."""

from __future__ import annotations

import gc
import json
import os
import stat
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import Listener, left_over, outputs
from tiny import GEOMETRY, INFO, TinyBackend, new_run, reference, settings

from svi.backends.base import ModelInfo
from svi.errors import UserError
from svi.generation.events import ClipStarted, Step
from svi.generation.manifest import resolve_settings
from svi.generation.run import Run
from svi.generation.storyboard import storyboard_from_prompts
from svi.generation.writer import read_frames, read_info


def test_a_whole_run(tmp_path: Path, backend: TinyBackend) -> None:
    told = Listener()
    run = new_run(tmp_path / "run", clips=5)
    status = run.generate(backend, on_event=told)
    assert (status.count, status.target, status.frames, status.finished) == (5, 5, 9 + 4 * 8, True)
    assert told.kinds == [
        "run_started", *["clip_started", "clip_finished"] * 3, "notice", *["clip_started", "clip_finished"] * 2, "finished",
    ]  # fmt: skip
    assert told.notices == ["the storyboard has prompts for 3 clips: its last prompt repeats"]
    assert [e.step for e in told.events if isinstance(e, Step)] == [1, 2, 3] * 5
    assert [e.prompt for e in told.events if isinstance(e, ClipStarted)] == ["a", "b", "c", "c", "c"]
    json.dumps([event.to_dict() for event in told.events])
    shown = list(read_frames(run.path / "video.mp4"))
    assert len(shown) == status.frames
    assert sum(len(list(read_frames(info.segment))) for info in run.clips()) == status.frames
    assert len(list(read_frames(run.playlist))) == status.frames
    info = read_info(run.path / "video.mp4")
    assert [row["prompt"] for row in info["prompts"]] == ["a", "b", "c"]
    assert (info["settings"]["seed"], info["clips"]) == (7, 5)
    assert [info.start_frame for info in run.clips()] == [0, 9, 17, 25, 33]
    assert run.verify().ok
    assert not left_over(run.path)


def test_frames_in_the_files_are_those_that_were_made(tmp_path: Path, backend: TinyBackend) -> None:
    run = new_run(tmp_path / "run", clips=2)
    for k, clip in enumerate(run.stream(backend)):
        assert run.count == k + 1  # durable before it is seen
        saved = run.store.memory(k)
        assert torch.equal(saved.frames, clip.memory.frames)
        assert torch.equal(run.store.latents(k), clip.latents)
        shown = torch.stack([torch.from_numpy(frame) for frame in read_frames(run.store.info(k).segment)])
        assert (shown.float() - clip.new_frames.float()).abs().mean() < 4  # H.264 is lossy, but not that lossy


@pytest.mark.parametrize("preset", ["wan", "film", "pro"])
@pytest.mark.parametrize("stop_at", [0, 1, 3])
def test_a_stopped_run_resumes_to_the_same_bytes(tmp_path: Path, preset: str, stop_at: int) -> None:
    whole = new_run(tmp_path / "whole", preset=preset)
    whole.generate(TinyBackend())
    run, told = new_run(tmp_path / "run", preset=preset), Listener()
    steps = 3 * stop_at + 2  # in the middle of clip `stop_at`
    run.generate(TinyBackend(), on_event=told, should_stop=lambda: sum(e.kind == "step" for e in told.events) >= steps)
    assert told.kinds[-1] == "stopped"
    assert run.count == stop_at
    again = Run.open(run.path)
    assert again.generate(TinyBackend()).finished
    assert outputs(again) == outputs(whole)


def test_closing_the_stream_stops_and_unlocks(tmp_path: Path, backend: TinyBackend) -> None:
    run = new_run(tmp_path / "run", clips=None)
    clips = run.stream(backend)
    for _ in range(3):
        next(clips)
    clips.close()
    assert run.count == 3
    assert run.status().running_pid is None
    assert run.generate(backend, clips=4).finished


def test_extending_is_the_same_as_asking_for_more_at_once(tmp_path: Path, backend: TinyBackend, made: Run) -> None:
    whole = new_run(tmp_path / "whole", clips=7)
    whole.generate(backend)
    assert made.extend(3) == 7
    assert not made.status().finished
    made.generate(backend)
    assert outputs(made) == outputs(whole)
    with pytest.raises(UserError, match="already has 7 clips"):
        made.generate(backend, clips=3)


def test_nothing_to_do_is_no_mistake(made: Run, backend: TinyBackend) -> None:
    before = outputs(made)
    (made.path / "video.mp4").unlink()
    told = Listener()
    made.generate(backend, on_event=told)
    assert told.kinds == ["run_started", "finished"]
    assert outputs(made) == before


def test_the_storyboard_may_change_while_clips_are_made(tmp_path: Path, backend: TinyBackend) -> None:
    run, told = new_run(tmp_path / "run", clips=None, prompts=["old"]), Listener()
    clips = run.stream(backend, on_event=told)
    prompts = [next(clips).plan.prompt]
    run.edit(storyboard_from_prompts(["old", "new", "newer"]))
    prompts += [next(clips).plan.prompt, next(clips).plan.prompt]
    text = run.storyboard_path.read_text()
    run.storyboard_path.write_text(text.replace("prompt: newer", "promt: newest"))
    prompts.append(next(clips).plan.prompt)
    run.storyboard_path.write_text(text.replace("newer", "newest") + "seed: 3\nsteps: 9\n")
    prompts.append(next(clips).plan.prompt)
    run.storyboard_path.unlink()
    prompts.append(next(clips).plan.prompt)
    clips.close()
    assert prompts == ["old", "new", "newer", "newer", "newest", "newest"]
    said = " | ".join(told.notices)
    assert said.count("storyboard.yaml changed") == 2
    assert "unknown key 'promt'; did you mean 'prompt'? (the storyboard before this edit stays in use)" in said
    assert "seed is 7 in this run, not 3: fixed when the run was made" in said
    assert "steps is 3 in this run, not 9" in said
    assert "does not exist (the storyboard before this edit stays" in said
    assert {info.plan["steps"] for info in run.clips()} == {3}
    kinds = [event["event"] for event in run.journal()]
    assert kinds.count("storyboard_changed") == 2
    assert kinds.count("storyboard_refused") == 2


def test_memory_does_not_grow_with_length(tmp_path: Path, backend: TinyBackend) -> None:
    run, frames = new_run(tmp_path / "run", clips=None), []
    clips = run.stream(backend)
    for _ in range(8):
        frames.append(weakref.ref(next(clips).frames))
    gc.collect()
    held = [k for k, tensor in enumerate(frames) if tensor() is not None]
    clips.close()
    assert all(k == 7 for k in held)


def test_lora_strengths_of_a_beat_reach_the_model(tmp_path: Path, backend: TinyBackend) -> None:
    story = storyboard_from_prompts(["a", "a", "a"]).model_dump()
    story["scenes"][0]["beats"][1]["loras"] = {"sketch": 0.25}
    run = new_run(tmp_path / "run", clips=3, story=type(storyboard_from_prompts(["a"])).model_validate(story))
    strengths = [backend.strengths["sketch"] for _ in run.stream(backend)]
    assert strengths == [1.0, 0.25, 1.0]


def test_changed_weights_are_refused_and_named(made: Run) -> None:
    def refusal(**changes: object) -> str:
        with pytest.raises(UserError) as caught:
            made.stream(TinyBackend(replace(INFO, **changes)), clips=9)
        return str(caught.value)

    assert "weights.safetensors was aaaaaaaa, is dddddddd" in refusal(
        files={**INFO.files, "weights.safetensors": "d" * 64}
    )
    assert "config.json is missing" in refusal(files={"weights.safetensors": "a" * 64})
    assert "LoRA sketch was cccccccc, is eeeeeeee" in refusal(loras={"sketch": "e" * 64})
    assert "LoRA other is new" in refusal(loras={**INFO.loras, "other": "f" * 64})
    assert "branch" in refusal(loras={})
    assert made.target == 4


def test_changed_settings_are_refused_and_named(made: Run, tmp_path: Path, backend: TinyBackend) -> None:
    path = made.path / "run.json"
    path.write_text(path.read_text().replace('"steps": 3', '"steps": 30').replace('"seed": 7', '"seed": 8'))
    changed = Run.open(made.path)
    with pytest.raises(UserError, match="since clip 3 was made: seed was 7, is 8; steps was 3, is 30; .*svi branch"):
        changed.generate(backend, clips=5)
    assert changed.branch(4, tmp_path / "branch", clips=5).generate(backend).finished


def test_settings_come_from_flags_then_story_then_model_then_preset() -> None:
    info = ModelInfo("m", defaults={"steps": 20, "guidance": 3.0, "fps": 12, "num_frames": 17, "height": 64, "rest": 1})
    story = storyboard_from_prompts(["a"], guidance=4.0, seed=3, negative_prompt="ugly")
    found = resolve_settings(GEOMETRY, info, story, width=48, height=32, seed=9, shift=None)
    assert (found.steps, found.guidance, found.seed, found.fps, found.num_frames) == (20, 4.0, 9, 12, 17)
    assert (found.preset, found.shift, found.negative_prompt, found.height) == ("wan", 5.0, "ugly", 32)
    plain = ModelInfo("m")
    assert resolve_settings(GEOMETRY, plain, story, width=48, height=32, preset="film").steps == 50
    for flags, message in (
        ({"preset": "flim"}, "unknown preset 'flim'.*film"),
        ({"solver": "oiler"}, "unknown solver 'oiler'"),
        ({"steps": 0}, "steps: should be greater than or equal to 1, not 0"),
        ({"guidance": float("nan")}, "guidance"),
        ({"seed": -1}, "seed"),
        ({"num_frames": 16}, r"4n\+1 frames, not 16: the nearest is 17"),
        ({"num_frames": 5, "preset": "film"}, "too few: preset film overlaps 5"),
        ({"stepz": 5}, "unknown setting 'stepz'; did you mean 'steps'"),
    ):
        with pytest.raises(UserError, match=message):
            resolve_settings(GEOMETRY, plain, story, width=48, height=32, **flags)
    with pytest.raises(UserError, match="multiples of 16"):
        resolve_settings(GEOMETRY, plain, story, width=40, height=32)


def test_two_at_once_the_second_is_refused(made: Run, backend: TinyBackend) -> None:
    clips = made.stream(backend, clips=6)
    next(clips)
    other = Run.open(made.path)
    assert other.status().running_pid == os.getpid()
    for attempt in (lambda: other.generate(backend), lambda: other.extend(1), lambda: other.retake(0)):
        with pytest.raises(UserError, match=rf"in use by process {os.getpid()}"):
            attempt()
    next(clips)
    clips.close()
    other.generate(backend)


def test_where_no_run_can_be_made(tmp_path: Path, made: Run) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("x")
    (tmp_path / "empty").mkdir()
    for out, message in (
        (made.path, "already holds a run: `svi resume"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "photos", "other things in it"),
        (tmp_path / "file" / "run", "cannot create"),
    ):
        with pytest.raises(UserError, match=message):
            new_run(out)
    new_run(tmp_path / "empty")
    new_run(tmp_path / "deep" / "er" / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "empty", "file", "photos", "run"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(UserError, match="cannot create"):
        new_run(tmp_path / "locked" / "run")


@pytest.mark.parametrize("clips", [0, -3, 1.5, True, "3"])
def test_bad_numbers_of_clips(tmp_path: Path, clips: object) -> None:
    with pytest.raises(UserError, match="whole number of at least 1"):
        new_run(tmp_path / "run", clips=clips)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_inputs_that_do_not_fit_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="reference image is 48x32, the run 64x32"):
        new_run(tmp_path / "run", width=64)
    story = storyboard_from_prompts(["a"]).model_dump()
    story["scenes"][0]["beats"][0]["loras"] = {"sketsh": 1.0}
    with pytest.raises(UserError, match="LoRA 'sketsh', not loaded here; did you mean 'sketch'"):
        new_run(tmp_path / "run", story=type(storyboard_from_prompts(["a"])).model_validate(story))
    assert not list(tmp_path.iterdir())


def test_software_that_changed_is_told(made: Run, backend: TinyBackend) -> None:
    text = made.path.joinpath("run.json").read_text()
    made.path.joinpath("run.json").write_text(text.replace(f'"torch": "{torch.__version__}"', '"torch": "1.0"'))
    told = Listener()
    Run.open(made.path).generate(backend, clips=5, on_event=told)
    assert f"torch 1.0 -> {torch.__version__}" in told.notices[0]


def test_the_reference_comes_back_exactly(made: Run) -> None:
    assert torch.equal(made.reference(), reference().image)
    assert made.settings == settings()
