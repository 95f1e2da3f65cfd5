"""A look at a model in training: its loss at fixed noise levels, and a mini rollout with its drift and a contact sheet.

Both on held-out clips. No ground truth is needed: drift is how colour and sharpness of each clip move away from the first
frame's. Goes through the same ``rollout`` as generation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from svi import flow
from svi.backends.wan import WanBackend
from svi.conditioning.memory import ClipMemory
from svi.conditioning.policy import get_policy
from svi.data.dataset import Dataset, batch_of
from svi.generation.clip import ClipPlan
from svi.generation.rollout import rollout

STEPS = 10
COLUMNS = 8
LEVELS = 5


@dataclass(frozen=True)
class Look:
    """What validation does: a loss, then a mini rollout where the model can denoise alone.

    Attributes:
        dataset: where the held-out clips are.
        indices: which they are.
        preset: how clips hand over.
        clips: of each rollout; 0 = none, for one of two experts, which knows its own noise levels only.
        sigmas: least and largest noise level that the model is trained on.
        folder: for contact sheets; None = none is written (in all processes but the first).
    """

    dataset: Dataset
    indices: Sequence[int]
    preset: str
    clips: int
    sigmas: tuple[float, float]
    folder: Path | None

    def __call__(self, backend: WanBackend, step: int) -> tuple[Mapping[str, float], str]:
        """Numbers, and the path of the contact sheet."""
        numbers = fixed_losses(backend, self.dataset, self.indices, self.sigmas)
        if not self.clips:
            return numbers, ""
        starts = [start_of(backend, self.dataset, index) for index in self.indices]
        path = None if self.folder is None else self.folder / f"step-{step:06d}.png"
        drift = MiniRollout(starts, self.preset, self.clips)(backend, path)
        return {**numbers, **drift}, str(path or "")


@torch.no_grad()
def fixed_losses(
    backend: WanBackend, dataset: Dataset, indices: Sequence[int], sigmas: tuple[float, float]
) -> dict[str, float]:
    """Mean squared error of the velocity at noise levels that never change, without errors and without weight.

    The noise of a clip at a level is the same in every validation, so that the numbers of two steps compare.
    """
    low, high = sigmas
    levels = [low + (high - low) * (k + 0.5) / LEVELS for k in range(LEVELS)]
    losses: dict[float, list[float]] = {level: [] for level in levels}
    for number, index in enumerate(indices):
        batch = batch_of(dataset, [(index, 0)]).to(backend.device)
        generator = torch.Generator().manual_seed(number)
        for level in levels:
            noise = torch.randn(batch.clean.shape, generator=generator).to(batch.clean)
            sigma = torch.full((1,), level, device=backend.device)
            noisy = flow.interpolate(batch.clean, noise, sigma)
            predicted = backend.velocity(noisy, sigma, batch.condition)
            losses[level].append(float((predicted - flow.velocity(batch.clean, noise)).square().mean()))
    means = {level: sum(found) / len(found) for level, found in losses.items()}
    return {"loss": sum(means.values()) / LEVELS, **{f"loss_at_{level:.2f}": mean for level, mean in means.items()}}


@dataclass(frozen=True)
class Start:
    """Where a mini rollout begins: ``(H, W, 3)`` uint8, and what it is to show."""

    frame: torch.Tensor
    caption: str


@torch.no_grad()
def start_of(backend: WanBackend, dataset: Dataset, index: int) -> Start:
    """First frame and caption of a clip; the frame as the VAE shows it, so that its own loss does not count as drift."""
    sample = dataset.sample(index, 0)
    first = next(iter(backend.decode(sample.clean[None, :, :1].to(backend.device))))
    return Start(first[0], sample.caption)


@dataclass(frozen=True)
class MiniRollout:
    """Rolls out a few clips from each start.

    Attributes:
        starts: where from.
        preset: how clips hand over.
        clips: of each rollout.
    """

    starts: Sequence[Start]
    preset: str
    clips: int

    def __call__(self, backend: WanBackend, sheet: Path | None) -> dict[str, float]:
        """Means over the starts: of the last clip, and drift per clip. The contact sheet goes to ``sheet``."""
        rows, colour, sharp = [], [], []
        for number, start in enumerate(self.starts):
            frames = list(self._frames(backend, start, seed=number))
            rows.append(_strip(frames))
            first = start.frame.numpy()
            colour.append([colour_shift(clip, first) for clip in frames])
            sharp.append([sharpness_db(clip[-1]) - sharpness_db(first) for clip in frames])
        if sheet is not None:
            sheet.parent.mkdir(parents=True, exist_ok=True)
            width = max(row.shape[1] for row in rows)
            padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
            Image.fromarray(np.concatenate(padded)).save(sheet)
        return {
            "colour_shift": _last(colour),
            "colour_shift_per_clip": _slope(colour),
            "sharpness_db": _last(sharp),
            "sharpness_db_per_clip": _slope(sharp),
        }

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
