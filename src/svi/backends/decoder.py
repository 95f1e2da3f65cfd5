"""The VAE of a model alone, for decoding what was made before: without the tens of gigabytes that lie beside it.

Knows nothing about clips, runs or transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from svi.backends.models_vae import codec
from svi.backends.placement import choose
from svi.backends.vae import WanVae, to_uint8
from svi.errors import UserError


class Decoder:
    """Normalised latents to frames.

    Attributes:
        temporal_scale: frames per latent frame after the first.
    """

    def __init__(self, vae: WanVae) -> None:
        self._codec = vae
        self.temporal_scale = int(vae.vae.config.scale_factor_temporal)

    def decode_stream(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """Latents ``(1, C, F, h, w)`` in pieces that follow one another in time -> uint8 frames ``(t, H, W, 3)`` on the CPU.

        Raises:
            ValueError: for more than one video.
            FloatingPointError: where latents are not finite; they would become arbitrary pixels.
        """
        return decoded(self._codec, pieces)


def decoded(vae: WanVae, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    """Frames of one video: see :meth:`Decoder.decode_stream`."""
    for video in vae.decode_stream(map(_checked, pieces)):
        yield to_uint8(video)[0]


def _checked(latents: Tensor) -> Tensor:
    if latents.ndim != 5 or latents.shape[0] != 1:
        raise ValueError(f"latents must be (1, C, F, h, w), not {tuple(latents.shape)}")
    if not torch.isfinite(latents).all():
        raise FloatingPointError("the latents hold NaN or infinity: run in fp32 or bf16, or check weights and LoRAs")
    return latents


def load_decoder(model: str, *, device: str | None = None, files: Mapping[str, str] | None = None) -> Decoder:
    """Load the VAE of a model.

    Args:
        model: as ``svi.load`` takes it; nothing is downloaded.
        files: hashes that its files must have, by name, as a run remembers them; None = any.

    Raises:
        UserError: for an unknown model, missing or damaged files, or another VAE than ``files`` says.
    """
    from svi.backends import weights
    from svi.backends.models_parts import survey

    placement = choose(device)
    folder = weights.find_model(model)
    part = survey(folder).parts["vae"]
    found = weights.hashes(folder, [*part.documents, *part.files])
    for name, digest in found.items():
        if files is not None and files.get(name) != digest:
            raise UserError(f"{folder / name} is not the file that this run was made with: give the same model")
    with weights.quiet_libraries():
        part.verify()
        return Decoder(codec(part.load(placement)))
