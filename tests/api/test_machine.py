"""How a model runs, from Python: knobs reach the model and the run, and a run goes on as it was made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import svi
from svi.generation.manifest import run_running
from svi.options import Machine, place_of
from svi.prepare import ModelChoice

OTHER = "_native_math"


@pytest.fixture
def image() -> Image.Image:
    return Image.radial_gradient("L").resize((48, 32)).convert("RGB")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def plain(model_folder: Path) -> svi.Backend:
    return svi.load(model_folder, device="cpu")


def frames(run: svi.Run) -> list[str]:
    return [clip.frames_sha256 for clip in run.clips()]


def test_a_cpu_decides_nothing_unasked(model_folder):
    choice = ModelChoice(str(model_folder), device="cpu")
    assert choice.place == {"device": "cpu", "dtype": None, "allow_download": False, "text_cache": None}
    asked = ModelChoice(str(model_folder), device="cpu", running={"speed": "balanced"}).place
    assert (asked["memory"], asked["speed"]) == ("resident", "balanced")
    assert asked["window"].num_frames == 9  # the model's own, where no run says otherwise


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_chooses_a_memory_profile(model_folder):
    said: list[str] = []
    svi.load(model_folder, on_event=lambda event: said.append(getattr(event, "message", "")))
    assert ModelChoice(str(model_folder)).place["memory"] == "auto"
    assert any(line.startswith("memory resident, estimated peak") for line in said)


def test_none_is_as_good_as_left_out():
    options: Machine = {"device": "cpu", "memory": None, "speed": "draft"}
    assert dict(place_of(options).running) == {"speed": "draft"}


def test_knobs_reach_a_loaded_model_and_its_runs(model_folder, plain, image, home):
    loaded = svi.load(model_folder, device="cpu", attention=OTHER)
    run = svi.generate(image, "a ball", model=loaded, clips=1, steps=1, out="run")
    assert (run.settings.speed, run.settings.attention) == (f"reference+attention={OTHER}", OTHER)
    with pytest.raises(svi.UserError, match=rf"attention was '{OTHER}', is 'native'.*svi branch"):
        svi.extend(run, clips=1, model=plain)
    assert svi.extend(run, clips=1, model=loaded).count == 2
    twig = svi.branch(run, 1, model=plain)
    assert (twig.settings.speed, twig.settings.attention) == ("reference", "native")


def test_quantised_weights_change_pictures_and_stand_in_the_run(model_folder, plain, image, home):
    as_they_are = svi.generate(image, "a ball", model=plain, clips=1, out="plain")
    low = svi.generate(image, "a ball", model=model_folder, device="cpu", memory="low", clips=1, out="low")
    assert (as_they_are.settings.quantise, low.settings.quantise) == ("none", "fp8")
    assert frames(low) != frames(as_they_are)
    again = svi.retake(low, 0, seed=low.settings.seed)  # nothing is said: it runs as it did
    assert frames(again) == frames(low)
    with pytest.raises(svi.UserError, match="quantise was 'none', is 'fp8'"):
        svi.resume(as_they_are, device="cpu", quantise="fp8")


def test_a_preset_with_knobs_comes_back_from_a_record(plain, image, home):
    run = svi.generate(image, "a ball", model=plain, clips=1, steps=1, out="run")
    name = "draft+cache_threshold=0.2+compile=False"
    settings = run.settings.model_copy(update={"speed": name, "cache_threshold": 0.2, "quantise": "int8"})
    speed = run_running(settings, {})["speed"]
    assert (speed.name, speed.compile, speed.cache_threshold, speed.attention) == (name, False, 0.2, "native")
    assert run_running(settings, {"quantise": "none"})["quantise"] == "none"


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("memory", "offlaod", "did you mean 'offload'"),
        ("speed", "drafty", "did you mean 'draft'"),
        ("attention", "nativ", "did you mean 'native'"),
        ("quantise", "fp9", "fp8"),
        ("text", "ram", "not 'ram'"),
        ("cache_threshold", 2.0, "share between 0 and 1"),
    ],
)
def test_bad_values_are_refused_before_loading(model_folder, image, home, option, value, said):
    for call in (
        lambda **o: svi.load(model_folder, **o),
        lambda **o: svi.generate(image, "a", model=model_folder, **o),
    ):
        with pytest.raises(svi.UserError, match=said) as refused:
            call(device="cpu", **{option: value})
        assert "\n" not in str(refused.value)
    assert not list(home.iterdir())


def test_unknown_knobs_name_the_nearest(model_folder):
    with pytest.raises(TypeError, match="'memroy': did you mean 'memory'"):
        svi.load(model_folder, memroy="low")
