"""Wan 2.1 image-to-video behind the :class:`~svi.backends.base.Backend` protocol, and the one way to load a model.

Knows the model classes of diffusers and transformers. Knows nothing about clips, presets or runs: the pocket model
and the 14B model differ in their folder only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from svi.backends.base import Backend, ModelInfo
from svi.backends.encoders import TEXT_TOKENS, TextEncoder, clip_features, clip_pixels
from svi.backends.placement import Placement, choose
from svi.backends.text_attention import fold_text_padding
from svi.backends.vae import WanVae, to_uint8
from svi.condition import ClipCondition
from svi.errors import UserError
from svi.geometry import Geometry

TIMESTEPS = 1000.0


class WanBackend:
    """A Wan image-to-video model: transformer, VAE, UMT5, and CLIP where the model has an image branch.

    Latents, sigmas and velocities are fp32 whatever the transformer's type, so that rounding does not add up over
    the steps. Parts that :func:`load_backend` loads are frozen; through :meth:`velocity`, :meth:`encode_text` and
    :meth:`encode_image` gradients reach whatever the caller unfreezes, the VAE computes without.

    Attributes:
        geometry, info: see :class:`~svi.backends.base.Backend`.
        placement: device and types, with the reasons.
        transformer, vae, text_encoder, tokenizer, image_encoder: the parts, as the libraries make them.
        loras: the attached LoRAs, or None.
        runner: what :meth:`velocity` calls: the transformer, or a wrapper of it that trains it in several processes.
    """

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any | None,
        image_encoder: Any | None = None,
        *,
        info: ModelInfo | None = None,
        placement: Placement | None = None,
        loras: Any | None = None,
    ) -> None:
        """Wrap parts that are already loaded.

        Raises:
            UserError: for a transformer that does not read an image condition (text-to-video).
        """
        self.transformer, self.vae, self.runner = transformer, vae, transformer
        self.text_encoder, self.tokenizer, self.image_encoder = text_encoder, tokenizer, image_encoder
        self.info = info or ModelInfo("unnamed")
        self.placement = placement or Placement(torch.device(transformer.device), transformer.dtype)
        self.loras = loras
        self.geometry = _geometry(transformer, vae, self.info.defaults)
        self._codec = WanVae(vae)
        self._prompts = TextEncoder(text_encoder, tokenizer)
        if self.device.type == "cpu":
            fold_text_padding(transformer)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.placement.device

    @property
    def has_image_branch(self) -> bool:
        """Whether the transformer reads CLIP features."""
        return self.transformer.config.image_dim is not None

    def encode_video(self, video: Tensor) -> Tensor:
        """``(B, 3, T, H, W)`` in [-1, 1] -> ``(B, C, F, h, w)`` normalised latents, fp32 (posterior mode)."""
        return self._codec.encode(video)

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """``(1, C, F, h, w)`` normalised -> uint8 frames ``(t, H, W, 3)`` on the CPU: one, then four per latent frame.

        Raises:
            ValueError: for more than one video.
            FloatingPointError: where the latents are not finite; they would become arbitrary pixels.
        """
        if latents.ndim != 5 or latents.shape[0] != 1:
            raise ValueError(f"latents must be (1, C, F, h, w), not {tuple(latents.shape)}")
        if not torch.isfinite(latents).all():
            raise FloatingPointError(
                "the latents hold NaN or infinity: run in fp32 or bf16, or check weights and LoRAs"
            )
        for video in self._codec.decode(latents):
            yield to_uint8(video)[0]

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> ``(B, 512, D)`` fp32, zero after each prompt's last token."""
        return self._prompts(prompts)

    def encode_image(self, images: Tensor) -> Tensor | None:
        """``(B, 3, H, W)`` in [-1, 1] -> ``(B, N, D)`` CLIP features (last layer but one), None without an image branch."""
        if not self.has_image_branch:
            return None
        if self.image_encoder is None:
            raise UserError("the transformer reads CLIP features, but the model folder has no image encoder")
        pixels = clip_pixels(images.to(self.device), self.image_encoder.config.image_size)
        return clip_features(self.image_encoder, pixels)

    def velocity(self, noisy: Tensor, sigma: Tensor, condition: ClipCondition) -> Tensor:
        """Predicted ``noise - clean`` for ``noisy`` ``(B, C, F, h, w)`` at ``sigma`` ``(B,)``, fp32.

        Raises:
            ValueError: for a text that is not exactly 512 tokens long, or an image embedding that is missing or in excess.
        """
        if condition.text.shape[1] != TEXT_TOKENS:
            raise ValueError(f"text must be padded to {TEXT_TOKENS} tokens, not {condition.text.shape[1]}")
        if (condition.image is not None) != self.has_image_branch:
            state = "needs" if self.has_image_branch else "has no place for"
            raise ValueError(f"this model {state} an image embedding")
        device, dtype = self.device, self.placement.dtype
        inputs = torch.cat([noisy, condition.known.to(noisy), condition.values.to(noisy)], dim=1)
        timestep = TIMESTEPS * torch.as_tensor(sigma, dtype=torch.float32, device=device)
        predicted = self.runner(
            hidden_states=inputs.to(device, dtype),
            timestep=timestep.expand(noisy.shape[0]),
            encoder_hidden_states=condition.text.to(device, dtype),
            encoder_hidden_states_image=None if condition.image is None else condition.image.to(device, dtype),
            return_dict=False,
        )[0]
        return predicted.to(noisy.device, torch.float32)

    def set_lora_strengths(self, strengths: Mapping[str, float]) -> None:
        """Strength of each loaded LoRA for what follows; one that is not named gets the strength it was loaded with.

        Raises:
            UserError: for a LoRA that is not loaded; the message names the nearest.
        """
        if self.loras is not None:
            self.loras.set_strengths(strengths)
        elif strengths:
            raise UserError(f"no LoRA is loaded, so {next(iter(strengths))!r} has no strength: load it with --lora")


def _geometry(transformer: Any, vae: Any, defaults: Mapping[str, Any]) -> Geometry:
    """Scales from the parts' own configuration, the window from what the model folder recommends."""
    window = {key: int(defaults[key]) for key in ("height", "width", "num_frames", "fps") if key in defaults}
    geometry = Geometry(
        latent_channels=vae.config.z_dim,
        temporal_scale=vae.config.scale_factor_temporal,
        spatial_scale=vae.config.scale_factor_spatial,
        patch=tuple(transformer.config.patch_size),
        **window,
    )
    expected = 2 * geometry.latent_channels + geometry.temporal_scale
    if transformer.config.in_channels != expected:
        raise UserError(
            f"the transformer reads {transformer.config.in_channels} channels, image-to-video needs {expected}: "
            "this is a text-to-video model; take the I2V one"
        )
    return geometry


def load_backend(
    model: str = "pocket",
    *,
    loras: Sequence[str] = (),
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    allow_download: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Backend:
    """Load a model with its LoRAs.

    Args:
        model: ``pocket`` (the built-in one), a folder in the diffusers or the official Wan layout, or a hub id.
        loras: ``NAME|FILE[:STRENGTH]`` each; see :mod:`svi.backends.lora`.
        device: left out, the CUDA device if there is one, otherwise the CPU.
        dtype: of transformer and text encoder; left out, bf16 where the card computes in it, otherwise fp32.
        allow_download: whether a hub id that is not on this machine may be downloaded. Nothing is otherwise.
        progress: called with one line at each stage.

    Raises:
        UserError: for an unknown model, missing or damaged files (named, with the remedy), a LoRA that does not fit.
    """
    from svi.backends import weights
    from svi.backends.lora import load_loras, parse_spec

    say = progress or (lambda line: None)
    specs = [parse_spec(spec) for spec in loras]
    placement = choose(device, dtype)
    folder = weights.find_model(model, allow_download=allow_download)
    with weights.quiet_libraries():
        parts = weights.load_parts(folder, placement, say)
        adapters = load_loras(parts.transformer, specs, folder=folder) if specs else None
        # Set even where it is the default: an environment variable of diffusers would change it unseen.
        parts.transformer.set_attention_backend(placement.attention)
    info = ModelInfo(
        name=model,
        files=weights.hashes(folder, parts.files),
        loras={} if adapters is None else adapters.files,
        lora_strengths={spec.name: spec.strength for spec in specs},
        lora_sources={spec.name: spec.origin for spec in specs},
        defaults=parts.defaults,
    )
    for line in placement.lines():
        say(line)
    return WanBackend(
        parts.transformer,
        parts.vae,
        parts.text_encoder,
        parts.tokenizer,
        parts.image_encoder,
        info=info,
        placement=placement,
        loras=adapters,
    )
