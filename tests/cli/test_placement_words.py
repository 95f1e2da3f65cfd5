"""Words for how a model runs: they reach the run, a run keeps to them, and several processes make what one makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from svi.generation.manifest import RUNNING
from svi.generation.run import Run
from svi.job import together

OTHER = "_native_math"  # an attention that every CPU has and that is not the default
DEFAULTS = {
    "speed": "reference",
    "attention": "native",
    "quantise": "none",
    "cache_threshold": None,
    "dtype": "float32",
}
BAD = [
    (["--memory", "offlaod"], ("offlaod", "did you mean 'offload'")),
    (["--memory", "offload", "--device", "cpu"], ("offload is not for cpu", "resident")),
    (["--speed", "blanced"], ("blanced", "did you mean 'balanced'")),
    (["--attention", "nativ"], ("nativ", "did you mean 'native'")),
    (["--quantise", "fp9"], ("fp9", "fp8")),
    (["--text-encoder", "gpu"], ("text encoder", "gpu", "cpu")),
    (["--cache-threshold", "0"], ("--cache-threshold must be more than 0",)),
    (["--cache-threshold", "3"], ("share between 0 and 1", "3")),
    (["--disk", "cat.png"], ("cat.png", "no folder")),
    (["--dtype", "bf17"], ("bf17", "did you mean 'bf16'")),
]


@pytest.fixture
def story(home: Path, model_folder: Path) -> list[str]:
    """Words that make two clips of a step each."""
    words = ["generate", "cat.png", "--prompt", "a cat walks", "it sits", "--steps", "1", "--out", "run"]
    return [*words, "--model", str(model_folder), "--device", "cpu"]


def recorded(run: Path | str) -> dict[str, object]:
    settings = Run.open(run).settings.model_dump()
    return {name: settings[name] for name in RUNNING}


@pytest.mark.parametrize(("words", "named"), BAD, ids=" ".join)
def test_a_bad_value_is_one_line_before_weights_are_loaded(svi, story, words, named, monkeypatch):
    monkeypatch.setattr(together, "load_choice", lambda *_: pytest.fail("weights were loaded"))
    done = svi(*story, *words)
    assert (done.code, done.out) == (2, "")
    (line,) = (line for line in done.err.splitlines() if line.startswith("svi: error: "))
    assert all(name in line for name in named), line
    assert not Path("run").exists()


def test_nothing_asked_is_as_published(svi, story):
    done = svi(*story)
    assert done.code == 0
    assert recorded("run") == DEFAULTS
    assert "estimated peak" not in done.err


def test_words_are_told_recorded_and_kept(svi, story):
    done = svi(*story, "--attention", OTHER, "--quantise", "fp8", "--memory", "resident", "--clips", "1")
    assert done.code == 0
    for told in (f"attention {OTHER}: asked for", "quantisation fp8", "memory resident, estimated peak"):
        assert told in done.err
    kept = {**DEFAULTS, "speed": f"reference+attention={OTHER}", "attention": OTHER, "quantise": "fp8"}
    assert recorded("run") == kept
    other = svi("extend", "run", "--clips", "1", "--attention", "native", "--quantise", "none")
    assert other.code == 2
    for said in (f"attention was '{OTHER}', is 'native'", "quantise was 'fp8', is 'none'", "svi branch"):
        assert said in other.err
    longer = svi("extend", "run", "--clips", "1")
    assert (longer.code, Run.open("run").count) == (0, 2)
    assert f"attention {OTHER}" in longer.err
    assert recorded("run") == kept
    assert svi("branch", "run", "--at", "1", "--quantise", "none", "--out", "twig").code == 0
    assert recorded("twig") == {**kept, "quantise": "none"}


def test_a_run_from_before_these_were_kept_goes_on(svi, run):
    for path in (run / "run.json", *run.glob("clips/*/take-0/clip.json")):
        data = json.loads(path.read_text())
        for name in RUNNING:
            del data["settings"][name]
        path.write_text(json.dumps(data))
    assert recorded(run) == {**DEFAULTS, "dtype": ""}  # which nobody knows any more
    longer = svi("extend", run, "--clips", "1")
    assert (longer.code, Run.open(run).count) == (0, 4), longer.err


def test_another_type_is_another_branch(svi, story):
    assert svi(*story, "--clips", "1").code == 0
    refused = svi("extend", "run", "--clips", "1", "--dtype", "bf16")
    assert refused.code == 2
    assert "dtype was 'float32', is 'bfloat16'" in refused.err
    assert "svi branch" in refused.err
    assert svi("branch", "run", "--at", "1", "--clips", "2", "--dtype", "bf16", "--out", "twig").code == 0
    assert recorded("twig") == {**DEFAULTS, "dtype": "bfloat16"}
    assert svi("extend", "twig", "--clips", "1").code == 0  # nothing is said: as its clips were made
    assert Run.open("twig").count == 3
    run = json.loads(Path("run/run.json").read_text())
    assert run["device"] == "cpu"
    assert [event["device"] for event in Run.open("run").journal() if event["event"] == "started"] == ["cpu"]


def test_two_processes_make_the_frames_of_one(svi, story, home):
    words = [*story[:-4], "--steps", "2", *story[-4:], "--threads", "1"]
    team = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "svi.cli"]
    several = subprocess.run(
        [*team, *words], capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert several.returncode == 0, several.stderr
    assert several.stdout == "run/video.mp4\n"
    assert "2 processes: 2 guidance branch(es) at a time" in several.stderr
    assert svi(*("alone" if word == "run" else word for word in words)).code == 0
    together, alone = ([clip.frames_sha256 for clip in Run.open(path).clips()] for path in ("run", "alone"))
    assert len(together) == 2
    assert together == alone


def test_several_processes_need_a_name_and_their_own_devices(svi, story, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    nameless = svi(*(word for word in story if word not in ("--out", "run")))
    assert nameless.code == 2
    assert "--out" in nameless.err
