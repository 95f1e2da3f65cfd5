"""Damaged and mismatched weight files: each gives one clear line, and none executes anything."""

import json
import pickle
import re
import shutil
import struct
from pathlib import Path

import pytest
import torch
from models_tiny import (
    CLIP_FILE,
    KIT,
    copy_of,
    newer_vae,
    official_dit,
    official_newer_vae,
    parts,
    transformer,
    write_diffusers,
    write_loose,
    write_official,
)
from safetensors.torch import load_file, save_file

from svi.backends.models_check import check
from svi.backends.wan import load_backend
from svi.errors import UserError

STEM = "diffusion_pytorch_model.safetensors"
HIGH, LOW = f"high_noise_model/{STEM}", f"low_noise_model/{STEM}"
T5, CLIP = "models_t5_umt5-xxl-enc-bf16.pth", CLIP_FILE
LOOSE = "diffusion_models/wan_high_noise.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("whole")
    made = {kind: parts(kind) for kind in ("2.1", "a14b", "5b")}
    return {
        "official": write_official(home / "official", made["a14b"]),
        "diffusers": write_diffusers(home / "diffusers", made["a14b"]),
        "loose": write_loose(home / "loose", {k: v for k, v in made["2.1"].items() if k != "transformer_2"}),
        "2.1": write_official(home / "2.1", made["2.1"]),
        "5b": write_official(home / "5b", made["5b"]),
    }


# -- ways to damage ----------------------------------------------------------------------------------------------------


class Marker:
    """Leaves a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def remove(name):
    def damage(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def cut(name, share=0.5):
    def damage(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return damage


def content(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def changed(name, change):
    """Change the tensors of a safetensors file."""

    def damage(folder):
        state = load_file(folder / name)
        change(state)
        save_file(state, folder / name)

    return damage


def poison(end, value=float("nan")):
    def change(state):
        name = next(name for name in state if name.endswith(end))
        state[name] = state[name].clone()
        state[name].view(-1)[-1] = value

    return change


def reshaped(end, shape):
    return lambda state: state.update({next(name for name in state if name.endswith(end)): torch.zeros(shape)})


def renamed_json(name, **changes):
    def damage(folder):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def pickled(name, raw=False):
    def damage(folder):
        state = {"encoder.conv1.weight": Marker(folder / "ran")}
        if raw:
            (folder / name).write_bytes(pickle.dumps(state))
        else:
            torch.save(state, folder / name)

    return damage


def replaced(name, state):
    return lambda folder: save_file(state(), folder / name)


def checkpoint(name, value):
    return lambda folder: torch.save(value() if callable(value) else value, folder / name)


def without(name, key):
    def damage(folder):
        state = torch.load(folder / name, weights_only=True)
        state.pop(next(found for found in state if found.endswith(key)))
        torch.save(state, folder / name)

    return damage


def integers(state):
    name = next(name for name in state if name.endswith("self_attn.q.weight"))
    state[name] = torch.zeros_like(state[name], dtype=torch.int8)


def wrong_scale(state):
    name = next(name for name in state if name.endswith("self_attn.q.weight"))
    state[name] = state[name].to(torch.float8_e4m3fn)
    state[name.removesuffix("weight") + "scale_weight"] = torch.ones(7)


def nvfp4(state):
    name = next(name for name in state if name.endswith("self_attn.q.weight"))
    state[name] = torch.zeros(96, 48, dtype=torch.uint8)
    state[f"{name}_scale_2"] = torch.ones(1)


FLUX = {"double_blocks.0.img_attn.qkv.weight": torch.zeros(2, 2)}
BOMB = struct.pack("<Q", 2**62) + b"{"
WEB_PAGE = b"<!DOCTYPE html><html>Access denied</html>" * 40
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
TEXT_TO_VIDEO = {"in_channels": 16}

DAMAGE = {
    # Wan 2.2, official layout
    "no low expert": ("official", remove("low_noise_model"), r"low_noise_model.*missing"),
    "no high expert": ("official", remove("high_noise_model"), r"high_noise_model.*missing"),
    "no config of an expert": (
        "official",
        remove("low_noise_model/config.json"),
        r"low_noise_model/config.json is missing",
    ),
    "expert cut": ("official", cut(LOW), r"low_noise_model/diffusion_pytorch_model.safetensors is damaged"),
    "expert cut by a byte": ("official", cut(LOW, 0.9999), r"low_noise_model/.*is damaged"),
    "expert a pointer": ("official", content(HIGH, POINTER), "git lfs pull"),
    "expert a web page": ("official", content(HIGH, WEB_PAGE), r"high_noise_model/.*is damaged"),
    "expert empty": ("official", content(HIGH, b""), r"high_noise_model/.*is damaged"),
    "header too large": ("official", content(HIGH, BOMB), r"high_noise_model/.*is damaged"),
    "pickle in its place": ("official", pickled(HIGH, raw=True), r"high_noise_model/.*is damaged"),
    "NaN in the high expert": ("official", changed(HIGH, poison("ffn.0.weight")), r"ffn.net.0.proj.weight holds NaN"),
    "infinity in the low expert": (
        "official",
        changed(LOW, poison("head.head.bias", float("inf"))),
        r"proj_out.bias holds NaN or infinity",
    ),
    "tensor missing": (
        "official",
        changed(LOW, lambda s: s.pop("head.head.bias")),
        r"low_noise_model lacks proj_out.bias",
    ),
    "tensor too many": (
        "official",
        changed(LOW, lambda s: s.update({"blocks.0.extra": torch.zeros(1)})),
        "blocks.0.extra",
    ),
    "a block too many": (
        "official",
        changed(LOW, lambda s: s.update({"blocks.2.modulation": torch.zeros(1, 6, 96)})),
        "low_noise_model lacks blocks.2",
    ),
    "wrong shape": (
        "official",
        changed(HIGH, reshaped("blocks.1.ffn.0.weight", (63, 96))),
        r"\(63, 96\), the config says",
    ),
    "audio-extended": (
        "official",
        changed(HIGH, lambda s: s.update({"blocks.0.audio_cross_attn.proj.weight": torch.zeros(1)})),
        "the MultiTalk extension",
    ),
    "experts of two models": (
        "official",
        replaced(LOW, lambda: official_dit(transformer(9, num_layers=1))),
        r"low_noise_model: its num_layers is 1, the other expert's 2",
    ),
    "text-to-video": (
        "2.1",
        replaced(STEM, lambda: official_dit(transformer(9, **TEXT_TO_VIDEO))),
        "text-to-video model; take the I2V one",
    ),
    "another model altogether": ("official", replaced(HIGH, lambda: FLUX), "not the weights of a Wan model"),
    "heads do not divide": ("official", renamed_json("low_noise_model/config.json", num_heads=7), "num_heads"),
    "VAE of the other kind": (
        "official",
        lambda f: torch.save(official_newer_vae(newer_vae()), f / "Wan2.1_VAE.pth"),
        "48 latent channels, the transformer 16",
    ),
    "VAE of 2.1 with TI2V": (
        "5b",
        lambda f: shutil.copy(KIT / "Wan2.1_VAE.pth", f / "Wan2.2_VAE.pth"),
        "of different models",
    ),
    "two VAEs": ("official", lambda f: shutil.copy(f / "Wan2.1_VAE.pth", f / "Other_VAE.pth"), "matches 2 files"),
    "no VAE": ("5b", remove("Wan2.2_VAE.pth"), r"VAE.pth is missing"),
    "VAE lacks a tensor": ("official", without("Wan2.1_VAE.pth", "conv2.bias"), "lacks post_quant_conv.bias"),
    "VAE with code": ("official", pickled("Wan2.1_VAE.pth"), r"Wan2.1_VAE.pth is damaged"),
    "VAE raw pickle": ("official", pickled("Wan2.1_VAE.pth", raw=True), r"Wan2.1_VAE.pth is damaged"),
    "text encoder with code": ("official", pickled(T5), r"models_t5.*is damaged"),
    "text encoder cut": ("official", cut(T5), r"models_t5.*is damaged"),
    "text encoder a list": ("official", checkpoint(T5, [1, 2]), "other than named tensors"),
    "text encoder of another size": ("official", remove("config-encoders.json"), r"they do not fit"),
    "text encoder lacks a tensor": ("official", without(T5, "norm.weight"), r"lacks encoder"),
    "no tokenizer": ("official", remove("google"), "umt5-xxl has no tokenizer.json"),
    "no image encoder": ("2.1", remove(CLIP), r"models_clip_\*\.pth is missing"),
    "image encoder with code": ("2.1", pickled(CLIP), r"models_clip.*is damaged"),
    "image encoder cut": ("2.1", cut(CLIP), r"models_clip.*is damaged"),
    # single files
    "no VAE among the files": ("loose", remove("vae"), r"lacks the VAE"),
    "no text encoder among the files": ("loose", remove("text_encoders"), r"lacks the text encoder"),
    "no image encoder among the files": ("loose", remove("clip_vision"), r"lacks the CLIP image encoder"),
    "VAE twice": (
        "loose",
        lambda f: shutil.copy(f / "vae/wan_2.1_vae.safetensors", f / "vae/b.safetensors"),
        "2 times",
    ),
    "a foreign transformer": ("loose", replaced(LOOSE, lambda: FLUX), r"no Wan transformer among its files.*Flux"),
    "a LoRA in its place": (
        "loose",
        lambda f: shutil.copy(KIT / "lora-official-names.safetensors", f / LOOSE),
        r"wan_high_noise.safetensors \(a LoRA\)",
    ),
    "int8": ("loose", changed(LOOSE, integers), "as I8, a quantisation that is not read here"),
    "4 bits": ("loose", changed(LOOSE, nvfp4), "not read here"),
    "scale of a wrong shape": ("loose", changed(LOOSE, wrong_scale), r"a scale of shape \(7,\)"),
    "GGUF that is none": ("loose", content("diffusion_models/x.gguf", b"GGML" * 99), r"x\.gguf is damaged.*not a GGUF"),
    "a file of noise": (
        "loose",
        content("vae/extra.safetensors", bytes(range(256)) * 9),
        r"extra\.safetensors is damaged",
    ),
    "code in a checkpoint beside them": ("loose", pickled("vae/model.ckpt"), r"model\.ckpt is damaged"),
    # Wan 2.2, diffusers layout
    "second transformer missing": ("diffusers", remove(f"transformer_2/{STEM}"), r"transformer_2/.*is missing"),
    "shard missing": (
        "diffusers",
        lambda f: (f / f"transformer_2/{STEM}.index.json").write_text(
            json.dumps({"weight_map": {"a": "diffusion_pytorch_model-00002-of-00002.safetensors"}})
        ),
        r"00002-of-00002.safetensors is missing, though",
    ),
    "boundary no number": ("diffusers", renamed_json("model_index.json", boundary_ratio="high"), "not a number"),
    "config of another class": (
        "diffusers",
        renamed_json("transformer_2/config.json", _class_name="WanVACETransformer3DModel"),
        "describes WanVACETransformer3DModel",
    ),
    "VAE config of another size": ("diffusers", renamed_json("vae/config.json", base_dim=16), "they do not fit"),
    "config with a wrong type": ("diffusers", renamed_json("transformer/config.json", num_layers="two"), "config.json"),
    "NaN in the VAE": ("diffusers", changed(f"vae/{STEM}", poison("decoder.conv_in.weight")), "holds NaN"),
    "infinity in the text encoder": (
        "diffusers",
        changed("text_encoder/model.safetensors", poison("shared.weight", float("-inf"))),
        "holds NaN or infinity",
    ),
}


def test_there_are_enough_kinds_of_damage():
    assert len(DAMAGE) >= 40


@pytest.mark.parametrize("case", DAMAGE)
def test_each_gives_one_clear_line_and_runs_nothing(folders, tmp_path, case, recwarn):
    kind, damage, message = DAMAGE[case]
    folder = copy_of(folders[kind], tmp_path / "model")
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_backend(str(folder), device="cpu", dtype="fp32")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("case", [case for case in DAMAGE if not any(word in case for word in ("NaN", "infinity"))])
def test_the_check_finds_it_from_headers_alone(folders, tmp_path, case):
    """What only values show (NaN) is found at loading; all else before."""
    kind, damage, message = DAMAGE[case]
    folder = copy_of(folders[kind], tmp_path / "model")
    damage(folder)
    try:
        problems = check(str(folder)).problems
    except UserError as error:
        problems = [str(error)]
    assert any(re.search(message, problem) for problem in problems), problems
    assert not (folder / "ran").exists()
