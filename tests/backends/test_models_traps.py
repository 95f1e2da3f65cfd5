"""What a stock pipeline does differently without a word, and traps of the libraries: each pinned, here or where it says.

Silent deviations of ``WanImageToVideoPipeline`` from the published method:
1 UniPC at shift 3 with whole timesteps, 2 Euler sigmas shifted twice: here.
3 CLIP sees a crop, 4 texts of another length than 512, 7 rounded instead of truncated frames: test_wan.py.
5 latents in the model's type, 6 noise in another type: here.
8 one motion frame only: tests/unit/test_conditioning.py.

Traps: LoRAs that load nothing: test_lora.py. Text length, CLIP crop, truncation: test_wan.py. The others: here.
"""

import socket
import tomllib
from pathlib import Path

import pytest
import torch
from models_tiny import SIGMA, condition, draw, parts, write_diffusers, write_loose, write_official

from svi.backends.wan import load_backend
from svi.condition import ClipCondition
from svi.generation.sampler import clip_noise, denoise
from svi.schedule import shifted_sigmas


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home, made = tmp_path_factory.mktemp("traps"), parts("a14b")
    return {
        "diffusers": write_diffusers(home / "diffusers", made),
        "official": write_official(home / "official", made),
        "loose": write_loose(home / "loose", made),
    }


@pytest.fixture(scope="module")
def backend(folders):
    return load_backend(str(folders["official"]), device="cpu", dtype="fp32")


# -- deviations of the stock pipeline ----------------------------------------------------------------------------------


def test_1_stock_folders_come_with_unipc_and_whole_timesteps():
    from diffusers import UniPCMultistepScheduler

    stock = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    stock.set_timesteps(50)
    assert not stock.timesteps.is_floating_point()
    ours = 1000 * shifted_sigmas(50, 5.0)[:-1]
    assert (ours != ours.round()).float().mean() > 0.9
    assert (ours - stock.timesteps).abs().max() > 50
    seen = []

    def velocity(noisy, sigma, given):
        seen.append(1000 * sigma[0].item())
        return torch.zeros_like(noisy)

    given = condition(16)
    noise = clip_noise(0, given.latent_shape)
    denoise(velocity, given, None, noise=noise, sigmas=shifted_sigmas(50, 5.0), guidance=1.0)
    assert seen == pytest.approx(ours.tolist(), abs=1e-3)


@pytest.mark.parametrize(("steps", "shift"), [(4, 3.0), (20, 5.0), (50, 5.0)])
def test_2_default_euler_sigmas_are_not_the_published_ones(steps, shift):
    from diffusers import FlowMatchEulerDiscreteScheduler

    ours = shifted_sigmas(steps, shift)
    stock = FlowMatchEulerDiscreteScheduler(shift=shift)
    stock.set_timesteps(steps)
    assert (stock.sigmas - ours).abs().max() > 0.05
    stock.set_timesteps(sigmas=torch.linspace(1.0, 0.0, steps + 1)[:-1].numpy())
    assert torch.equal(stock.sigmas, ours)


def test_5_a_bf16_model_does_not_round_the_state():
    given = condition(16)
    noise, sigmas = clip_noise(0, given.latent_shape), shifted_sigmas(50, 5.0)
    exact = denoise(lambda x, s, c: 0.3 * x, given, None, noise=noise, sigmas=sigmas, guidance=1.0)
    low = denoise(lambda x, s, c: (0.3 * x).bfloat16(), given, None, noise=noise, sigmas=sigmas, guidance=1.0)
    assert low.dtype == torch.float32
    assert (low - exact).abs().max() / exact.abs().max() < 2e-3  # a state in bf16: 2.5e-2


def test_6_noise_is_fp32_from_the_cpu():
    noise = clip_noise(42, (1, 16, 3, 4, 6))
    wanted = torch.randn((1, 16, 3, 4, 6), generator=torch.Generator("cpu").manual_seed(42), dtype=torch.float32)
    assert torch.equal(noise, wanted)


# -- traps of the libraries --------------------------------------------------------------------------------------------


def test_nothing_is_carried_from_one_evaluation_to_the_next(backend):
    """Caches of diffusers keep state across clips, and some mix up the branches of guidance: none is on."""
    given = condition(16)
    other = ClipCondition(given.values, given.known, given.text.flip(1))
    noisy = draw(1, 1, 16, 3, 4, 6)
    for sigma in SIGMA.values():
        first, second = (backend.velocity(noisy, sigma, one) for one in (given, other))
        again, before = (backend.velocity(noisy, sigma, one) for one in (other, given))
        assert torch.equal(first, before)
        assert torch.equal(second, again)
        assert not torch.equal(first, second)


@pytest.mark.parametrize("layout", ["diffusers", "official", "loose"])
def test_no_parameter_stays_without_a_value(folders, layout):
    """``from_pretrained`` on an official folder returns a model without weights after a mere warning."""
    backend = load_backend(str(folders[layout]), device="cpu", dtype="fp32")
    transformers = [backend.experts.take(side) for side in ("high", "low")]
    for part in (*transformers, backend.vae, backend.text_encoder):
        for name, value in [*part.named_parameters(), *part.named_buffers()]:
            assert not value.is_meta, name


@pytest.mark.parametrize("layout", ["diffusers", "official", "loose"])
def test_no_layout_asks_the_hub(folders, layout, monkeypatch):
    """``from_single_file`` without a configuration does."""

    def refuse(*args, **kwargs):
        raise AssertionError("network access")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_backend(str(folders[layout]), device="cpu")


@pytest.mark.parametrize("layout", ["diffusers", "official", "loose"])
def test_types_are_the_same_in_every_layout(folders, layout):
    """``from_single_file`` casts everything; ``from_pretrained`` keeps norms and modulation in fp32, as here."""
    low = load_backend(str(folders[layout]), device="cpu", dtype="bf16")
    types = {name: value.dtype for name, value in low.experts.take("low").named_parameters()}
    assert types["blocks.0.attn1.to_q.weight"] == types["condition_embedder.time_proj.weight"] == torch.bfloat16
    assert types["scale_shift_table"] == types["blocks.0.norm2.weight"] == torch.float32
    assert types["condition_embedder.time_embedder.linear_1.weight"] == torch.float32


def test_attention_is_not_what_an_environment_variable_says(folders, monkeypatch):
    monkeypatch.setenv("DIFFUSERS_ATTN_BACKEND", "flex")
    backend = load_backend(str(folders["official"]), device="cpu", expert="high")
    chosen = {str(block.attn1.processor._attention_backend) for block in backend.transformer.blocks}
    assert all("native" in name.lower() for name in chosen)


def test_diffusers_is_pinned_to_a_minor_version():
    """Its hooks, caches and the insides of its VAE change between minor versions."""
    page = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    declared = tomllib.loads(page)["project"]["dependencies"]
    assert any(line.startswith("diffusers==0.") and line.endswith(".*") for line in declared)
