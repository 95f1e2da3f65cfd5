"""FVD and KVD: the distance between two sets of videos, in the features of a network that has learnt actions.

Knows nothing about videos on disk. Values hang on the network, the length and stride of windows, and on how many there
are: this one takes I3D (Kinetics-400, logits) over non-overlapping windows of 16 consecutive frames, the same number of
windows on both sides, and prints beside each score what two halves of the true set score against each other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from svi.errors import UserError
from svi.evaluation.metric import Better, Reading, Sample, Score
from svi.evaluation.metrics import weights
from svi.evaluation.metrics.extract import Extractor, GroupReading, NetworkMetric, Setup, Unscored
from svi.evaluation.metrics.formulas import frechet, kernel_distance

if TYPE_CHECKING:
    import torch

WINDOW = 16
MIN_WINDOWS = 2  # a covariance of fewer does not exist


class Fvd(NetworkMetric):
    """Frechet video distance of two sets; a :class:`~svi.evaluation.metric.SetMetric`.

    A video's score has no ``value``; its ``features`` are ``(windows, 400)`` in order of time. :meth:`compare` makes
    the score of a set from them.

    Args:
        setup: how it runs.
        extractor: windows ``(n, 16, H, W, 3)`` to ``(n, d)``, instead of I3D.
        seed: of the draws of windows, halves and bootstrap samples.
        resamples: of the bootstrap over videos; 0 for none.
    """

    base: ClassVar[str] = "fvd"
    files: ClassVar[tuple[str, ...]] = ("i3d-torchscript",)
    unit: str = ""
    better: Better = Better.LOWER
    source: str = "Unterthiner et al., arXiv:1812.01717; network and protocol of StyleGAN-V, arXiv:2112.14683"

    def __init__(
        self, setup: Setup | None = None, extractor: Extractor | None = None, *, seed: int = 0, resamples: int = 100
    ) -> None:
        super().__init__(setup, extractor)
        self.name = self.base  # neither mode nor profile changes anything
        self._seed, self._resamples = seed, resamples

    def parameters(self) -> dict[str, object]:
        return {"window": WINDOW, "seed": self._seed, "resamples": self._resamples}

    def key(self) -> str:
        return json.dumps({k: v for k, v in json.loads(super().key()).items() if k not in ("mode", "profile")})

    def missing(self) -> str | None:
        """Also without the hash of I3D: the file is a program, and only the hash says which."""
        reason = super().missing()
        if reason is None and self._given is None and weights.expected_hash(self.files[0], self.setup.places) is None:
            path = weights.find(self.files[0], self.setup.places)
            return (
                f"fvd: {path} is a TorchScript program, so it runs only with its hash: give the sha256 that you trust "
                f"as Places(hashes={{'{self.files[0]}': ...}})"
            )
        return reason

    def load(self) -> Extractor:
        import torch

        from svi.backends.placement import choose

        reason = self.missing()
        if reason is not None:
            raise UserError(reason)
        place = choose(self.setup.device, self.setup.dtype)
        path = weights.verified(self.files[0], self.setup.places)
        program = torch.jit.load(str(path), map_location=place.device)  # type: ignore[no-untyped-call]  # torch: untyped
        return I3dFeatures(program.eval(), place.device)

    def start(self, sample: Sample) -> Reading:
        starts = range(0, sample.num_frames - WINDOW + 1, WINDOW)
        if not starts:
            return Unscored(f"too short: FVD needs {WINDOW} frames")
        groups = [tuple(range(start, start + WINDOW)) for start in starts]

        def finish(rows: dict[tuple[int, ...], np.ndarray]) -> Score:
            return Score(None, features=np.stack([np.asarray(rows[group], dtype=np.float32) for group in groups]))

        return GroupReading(groups, self.extractor(), max(1, self.setup.batch_size // 4), finish)

    def compare(self, features: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> Score:
        """FVD of one set of videos against another, with equal numbers of windows drawn from both.

        ``extra``: ``windows``, per side; ``videos``, of the method; ``kvd``; ``low`` and ``high``, the middle 95 % of
        FVD over bootstrap samples of the method's videos (whose repeated rows push it upwards: read the width);
        ``floor``, FVD of one half of the true videos against the other, with ``floor_windows`` on each side;
        ``value_at_floor`` and ``kvd_floor``, score and KVD floor at that same number: a score near its floor says
        nothing. ``floor`` and ``value_at_floor`` are missing with fewer than two true videos.
        ``series``: ``window``, FVD of the k-th windows of all videos against the first of the true ones, where at
        least two videos have both.

        Raises:
            UserError: fewer than two windows on a side.
        """
        ours, theirs = _joined(features, "the method"), _joined(reference, "the true set")
        rng = np.random.default_rng(self._seed)
        count = min(len(ours), len(theirs))
        value, kvd = distances(draw(ours, count, rng), draw(theirs, count, rng))
        extra = {"windows": float(count), "videos": float(len(features)), "kvd": kvd}
        extra |= self._floor(ours, reference, rng)
        if self._resamples and len(features) > 1:
            extra |= self._interval(features, draw(theirs, count, rng), rng)
        return Score(value, {"window": fvd_over_time(features, reference)}, extra)

    def _floor(self, ours: np.ndarray, reference: Sequence[np.ndarray], rng: np.random.Generator) -> dict[str, float]:
        halves = split_half(reference, rng)
        if halves is None:
            return {}
        count = min(len(ours), *map(len, halves))
        if count < MIN_WINDOWS:
            return {}
        one, other = (draw(half, count, rng) for half in halves)
        floor, kvd_floor = distances(one, other)
        value, _ = distances(draw(ours, count, rng), one)
        return {"floor": floor, "kvd_floor": kvd_floor, "value_at_floor": value, "floor_windows": float(count)}

    def _interval(
        self, features: Sequence[np.ndarray], theirs: np.ndarray, rng: np.random.Generator
    ) -> dict[str, float]:
        values = []
        for _ in range(self._resamples):
            again = np.concatenate([features[k] for k in rng.integers(len(features), size=len(features))])
            if len(again) >= MIN_WINDOWS:
                values.append(frechet(draw(again, len(theirs), rng), theirs))
        if not values:
            return {}
        low, high = np.quantile(values, [0.025, 0.975])
        return {"low": float(low), "high": float(high)}


class I3dFeatures:
    """Windows ``(n, 16, H, W, 3)`` uint8 to ``(n, 400)`` logits of the TorchScript I3D of StyleGAN-V.

    The program itself resizes to 224 x 224 and scales to [-1, 1] (``rescale=True, resize=True``).
    """

    def __init__(self, program: Any, device: torch.device, key: str = "") -> None:
        self.key = key
        self._program, self._device = program, device

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            videos = torch.from_numpy(np.ascontiguousarray(frames)).to(self._device).permute(0, 4, 1, 2, 3).float()
            out: torch.Tensor = self._program(videos, rescale=True, resize=True, return_features=True)
        return out.float().cpu().numpy()


def distances(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """FVD and KVD of two arrays of features."""
    return frechet(first, second), kernel_distance(first, second)


def draw(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` of the rows without repetition, in their order; all of them where there are no more."""
    if count >= len(rows):
        return rows
    return rows[np.sort(rng.choice(len(rows), count, replace=False))]


def split_half(videos: Sequence[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """Two halves of a set, by video, so that windows of one video do not meet; None with fewer than two videos."""
    if len(videos) < 2:
        return None
    order = rng.permutation(len(videos))
    cut = len(videos) // 2
    one, other = ([videos[k] for k in part] for part in (order[:cut], order[cut:]))
    return np.concatenate(one), np.concatenate(other)


def fvd_over_time(
    features: Sequence[np.ndarray], reference: Sequence[np.ndarray]
) -> tuple[Sequence[int], Sequence[float]]:
    """FVD of window k of all videos against window 0 of the true ones: first frames of the windows, and values.

    Each point uses as many videos as both sides have, in the order given; the curve ends where fewer than two go on.
    """
    first = np.stack([rows[0] for rows in reference if len(rows)])
    frames: list[int] = []
    values: list[float] = []
    for k in range(max((len(rows) for rows in features), default=0)):
        here = [rows[k] for rows in features if len(rows) > k]
        count = min(len(here), len(first))
        if count < MIN_WINDOWS:
            break
        frames.append(k * WINDOW)
        values.append(frechet(np.stack(here[:count]), first[:count]))
    return frames, values


def _joined(videos: Sequence[np.ndarray], whose: str) -> np.ndarray:
    count = sum(len(rows) for rows in videos)
    if count < MIN_WINDOWS:
        raise UserError(
            f"FVD of {whose}: {count} windows of {WINDOW} frames; it needs at least {MIN_WINDOWS}, and means something "
            "from some hundred on: add videos or longer ones"
        )
    return np.concatenate([np.asarray(rows, dtype=np.float64) for rows in videos if len(rows)])
