"""Sync-C and Sync-D: do lips and sound belong together, by SyncNet, over a track of one face?

Knows nothing about finding faces: it takes what the published pipeline takes after that, a video of 224 x 224 crops of
one face at 25 fps, and its sound. Audio files are opened here, as no reader hands out sound.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from svi.evaluation.metric import Better, Frames, Need, Reading, Sample, Score, Skipped, split
from svi.evaluation.metrics import weights
from svi.evaluation.metrics.extract import Extractor, NetworkMetric, Setup, Unscored
from svi.evaluation.metrics.formulas import Mode, sync_distances, sync_scores
from svi.evaluation.metrics.speech import MFCC_PER_FRAME, RATE, mfcc, read_speech

if TYPE_CHECKING:
    from svi.evaluation.metrics.syncnet import SyncNet

FPS = 25
SIDE = 224
FACES = 5  # frames in a window
SOUNDS = FACES * MFCC_PER_FRAME
REACH = 15  # shifts in frames that are tried, either way
WINDOW = 5 * FPS  # frames of a point of the curve
MIN_WINDOW = FPS


class Sync(NetworkMetric):
    """What Sync-C (confidence) and Sync-D (distance) share; LSE-C and LSE-D are the same pair.

    Distances between embeddings of 5 frames and of 0.2 s of sound are averaged over time for each shift of -15 to 15
    frames: ``D`` is the least of them, ``C`` the median less the least. Chance is about 0 for ``C``; real video of a
    speaker is the level to compare with.

    Mode ``"vbench"`` is the published code: beyond the ends of the sound it compares with zeros, and the last window is
    left out. ``"clean"`` does neither. ``extra``: both scores and ``offset`` in frames, positive where sound comes
    early. ``series``: both per 5 s, since a mean hides late loss of sync.

    Args:
        setup: how it runs; the profile does not matter.
        extractor: windows of faces ``(n, 5, 224, 224, 3)`` uint8 to ``(n, d)``, instead of SyncNet.
        sounds: windows of MFCC ``(n, 13, 20)`` to ``(n, d)``, instead of SyncNet.
    """

    files: ClassVar[tuple[str, ...]] = ("syncnet-v2",)
    unit: str = ""
    needs: frozenset[Need] = frozenset({Need.AUDIO})
    source: str = "Chung and Zisserman, Out of time, ACCV 2016 workshops; code of joonson/syncnet_python"

    def __init__(
        self,
        setup: Setup | None = None,
        extractor: Extractor | None = None,
        sounds: Extractor | None = None,
    ) -> None:
        super().__init__(setup, extractor)
        self.name = self.base + ("" if self.setup.mode == "vbench" else "_clean")
        self._sounds = sounds

    def load(self) -> Extractor:
        from svi.backends.placement import choose
        from svi.evaluation.metrics import syncnet

        place = choose(self.setup.device, self.setup.dtype)
        network = syncnet.load(weights.verified(self.files[0], self.setup.places), place.device).to(place.dtype)
        self._sounds = SoundEmbedding(network)
        return FaceEmbedding(network)

    def start(self, sample: Sample) -> Reading:
        reason = unfit(sample)
        if reason is not None:
            return Unscored(reason)
        assert sample.audio is not None
        faces = self.extractor()
        assert self._sounds is not None
        return SyncReading(faces, self._sounds, sample.audio, self.setup.batch_size, self.setup.mode, self.base)


class SyncC(Sync):
    """Confidence: higher is better, chance is about 0."""

    base: ClassVar[str] = "sync_c"


class SyncD(Sync):
    """Distance: lower is better."""

    base: ClassVar[str] = "sync_d"
    better: Better = Better.LOWER


def unfit(sample: Sample) -> str | None:
    """Why a sample is no track of one face with sound, or None."""
    if sample.audio is None:
        return "there is no audio"
    if abs(sample.fps - FPS) > 0.01:
        return f"sync is defined at {FPS} fps, this video has {sample.fps:g}: convert it"
    if (sample.height, sample.width) != (SIDE, SIDE):
        size = f"{sample.height} x {sample.width}"
        return (
            f"sync takes crops of one face, {SIDE} x {SIDE} pixels, this video has {size}: crop it with a face tracker"
        )
    return None


class SyncReading:
    """Embeds every window of 5 frames as it comes, and the sound at the end."""

    def __init__(
        self, faces: Extractor, sounds: Extractor, audio: Path, batch_size: int, mode: Mode, score: str
    ) -> None:
        self._faces, self._sounds, self._audio = faces, sounds, audio
        self._batch_size, self._mode, self._score = batch_size, mode, score
        self._tail = np.empty((0, SIDE, SIDE, 3), np.uint8)
        self._rows: list[np.ndarray] = []
        self._num_frames = 0

    def add(self, batch: Frames) -> None:
        self._num_frames += len(batch.frames)
        for part in split(batch, self._batch_size):
            frames = np.concatenate([self._tail, part.frames])
            windows = len(frames) - FACES + 1
            if windows > 0:
                stacked = np.stack([frames[k : k + FACES] for k in range(windows)])
                self._rows.append(np.asarray(self._faces(stacked), dtype=np.float32))
            self._tail = frames[-(FACES - 1) :].copy()

    def result(self) -> Score | Skipped:
        speech = read_speech(self._audio)
        lost = FACES if self._mode == "vbench" else FACES - 1
        count = min(self._num_frames, len(speech) * FPS // RATE) - lost
        if count < MIN_WINDOW:
            return Skipped("too short: sync needs more than a second of video and of sound")
        columns = mfcc(speech).T
        starts = range(0, count * MFCC_PER_FRAME, MFCC_PER_FRAME)
        sounds = [
            self._sounds(np.stack([columns[:, at : at + SOUNDS] for at in starts[k : k + 64]]))
            for k in range(0, count, 64)
        ]
        distances = sync_distances(np.concatenate(self._rows)[:count], np.concatenate(sounds), REACH, self._mode)
        confidence, distance, offset = sync_scores(distances)
        extra = {"sync_c": confidence, "sync_d": distance, "offset": float(offset)}
        return Score(extra[self._score], sync_over_time(distances), extra)


def sync_over_time(distances: np.ndarray) -> dict[str, tuple[Sequence[int], Sequence[float]]]:
    """Both scores in windows of 5 s; a last one below 1 s is left out."""
    starts = [at for at in range(0, len(distances), WINDOW) if len(distances) - at >= MIN_WINDOW]
    scores = [sync_scores(distances[at : at + WINDOW]) for at in starts]
    return {"sync_c": (starts, [score[0] for score in scores]), "sync_d": (starts, [score[1] for score in scores])}


class FaceEmbedding:
    """Windows of faces ``(n, 5, 224, 224, 3)`` uint8 RGB to ``(n, 1024)``; SyncNet has learnt BGR in 0..255."""

    def __init__(self, network: SyncNet, key: str = "") -> None:
        self.key = key
        self._network = network.eval()

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        import torch

        parameter = next(self._network.parameters())
        with torch.inference_mode():
            faces = torch.from_numpy(np.ascontiguousarray(frames[..., ::-1])).to(parameter.device)
            return self._network.faces(faces.permute(0, 4, 1, 2, 3).to(parameter.dtype)).float().cpu().numpy()


class SoundEmbedding:
    """Windows of MFCC ``(n, 13, 20)`` to ``(n, 1024)``."""

    def __init__(self, network: SyncNet, key: str = "") -> None:
        self.key = key
        self._network = network.eval()

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        import torch

        parameter = next(self._network.parameters())
        with torch.inference_mode():
            sounds = torch.from_numpy(np.ascontiguousarray(frames)).to(parameter.device, parameter.dtype)
            return self._network.sounds(sounds[:, None]).float().cpu().numpy()
