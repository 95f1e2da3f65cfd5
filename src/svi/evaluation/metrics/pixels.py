"""PSNR and SSIM of every frame, against the true video or against the reference image.

Conventions, since figures of different ones cannot be compared: 8-bit RGB as decoded, range 255, no crop, no resizing, every frame.
``value`` is the mean of the frames' figures. Against the reference both say how far a video has left its first picture: a
fault where camera and content stand still, and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np

from svi.errors import UserError, nearest
from svi.evaluation.metric import Better, Frames, Kept, Need, Reading, Sample, Score, Skipped, split
from svi.evaluation.metrics.measures import pieces

if TYPE_CHECKING:
    import torch

RANGE = 255.0
MIDDLE = 128.0
PSNR_CAP = 60.0  # dB; equal frames would have infinitely many, and one of them would be the mean
WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian
K1, K2 = 0.01, 0.03
Against = Literal["truth", "reference"]
NEEDS: dict[str, Need] = {"truth": Need.TRUTH, "reference": Need.REFERENCE}


def squared_error(frames: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Mean square of the difference of each of ``(n, H, W, 3)`` uint8, ``(n,)``, in grey levels squared."""
    difference = frames.astype(np.float32) - wanted
    return np.asarray(np.mean(np.square(difference, out=difference), axis=(1, 2, 3), dtype=np.float64))


def psnr(mean_square: np.ndarray) -> np.ndarray:
    """PSNR in dB, at most 60, of mean squared errors of any shape."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.minimum(10 * np.log10(RANGE**2 / mean_square), PSNR_CAP))


def ssim(frames: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """SSIM of each of ``(n, H, W, 3)`` uint8, ``(n,)``; ``wanted`` has as many frames, or one for all.

    Gaussian window 11x11 with sigma 1.5 on each of R, G and B, K1 = 0.01, K2 = 0.03, biased variances, mean over the pixels
    whose window lies inside the frame, and over channels.
    Source: Wang et al., IEEE TIP 2004; the same as torchmetrics' ``structural_similarity_index_measure``.

    Raises:
        ValueError: frames smaller than the window.
    """
    import torch

    if min(frames.shape[1:3]) < WINDOW:
        raise ValueError(f"frames of {frames.shape[2]}x{frames.shape[1]} are smaller than SSIM's window of {WINDOW}")
    # Less the middle of the range, which no variance sees: else a float has too few digits for mean(x^2) - mean(x)^2.
    x, y = (torch.from_numpy(np.ascontiguousarray(f)).permute(0, 3, 1, 2).float() - MIDDLE for f in (frames, wanted))
    mean_x, mean_y = _blurred(x), _blurred(y)
    variances = _blurred(x * x + y * y) - mean_x**2 - mean_y**2  # of both, which is all that is asked for
    both = _blurred(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + MIDDLE, mean_y + MIDDLE
    c1, c2 = (K1 * RANGE) ** 2, (K2 * RANGE) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))
    return np.asarray(likeness.mean((1, 2, 3)).double().numpy())


def _blurred(x: torch.Tensor) -> torch.Tensor:
    """``(n, 3, H, W)`` through the window, without the margin where it does not fit: ``(n, 3, H - 10, W - 10)``.

    As sums of shifted pictures, plane by plane: a convolution of one channel with one is the slowest that torch knows.
    """
    import torch

    return torch.stack([torch.stack([_slid(_slid(plane, 0), 1) for plane in frame]) for frame in x])


def _slid(plane: torch.Tensor, axis: int) -> torch.Tensor:
    """``(H, W)`` through the window along one axis, which loses 10 pixels."""
    at = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(at**2) / (2 * SIGMA**2))
    inside = plane.shape[axis] - WINDOW + 1
    total = plane.narrow(axis, 0, inside) * float(weights[0] / weights.sum())
    for offset, weight in enumerate(weights[1:] / weights.sum(), start=1):
        total.add_(plane.narrow(axis, offset, inside), alpha=float(weight))
    return total


class _Reading:
    """Compares each batch with what it should be, and makes a score of all frames' numbers at the end.

    Args:
        sample, against: with what to compare.
        compare: frames and what they should be to a number per frame.
        finish: the numbers of all frames to a score.
        smallest: side below which frames cannot be compared.
    """

    def __init__(
        self,
        sample: Sample,
        against: Against,
        compare: Callable[[np.ndarray, np.ndarray], np.ndarray],
        finish: Callable[[np.ndarray], Score],
        smallest: int = 1,
    ) -> None:
        self._against, self._smallest = against, smallest
        self._reference = None if sample.reference is None else sample.reference[None]
        self._compare, self._finish = compare, finish
        self._values = Kept()
        self._unfit: str | None = None

    def add(self, batch: Frames) -> None:
        for part in split(batch, pieces(batch.frames)):
            wanted = part.truth if self._against == "truth" else self._reference
            if wanted is None:
                self._unfit = f"no {NEEDS[self._against].value} is given"
            else:
                self._unfit = self._unfit or self._why_unfit(part.frames.shape, wanted.shape)
            if self._unfit is None and wanted is not None:
                self._values.add(self._compare(part.frames, wanted))

    def _why_unfit(self, here: tuple[int, ...], there: tuple[int, ...]) -> str | None:
        if here[1:] != there[1:]:
            return f"the {NEEDS[self._against].value} is {there[2]}x{there[1]}, this video {here[2]}x{here[1]}"
        if there[0] not in (1, here[0]):
            return f"the {NEEDS[self._against].value} ends before this one"
        if min(here[1:3]) < self._smallest:
            return f"frames of {here[2]}x{here[1]} are too small: at least {self._smallest} pixels on both sides"
        return None

    def result(self) -> Score | Skipped:
        if self._unfit is not None or not len(self._values):
            return Skipped(self._unfit or "the video has no frames")
        return self._finish(self._values.all())


class _Compared:
    """What both metrics share: with what a frame is compared, and the name that says so."""

    base: str
    version = "1"
    better = Better.HIGHER

    def __init__(self, against: Against = "truth") -> None:
        if against not in NEEDS:
            raise UserError(f"cannot compare with {against!r}: {nearest(against, NEEDS)}")
        self.against: Against = against
        self.name = self.base if against == "truth" else f"{self.base}_{against}"
        self.needs = frozenset({NEEDS[against]})

    def missing(self) -> str | None:
        """Nothing is needed but what the sample has."""
        return None


class Psnr(_Compared):
    """PSNR in dB against ``"truth"`` or ``"reference"``.

    ``value`` is the mean over frames, each capped at 60; ``extra["of_mean_error"]`` is the PSNR of the mean squared error of
    all frames, which is never higher but for the cap; ``extra["lowest"]`` the worst frame's; ``series``: ``psnr`` per frame.

    Raises:
        UserError: for another word.
    """

    base, unit = "psnr", "dB"
    source = "10 log10(255^2 / MSE) of 8-bit RGB frames, mean over frames"

    def key(self) -> str:
        """Conventions, as JSON."""
        return json.dumps(dict(against=self.against, cap=PSNR_CAP, range=RANGE))

    def start(self, sample: Sample) -> Reading:
        return _Reading(sample, self.against, squared_error, _psnr_score)


class Ssim(_Compared):
    """SSIM (1 = equal, see :func:`ssim`) against ``"truth"`` or ``"reference"``.

    ``value`` is the mean over frames, ``extra["lowest"]`` the worst frame's; ``series``: ``ssim`` per frame.

    Raises:
        UserError: for another word.
    """

    base, unit = "ssim", ""
    source = "Wang et al., IEEE TIP 2004; Gaussian 11x11, sigma 1.5, on RGB, mean over frames"

    def key(self) -> str:
        """Conventions, as JSON."""
        return json.dumps(dict(against=self.against, k1=K1, k2=K2, sigma=SIGMA, window=WINDOW))

    def start(self, sample: Sample) -> Reading:
        return _Reading(sample, self.against, ssim, _ssim_score, WINDOW)


def _psnr_score(errors: np.ndarray) -> Score:
    frames = psnr(errors)
    extra = {"of_mean_error": float(psnr(errors.mean())), "lowest": float(frames.min())}
    return Score(float(frames.mean()), {"psnr": (range(len(frames)), frames.tolist())}, extra)


def _ssim_score(values: np.ndarray) -> Score:
    return Score(float(values.mean()), {"ssim": (range(len(values)), values.tolist())}, {"lowest": float(values.min())})
