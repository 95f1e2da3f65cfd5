"""WanBackend over the model classes: types, layouts and the traps of the libraries."""

import socket
from dataclasses import replace

import pytest
import torch
from torch import nn

from svi.backends.base import Backend
from svi.backends.encoders import clean_prompt, clip_pixels
from svi.backends.vae import WanVae, fast_convolutions, to_uint8
from svi.backends.wan import WanBackend, load_backend
from svi.errors import UserError

SIGMA = torch.tensor([0.7])


def test_is_a_backend(backend):
    assert isinstance(backend, Backend)
    assert (backend.geometry.height, backend.geometry.width, backend.geometry.num_frames) == (64, 96, 17)
    assert backend.info.defaults["steps"] == 6


def test_no_parameter_is_trainable_or_without_value(backend):
    for part in (backend.transformer, backend.vae, backend.text_encoder, backend.image_encoder):
        assert not part.training
        for name, value in [*part.named_parameters(), *part.named_buffers()]:
            assert not value.is_meta, name
            assert not value.requires_grad, name


def test_both_layouts_give_the_same_bits(backend, kit_copy, inputs):
    other = load_backend(str(kit_copy), device="cpu", dtype="fp32")
    noisy, condition = inputs
    assert torch.equal(backend.velocity(noisy, SIGMA, condition), other.velocity(noisy, SIGMA, condition))
    assert torch.equal(backend.encode_text(["a red ball"]), other.encode_text(["a red ball"]))
    image = torch.linspace(-1, 1, 3 * 32 * 48).view(1, 3, 32, 48)
    assert torch.equal(backend.encode_image(image), other.encode_image(image))
    assert torch.equal(backend.encode_video(image[:, :, None]), other.encode_video(image[:, :, None]))
    latents = noisy
    assert all(torch.equal(a, b) for a, b in zip(backend.decode(latents), other.decode(latents), strict=True))


# -- velocity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 226, 511, 513, 600])
def test_text_of_another_length_is_refused(backend, inputs, length):
    noisy, condition = inputs
    with pytest.raises(ValueError, match="512 tokens"):
        backend.velocity(noisy, SIGMA, replace(condition, text=torch.zeros(1, length, 32)))


def test_missing_image_embedding_is_refused(backend, inputs):
    noisy, condition = inputs
    with pytest.raises(ValueError, match="needs an image embedding"):
        backend.velocity(noisy, SIGMA, replace(condition, image=None))


def test_velocity_reads_noisy_then_known_then_values_at_1000_sigma(backend, inputs):
    noisy, condition = inputs
    direct = backend.transformer(
        torch.cat([noisy, condition.known, condition.values], 1), torch.tensor([700.0]), condition.text, condition.image
    ).sample
    assert torch.equal(backend.velocity(noisy, SIGMA, condition), direct)


def test_batch_of_clips_at_different_noise_levels(backend, inputs):
    noisy, condition = inputs
    pair = replace(
        condition,
        **{name: getattr(condition, name).repeat_interleave(2, 0) for name in ("values", "known", "text", "image")},
    )
    sigma = torch.tensor([0.2, 0.9])
    together = backend.velocity(noisy.repeat_interleave(2, 0), sigma, pair)
    for index in range(2):
        alone = backend.velocity(noisy, sigma[index : index + 1], condition)
        torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-5)


def test_gradients_reach_the_condition(backend, inputs):
    noisy, condition = inputs
    values = condition.values.clone().requires_grad_()
    backend.velocity(noisy, SIGMA, replace(condition, values=values)).square().mean().backward()
    assert values.grad.abs().sum() > 0


def test_bf16_model_keeps_latents_in_fp32(diffusers_folder, backend, inputs):
    low = load_backend(str(diffusers_folder), device="cpu", dtype="bf16")
    noisy, condition = inputs
    velocity = low.velocity(noisy, SIGMA, condition)
    exact = backend.velocity(noisy, SIGMA, condition)
    assert velocity.dtype == torch.float32
    assert 0 < (velocity - exact).abs().max() < 0.1 * exact.abs().max()
    assert low.transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert low.transformer.scale_shift_table.dtype == torch.float32  # kept by diffusers too
    assert low.transformer.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
    assert {p.dtype for p in [*low.vae.parameters(), *low.image_encoder.parameters()]} == {torch.float32}
    video = torch.linspace(-1, 1, 3 * 32 * 48).view(1, 3, 1, 32, 48)
    assert torch.equal(low.encode_video(video), backend.encode_video(video))
    assert low.encode_text(["a cat"]).dtype == torch.float32


def test_text_to_video_model_is_refused(backend):
    from diffusers import WanTransformer3DModel

    small = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=16, text_dim=8, ffn_dim=8, num_layers=1
    )
    with pytest.raises(UserError, match="text-to-video"):
        WanBackend(small, backend.vae, backend.text_encoder, None)


# -- VAE ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latent_frames", [1, 2, 5])
def test_stream_equals_decode_to_the_bit(backend, latent_frames):
    latents = torch.randn(1, 16, latent_frames, 4, 6, generator=torch.Generator().manual_seed(0))
    codec = WanVae(backend.vae)
    mean = torch.tensor(backend.vae.config.latents_mean).view(1, 16, 1, 1, 1)
    std = torch.tensor(backend.vae.config.latents_std).view(1, 16, 1, 1, 1)
    scaled = (latents / (1 / std) + mean).contiguous(memory_format=torch.channels_last_3d)  # as the codec lays it out
    whole = backend.vae.decode(scaled).sample
    first, second = codec.decode(latents), codec.decode(latents)
    pairs = list(zip(first, second, strict=True))  # two streams at once do not disturb each other
    assert [a.shape[2] for a, _ in pairs] == [1] + [4] * (latent_frames - 1)
    for stream in zip(*pairs, strict=True):
        assert torch.equal(torch.cat(stream, 2), whole)


def test_encoding_between_chunks_does_not_disturb_the_stream(backend):
    latents = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    undisturbed = torch.cat(list(backend.decode(latents)))
    parts = []
    for part in backend.decode(latents):
        backend.encode_video(torch.zeros(1, 3, 5, 32, 48))
        parts.append(part)
    assert torch.equal(torch.cat(parts), undisturbed)


def test_encode_normalises_the_mode_by_the_reciprocal(backend):
    video = torch.rand(1, 3, 5, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean = torch.tensor(backend.vae.config.latents_mean).view(1, 16, 1, 1, 1)
    std = torch.tensor(backend.vae.config.latents_std).view(1, 16, 1, 1, 1)
    mode = backend.vae.encode(video).latent_dist.mode()
    assert torch.equal(backend.encode_video(video), (mode - mean) * (1 / std))


@pytest.mark.parametrize(
    ("size", "options"),
    [((1, 8, 6, 18, 18), {}), ((1, 8, 5, 9, 9), {"stride": (2, 1, 1)}), ((2, 8, 3, 8, 8), {"bias": False})],
)
def test_fast_convolutions_compute_the_same(size, options):
    torch.manual_seed(0)
    conv, video = nn.Conv3d(8, 12, 3, **options), torch.randn(size)
    plain = conv(video)
    fast = fast_convolutions(conv)
    with torch.profiler.profile() as profile:
        found = fast(video)
    assert torch.allclose(found, plain, atol=1e-5)
    if torch.backends.mkldnn.is_available():
        assert "aten::slow_conv3d_forward" not in {event.key for event in profile.key_averages()}
    found.square().mean().backward()
    assert conv.weight.grad.abs().max() > 0


@pytest.mark.parametrize("frames", [2, 4, 16])
def test_frames_that_the_vae_would_drop_are_refused(backend, frames):
    with pytest.raises(ValueError, match=r"4n\+1"):
        backend.encode_video(torch.zeros(1, 3, frames, 32, 48))


def test_uint8_is_truncated_not_rounded():
    values = torch.tensor([-1.5, -1.0, 0.0, 0.999, 1.0, 2.0]).view(1, 1, 1, 1, 6).expand(1, 3, 1, 1, 6)
    assert to_uint8(values)[0, 0, 0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]


def test_latents_that_are_not_finite_are_an_error(backend):
    latents = torch.zeros(1, 16, 1, 4, 6)
    latents[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="NaN"):
        list(backend.decode(latents))


# -- text and image ----------------------------------------------------------------------------------------------------


def test_text_is_zero_after_the_last_token_and_512_long(backend):
    text = backend.encode_text(["a red ball", "", "a blue cat moves left over the wall"])
    assert text.shape == (3, 512, 32)
    lengths = [4, 1, 9]  # words and the end token
    for row, length in zip(text, lengths, strict=True):
        assert (row[:length].abs().sum(-1) > 0).all()
        assert (row[length:] == 0).all()
    torch.testing.assert_close(text[:1], backend.encode_text(["a red ball"]), rtol=0, atol=1e-5)


def test_prompt_is_cleaned_as_wan_does(backend):
    messy, clean = (
        backend.encode_text(["  a red\n\t ball  &amp;amp; a  cat "]),
        backend.encode_text(["a red ball & a cat"]),
    )
    assert torch.equal(messy, clean)


def test_broken_text_is_repaired_as_wan_does():
    assert clean_prompt("a caf\u00c3\u00a9  in\u00a0Paris") == "a caf\u00e9 in Paris"


def test_prompt_longer_than_the_model_reads_says_so(backend):
    with pytest.warns(UserWarning, match="601 tokens"):
        text = backend.encode_text(["red " * 600])
    assert text.shape == (1, 512, 32)
    assert (text[0, -1] != 0).any()


def test_one_string_is_no_sequence_of_prompts(backend):
    with pytest.raises(TypeError):
        backend.encode_text("a cat")


def test_clip_image_is_squashed_not_cropped(backend):
    wide = -torch.ones(1, 3, 32, 96)
    wide[..., :8] = 1  # a centre crop to a square would cut this off
    pixels = clip_pixels(wide, 224)
    assert pixels.shape == (1, 3, 224, 224)
    assert pixels[0, 0, :, :16].mean() > 1.5
    assert pixels[0, 0, :, 30:].mean() < -1.5
    plain = clip_pixels(-torch.ones_like(wide), 224)
    assert not torch.equal(backend.encode_image(wide), backend.encode_image(-torch.ones_like(wide)))
    assert plain.std(dim=(2, 3)).max() < 1e-5


def test_image_feature_is_the_last_layer_but_one(backend):
    image = torch.linspace(-1, 1, 3 * 32 * 48).view(1, 3, 32, 48)
    states = backend.image_encoder(pixel_values=clip_pixels(image, 224), output_hidden_states=True).hidden_states
    assert torch.equal(backend.encode_image(image), states[-2])


# -- loading -----------------------------------------------------------------------------------------------------------


def test_same_model_loaded_twice_gives_the_same_bits(diffusers_folder, backend, inputs):
    again = load_backend(str(diffusers_folder), device="cpu", dtype="fp32")
    assert torch.equal(again.velocity(inputs[0], SIGMA, inputs[1]), backend.velocity(inputs[0], SIGMA, inputs[1]))
    assert again.info == backend.info


def test_nothing_goes_to_the_network(diffusers_folder, kit_copy, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("network access")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_backend(str(diffusers_folder))
    load_backend(str(kit_copy))
    with pytest.raises(UserError, match="--download"):
        load_backend("nobody/has-this-model")


def test_loading_is_silent_and_reports_its_stages(diffusers_folder, capfd, caplog):
    lines = []
    load_backend(str(diffusers_folder), progress=lines.append)
    captured = capfd.readouterr()
    assert (captured.out, captured.err, caplog.records) == ("", "", [])
    assert any("transformer" in line for line in lines)
    assert any(line.startswith("dtype") for line in lines)


def test_changed_weights_change_the_hash(model_copy):
    before = load_backend(str(model_copy)).info.files
    config = model_copy / "svi.json"
    config.write_text(config.read_text().replace("6", "7"))
    after = load_backend(str(model_copy)).info.files
    assert {name for name in before if before[name] != after[name]} == {"svi.json"}
    assert "transformer/diffusion_pytorch_model.safetensors" in before
    assert all(len(value) == 64 for value in before.values())
