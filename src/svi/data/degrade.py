"""Handcrafted errors: what image augmentation can do to the frames that a clip continues, instead of a model's own errors.

The paper compares the two (Table 6: random colour shifts, blur and sharpening of the reference image; values not published).
Knows pixels only; which windows get one is drawn in ``windows``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

COLOUR_GAIN, COLOUR_OFFSET = 0.25, 32.0  # largest change of a channel: of its contrast, and in grey levels
BLUR = (0.5, 2.0)  # standard deviation in pixels
SHARPEN = (0.5, 2.0)  # how much of what a blur of one pixel takes away is added


def degrade(frames: Tensor, generator: torch.Generator) -> Tensor:
    """``(T, H, W, 3)`` uint8 -> the same frames with one error, drawn for all of them: colour shift, blur or sharpening.

    Args:
        frames: at least one.
        generator: takes nine draws, whichever it is.
    """
    if not len(frames):
        return frames
    draws = torch.rand(9, generator=generator)
    kind = KINDS[min(int(draws[0] * len(KINDS)), len(KINDS) - 1)]
    return kind(frames.float(), draws[1:]).round().clamp(0, 255).to(torch.uint8)


def _colour(frames: Tensor, draws: Tensor) -> Tensor:
    gain = 1 + COLOUR_GAIN * (2 * draws[:3] - 1)
    offset = COLOUR_OFFSET * (2 * draws[3:6] - 1)
    mean = frames.mean((0, 1, 2))
    return (frames - mean) * gain + mean + offset


def _blur(frames: Tensor, draws: Tensor) -> Tensor:
    return blurred(frames, _between(BLUR, draws[6]))


def _sharpen(frames: Tensor, draws: Tensor) -> Tensor:
    return frames + _between(SHARPEN, draws[7]) * (frames - blurred(frames, 1.0))


KINDS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (_colour, _blur, _sharpen)


def _between(limits: tuple[float, float], share: Tensor) -> float:
    return limits[0] + (limits[1] - limits[0]) * float(share)


def blurred(frames: Tensor, sigma: float) -> Tensor:
    """``(T, H, W, C)`` float, each frame blurred by a Gaussian of ``sigma`` pixels; edges repeat."""
    reach = max(1, round(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    planes = F.pad(frames.movedim(-1, 1), (reach,) * 4, mode="replicate")
    channels = planes.shape[1]
    for kernel_shape in ((-1, 1), (1, -1)):
        weight = kernel.view(1, 1, *kernel_shape).repeat(channels, 1, 1, 1)
        planes = F.conv2d(planes, weight, groups=channels)
    return planes.movedim(1, -1)
