"""LoRA files are understood whatever wrote them, change their names without loss, and are refused in one clear line."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from lora_files import KIT, PUBLISHED, comfyui, diffusers, draw, official, pairs_for, save
from safetensors import safe_open
from safetensors.torch import load_file

from svi.backends.lora_base import fingerprint
from svi.backends.lora_formats import FORMATS, parse
from svi.backends.lora_read import LoraMetadata, read
from svi.backends.lora_tools import convert, info
from svi.errors import UserError


@pytest.fixture(scope="module")
def pairs(model_folder: Path):
    return pairs_for(model_folder)


def in_bf16(pairs):
    return {module: tuple(side.bfloat16() for side in pair) for module, pair in pairs.items()}


def same_bytes(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), second[name].reshape(-1).view(torch.uint8)), name


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(str(path), framework="pt") as file:
        return file.metadata()


# -- names -------------------------------------------------------------------------------------------------------------


def test_published_file_comes_back_to_the_byte_through_every_format(tmp_path: Path):
    source = str(PUBLISHED)
    for step, to in enumerate(["diffusers", "comfyui", "diffusers", "official", "comfyui", "official"]):
        out = tmp_path / f"{step}.safetensors"
        assert convert(source, out, to).modules == 20
        assert info(str(out)).format == to
        source = str(out)
    same_bytes(load_file(PUBLISHED), load_file(source))
    origin = json.loads(metadata_of(Path(source))["svi"])["details"]["converted_from"]
    assert origin["file"] == PUBLISHED.name  # the first file, not the last


@pytest.mark.parametrize("to", FORMATS)
def test_every_format_is_read_as_what_was_written(pairs, to: str, tmp_path: Path):
    source = save(tmp_path / "in.safetensors", comfyui(in_bf16(pairs), alpha=2.0), {"ss_network_dim": "4"})
    convert(str(source), tmp_path / "out.safetensors", to, known=LoraMetadata(preset="shot"))
    found = read(tmp_path / "out.safetensors")
    assert fingerprint(found) == fingerprint(read(source))  # scale 0.5 folds into bf16 without rounding
    assert found.metadata.preset == "shot"
    assert found.metadata.targets == ("attn1.to_out.0", "attn1.to_q", "attn2.to_v", "ffn.net.0.proj", "ffn.net.2")
    assert (found.metadata.rank, found.metadata.alpha) == (4, 4.0 if to == "official" else 2.0)
    assert found.raw["ss_network_dim"] == "4"


def test_alpha_that_would_round_is_refused_where_it_cannot_be_said(pairs, tmp_path: Path):
    source = save(tmp_path / "in.safetensors", comfyui(in_bf16(pairs), alpha=3.0))
    with pytest.raises(UserError, match=r"alpha / rank = 0\.75.*--dtype float32"):
        convert(str(source), tmp_path / "official.safetensors", "official")
    done = convert(str(source), tmp_path / "official.safetensors", "official", dtype=torch.float32)
    assert "0.75 was multiplied into B" in done.notes[0]
    assert fingerprint(read(done.out)) == fingerprint(read(source))
    convert(str(source), tmp_path / "a.safetensors", "diffusers")
    convert(str(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", "comfyui")
    same_bytes(load_file(source), load_file(tmp_path / "b.safetensors"))  # alpha went through the metadata


@pytest.mark.parametrize("to", ["diffusers", "comfyui"])
@pytest.mark.parametrize("alpha", [None, 3.0])
def test_diffusers_own_loader_agrees(pairs, to: str, alpha: float | None, tmp_path: Path, model_folder: Path):
    from diffusers import WanImageToVideoPipeline, WanTransformer3DModel

    source = save(tmp_path / "in.safetensors", comfyui(pairs, alpha))
    convert(str(source), tmp_path / "out.safetensors", to)
    state, metadata = WanImageToVideoPipeline.lora_state_dict(
        str(tmp_path), weight_name="out.safetensors", return_lora_metadata=True
    )
    transformer = WanTransformer3DModel.from_pretrained(model_folder / "transformer")
    transformer.load_lora_adapter(state, adapter_name="one", prefix="transformer", metadata=metadata)
    for module, (a, b) in pairs.items():
        wanted = (1.0 if alpha is None else alpha / 4) * b @ a
        torch.testing.assert_close(
            transformer.get_submodule(module).get_delta_weight("one"), wanted, rtol=1e-5, atol=1e-6
        )


def test_types_change_only_when_asked_and_never_overflow(pairs, tmp_path: Path):
    source = save(tmp_path / "in.safetensors", diffusers(pairs))
    done = convert(str(source), tmp_path / "half.safetensors", "official", dtype=torch.float16)
    assert {tensor.dtype for tensor in load_file(done.out).values()} == {torch.float16}
    large = save(tmp_path / "large.safetensors", diffusers({m: (a * 1e6, b) for m, (a, b) in pairs.items()}))
    with pytest.raises(UserError, match="beyond float16: take --dtype bfloat16"):
        convert(str(large), tmp_path / "no.safetensors", "official", dtype=torch.float16)


@pytest.mark.parametrize(
    ("key", "kind", "target"),
    [
        ("lora_unet_blocks_22.self_attn.k.lora_down.weight", "A", "blocks.22.attn1.to_k"),
        ("lora_unet_blocks_3_cross_attn_k_img.lora_up.weight", "B", "blocks.3.attn2.add_k_proj"),
        ("diffusion_model.blocks.7.diff_m", "difference", "blocks.7.scale_shift_table"),
        ("diffusion_model.blocks.7.cross_attn.norm_k_img.diff", "difference", "blocks.7.attn2.norm_added_k.weight"),
        ("diffusion_model.blocks.7.norm3.diff_b", "difference", "blocks.7.norm2.bias"),
        ("diffusion_model.head.head.diff_b", "difference", "proj_out.bias"),
        ("time_projection.1.alpha", "alpha", "condition_embedder.time_proj"),
        ("pipe.dwpose_embedding.0.weight", "network", "pipe.dwpose_embedding.0.weight"),
        ("transformer_2.blocks.0.attn1.to_q.lora_A.weight", "foreign", None),
        ("blocks.0.self_attn.q.weight", "foreign", None),
    ],
)
def test_key(key: str, kind: str, target: str | None):
    found = parse(key)
    assert (found.kind, found.target) == (kind, target or key)


# -- what is no LoRA ---------------------------------------------------------------------------------------------------


@pytest.fixture
def distilled(pairs, tmp_path: Path) -> Path:
    """As the step-distilled LoRAs: low and up factors, and differences of biases, norms and modulation."""
    width = 192
    extra = {
        "diffusion_model.blocks.0.self_attn.q.diff_b": draw(5, width),
        "diffusion_model.blocks.0.cross_attn.norm_k_img.diff": draw(6, width),
        "diffusion_model.blocks.0.diff_m": draw(7, 1, 6, width),
    }
    return save(tmp_path / "lightx2v_rank4.safetensors", {**comfyui(pairs, 4.0), **extra})


def test_differences_are_named_kept_or_left_out_on_request(distilled: Path, tmp_path: Path):
    found = info(str(distilled))
    assert (found.format, len(found.differences), found.blocks) == ("comfyui", 3, 1)
    assert "0.5 on the high-noise expert" in str(found.advice)
    for to in ("diffusers", "official"):
        with pytest.raises(UserError, match=r"3 whole tensors.*diff.*--lora-only leaves them out"):
            convert(str(distilled), tmp_path / "no.safetensors", to)
    convert(str(distilled), tmp_path / "same.safetensors", "comfyui")
    same_bytes(load_file(distilled), load_file(tmp_path / "same.safetensors"))
    done = convert(str(distilled), tmp_path / "less.safetensors", "official", lora_only=True)
    assert "3 tensors that are no LoRA were left out" in done.notes[0]
    assert not info(str(done.out)).differences


def test_other_networks_stay_where_their_reader_finds_them(pairs, tmp_path: Path):
    state = {**official(pairs), "dwpose_embedding.0.weight": draw(1, 3, 3)}
    source = save(tmp_path / "svi-dance.safetensors", state)
    assert "SVI-Dance" in info(str(source)).networks["dwpose_embedding.0.weight"]
    with pytest.raises(UserError, match=r"dwpose_embedding\.0\.weight.*ComfyUI passes over them"):
        convert(str(source), tmp_path / "no.safetensors", "comfyui")
    convert(str(source), tmp_path / "same.safetensors", "official")
    same_bytes(state, load_file(tmp_path / "same.safetensors"))


def test_layers_are_left_out_on_request(distilled: Path, tmp_path: Path):
    done = convert(str(distilled), tmp_path / "less.safetensors", "comfyui", drop=["*.self_attn.*", "*norm_added_k"])
    assert (done.modules, done.notes) == (3, ("4 layers and differences were left out, as asked",))
    for drop, message in (
        ("*.atn1.to_q", r"matches nothing.*did you mean 'blocks\.0\.attn1\.to_q'"),
        ("*", "leaves nothing"),
    ):
        with pytest.raises(UserError, match=message):
            convert(str(distilled), tmp_path / "no.safetensors", "comfyui", drop=[drop])


def test_info_holds_a_file_against_a_model(pairs, distilled: Path, model_folder: Path):
    found = info(str(distilled), model=str(model_folder))
    assert found.misfits == []
    assert (found.base, found.ranks, found.scales, found.dtypes) == ("not stated", {"4": 5}, {"1": 5}, {"float32": 13})
    other = info(str(PUBLISHED), model=str(model_folder))
    assert other.misfits is not None
    assert "(the model has 1 blocks)" in "".join(other.misfits)
    assert "blocks.0.attn1.to_q maps 192 to 192 features, the LoRA has A (4, 96) and B (96, 4)" in other.misfits
    assert len(other.misfits) == 20
    assert info(str(PUBLISHED), model=str(KIT)).misfits == []


# -- trainers' files ---------------------------------------------------------------------------------------------------


def trained(pairs):
    """What the published trainer's module holds: the LoRA between weights of the model."""
    base = {
        "pipe.dit.blocks.0.self_attn.q.base_layer.weight": draw(1, 8, 8),
        "pipe_VAE.vae.model.conv1.weight": draw(2, 8),
    }
    return {**base, **official(pairs), "pipe.dit.head.modulation": draw(3, 1, 2, 8)}


def deepspeed(folder: Path, state, ranks: int = 1) -> None:
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "latest").write_text("checkpoint")
    content = {
        "module": state,
        "param_shapes": [OrderedDict((name, tensor.shape) for name, tensor in state.items())],
        "ds_config": {"zero_optimization": {"stage": 2}},
        "ds_version": "0.16.4",
        "global_steps": 100,
        "buffer_names": [],
    }
    for rank in range(ranks):
        torch.save(content, folder / "checkpoint" / f"mp_rank_{rank:02}_model_states.pt")
        torch.save(
            {"optimizer_state_dict": {}}, folder / "checkpoint" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        )


def shards(folder: Path, state, pattern: str, writer) -> None:
    folder.mkdir()
    names = sorted(state)
    for part in range(2):
        writer({name: state[name] for name in names[part::2]}, folder / pattern.format(part + 1))


LAYOUTS = {
    "DeepSpeed": deepspeed,
    "zero_to_fp32, safetensors": lambda folder, state: shards(
        folder, state, "model-{:05}-of-00002.safetensors", lambda part, path: save(path, part)
    ),
    "zero_to_fp32, torch": lambda folder, state: shards(folder, state, "pytorch_model-{:05}-of-00002.bin", torch.save),
    "extract_lora, sharded": lambda folder, state: shards(
        folder,
        {name: tensor for name, tensor in state.items() if "lora_" in name},
        "lora_weights_{:02}_of_02.safetensors",
        lambda part, path: save(path, part),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_trainer(pairs, layout: str, tmp_path: Path):
    LAYOUTS[layout](tmp_path / "100.ckpt", trained(pairs))
    done = convert(str(tmp_path / "100.ckpt"), tmp_path / "out.safetensors", "official")
    same_bytes(official(pairs), load_file(done.out))
    if layout != "extract_lora, sharded":
        assert done.notes == ("3 tensors of the base model were passed over",)


@pytest.mark.parametrize("wrapper", ["state_dict", "module", None])
def test_single_checkpoint(pairs, wrapper: str | None, tmp_path: Path):
    state = {f"model.{name}": tensor for name, tensor in trained(pairs).items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "last.ckpt")
    same_bytes(
        official(pairs), load_file(convert(str(tmp_path / "last.ckpt"), tmp_path / "o.safetensors", "official").out)
    )


def test_peft_folder_says_its_alpha_beside_the_file(pairs, tmp_path: Path):
    state = {name.replace("transformer.", "base_model.model."): t for name, t in diffusers(pairs).items()}
    save(tmp_path / "adapter_model.safetensors", state)
    config = {"r": 4, "lora_alpha": 8, "alpha_pattern": {"attn1.to_q": 2}, "use_rslora": False}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = info(str(tmp_path))
    assert (found.format, found.scales) == ("peft", {"0.5": 1, "2": 4})
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8, "use_rslora": True}))
    assert info(str(tmp_path)).scales == {"4": 5}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8, "use_dora": True}))
    with pytest.raises(UserError, match="is a DoRA"):
        info(str(tmp_path))


# -- broken input ------------------------------------------------------------------------------------------------------


class Code:
    """Unpickled, it would leave a file behind."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def truncated(path: Path, pairs) -> None:
    data = save(path, diffusers(pairs)).read_bytes()
    path.write_bytes(data[: len(data) - 100])


def missing_part(path: Path, pairs) -> None:
    LAYOUTS["extract_lora, sharded"](path, trained(pairs))
    (path / "lora_weights_02_of_02.safetensors").unlink()


def changed(**extra):
    return lambda path, pairs: save(path, {**diffusers(pairs), **{n.replace("__", "."): t for n, t in extra.items()}})


def halved(path: Path, pairs) -> None:
    save(path, {name: t for name, t in diffusers(pairs).items() if "to_q.lora_B" not in name})


def several(path: Path, pairs) -> None:
    path.mkdir()
    for name in "ab":
        save(path / f"lora_weights_{name}.safetensors", diffusers(pairs))


NAN = torch.full((4, 192), float("nan"))
Q = "transformer.blocks.0.attn1.to_q"
BROKEN = {
    "truncated": ("x.safetensors", truncated, "is damaged, cut short"),
    "empty": ("x.safetensors", lambda path, pairs: path.write_bytes(b""), "is damaged"),
    "pickle called safetensors": (
        "x.safetensors",
        lambda path, pairs: torch.save(diffusers(pairs), path),
        "is a pickle",
    ),
    "code": ("x.ckpt", lambda path, pairs: torch.save({"state_dict": Code()}, path), "never unpickled here"),
    "bare pickle of code": ("x.pt", lambda path, pairs: path.write_bytes(pickle.dumps(Code())), "x.pt"),
    "cut checkpoint": ("x.pt", lambda path, pairs: path.write_bytes(b"PK\x03\x04 and then nothing"), "is damaged"),
    "no tensors": ("x.pt", lambda path, pairs: torch.save({"epoch": 3}, path), "holds no named tensors"),
    "a list": ("x.pt", lambda path, pairs: torch.save([1, 2], path), "holds a list, not named tensors"),
    "another ending": ("x.gguf", lambda path, pairs: path.write_bytes(b"GGUF"), "is not a .safetensors file"),
    "missing part": ("x", missing_part, "02_of_02.safetensors is missing"),
    "empty folder": ("x", lambda path, pairs: path.mkdir(), "a folder without a LoRA"),
    "several": ("x", several, "holds several LoRAs"),
    "ZeRO-3": (
        "x",
        lambda path, pairs: deepspeed(path, {n: t[:0] for n, t in trained(pairs).items()}),
        "zero_to_fp32.py",
    ),
    "model parallel": (
        "x",
        lambda path, pairs: deepspeed(path, trained(pairs), ranks=2),
        "several model-parallel ranks",
    ),
    "half a pair": ("x.safetensors", halved, "only half of the LoRA for blocks.0.attn1.to_q"),
    "no factors": ("x.safetensors", changed(**{f"{Q}.lora_A.weight": draw(1, 3, 192)}), "no factors of one matrix"),
    "NaN": ("x.safetensors", changed(**{f"{Q}.lora_A.weight": NAN}), "NaN or infinity"),
    "alpha of two": ("x.safetensors", changed(**{f"{Q}.alpha": draw(1, 2)}), "alpha of .* must be one number"),
    "twice": ("x.safetensors", changed(**{"blocks.0.attn1.to_q.lora_A.weight": draw(1, 4, 192)}), "twice"),
    "foreign": ("x.safetensors", changed(text_model__proj=draw(1, 2)), "'text_model.proj' .float32 2.*: --lora-only"),
    "DoRA": ("x.safetensors", lambda path, pairs: save(path, {f"{Q}.dora_scale": draw(1, 2)}), "it is DoRA"),
    "LoKr": ("x.safetensors", lambda path, pairs: save(path, {f"{Q}.lokr_w1": draw(1, 2)}), "it is LoKr"),
    "metadata": (
        "x.safetensors",
        lambda path, pairs: save(path, diffusers(pairs), {"svi": "{"}),
        "metadata of .* damaged",
    ),
    "wrong metadata": (
        "x.safetensors",
        lambda path, pairs: save(path, diffusers(pairs), {"svi": '{"rank": "many"}'}),
        "metadata of .* damaged",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_input_gets_one_line_and_leaves_nothing(pairs, case: str, tmp_path: Path, monkeypatch):
    name, make, message = BROKEN[case]
    monkeypatch.chdir(tmp_path)
    make(tmp_path / name, pairs)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message) as caught:
        convert(str(tmp_path / name), tmp_path / "out.safetensors", "official")
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_exists_is_not_replaced(tmp_path: Path):
    for out, message in (
        ("taken.safetensors", "exists already"),
        ("no/x.safetensors", "does not exist"),
        ("x.pt", "must end"),
    ):
        (tmp_path / "taken.safetensors").write_bytes(b"mine")
        with pytest.raises(UserError, match=message):
            convert(str(PUBLISHED), tmp_path / out, "official")
    assert (tmp_path / "taken.safetensors").read_bytes() == b"mine"
