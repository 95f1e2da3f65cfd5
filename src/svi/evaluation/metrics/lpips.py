"""LPIPS: how different two pictures look to a network; each frame against the reference image, or against the truth.

Knows nothing about videos on disk. The distance comes from ``lpips`` or ``torchmetrics``, whichever is installed (same
numbers: both carry the linear heads of version 0.1); the network is AlexNet, whose weights are found, never fetched.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from svi.evaluation.metric import Better, Frames, Need, Reading, Sample, Score, Skipped, split
from svi.evaluation.metrics import weights
from svi.evaluation.metrics.extract import Extractor, NetworkMetric, Setup, Unscored

if TYPE_CHECKING:
    import torch

NET = "alex"
LIBRARIES = ("lpips", "torchmetrics")
MIN_SIDE = 64  # below, AlexNet's last map is nearly empty


class Lpips(NetworkMetric):
    """Mean LPIPS (AlexNet, version 0.1) of all frames; 0 = looks the same. Neither mode nor profile matters."""

    files: ClassVar[tuple[str, ...]] = ("alexnet",)
    unit: str = ""
    better: Better = Better.LOWER
    source: str = "Zhang et al., CVPR 2018, arXiv:1801.03924; net alex, version 0.1"

    def __init__(self, setup: Setup | None = None, extractor: Extractor | None = None) -> None:
        super().__init__(setup, extractor)
        self.name = self.base

    def parameters(self) -> dict[str, object]:
        return {"net": NET}

    def missing(self) -> str | None:
        if self._given is None and _library() is None:
            return f"{self.name} needs the library lpips or torchmetrics: pip install lpips"
        return super().missing()

    def load(self) -> Extractor:
        from svi.backends.placement import choose

        device = choose(self.setup.device, self.setup.dtype).device
        model = build(weights.verified(self.files[0], self.setup.places))
        return LpipsDistance(model.to(device).eval(), device)

    def start(self, sample: Sample) -> Reading:
        reference = sample.reference if Need.REFERENCE in self.needs else None
        if Need.REFERENCE in self.needs and reference is None:
            return Unscored("there is no reference image")
        if self._given is None and min(sample.height, sample.width) < MIN_SIDE:
            return Unscored(f"LPIPS needs frames of at least {MIN_SIDE} x {MIN_SIDE} pixels")
        return LpipsReading(self.extractor(), self.setup.batch_size, reference)


class LpipsTruth(Lpips):
    """Against the true video, frame by frame: the score that papers print."""

    base: ClassVar[str] = "lpips_truth"
    needs: frozenset[Need] = frozenset({Need.TRUTH})


class LpipsReference(Lpips):
    """Against the reference image: shows drift where the camera stands still, in ``series`` more than in the mean."""

    base: ClassVar[str] = "lpips_reference"
    needs: frozenset[Need] = frozenset({Need.REFERENCE})


class LpipsReading:
    """Distances of frames as they come, to one reference or to the true frames that come with them."""

    def __init__(self, distance: Extractor, batch_size: int, reference: np.ndarray | None) -> None:
        self._distance, self._batch_size, self._reference = distance, batch_size, reference
        self._values: list[float] = []
        self._reason: str | None = None

    def add(self, batch: Frames) -> None:
        for part in split(batch, self._batch_size):
            other = part.truth if self._reference is None else np.broadcast_to(self._reference, part.frames.shape)
            if other is None or other.shape != part.frames.shape:
                self._reason = "the true video is missing, shorter, or of another size"
                return
            self._values += np.asarray(self._distance(np.stack([part.frames, other], axis=1))).tolist()

    def result(self) -> Score | Skipped:
        if self._reason is not None:
            return Skipped(self._reason)
        if not self._values:
            return Skipped("the video has no frames")
        frames = list(range(len(self._values)))
        return Score(float(np.mean(self._values)), {"frame": (frames, self._values)}, {"worst": max(self._values)})


class LpipsDistance:
    """Pairs of pictures ``(n, 2, H, W, 3)`` uint8 to ``(n,)``."""

    def __init__(self, model: Any, device: torch.device, key: str = "") -> None:
        self.key = key
        self._model, self._device = model, device

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            pairs = torch.from_numpy(np.ascontiguousarray(frames)).to(self._device).permute(1, 0, 4, 2, 3)
            first, second = pairs.float() / 127.5 - 1
            out: torch.Tensor = self._model(first, second)
        return out.reshape(len(frames)).float().cpu().numpy()


def build(backbone: Path) -> Any:
    """The network of whichever library is there, its heads from the library and its AlexNet from ``backbone``.

    The libraries would fetch AlexNet themselves; made with random weights first, they fetch nothing.
    """
    import torch

    if _library() == "lpips":
        model = importlib.import_module("lpips").LPIPS(net=NET, pnet_rand=True, verbose=False)
    else:
        model = importlib.import_module("torchmetrics.functional.image.lpips")._LPIPS(net=NET, pnet_rand=True)
    state = torch.load(backbone, map_location="cpu", weights_only=True)
    for part in model.net.children():
        for name, layer in part.named_children():  # layers keep their numbers in AlexNet's `features`
            prefix = f"features.{name}."
            layer.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return model


def _library() -> str | None:
    return next((name for name in LIBRARIES if importlib.util.find_spec(name) is not None), None)
