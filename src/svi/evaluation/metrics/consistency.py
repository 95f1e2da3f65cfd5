"""Subject and background consistency: how much each frame looks like the one before and like the first.

Knows nothing about videos on disk. Both are blind to copies: a frozen video scores 100 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from svi.evaluation.metric import Sample, Score, Skipped
from svi.evaluation.metrics import weights
from svi.evaluation.metrics.extract import Extractor, FrameMetric
from svi.evaluation.metrics.formulas import consistency, cosines


class Consistency(FrameMetric):
    """The formula that both share, over any extractor.

    ``value`` is in percent. ``series``: cosines ``to_previous`` and ``to_first`` per frame (drift is in the second);
    with profile ``"long"`` also ``clip``. ``extra``: ``first_share`` and ``previous_share``, the two halves in percent;
    with ``"long"`` also ``clip_to_clip``, the same formula over the first frames of the clips and the same network.
    (VBench-Long has that only behind its ``--dev_flag``, with DINOv2 and DreamSim and a table that maps it; without
    that flag, as here, its value sees no drift from clip to clip.)

    ``weight`` is the number of frames but the first: in mode ``"vbench"`` long videos weigh more.
    """

    def finish(self, rows: np.ndarray, sample: Sample) -> Score | Skipped:
        if len(rows) < 2:
            return Skipped("one frame only: consistency compares frames")
        parts = [part for part in self.windows(len(rows), sample) if part[1] - part[0] >= 2]
        counts = [stop - start - 1 for start, stop in parts]
        values = [float(np.mean(consistency(rows[start:stop], self.setup.mode))) for start, stop in parts]
        previous, first = cosines(rows)
        at = range(1, len(rows))
        series: dict[str, tuple[Sequence[int], Sequence[float]]] = {
            "to_previous": (at, previous.tolist()),
            "to_first": (at, first.tolist()),
        }
        extra = {"previous_share": 100 * float(previous.mean()), "first_share": 100 * float(first.mean())}
        if self.setup.profile == "long":
            series["clip"] = ([start for start, _ in parts], [100 * value for value in values])
            if len(parts) > 1:
                starts = rows[[start for start, _ in parts]]
                extra["clip_to_clip"] = 100 * float(np.mean(consistency(starts, self.setup.mode)))
        weighted = self.setup.mode == "vbench" and self.setup.profile == "paper"
        return Score(self.averaged(values, counts), series, extra, weight=len(rows) - 1 if weighted else 1.0)


class SubjectConsistency(Consistency):
    """Consistency of DINO ViT-B/16 class tokens."""

    base: ClassVar[str] = "subject_consistency"
    files: ClassVar[tuple[str, ...]] = ("dino-vitb16",)

    def load(self) -> Extractor:
        from svi.evaluation.metrics.encoders import load_dino

        return load_dino(weights.verified(self.files[0], self.setup.places), self.setup)


class BackgroundConsistency(Consistency):
    """Consistency of CLIP ViT-B/32 image embeddings: of the middle square, in mode ``"clean"`` of the whole frame."""

    base: ClassVar[str] = "background_consistency"
    files: ClassVar[tuple[str, ...]] = ("clip-vit-b32",)

    def load(self) -> Extractor:
        from svi.evaluation.metrics.encoders import load_clip

        whole = self.setup.mode == "clean"
        return load_clip(weights.verified(self.files[0], self.setup.places), self.setup, whole=whole)
