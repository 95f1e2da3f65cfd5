"""A look at a model in training: a mini rollout from held-out first frames, its drift, and a contact sheet.

No ground truth is needed: drift is how colour and sharpness of each clip move away from the first frame's. Goes through the
same ``rollout`` as generation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from svi.backends.wan import WanBackend
from svi.conditioning.memory import ClipMemory
from svi.conditioning.policy import get_policy
from svi.data.ingest import WindowSource
from svi.generation.clip import ClipPlan
from svi.generation.rollout import rollout

STEPS = 10
COLUMNS = 8


@dataclass(frozen=True)
class Start:
    """Where a mini rollout begins: ``(H, W, 3)`` uint8, and what it is to show."""

    frame: torch.Tensor
    caption: str


def reference_windows(source: WindowSource) -> list[Start]:
    """First frame and caption of every window of ``source``."""
    assert source.size is not None
    read = [source.read(index, 0) for index in range(source.size)]
    return [Start(window.frames[0], window.caption) for window in read]


@dataclass(frozen=True)
class MiniRollout:
    """Rolls out a few clips from each start.

    Attributes:
        folder: for contact sheets.
        starts: where from.
        preset: how clips hand over.
        clips: of each rollout.
    """

    folder: Path
    starts: Sequence[Start]
    preset: str
    clips: int

    def __call__(self, backend: WanBackend, step: int) -> tuple[Mapping[str, float], str]:
        """Numbers (means over the starts, of the last clip, and drift per clip) and the contact sheet's path."""
        rows, colour, sharp = [], [], []
        for number, start in enumerate(self.starts):
            frames = list(self._frames(backend, start, seed=number))
            rows.append(_strip(frames))
            first = start.frame.numpy()
            colour.append([colour_shift(clip, first) for clip in frames])
            sharp.append([sharpness_db(clip[-1]) - sharpness_db(first) for clip in frames])
        path = self.folder / f"step-{step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(rows)).save(path)
        numbers = {
            "colour_shift": _last(colour),
            "colour_shift_per_clip": _slope(colour),
            "sharpness_db": _last(sharp),
            "sharpness_db_per_clip": _slope(sharp),
        }
        return numbers, str(path)

    def _frames(self, backend: WanBackend, start: Start, *, seed: int) -> list[np.ndarray]:
        policy, defaults = get_policy(self.preset), backend.info.defaults
        height, width = start.frame.shape[:2]
        plans = [
            ClipPlan(
                index=k,
                prompt=start.caption,
                negative_prompt=str(defaults.get("negative_prompt", "")),
                seed=seed + policy.seed_stride * k,
                num_frames=backend.geometry.num_frames,
                height=height,
                width=width,
                steps=STEPS,
                guidance=float(str(defaults.get("guidance", policy.guidance))),
                shift=float(str(defaults.get("shift", policy.shift))),
            )
            for k in range(self.clips)
        ]
        clips = rollout(plans, ClipMemory.start(start.frame), backend=backend, policy=policy)
        return [clip.new_frames.numpy() for clip in clips]


def colour_shift(frames: np.ndarray, first: np.ndarray) -> float:
    """How far the mean colour of the last of ``frames`` ``(T, H, W, 3)`` lies from that of ``first``, in levels of 255."""
    return float(np.abs(frames[-1].mean((0, 1)) - first.mean((0, 1))).mean())


def sharpness_db(frame: np.ndarray) -> float:
    """Energy of the differences between neighbouring pixels of ``(H, W, 3)`` uint8, in dB."""
    grey = frame.astype(np.float64).mean(-1)
    energy = np.square(np.diff(grey, axis=0)).mean() + np.square(np.diff(grey, axis=1)).mean()
    return float(10 * np.log10(max(energy, 1e-9)))


def _last(curves: Sequence[Sequence[float]]) -> float:
    return float(np.mean([curve[-1] for curve in curves]))


def _slope(curves: Sequence[Sequence[float]]) -> float:
    """Mean slope over the clips, by least squares."""
    clip = np.arange(len(curves[0]))
    return float(np.mean([np.polyfit(clip, curve, 1)[0] for curve in curves]))


def _strip(clips: Sequence[np.ndarray]) -> np.ndarray:
    """A row of pictures, evenly spread over all clips."""
    frames = np.concatenate(clips)
    chosen = np.linspace(0, len(frames) - 1, COLUMNS).round().astype(int)
    return np.concatenate(list(frames[chosen]), axis=1)
