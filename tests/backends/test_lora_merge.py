"""A LoRA in the weights does what it does beside them; two models give it back; what training saves loads again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from lora_files import (
    KIT,
    PUBLISHED,
    SIGMA,
    TARGETS,
    comfyui,
    diffusers,
    draw,
    official,
    pairs_for,
    pocket_inputs,
    save,
)
from peft import LoraConfig
from safetensors.torch import load_file

from svi.backends.lora_base import base_weights, weights_sha256
from svi.backends.lora_extract import extract, low_rank
from svi.backends.lora_merge import merge
from svi.backends.lora_read import LoraMetadata, read
from svi.backends.lora_tools import convert, info
from svi.backends.lora_write import save_lora
from svi.backends.wan import load_backend
from svi.cli import main
from svi.errors import UserError


def velocity(model: object, loras=(), adapt=lambda backend: None):
    backend = load_backend(str(model), loras=loras, device="cpu", dtype="fp32")
    adapt(backend)
    return backend.velocity(pocket_inputs()[0], SIGMA, pocket_inputs()[1])


@pytest.fixture(scope="module")
def film(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    metadata = LoraMetadata(preset="film", base="random", base_sha256=weights_sha256(model_folder))
    path = tmp_path_factory.mktemp("loras") / "film.safetensors"
    save_lora(path, diffusers(pairs_for(model_folder)), metadata)
    return path


@pytest.fixture(scope="module")
def style(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pairs = pairs_for(model_folder, rank=2, seed=1, targets=["attn1.to_q", "attn2.add_k_proj"])
    return save(tmp_path_factory.mktemp("loras") / "style.safetensors", comfyui(pairs, alpha=1.0))


@pytest.fixture(scope="module")
def merged(model_folder: Path, film: Path, style: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "model"
    report = merge(str(model_folder), [f"{film}:0.8", f"{style}:-0.5"], out, shard_bytes=500_000)
    assert (report.changed, report.dtype) == (6, "float32")
    assert report.rounding < 1e-6
    return out


# -- merge -------------------------------------------------------------------------------------------------------------


def test_merged_equals_attached(model_folder: Path, merged: Path, film: Path, style: Path):
    wanted = velocity(model_folder, [f"{film}:0.8", f"{style}:-0.5"])
    assert (wanted - velocity(model_folder)).abs().max() > 1e-3
    torch.testing.assert_close(velocity(merged), wanted, rtol=0, atol=2e-5)


def test_merged_pocket_model_equals_attached(tmp_path: Path):
    from svi.backends.weights import find_model

    lora = save(tmp_path / "one.safetensors", diffusers(pairs_for(find_model("pocket"), rank=8)))
    report = merge("pocket", [str(lora)], tmp_path / "model")
    assert 0 < report.rounding < 0.05  # its weights are stored in fp16
    wanted, plain = velocity("pocket", [str(lora)]), velocity("pocket")
    difference = (velocity(tmp_path / "model") - wanted).norm() / (wanted - plain).norm()
    assert difference < 0.05


def test_merged_folder_is_whole_and_says_what_it_is(model_folder: Path, merged: Path, film: Path):
    weights = base_weights(merged)
    assert len(weights.files) > 1
    assert weights.shapes == base_weights(model_folder).shapes
    settings = json.loads((merged / "svi.json").read_text())
    assert settings["num_frames"] == json.loads((model_folder / "svi.json").read_text())["num_frames"]
    first, second = settings["merged"]
    assert (first["name"], first["strength"], first["preset"]) == ("film", 0.8, "film")
    assert second["base_sha256"] == weights_sha256(model_folder)
    assert not [path for path in merged.parent.iterdir() if path.name.startswith(".")]


def test_the_hash_of_weights_does_not_depend_on_their_files(
    model_folder: Path, merged: Path, style: Path, tmp_path: Path
):
    merge(str(model_folder), [f"{style}:0"], tmp_path / "same", shard_bytes=300_000)
    assert weights_sha256(tmp_path / "same") == weights_sha256(model_folder) != weights_sha256(merged)


def test_nothing_is_merged_or_attached_twice(model_folder: Path, merged: Path, film: Path, tmp_path: Path):
    convert(str(film), tmp_path / "renamed.safetensors", "comfyui")
    for lora in (film, tmp_path / "renamed.safetensors"):
        with pytest.raises(UserError, match="is merged into .* already"):
            merge(str(merged), [str(lora)], tmp_path / "no")
        with pytest.raises(UserError, match="is merged into .* already"):
            load_backend(str(merged), loras=[str(lora)], device="cpu")
    with pytest.raises(UserError, match="is given twice"):
        merge(str(model_folder), [str(film), str(tmp_path / "renamed.safetensors")], tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_lora_of_other_weights_needs_consent(model_folder: Path, merged: Path, tmp_path: Path):
    stated = LoraMetadata(base="random", base_sha256=weights_sha256(model_folder))
    save_lora(tmp_path / "next.safetensors", diffusers(pairs_for(model_folder, seed=5)), stated)
    merge(str(merged), [str(tmp_path / "next.safetensors")], tmp_path / "both")  # merged from the same weights
    save_lora(
        tmp_path / "far.safetensors",
        diffusers(pairs_for(model_folder, seed=6)),
        stated.model_copy(update={"base_sha256": "0123456789abcdef"}),
    )
    with pytest.raises(UserError, match=r"trained on random \(weights 0123456789ab\).*--any-base"):
        merge(str(model_folder), [str(tmp_path / "far.safetensors")], tmp_path / "no")
    merge(str(model_folder), [str(tmp_path / "far.safetensors")], tmp_path / "yes", any_base=True)
    assert info(str(tmp_path / "far.safetensors"), model=str(model_folder)).base == "other weights"


def test_whole_tensor_differences_are_added(model_folder: Path, tmp_path: Path):
    pairs = pairs_for(model_folder)
    change = {
        "blocks.0.attn1.to_q.bias": ("blocks.0.self_attn.q.diff_b", draw(1, 192)),
        "blocks.0.scale_shift_table": ("blocks.0.diff_m", draw(2, 1, 6, 192)),
        "blocks.0.norm2.weight": ("blocks.0.norm3.diff", draw(3, 192)),
    }
    state = comfyui(pairs) | {f"diffusion_model.{key}": value for key, value in change.values()}
    lora = save(tmp_path / "distilled.safetensors", state)
    with pytest.raises(UserError, match="3 whole tensors .*svi lora merge"):
        load_backend(str(model_folder), loras=[str(lora)], device="cpu")
    assert merge(str(model_folder), [f"{lora}:0.5"], tmp_path / "out").changed == len(pairs) + 3
    before, after = (
        load_file(next((f / "transformer").glob("*.safetensors"))) for f in (model_folder, tmp_path / "out")
    )
    for name, (_, value) in change.items():
        torch.testing.assert_close(after[name], before[name] + 0.5 * value)


def test_official_folder_stays_official(tmp_path: Path):
    report = merge(str(KIT), [str(PUBLISHED)], tmp_path / "out", shard_bytes=200_000)
    assert (report.changed, report.dtype) == (20, "bfloat16")
    assert 0 < report.rounding < 0.2
    before = {n: t for f in sorted(KIT.glob("diffusion*.safetensors")) for n, t in load_file(f).items()}
    after = {n: t for f in sorted((tmp_path / "out").glob("diffusion*.safetensors")) for n, t in load_file(f).items()}
    lora = load_file(PUBLISHED)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        stem = f"pipe.dit.{name.removesuffix('.weight')}"
        a, b = (lora.get(f"{stem}.lora_{side}.default.weight") for side in "AB")
        wanted = tensor if a is None or name.endswith("bias") else (tensor.float() + b @ a).bfloat16()
        assert torch.equal(after[name], wanted)
    assert (tmp_path / "out" / "Wan2.1_VAE.pth").is_file()


def test_values_beyond_the_type_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="leaves the range of bfloat16"):
        merge(str(KIT), [f"{PUBLISHED}:1e39"], tmp_path / "out")
    assert not any(tmp_path.iterdir())


# -- extract -----------------------------------------------------------------------------------------------------------


def test_extract_gives_back_what_was_merged(model_folder: Path, merged: Path, tmp_path: Path):
    report = extract(str(model_folder), str(merged), tmp_path / "found.safetensors", rank=6)
    assert report.energy > 0.99999
    assert len(report.modules) == 6
    assert (report.left_out, report.left_out_energy) == ((), 0.0)
    wanted = velocity(merged)
    torch.testing.assert_close(velocity(model_folder, [str(tmp_path / "found.safetensors")]), wanted, rtol=0, atol=1e-4)
    assert read(tmp_path / "found.safetensors").metadata.base_sha256 == weights_sha256(model_folder)


def test_extract_tells_what_it_loses(model_folder: Path, merged: Path, tmp_path: Path):
    less = extract(str(model_folder), str(merged), tmp_path / "2.safetensors", rank=2)
    assert 0.3 < less.energy < 0.95
    some = extract(str(model_folder), str(merged), tmp_path / "q.safetensors", rank=8, targets=["*.self_attn.q"])
    assert list(some.modules) == ["blocks.0.attn1.to_q"]
    assert len(some.left_out) == 5
    assert 0 < some.left_out_energy < 1
    with pytest.raises(UserError, match=r"matches no linear layer.*did you mean 'blocks\.0\.self_attn\.q'"):
        extract(str(model_folder), str(merged), tmp_path / "n.safetensors", rank=2, targets=["blocks.0.self_attn.qq"])
    with pytest.raises(UserError, match="do not differ at all"):
        extract(str(model_folder), str(model_folder), tmp_path / "n.safetensors", rank=2)
    with pytest.raises(UserError, match="lacks blocks"):
        extract(str(model_folder), "pocket", tmp_path / "n.safetensors", rank=2)


def test_randomised_decomposition_is_as_good_as_the_exact_one():
    spectrum = 0.9 ** torch.arange(200)
    left, right = (torch.linalg.qr(draw(seed, size, 200)).Q for seed, size in ((1, 400), (2, 300)))
    matrix = left * spectrum @ right.T
    a, b, kept = low_rank(matrix, 10, torch.Generator().manual_seed(0))
    assert (a.shape, b.shape) == ((10, 300), (400, 10))
    best = float(spectrum[10:].norm())
    assert float((matrix - b @ a).norm()) == pytest.approx(best, rel=1e-4)
    assert kept == pytest.approx(float(spectrum[:10].square().sum()), rel=1e-5)


# -- save --------------------------------------------------------------------------------------------------------------


def test_what_training_saves_loads_back(model_folder: Path, tmp_path: Path):
    out = tmp_path / "trained.safetensors"
    metadata = LoraMetadata(preset="shot", recipe="pocket-shot", details={"config": {"steps": 20}})

    def train(backend):
        transformer = backend.transformer
        transformer.add_adapter(LoraConfig(r=4, lora_alpha=6, target_modules=list(TARGETS)), adapter_name="svi")
        for index, (name, parameter) in enumerate(transformer.named_parameters()):
            if "lora_B" in name:
                parameter.data = 0.1 * draw(index, *parameter.shape)
        written = save_lora(out, transformer, metadata, adapter="svi")
        assert (written.rank, written.alpha, written.recipe) == (4, 6.0, "pocket-shot")
        with pytest.raises(UserError, match="no LoRA called 'default'; it has svi"):
            save_lora(tmp_path / "no.safetensors", transformer)

    with torch.no_grad():
        wanted = velocity(model_folder, adapt=train)
        torch.testing.assert_close(velocity(model_folder, [str(out)]), wanted, rtol=0, atol=2e-5)
        convert(str(out), tmp_path / "official.safetensors", "official")
        again = velocity(model_folder, [str(tmp_path / "official.safetensors")])
    torch.testing.assert_close(again, wanted, rtol=0, atol=2e-5)
    stated = read(tmp_path / "official.safetensors").metadata
    assert (stated.preset, stated.details["config"], stated.alpha) == ("shot", {"steps": 20}, 4.0)


def test_saving_refuses_contradictions_and_never_overwrites_unasked(model_folder: Path, tmp_path: Path):
    tensors, out = official(pairs_for(model_folder)), tmp_path / "x.safetensors"
    with pytest.raises(UserError, match="say rank 8, the tensors 4"):
        save_lora(out, tensors, LoraMetadata(rank=8))
    assert save_lora(out, tensors, LoraMetadata(alpha=2)).alpha == 2
    assert set(info(str(out)).scales) == {"0.5"}
    with pytest.raises(UserError, match="exists already"):
        save_lora(out, tensors)
    save_lora(out, tensors, replace=True)
    assert set(info(str(out)).scales) == {"1"}
    with pytest.raises(UserError, match="no LoRA"):
        save_lora(tmp_path / "y.safetensors", {})


# -- command line ------------------------------------------------------------------------------------------------------


def test_command_line(model_folder: Path, film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def svi(*words: object) -> tuple[int, str, str]:
        code = main(["lora", *map(str, words)])
        return code, *capsys.readouterr()

    code, out, err = svi("info", film, "--model", model_folder)
    assert (code, err) == (0, "")
    for part in (
        "format: diffusers",
        "rank: 4",
        "effective scale 1",
        "preset: film",
        "yes, every tensor",
        "same weights",
    ):
        assert part in out
    code, out, _ = svi("info", film, PUBLISHED, "--json")
    assert [one["format"] for one in json.loads(out)] == ["diffusers", "official"]
    code, _, err = svi("info", PUBLISHED, "--model", model_folder)
    assert (code, err.count("\n")) == (2, 1)
    assert "does not fit" in err
    comfy, model, found = tmp_path / "c.safetensors", tmp_path / "model", tmp_path / "f.safetensors"
    assert svi("convert", film, comfy, "--to", "comfyui", "--expert", "high")[0] == 0
    assert read(comfy).metadata.expert == "high"
    code, out, _ = svi("merge", model_folder, f"{comfy}:0.5", "--out", model, "--json")
    assert json.loads(out)["loras"][0]["strength"] == 0.5
    code, out, _ = svi("extract", model_folder, model, "--rank", 4, "--target", "*.attn1.*", "--out", found)
    assert code == 0
    assert "left out, for they are no chosen linear layers" in out
    shutil.rmtree(model)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inof", "x"], "did you mean 'info'"),
        (["info", "x.safetensors", "--modle", "y"], "did you mean '--model'"),
        (["info", "x.safetensors"], "x.safetensors is missing"),
        (["convert", "a.safetensors", "b.safetensors", "--to", "comfy"], "did you mean 'comfyui'"),
        (["convert", "a.safetensors", "b.safetensors", "--to", "official", "--preset", "flim"], "did you mean 'film'"),
        (["merge", "pocket", "x.safetensors"], "--out"),
        (["extract", "pocket", "pocket", "--rank", "0", "--out", "x"], "--rank must be at least 1"),
        ([], "VERB"),
    ],
)
def test_bad_words(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["lora", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
