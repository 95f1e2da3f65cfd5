"""What one clip is conditioned on: a frozen bundle of tensors, neutral to the model that will read it.

``values`` and ``known`` are independent: Film gives five motion frames and flags one. How they enter a network
(channels, tokens) is the backend's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from torch import Tensor

_NO_DRIVE: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True)
class ClipCondition:
    """Conditioning of a batch of clips.

    Attributes:
        values: ``(B, C, F, h, w)`` normalised latents of what is given (motion, padding, anchor).
        known: ``(B, S, F, h, w)`` in {0, 1}: which of the S (temporal scale) frames of each latent frame the
            model may trust. The first latent frame repeats its single frame S times, as Wan's mask does.
        text: ``(B, L, D)`` text embedding, zero-padded by the backend.
        image: ``(B, N, D)`` image embedding (CLIP), or None where the model has no image branch.
        drive: further per-clip signals by name (audio, pose); empty for most.
    """

    values: Tensor
    known: Tensor
    text: Tensor
    image: Tensor | None = None
    drive: Mapping[str, Tensor] = field(default_factory=lambda: _NO_DRIVE)

    def __post_init__(self) -> None:
        if self.values.ndim != 5 or self.known.ndim != 5:
            raise ValueError("values and known are (B, C, F, h, w) and (B, S, F, h, w)")
        for name, tensor in (("known", self.known), ("text", self.text), ("image", self.image)):
            if tensor is not None and tensor.shape[0] != self.batch_size:
                raise ValueError(f"{name} has batch {tensor.shape[0]}, values has {self.batch_size}")
        if self.known.shape[2:] != self.values.shape[2:]:
            raise ValueError(f"known {tuple(self.known.shape)} does not fit values {tuple(self.values.shape)}")

    @property
    def batch_size(self) -> int:
        return self.values.shape[0]

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """``(B, C, F, h, w)`` of the latents to be denoised."""
        return tuple(self.values.shape)

    def with_text(self, text: Tensor) -> ClipCondition:
        """The same clip under another text (the negative prompt, say); a batch of one text serves all clips."""
        return replace(self, text=text.expand(self.batch_size, *text.shape[1:]))

    def with_error(self, error: Tensor | None) -> ClipCondition:
        """``values + error``: an image error (E_img, paper eq. 6) on the condition latents."""
        return self if error is None else replace(self, values=self.values + error)
