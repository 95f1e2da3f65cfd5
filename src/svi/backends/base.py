"""What every video model offers to the rest: a protocol, no implementation, no model library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from svi.condition import ClipCondition
from svi.geometry import Geometry


@dataclass(frozen=True)
class ModelInfo:
    """What a run has to remember of a model.

    Attributes:
        name: how the user named it (``pocket``, a folder, a hub id).
        files: ``{relative file name: sha256}`` of every weight and configuration file in use.
        loras: ``{LoRA name: sha256}`` of the LoRA files in use, in loading order.
        lora_strengths: strength of each as it was loaded.
        lora_sources: what the user gave for each (a name or a file), so that a resumed run finds it again.
        stored: how the files of its transformer hold their numbers where they are quantised (``scaled fp8``, ``GGUF``).
        defaults: settings the model recommends (``steps``, ``guidance``, ``shift``, ``negative_prompt``); they win over the preset's.
    """

    name: str
    files: Mapping[str, str] = field(default_factory=dict)
    loras: Mapping[str, str] = field(default_factory=dict)
    lora_strengths: Mapping[str, float] = field(default_factory=dict)
    lora_sources: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    stored: str | None = None


@runtime_checkable
class Backend(Protocol):
    """A video diffusion transformer with its VAE and encoders."""

    geometry: Geometry
    info: ModelInfo

    def encode_video(self, video: Tensor) -> Tensor:
        """``(B, 3, T, H, W)`` in [-1, 1] -> ``(B, C, F, h, w)`` normalised latents, fp32 (posterior mode)."""
        ...

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """``(1, C, F, h, w)`` normalised -> uint8 frames ``(t, H, W, 3)`` in order, truncated as published."""
        ...

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> ``(B, 512, D)``, zero after each prompt's last token."""
        ...

    def encode_image(self, images: Tensor) -> Tensor | None:
        """``(B, 3, H, W)`` in [-1, 1] -> ``(B, N, D)`` CLIP features (penultimate layer), None without an image branch."""
        ...

    def velocity(self, noisy: Tensor, sigma: Tensor, condition: ClipCondition) -> Tensor:
        """Predicted ``noise - clean`` for ``noisy`` ``(B, C, F, h, w)`` at ``sigma`` ``(B,)``, fp32."""
        ...

    def set_lora_strengths(self, strengths: Mapping[str, float]) -> None:
        """Strength of each loaded LoRA for what follows; one that is not named gets the strength it was loaded with.

        An unknown name is a ValueError naming the nearest.
        """
        ...
