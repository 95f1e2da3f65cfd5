"""Every command, on a real model folder with random weights."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from svi.cli.interrupt import Interrupt
from svi.cli.parser import COMMANDS
from svi.generation.run import Run
from svi.job import together


def frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


@pytest.fixture
def story(home: Path, model_folder: Path) -> list[str]:
    """Words that make three clips of 9, 8 and 8 frames."""
    return ["generate", "cat.png", "--prompt", "a cat walks", "it sits", "it naps", "--model", str(model_folder)]


def test_generate_tells_where_the_video_is(svi, story, home):
    done = svi(*story, "--out", "run")
    assert (done.code, done.out) == (0, "run/video.mp4\n")
    assert frames(home / "run/video.mp4").shape == (25, 32, 48, 3)
    for word in ("preset wan", "48x32", "3 clips = 1.6 s", "writing run", "Ctrl-C", "clip 2 (3/3)", "done: 3 clips"):
        assert word in done.err


def test_without_out_a_new_folder_is_made_each_time(svi, story, home):
    names = [svi(*story, "--clips", "1", "--quiet").out for _ in range(2)]
    assert len(set(names)) == 2
    assert all(name.startswith("runs/cat-") and (home / name.strip()).exists() for name in names)


def test_json_lines(svi, story):
    done = svi(*story, "--out", "run", "--json")
    events = [json.loads(line) for line in done.out.splitlines()]
    kinds = [event["kind"] for event in events if event["kind"] not in ("loading", "notice")]
    clip = ["clip_started", "step", "step", "clip_finished"]
    assert kinds == ["overview", "run_started", *clip * 3, "finished"]
    assert events[-1]["video"] == "run/video.mp4"
    assert not done.err


def test_quiet(svi, story):
    done = svi(*story, "--out", "run", "--quiet")
    assert (done.out, done.err) == ("run/video.mp4\n", "")


def test_options_reach_the_run(svi, story):
    options = [
        "--steps",
        "1",
        "--guidance",
        "2.5",
        "--seed",
        "5",
        "--frames",
        "5",
        "--size",
        "32x16",
        "--solver",
        "heun",
    ]
    assert (
        svi(*story, *options, "--preset", "shot", "--negative-prompt", "rain", "--seconds", "1", "--out", "run").code
        == 0
    )
    settings = Run.open("run").settings
    assert (settings.steps, settings.guidance, settings.seed, settings.num_frames) == (1, 2.5, 5, 5)
    assert (settings.width, settings.height, settings.solver, settings.preset) == (32, 16, "heun", "shot")
    assert settings.negative_prompt == "rain"
    assert Run.open("run").count == 4  # 5 + 3 * 4 = 17 frames at 16 fps: the fewest clips that last a second


def test_an_option_wins_over_the_storyboard_and_that_over_the_model(svi, home, model_folder):
    (home / "story").mkdir()
    shutil.copy("cat.png", home / "story/dog.png")
    text = "image: dog.png\nsteps: 3\nseed: 8\nclips: 2\nscenes: [{beats: [{prompt: a dog, repeat: 5}]}]\n"
    (home / "story/board.yaml").write_text(text)
    words = [
        "generate",
        "--storyboard",
        "story/board.yaml",
        "--model",
        model_folder,
        "--seed",
        "4",
        "--out",
        "run",
        "--quiet",
    ]
    assert svi(*words).code == 0
    run = Run.open("run")
    default = json.loads((Path(model_folder) / "svi.json").read_text())["guidance"]
    assert (run.settings.seed, run.settings.steps, run.settings.guidance) == (4, 3, default)
    assert run.count == 2


def test_an_image_after_the_prompts_is_the_image(svi, home, model_folder):
    words = ["generate", "--prompt", "a cat", "cat.png", "--model", model_folder, "--out", "run", "--quiet"]
    assert svi(*words).code == 0
    assert [clip.prompt for clip in Run.open("run").clips()] == ["a cat"]


def test_the_bundled_example_is_the_default(svi, home, model_folder):
    assert svi("generate", "--model", model_folder, "--clips", "1", "--steps", "1", "--out", "run", "--quiet").code == 0
    assert (Run.open("run").settings.width, Run.open("run").settings.height) == (48, 32)


def test_extend_goes_on_with_new_prompts(svi, run):
    before = [clip.frames_sha256 for clip in Run.open(run).clips()]
    assert svi("extend", run, "--prompt", "the cat jumps", "it lands").code == 0
    clips = list(Run.open(run).clips())
    assert [clip.frames_sha256 for clip in clips[:3]] == before
    assert [clip.prompt for clip in clips[3:]] == ["the cat jumps", "it lands"]
    assert svi("extend", run, "--seconds", "1").code == 0
    assert Run.open(run).count == 7


def test_retake_keeps_the_old_take(svi, run):
    before = [clip.frames_sha256 for clip in Run.open(run).clips()]
    assert svi("retake", run, "--clip", "1", "--prompt", "the cat turns", "--keep-rest").code == 0
    clips = list(Run.open(run).clips())
    assert [clip.frames_sha256 == old for clip, old in zip(clips, before, strict=True)] == [True, False, True]
    assert [clip.prompt for clip in clips] == ["a cat walks", "the cat turns", "the cat sits"]
    assert sorted(path.name for path in clips[1].path.parent.iterdir()) == ["take-0", "take-1"]
    assert svi("retake", run, "--clip", "0", "--seed", "99").code == 0
    assert all(clip.frames_sha256 != old for clip, old in zip(Run.open(run).clips(), before, strict=True))


def test_branch_shares_the_start(svi, run, home):
    assert svi("branch", run, "--at", "2", "--prompt", "the cat flies", "--steps", "1").code == 0
    new, old = Run.open(home / "run-branch-1"), Run.open(run)
    same = [a.frames_sha256 == b.frames_sha256 for a, b in zip(new.clips(), old.clips(), strict=True)]
    assert same == [True, True, False]
    assert (new.settings.steps, old.settings.steps) == (1, 2)
    assert [clip.prompt for clip in new.clips()] == ["a cat walks", "the cat sits", "the cat flies"]


def test_show(svi, run):
    found = json.loads(svi("show", run, "--json").out)
    assert (found["state"], found["clips"], found["target"], found["damage"]) == ("finished", 3, 3, [])
    assert [row["prompt"] for row in found["rows"]] == ["a cat walks", "the cat sits", "the cat sits"]
    assert found["disk_bytes"] > 1000
    text = svi("show", run).out
    for word in ("finished", "3 of 3 clips", "48x32", "preset wan", "the cat sits", "video.mp4"):
        assert word in text


def test_show_names_damage_and_remedy(svi, run):
    (run / "clips/0001/take-0/segment.mp4").write_bytes(b"")
    (run / "clips/0002/take-0/clip.json").write_text("{")
    shown = svi("show", run)
    assert shown.code == 0
    for word in ("segment.mp4", "clip.json", "svi retake"):
        assert word in shown.out


def test_contact_sheet_has_a_row_per_clip(svi, run):
    assert svi("show", run, "--sheet", "--columns", "4").code == 0
    with Image.open(run / "sheet.png") as sheet:
        assert sheet.width == 4 + 4 * (192 + 4)  # 48 px enlarged to at least 160
        assert sheet.height > 3 * 128
        shown = np.asarray(sheet)
    cell = next(iter_frames := iter(frames(run / "video.mp4")))
    top = next(y for y in range(sheet.height) if (shown[y : y + 128, 4:196] == cell.repeat(4, 0).repeat(4, 1)).all())
    assert 20 < top < 80
    assert next(iter_frames) is not None
    assert svi("show", run, "--sheet", "few.png", "--rows", "2", "--columns", "1").code == 0
    with Image.open("few.png") as few:
        assert few.height < sheet.height
    assert svi("show", run, "--columns", "4", "--sheet", "both.png", "--beside", run).code == 0
    with Image.open("both.png") as both:
        halves = np.asarray(both)[:, : sheet.width], np.asarray(both)[:, sheet.width :]
        assert (halves[0] == shown).all()
        assert (halves[1] == shown).all()
    assert svi("show", run, "--beside", "nowhere").code == 2


def test_export_copies_the_mp4(svi, run):
    assert svi("export", run, "--out", "cat.mp4").out == "cat.mp4\n"
    assert (frames(Path("cat.mp4")) == frames(run / "video.mp4")).all()


@pytest.mark.parametrize("form", ["gif", "webp"])
def test_export_animation(svi, run, form):
    assert svi("export", run, "--format", form, "--scale", "2").code == 0
    with Image.open(f"run.{form}") as image:
        assert (image.n_frames, image.size) == (25, (96, 64))
        shown = 0
        for index in range(image.n_frames):
            image.seek(index)
            image.load()
            shown += image.info["duration"]
    assert abs(shown - 25 / 16 * 1000) <= 10


def test_export_frames_and_ranges(svi, run):
    video = frames(run / "video.mp4")
    assert svi("export", run, "--format", "frames", "--range", "1-2").code == 0
    names = sorted(path.name for path in Path("run-frames").iterdir())
    assert (names[0], names[-1], len(names)) == ("000009.png", "000024.png", 16)
    assert (np.asarray(Image.open("run-frames/000009.png")) == video[9]).all()
    assert svi("export", run, "--range", "0.5-1s", "--out", "part.mp4").code == 0
    part = frames(Path("part.mp4")).astype(int)
    assert part.shape == (8, 32, 48, 3)
    assert np.abs(part - video[8:16]).mean() < 6  # encoded once more
    assert svi("export", run, "--out", "large.mp4", "--scale", "3").code == 0
    assert frames(Path("large.mp4")).shape == (25, 96, 144, 3)


def test_exports_find_a_new_name(svi, run):
    assert [svi("export", run, "--format", "gif").out for _ in range(2)][1].endswith("run-2.gif\n")


def test_presets_schema_doctor_version(svi, home):
    assert set(json.loads(svi("presets", "--json").out)) >= {"wan", "shot", "film", "tom", "pro"}
    assert "overlap" in svi("presets").out
    assert json.loads(svi("schema").out)["properties"]["scenes"]
    assert svi("schema", "--out", "schema.json").code == 0
    doctor = json.loads(svi("doctor", "--json").out)
    assert {"versions", "machine", "choices", "problems"} <= doctor.keys()
    assert any(line.startswith("device ") for line in doctor["choices"])
    assert svi("--version").out.startswith("svi ")


@pytest.mark.parametrize("words", [[], ["--help"]], ids=["nothing", "help"])
def test_help_lists_the_commands(svi, words):
    done = svi(*words)
    assert done.code == 0
    for command in ("generate", "resume", "extend", "branch", "retake", "export", "show"):
        assert command in done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(svi, command):
    done = svi(command, "--help")
    assert done.code == 0
    assert f"svi {command}" in done.out
    if command in ("generate", "resume", "extend", "branch", "retake", "export", "show"):
        assert "example" in done.out


def start(home: Path, *words: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", "svi.cli", *words]
    return subprocess.Popen(program, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_clip(home: Path, clip: int, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 240
    while not (home / f"run/clips/{clip:04d}/take-0").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "no clip was made"
        time.sleep(0.02)


def test_the_first_signal_asks_and_the_second_stops():
    before = signal.getsignal(signal.SIGINT)
    with Interrupt(), pytest.raises(KeyboardInterrupt):  # nothing is written yet
        signal.raise_signal(signal.SIGINT)
    with Interrupt() as interrupt:
        interrupt.arm()
        assert not interrupt.asked()
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_full_memory_is_one_line(svi, story, monkeypatch):
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(together, "load_choice", full)
    done = svi(*story)
    assert done.code == 2
    assert done.err.startswith("svi: error: the memory is full: take a smaller --size")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_stops_and_resume_gives_the_same_frames(svi, home, story, number):
    process = start(home, *story, "--endless", "--out", "run")
    wait_for_clip(home, 1, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130
    assert not out
    assert "svi resume run" in err
    assert "Traceback" not in err
    made = Run.open("run").count
    run = Run.open("run")
    assert run.status().playlist.exists()
    assert svi("extend", "run", "--clips", "1", "--quiet").code == 0
    assert Run.open("run").count == made + 1
    assert svi(*story, "--clips", str(made + 1), "--out", "undisturbed", "--quiet").code == 0
    stopped, undisturbed = ([clip.frames_sha256 for clip in Run.open(name).clips()] for name in ("run", "undisturbed"))
    assert stopped == undisturbed
