"""The causal video VAE: normalised latents, and decoding as a stream.

Knows ``AutoencoderKLWan`` of diffusers, and is the only place that touches its private streaming state
(``_cached_conv_counts``, ``feat_cache``, ``first_chunk``); a test pins that the stream equals ``vae.decode``. Also the
only place that reaches into a convolution (``Conv3d._conv_forward``), where a test pins what comes out.
Knows nothing about clips, prompts or the transformer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def channels_last(module: ModuleT) -> ModuleT:
    """Lay video convolution kernels out as CPUs like them."""
    for parameter in module.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return module


def fast_convolutions(module: ModuleT) -> ModuleT:
    """Let the video convolutions of a module on a CPU use oneDNN whatever their size.

    For one small video in fp32 torch falls back to a kernel that takes five times as long: a clip of the pocket model spent
    half its time there.
    """
    if torch.backends.mkldnn.is_available():
        for part in module.modules():
            if isinstance(part, nn.Conv3d):
                part._conv_forward = partial(_onednn, part)  # type: ignore[method-assign]  # meant: of this module alone
    return channels_last(module)


def _onednn(conv: nn.Conv3d, video: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What ``Conv3d._conv_forward`` computes, for zero padding (Wan's causal convolutions pad by themselves)."""
    if video.device.type != "cpu":  # the module has been moved since
        return nn.Conv3d._conv_forward(conv, video, weight, bias)
    shape = (conv.padding, conv.stride, conv.dilation, conv.groups)
    result: Tensor = torch.ops.aten.mkldnn_convolution(video, weight, bias, *shape)
    return result


class WanVae:
    """Encode and decode in normalised latent space, in fp32."""

    def __init__(self, vae: Any) -> None:
        on_cpu = vae.device.type == "cpu"
        self.vae = fast_convolutions(vae) if on_cpu else vae
        self._layout = torch.channels_last_3d if on_cpu else torch.contiguous_format
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
        video = video.to(self.vae.device, torch.float32).contiguous(memory_format=self._layout)
        latents = self.vae.encode(video).latent_dist.mode()
        mean, inverse_std = self._statistics(latents)
        return (latents - mean) * inverse_std

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """Normalised latents ``(B, C, F, h, w)`` -> float video ``(B, 3, t, H, W)`` in [-1, 1], t = 1, then 4 per latent frame.

        Bit-identical to ``vae.decode``, which holds all frames and copies what it has at every latent frame.
        """
        return self.decode_stream([latents])

    @torch.no_grad()
    def decode_stream(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """As :meth:`decode`, for latents that come in pieces and follow one another in time.

        The decoder remembers what came before across pieces: only the first latent frame of all is decoded as a single picture.
        """
        cache: list[Any] = [None] * self.vae._cached_conv_counts["decoder"]
        first = True
        for piece in pieces:
            latents = piece.to(self.vae.device, torch.float32)
            mean, inverse_std = self._statistics(latents)
            with torch.no_grad():  # does not reach into a generator that is resumed under another mode, hence per chunk
                whole = (latents / inverse_std + mean).contiguous(memory_format=self._layout)
                hidden = self.vae.post_quant_conv(whole)
            for index in range(hidden.shape[2]):
                with torch.no_grad():
                    chunk = hidden[:, :, index : index + 1]
                    frames = self.vae.decoder(chunk, feat_cache=cache, feat_idx=[0], first_chunk=first)
                first = False
                yield frames.clamp_(-1.0, 1.0)


def to_uint8(video: Tensor) -> Tensor:
    """Float video ``(B, 3, t, H, W)`` in [-1, 1] -> uint8 ``(B, t, H, W, 3)`` on the CPU, truncated, not rounded.

    Truncation is what the published code does, and these frames are fed back into the next clip.
    """
    return ((video.float() + 1.0) * 127.5).clip(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous().cpu()
