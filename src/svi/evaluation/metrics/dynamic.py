"""Dynamic degree: does enough of a video move, by RAFT's optical flow at 8 frames per second?

Knows nothing about videos on disk. It counts motion of any kind: drift that flows scores as well as a dance.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import numpy as np

from svi.evaluation.metric import Reading, Sample, Score
from svi.evaluation.metrics import weights
from svi.evaluation.metrics.extract import Extractor, GroupReading, NetworkMetric, Unscored
from svi.evaluation.metrics.formulas import (
    Window,
    dynamic_frames,
    dynamic_interval,
    dynamic_need,
    dynamic_threshold,
    moves,
    top_flow,
)

MIN_SIDE = 128  # of RAFT: the coarsest of four levels of 1/8 of the frame must keep two pixels


class DynamicDegree(NetworkMetric):
    """100 if the video moves, else 0; with profile ``"long"`` the share of its clips that move.

    Every ``round(fps / 8)``-th frame is looked at. A pair moves if the fastest 5 % of its pixels exceed ``6 / 256`` of
    the shorter side; a video moves if a quarter of the frames looked at begin or end such a pair. So the score hangs on
    the frame rate in the header: the same frames "at 24 fps" are looked at less often than "at 16", with more motion
    per pair. Mode ``"clean"`` scales the threshold with the time between frames, asks for at least one pair, and leaves
    the padding out.

    ``series``: ``speed``, the flow of each pair as a share of the shorter side per second (18.75 % is the threshold at
    8 fps); with ``"long"`` also ``clip``. ``extra``: ``pairs``, ``moving``, ``needed`` (of the whole video) and
    ``threshold_px``.
    """

    base: ClassVar[str] = "dynamic_degree"
    files: ClassVar[tuple[str, ...]] = ("raft-large-things",)

    def load(self) -> Extractor:
        from svi.backends.placement import choose
        from svi.evaluation.metrics import raft

        place = choose(self.setup.device, self.setup.dtype)
        model = raft.load(weights.verified(self.files[0], self.setup.places), place.device).to(place.dtype)
        return raft.RaftFlow(model, self.setup.mode)

    def start(self, sample: Sample) -> Reading:
        if self._given is None and min(sample.height, sample.width) < MIN_SIDE:
            size = f"{sample.height} x {sample.width}"
            return Unscored(f"RAFT needs frames of at least {MIN_SIDE} x {MIN_SIDE} pixels; these have {size}")
        parts = self.windows(sample.num_frames, sample)
        parts = [part for part in parts if len(dynamic_frames(part, sample.fps)) >= 2]
        pairs = [pair for part in parts for pair in pairwise(dynamic_frames(part, sample.fps))]
        if not parts:
            return Unscored("too short: dynamic degree needs two of its frames, 1/8 s apart")
        # Flow of a pair is 200 MB of correlations at 480 x 832, so pairs go in far smaller batches than frames.
        batch_size = max(1, self.setup.batch_size // 8)
        speeds = FlowSpeed(self.extractor())
        return GroupReading(pairs, speeds, batch_size, lambda rows: self.finish(rows, parts, sample))

    def finish(self, rows: dict[tuple[int, ...], np.ndarray], parts: Sequence[Window], sample: Sample) -> Score:
        """From the speed of every pair, in pixels, to the score."""
        mode, fps = self.setup.mode, sample.fps
        seconds = dynamic_interval(fps) / fps
        threshold = dynamic_threshold(sample.height, sample.width, seconds if mode == "clean" else None)
        verdicts = []
        for part in parts:
            at = dynamic_frames(part, fps)
            speeds = np.array([float(rows[pair]) for pair in pairwise(at)])
            verdicts.append(float(moves(speeds, len(at), threshold, mode)))
        ordered = sorted(rows)
        pixels = np.array([float(rows[pair]) for pair in ordered])
        share = 100 * pixels / (min(sample.height, sample.width) * seconds)
        series: dict[str, tuple[Sequence[int], Sequence[float]]] = {
            "speed": ([pair[0] for pair in ordered], share.tolist())
        }
        if self.setup.profile == "long":
            series["clip"] = ([start for start, _ in parts], [100 * verdict for verdict in verdicts])
        extra = {
            "pairs": float(len(pixels)),
            "moving": float(np.sum(pixels > threshold)),
            "needed": float(dynamic_need(len(dynamic_frames((0, sample.num_frames), fps)), mode)),
            "threshold_px": threshold,
        }
        counts = [stop - start for start, stop in parts]
        return Score(self.averaged(verdicts, counts), series, extra)


class FlowSpeed:
    """Pairs of frames to one speed in pixels each, by an extractor of flow: no flow is kept."""

    def __init__(self, flow: Extractor) -> None:
        self.key = flow.key
        self._flow = flow

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        return top_flow(self._flow(frames))
