"""What a model costs, held to the modules themselves: on the meta device at full size, and on small ones that run."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from svi.backends.layouts import CLIP_VIT_H, UMT5_XXL
from svi.backends.memory import (
    GIB,
    KNOWN_MODELS,
    Layout,
    ModelSizes,
    TransformerShape,
    Window,
    estimate,
    image_encoder_parameters,
    text_encoder_parameters,
)
from svi.backends.random_weights import random_vae
from svi.backends.vae_cost import WAN21_VAE, WAN22_VAE, VaeShape

I2V, WINDOW = KNOWN_MODELS["wan2.1-i2v-14b"]
TINY = TransformerShape(2, 32, 36, 16, 24, 64, 96, 2, image_dim=20, added_kv_proj_dim=64)
SMALL_VAE = VaeShape(base_dim=4, num_res_blocks=1)
SMALL_PATCHED_VAE = VaeShape(
    base_dim=4,
    decoder_base_dim=8,
    z_dim=16,
    in_channels=12,
    out_channels=12,
    is_residual=True,
    patch_size=2,
    num_res_blocks=1,
)


def on_meta(shape):
    from dataclasses import asdict

    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        return WanTransformer3DModel(**asdict(shape))


def vae_on_meta(shape):
    from dataclasses import asdict

    from diffusers import AutoencoderKLWan

    plain = dict(latents_mean=[0.0] * shape.z_dim, latents_std=[1.0] * shape.z_dim)
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(shape).items()}
    with torch.device("meta"):
        return AutoencoderKLWan(**given, **plain)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def counted_flops(transformer, latent_shape, shape):
    frames, height, width = latent_shape
    with torch.device("meta"):
        inputs = dict(
            hidden_states=torch.empty(1, shape.in_channels, frames, height, width),
            timestep=torch.empty(1),
            encoder_hidden_states=torch.empty(1, 512, shape.text_dim),
            encoder_hidden_states_image=torch.empty(1, 257, shape.image_dim) if shape.image_dim else None,
        )
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            transformer(**inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("shape", [TINY, *(sizes.transformer for sizes, _ in KNOWN_MODELS.values())])
def test_parameters_of_transformers(shape):
    assert shape.parameters == count(on_meta(shape))


def test_published_count():
    assert I2V.transformer.parameters == 16_394_878_784


@pytest.mark.parametrize("shape", [SMALL_VAE, SMALL_PATCHED_VAE, WAN21_VAE, WAN22_VAE])
def test_parameters_of_vaes(shape):
    assert shape.parameters == count(vae_on_meta(shape))


def test_parameters_of_encoders():
    from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        text, image = UMT5EncoderModel(UMT5Config(**UMT5_XXL)), CLIPVisionModel(CLIPVisionConfig(**CLIP_VIT_H))
    assert text_encoder_parameters(UMT5_XXL) == count(text)
    assert image_encoder_parameters(CLIP_VIT_H) == count(image)


def test_sizes_are_read_off_modules():
    modules = {"transformer": on_meta(TINY), "vae": vae_on_meta(SMALL_VAE)}
    sizes = ModelSizes.of_modules("tiny", modules)
    assert (sizes.transformer, sizes.vae, sizes.experts, sizes.text_parameters) == (TINY, SMALL_VAE, 1, 0)


@pytest.mark.parametrize("shape", [TINY, TransformerShape(2, 32, 16, 16, 24, 64, 96, 3)])
def test_flops_of_a_forward_pass(shape):
    assert shape.forward_flops(shape.tokens((3, 8, 6))) == counted_flops(on_meta(shape), (3, 8, 6), shape)


def test_flops_of_the_14b_model_at_its_window():
    tokens = I2V.transformer.tokens(I2V.latent_shape(WINDOW))
    assert tokens == 32_760
    assert I2V.transformer.forward_flops(tokens) == pytest.approx(1.686e15, rel=1e-3)
    assert I2V.transformer.forward_flops(tokens) == counted_flops(
        on_meta(I2V.transformer), (21, 60, 104), I2V.transformer
    )


@pytest.mark.parametrize("shape", [SMALL_VAE, SMALL_PATCHED_VAE])
def test_flops_and_memory_of_a_vae(shape):
    """Counted while it really works; memory is what the decoder holds after its third piece."""
    vae = random_vae(shape, torch.device("cpu"), torch.Generator().manual_seed(0))
    frames, height, width = 13, 32, 48
    scale = 8 * shape.pixel
    latents = torch.zeros(1, shape.z_dim, 4, height // scale, width // scale)
    video = torch.zeros(1, 3, frames, height, width)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as encoding:
            vae.encode(video)
        with FlopCounterMode(display=False) as decoding:
            vae.decode(latents)
        cache = [None] * vae._cached_conv_counts["decoder"]
        hidden = vae.post_quant_conv(latents)
        for index in range(3):
            vae.decoder(hidden[:, :, index : index + 1], feat_cache=cache, feat_idx=[0], first_chunk=index == 0)
    assert shape.encode_flops(frames, height, width) == encoding.get_total_flops()
    assert shape.decode_flops(frames, height, width) == decoding.get_total_flops()
    held = sum(entry.numel() * entry.element_size() for entry in cache if isinstance(entry, torch.Tensor))
    assert shape.memory_bytes(height, width) == held


def test_vae_costs_at_full_size():
    """Against what was derived from the published code, and scaled from a run at real width."""
    assert WAN21_VAE.decode_flops(81, 480, 832) == pytest.approx(275e12, rel=0.03)
    assert WAN21_VAE.encode_flops(81, 480, 832) == pytest.approx(163e12, rel=0.03)
    assert WAN21_VAE.memory_bytes(480, 832) == pytest.approx(3.78e9, rel=0.08)


def test_estimates_against_published_peaks():
    """Resident bf16 with all encoders is published as 50 to 53 GB (LightX2V), the lean streaming profile as 12 to 16."""
    resident = estimate(I2V, WINDOW, Layout())
    streaming = estimate(I2V, WINDOW, Layout("visit", "cpu", "visit", block_bytes=1))
    assert 45 < resident.peak / GIB < 60
    assert streaming.peak / GIB < 12
    assert streaming.ram > I2V.transformer.num_layers * I2V.transformer.block_parameters


def test_less_is_never_estimated_as_more():
    layouts = [
        Layout(),
        Layout("device", "visit", "visit"),
        Layout("visit", "visit", "visit"),
        Layout("visit", "cpu", "visit"),
    ]
    peaks = [estimate(I2V, WINDOW, layout).peak for layout in layouts]
    assert peaks == sorted(peaks, reverse=True)
    windows = [Window(480, 832, 33), Window(480, 832, 81), Window(720, 1280, 81)]
    phases = [estimate(I2V, window, Layout()).phases for window in windows]
    for name, strictly in (("denoises", 3), ("works in the VAE", 2), ("encodes text", 1)):
        values = [phase[name] for phase in phases]
        assert values == sorted(values)
        assert len(set(values)) == strictly  # a VAE streams: frames cost it time, not memory


def test_two_experts_in_turn_take_one_model_less():
    sizes, window = KNOWN_MODELS["wan2.2-i2v-a14b"]
    both, one = (estimate(sizes, window, Layout(in_turn=turn)) for turn in (False, True))
    weights = 2 * sizes.transformer.parameters
    assert both.peak - one.peak == pytest.approx(1.06 * weights, rel=0.01)
    assert one.ram - both.ram == weights
