"""Model folders: layouts, and what is said about missing, damaged and foreign files."""

import json
import pickle
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from svi.backends import official
from svi.backends.placement import Placement, choose
from svi.backends.wan import load_backend
from svi.backends.weights import find_model, load_parts
from svi.errors import UserError

CPU = Placement(torch.device("cpu"))
DIT = "transformer/diffusion_pytorch_model.safetensors"


def rewrite(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lfs_pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def drop_tensor(path):
    state = load_file(path)
    state.pop("proj_out.bias")
    save_file(state, path)


def add_tensor(path):
    save_file({**load_file(path), "blocks.9.extra": torch.zeros(1)}, path)


DAMAGE = {
    "no weights": (lambda folder: (folder / DIT).unlink(), r"diffusion_pytorch_model.safetensors is missing"),
    "cut short": (lambda folder: cut(folder / DIT), r"diffusion_pytorch_model.safetensors is damaged.*fetch"),
    "empty": (lambda folder: (folder / DIT).write_bytes(b""), r"diffusion_pytorch_model.safetensors is damaged"),
    "an image": (lambda folder: (folder / DIT).write_bytes(b"\x89PNG" * 999), r"safetensors is damaged"),
    "a pointer": (lambda folder: lfs_pointer(folder / DIT), "git lfs pull"),
    "a tensor missing": (lambda folder: drop_tensor(folder / DIT), "transformer lacks proj_out.bias"),
    "a tensor too many": (lambda folder: add_tensor(folder / DIT), "blocks.9.extra"),
    "another size": (lambda f: rewrite(f / "transformer/config.json", ffn_dim=64), "config says .*64"),
    "no config": (lambda folder: (folder / "vae/config.json").unlink(), r"vae/config.json is missing"),
    "config no JSON": (lambda folder: (folder / "vae/config.json").write_text("{"), r"vae/config.json is damaged"),
    "config a list": (lambda folder: (folder / "vae/config.json").write_text("[]"), "not a JSON object"),
    "settings no JSON": (lambda folder: (folder / "svi.json").write_text("{,}"), r"svi.json is damaged"),
    "another class": (lambda f: rewrite(f / "vae/config.json", _class_name="AutoencoderKL"), "AutoencoderKL"),
    "another pipeline": (
        lambda f: rewrite(
            f / "model_index.json", transformer=["diffusers", "FluxTransformer2DModel"], _class_name="Flux"
        ),
        "describes Flux: only Wan",
    ),
    "an expert missing": (
        lambda f: rewrite(f / "model_index.json", transformer_2=["diffusers", "WanTransformer3DModel"]),
        "transformer_2/config.json is missing",
    ),
    "no tokenizer": (lambda folder: shutil.rmtree(folder / "tokenizer"), "tokenizer.json"),
    "tokenizer cut": (lambda folder: cut(folder / "tokenizer/tokenizer.json"), "tokenizer"),
    "no image encoder": (
        lambda folder: shutil.rmtree(folder / "image_encoder"),
        r"image_encoder/config.json is missing",
    ),
    "no text encoder": (lambda f: (f / "text_encoder/model.safetensors").unlink(), r"model.safetensors is missing"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_one_line_that_names_it(model_copy, case):
    damage, message = DAMAGE[case]
    damage(model_copy)
    with pytest.raises(UserError, match=message) as caught:
        load_backend(str(model_copy))
    assert "\n" not in str(caught.value)


KIT_DAMAGE = {
    "a shard missing": (
        lambda folder: (folder / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink(),
        r"00002-of-00002.safetensors is missing",
    ),
    "a shard cut": (
        lambda folder: cut(folder / "diffusion_pytorch_model-00002-of-00002.safetensors"),
        r"00002-of-00002.safetensors is damaged",
    ),
    "index without a map": (
        lambda folder: (folder / "diffusion_pytorch_model.safetensors.index.json").write_text("{}"),
        "no weight_map",
    ),
    "no VAE": (lambda folder: (folder / "Wan2.1_VAE.pth").unlink(), r"VAE.pth is missing"),
    "VAE cut": (lambda folder: cut(folder / "Wan2.1_VAE.pth"), r"Wan2.1_VAE.pth is damaged"),
    "VAE another": (lambda folder: torch.save({"a": torch.zeros(1)}, folder / "Wan2.1_VAE.pth"), "not a Wan VAE"),
    "VAE a list": (lambda folder: torch.save([1, 2], folder / "Wan2.1_VAE.pth"), "other than named tensors"),
    "no tokenizer": (lambda folder: shutil.rmtree(folder / "google"), "umt5-xxl"),
    "sparse config": (lambda folder: (folder / "config.json").write_text("{}"), "num_heads"),
}


@pytest.mark.parametrize("case", KIT_DAMAGE)
def test_damage_in_the_official_layout(kit_copy, case):
    damage, message = KIT_DAMAGE[case]
    damage(kit_copy)
    with pytest.raises(UserError, match=message) as caught:
        load_backend(str(kit_copy))
    assert "\n" not in str(caught.value)


class Marker:
    """Leaves a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj))])
def test_code_in_a_checkpoint_is_never_run(kit_copy, tmp_path, save):
    save({"encoder.conv1.weight": Marker(tmp_path / "ran")}, kit_copy / "Wan2.1_VAE.pth")
    with pytest.raises(UserError, match=r"Wan2.1_VAE.pth"):
        load_backend(str(kit_copy))
    assert not (tmp_path / "ran").exists()


def test_sizes_follow_from_the_official_config_and_the_tensors(kit_copy):
    wanted = official.load(kit_copy, CPU).transformer.config
    (kit_copy / "config.json").write_text(
        json.dumps(
            {"_class_name": "WanModel", "dim": 96, "eps": 1e-6, "ffn_dim": 128, "freq_dim": 256, "in_dim": 36}
            | {"model_type": "i2v", "num_heads": 2, "num_layers": 2, "out_dim": 16, "text_len": 512}
        )
    )
    parts = official.load(kit_copy, CPU)
    found = {**parts.transformer.config, "patch_size": list(parts.transformer.config.patch_size)}
    assert {name: found[name] for name in wanted if name[0] != "_"} == {n: wanted[n] for n in wanted if n[0] != "_"}
    assert (parts.vae.config.base_dim, parts.vae.config.z_dim) == (8, 16)


def test_folder_of_the_diffusers_layout_written_by_older_libraries(model_copy):
    """transformers 4 prefixed the vision tower and stored the embedding of the text encoder twice."""
    clip, text = model_copy / "image_encoder/model.safetensors", model_copy / "text_encoder/model.safetensors"
    state = {f"vision_model.{name}": value for name, value in load_file(clip).items()}
    save_file({**state, "vision_model.embeddings.position_ids": torch.arange(257)[None]}, clip)
    words = load_file(text)
    save_file({**words, "encoder.embed_tokens.weight": words["shared.weight"].clone()}, text)
    parts = load_parts(model_copy, CPU)
    assert parts.text_encoder.encoder.embed_tokens.weight is parts.text_encoder.shared.weight
    assert torch.equal(parts.text_encoder.shared.weight, words["shared.weight"])


def test_weights_in_shards(model_copy):
    single = model_copy / DIT
    state = sorted(load_file(single).items())
    stem, weight_map = "diffusion_pytorch_model", {}
    for index, part in enumerate((state[:20], state[20:])):
        name = f"{stem}-{index}.safetensors"
        save_file(dict(part), single.parent / name)
        weight_map |= {key: name for key, _ in part}
    single.unlink()
    (single.parent / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    parts = load_parts(model_copy, CPU)
    assert all(torch.equal(parts.transformer.state_dict()[name], value) for name, value in state)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pockt", "did you mean 'pocket'"),
        ("wan2.1-i2v-480", "did you mean 'wan2.1-i2v-480p'"),
        ("./no/such/folder", "no folder ./no/such/folder"),
        ("owner/model", "`svi models download owner/model` fetches it"),
        ("wan2.1-i2v-480p", "`svi models download wan2.1-i2v-480p` fetches it"),
        ("", "unknown model"),
    ],
)
def test_unknown_model(name, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        find_model(name)


def test_file_or_empty_folder_is_no_model(kit, tmp_path):
    with pytest.raises(UserError, match="is a file"):
        find_model(str(kit / "config.json"))
    with pytest.raises(UserError, match="is no model folder"):
        load_backend(str(tmp_path))


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [
        ("gpu", None, "unknown device"),
        ("cuda:99", None, "not there"),
        ("cpu", "bf61", "did you mean 'bf16'"),
        ("cpu", torch.int8, "cannot run in"),
    ],
)
def test_placement_that_cannot_be(device, dtype, message):
    with pytest.raises(UserError, match=message):
        choose(device, dtype)


def test_placement_gives_its_reasons():
    placement = choose("cpu")
    assert placement.dtype == torch.float32
    assert len(placement.lines()) == 3
    assert all(": " in line and not line.endswith("default") for line in placement.lines())
    assert choose("cpu", "bf16").dtype == torch.bfloat16


@pytest.mark.parametrize("file", ["Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl/spiece.model"])
def test_a_download_takes_what_both_layouts_need(monkeypatch, tmp_path, file):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda hub_id, **options: asked.append(options) or str(tmp_path)
    )
    assert find_model("Wan-AI/Wan2.1-I2V-14B-480P", allow_download=True) == tmp_path
    assert any(fnmatch(file, pattern) for pattern in asked[0]["allow_patterns"])
    assert asked[0]["local_files_only"] is False
