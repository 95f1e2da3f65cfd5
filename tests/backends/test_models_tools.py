"""svi models list, check and convert, on tiny models."""

import argparse
import hashlib
import json
import os
from types import SimpleNamespace

import pytest
import torch
from models_tiny import SIGMA, condition, copy_of, draw, parts, write_diffusers, write_loose, write_official
from safetensors.torch import load_file

from svi.backends import models_convert, models_hashes
from svi.backends.models_check import check
from svi.backends.models_convert import convert
from svi.backends.wan import load_backend
from svi.cli import models
from svi.errors import UserError


@pytest.fixture(scope="module")
def tiny():
    return {kind: parts(kind) for kind in ("2.1", "a14b", "5b")}


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory):
    home = tmp_path_factory.mktemp("tools")
    return {
        "official": write_official(home / "official", tiny["a14b"]),
        "diffusers": write_diffusers(home / "diffusers", tiny["a14b"]),
        "loose": write_loose(home / "loose", tiny["2.1"]),
        "5b": write_official(home / "5b", tiny["5b"]),
    }


@pytest.fixture
def command(capsys):
    """``command("check", FOLDER)`` runs a verb of ``svi models``."""

    def call(*words):
        parser = argparse.ArgumentParser()
        models.add_words(parser)
        capsys.readouterr()
        code = models.run(parser.parse_args([str(word) for word in words]))
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call


# -- list and check ----------------------------------------------------------------------------------------------------


def test_list_names_what_every_preset_needs(command):
    from svi.conditioning.policy import PRESETS

    rows = json.loads(command("list", "--json").out)
    assert {row["preset"] for row in rows} == set(PRESETS)
    pro = next(row for row in rows if row["preset"] == "pro")
    assert (pro["model"], {lora["side"] for lora in pro["loras"]}) == ("wan2.2-i2v-a14b", {"high", "low"})
    assert pro["size_bytes"] > 120e9
    text = command("list", "--preset", "film-opt").out
    assert "svi-film-opt-10212025" in text
    assert "16,394,878,784 parameters" in text
    with pytest.raises(UserError, match="did you mean 'film'"):
        command("list", "--preset", "flim")


@pytest.mark.parametrize("kind", ["official", "diffusers", "loose", "5b"])
def test_a_whole_model_passes(folders, command, kind):
    done = command("check", folders[kind])
    assert (done.code, "whole" in done.out) == (0, True)
    report = check(str(folders[kind]))
    assert [row.state for row in report.rows] == ["ok"] * len(report.rows)
    assert len(report.rows) == {"official": 4, "diffusers": 4, "loose": 4, "5b": 3}[kind]


def test_every_missing_and_damaged_file_is_named(folders, tmp_path, command):
    folder = copy_of(folders["official"], tmp_path / "m")
    (folder / "Wan2.1_VAE.pth").unlink()
    low = folder / "low_noise_model" / "diffusion_pytorch_model.safetensors"
    low.write_bytes(low.read_bytes()[:-10])
    (folder / "google" / "umt5-xxl" / "tokenizer.json").unlink()
    done = command("check", folder)
    assert done.code == 2
    for word in (
        "VAE.pth is missing",
        "low_noise_model/diffusion_pytorch_model.safetensors is damaged",
        "tokenizer.json",
    ):
        assert word in done.out
    assert json.loads(command("check", folder, "--json").out)["problems"]


def test_all_missing_shards_are_named(folders, tmp_path):
    folder = copy_of(folders["diffusers"], tmp_path / "m")
    place = folder / "transformer_2"
    names = [f"diffusion_pytorch_model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)]
    (place / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict(zip("abc", names, strict=True))})
    )
    problems = check(str(folder)).problems
    assert all(any(name in problem for problem in problems) for name in names)


def test_shards_of_two_downloads_are_told(folders, tmp_path):
    folder = copy_of(folders["diffusers"], tmp_path / "m")
    place = folder / "vae"
    stored = load_file(place / "diffusion_pytorch_model.safetensors")
    weight_map = dict.fromkeys(stored, "diffusion_pytorch_model.safetensors") | {
        "nobody.has.this": "diffusion_pytorch_model.safetensors"
    }
    (place / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert any("lists nobody.has.this" in problem for problem in check(str(folder)).problems)


def test_the_remedy_is_a_command(published_headers, tmp_path):
    """For what is known to be a published model."""
    report = published_headers
    from svi.backends.models_check import _mend, published

    assert published(report).name == "wan2.1-i2v-720p"
    line = _mend(f"{report.folder}/x-00002.safetensors is missing: fetch the file again", report)
    assert (
        line
        == f' (hf download Wan-AI/Wan2.1-I2V-14B-720P --include "x-00002.safetensors*" --local-dir {report.folder})'
    )


@pytest.fixture
def published_headers():
    from svi.backends.models_check import Report

    return Report("m", "/weights/Wan2.1-I2V-14B-720P", "official", title="Wan2.1-I2V-14B")


def test_one_file_is_told_by_its_header(kit, command, tmp_path):
    assert "Wan 2.1 VAE" in command("check", kit / "Wan2.1_VAE.pth").out
    (tmp_path / "x.safetensors").write_bytes(b"no")
    done = command("check", tmp_path / "x.safetensors")
    assert (done.code, "damaged" in done.out) == (2, True)


def test_check_never_loads_tensors(folders, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("svi.backends.fp8.tensors", refuse)
    monkeypatch.setattr("svi.backends.models_parts.tensors", refuse)
    assert not check(str(folders["diffusers"])).problems


# -- convert -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["official", "loose", "5b"])
def test_a_converted_model_computes_the_same_bits(folders, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(models_convert, "SHARD_BYTES", 10**9)
    done = convert(str(folders[kind]), tmp_path / "new", dtype="fp32", shard_bytes=200_000)
    assert (tmp_path / "new/transformer/diffusion_pytorch_model.safetensors.index.json").is_file()
    assert not check(str(done.folder)).problems
    before, after = (load_backend(str(f), device="cpu", dtype="fp32") for f in (folders[kind], done.folder))
    channels = before.geometry.latent_channels
    given, noisy = condition(channels, image=kind == "loose"), draw(1, 1, channels, 3, 4, 6)
    for sigma in SIGMA.values():
        assert torch.equal(before.velocity(noisy, sigma, given), after.velocity(noisy, sigma, given))
    assert before.geometry == after.geometry
    assert torch.equal(before.encode_text(["a cat"]), after.encode_text(["a cat"]))


def test_bf16_keeps_in_fp32_what_the_reference_keeps(folders, tmp_path):
    convert(str(folders["official"]), tmp_path / "new", dtype="bf16")
    stored = load_file(tmp_path / "new/transformer_2/diffusion_pytorch_model.safetensors")
    assert stored["blocks.0.attn1.to_q.weight"].dtype == torch.bfloat16
    assert stored["blocks.0.scale_shift_table"].dtype == torch.float32
    assert {v.dtype for v in load_file(tmp_path / "new/vae/diffusion_pytorch_model.safetensors").values()} == {
        torch.float32
    }
    index = json.loads((tmp_path / "new/model_index.json").read_text())
    assert (index["boundary_ratio"], index["image_encoder"]) == (0.9, [None, None])


def test_the_parts_load_in_diffusers_itself(folders, tmp_path):
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    convert(str(folders["5b"]), tmp_path / "new", dtype="fp32")
    for kind, name in ((WanTransformer3DModel, "transformer"), (AutoencoderKLWan, "vae")):
        module, told = kind.from_pretrained(tmp_path / "new", subfolder=name, output_loading_info=True)
        assert not told["missing_keys"]
        assert not told["unexpected_keys"]
        assert not any(value.is_meta for value in module.parameters())


def test_convert_refuses_what_it_cannot_do(folders, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="exists already"):
        convert(str(folders["official"]), tmp_path)
    with pytest.raises(UserError, match="did you mean 'bf16'"):
        convert(str(folders["official"]), tmp_path / "new", dtype="bf61")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="GB free"):
        convert(str(folders["official"]), tmp_path / "new")
    assert not any(tmp_path.iterdir())


# -- hashes ------------------------------------------------------------------------------------------------------------


def test_hashes_of_large_files_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(models_hashes, "LARGE", 10)
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"a" * 100)
    os.utime(path, ns=(1, 1))
    first = models_hashes.sha256(path)
    assert first == hashlib.sha256(b"a" * 100).hexdigest()
    models_hashes._sha256.cache_clear()  # another process
    path.write_bytes(b"b" * 100)
    os.utime(path, ns=(1, 1))
    assert models_hashes.sha256(path) == first  # known by name, size and time
    os.utime(path, ns=(2, 2))
    assert models_hashes.sha256(path) == hashlib.sha256(b"b" * 100).hexdigest()
    for damage in (b"{", b"[]", b"\xff"):
        models_hashes.memory().write_bytes(damage)
        models_hashes._sha256.cache_clear()
        assert models_hashes.sha256(path) == hashlib.sha256(b"b" * 100).hexdigest()
