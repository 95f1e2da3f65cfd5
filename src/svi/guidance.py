"""Classifier-free guidance: which predictions a step needs, and how they become one velocity.

A *branch* is one evaluation of the model on a variation of the clip's condition. Branches are data, so that a
sampler evaluates only those that count: at scale 1 there is one. Knows nothing about models or conditions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from svi.schedule import is_high

Branch = Literal["full", "without_text", "without_both", "without_history"]
"""``full``: the prompt and all the rest. ``without_text``: the negative prompt, the rest kept (as published for Dance's
pose). ``without_both``: the negative prompt and a zero drive. ``without_history``: the negative prompt, and nothing of the clip
before."""
NEGATIVE: tuple[Branch, ...] = ("without_text", "without_both", "without_history")


def combine_text(full: Tensor, without_text: Tensor, scale: float) -> Tensor:
    """Text guidance: ``without_text + scale * (full - without_text)``."""
    return without_text + scale * (full - without_text)


def combine_further(
    full: Tensor, without_text: Tensor, without_both: Tensor, text_scale: float, further_scale: float
) -> Tensor:
    """Three-way guidance, by the text and by one thing more: ``U + text_scale * (A - D) + further_scale * (D - U)``.

    A = ``full``, D = ``without_text``, U = without both. The thing more is the audio of SVI-Talk, as published, or the history
    (vanilla history guidance, arXiv 2502.06764, with text guidance on top of it).
    """
    return without_both + text_scale * (full - without_text) + further_scale * (without_text - without_both)


@dataclass(frozen=True)
class Guidance:
    """Guidance scales of a clip.

    Attributes:
        text: text scale; 1 = the prompt alone, one evaluation per step.
        drive: scale of the driving signal (audio); None = the drive stays in all branches (two-way guidance).
        history: scale of what the clip before left; None = it stays in all branches. Not together with ``drive``.
        low_noise_text: text scale below ``boundary``, where a second expert takes over (Wan 2.2); None = ``text``.
        boundary: noise level of that hand-over; levels at or above it belong to the high-noise expert.
    """

    text: float
    drive: float | None = None
    low_noise_text: float | None = None
    boundary: float | None = None
    history: float | None = None

    def __post_init__(self) -> None:
        if self.drive is not None and self.history is not None:
            raise ValueError("only one of drive and history is guided beside the text")
        if self.low_noise_text is not None and self.boundary is None:
            raise ValueError("low_noise_text needs a boundary: the noise level at which the second expert takes over")

    def text_scale(self, sigma: float) -> float:
        """Text scale at noise level ``sigma``."""
        low = self.boundary is not None and not is_high(torch.tensor(sigma), self.boundary)
        return self.low_noise_text if low and self.low_noise_text is not None else self.text

    @property
    def _further(self) -> tuple[float | None, Branch]:
        """Scale of what is guided beside the text, if anything is, and the branch that lacks both."""
        return (self.drive, "without_both") if self.history is None else (self.history, "without_history")

    def branches(self, sigma: float) -> tuple[Branch, ...]:
        """Branches whose predictions count at ``sigma``, in the order in which to evaluate them."""
        text, (scale, without_both) = self.text_scale(sigma), self._further
        if scale is None or scale == text:  # D cancels where both scales agree
            other: Branch = "without_text" if scale is None else without_both
            return ("full",) if text == 1 else ("full", other)
        if scale == 1:  # U cancels
            return ("full", "without_text")
        return ("full", "without_text", without_both)

    def needs(self, branch: Branch) -> bool:
        """Whether any noise level needs ``branch``."""
        low = self.boundary is not None and self.low_noise_text is not None
        levels = (1.0, -1.0) if low else (1.0,)
        return any(branch in self.branches(level) for level in levels)

    @property
    def needs_negative(self) -> bool:
        """Whether any noise level needs the negative prompt."""
        return any(self.needs(branch) for branch in NEGATIVE)

    def combine(self, sigma: float, predictions: Mapping[Branch, Tensor]) -> Tensor:
        """One velocity from the predictions of :meth:`branches` at ``sigma``."""
        branches, text = self.branches(sigma), self.text_scale(sigma)
        full = predictions["full"]
        if len(branches) == 1:
            return full
        if len(branches) == 2:
            return combine_text(full, predictions[branches[1]], text)
        scale = self._further[0]
        assert scale is not None
        return combine_further(full, predictions["without_text"], predictions[branches[2]], text, scale)
