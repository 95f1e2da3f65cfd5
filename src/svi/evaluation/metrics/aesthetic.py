"""Aesthetic quality: LAION's linear head, version 1, on CLIP ViT-L/14, frame by frame.

Knows nothing about videos on disk. It favours over-exposed and degraded frames at times; never read it alone.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

import numpy as np

from svi.errors import UserError
from svi.evaluation.metric import Sample, Score, Skipped
from svi.evaluation.metrics import weights
from svi.evaluation.metrics.extract import Extractor, FrameMetric, Setup
from svi.evaluation.metrics.formulas import laion, mean_over_windows


class PerFrameMean(FrameMetric):
    """A score per frame and its mean; ``series``: ``frame`` in percent, and with profile ``"long"`` ``clip``."""

    def finish(self, rows: np.ndarray, sample: Sample) -> Score | Skipped:
        scores = self.per_frame(rows)
        parts = self.windows(len(scores), sample)
        values = [float(np.mean(scores[start:stop])) for start, stop in parts]
        series = {"frame": (list(range(len(scores))), (100 * scores).tolist())}
        if self.setup.profile == "long":
            series["clip"] = ([start for start, _ in parts], [100 * value for value in values])
        mean = mean_over_windows(values, [stop - start for start, stop in parts], self.setup.mode)
        return Score(100 * mean, series, {"worst": 100 * float(scores.min())})

    @abstractmethod
    def per_frame(self, rows: np.ndarray) -> np.ndarray:
        """``(n, d)`` rows to ``(n,)`` scores in [0, 1]."""


class AestheticQuality(PerFrameMean):
    """Mean of LAION's score over all frames, over 10, in percent.

    Args:
        setup: how it runs. Mode ``"clean"`` antialiases; the middle square stays, as the head was trained on it.
        extractor: frames to CLIP embeddings, instead of the real network.
        head: ``(weight (d,), bias)``, instead of the real head.
    """

    base: ClassVar[str] = "aesthetic_quality"
    files: ClassVar[tuple[str, ...]] = ("clip-vit-l14", "laion-aesthetic-v1")

    def __init__(
        self,
        setup: Setup | None = None,
        extractor: Extractor | None = None,
        head: tuple[np.ndarray, float] | None = None,
    ) -> None:
        super().__init__(setup, extractor)
        self._head = head

    def load(self) -> Extractor:
        from svi.evaluation.metrics.encoders import load_clip

        return load_clip(weights.verified("clip-vit-l14", self.setup.places), self.setup)

    def per_frame(self, rows: np.ndarray) -> np.ndarray:
        if self._head is None:
            self._head = load_head(weights.verified("laion-aesthetic-v1", self.setup.places))
        return laion(rows, *self._head)


def load_head(path: Path) -> tuple[np.ndarray, float]:
    """``(weight (768,), bias)`` of ``sa_0_4_vit_l_14_linear.pth``.

    Raises:
        UserError: something else is in the file.
    """
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if shapes != {"weight": (1, 768), "bias": (1,)}:
        raise UserError(f"{path} is not LAION's linear head for ViT-L/14 (it holds {shapes}): fetch it again")
    return state["weight"][0].double().numpy(), float(state["bias"][0])
