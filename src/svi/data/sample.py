"""What training sees of a window: a sample, and a batch of samples of one shape. Tensors only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from svi.condition import ClipCondition


@dataclass(frozen=True, eq=False)
class Sample:
    """One window, encoded; fp32 but for the pictures.

    Attributes:
        id: of the window.
        caption: what happens in it.
        clean: ``(C, F, h, w)`` normalised latents.
        values, known: its condition, ``(C, F, h, w)`` and ``(S, F, h, w)``; see :class:`~svi.condition.ClipCondition`.
        text: ``(l, D)`` embedding of the caption, its real tokens only.
        text_tokens: length L that the model wants a text padded to.
        anchor: ``(C, 1, h, w)`` latents of the reference.
        reference: ``(H, W, 3)`` uint8.
        image: ``(N, D)`` CLIP features, None without an image branch.
        first: whether it is conditioned as the first clip of a video.
    """

    id: str
    caption: str
    clean: Tensor
    values: Tensor
    known: Tensor
    text: Tensor
    text_tokens: int
    anchor: Tensor
    reference: Tensor
    image: Tensor | None
    first: bool


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """B windows of one shape.

    Attributes:
        clean: ``(B, C, F, h, w)`` normalised latents, fp32.
        condition: what they are conditioned on.
        anchor: ``(B, C, 1, h, w)`` latents of the references.
        reference: ``(B, H, W, 3)`` uint8, on the CPU.
        captions, ids: B each.
        first: ``(B,)`` bool, which are conditioned as the first clip of a video.
    """

    clean: Tensor
    condition: ClipCondition
    anchor: Tensor
    reference: Tensor
    captions: tuple[str, ...]
    ids: tuple[str, ...]
    first: Tensor

    @property
    def size(self) -> int:
        return self.clean.shape[0]

    def to(self, device: torch.device | str) -> TrainingBatch:
        """The same on another device; the reference pictures and ``first`` stay."""
        condition = self.condition
        moved = replace(
            condition,
            values=condition.values.to(device),
            known=condition.known.to(device),
            text=condition.text.to(device),
            image=None if condition.image is None else condition.image.to(device),
        )
        return replace(self, clean=self.clean.to(device), anchor=self.anchor.to(device), condition=moved)


def collate(samples: Sequence[Sample]) -> TrainingBatch:
    """A batch of samples of one shape.

    Raises:
        ValueError: for no samples, for unequal shapes, and where some have image features and some have none.
    """
    if not samples:
        raise ValueError("a batch has at least one sample")
    shapes = {tuple(sample.clean.shape) for sample in samples}
    if len(shapes) > 1:
        raise ValueError(f"the samples of a batch have one shape, not {sorted(shapes)}: draw them from one bucket")
    images = [sample.image for sample in samples if sample.image is not None]
    if len(images) not in (0, len(samples)):
        raise ValueError("some samples have image features and some have none")
    condition = ClipCondition(
        values=torch.stack([sample.values for sample in samples]),
        known=torch.stack([sample.known for sample in samples]),
        text=torch.stack([padded(sample.text, sample.text_tokens) for sample in samples]),
        image=torch.stack(images) if images else None,
    )
    return TrainingBatch(
        clean=torch.stack([sample.clean for sample in samples]),
        condition=condition,
        anchor=torch.stack([sample.anchor for sample in samples]),
        reference=torch.stack([sample.reference for sample in samples]),
        captions=tuple(sample.caption for sample in samples),
        ids=tuple(sample.id for sample in samples),
        first=torch.tensor([sample.first for sample in samples]),
    )


def padded(text: Tensor, tokens: int) -> Tensor:
    """``(l, D)`` real tokens -> ``(tokens, D)``, zeros after them."""
    return F.pad(text, (0, 0, 0, tokens - text.shape[0]))


def real_tokens(text: Tensor) -> Tensor:
    """``(L, D)`` -> ``(l, D)`` without the zeros after the last token; at least one row."""
    filled = text.abs().amax(dim=-1).nonzero()
    last = int(filled[-1]) + 1 if len(filled) else 1
    return text[:last]
