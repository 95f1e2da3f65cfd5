"""Classifier-free guidance: which predictions a step needs, and how they become one velocity.

A *branch* is one evaluation of the model on a variation of the clip's condition. Branches are data, so that a
sampler evaluates only those that count: at scale 1 there is one. Knows nothing about models or conditions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Branch = Literal["full", "without_text", "without_both"]
"""``full``: the prompt and the drive. ``without_text``: the negative prompt, the drive kept (as published for Dance's
pose). ``without_both``: the negative prompt and a zero drive."""


def combine_text(full: Tensor, without_text: Tensor, scale: float) -> Tensor:
    """Text guidance: ``without_text + scale * (full - without_text)``."""
    return without_text + scale * (full - without_text)


def combine_drive(
    full: Tensor, without_text: Tensor, without_both: Tensor, text_scale: float, drive_scale: float
) -> Tensor:
    """Three-way guidance of SVI-Talk, as published: ``U + text_scale * (A - D) + drive_scale * (D - U)``.

    A = ``full``, D = ``without_text`` (the audio alone), U = ``without_both``.
    """
    return without_both + text_scale * (full - without_text) + drive_scale * (without_text - without_both)


@dataclass(frozen=True)
class Guidance:
    """Guidance scales of a clip.

    Attributes:
        text: text scale; 1 = the prompt alone, one evaluation per step.
        drive: scale of the driving signal (audio); None = the drive stays in all branches (two-way guidance).
        low_noise_text: text scale below ``boundary``, where a second expert takes over (Wan 2.2); None = ``text``.
        boundary: noise level of that hand-over; levels at or above it belong to the high-noise expert.
    """

    text: float
    drive: float | None = None
    low_noise_text: float | None = None
    boundary: float | None = None

    def __post_init__(self) -> None:
        if self.low_noise_text is not None and self.boundary is None:
            raise ValueError("low_noise_text needs a boundary: the noise level at which the second expert takes over")

    def text_scale(self, sigma: float) -> float:
        """Text scale at noise level ``sigma``."""
        low = self.boundary is not None and sigma < self.boundary
        return self.low_noise_text if low and self.low_noise_text is not None else self.text

    def branches(self, sigma: float) -> tuple[Branch, ...]:
        """Branches whose predictions count at ``sigma``, in the order in which to evaluate them."""
        text = self.text_scale(sigma)
        if self.drive is None or self.drive == text:  # D cancels where both scales agree
            other: Branch = "without_text" if self.drive is None else "without_both"
            return ("full",) if text == 1 else ("full", other)
        if self.drive == 1:  # U cancels
            return ("full", "without_text")
        return ("full", "without_text", "without_both")

    @property
    def needs_negative(self) -> bool:
        """Whether any noise level needs the negative prompt."""
        low = self.boundary is not None and self.low_noise_text is not None
        levels = (1.0, -1.0) if low else (1.0,)
        return any(len(self.branches(level)) > 1 for level in levels)

    def combine(self, sigma: float, predictions: Mapping[Branch, Tensor]) -> Tensor:
        """One velocity from the predictions of :meth:`branches` at ``sigma``."""
        branches, text = self.branches(sigma), self.text_scale(sigma)
        full = predictions["full"]
        if len(branches) == 1:
            return full
        if len(branches) == 2:
            return combine_text(full, predictions[branches[1]], text)
        drive = text if self.drive is None else self.drive
        return combine_drive(full, predictions["without_text"], predictions["without_both"], text, drive)
