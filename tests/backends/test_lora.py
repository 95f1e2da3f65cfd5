"""LoRA files: every dialect gives the same video, and nothing that does not fit is skipped."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from svi.backends import official
from svi.backends.lora import converted, find_lora, parse_spec
from svi.backends.lora_read import assemble, read
from svi.backends.placement import Placement
from svi.backends.wan import load_backend
from svi.errors import UserError

FILE = "lora-official-names.safetensors"
SIGMA = torch.tensor([0.5])


@pytest.fixture(scope="module")
def published(kit):
    """The kit's LoRA by plain official names: ``blocks.0.self_attn.q`` -> (A, B)."""
    state = load_file(kit / FILE)
    stems = {name.removeprefix("pipe.dit.").partition(".lora_")[0] for name in state}
    return {
        stem: tuple(state[f"pipe.dit.{stem}.lora_{factor}.default.weight"] for factor in "AB") for stem in sorted(stems)
    }


@pytest.fixture(scope="module")
def transformer(kit):
    return official.load(kit, Placement(torch.device("cpu")), need_tokenizer=False).transformer


def peft(prefix, middle="", rename=lambda stem: stem):
    def write(pairs):
        names = [(stem, factor, index) for stem in pairs for index, factor in enumerate("AB")]
        return {f"{prefix}{rename(s)}.lora_{f}{middle}.weight": pairs[s][i].clone() for s, f, i in names}

    return write


def kohya(prefix, rename=lambda stem: stem, alpha=None):
    def write(pairs):
        state = {}
        for stem, (down, up) in pairs.items():
            name = f"{prefix}{rename(stem)}"
            state |= {f"{name}.lora_down.weight": down.clone(), f"{name}.lora_up.weight": up.clone()}
            if alpha is not None:
                state |= {f"{name}.lora_up.weight": up * down.shape[0] / alpha, f"{name}.alpha": torch.tensor(alpha)}
        return state

    return write


def underscored(stem):
    return stem.replace(".", "_")


DIALECTS = {
    "released SVI": peft("", ".default"),
    "raw checkpoint": peft("pipe.dit.", ".default"),
    "wrapped checkpoint": peft("module.pipe.dit.", ".default"),
    "compiled": peft("_orig_mod.", ".default"),
    "bare": peft(""),
    "comfy": peft("diffusion_model."),
    "comfy, full path": peft("model.diffusion_model."),
    "peft": peft("base_model.model."),
    "dit": peft("dit."),
    "diffusers pipeline": peft("transformer.", rename=official.dit_name),
    "diffusers model": peft("", rename=official.dit_name),
    "diffusers, named adapter": peft("transformer.", ".film", official.dit_name),
    "down and up": kohya("diffusion_model."),
    "down and up with alpha": kohya("diffusion_model.", alpha=2.0),
    "kohya": kohya("lora_unet_", underscored, alpha=1.0),
    "kohya with dots": kohya("lora_unet_", alpha=1.0),
    "DeepSpeed under Lightning": peft("_forward_module.model.pipe.dit.", ".default"),
    "kohya, diffusers names": kohya("lora_transformer_", lambda stem: underscored(official.dit_name(stem))),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_all_dialects_are_equal(published, transformer, dialect):
    state = converted(assemble(DIALECTS[dialect](published), dialect), transformer)
    assert len(state) == 2 * len(published) == 40
    for stem, pair in published.items():
        for factor, wanted in zip("AB", pair, strict=True):
            name = f"{official.dit_name(stem)}.lora_{factor}.weight"
            torch.testing.assert_close(state[name], wanted, rtol=1e-6, atol=0)


def merged(backend, pairs, strength):
    """Weights with the LoRA merged: what the published code does."""
    state = {name: value.clone() for name, value in backend.transformer.state_dict().items()}
    for stem, (down, up) in pairs.items():
        state[f"{official.dit_name(stem)}.weight"] += strength * up @ down
    return state


def test_attached_equals_merged_and_strength_changes_per_clip(diffusers_folder, kit, published, inputs):
    plain = load_backend(str(diffusers_folder), dtype="fp32", device="cpu")
    before = plain.velocity(inputs[0], SIGMA, inputs[1])
    loaded = load_backend(str(diffusers_folder), loras=[f"{kit / FILE}:0.5"], dtype="fp32", device="cpu")
    half = loaded.velocity(inputs[0], SIGMA, inputs[1])
    assert (half - before).abs().max() > 1e-3
    assert not half.requires_grad
    name = FILE.removesuffix(".safetensors")
    assert list(loaded.info.loras) == [name]
    for strength in (1.0, 0.0, -0.7):
        loaded.set_lora_strengths({name: strength})
        reference = load_backend(str(diffusers_folder), dtype="fp32", device="cpu")
        reference.transformer.load_state_dict(merged(reference, published, strength))
        wanted = reference.velocity(inputs[0], SIGMA, inputs[1])
        torch.testing.assert_close(loaded.velocity(inputs[0], SIGMA, inputs[1]), wanted, rtol=0, atol=2e-5)
    loaded.set_lora_strengths({})  # as loaded
    assert torch.equal(loaded.velocity(inputs[0], SIGMA, inputs[1]), half)


def test_several_loras_of_different_ranks_add_up(diffusers_folder, published, inputs, tmp_path):
    first = dict(list(published.items())[:7])
    second = {
        stem: (torch.cat([a, a * 0.5]), torch.cat([b * 0.3, b], 1)) for stem, (a, b) in list(published.items())[5:12]
    }
    second |= {stem: (a[:2], b[:, :2]) for stem, (a, b) in list(published.items())[12:]}
    save_file(peft("")(first), tmp_path / "one.v1.safetensors")
    save_file(kohya("")(second), tmp_path / "two.safetensors")
    specs = [f"{tmp_path}/one.v1.safetensors:0.8", f"{tmp_path}/two.safetensors"]
    loaded = load_backend(str(diffusers_folder), loras=specs, dtype="fp32", device="cpu")
    loaded.set_lora_strengths({"two": 0.4})
    reference = load_backend(str(diffusers_folder), dtype="fp32", device="cpu")
    reference.transformer.load_state_dict(merged(reference, first, 0.8))
    reference.transformer.load_state_dict(merged(reference, second, 0.4))
    torch.testing.assert_close(
        loaded.velocity(inputs[0], SIGMA, inputs[1]), reference.velocity(inputs[0], SIGMA, inputs[1]), rtol=0, atol=2e-5
    )


def test_lora_follows_the_type_of_a_bf16_model(diffusers_folder, kit, inputs):
    loaded = load_backend(str(diffusers_folder), loras=[str(kit / FILE)], dtype="bf16", device="cpu")
    assert loaded.velocity(inputs[0], SIGMA, inputs[1]).dtype == torch.float32
    assert {p.dtype for name, p in loaded.transformer.named_parameters() if "lora_" in name} == {torch.bfloat16}


def change(pairs, **changes):
    return {**peft("")(pairs), **changes}


MISFITS = {
    "unknown module": (
        lambda p: change(p, **{"blocks.0.other.lora_A.weight": torch.zeros(4, 96)}),
        "'blocks.0.other.lora_A",
    ),
    "another depth": (lambda p: change(p, **{"blocks.9.self_attn.q.lora_A.weight": torch.zeros(4, 96)}), "blocks.9"),
    "extra network": (
        lambda p: change(p, **{"dwpose_embedding.0.weight": torch.zeros(4)}),
        "dwpose_embedding.0.weight",
    ),
    "whole weight": (lambda p: change(p, **{"blocks.0.self_attn.q.diff_b": torch.zeros(96)}), "diff_b"),
    "another prefix": (peft("text_model."), "text_model.blocks"),
    "another width": (
        lambda p: {**change(p), "blocks.0.ffn.0.lora_A.weight": torch.zeros(4, 95)},
        "ffn.net.0.proj maps 96 to 128",
    ),
    "half a pair": (lambda p: {n: v for n, v in change(p).items() if n != "blocks.1.ffn.2.lora_B.weight"}, "only half"),
    "twice": (lambda p: {**change(p), **peft("dit.")(p)}, "twice"),
    "nothing": (lambda p: {}, "no LoRA weights"),
    "NaN": (lambda p: {**change(p), "blocks.0.ffn.0.lora_A.weight": torch.full((4, 96), float("nan"))}, "NaN"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_refused_by_name(published, transformer, case):
    make, message = MISFITS[case]
    with pytest.raises(UserError, match=message):
        converted(assemble(make(published), "file"), transformer)


def test_refusal_reaches_the_user_with_the_file_name(diffusers_folder, published, tmp_path):
    save_file(peft("unet.")(published), tmp_path / "flux.safetensors")
    with pytest.raises(UserError, match=r"flux\.safetensors holds no LoRA for a Wan model"):
        load_backend(str(diffusers_folder), loras=[str(tmp_path / "flux.safetensors")])
    (tmp_path / "flux.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match=r"flux\.safetensors is damaged"):
        load_backend(str(diffusers_folder), loras=[str(tmp_path / "flux.safetensors")])


def test_checkpoint_with_nested_state(published, transformer, tmp_path):
    torch.save({"state_dict": peft("pipe.dit.", ".default")(published)}, tmp_path / "step.ckpt")
    assert len(converted(read(tmp_path / "step.ckpt"), transformer)) == 40


def test_unknown_strength_names_the_nearest(diffusers_folder, backend, kit):
    with pytest.raises(UserError, match="no LoRA is loaded"):
        backend.set_lora_strengths({"film": 1.0})
    backend.set_lora_strengths({})
    loaded = load_backend(str(diffusers_folder), loras=[str(kit / FILE)])
    with pytest.raises(UserError, match="did you mean 'lora-official-names'"):
        loaded.set_lora_strengths({"lora-oficial-names": 1.0})


def test_two_of_one_name(diffusers_folder, kit):
    with pytest.raises(UserError, match="two LoRAs are called"):
        load_backend(str(diffusers_folder), loras=[str(kit / FILE), f"{kit / FILE}:0.5"])


def test_lora_by_name_from_the_model_folder(model_copy, kit):
    (model_copy / "loras").mkdir()
    (model_copy / "loras" / "film.safetensors").write_bytes((kit / FILE).read_bytes())
    loaded = load_backend(str(model_copy), loras=["film:0.5"])
    assert loaded.loras.loaded == {"film": 0.5}
    with pytest.raises(UserError, match="did you mean 'film'"):
        find_lora("flim", model_copy)
    with pytest.raises(UserError, match="is missing"):
        find_lora("other/film.safetensors", model_copy)


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("film", ("film", 1.0, "film")),
        ("film:0.5", ("film", 0.5, "film")),
        ("a/b.v2.safetensors:-1", ("a/b.v2.safetensors", -1.0, "b.v2")),
        ("C:film.safetensors", ("C:film.safetensors", 1.0, "C:film")),
        ("film: 2e-1 ", ("film", 0.2, "film")),
    ],
)
def test_spec(spec, wanted):
    parsed = parse_spec(spec)
    assert (parsed.source, parsed.strength, parsed.name) == wanted


@pytest.mark.parametrize("spec", ["", ":0.5", "  ", "film:nan", "film:inf", "film:-inf"])
def test_spec_that_says_nothing(spec):
    with pytest.raises(UserError):
        parse_spec(spec)
