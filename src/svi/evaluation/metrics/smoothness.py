"""Motion smoothness: can each frame be foretold from its two neighbours?

Knows nothing about videos on disk. VBench foretells with AMT-S, whose licence (CC BY-NC 4.0) forbids commercial use;
so that network is a plug-in that the user brings, and what runs everywhere is a surrogate by optical flow, under a name
of its own. Both reward whatever has little motion and little detail: a frozen, blurred video is perfectly smooth.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import ClassVar, cast

import numpy as np
import torch
from torch.nn import functional

from svi.errors import UserError
from svi.evaluation.metric import Reading, Sample, Score
from svi.evaluation.metrics import weights
from svi.evaluation.metrics.extract import Extractor, GroupReading, NetworkMetric, Setup, Unscored
from svi.evaluation.metrics.formulas import Window, smooth_triples, smoothness

# Frames before and after, both (n, H, W, 3) uint8, to the frame in the middle, likewise.
Interpolator = Callable[[np.ndarray, np.ndarray], np.ndarray]

LUMA = (0.299, 0.587, 0.114)


class Smoothness(NetworkMetric):
    """The formula that both share: ``(255 - mean |foretold - true|) / 255`` in percent.

    VBench judges every second frame, so an even number of frames loses its last one; mode ``"clean"`` judges every
    frame that has two neighbours. ``series``: ``frame``; with profile ``"long"`` also ``clip``.
    """

    def start(self, sample: Sample) -> Reading:
        parts = [part for part in self.windows(sample.num_frames, sample) if part[1] - part[0] >= 3]
        if not parts:
            return Unscored("too short: smoothness needs three frames")
        triples = [triple for part in parts for triple in smooth_triples(part, self.setup.mode)]
        batch_size = max(1, self.setup.batch_size // 2)
        return GroupReading(triples, self.extractor(), batch_size, lambda rows: self.finish(rows, parts))

    def finish(self, rows: dict[tuple[int, ...], np.ndarray], parts: Sequence[Window]) -> Score:
        """From the mean difference of every judged frame, in grey levels, to the score."""
        windows = [[float(rows[triple]) for triple in smooth_triples(part, self.setup.mode)] for part in parts]
        values = [smoothness(np.array(differences)) for differences in windows]
        ordered = sorted(rows)
        frames = [100 * smoothness(rows[triple]) for triple in ordered]
        series: dict[str, tuple[Sequence[int], Sequence[float]]] = {"frame": ([t[1] for t in ordered], frames)}
        if self.setup.profile == "long":
            series["clip"] = ([start for start, _ in parts], [100 * value for value in values])
        return Score(self.averaged(values, [len(window) for window in windows]), series, {"worst": min(frames)})


class MotionSmoothness(Smoothness):
    """VBench's motion smoothness, through an interpolation network that the user brings.

    Args:
        setup: how it runs.
        extractor: triples of frames to differences, for tests.
        plugin: ``"package.module:function"``. ``function(weights: Path, device: str)`` loads AMT-S and returns an
            :data:`Interpolator`. Naming it is the user's consent to the licence of what it loads.
    """

    base: ClassVar[str] = "motion_smoothness"
    files: ClassVar[tuple[str, ...]] = ("amt-s",)

    def __init__(
        self, setup: Setup | None = None, extractor: Extractor | None = None, plugin: str | None = None
    ) -> None:
        super().__init__(setup, extractor)
        self._plugin = plugin

    def parameters(self) -> dict[str, object]:
        return {"plugin": self._plugin}

    def missing(self) -> str | None:
        if self._given is None and self._plugin is None:
            return (
                f"{self.name} needs AMT-S, which is licensed CC BY-NC 4.0 and not part of this package: name a plug-in "
                "that loads it (package.module:function), or read motion_smoothness_flow instead"
            )
        return super().missing()

    def load(self) -> Extractor:
        assert self._plugin is not None, "missing() says so first"
        maker = plugin(self._plugin)
        return Foretold(maker(weights.verified("amt-s", self.setup.places), self.setup.device))


class MotionSmoothnessFlow(Smoothness):
    """A surrogate without weights: the same formula, with a middle frame by symmetric optical flow.

    Its values are not comparable with VBench's motion smoothness; its order of methods is what it is for.
    """

    base: ClassVar[str] = "motion_smoothness_flow"
    source: str = "the formula of VBench's motion smoothness; Lucas-Kanade flow, coarse to fine, seen from the middle"

    def load(self) -> Extractor:
        return Foretold(FlowMiddle(self.setup.device))


class Foretold:
    """Extractor of the mean grey-level difference between the true and the foretold frame.

    Triples ``(n, 3, H, W, 3)`` uint8 to ``(n,)``.
    """

    def __init__(self, interpolate: Interpolator, key: str = "") -> None:
        self.key = key
        self._interpolate = interpolate

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        foretold = np.asarray(self._interpolate(frames[:, 0], frames[:, 2]))
        if foretold.shape != frames[:, 1].shape or foretold.dtype != np.uint8:
            raise UserError(
                f"the interpolator returned {foretold.dtype} of shape {foretold.shape} instead of uint8 of shape "
                f"{frames[:, 1].shape}: correct the plug-in"
            )
        difference = np.abs(frames[:, 1].astype(np.int16) - foretold.astype(np.int16))
        return np.asarray(difference.mean(axis=(1, 2, 3)))


class FlowMiddle:
    """An :data:`Interpolator`: both frames are moved half-way along the flow between them, and averaged."""

    def __init__(self, device: str = "cpu") -> None:
        self._device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        first, last = (
            torch.from_numpy(np.ascontiguousarray(frames)).to(self._device).permute(0, 3, 1, 2).float()
            for frames in (before, after)
        )
        flow = symmetric_flow(first, last)
        middle = (warped(first, -flow / 2) + warped(last, flow / 2)) / 2
        return middle.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def symmetric_flow(
    first: torch.Tensor, last: torch.Tensor, *, coarsest: int = 12, iterations: int = 4, reach: int = 7
) -> torch.Tensor:
    """Motion from ``first`` to ``last`` of what stands at each pixel in the middle of the two.

    Finds ``flow`` with ``first(x - flow / 2) = last(x + flow / 2)`` by least squares in windows, from a coarse pyramid
    level to the finest (Lucas and Kanade 1981; Bouguet 2001).

    Args:
        first, last: ``(n, 3, H, W)`` in 0..255.
        coarsest: the shorter side of the smallest level, pixels.
        iterations: per level.
        reach: half the side of a window, pixels.

    Returns:
        ``(n, 2, H, W)`` pixels, x before y.
    """
    weight = first.new_tensor(LUMA).view(1, 3, 1, 1)
    pyramid = [((first * weight).sum(1, keepdim=True), (last * weight).sum(1, keepdim=True))]
    while min(pyramid[-1][0].shape[-2:]) >= 2 * coarsest:
        grey_first, grey_last = pyramid[-1]
        pyramid.append((functional.avg_pool2d(grey_first, 2), functional.avg_pool2d(grey_last, 2)))
    flow = first.new_zeros(len(first), 2, *pyramid[-1][0].shape[-2:])
    for grey_first, grey_last in reversed(pyramid):
        size = grey_first.shape[-2:]
        scale = flow.new_tensor([size[1] / flow.shape[-1], size[0] / flow.shape[-2]]).view(1, 2, 1, 1)
        flow = functional.interpolate(flow, size, mode="bilinear", align_corners=False) * scale
        for _ in range(iterations):
            flow = flow + _increment(warped(grey_first, -flow / 2), warped(grey_last, flow / 2), reach)
    return flow


def _increment(first: torch.Tensor, last: torch.Tensor, reach: int) -> torch.Tensor:
    """One Gauss-Newton step per window, at most one pixel long."""
    mean = functional.pad((first + last) / 2, (1, 1, 1, 1), mode="replicate")
    right = (mean[..., 1:-1, 2:] - mean[..., 1:-1, :-2]) / 2
    down = (mean[..., 2:, 1:-1] - mean[..., :-2, 1:-1]) / 2
    change = last - first

    def window(product: torch.Tensor) -> torch.Tensor:
        size = 2 * reach + 1
        return functional.avg_pool2d(product, size, 1, reach, count_include_pad=False)

    xx, yy, xy = window(right * right) + 1.0, window(down * down) + 1.0, window(right * down)  # + 1: flat areas stay
    xt, yt = window(right * change), window(down * change)
    determinant = xx * yy - xy * xy
    step = torch.cat([xy * yt - yy * xt, xy * xt - xx * yt], dim=1) / determinant
    return step.clamp(-1, 1)


def warped(images: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """``images(x + flow(x))``, ``(n, c, H, W)``; beyond the border its pixels repeat."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device, dtype=images.dtype)[:, None]
    columns = torch.arange(width, device=images.device, dtype=images.dtype)
    x = (columns + flow[:, 0]) * (2 / max(width - 1, 1)) - 1
    y = (rows + flow[:, 1]) * (2 / max(height - 1, 1)) - 1
    grid = torch.stack([x, y], dim=-1)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)


def plugin(name: str) -> Callable[..., Interpolator]:
    """The function that ``package.module:function`` names.

    Raises:
        UserError: there is none.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise UserError(f"plug-in {name!r}: write it as package.module:function")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise UserError(f"plug-in {name!r} cannot be imported ({error}): install it or set PYTHONPATH") from error
    if not callable(found):
        raise UserError(f"plug-in {name!r}: module {module} has no function {function}")
    return cast("Callable[..., Interpolator]", found)
