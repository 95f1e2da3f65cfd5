"""The stream of the Wan 2.2 VAE, which works on patches of pixels; everything else is as in :mod:`svi.backends.vae`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from svi.backends.vae import WanVae


class PatchedVae(WanVae):
    """A VAE whose decoder gives ``(B, 3 p p, t, H / p, W / p)``: put together to pixels as ``vae.decode`` does."""

    def decode_stream(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """As :meth:`svi.backends.vae.WanVae.decode_stream`."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        for frames in super().decode_stream(pieces):
            yield unpatchify(frames, patch_size=self.vae.config.patch_size)


def codec(vae: Any) -> WanVae:
    """The stream that fits a VAE of Wan 2.1 or 2.2."""
    return WanVae(vae) if vae.config.patch_size is None else PatchedVae(vae)
