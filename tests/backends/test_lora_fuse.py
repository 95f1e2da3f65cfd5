"""LoRAs in the weights of a loaded model: what merged files compute, strengths that stay, and who keeps them apart."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from lora_files import PUBLISHED, SIGMA, diffusers, pairs_for, pocket_inputs, save

import svi
from svi.backends.lora_fuse import fuse_loras
from svi.backends.lora_merge import merge
from svi.backends.placement import choose
from svi.backends.wan import load_backend
from svi.errors import UserError
from svi.generation.storyboard import parse_storyboard

MERGED = {"speed": "balanced", "compile": False}


@pytest.fixture(scope="module")
def loras(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("loras")
    return {
        name: save(folder / f"{name}.safetensors", diffusers(pairs_for(model_folder, seed=seed)))
        for seed, name in enumerate(("film", "light"))
    }


def velocity(backend: svi.Backend) -> torch.Tensor:
    noisy, condition = pocket_inputs()
    with torch.inference_mode():
        return backend.velocity(noisy, SIGMA, condition)


def test_balanced_merges_and_says_so(model_folder: Path, loras: dict[str, Path]):
    specs, said = [f"{loras['film']}:0.5", f"{loras['light']}:-1"], list[str]()
    merged = load_backend(str(model_folder), loras=specs, device="cpu", progress=said.append, **MERGED)
    beside = load_backend(str(model_folder), loras=specs, device="cpu")
    assert any("LoRAs merged into" in line and "film at 0.5, light at -1" in line for line in said)
    assert not any("lora_" in name for name, _ in merged.transformer.named_parameters())
    plain = velocity(load_backend(str(model_folder), device="cpu"))
    assert (velocity(merged) - plain).abs().max() > 1e-3
    torch.testing.assert_close(velocity(merged), velocity(beside), rtol=1e-4, atol=1e-5)
    assert merged.info == beside.info  # a run remembers the same


def test_it_is_what_merged_files_are(model_folder: Path, loras: dict[str, Path], tmp_path: Path):
    spec = f"{loras['film']}:0.7"
    merge(str(model_folder), [spec], tmp_path / "merged")
    files = load_backend(str(tmp_path / "merged"), device="cpu")
    here = load_backend(str(model_folder), loras=[spec], device="cpu", **MERGED)
    for name, value in files.transformer.state_dict().items():
        assert torch.equal(value, here.transformer.state_dict()[name]), name


def test_bf16_is_rounded_once(model_folder: Path, loras: dict[str, Path]):
    specs = [str(loras["film"]), str(loras["light"])]
    said: list[str] = []
    rounded = load_backend(str(model_folder), loras=specs, device="cpu", dtype="bf16", progress=said.append, **MERGED)
    exact = load_backend(str(model_folder), loras=specs, device="cpu", dtype="fp32", **MERGED)
    (line,) = (line for line in said if "LoRAs merged into" in line)
    assert 0 < float(line.rpartition("rounding costs ")[2].partition("%")[0]) < 20
    wanted = exact.transformer.blocks[0].attn1.to_q.weight
    base = load_backend(str(model_folder), device="cpu", dtype="fp32").transformer.blocks[0].attn1.to_q.weight
    change = wanted - base
    once = (base.bfloat16().float() + change).bfloat16()
    # ``change`` is a difference of fp32 numbers, and so may be off where it decides a rounding.
    assert (rounded.transformer.blocks[0].attn1.to_q.weight == once).float().mean() > 0.99


def test_strengths_stay(model_folder: Path, loras: dict[str, Path]):
    backend = load_backend(str(model_folder), loras=[f"{loras['film']}:0.5"], device="cpu", **MERGED)
    backend.set_lora_strengths({"film": 0.5})
    backend.set_lora_strengths({})
    with pytest.raises(UserError, match="merged into the weights at strength 0.5 and cannot be 1"):
        backend.set_lora_strengths({"film": 1.0})
    with pytest.raises(UserError, match="'flim' is not loaded: did you mean 'film'"):
        backend.set_lora_strengths({"flim": 0.5})


def test_quantised_weights_keep_them_apart_and_say_so(model_folder: Path, loras: dict[str, Path]):
    said: list[str] = []
    spec = str(loras["film"])
    backend = load_backend(
        str(model_folder), loras=[spec], device="cpu", quantise="fp8", progress=said.append, **MERGED
    )
    assert any("LoRAs beside the weights: weights stored as fp8" in line for line in said)
    backend.set_lora_strengths({"film": 0.3})


@pytest.mark.parametrize("preset", ["reference", "balanced", "draft"])
def test_presets_and_the_knob(preset: str):
    assert choose("cpu", speed=preset).speed.merge_loras is (preset != "reference")
    assert choose("cpu", speed=preset, merge_loras=True).speed.merge_loras
    assert not choose("cpu", speed=preset, merge_loras=False).speed.merge_loras


def test_what_does_not_fit_is_refused(model_folder: Path, loras: dict[str, Path], tmp_path: Path):
    with pytest.raises(UserError, match="does not fit this model"):
        load_backend(str(model_folder), loras=[str(PUBLISHED)], device="cpu", **MERGED)
    with pytest.raises(UserError, match="two LoRAs are called 'film'"):
        load_backend(str(model_folder), loras=[str(loras["film"])] * 2, device="cpu", **MERGED)
    backend = load_backend(str(model_folder), device="cpu", dtype="fp16")
    huge = {name: value * 1e4 for name, value in diffusers(pairs_for(model_folder)).items()}
    from svi.backends.lora import parse_spec

    with pytest.raises(UserError, match="leaves the range of float16"):
        fuse_loras(backend.transformer, [parse_spec(str(save(tmp_path / "huge.safetensors", huge)))])


STORY = """
scenes:
  - beats:
      - {prompt: a, loras: {film: 0.5}}
      - {prompt: b}
"""


def test_strengths_of_beats_keep_them_apart_for_good(
    model_folder: Path, loras: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    picture = torch.full((32, 48, 3), 120, dtype=torch.uint8).numpy()
    said: list[str] = []
    machine = {"device": "cpu", "on_event": lambda event: said.append(str(getattr(event, "message", ""))), **MERGED}
    local = shutil.copy(loras["film"], tmp_path / "film.safetensors")
    options = {"model": model_folder, "loras": [str(local)], "steps": 1, **machine}
    run = svi.generate(picture, parse_storyboard(STORY), out="run", **options)
    assert run.settings.speed == "balanced+compile=False+merge_loras=False"
    assert "LoRAs beside the weights: the strength of film changes from beat to beat" in said
    assert svi.extend(run, clips=1).count == 3  # nothing is said: as its clips were made
    with pytest.raises(svi.UserError, match="LoRAs cannot be merged, the strength of film changes"):
        svi.generate(picture, parse_storyboard(STORY), out="no", merge_loras=True, **options)
    settled = svi.generate(picture, ["a", "b"], out="settled", clips=1, **options)
    assert settled.settings.speed == "balanced+compile=False"
    with pytest.raises(svi.UserError, match="merged into the weights: leave it as it is, or go on with `svi branch"):
        settled.edit(parse_storyboard(STORY))
    twig = svi.branch(settled, 1, parse_storyboard(STORY), out="twig", clips=2)
    assert twig.settings.speed == "balanced+compile=False+merge_loras=False"
