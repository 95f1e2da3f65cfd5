"""Imaging quality: MUSIQ trained on SPAQ, frame by frame, at a longer side of at most 512 pixels.

Knows nothing about videos on disk. Compression counts: a video that was encoded harder scores lower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from svi.evaluation.metrics import weights
from svi.evaluation.metrics.aesthetic import PerFrameMean
from svi.evaluation.metrics.extract import Extractor, resized, video_float
from svi.evaluation.metrics.formulas import Mode, imaging_size

if TYPE_CHECKING:
    import torch


class ImagingQuality(PerFrameMean):
    """Mean of MUSIQ's score (0 to 100) over all frames, in percent.

    Mode ``"clean"`` resizes with antialiasing and rounds the size instead of truncating it.
    """

    base: ClassVar[str] = "imaging_quality"
    files: ClassVar[tuple[str, ...]] = ("musiq-spaq",)

    def load(self) -> Extractor:
        from svi.backends.placement import choose
        from svi.evaluation.metrics import musiq

        place = choose(self.setup.device, self.setup.dtype)
        model = musiq.load(weights.verified("musiq-spaq", self.setup.places), place.device).to(place.dtype)
        return MusiqScores(model, self.setup.mode)

    def per_frame(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(rows[:, 0], dtype=np.float64) / 100


class MusiqScores:
    """``(n, H, W, 3)`` uint8 to ``(n, 1)``: MUSIQ at the size that the metric asks for."""

    def __init__(self, model: torch.nn.Module, mode: Mode, key: str = "") -> None:
        self.key = key
        self._model, self._mode = model.eval(), mode

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        import torch

        parameter = next(self._model.parameters())
        with torch.inference_mode():
            images = video_float(frames, parameter.device)
            size = imaging_size(images.shape[-2], images.shape[-1], self._mode)
            images = resized(images, size, "bilinear", self._mode) / 255
            scores: torch.Tensor = self._model(images.to(parameter.dtype))
        return scores.float().cpu().numpy()[:, None]
