"""Wan 2.1, 2.2 A14B and TI2V-5B in every layout: the same bits, and whole videos from the command line."""

import json
import weakref
from dataclasses import replace

import pytest
import torch
from models_tiny import (
    SIGMA,
    condition,
    copy_of,
    draw,
    official_dit,
    parts,
    write_diffusers,
    write_loose,
    write_official,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from svi.backends.peek import peek
from svi.backends.wan import load_backend
from svi.cli import main
from svi.condition import ClipCondition
from svi.errors import UserError
from svi.solvers import SOLVERS


@pytest.fixture(scope="module")
def models():
    return {kind: parts(kind) for kind in ("2.1", "a14b", "5b")}


@pytest.fixture(scope="module")
def folders(models, tmp_path_factory):
    home = tmp_path_factory.mktemp("kinds")
    return {
        ("a14b", "diffusers"): write_diffusers(home / "a14b", models["a14b"], boundary_ratio=0.9),
        ("a14b", "official"): write_official(home / "A14B-official", models["a14b"]),
        ("a14b", "loose"): write_loose(home / "comfy22", models["a14b"]),
        ("5b", "diffusers"): write_diffusers(home / "5b", models["5b"], expand_timesteps=True),
        ("5b", "official"): write_official(home / "5B-official", models["5b"]),
        ("2.1", "loose"): write_loose(home / "comfy21", models["2.1"]),
        ("2.1", "official"): write_official(home / "2.1", models["2.1"]),
    }


def load(folder, **options):
    return load_backend(str(folder), device="cpu", dtype="fp32", **options)


@pytest.mark.parametrize("layout", ["diffusers", "official", "loose"])
def test_two_experts_each_at_its_noise_levels(folders, models, layout):
    backend = load(folders["a14b", layout])
    given, noisy = condition(16), draw(1, 1, 16, 3, 4, 6)
    inputs = torch.cat([noisy, given.known, given.values], 1)
    for side, name in (("high", "transformer"), ("low", "transformer_2")):
        wanted = models["a14b"][name](inputs, 1000 * SIGMA[side], given.text, return_dict=False)[0]
        torch.testing.assert_close(backend.velocity(noisy, SIGMA[side], given), wanted, rtol=0, atol=1e-5)
    assert not backend.has_image_branch
    assert backend.encode_image(torch.zeros(1, 3, 32, 48)) is None


@pytest.mark.parametrize("layout", ["loose", "official"])
def test_layouts_of_wan21_are_equal(folders, models, layout):
    backend = load(folders["2.1", layout])
    given, noisy = condition(16, image=True), draw(1, 1, 16, 3, 4, 6)
    inputs = torch.cat([noisy, given.known, given.values], 1)
    wanted = models["2.1"]["transformer"](inputs, 1000 * SIGMA["low"], given.text, given.image, return_dict=False)[0]
    torch.testing.assert_close(backend.velocity(noisy, SIGMA["low"], given), wanted, rtol=0, atol=1e-5)
    assert backend.encode_image(torch.zeros(1, 3, 32, 48)).shape == (1, 257, 64)


# -- TI2V-5B -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["diffusers", "official"])
def five(request, folders):
    return load(folders["5b", request.param])


def test_ti2v_tells_each_token_its_noise(five, models):
    given, noisy = condition(48), draw(1, 1, 48, 3, 4, 6)
    inputs = noisy.clone()
    inputs[:, :, 0] = given.values[:, :, 0]
    timestep = torch.full((1, 3, 2, 3), 500.0)
    timestep[:, 0] = 0
    wanted = models["5b"]["transformer"](inputs, timestep.flatten(1), given.text, return_dict=False)[0]
    found = five.velocity(noisy, SIGMA["low"], given)
    torch.testing.assert_close(found[:, :, 1:], wanted[:, :, 1:], rtol=0, atol=1e-5)
    # What is given moves straight to what it is, whatever the model says.
    torch.testing.assert_close(noisy[:, :, 0] - 0.5 * found[:, :, 0], given.values[:, :, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_ti2v_ends_at_the_condition(five, solver):
    from svi.generation.sampler import denoise
    from svi.schedule import shifted_sigmas

    given = condition(48)
    sigmas = shifted_sigmas(4, 5.0)
    noise = draw(7, 1, 48, 3, 4, 6)
    latents = denoise(five.velocity, given, given.text, noise=noise, sigmas=sigmas, guidance=5.0, solver=solver)
    torch.testing.assert_close(latents[:, :, 0], given.values[:, :, 0], rtol=0, atol=1e-4)
    assert latents.isfinite().all()


def test_vae_of_wan22_streams_as_diffusers_decodes(five, models):
    vae = models["5b"]["vae"]
    video = draw(1, 1, 3, 5, 32, 64).clamp(-1, 1)
    mean, std = (
        torch.tensor(values).view(1, 48, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    latents = five.encode_video(video)
    torch.testing.assert_close(latents, (vae.encode(video).latent_dist.mode() - mean) / std, rtol=1e-4, atol=1e-4)
    assert latents.shape == (1, 48, 2, 2, 4)
    whole = vae.decode(latents / (1 / std) + mean).sample
    frames = torch.cat(list(five.decode(latents)))
    wanted = ((whole + 1) * 127.5).clip(0, 255).to(torch.uint8)[0].permute(1, 2, 3, 0)
    assert frames.shape == (5, 32, 64, 3)
    assert (frames.int() - wanted.int()).abs().max() <= 1


def test_ti2v_geometry_is_told_before_loading(folders, five):
    for layout in ("diffusers", "official"):
        geometry, info = peek(str(folders["5b", layout]))
        assert geometry == five.geometry
        assert (geometry.latent_channels, geometry.spatial_scale, geometry.size_multiple) == (48, 16, 32)
        assert info.defaults["num_frames"] == 9  # svi.json wins
    bare = folders["5b", "official"] / "svi.json"
    kept = bare.read_text()
    bare.unlink()
    geometry, _ = peek(str(folders["5b", "official"]))
    bare.write_text(kept)
    assert (geometry.height, geometry.width, geometry.num_frames, geometry.fps) == (704, 1280, 121, 24)


# -- what the experts share --------------------------------------------------------------------------------------------


def test_one_expert_alone(folders, models):
    given, noisy = condition(16), draw(1, 1, 16, 3, 4, 6)
    whole, low = load(folders["a14b", "official"]), load(folders["a14b", "official"], expert="low")
    assert low.experts is None
    assert torch.equal(whole.velocity(noisy, SIGMA["low"], given), low.velocity(noisy, SIGMA["low"], given))
    assert low.runner is low.transformer
    with pytest.raises(UserError, match="one transformer, not two experts"):
        load(folders["2.1", "official"], expert="low")


def test_batch_across_the_boundary(folders):
    backend = load(folders["a14b", "diffusers"])
    given, noisy = condition(16), draw(1, 3, 16, 3, 4, 6)
    sigma = torch.tensor([0.5, 0.95, 0.2])
    batch = ClipCondition(
        given.values.expand(3, -1, -1, -1, -1), given.known.expand(3, -1, -1, -1, -1), given.text.expand(3, -1, -1)
    )
    together = backend.velocity(noisy, sigma, batch)
    for index in range(3):
        alone = backend.velocity(noisy[index : index + 1], sigma[index : index + 1], given)
        torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("keep", ["both", "swap", "reload"])
def test_keeping_one_or_both_gives_the_same_bits(folders, keep):
    given, noisy = condition(16), draw(1, 1, 16, 3, 4, 6)
    wanted = load(folders["a14b", "diffusers"], keep_experts="both")
    lines = []
    backend = load(folders["a14b", "diffusers"], keep_experts=keep, progress=lines.append)
    high = weakref.ref(backend.experts.take("high"))
    for side in ("high", "low", "high", "low"):
        found = backend.velocity(noisy, SIGMA[side], given)
        assert torch.equal(found, wanted.velocity(noisy, SIGMA[side], given))
    assert (high() is None) == (keep == "reload")
    assert sum("low-noise" in line for line in lines) == (2 if keep == "reload" else 1)


def test_a_new_name_for_a_layout_changes_no_hash_of_content(folders):
    files = load(folders["a14b", "official"]).info.files
    assert {name.partition("/")[0] for name in files} >= {
        "high_noise_model",
        "low_noise_model",
        "Wan2.1_VAE.pth",
        "google",
    }


# -- LoRAs -------------------------------------------------------------------------------------------------------------


def lora(path, seed, module="blocks.0.self_attn.q"):
    made = {f"{module}.lora_A.weight": draw(seed, 4, 96), f"{module}.lora_B.weight": draw(seed + 1, 96, 4)}
    save_file(made, path)
    return path


@pytest.mark.parametrize("keep", ["both", "reload"])
def test_each_expert_gets_its_lora(folders, tmp_path, keep):
    given, noisy = condition(16), draw(1, 1, 16, 3, 4, 6)
    high = lora(tmp_path / "svi_HIGH_noise.safetensors", 10)
    low = lora(tmp_path / "svi_low_noise.safetensors", 20)
    plain = load(folders["a14b", "official"])
    base = {side: plain.velocity(noisy, SIGMA[side], given) for side in SIGMA}
    one = load(folders["a14b", "official"], loras=[str(high)], keep_experts=keep)
    assert torch.equal(one.velocity(noisy, SIGMA["low"], given), base["low"])
    assert not torch.equal(one.velocity(noisy, SIGMA["high"], given), base["high"])
    both = load(folders["a14b", "official"], loras=[str(high), str(low)], keep_experts=keep)
    assert list(both.info.loras) == ["svi_HIGH_noise", "svi_low_noise"]
    both.set_lora_strengths({"svi_low_noise": 0.0})
    assert not torch.equal(both.velocity(noisy, SIGMA["high"], given), base["high"])
    torch.testing.assert_close(both.velocity(noisy, SIGMA["low"], given), base["low"], rtol=0, atol=1e-6)
    both.set_lora_strengths({})
    assert not torch.allclose(both.velocity(noisy, SIGMA["low"], given), base["low"], atol=1e-4)
    with pytest.raises(UserError, match="did you mean 'svi_low_noise'"):
        both.set_lora_strengths({"svi_low_nose": 1.0})


def test_a_lora_that_names_no_expert_is_on_both(folders, tmp_path):
    given, noisy = condition(16), draw(1, 1, 16, 3, 4, 6)
    plain = load(folders["a14b", "official"])
    both = load(folders["a14b", "official"], loras=[str(lora(tmp_path / "style.safetensors", 10))])
    for sigma in SIGMA.values():
        assert not torch.equal(both.velocity(noisy, sigma, given), plain.velocity(noisy, sigma, given))


def test_a_lora_that_does_not_fit_the_low_expert_is_refused_at_once(folders, tmp_path):
    wrong = lora(tmp_path / "wrong_low.safetensors", 10, module="blocks.7.self_attn.q")
    with pytest.raises(UserError, match=r"blocks\.7"):
        load(folders["a14b", "official"], loras=[str(wrong)], keep_experts="reload")


# -- whole videos ------------------------------------------------------------------------------------------------------

FITTING = [
    *((("a14b", layout), preset) for layout in ("official", "diffusers", "loose") for preset in ("svi2-wan22", "pro")),
    *(
        (("2.1", "official"), preset)
        for preset in ("wan", "shot", "film", "film-transitions", "film-opt", "tom", "svi2-wan21")
    ),
    *((("5b", "official"), preset) for preset in ("wan", "tom")),
]


@pytest.mark.parametrize(
    ("model", "preset"), FITTING, ids=lambda value: "-".join(value) if isinstance(value, tuple) else value
)
def test_three_clips_from_the_command_line(folders, tmp_path, model, preset, capsys):
    Image.linear_gradient("L").resize((64, 32)).convert("RGB").save(tmp_path / "cat.png")
    words = ["generate", tmp_path / "cat.png", "--prompt", "a cat moves", "--clips", "3", "--model", folders[model]]
    words += ["--preset", preset, "--out", tmp_path / "run", "--device", "cpu", "--quiet"]
    assert main([str(word) for word in words]) == 0, capsys.readouterr().err
    assert (tmp_path / "run" / "video.mp4").stat().st_size > 0
    assert len(list((tmp_path / "run" / "clips").glob("*/take-0/clip.json"))) == 3


def test_names_that_comfyui_puts_in_front(models, tmp_path):
    for prefix in ("", "diffusion_model."):
        folder = write_loose(tmp_path / (prefix or "bare"), models["a14b"], prefix=prefix)
        assert load(folder, expert="high").geometry.num_frames == 9


def test_three_transformers_in_one_folder_need_a_choice(folders, models, tmp_path):
    folder = copy_of(folders["a14b", "loose"], tmp_path / "many")
    save_file(official_dit(models["a14b"]["transformer"]), folder / "diffusion_models" / "third.safetensors")
    with pytest.raises(UserError, match="holds 3 transformers"):
        load(folder)


def test_an_image_encoder_of_another_model_is_told(folders):
    backend = load(folders["2.1", "official"])
    wrong = replace(condition(16, image=True), image=draw(4, 1, 257, 48))
    with pytest.raises(ValueError, match=r"48 numbers per token, this transformer reads 64"):
        backend.velocity(draw(1, 1, 16, 3, 4, 6), SIGMA["low"], wrong)


def test_official_shards(folders, tmp_path):
    folder = copy_of(folders["a14b", "official"], tmp_path / "shards")
    place = folder / "low_noise_model"
    stored = sorted(load_file(place / "diffusion_pytorch_model.safetensors").items())
    weight_map = {}
    for number, some in enumerate((stored[:9], stored[9:]), 1):
        name = f"diffusion_pytorch_model-{number:05d}-of-00002.safetensors"
        save_file(dict(some), place / name)
        weight_map |= {key: name for key, _ in some}
    (place / "diffusion_pytorch_model.safetensors").unlink()
    (place / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    given, noisy = condition(16), draw(1, 1, 16, 3, 4, 6)
    whole = load(folders["a14b", "official"])
    assert torch.equal(load(folder).velocity(noisy, SIGMA["low"], given), whole.velocity(noisy, SIGMA["low"], given))


# -- how it runs -------------------------------------------------------------------------------------------------------


def test_a_memory_profile_changes_no_bit_on_a_cpu(folders):
    given, noisy = condition(16), draw(1, 1, 16, 3, 4, 6)
    lines = []
    plain, planned = (
        load(folders["a14b", "official"]),
        load(folders["a14b", "official"], memory="auto", progress=lines.append),
    )
    for sigma in SIGMA.values():
        assert torch.equal(plain.velocity(noisy, sigma, given), planned.velocity(noisy, sigma, given))
    assert any("estimated peak" in line for line in lines)
    assert planned.placement.estimate is not None


def test_a_wrong_word_about_running_is_told_before_the_model_is_looked_for():
    with pytest.raises(UserError, match="unknown speed"):
        load_backend("no/such-model", speed="fats")
    with pytest.raises(UserError, match="unknown memory profile"):
        load_backend("pocket", device="cpu", memory="lwo")
