"""The drift experiment: configuration, cells that survive a kill, results, and what it says about mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from svi.cli import main
from svi.errors import UserError
from svi.evaluation.runner import Tick
from svi.geometry import Geometry
from svi.pocket import components
from svi.pocket.drift.cells import Cell, Record, cells, fingerprints, read_record, write_record
from svi.pocket.drift.experiment import EXPERIMENTS, Arm, Experiment, Gain, Scene, load_experiment
from svi.pocket.drift.gauge import MEASURES
from svi.pocket.drift.results import gather, write_results
from svi.pocket.drift.rollouts import Window, clips_of, plan, policy_of, world_of, worlds
from svi.pocket.drift.runner import run
from svi.pocket.drift.sheets import pictured_clips
from svi.pocket.train_vae import HELD_OUT

WINDOW = Window(17, 5, 16, (64, 96))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the smallest size that a world can have, never trained."""
    folder = tmp_path_factory.mktemp("drift") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(components.TRANSFORMER, "num_layers", 1)
        patch.setitem(components.VAE, "base_dim", 4)
        patch.setitem(components.VAE, "num_res_blocks", 1)
        for name, value in dict(height=48, width=64, num_frames=9, steps=2).items():
            patch.setitem(components.SETTINGS, name, value)
        components.save_components(components.new_components(0, caption_count=40), folder)
    return folder


def tiny(model: Path, **changes: object) -> Experiment:
    fields = {
        "name": "tiny",
        "model": str(model),
        "scenes": {"standing": Scene(num_objects=1)},
        "arms": {"base": Arm(), "truth": Arm(source="truth", preset="film")},
        "worlds": 2,
        "clips": 2,
        "sheets": 1,
    }
    return Experiment(**{**fields, **changes})  # type: ignore[arg-type]


def stamps(out: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in out.rglob("*.json") if path.name != "results.json"}


# -- what is compared ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_built_in_experiments_survive_their_file(name, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(load_experiment(name).to_yaml())
    assert load_experiment(str(path)) == load_experiment(name)


def test_the_main_experiment_is_paired_and_whole():
    experiment = load_experiment("main")
    assert (experiment.worlds_in("standing"), experiment.worlds_in("panning"), experiment.clips) == (64, 16, 50)
    assert ("shot", "shot-control") in experiment.pairs
    assert all(name in experiment.arms for pair in experiment.pairs for name in pair)
    cut = experiment.cut(worlds=2, arms=("base", "shot"))
    assert cut.pairs == (("shot", "base"),)
    made = [cell for cell in cells(cut) if cell.kind == "clips"]
    assert len(made) == len({str(cell) for cell in made}) == 2 * 2 * 2, "arms x scenes x worlds"
    assert len({cell.world for cell in made if cell.scene == "panning"}) == 2


MISTAKES = [
    ("arms: {a: {}}\nscenes: {s: {}}\nworld: 3", "unknown key 'world': did you mean 'worlds'?"),
    ("arms: {a: {presets: shot}}\nscenes: {s: {}}", "unknown key 'arms.a.presets': did you mean 'preset'?"),
    ("arms: {a: {preset: shoot}}\nscenes: {s: {}}", "arm a: unknown preset 'shoot': did you mean 'shot'?"),
    ("arms: {a: {preset: talk}}\nscenes: {s: {}}", "needs audio"),
    ("arms: {a: {}}\nscenes: {s: {camera: standing}}", "scene s: unknown camera 'standing'"),
    ("arms: {a: {}}\nscenes: {s: {}}\nclips: 0", "clips: Input should be greater than or equal to 1, not 0"),
    ("arms: {a: {}, b: {}}\nscenes: {s: {}}\npairs: [[a, c]]", "unknown arm 'c'"),
    ("arms: {a: {source: truth, loras: {x: 1}}}\nscenes: {s: {}}", "truth is no model"),
    ("- a", "holds no experiment"),
    ("a: [", "not valid YAML"),
]


@pytest.mark.parametrize(("text", "said"), MISTAKES)
def test_mistakes_in_a_file_are_named(text, said, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_experiment(str(path))
    assert said in str(error.value)


def test_wrong_arms_loras_and_experiments_are_refused(model, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text(tiny(model, arms={"base": Arm(), "erft": Arm(loras={"shot": 1.0})}).to_yaml())
    out = tmp_path / "out"
    calls = {
        (str(file), "--arms", "bass"): "tiny has no arm 'bass': did you mean 'base'?",
        (str(file), "--out", str(out)): "arm erft: unknown LoRA 'shot': there are none",
        ("mian",): "unknown experiment 'mian': did you mean 'main'?",
        ("nothing.yaml",): "cannot read nothing.yaml: No such file or directory",
        (str(file), "--arms", "base", "--model", "poket", "--out", str(out)): "poket",
    }
    for words, said in calls.items():
        assert main(["drift", *words]) == 2
        assert said in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(UserError, match="preset film overlaps 5 frames"):
        Window.of(Arm(preset="film"), Geometry(num_frames=5))
    assert main(["drift", str(file), "--arms", "base", "--print"]) == 0
    assert "erft" not in capsys.readouterr().out


# -- rollouts ------------------------------------------------------------------------------------------------------------


def test_worlds_are_held_out_different_and_alive():
    seeds = worlds(Scene(), 20, 0)
    assert min(seeds) >= HELD_OUT
    assert len(set(seeds)) == 20
    assert seeds[:5] == worlds(Scene(), 5, 0)
    assert not set(seeds) & set(worlds(Scene(), 20, 1))
    for seed in seeds[:5]:
        assert any(thing.velocity != (0, 0) for thing in world_of(Scene(), seed, WINDOW, 2).state(0.0).objects)


def test_a_clip_begins_where_its_beat_begins():
    """Whatever the overlap: the prompt of clip k is the caption of the beat that its window starts with."""
    world = world_of(Scene(events=True), worlds(Scene(events=True), 1, 0)[0], WINDOW, 4)
    assert world.beat_s == 0.75
    frames = [
        frames
        for (frames,) in clips_of(Arm(source="truth", preset="film"), [world], WINDOW, 4, seeds=[0], backend=None)
    ]
    assert [len(each) for each in frames] == [17, 12, 12, 12]
    assert (np.concatenate(frames) == world.clip(0.0, 53)).all()
    info = type("Info", (), {"defaults": {"steps": 7}})()
    plans = [plan(Arm(guidance=2.5, seed_stride=0), info, world, WINDOW, k, 9) for k in range(3)]  # type: ignore[arg-type]
    assert [each.prompt for each in plans] == [world.caption(k) for k in range(3)]
    assert [(each.seed, each.steps, each.guidance, each.shift) for each in plans] == [(9, 7, 2.5, 5.0)] * 3
    assert policy_of(Arm()).seed_stride == 42


def test_without_events_everything_goes_on_as_it_began():
    scene = Scene(family="dancer")
    world = world_of(scene, worlds(scene, 1, 0)[0], WINDOW, 30)
    assert {world.beat(k).action for k in range(30)} == {world.beat(0).action}
    assert not any(world.beat(k).events for k in range(30))


def test_fakes_are_fakes():
    world = world_of(Scene(), worlds(Scene(), 1, 0)[0], WINDOW, 3)
    made = {
        name: [
            frames
            for (frames,) in clips_of(Arm(source=name, preset="film"), [world], WINDOW, 3, seeds=[0], backend=None)
        ]
        for name in ("copy-clips", "ping-pong", "copy-reference")
    }
    assert (made["copy-clips"][2] == made["copy-clips"][0][5:]).all()
    assert (made["ping-pong"][1] == made["ping-pong"][0][::-1][5:]).all()
    assert (made["copy-reference"][1] == world.render(0.0)).all()


# -- cells ---------------------------------------------------------------------------------------------------------------


def test_a_record_survives_its_file_and_half_a_file_is_none(tmp_path):
    path = tmp_path / "cell.json"
    write_record(path, Record("abc", 2, 1.5, {"psnr": [30.0, float("nan")]}, (0, 1)))
    record = read_record(path)
    assert record is not None
    assert record.curve("psnr", 2) == pytest.approx([30, np.nan], nan_ok=True)
    assert record.pictured == (0, 1)
    path.write_bytes(path.read_bytes()[:20])
    assert read_record(path) is None
    assert read_record(tmp_path / "none.json") is None


def test_fingerprints_see_what_matters(model):
    def of(**arm: object) -> str:
        return fingerprints(tiny(model, arms={"base": Arm(**arm)}))["standing", "base"]  # type: ignore[arg-type]

    assert of() == of(scenes=("standing",))
    assert len({of(), of(preset="shot"), of(steps=3), of(guidance=0.5), of(seed_stride=0), of(source="vae")}) == 6


def test_sheets_show_few_clips():
    assert pictured_clips(6) == (0, 1, 4, 5)
    assert len(pictured_clips(500)) == 9


def stop_after(count: int):
    """Raises as Ctrl-C does when ``count`` cells are finished."""
    seen = []

    def watch(tick: Tick) -> None:
        seen.append(tick)
        if sum(each.line is not None for each in seen) > count:
            raise KeyboardInterrupt

    return watch


def test_an_experiment_stops_goes_on_and_tells(model, tmp_path):
    experiment, out = (
        tiny(model, gain=Gain(worlds=1, kinds=("colour", "own"), sizes=(8.0,)), videos=1),
        tmp_path / "out",
    )
    with pytest.raises(KeyboardInterrupt):
        run(experiment, out, watch=stop_after(1))
    first = stamps(out)
    assert len(first) == 2, "the worlds of an arm are made together"
    write_results(experiment, out)
    assert "Unfinished" in (out / "results.md").read_text()
    ticks: list[Tick] = []
    run(experiment, out, watch=ticks.append)
    assert ticks[0].line == "3 cells to make, 2 there already"
    assert ticks[-1].done == pytest.approx(1.0)
    assert {path: stamp for path, stamp in stamps(out).items() if path in first} == first
    text = write_results(experiment, out)
    results = json.loads((out / "results.json").read_text())
    arms = results["scenes"]["standing"]["arms"]
    assert arms["truth"]["worlds"] == arms["base"]["worlds"] == 2
    assert arms["truth"]["end"]["psnr"]["mean"] == 60
    assert arms["base"]["end"]["psnr"]["mean"] < 30
    assert arms["base"]["curves"]["psnr"]["n"] == [2, 2]
    difference = results["scenes"]["standing"]["differences"][0]
    assert difference["arms"] == ["truth", "base"]
    assert difference["end"]["psnr"]["low"] > 20
    assert results["scenes"]["standing"]["error_gain"]["base"]["colour-8"]["in"]["mean"] == pytest.approx(8, abs=1)
    for word in (
        "| truth |",
        "background PSNR (dB)",
        "truth − base",
        "Error gain",
        "![drift in standing](standing.svg)",
    ):
        assert word in text
    with Image.open(out / "standing-0.png") as sheet:
        assert sheet.width > 2 * 2 * 64
    assert (out / "videos" / "standing-0-base.mp4").stat().st_size > 500
    assert not list(out.glob("standing-1.png"))
    before = stamps(out)
    run(experiment.cut(clips=1), out)
    assert stamps(out) == before, "longer cells serve for fewer clips"
    assert gather(experiment.cut(clips=1), out)["standing"].arms["truth"]["psnr"].shape == (2, 1)
    with pytest.raises(UserError, match="made with other weights, settings or measures"):
        run(tiny(model, arms={"base": Arm(steps=1)}), out)
    assert stamps(out) == before


def test_the_same_cell_is_the_same_again(model, tmp_path):
    experiment = tiny(model, worlds=1, arms={"base": Arm(preset="pro"), "copy": Arm(preset="pro")})
    run(experiment, tmp_path)
    values = [gather(experiment, tmp_path)["standing"].arms[name] for name in ("base", "copy")]
    assert all((np.nan_to_num(values[0][name]) == np.nan_to_num(values[1][name])).all() for name in values[0])
    assert set(values[0]) <= set(MEASURES)


def test_killed_processes_leave_whole_cells_and_no_orphans(model, tmp_path):
    """SIGKILL to a run of two processes: what is finished is whole, the rest is made by the next call."""
    arms = {name: Arm(source=name) for name in ("truth", "copy-clips")}  # type: ignore[arg-type]
    experiment, out = tiny(model, arms=arms, worlds=4, clips=3), tmp_path / "out"
    file = tmp_path / "mine.yaml"
    file.write_text(experiment.to_yaml())
    words = [sys.executable, "-m", "svi.cli", "drift", str(file), "--out", str(out), "--jobs", "2"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=dict(os.environ))
    wait_for(lambda: stamps(out) or process.poll() is not None)
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr and process.stderr.read()
    wait_for(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))
    finished = stamps(out)
    assert all(read_record(Path(path)) is not None for path in finished)
    run(experiment, out)
    assert {path: stamp for path, stamp in stamps(out).items() if path in finished} == finished
    seeds = worlds(experiment.scenes["standing"], 4, 0)
    wanted = {str(Cell("standing", arm, seed, i).path(out)) for arm in experiment.arms for i, seed in enumerate(seeds)}
    assert set(stamps(out)) == wanted


def wait_for(condition, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
