"""What weight files are, by names and shapes; tables of the published models; quantised files as the numbers they stand for."""

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from models_tiny import (
    CLIP_FILE,
    KIT,
    SIGMA,
    T5_FILE,
    condition,
    copy_of,
    draw,
    official_dit,
    official_newer_vae,
    parts,
    write_loose,
)
from safetensors.torch import load_file, save_file

from svi.backends import official
from svi.backends.catalogue import BASES, LORAS, MODELS, model_of
from svi.backends.layouts import MEAN_22, STD_22, identify, text_config, transformer_config, vae_config
from svi.backends.layouts_files import header, shapes_of, tensors
from svi.backends.layouts_loose import noise_side
from svi.backends.wan import load_backend
from svi.conditioning.policy import PRESETS
from svi.errors import UserError

# Diffusers configurations of the published transformers.
BIG = dict(num_attention_heads=40, ffn_dim=13824, num_layers=40, in_channels=36, out_channels=16)
CONFIGS = {
    "Wan2.1-I2V-14B-480P": {**BIG, "image_dim": 1280, "added_kv_proj_dim": 5120},
    "Wan2.2-I2V-A14B": BIG,
    "Wan2.2-TI2V-5B": {
        **BIG,
        "num_attention_heads": 24,
        "ffn_dim": 14336,
        "num_layers": 30,
        "in_channels": 48,
        "out_channels": 48,
    },
}


def on_meta(**config):
    from accelerate import init_empty_weights
    from diffusers import WanTransformer3DModel

    with init_empty_weights():
        return WanTransformer3DModel(**config)


@pytest.fixture(scope="module")
def published():
    """Names and shapes of the published transformers, by official names."""
    return {name: shapes_of(official_dit(on_meta(**config)).items()) for name, config in CONFIGS.items()}


def multitalk():
    """Names and shapes of multitalk.safetensors."""
    linear = {"proj1": (512, 46080), "proj1_vf": (512, 73728), "proj2": (512, 512), "proj3": (24576, 512)}
    found = {f"audio_proj.{name}.weight": shape for name, shape in linear.items()}
    found |= {f"audio_proj.{name}.bias": shape[:1] for name, shape in linear.items()}
    found |= {f"audio_proj.norm.{leaf}": (768,) for leaf in ("weight", "bias")}
    block = {"q_linear": (5120, 5120), "kv_linear": (10240, 768), "proj": (5120, 5120)}
    for index in range(40):
        found |= {f"blocks.{index}.audio_cross_attn.{name}.weight": shape for name, shape in block.items()}
        found |= {f"blocks.{index}.audio_cross_attn.{name}.bias": shape[:1] for name, shape in block.items()}
        found |= {f"blocks.{index}.norm_x.{leaf}": (5120,) for leaf in ("weight", "bias")}
    return found


def numbers(shapes):
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def published_hash(shapes):
    """How the published code tells models: md5 of sorted names, alone and with shapes."""
    words = [word for name, shape in shapes.items() for word in (name, f"{name}:{'_'.join(map(str, shape))}")]
    return hashlib.md5(",".join(sorted(words)).encode()).hexdigest()


# -- the published models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_tables_of_the_published_transformers(published, name):
    model = model_of(name)
    assert len(published[name]) == model.tensors
    assert numbers(published[name]) == model.parameters


def test_wan21_i2v_has_1303_tensors_and_16_394_878_784_parameters(published):
    shapes = published["Wan2.1-I2V-14B-480P"]
    assert (len(shapes), numbers(shapes)) == (1303, 16_394_878_784)
    assert published_hash(shapes) == "6bfcfb3b342cb286ce886889d519a77e"


def test_audio_extended_checkpoint_is_told_from_a_plain_one(published):
    plain, audio = published["Wan2.1-I2V-14B-480P"], multitalk()
    assert (len(audio), numbers(audio)) == (330, 2_487_168_000)
    both = {**plain, **audio}
    assert published_hash(both) == "b6caaaa1388107ec24d25592901ca489"
    assert (identify(plain).extension, identify(both).extension) == (None, "MultiTalk")
    assert identify(both).title == identify(plain).title == "Wan2.1-I2V-14B"
    assert "MultiTalk" in str(identify(both))
    assert identify(audio).role == "audio"


def test_configurations_follow_from_shapes(published):
    for name, config in CONFIGS.items():
        made = transformer_config(published[name], {})
        assert {key: made[key] for key in config} == config
        assert shapes_of(official_dit(on_meta(**made)).items()) == published[name]


def test_loras_of_the_catalogue(published):
    """800 tensors of 613,416,960 parameters at rank 128: q, k, v, o of both attentions and both layers of each block's MLP."""
    ends = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "ffn.0", "ffn.2")
    ends += tuple(f"cross_attn.{letter}" for letter in "qkvo")
    shapes = published["Wan2.1-I2V-14B-480P"]
    pairs = [shapes[f"blocks.{i}.{end}.weight"] for i in range(40) for end in ends]
    assert (2 * len(pairs), sum(128 * (a + b) for a, b in pairs)) == (800, 613_416_960)
    assert {lora.size_bytes for group in LORAS.values() for lora in group} == {4 * 613_416_960, 2 * 613_416_960}


def test_catalogue_knows_every_preset():
    assert set(LORAS) == set(PRESETS)
    for name, policy in PRESETS.items():
        assert model_of(policy.base).title == BASES[name]
        assert (model_of(policy.base).kind == "experts") == (policy.expert_boundary is not None)
        assert {lora.side for lora in LORAS[name]} in ({"high", "low"}, {None}, set())


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_sizes_of_the_catalogue_fit_the_parameters(model):
    for part in model.parts:
        for size in (part.official_bytes, part.diffusers_bytes):
            assert (
                min(abs(size / part.parameters - width) for width in (2, 4, 7.57)) < 0.01
            )  # .pth of CLIP: text tower, too


# -- identification ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    return {kind: parts(kind) for kind in ("2.1", "a14b", "5b")}


def test_every_part_is_told_in_every_naming(tiny, kit, diffusers_folder):
    roles = {
        "Wan2.1_VAE.pth": ("vae", "Wan 2.1 VAE", "official"),
        "models_t5_umt5-xxl-enc-bf16.pth": ("text_encoder", "UMT5 encoder", "official"),
        "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth": ("image_encoder", "CLIP image encoder", "official"),
        "lora-official-names.safetensors": ("lora", "a LoRA", None),
    }
    for name, wanted in roles.items():
        found = identify(header(kit / name).shapes)
        assert (found.role, found.title, found.naming) == wanted
    for name, stem in (("transformer", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")):
        found = identify(header(diffusers_folder / name / f"{stem}.safetensors").shapes)
        assert (found.role, found.naming) == (name, "diffusers")
    for name in ("text_encoder", "image_encoder"):
        assert identify(header(diffusers_folder / name / "model.safetensors").shapes).role == name
    newer = shapes_of(official_newer_vae(tiny["5b"]["vae"]).items())
    assert identify(newer).title == "Wan 2.2 VAE"
    assert identify({f"model.diffusion_model.{k}": v for k, v in newer.items()}).role == "vae"


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("model.diffusion_model.input_blocks.0.0.weight", "Stable Diffusion"),
        ("transformer_blocks.0.attn.add_q_proj.weight", "Qwen-Image"),
        ("model.embed_tokens.weight", "a language model"),
        ("nobody.knows.weight", "another model"),
    ],
)
def test_foreign_models_are_named(name, title):
    found = identify({name: (4, 4)})
    assert (found.role, title in found.title) == ("unknown", True)


def test_extensions_are_named(tiny):
    shapes = shapes_of(official_dit(tiny["a14b"]["transformer"]).items())
    for name, extension in (
        ("vace_blocks.0.after_proj.bias", "VACE"),
        ("face_adapter.fuser_blocks.0.q.weight", "Animate"),
        ("dwpose_embedding.0.weight", "UniAnimate-DiT"),
        ("ref_conv.weight", "Fun-Control"),
    ):
        assert identify({**shapes, name: (4,)}).extension == extension


def test_sizes_of_a_vae_and_of_a_text_encoder_show(tiny, kit):
    config = vae_config(shapes_of(official_newer_vae(tiny["5b"]["vae"]).items()))
    kept = {name: tiny["5b"]["vae"].config[name] for name in config}
    assert kept == config
    assert len(MEAN_22) == len(STD_22) == 48
    with pytest.raises(UserError, match="not a Wan VAE"):
        vae_config({"a": (1,)})
    text = tiny["a14b"]["text_encoder"]
    found = text_config(shapes_of(text.state_dict().items()))
    sizes = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    assert {name: found[name] for name in sizes} == {name: getattr(text.config, name) for name in sizes}


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("wan2.2_i2v_high_noise_14B_fp8_scaled", "high"),
        ("Wan2_2-I2V-A14B-LOW_fp8_e4m3fn_scaled_KJ", "low"),
        ("SVI_Wan2.2-I2V-A14B_low_noise_lora_v2.0_pro", "low"),
        ("HighNoise/model", "high"),
        ("wan_highlight_slow", None),
        ("high_and_low", None),
        ("svi-film", None),
    ],
)
def test_only_a_name_says_which_expert_it_is(name, side):
    assert noise_side(name) == side


def test_vae_names_of_wan22_all_have_their_place(tiny):
    vae = tiny["5b"]["vae"]
    names = {official.vae_name(name) for name in official_newer_vae(vae)}
    assert names == set(vae.state_dict())


# -- quantised files ---------------------------------------------------------------------------------------------------


def to_fp8(state, *, scaled, rows=False):
    """fp8 as ComfyUI stores it: linear weights, with the scale that brings them back."""
    made = {}
    for name, value in state.items():
        if value.ndim != 2 or not name.endswith(".weight") or "blocks." not in name:
            made[name] = value.clone()
            continue
        peak = value.abs().amax(dim=1, keepdim=True) if rows else value.abs().max().reshape(1)
        scale = (peak / 448).clamp_min(1e-12) if scaled else torch.ones(1)
        made[name] = (value / scale).to(torch.float8_e4m3fn)
        if scaled:
            made[name.removesuffix("weight") + ("weight_scale" if rows else "scale_weight")] = scale.clone()
    if scaled:
        made["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    return made


@pytest.mark.parametrize(("scaled", "rows"), [(False, False), (True, False), (True, True)])
def test_fp8_files_are_read_as_the_numbers_they_stand_for(tiny, tmp_path, scaled, rows):
    state = official_dit(tiny["a14b"]["transformer"])
    save_file(to_fp8(state, scaled=scaled, rows=rows), tmp_path / "w.safetensors")
    read = header(tmp_path / "w.safetensors")
    assert read.quantised == ("scaled fp8" if scaled else "fp8")
    assert set(read.shapes) == set(state)
    for name, value in tensors([tmp_path / "w.safetensors"]):
        bound = 0.07 * value.float().abs().max() + 2e-3
        assert (value.float() - state[name]).abs().max() <= bound


def test_a_scaled_fp8_model_makes_nearly_the_same_video(tiny, tmp_path):
    exact = write_loose(tmp_path / "exact", tiny["a14b"])
    small = write_loose(tmp_path / "small", tiny["a14b"], change=lambda state: to_fp8(state, scaled=True))
    both = [load_backend(str(folder), device="cpu", dtype="fp32", expert="high") for folder in (exact, small)]
    given, noisy = condition(16), draw(1, 1, 16, 3, 4, 6)
    wanted, found = (backend.velocity(noisy, SIGMA["high"], given) for backend in both)
    assert 0 < (found - wanted).abs().max() < 0.05 * wanted.abs().max()


@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="needs the library gguf")
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16"])
def test_gguf_files(tiny, tmp_path, kind):
    import gguf

    state = official_dit(tiny["a14b"]["transformer"])
    writer = gguf.GGUFWriter(tmp_path / "w.gguf", "wan")
    for name, value in state.items():
        numbers = value.float().numpy()
        if value.ndim == 5:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", [int(size) for size in value.shape])
            numbers = numbers.reshape(value.shape[0], -1)
        if value.ndim == 2 and value.shape[1] % 32 == 0:
            how = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quantize(numbers, how), raw_dtype=how)
        else:
            writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert header(tmp_path / "w.gguf").shapes == shapes_of(state.items())
    bound = {"Q8_0": 0.01, "Q4_0": 0.15, "F16": 1e-3}[kind]
    for name, value in tensors([tmp_path / "w.gguf"]):
        assert (value.float() - state[name]).abs().max() <= bound * state[name].abs().max() + 1e-6
    folder = write_loose(tmp_path / "model", tiny["a14b"])
    for path in (folder / "diffusion_models").glob("*.safetensors"):
        path.unlink()
    (tmp_path / "w.gguf").rename(folder / "diffusion_models" / "w.gguf")
    assert load_backend(str(folder), device="cpu", dtype="fp32").experts is None
    cut = folder / "diffusion_models" / "w.gguf"
    cut.write_bytes(cut.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"w\.gguf is damaged"):
        load_backend(str(folder), device="cpu")


def test_what_the_reference_keeps_in_fp32_stays_so_in_every_layout(tiny, tmp_path):
    folder = write_loose(tmp_path / "loose", tiny["2.1"])
    low = load_backend(str(folder), device="cpu", dtype="bf16")
    for name, value in low.transformer.named_parameters():
        kept = {"time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"} & set(name.split("."))
        assert value.dtype == (torch.float32 if kept else torch.bfloat16), name
    assert {value.dtype for part in (low.vae, low.image_encoder) for value in part.parameters()} == {torch.float32}


def test_streaming_holds_one_tensor_at_a_time(tmp_path):
    """Each tensor is let go before the next is read."""
    import weakref

    save_file({f"t{i}": torch.full((4,), float(i)) for i in range(5)}, tmp_path / "w.safetensors")
    torch.save({f"t{i}": torch.full((4,), float(i)) for i in range(5)}, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        alive: list[weakref.ref] = []
        for _, value in tensors([tmp_path / name]):
            assert sum(ref() is not None for ref in alive) <= 1
            alive.append(weakref.ref(value))


def test_tokenizer_beside_the_files(tiny, tmp_path):
    folder = write_loose(tmp_path / "m", tiny["a14b"])
    (folder / "google").mkdir()
    (folder / "tokenizer").rename(folder / "google" / "umt5-xxl")
    assert load_backend(str(folder), device="cpu", expert="low").encode_text(["a cat"]).shape == (1, 512, 32)


def test_settings_beside_single_files_win(tiny, tmp_path):
    folder = copy_of(write_loose(tmp_path / "m", tiny["a14b"]), tmp_path / "n")
    settings = json.loads((folder / "svi.json").read_text())
    (folder / "svi.json").write_text(json.dumps({**settings, "fps": 12}))
    assert load_backend(str(folder), device="cpu", expert="low").geometry.fps == 12


@pytest.mark.parametrize("front", ["visual.", ""])
def test_encoders_under_official_names_in_single_files(tiny, tmp_path, front):
    folder = write_loose(tmp_path / "m", tiny["2.1"])
    tower = torch.load(KIT / CLIP_FILE, weights_only=True)
    cut = {front + name.removeprefix("visual."): value for name, value in tower.items() if name.startswith("visual.")}
    save_file(cut, folder / "clip_vision" / "h.safetensors")
    save_file(torch.load(KIT / T5_FILE, weights_only=True), folder / "text_encoders" / "umt5.safetensors")
    found, wanted = (
        load_backend(str(place), device="cpu") for place in (folder, write_loose(tmp_path / "n", tiny["2.1"]))
    )
    image = torch.linspace(-1, 1, 3 * 32 * 48).view(1, 3, 32, 48)
    assert torch.equal(found.encode_image(image), wanted.encode_image(image))
    assert torch.equal(found.encode_text(["a cat"]), wanted.encode_text(["a cat"]))


def test_a_lora_folder_beside_the_weights_is_no_part(tiny, tmp_path, kit):
    folder = write_loose(tmp_path / "m", tiny["a14b"])
    (folder / "loras").mkdir()
    lora = load_file(kit / "lora-official-names.safetensors")
    save_file(lora, folder / "loras" / "film.safetensors")
    assert isinstance(load_backend(str(folder), device="cpu").info.files, dict)
    assert Path(folder / "loras" / "film.safetensors").is_file()
