"""``svi data``: tables and codes, a cache from the command line, and one clear line for whatever is wrong."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from data_videos import captioned, world_frames, write_video

from svi.backends import wan
from svi.cli import main
from svi.data import scenes
from svi.data.dataset import CachedDataset
from svi.data.manifest import VideoItem, load_manifest


@dataclass
class Result:
    """What a command left."""

    code: int
    out: str
    err: str


@pytest.fixture
def svi(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*words: object) -> Result:
        capsys.readouterr()
        code = main(["data", *map(str, words)])
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two usable videos for the tiny model (48x32, 9 frames), one too short, one without a caption."""
    folder = tmp_path_factory.mktemp("cli") / "clips"
    for name, count in (("a", 20), ("b", 9), ("short", 5), ("silent", 9)):
        path = write_video(folder / f"{name}.mp4", world_frames(count, size=(48, 64)))
        if name != "silent":
            captioned(path)
    return folder


def test_check(svi: Any, clips: Path, model_folder: Path) -> None:
    done = svi("check", clips, "--model", model_folder)
    assert done.code == 0
    for words in (
        "2 of 4 videos usable: 3 windows",
        "9x32x48",
        "64x48 (2)",
        "short.mp4",
        "too short: 5 frames",
        "no caption",
    ):
        assert words in done.out
    found = json.loads(svi("check", clips, "--model", model_folder, "--json").out)
    assert (found["windows"], found["usable"], len(found["skipped"])) == (3, 2, 2)
    assert found["buckets"] == [
        {"bucket": "9x32x48", "videos": 2, "windows": 3, "hours": pytest.approx(27 / 16 / 3600)}
    ]
    everything = svi("check", clips, "--model", model_folder, "--caption", "a ball", "--hop", "4", "--json")
    assert json.loads(everything.out)["windows"] == 3 + 1 + 1


def test_check_of_the_pocket_model_needs_longer_videos(svi: Any, clips: Path) -> None:
    found = json.loads(svi("check", clips, "--json").out)
    assert (found["windows"], found["buckets"][0]["bucket"]) == (1, "17x64x96")


def test_encode(svi: Any, clips: Path, model_folder: Path, tmp_path: Path) -> None:
    words = [
        "encode",
        clips,
        "--model",
        model_folder,
        "--preset",
        "film",
        "--out",
        tmp_path / "cache",
        "--variants",
        "2",
    ]
    planned = svi(*words, "--dry-run", "--json")
    plan = json.loads(planned.out)
    assert (planned.code, plan["windows"]) == (0, 6)
    assert not (tmp_path / "cache").exists()
    done = svi(*words)
    assert (done.code, done.out) == (0, f"{tmp_path / 'cache'}\n")
    for text in ("left out: silent.mp4: no caption", "6 windows, about", "6/6 windows", "done: 3 windows, 0 left out"):
        assert text in done.err
    size = sum(path.stat().st_size for path in (tmp_path / "cache/shards").iterdir())
    assert 0.7 < plan["bytes"] / size < 1.3
    assert CachedDataset(tmp_path / "cache").size == 3
    again = svi(*words, "--json")
    assert [json.loads(line) for line in again.out.splitlines()][-2]["reused"] == 6
    stale = svi(*words, "--store", "float32")
    assert stale.code == 2
    assert "dtype is bfloat16, not float32" in stale.err
    assert svi(*words, "--store", "float32", "--replace", "--quiet").out == f"{tmp_path / 'cache'}\n"


def test_ctrl_c_keeps_what_is_finished(
    svi: Any, clips: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(wan, "load_backend", stop)
    done = svi("encode", clips, "--model", model_folder, "--out", tmp_path / "cache")
    assert done.code == 130
    assert "the same command goes on" in done.err


@pytest.mark.parametrize(
    ("words", "keywords"),
    [
        (["check", "{empty}"], ["no videos in"]),
        (["check", "{clips}", "--preset", "shit"], ["unknown preset 'shit'", "did you mean 'shot'?"]),
        (["check", "{clips}", "--preset", "dance"], ["driven by pose"]),
        (["check", "{clips}", "--bucket", "480x832"], ["FRAMESxHEIGHTxWIDTH"]),
        (["check", "{clips}", "--bucket", "9x33x48"], ["multiples of 16"]),
        (["check", "{clips}", "--bukcet", "9x32x48"], ["unknown option '--bukcet'", "'--bucket'"]),
        (["check", "{clips}", "--bucket", "81x32x48"], ["nothing in", "is usable", "and 3 more"]),
        (["check", "nowhere"], ["nowhere does not exist"]),
        (["encode", "{clips}"], ["--out"]),
        (["encode", "{clips}", "--out", "x", "--first-clips", "3"], ["first_clip_prob"]),
        (["encode", "{clips}", "--out", "x", "--bucket", "81x32x48"], ["nothing in", "is usable"]),
        (["encode", "{clips}", "--out", "{clips}", "--model", "{model}"], ["no cache of training data"]),
        (["encode", "{clips}", "--out", "x", "--store", "float16"], ["unknown dtype 'float16'"]),
        (["chek", "{clips}"], ["chek"]),
        (["split", "{clips}", "--out", "x.jsonl", "--detector", "adaptiv"], ["did you mean 'adaptive'?"]),
    ],
)
def test_bad_input(
    svi: Any,
    clips: Path,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    keywords: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    before = sorted(clips.iterdir())
    places = {"{empty}": "empty", "{clips}": clips, "{model}": model_folder}
    done = svi(*(places.get(word, word) for word in words))
    assert done.code == 2
    lines = [line for line in done.err.splitlines() if line.startswith("svi: error: ")]
    assert len(lines) == 1, done.err
    for keyword in keywords:
        assert keyword in lines[0]
    assert sorted(clips.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_help_teaches(svi: Any) -> None:
    assert "svi data encode" in svi().out
    for verb in ("check", "split", "encode"):
        done = svi(verb, "--help")
        assert done.code == 0
        assert "examples:" in done.out
        assert '{"video": "a.mp4", "caption": "a cat walks"}' in done.out


# -- scenes ------------------------------------------------------------------------------------------------------------


def test_splitting_needs_the_extra(svi: Any, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    done = svi("split", clips, "--out", tmp_path / "scenes.jsonl")
    assert done.code == 2
    assert "pip install 'stable-video-infinity[data]'" in done.err


def test_a_manifest_of_scenes(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).write_bytes(b"x")
        captioned(tmp_path / name)
    found = {"a.mp4": [(0.0, 4.0), (4.0, 4.5), (4.5, 9.0)], "b.mp4": []}

    def detect(item: VideoItem) -> list[tuple[float, float]]:
        if item.id not in found:
            raise OSError("cannot be opened")
        return found[item.id]

    cut = scenes.split_scenes(load_manifest(tmp_path), detect, shortest_s=1.0)
    assert [(item.id, item.start_s, item.end_s) for item in cut.items] == [
        ("a.mp4@0.00", 0.0, 3.9),
        ("a.mp4@4.60", 4.6, None),
        ("b.mp4", 0.0, None),
    ]
    assert "its scenes cannot be found (cannot be opened)" in cut.skipped[0].reason
    (tmp_path / "lists").mkdir()
    scenes.write_manifest(cut, tmp_path / "lists/scenes.jsonl")
    again = load_manifest(tmp_path / "lists/scenes.jsonl")
    assert [(item.id, item.start_s, item.end_s, item.caption) for item in again.items] == [
        (item.id, item.start_s, item.end_s, item.caption) for item in cut.items
    ]


def test_scenes_of_a_real_video(svi: Any, tmp_path: Path) -> None:
    """A hard cut between two worlds; runs where PySceneDetect is installed."""
    pytest.importorskip("scenedetect")
    import numpy as np

    frames = np.concatenate([world_frames(48, 1), 255 - world_frames(48, 2)])
    write_video(tmp_path / "film.mp4", frames)
    out = tmp_path / "scenes.jsonl"
    done = svi("split", tmp_path / "film.mp4", "--caption", "two worlds", "--out", out, "--detector", "content")
    assert (done.code, done.out) == (0, f"{out}\n")
    first, second = load_manifest(out).items
    assert first.end_s == pytest.approx(2.9, abs=0.07)
    assert second.start_s == pytest.approx(3.1, abs=0.07)


def test_the_reader_of_scenedetect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The calls that are made of the library, on a stand-in of the same shape (0.7)."""
    time = SimpleNamespace
    library = SimpleNamespace(
        AdaptiveDetector=lambda: "adaptive",
        detect=lambda path, detector, start_in_scene: (
            [(time(seconds=0.0), time(seconds=1.5))] * (detector == "adaptive")
        ),
    )
    monkeypatch.setitem(sys.modules, "scenedetect", library)
    assert scenes.load_detector()(VideoItem("x", tmp_path / "x.mp4", "x")) == [(0.0, 1.5)]
