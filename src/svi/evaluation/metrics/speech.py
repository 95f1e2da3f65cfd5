"""Sound as SyncNet hears it: 16 kHz mono, and 13 mel-frequency cepstral coefficients every 10 ms.

Knows nothing about pictures or networks. The coefficients are those of the python_speech_features library at its
defaults, which the published SyncNet pipeline uses.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from svi.errors import UserError

RATE = 16_000
LENGTH, STEP = 400, 160  # samples: 25 ms every 10 ms
MFCC_PER_FRAME = 4  # at 25 frames per second
SPECTRUM = 512
FILTERS, COEFFICIENTS = 26, 13
PRE_EMPHASIS = 0.97
LIFTER = 22


def read_speech(path: Path) -> np.ndarray:
    """A file's sound, mixed to one channel and brought to 16 kHz, ``(n,)`` int16.

    Raises:
        UserError: no such file, or no sound in it.
    """
    import av

    parts: list[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise UserError(f"{path} has no sound: give a file that has")
            resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
            for frame in container.decode(audio=0):
                parts += [out.to_ndarray()[0] for out in resampler.resample(frame)]
            parts += [out.to_ndarray()[0] for out in resampler.resample(None)]
    except (OSError, av.FFmpegError) as error:
        raise UserError(f"cannot read the sound of {path} ({str(error)[:120]}): give a file that plays") from error
    return np.concatenate(parts) if parts else np.empty(0, np.int16)


def mfcc(signal: np.ndarray) -> np.ndarray:
    """``(n,)`` samples at 16 kHz in the range of int16 to ``(frames, 13)`` float32; the first one is log energy."""
    samples = np.asarray(signal, dtype=np.float64)
    samples = np.append(samples[:1], samples[1:] - PRE_EMPHASIS * samples[:-1])
    count = 1 + max(0, math.ceil((len(samples) - LENGTH) / STEP))
    samples = np.pad(samples, (0, (count - 1) * STEP + LENGTH - len(samples)))
    frames = np.lib.stride_tricks.sliding_window_view(samples, LENGTH)[::STEP]
    power = np.abs(np.fft.rfft(frames, SPECTRUM)) ** 2 / SPECTRUM
    tiny = np.finfo(np.float64).eps
    energy = power.sum(axis=1)
    heard = power @ mel_filters().T
    heard[heard == 0], energy[energy == 0] = tiny, tiny
    number = np.arange(COEFFICIENTS)
    cosine = np.cos(np.pi * number[:, None] * (2 * np.arange(FILTERS) + 1) / (2 * FILTERS))  # DCT-II, orthonormal
    cosine *= np.where(number == 0, math.sqrt(1 / FILTERS), math.sqrt(2 / FILTERS))[:, None]
    coefficients = np.log(heard) @ cosine.T * (1 + LIFTER / 2 * np.sin(np.pi * number / LIFTER))
    coefficients[:, 0] = np.log(energy)
    return np.asarray(coefficients, dtype=np.float32)


def mel_filters() -> np.ndarray:
    """Triangles over the bins of the spectrum, evenly spaced in mel from 0 to 8 kHz, ``(26, 257)``."""
    mels = np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), FILTERS + 2)
    corners = np.floor((SPECTRUM + 1) * 700 * (10 ** (mels / 2595) - 1) / RATE)
    bins = np.arange(SPECTRUM // 2 + 1)
    left, top, right = (corners[k : k + FILTERS, None] for k in range(3))
    rising, falling = (bins - left) / (top - left), (right - bins) / (right - top)
    return np.where((bins >= left) & (bins < top), rising, np.where((bins >= top) & (bins < right), falling, 0.0))
