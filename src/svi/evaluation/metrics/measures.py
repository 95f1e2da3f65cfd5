"""Weight-free measures of single frames: light, contrast, colour, sharpness, fine detail, noise; in units that a viewer would use.

Pure functions of uint8 frames ``(n, H, W, 3)``; nothing here knows about videos, time or drift. Decibels where a ratio is
meant, so that nothing is divided by small numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

LUMA = (0.299, 0.587, 0.114)  # Rec. 601
# sRGB to XYZ (IEC 61966-2-1), each row divided by its sum, the white point: so grey has a = b = 0 exactly.
TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
DARK, BRIGHT = 2, 253  # grey levels at and beyond which a pixel is clipped
LAPLACIAN_GAIN = 20.0  # variance of the Laplacian of white noise of variance 1: 4 * 4 + 4 * 1
ROUNDING = 1 / 12  # variance of rounding to whole grey levels: no detail lies below it
FINE = 0.25  # cycles per pixel; above lies the high-frequency half
PIXELS = 1 << 19  # that are worked on at a time: some ten float arrays of that size at once


class Views:
    """What several measures look at in frames ``(n, H, W, 3)`` uint8, each made once, when first wanted."""

    def __init__(self, frames: np.ndarray) -> None:
        import torch

        self.rgb = torch.from_numpy(np.ascontiguousarray(frames)).float()

    @cached_property
    def grey(self) -> torch.Tensor:
        """Luma (Rec. 601), ``(n, H, W)``, 0 to 255."""
        return grey_of(self.rgb)

    @cached_property
    def lab(self) -> torch.Tensor:
        """CIELAB (D65), ``(n, H, W, 3)``: L* in 0..100, a* and b*."""
        import torch

        linear = decoded(self.rgb / 255)
        matrix = self.rgb.new_tensor(TO_XYZ)
        x, y, z = _cube_root(linear @ (matrix / matrix.sum(1, keepdim=True)).T).unbind(-1)
        return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), -1)


def decoded(encoded: torch.Tensor) -> torch.Tensor:
    """Linear light of sRGB values, both 0 to 1."""
    import torch

    return torch.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def grey_of(rgb: torch.Tensor) -> torch.Tensor:
    """Luma (Rec. 601) of ``(..., 3)`` in grey levels."""
    grey: torch.Tensor = rgb @ rgb.new_tensor(LUMA)
    return grey


def _cube_root(t: torch.Tensor) -> torch.Tensor:
    """CIELAB's f: a cube root with a straight foot."""
    import torch

    return torch.where(t > 216 / 24389, t.clamp(min=1e-6) ** (1 / 3), t * (841 / 108) + 4 / 29)


# -- measures: frames to a number each ---------------------------------------------------------------------------------


def luma(views: Views) -> torch.Tensor:
    """Mean L*."""
    return views.lab[..., 0].mean((1, 2))


def contrast(views: Views) -> torch.Tensor:
    """Standard deviation of L*."""
    return views.lab[..., 0].flatten(1).std(1, correction=0)


def chroma(views: Views) -> torch.Tensor:
    """Mean of sqrt(a*^2 + b*^2)."""
    a, b = views.lab[..., 1], views.lab[..., 2]
    return (a * a + b * b).sqrt().mean((1, 2))


def colourfulness(views: Views) -> torch.Tensor:
    """Hasler and Suesstrunk 2003, in grey levels: spread and distance from grey of two opponent colours."""
    r, g, b = views.rgb.flatten(1, 2).unbind(-1)
    red_green, yellow_blue = r - g, (r + g) / 2 - b
    spread = red_green.var(1, correction=0) + yellow_blue.var(1, correction=0)
    distance = red_green.mean(1) ** 2 + yellow_blue.mean(1) ** 2
    return spread.sqrt() + 0.3 * distance.sqrt()


def colour(views: Views) -> torch.Tensor:
    """Mean L*, a*, b*, ``(n, 3)``; its distance to the reference's is the colour shift."""
    return views.lab.mean((1, 2))


def clipped(views: Views) -> torch.Tensor:
    """Share of pixels whose luma, rounded, is at most 2 or at least 253, in percent.

    Of luma, not of channels: a full red has two channels at 0 and is burnt out nowhere.
    """
    return 100 * ((views.grey < DARK + 0.5) | (views.grey >= BRIGHT - 0.5)).float().mean((1, 2))


def sharpness(views: Views) -> torch.Tensor:
    """10 log10 of the variance of the Laplacian of luma, in dB; what rounding alone gives is its floor."""
    y = views.grey
    around = y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:]
    variance = (around - 4 * y[:, 1:-1, 1:-1]).flatten(1).var(1, correction=0)
    return 10 * variance.clamp(min=LAPLACIAN_GAIN * ROUNDING).log10()


def detail(views: Views) -> torch.Tensor:
    """10 log10 of the share of luma's energy above 0.25 cycles per pixel, in dB; NaN for a frame of one colour.

    Mean taken off and a Hann window laid on: else the jump from one edge of the frame to the other, which no camera saw,
    would be most of what is fine.
    """
    import torch

    y = views.grey - views.grey.mean((1, 2), keepdim=True)
    window, fine, doubled = _frequencies(y.shape[1], y.shape[2])
    energy = torch.fft.rfft2(y * window).abs().square() * doubled
    share = (energy * fine).sum((1, 2)) / energy.sum((1, 2)).clamp(min=1e-12)
    alive = y.square().mean((1, 2)) > 1e-4  # else what is there comes from adding up
    return torch.where(alive, 10 * share.clamp(min=1e-12).log10(), math.nan)


@lru_cache(maxsize=4)
def _frequencies(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hann window, which of rfft2's coefficients are fine, and how often each stands in the whole spectrum."""
    import torch

    window = torch.outer(torch.hann_window(height), torch.hann_window(width))
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    doubled = torch.full((width // 2 + 1,), 2.0)
    doubled[0] = 1
    if width % 2 == 0:
        doubled[-1] = 1
    return window, (radius > FINE).float(), doubled


def noise(views: Views) -> torch.Tensor:
    """Immerkaer 1996: sigma in grey levels, from what a mask blind to edges and slopes leaves of luma."""
    y = views.grey
    rows = y[:, :-2] - 2 * y[:, 1:-1] + y[:, 2:]
    both = rows[..., :-2] - 2 * rows[..., 1:-1] + rows[..., 2:]
    return math.sqrt(math.pi / 2) / 6 * both.abs().mean((1, 2))


@dataclass(frozen=True)
class Measure:
    """A row of the table of measures.

    Attributes:
        of: frames to numbers ``(n,)``, or to points ``(n, 3)`` whose distance to the reference's is the number.
        unit: of the numbers.
        floor: how much of its spread inside a clip encoding alone may make; smaller spreads are not believed. Measured with
            H.264 at CRF 18 on drawn scenes of 240x416 with and without grain, and rounded up. (Encoding also shifts every
            measure, luma by -0.5 and sharpness by up to -2 dB, but all frames alike, which is no drift.)
        margin: what a viewer may be expected to notice, at least the floor; ``look`` counts in it.
        source: who defined it.
    """

    of: Callable[[Views], torch.Tensor]
    unit: str
    floor: float
    margin: float
    source: str


CIELAB = "CIE 1976 L*a*b*, D65, of decoded sRGB"
MEASURES: dict[str, Measure] = {
    "luma": Measure(luma, "L*", 0.05, 1.0, CIELAB),
    "contrast": Measure(contrast, "L*", 0.05, 1.0, CIELAB),
    "chroma": Measure(chroma, "C*", 0.1, 1.0, CIELAB),
    "colourfulness": Measure(colourfulness, "grey levels", 0.1, 2.0, "Hasler and Suesstrunk, HVEI 2003, equation 18"),
    "colour": Measure(colour, "ΔE", 0.1, 1.5, CIELAB),
    "clipped": Measure(clipped, "%", 0.1, 0.5, "pixels of luma at most 2 or at least 253"),
    "sharpness": Measure(sharpness, "dB", 0.5, 1.0, "variance of the Laplacian, Pech-Pacheco et al., ICPR 2000"),
    "detail": Measure(detail, "dB", 1.0, 1.0, "energy above 0.25 cycles per pixel"),
    "noise": Measure(noise, "grey levels", 0.2, 0.25, "Immerkaer, CVIU 1996"),
}


def measured(frames: np.ndarray, names: Iterable[str] = MEASURES) -> dict[str, np.ndarray]:
    """Measures by name of frames ``(n, H, W, 3)`` uint8: ``(n,)`` float64 each, ``colour`` ``(n, 3)``."""
    views = Views(frames)
    return {name: MEASURES[name].of(views).double().numpy() for name in names}


def pieces(frames: np.ndarray) -> int:
    """How many frames of that size to work on at a time."""
    return max(1, PIXELS // int(frames.shape[1] * frames.shape[2]))
