"""The causal video VAE: normalised latents, and decoding as a stream.

Knows ``AutoencoderKLWan`` of diffusers, and is the only place that touches its private streaming state
(``_cached_conv_counts``, ``feat_cache``, ``first_chunk``); a test pins that the stream equals ``vae.decode``.
Knows nothing about clips, prompts or the transformer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


class WanVae:
    """Encode and decode in normalised latent space, in fp32."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        shape = (1, -1, 1, 1, 1)
        self._mean = torch.tensor(vae.config.latents_mean).view(shape)
        # Multiplying by the reciprocal, not dividing, is what the published code does: it differs in the last bit.
        self._inverse_std = (1.0 / torch.tensor(vae.config.latents_std)).view(shape)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return self._mean.to(like), self._inverse_std.to(like)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """``(B, 3, T, H, W)`` in [-1, 1] -> normalised posterior mode ``(B, C, F, h, w)``, fp32.

        Raises:
            ValueError: for another layout, or frames that are not ``4n + 1`` (the VAE would drop the rest silently).
        """
        scale = self.vae.config.scale_factor_temporal
        if video.ndim != 5 or video.shape[1] != 3:
            raise ValueError(f"video must be (B, 3, T, H, W), not {tuple(video.shape)}")
        if (video.shape[2] - 1) % scale:
            raise ValueError(f"the VAE takes {scale}n+1 frames, not {video.shape[2]}")
        latents = self.vae.encode(video.to(self.vae.device, torch.float32)).latent_dist.mode()
        mean, inverse_std = self._statistics(latents)
        return (latents - mean) * inverse_std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """Normalised latents ``(B, C, F, h, w)`` -> float video ``(B, 3, t, H, W)`` in [-1, 1], t = 1, then 4 per latent frame.

        Bit-identical to ``vae.decode``, which holds all frames and copies what it has at every latent frame.
        """
        latents = latents.to(self.vae.device, torch.float32)
        mean, inverse_std = self._statistics(latents)
        hidden = self.vae.post_quant_conv(latents / inverse_std + mean)
        cache: list[Any] = [None] * self.vae._cached_conv_counts["decoder"]
        for index in range(hidden.shape[2]):
            # no_grad does not reach into a generator that is resumed under another mode, hence per chunk.
            with torch.no_grad():
                frames = self.vae.decoder(
                    hidden[:, :, index : index + 1], feat_cache=cache, feat_idx=[0], first_chunk=index == 0
                )
            yield frames.clamp_(-1.0, 1.0)


def to_uint8(video: Tensor) -> Tensor:
    """Float video ``(B, 3, t, H, W)`` in [-1, 1] -> uint8 ``(B, t, H, W, 3)`` on the CPU, truncated, not rounded.

    Truncation is what the published code does, and these frames are fed back into the next clip.
    """
    return ((video.float() + 1.0) * 127.5).clip(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous().cpu()
