"""What one clip leaves for the next: explicit, serialisable, constant in size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from svi.conditioning.policy import ConditioningPolicy


@dataclass(frozen=True)
class ClipMemory:
    """State carried between clips.

    Attributes:
        reference: ``(B, H, W, 3)`` uint8, the user's image; never changes within a run.
        frames: ``(B, m, H, W, 3)`` uint8, the last decoded frames (pixel hand-off); before the first clip the reference.
        latents: ``(B, C, k, h, w)`` fp32 normalised: the last latents (latent hand-off), or the first ones after that of the
            reference (inverted hand-off); None before the first clip.
        clip_index: how many clips are made, which is the index of the next one where they are made in order.
    """

    reference: Tensor
    frames: Tensor
    latents: Tensor | None = None
    clip_index: int = 0

    @classmethod
    def start(cls, reference: Tensor) -> ClipMemory:
        """Memory before the first clip. ``reference``: ``(B, H, W, 3)`` or ``(H, W, 3)`` uint8.

        The first clip gets a single frame even where later ones get five, as published (``test_svi.py``).
        """
        if reference.ndim == 3:
            reference = reference[None]
        if reference.dtype != torch.uint8 or reference.ndim != 4 or reference.shape[-1] != 3:
            raise ValueError(f"reference must be uint8 (B, H, W, 3), not {reference.dtype} {tuple(reference.shape)}")
        return cls(reference=reference, frames=reference[:, None])

    def update(self, frames: Tensor, latents: Tensor, policy: ConditioningPolicy) -> ClipMemory:
        """Memory after a clip. ``frames``: ``(B, T, H, W, 3)`` uint8, all decoded frames; ``latents``: ``(B, C, F, h, w)``."""
        motion, count = max(1, policy.motion_frames), policy.motion_latents
        kept = slice(1, 1 + count) if policy.hand_off == "inverted" else slice(-count, None)
        return ClipMemory(
            reference=self.reference,
            frames=frames[:, -motion:].clone(),
            latents=latents[:, :, kept].float().clone() if count else None,
            clip_index=self.clip_index + 1,
        )

    @classmethod
    def together(cls, memories: Sequence[ClipMemory]) -> ClipMemory:
        """The memories of several videos as one batch; they are of the same clip and the same sizes."""
        first = memories[0]
        if len(memories) == 1:
            return first
        if any(each.clip_index != first.clip_index for each in memories):
            raise ValueError("videos that are made together must be at the same clip")
        latents = [each.latents for each in memories if each.latents is not None]
        return cls(
            reference=torch.cat([each.reference for each in memories]),
            frames=torch.cat([each.frames for each in memories]),
            latents=torch.cat(latents) if latents else None,
            clip_index=first.clip_index,
        )

    def apart(self) -> list[ClipMemory]:
        """Inverse of :meth:`together`: a memory for each video of the batch."""
        count = self.reference.shape[0]
        latents = [None] * count if self.latents is None else self.latents.chunk(count)
        parts = zip(self.reference.chunk(count), self.frames.chunk(count), latents, strict=True)
        return [ClipMemory(reference, frames, state, self.clip_index) for reference, frames, state in parts]

    def tensors(self) -> dict[str, Tensor]:
        """Everything needed to restore this memory, as named tensors (safetensors-ready)."""
        state = {"reference": self.reference, "frames": self.frames, "clip_index": torch.tensor([self.clip_index])}
        return state if self.latents is None else {**state, "latents": self.latents}

    @classmethod
    def from_tensors(cls, state: Mapping[str, Tensor]) -> ClipMemory:
        """Inverse of :meth:`tensors`."""
        return cls(state["reference"], state["frames"], state.get("latents"), int(state["clip_index"].item()))
