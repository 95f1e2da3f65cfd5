"""How far frames are from anything that the world could show: the residual to the nearest valid world.

For rollouts without an anchor: where the things are and which stretch of the landscape is seen may wander, what is
seen must still be possible. A bank of true patches is made of *siblings* of a world: the same sentence (colours,
textures, shapes, person), other landscapes of that kind, other places, other camera. Each patch of a frame is compared
with the nearest patch of the bank. The world itself is not in the bank, so that its own true frames have a residual
too: that is the floor. Blur, noise and wrong colours raise it, each steadily (``tests/pocket/test_drift_measures.py``).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from svi.pocket import palette as pal
from svi.pocket.scene import Scene, fits
from svi.pocket.storyboard import DANCER_ACTIONS, FACE_ACTIONS, ZOOM_CLOSE, Beat, ThingStart
from svi.pocket.world import World

SIDE = 8  # px
SIBLINGS, VIEWS = 12, 2
_BANK_SEEDS = 2**41  # keeps the landscapes of siblings apart from those of any world


class ValidPatches:
    """The bank of one world. ``events``: whether its things may change colour and its light may change."""

    def __init__(self, world: World, *, events: bool = False, siblings: int = SIBLINGS) -> None:
        rng = np.random.Generator(np.random.PCG64([world.seed, 5]))
        frames = [_sibling(world, rng, index, events) for index in range(siblings)]
        bank = patches(np.concatenate(frames), step=SIDE // 2)
        self._middle = bank.mean(0)
        self._bank = bank - self._middle
        self._squares = (self._bank**2).sum(1)

    def residual(self, frames: np.ndarray, *, looks: int = 3) -> float:
        """RMS difference of a patch to the nearest valid one, in grey levels 0 to 255.

        The mean over the patches of ``looks`` frames of ``(T, H, W, 3)`` uint8.
        """
        chosen = np.unique(np.linspace(0, len(frames) - 1, looks).round().astype(int))
        rows = patches(frames[chosen], step=SIDE) - self._middle
        square = (rows**2).sum(1) + (self._squares[:, None] - 2 * self._bank @ rows.T).min(0)
        return float(np.sqrt(np.maximum(square, 0) / rows.shape[1]).mean())


def patches(frames: np.ndarray, step: int) -> np.ndarray:
    """Every square of 8 x 8 px on a grid of ``step`` px, ``(N, 192)`` float32 in grey levels."""
    windows = np.lib.stride_tricks.sliding_window_view(frames, (SIDE, SIDE), axis=(1, 2))[:, ::step, ::step]
    return windows.reshape(-1, 3 * SIDE * SIDE).astype(np.float32)


def _sibling(world: World, rng: np.random.Generator, index: int, events: bool) -> np.ndarray:
    """True frames ``(VIEWS, H, W, 3)`` of another world of the same sentence."""
    scene, start = world.scene, world.scene.start
    height, width = scene.size
    zoom = float(rng.uniform(1, ZOOM_CLOSE)) if start.move.startswith("zooms") else start.camera[2]
    place = (float(rng.uniform(0, 3 * width)), float(rng.uniform(0, 2 * height)), zoom)
    things = tuple(_elsewhere(s, scene, i, rng, events) for i, s in enumerate(start.things))
    light = float(rng.integers(2)) if events and scene.lighting is None else start.light
    other = replace(scene, start=replace(start, camera=place, things=things, light=light))
    actions = {"face": FACE_ACTIONS, "dancer": DANCER_ACTIONS}.get(scene.family)
    beat = Beat(action=actions[int(rng.integers(len(actions)))]) if actions else Beat()
    sibling = World(_BANK_SEEDS + SIBLINGS * world.seed + index, other, (beat,), world.beat_s)
    return np.stack([sibling.render(float(rng.uniform(0, world.beat_s))) for _ in range(VIEWS)])


def _elsewhere(start: ThingStart, scene: Scene, index: int, rng: np.random.Generator, events: bool) -> ThingStart:
    edge = scene.things[index].radius + 1
    x, y = rng.uniform((edge, edge), (scene.size[1] - edge, scene.size[0] - edge))
    colour = start.colour
    if events and rng.random() < 0.5:
        names = [name for name in pal.COLOURS if fits(scene.colours, name, [])] or [colour]
        colour = names[int(rng.integers(len(names)))]
    return replace(start, x=float(x), y=float(y), colour=colour, visible=start.visible or events)
