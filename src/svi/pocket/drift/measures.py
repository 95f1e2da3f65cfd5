"""What a clip lost, in numbers: frames against the frames that would have been right.

Pure functions of uint8 frames ``(T, H, W, 3)``; none of them knows what is in the picture. None sees every fault,
together they nearly tell them apart: a tint moves colour and nothing else, blur sharpness, a frozen video motion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LUMA = np.array((0.299, 0.587, 0.114))
PSNR_CAP = 60.0  # dB; equal frames
LAG = 4  # frames between which motion is looked for: a quarter of a second
STILL = 8.0  # grey levels; smaller changes are the decoder's, not motion
MOVING = 1.0  # grey levels between true frames; where they differ less, nothing can be said to stand still
REPEATED = 0.25  # grey levels; a frame that differs less from one long ago is that frame
NOISE_ENERGY = 20.0  # of white noise of one grey level behind the Laplacian: 4 * 4 + 4 * 1


def grey(frames: np.ndarray) -> np.ndarray:
    """Luma (Rec. 601) ``(T, H, W)`` in grey levels 0 to 255."""
    return frames.astype(np.float32) @ LUMA.astype(np.float32)


def rms(values: np.ndarray) -> float:
    """Root of the mean square; NaN of nothing."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else float("nan")


def psnr(frames: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> float:
    """PSNR in dB, 0 to 60 (capped), of all pixels together; on ``mask`` ``(T, H, W)`` where given; NaN if that is empty.

    One mean square over the clip, then the logarithm: the order that weights every pixel alike.
    """
    difference = frames.astype(np.float32) - truth.astype(np.float32)
    error = rms(difference if mask is None else difference[mask])
    return float(np.minimum(20 * np.log10(255 / np.maximum(error, 1e-9)), PSNR_CAP))


# -- colour ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ColourTransfer:
    """What happened to the colours, channel by channel: ``gain * truth + offset``; both ``(3,)``, offset in grey levels."""

    gain: np.ndarray
    offset: np.ndarray

    def undo(self, frames: np.ndarray) -> np.ndarray:
        """Frames ``(..., 3)`` as float32 grey levels, with the transfer taken back."""
        gain = np.clip(self.gain, 0.2, 5.0)
        return ((frames.astype(np.float32) - self.offset) / gain).astype(np.float32)

    def error(self, colours: np.ndarray) -> float:
        """How far the transfer moves ``colours`` ``(N, 3)``: RMS over colours and channels, 1 = the whole range of 255."""
        moved = (self.gain - 1) * colours.astype(np.float64) + self.offset
        return rms(moved) / 255


def fit_transfer(pixels: np.ndarray, truth: np.ndarray) -> ColourTransfer:
    """The transfer between corresponding pixels ``(N, 3)``, by least squares without the outliers (three times anew).

    Things in the wrong place are outliers. A channel without contrast cannot tell gain from offset and keeps gain 1.
    """
    x, y = truth.astype(np.float64), pixels.astype(np.float64)
    gain, offset = np.ones(3), np.zeros(3)
    for channel in range(3):
        a, b = x[:, channel], y[:, channel]
        residual = b - a
        centre = np.median(residual)
        keep = np.abs(residual - centre) <= np.maximum(4 * _spread(residual - centre), 8.0)
        for _ in range(3):
            g, o = _line(a[keep], b[keep])
            residual = b - (g * a + o)
            keep = np.abs(residual) <= max(3 * _spread(residual), 2.0)
        gain[channel], offset[channel] = g, o
    return ColourTransfer(gain, offset)


def _spread(residual: np.ndarray) -> float:
    return 1.4826 * float(np.median(np.abs(residual)))


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and intercept; the slope is drawn to 1 as if half a grey level of contrast said so."""
    mx, my = x.mean(), y.mean()
    slope = (np.mean((x - mx) * (y - my)) + 0.25) / (np.mean((x - mx) ** 2) + 0.25)
    return float(slope), float(my - slope * mx)


def moment_transfer(pixels: np.ndarray, truth: np.ndarray) -> ColourTransfer:
    """The transfer between two sets of pixels ``(N, 3)``, ``(M, 3)`` that do not correspond: equal mean and spread.

    For a moving camera, where the same landscape is seen, but not the same place of it. Sixteen grey levels squared
    are added to both variances, so that a view without contrast does not turn noise into gain.
    """
    a, b = truth.astype(np.float64), pixels.astype(np.float64)
    gain = np.sqrt((b.var(0) + 16) / (a.var(0) + 16))
    return ColourTransfer(gain, b.mean(0) - gain * a.mean(0))


# -- detail ------------------------------------------------------------------------------------------------------------


def detail_energy(frames: np.ndarray) -> float:
    """Mean square of the Laplacian of luma, grey levels squared."""
    y = grey(frames)
    inner = y[:, 1:-1, 1:-1]
    laplacian = y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:] - 4 * inner
    return float(np.mean(np.square(laplacian, dtype=np.float64)))


def sharpness_db(frames: np.ndarray, truth: np.ndarray) -> float:
    """Fine detail against truth in dB: 0 = as much, negative = blurred, positive = sharpened or noisy.

    Ratio of :func:`detail_energy`, to both of which one grey level of white noise is added: what lies below that is no
    detail. Frames need not be aligned, so it also holds where content wanders.
    """
    return 10 * float(np.log10((detail_energy(frames) + NOISE_ENERGY) / (detail_energy(truth) + NOISE_ENERGY)))


# -- time --------------------------------------------------------------------------------------------------------------


def motion_energy(frames: np.ndarray) -> float:
    """Change of luma over a quarter of a second beyond 8 grey levels, averaged over pixels and time, in grey levels.

    Grows in proportion to how far things move, as long as that is less than their size. Needs no optical flow.
    """
    lag = min(LAG, len(frames) - 1)
    if lag < 1:
        return float("nan")
    y = grey(frames)
    return float(np.maximum(np.abs(y[lag:] - y[:-lag]) - STILL, 0).mean(dtype=np.float64))


def motion_retention(frames: np.ndarray, truth: np.ndarray) -> float:
    """Motion as a multiple of the true motion: 1 = as much, 0 = frozen. NaN where truth hardly moves."""
    wanted = motion_energy(truth)
    return motion_energy(frames) / wanted if wanted > 0.05 else float("nan")


def steps(frames: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    """RMS difference of each frame to the one before it, ``(T,)`` in grey levels; the first to ``before``, else NaN."""
    values = frames.astype(np.float32)
    first = float("nan") if before is None else rms(values[0] - before.astype(np.float32))
    inner = np.sqrt(np.mean(np.square(np.diff(values, axis=0)), axis=(1, 2, 3), dtype=np.float64))
    return np.concatenate([[first], inner])


def seam_jump(steps_: np.ndarray, true_steps: np.ndarray) -> float:
    """How much more the picture changes across the joint of two clips than inside, beyond what truth does, in grey levels.

    Takes :func:`steps` of a clip and of truth: the first step less the median of the others, RMS. 0 = no seam.
    """
    jumps = [float(each[0] - np.median(each[1:])) if len(each) > 1 else float("nan") for each in (steps_, true_steps)]
    return jumps[0] - jumps[1]


class Shown:
    """Frames that were shown, to find repetitions: the reference, the first clips and the latest; it does not grow."""

    def __init__(self, reference: np.ndarray, *, first: int = 2, latest: int = 3) -> None:
        self._kept = [_flat(reference[None])]
        self._first, self._latest = 1 + first, latest

    def add(self, frames: np.ndarray) -> None:
        """Remember a clip."""
        self._kept.append(_flat(frames))
        if len(self._kept) > self._first + self._latest:
            del self._kept[self._first]

    def distance(self, frames: np.ndarray) -> np.ndarray:
        """RMS difference ``(T,)`` in grey levels of each frame to the nearest one that was shown."""
        rows, bank = _flat(frames), np.concatenate(self._kept)
        square = (rows**2).sum(1)[:, None] + (bank**2).sum(1) - 2 * rows @ bank.T
        return np.sqrt(np.maximum(square, 0).min(1) / rows.shape[1])


def _flat(frames: np.ndarray) -> np.ndarray:
    return frames.reshape(len(frames), -1).astype(np.float64) - 128


def duplicate_share(steps_: np.ndarray, shown: np.ndarray, true_steps: np.ndarray, true_shown: np.ndarray) -> float:
    """Share in [0, 1] of frames that stand still or repeat an earlier clip where truth does not; NaN if truth stands still.

    Still: less than a quarter of the true step away from the frame before. Repeated: less than a quarter of a grey level
    (RMS) away from a frame that was shown, which nothing generated comes to by chance. Look at motion as well: a frozen
    video that flickers is not caught here.

    Args:
        steps_, true_steps: as from :func:`steps`, of the clip and of truth.
        shown, true_shown: as from :meth:`Shown.distance`, likewise; truth repeats itself where actions do.
    """
    moving = np.nan_to_num(true_steps, nan=0.0) >= MOVING
    if not moving.any():
        return float("nan")
    still = np.nan_to_num(steps_, nan=np.inf) < 0.25 * true_steps
    repeated = (shown < REPEATED) & (true_shown >= REPEATED)
    return float((still | repeated)[moving].mean())
