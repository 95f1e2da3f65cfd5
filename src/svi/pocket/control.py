"""Held-out tests of prompt control, and the judge that decides from frames whether a clip followed its caption.

A `controlled` world has a standing camera, daylight and one object to which exactly one thing happens in
beat 0: it changes colour, stops, or changes direction. Its events begin at frame 2 and are complete by
frame 8. Knows worlds and frames (T, H, W, 3) uint8 at 16 fps, nothing about models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from svi.errors import UserError
from svi.pocket import palette as pal
from svi.pocket.scene import Scene, fits, pick
from svi.pocket.storyboard import DIRECTIONS, EVENT_START, RAMP, SPEEDS, Beat, Event, velocity
from svi.pocket.world import World

CONTROLS = ("colour", "stop", "direction")
FPS = 16
SETTLED = 8  # the first frame at which every event is complete
_HELD_OUT = 2**40  # keeps the landscapes of these worlds apart from those of small seeds


def controlled(seed: int, control: str, *, size: tuple[int, int] = (64, 96)) -> World:
    """A world whose beat 0 has exactly the event of `control`: "colour", "stop" or "direction"."""
    if control not in CONTROLS:
        hint = pal.nearest(control, CONTROLS)
        raise UserError(f"unknown control {control!r}; nearest: {hint!r} (known: {', '.join(CONTROLS)})")
    code = CONTROLS.index(control)
    for attempt in range(100):
        rng = np.random.Generator(np.random.PCG64([seed, 9, code, attempt]))
        base = World.sample(
            _HELD_OUT + 3 * seed + code + 7919 * attempt,
            family="things",
            camera="stands",
            lighting="day",
            num_objects=1,
            size=size,
        )
        found = _arrange(rng, base.scene, control)
        if found is not None:
            scene, event = found
            return World(base.seed, scene, [Beat((event,), "stands")])
    raise RuntimeError(f"no {control} test fits seed {seed}")


def counterfactual(world: World) -> World:
    """The same world in which nothing happens."""
    return world.with_beats([Beat((), "stands")])


def _arrange(rng: np.random.Generator, scene: Scene, control: str) -> tuple[Scene, Event] | None:
    """Place the object so that neither the true path nor the counterfactual one meets a border; None if none fits."""
    thing, start = scene.things[0], scene.start.things[0]
    thing = replace(thing, speed=pick(rng, ("medium", "fast")))
    scale, edge = scene.size[0] / 64, thing.radius + 1
    space = np.array([scene.size[1] - 2 * edge, scene.size[0] - 2 * edge])
    way = pick(rng, DIRECTIONS)
    old = np.array(velocity(way, thing.speed, scale))
    turn_at = old * (EVENT_START + RAMP / 2)
    ends = [np.zeros(2), old, turn_at]
    event = Event("stop")
    if control == "direction":
        new_way = pick(rng, [n for n, d in DIRECTIONS.items() if np.dot(d, DIRECTIONS[way]) <= 0])
        ends.append(turn_at + np.array(velocity(new_way, thing.speed, scale)) * (1 - EVENT_START - 1.5 * RAMP))
        event = Event("turn", 0, new_way)
    elif control == "colour":
        here = pal.COLOURS[start.colour]
        names = [n for n in pal.COLOURS if fits(scene.colours, n, []) and pal.distance(here, pal.COLOURS[n]) > 130]
        if not names:
            return None
        event = Event("colour", 0, pick(rng, names))
    low, high = np.min(ends, axis=0), np.max(ends, axis=0)
    if (high - low > space).any():
        return None
    x, y = edge - low + rng.uniform(size=2) * (space - (high - low))
    moving = replace(start, x=float(x), y=float(y), vx=float(old[0]), vy=float(old[1]), visible=True)
    return replace(scene, things=(thing,), start=replace(scene.start, things=(moving,), move="stands")), event


@dataclass(frozen=True)
class Seen:
    """What `observe` finds of the object in each frame: centre (T, 2) in px, area (T,) in px, mean rgb (T, 3)."""

    centre: np.ndarray
    area: np.ndarray
    rgb: np.ndarray


def observe(frames: np.ndarray, background: np.ndarray, reach: float) -> Seen:
    """Find the one object as what differs from the known background; reach = farthest a pixel of it lies, in px."""
    differs = np.abs(frames.astype(np.int16) - background.astype(np.int16)).sum(-1) > 110
    centre = np.full((len(frames), 2), np.nan)
    area, rgb = np.zeros(len(frames)), np.full((len(frames), 3), np.nan)
    for t, mask in enumerate(differs):
        y, x = np.nonzero(mask)
        for _ in range(3):
            if len(x):
                near = np.hypot(x - np.median(x), y - np.median(y)) <= reach
                x, y = x[near], y[near]
        if len(x):
            centre[t], area[t], rgb[t] = (x.mean(), y.mean()), len(x), frames[t, y, x].mean(0)
    return Seen(centre, area, rgb)


def judge_control(world: World, frames: np.ndarray) -> bool:
    """Whether frames (T >= 13, H, W, 3) uint8 from time 0 at 16 fps do what beat 0 of a `controlled` world says.

    The object must still be there (a third of its area). Colour: its mean colour at the end is nearer to the
    target's than to that of any other colour name. Stop: after frame 8 it moves less than 0.4 of what it would
    have moved. Direction: after frame 8 it moves the new way, within 60 degrees, by 0.35 or more of the true path.
    """
    events = world.beat(0).events
    if len(events) != 1 or events[0].kind not in ("colour", "stop", "turn"):
        raise UserError("judge_control needs a world made by `controlled`")
    if frames.ndim != 4 or len(frames) < 13 or frames.shape[1:] != (*world.size, 3):
        raise UserError(f"frames are {frames.shape}; expected (13 or more, {world.size[0]}, {world.size[1]}, 3)")
    event, thing = events[0], world.scene.things[0]
    background = world.clip(0.0, 1, FPS, objects=False)
    reach = 1.5 * thing.radius + 1
    last = len(frames) - 1
    truth = observe(world.clip(last / FPS, 1, FPS), background, reach)
    seen = observe(frames[[SETTLED, last]], background, reach)
    if seen.area.min() < truth.area[0] / 3:
        return False
    moved = seen.centre[1] - seen.centre[0]
    path = SPEEDS[thing.speed] * world.scale * (last - SETTLED) / FPS
    if event.kind == "stop":
        return bool(np.hypot(*moved) < 0.4 * path)
    if event.kind == "turn":
        way = np.array(DIRECTIONS[event.value or "left"], float)
        along = float(moved @ way / np.hypot(*way))
        return along >= 0.35 * path and along >= 0.5 * float(np.hypot(*moved))
    return _nearest_colour(world, event, seen.rgb[1], background, reach, last) == event.value


def _nearest_colour(
    world: World, event: Event, rgb: np.ndarray, background: np.ndarray, reach: float, last: int
) -> str:
    """The colour name whose rendering of this very object at frame `last` has the mean colour nearest to rgb."""

    def mean(name: str) -> np.ndarray:
        told = world.with_beats([Beat((replace(event, value=name),), "stands")])
        return observe(told.clip(last / FPS, 1, FPS), background, reach).rgb[0]

    means = {name: mean(name) for name in pal.COLOURS}
    return min((n for n in means if not np.isnan(means[n]).any()), key=lambda n: pal.distance(means[n], rgb))
