"""The error gain: a known error in the frames that a clip continues, and how large the error is that comes out.

The clip before is the true one, so that nothing else is wrong. It is corrupted by a known amount, the next clip is made
from it and, with the same noise, from the true one; the frames that the next clip hands on are compared. Below 1 errors
die out from clip to clip, above 1 they grow: drift. The anchor, where there is one, stays clean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from svi.backends.base import Backend
from svi.conditioning.encodings import Encodings
from svi.conditioning.memory import ClipMemory
from svi.conditioning.policy import ConditioningPolicy
from svi.conditioning.window import to_video
from svi.generation.rollout import make_clips
from svi.pocket.drift.experiment import Arm
from svi.pocket.drift.measures import rms
from svi.pocket.drift.rollouts import Window, plan, policy_of
from svi.pocket.world import World

Direction = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _colour(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Warmer: red up, blue down."""
    return np.broadcast_to(np.array((1.0, 0.0, -1.0)), frames.shape)


def _blur(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a blur of about 2 px takes away."""
    soft = frames.astype(np.float64)
    for axis in (1, 2):
        for _ in range(3):
            edge = [(0, 0)] * 4
            edge[axis] = (1, 1)
            wide = np.pad(soft, edge, mode="edge")
            parts = [np.take(wide, range(step, step + soft.shape[axis]), axis=axis) for step in range(3)]
            soft = (parts[0] + 2 * parts[1] + parts[2]) / 4
    return soft - frames


def _noise(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Grain that stands still."""
    return np.broadcast_to(rng.standard_normal(frames.shape[1:]), frames.shape)


DIRECTIONS: dict[str, Direction] = {"colour": _colour, "blur": _blur, "noise": _noise}


def corrupted(frames: np.ndarray, direction: np.ndarray, size: float) -> np.ndarray:
    """``frames`` uint8 plus an error of ``size`` grey levels (RMS of the last frame) along ``direction``, rounded and clipped."""
    scale = size / max(rms(direction[-1]), 1e-6)
    return (frames + scale * direction).round().clip(0, 255).astype(np.uint8)


def gains(
    arm: Arm, world: World, backend: Backend, *, kinds: Sequence[str], sizes: Sequence[float], seed: int
) -> dict[str, dict[str, float]]:
    """Error gain by ``kind-size``.

    Kinds: ``colour``, ``blur``, ``noise``, and ``own``: the error that the model itself makes in one clip from the true
    first frame, scaled.

    Returns:
        For each, ``in`` and ``out``: RMS in grey levels over the frames handed on (the preset's overlap), after
        clipping; ``gain`` = out / in; ``kept`` = the part of the error that comes out as it went in, as a multiple of it
        (1 = handed on whole, 0 = corrected, whatever else went wrong).
    """
    policy, window = policy_of(arm), Window.of(arm, backend.geometry)
    truth = world.clip(0.0, window.num_frames, window.fps)
    encodings = Encodings(backend)
    start = ClipMemory.start(torch.from_numpy(world.render(0.0)))

    def made(memories: Sequence[ClipMemory]) -> list[np.ndarray]:
        clip_plan = plan(arm, backend.info, world, window, memories[0].clip_index, seed)
        memory = ClipMemory.together(memories)
        plans = [clip_plan] * len(memories)
        clips = make_clips(plans, memory, backend=backend, policy=policy, encodings=encodings)
        return [clip.frames.numpy() for clip in clips]

    def after(frames: np.ndarray) -> ClipMemory:
        return _after(frames, start, backend, policy)

    backend.set_lora_strengths({})
    rng = np.random.Generator(np.random.PCG64([seed, 6]))
    bad: dict[str, np.ndarray] = {}
    for kind in kinds:
        direction = made([start])[0] - truth.astype(np.float64) if kind == "own" else DIRECTIONS[kind](truth, rng)
        bad |= {f"{kind}-{size:g}": corrupted(truth, direction, size) for size in sizes}
    clean, *outs = made([after(frames) for frames in (truth, *bad.values())])
    handed, exact = max(1, window.overlap), truth.astype(np.float64)
    return {
        name: compared(frames - exact, out - clean.astype(np.float64), handed)
        for (name, frames), out in zip(bad.items(), outs, strict=True)
    }


def compared(error_in: np.ndarray, error_out: np.ndarray, frames: int) -> dict[str, float]:
    """Sizes and gain of the errors ``(T, H, W, 3)`` in the last ``frames`` frames."""
    a, b = error_in[-frames:], error_out[-frames:]
    size_in, size_out = rms(a), rms(b)
    kept = float((a * b).mean() / max(size_in**2, 1e-12))
    return {"in": size_in, "out": size_out, "gain": size_out / max(size_in, 1e-6), "kept": kept}


def _after(frames: np.ndarray, memory: ClipMemory, backend: Backend, policy: ConditioningPolicy) -> ClipMemory:
    """Memory as if ``frames`` had been the clip."""
    video = torch.from_numpy(frames)[None]
    return memory.update(video, backend.encode_video(to_video(video)).cpu(), policy)
