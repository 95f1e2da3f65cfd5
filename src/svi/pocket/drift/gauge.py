"""All measures of a rollout, clip by clip: what they are called, and the gauge that takes them.

A gauge keeps the last frame and a few clips to find repetitions, so 500 clips need no more memory than five. Knows
worlds and frames; nothing about models or how the frames were made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from svi.pocket.drift import measures as m
from svi.pocket.drift.things import (
    Blob,
    compare_person,
    compare_things,
    find_things,
    ground_colours,
    nearest_square,
    thing_mask,
    true_paths,
    visible,
)
from svi.pocket.drift.valid import ValidPatches
from svi.pocket.world import World, WorldState

VERSION = 1  # of the measures: results of different versions do not mix
SPARSE = 4  # every so many pixels or frames tell colours well enough
HIDDEN = 2.0  # at most so many times the true things' area may count as things and be left out of the background


@dataclass(frozen=True)
class Measure:
    """A row of the tables: what it is called, its unit, what true frames score, and what it says."""

    label: str
    unit: str
    truth: float
    about: str


MEASURES: dict[str, Measure] = {
    "psnr": Measure("background PSNR", "dB", 60, "standing camera; where neither truth nor the picture has a thing"),
    "colour": Measure(
        "colour error", "of full range", 0, "how far the colour transfer moves the background's colours, RMS"
    ),
    "gain": Measure("colour gain", "×", 1, "mean over channels of the transfer's gain"),
    "offset": Measure("colour offset", "of full range", 0, "mean over channels of the transfer's offset"),
    "palette": Measure(
        "palette error", "of full range", 0, "RMS distance of the background to a colour its landscape can show"
    ),
    "sharpness": Measure("sharpness", "dB", 0, "energy of fine detail against truth; negative = blurred"),
    "residual": Measure("residual", "grey levels", 0, "to the nearest patch of a valid world; truth has one too"),
    "area": Measure("object area", "×", 1, "of the things, or of the person, against truth"),
    "present": Measure("objects present", "share", 1, "a third of the true area is there"),
    "whole": Measure("objects whole", "share", 1, "one piece, of the right size and shape"),
    "shape": Measure("object shape", "×", 1, "overlap with the silhouette, against truth's"),
    "thing_colour": Measure("object colour error", "of full range", 0, "of the mean colour of what is present, RMS"),
    "motion": Measure("motion retention", "×", 1, "change over a quarter of a second against truth"),
    "travel": Measure("object travel", "×", 1, "way that the things go against truth"),
    "duplicates": Measure("duplicate frames", "share", 0, "still or shown before, where truth moves"),
    "seam": Measure(
        "seam jump", "grey levels", 0, "change across the joint of clips beyond that inside, and beyond truth's"
    ),
}
HEADLINE = ("psnr", "colour", "sharpness", "residual", "whole", "motion")


class Gauge:
    """Measures the clips of one rollout of ``world``, in order.

    Args:
        world: truth; its time 0 is the first frame.
        fps: frames per second of the rollout.
        events: whether colours and light of the world may change (see :class:`ValidPatches`).
    """

    def __init__(self, world: World, *, fps: int, events: bool = False) -> None:
        self.world, self.fps = world, fps
        self._valid = ValidPatches(world, events=events)
        self._camera = world.state(0.0).camera
        reference = world.render(0.0)
        self._shown, self._true = m.Shown(reference), m.Shown(reference)
        self._before: np.ndarray | None = None
        self._frame = 0

    def clip(self, frames: np.ndarray) -> dict[str, float]:
        """Every measure of the next clip: the frames ``(T, H, W, 3)`` uint8 that it adds to the video. NaN = not applicable."""
        times = (self._frame + np.arange(len(frames))) / self.fps
        truth = self.world.clip(float(times[0]), len(frames), self.fps)
        before = None if self._frame == 0 else self.world.render((self._frame - 1) / self.fps)
        state = self.world.state(float(times[-1]))
        steps, true_steps = m.steps(frames, self._before), m.steps(truth, before)
        values = {
            "sharpness": m.sharpness_db(frames, truth),
            "residual": self._valid.residual(frames),
            "motion": m.motion_retention(frames, truth),
            "duplicates": m.duplicate_share(
                steps, self._shown.distance(frames), true_steps, self._true.distance(truth)
            ),
            "seam": m.seam_jump(steps, true_steps),
            **self._picture(frames, truth, times, state),
        }
        self._shown.add(frames)
        self._true.add(truth)
        self._before, self._frame = frames[-1].copy(), self._frame + len(frames)
        return {name: values.get(name, float("nan")) for name in MEASURES}

    def _picture(self, frames: np.ndarray, truth: np.ndarray, times: np.ndarray, state: WorldState) -> dict[str, float]:
        """Measures that part the picture into background and things. A camera that has moved leaves no pixel's truth."""
        standing = state.camera == self._camera
        background = self.world.clip(float(times[0]), len(frames), self.fps, objects=False)
        clear = np.stack([self.world.background_mask(float(time)) for time in times])
        if standing:
            transfer = m.fit_transfer(frames[clear][::SPARSE], background[clear][::SPARSE])
            ground: np.ndarray = background.astype(np.float32)
        else:
            transfer = m.moment_transfer(frames[clear], background[clear])
            ground = ground_colours(self.world, state.light)
        values = {
            "colour": transfer.error(background[clear]),
            "gain": float(transfer.gain.mean()),
            "offset": float(transfer.offset.mean()) / 255,
        }
        freed, true = transfer.undo(frames), truth.astype(np.float32)
        things = [thing for thing in state.objects if visible(thing)]
        seen = find_things(freed, ground, things, state.light)
        free = clear & ~_covered(seen, clear)
        values["palette"] = self._palette(frames[::SPARSE], free[::SPARSE], state.light)
        if standing:
            values["psnr"] = m.psnr(frames, background, free)
            if self.world.scene.person is not None:
                values |= compare_person(freed, true, background.astype(np.float32), ~clear)
        if things:
            right = find_things(true, ground, things, state.light)
            values |= compare_things(things, seen, right, true_paths(self.world, times, state.objects))
        return values

    def _palette(self, frames: np.ndarray, free: np.ndarray, light: float) -> float:
        if not free.any():
            return float("nan")
        distance = nearest_square(frames[free].astype(np.float32), ground_colours(self.world, light))
        return float(np.sqrt(distance.mean(dtype=np.float64) / 3)) / 255


def _covered(seen: list[Blob], clear: np.ndarray) -> np.ndarray:
    """Where things were found, wherever they went; nowhere where that is more than they can cover."""
    if not seen:
        return np.zeros_like(clear)
    mask = thing_mask(seen)
    return mask if mask.sum() <= HIDDEN * (~clear).sum() else np.zeros_like(mask)
