"""The frames of an arm, clip by clip: a model's rollout, the truth, or a fake. Never more than one clip is held.

Clip k begins at frame ``k (T - overlap)`` of the world, whatever the preset: beats of the world are as long as a clip is
new, so that the prompt of clip k tells what truly happens in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from svi.backends.base import Backend, ModelInfo
from svi.conditioning.memory import ClipMemory
from svi.conditioning.policy import ConditioningPolicy, get_policy
from svi.conditioning.window import to_video
from svi.errors import UserError
from svi.generation.clip import ClipPlan
from svi.generation.rollout import as_seen
from svi.geometry import Geometry
from svi.pocket.drift.experiment import Arm, Experiment, Scene
from svi.pocket.storyboard import Beat
from svi.pocket.world import World

FIRST_WORLD = 1_000_700_000  # held out (train_vae.HELD_OUT), and apart from the worlds of `svi pocket measure`
WORLDS_PER_SEED = 50_000
SHORTEST_BEAT_S = 0.75


@dataclass(frozen=True)
class Window:
    """The clips of an arm: frames per clip and what of them repeats, and frames per second."""

    num_frames: int
    overlap: int
    fps: int
    size: tuple[int, int]

    @classmethod
    def of(cls, arm: Arm, geometry: Geometry) -> Window:
        """Of an arm on a model.

        Raises:
            UserError: where nothing of a clip would be new.
        """
        overlap = policy_of(arm).overlap
        if overlap >= geometry.num_frames:
            raise UserError(
                f"preset {arm.preset} overlaps {overlap} frames, this model's clips have {geometry.num_frames}"
            )
        return cls(geometry.num_frames, overlap, geometry.fps, (geometry.height, geometry.width))

    @property
    def beat_s(self) -> float:
        """Length of the world's beats: what a clip adds, but no shorter than a beat can be."""
        return max(SHORTEST_BEAT_S, (self.num_frames - self.overlap) / self.fps)

    def begin_s(self, clip: int) -> float:
        """Where in the world the window of clip ``clip`` begins, seconds."""
        return clip * (self.num_frames - self.overlap) / self.fps


def policy_of(arm: Arm) -> ConditioningPolicy:
    """The arm's preset, with its own seeding where it has one."""
    policy = get_policy(arm.preset)
    return policy if arm.seed_stride is None else replace(policy, seed_stride=arm.seed_stride)


def worlds(scene: Scene, count: int, seed: int) -> list[int]:
    """Seeds of the first ``count`` held-out worlds of a scene in which something moves, the same for every arm."""
    found: list[int] = []
    for number in range(FIRST_WORLD + seed * WORLDS_PER_SEED, FIRST_WORLD + (seed + 1) * WORLDS_PER_SEED):
        if len(found) == count:
            return found
        world = _sampled(scene, number, (64, 96), 1.0)
        start = world.scene.start
        moving = any(thing.visible and (thing.vx or thing.vy) for thing in start.things)
        if moving or start.move != "stands" or (world.scene.person is not None and _active(world)):
            found.append(number)
    raise UserError(f"there are only {len(found)} such worlds for seed {seed}, not {count}: ask for fewer --worlds")


def _sampled(scene: Scene, seed: int, size: tuple[int, int], beat_s: float) -> World:
    kind = {"family": scene.family, "camera": scene.camera, "lighting": scene.lighting}
    return World.sample(seed, **kind, num_objects=scene.num_objects, size=size, beat_s=beat_s)  # type: ignore[arg-type]


def _active(world: World) -> bool:
    return world.beat(0).action not in (None, "stands", "is silent")


def world_of(scene: Scene, seed: int, window: Window, clips: int) -> World:
    """A world of a scene with the beats of ``window``. Without events it goes on as it began."""
    world = _sampled(scene, seed, window.size, window.beat_s)
    if scene.events:
        return world
    beats = int(window.begin_s(clips + 1) / window.beat_s) + 2
    return world.with_beats([Beat(action=world.beat(0).action)] * beats)


def prompt(world: World, window: Window, clip: int) -> str:
    """The caption of the beat in which clip ``clip`` begins."""
    return world.caption(int(window.begin_s(clip) / window.beat_s + 1e-6))


def plan(arm: Arm, info: ModelInfo, world: World, window: Window, clip: int, seed: int) -> ClipPlan:
    """The plan of a clip: the arm's settings, else the model's, else the preset's."""
    policy, defaults = policy_of(arm), info.defaults

    def setting(name: str) -> object:
        asked = getattr(arm, name, None)
        return defaults.get(name, getattr(policy, name)) if asked is None else asked

    return ClipPlan(
        index=clip,
        prompt=prompt(world, window, clip),
        negative_prompt=str(defaults.get("negative_prompt", "")),
        seed=seed + policy.seed_stride * clip,
        num_frames=window.num_frames,
        height=window.size[0],
        width=window.size[1],
        steps=int(str(setting("steps"))),
        guidance=float(str(setting("guidance"))),
        shift=float(str(setting("shift"))),
        solver=arm.solver or "euler",
    )


def noise_seed(experiment: Experiment, world_index: int) -> int:
    """Seed of a world's noise, the same for every arm; far enough apart that clips of two worlds never share noise."""
    return 10_000_000 * (experiment.seed + 1) + 30_011 * world_index


def clips_of(
    arm: Arm, worlds: Sequence[World], window: Window, clips: int, *, seeds: Sequence[int], backend: Backend | None
) -> Iterator[list[np.ndarray]]:
    """Per clip, the frames ``(t, H, W, 3)`` uint8 that it adds to the video of each world; ``seeds``: of their noise."""
    if arm.source == "model":
        assert backend is not None
        info = backend.info
        plans = [
            [plan(arm, info, world, window, clip, seed) for world, seed in zip(worlds, seeds, strict=True)]
            for clip in range(clips)
        ]
        memory = ClipMemory.start(torch.from_numpy(np.stack([world.render(0.0) for world in worlds])))
        for videos in as_seen(plans, memory, backend=backend, policy=policy_of(arm)):
            yield [frames.numpy() for frames in videos]
        return
    for index in range(clips):
        skip = window.overlap if index else 0
        yield [_control(arm.source, world, window, index, backend)[skip:] for world in worlds]


def _control(source: str, world: World, window: Window, clip: int, backend: Backend | None) -> np.ndarray:
    """All frames of clip ``clip`` of a control, overlap included."""
    if source == "copy-reference":
        return np.repeat(world.render(0.0)[None], window.num_frames, axis=0)
    faked = source in ("copy-clips", "ping-pong")
    truth = world.clip(0.0 if faked else window.begin_s(clip), window.num_frames, window.fps)
    if source == "ping-pong" and clip % 2:
        return truth[::-1]
    return decoded(truth, backend) if source == "vae" and backend is not None else truth


def decoded(frames: np.ndarray, backend: Backend) -> np.ndarray:
    """Frames through the VAE and back: what no rollout can better."""
    with torch.inference_mode():
        latents = backend.encode_video(to_video(torch.from_numpy(np.ascontiguousarray(frames))[None]))
        return torch.cat([part.cpu() for part in backend.decode(latents)]).numpy()
