"""Drawing a scene and its random beats from numpy generators.

A `Scene` is everything about a world that does not change; knows nothing about pixels or words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from svi.errors import UserError
from svi.pocket import palette as pal
from svi.pocket._draw import BACK_TEXTURES, SHAPES, TEXTURES
from svi.pocket.people import Dancer, Face
from svi.pocket.storyboard import (
    DANCER_ACTIONS,
    DIRECTIONS,
    FACE_ACTIONS,
    SPEEDS,
    THING_EVENTS,
    Beat,
    Event,
    Start,
    Thing,
    ThingStart,
    check,
    velocity,
)

FAMILIES = ("things", "face", "dancer")
CAMERAS = ("stands", "pans", "pans left", "pans right", "pans up", "pans down", "zooms")
LIGHTINGS = ("day", "night")


@dataclass(frozen=True)
class Scene:
    """The constant part of a world. size = (height, width) in pixels; colours are names."""

    family: str
    size: tuple[int, int]
    texture: str
    colours: tuple[str, str, str]
    blobs: bool
    pan: str
    camera: str | None
    lighting: str | None
    things: tuple[Thing, ...]
    person: Face | Dancer | None
    start: Start


def pick(rng: np.random.Generator, items: Iterable[str]) -> str:
    """One of a sequence of names."""
    words = tuple(items)
    return words[int(rng.integers(len(words)))]


def _background(rng: np.random.Generator, others: list[pal.RGB]) -> tuple[str, str, str]:
    """Three landscape colours that differ from each other and clearly from `others`."""
    names = list(pal.BACKGROUNDS)
    best: tuple[float, tuple[str, str, str]] = (-1.0, (names[0], names[1], names[2]))
    for _ in range(40):
        i = rng.permutation(len(names))[:3]
        trio = (names[i[0]], names[i[1]], names[i[2]])
        rgb = [pal.BACKGROUNDS[n] for n in trio]
        far = min((pal.distance(a, b) for a in rgb for b in others), default=300.0)
        ground = pal.distance(rgb[0], rgb[1])
        blob = min(pal.distance(rgb[2], rgb[0]), pal.distance(rgb[2], rgb[1]))
        score = min(far / 115, ground / 70, 230 / max(ground, 1), blob / 50)
        if score >= 1:
            return trio
        best = max(best, (score, trio))
    return best[1]


def fits(rng_colours: tuple[str, ...], name: str, others: list[str]) -> bool:
    """Whether a thing's colour is clearly told from the background and the other things."""
    rgb = pal.COLOURS[name]
    return name not in others and all(pal.distance(rgb, pal.BACKGROUNDS[b]) >= 100 for b in rng_colours)


def _free_direction(rng: np.random.Generator, s: ThingStart, size: tuple[int, int], reach: float, avoid: object) -> str:
    """A direction with room for `reach` pixels where possible, so that a caption's direction holds for the beat."""
    names = [n for n in DIRECTIONS if n != avoid]
    order = [names[i] for i in rng.permutation(len(names))]

    def room(name: str) -> float:
        dx, dy = DIRECTIONS[name]
        x = np.inf if dx == 0 else (s.x if dx < 0 else size[1] - s.x)
        y = np.inf if dy == 0 else (s.y if dy < 0 else size[0] - s.y)
        return float(min(x, y))

    return next((n for n in order if room(n) >= reach), max(order, key=room))


def _things(
    rng: np.random.Generator, size: tuple[int, int], count: int, colours: list[str]
) -> tuple[tuple[Thing, ...], tuple[ThingStart, ...]]:
    scale = size[0] / 64
    shapes = rng.permutation(len(SHAPES))
    things: list[Thing] = []
    starts: list[ThingStart] = []
    for i in range(count):
        texture = "plain" if rng.random() < 0.4 else pick(rng, TEXTURES[1:])
        shape = SHAPES[shapes[i]]
        if shape in ("ring", "cross", "star") and texture != "striped":
            texture = "plain"
        low = 10.5 if shape in ("star", "cross", "ring", "triangle") or texture != "plain" else 8.2
        radius = float(rng.uniform(low, 13.0)) * scale
        speed = pick(rng, SPEEDS)
        edge = radius + 1
        spots = rng.uniform((edge, edge), (size[1] - edge, size[0] - edge), (6, 2))
        near = [min([np.hypot(x - o.x, y - o.y) for o in starts], default=0.0) for x, y in spots]
        x, y = (float(v) for v in spots[int(np.argmax(near))])
        s = ThingStart(x, y, 0.0, 0.0, colours[i], visible=not (i == count - 1 and count > 1 and rng.random() < 0.35))
        if rng.random() < 0.85:
            way = _free_direction(rng, s, size, radius + 14 * scale, None)
            vx, vy = velocity(way, speed, scale)
            s = ThingStart(x, y, vx, vy, s.colour, s.visible)
        things.append(Thing(shape, texture, radius, speed))
        starts.append(s)
    return tuple(things), tuple(starts)


def draw_scene(
    rng: np.random.Generator,
    family: str | None,
    camera: str | None,
    lighting: str | None,
    num_objects: int | None,
    size: tuple[int, int],
) -> Scene:
    """A scene; what is None is drawn."""
    family = family or FAMILIES[int(rng.choice(3, p=(0.6, 0.2, 0.2)))]
    things: tuple[Thing, ...] = ()
    starts: tuple[ThingStart, ...] = ()
    person: Face | Dancer | None = None
    names = list(pal.COLOURS)
    chosen = [names[i] for i in rng.permutation(len(names))]
    if family == "things":
        count = num_objects or int(rng.integers(1, 4))
        things, starts = _things(rng, size, count, chosen)
        others = [pal.COLOURS[c] for c in chosen[:count]]
    elif family == "face":
        person, others = _face(rng, size, chosen[0])
    else:
        person, others = _dancer(rng, size, chosen[0], chosen[1])
    colours = _background(rng, others)
    light = lighting or ("night" if rng.random() < 0.25 else "day")
    move = _first_move(rng, camera)
    place = (float(rng.uniform(0, 3 * size[1])), float(rng.uniform(0, 2 * size[0])), 1.0)
    texture, blobs = pick(rng, BACK_TEXTURES), bool(rng.random() < 0.75)
    pan = "slow" if rng.random() < 0.5 else "fast"
    start = Start(starts, place, move, float(light == "day"))
    return Scene(family, size, texture, colours, blobs, pan, camera, lighting, things, person, start)


def _face(rng: np.random.Generator, size: tuple[int, int], shirt: str) -> tuple[Face, list[pal.RGB]]:
    """A face and the colours that the background must differ from."""
    skin, hair = pick(rng, pal.SKINS), pick(rng, pal.HAIRS)
    while pal.distance(pal.SKINS[skin], pal.HAIRS[hair]) < 75:
        hair = pick(rng, pal.HAIRS)
    x = float(size[1] / 2 + rng.uniform(-0.17, 0.17) * size[1])
    y = float(size[0] * rng.uniform(0.44, 0.5))
    eyes, long_hair, sways = pick(rng, pal.EYES), bool(rng.random() < 0.5), bool(rng.random() < 0.5)
    face = Face(x, y, skin, hair, eyes, shirt, long_hair, sways)
    return face, [pal.SKINS[skin], pal.HAIRS[hair], pal.COLOURS[shirt]]


def _dancer(rng: np.random.Generator, size: tuple[int, int], shirt: str, trousers: str) -> tuple[Dancer, list[pal.RGB]]:
    """A dancer and the colours that the background must differ from."""
    skin = pick(rng, pal.SKINS)
    x = float(size[1] / 2 + rng.uniform(-0.2, 0.2) * size[1])
    hair = "black" if skin != "dark" else "blond"
    dancer = Dancer(x, size[0] * 60 / 64, skin, shirt, trousers, hair)
    return dancer, [pal.COLOURS[shirt], pal.COLOURS[trousers], pal.SKINS[skin]]


def _first_move(rng: np.random.Generator, camera: str | None) -> str:
    kind = camera or ("stands", "pans", "zooms")[int(rng.choice(3, p=(0.35, 0.45, 0.2)))]
    if kind == "pans":
        return f"pans {('left', 'right', 'up', 'down')[int(rng.choice(4, p=(0.35, 0.35, 0.15, 0.15)))]}"
    return "zooms in" if kind == "zooms" else kind


def _next_camera(rng: np.random.Generator, scene: Scene, start: Start, first: bool) -> str:
    move = start.move
    if not first and scene.camera is None and rng.random() < 0.2:
        move = _first_move(rng, None)
    elif not first and scene.camera == "pans" and rng.random() < 0.25:
        move = _first_move(rng, "pans")
    if move.startswith("zooms"):
        move = "zooms out" if start.camera[2] > 1.15 else "zooms in"
    return move


def _thing_event(rng: np.random.Generator, scene: Scene, start: Start, i: int, taken: list[str]) -> Event | None:
    thing, s = scene.things[i], start.things[i]
    if not s.visible:
        return Event("appear", i) if rng.random() < 0.8 else None
    scale = scene.size[0] / 64
    roll = rng.random()
    reach = thing.radius + 0.6 * SPEEDS[thing.speed] * scale
    if s.vx == 0 and s.vy == 0:
        if roll < 0.6:
            return Event("go", i, _free_direction(rng, s, scene.size, reach, None))
    elif roll < 0.3:
        return Event("stop", i)
    elif roll < 0.62:
        back = _name(-s.vx, -s.vy)
        avoid = _name(s.vx, s.vy)
        way = back if rng.random() < 0.4 else _free_direction(rng, s, scene.size, reach, avoid)
        return Event("turn", i, way)
    options = [c for c in pal.COLOURS if fits(scene.colours, c, taken)]
    return Event("colour", i, pick(rng, options)) if options else None


def check_beats(beats: Sequence[Beat], scene: Scene) -> None:
    """Refuse events and actions that a scene cannot show."""
    actions = {"face": FACE_ACTIONS, "dancer": DANCER_ACTIONS}.get(scene.family, ())
    for k, beat in enumerate(beats):
        if beat.action is not None:
            if not actions:
                raise UserError(f"beat {k}: things have no action; nearest: an event for an object")
            check(f"action in beat {k}", beat.action, actions)
        for event in beat.events:
            if event.kind in THING_EVENTS and not 0 <= event.target < len(scene.things):
                hint = f"object {len(scene.things) - 1}" if scene.things else "family 'things'"
                raise UserError(f"beat {k}: there is no object {event.target}; nearest: {hint}")


def _name(vx: float, vy: float) -> str:
    return next(n for n, d in DIRECTIONS.items() if d == (int(np.sign(vx)), int(np.sign(vy))))


def draw_beat(rng: np.random.Generator, scene: Scene, start: Start, first: bool) -> Beat:
    """A random beat that makes sense from `start`."""
    events: list[Event] = []
    if scene.lighting is None and rng.random() < 0.08:
        events.append(Event("night" if start.light > 0.5 else "day"))
    camera = _next_camera(rng, scene, start, first)
    if scene.family == "face":
        if rng.random() < 0.3:
            events.append(Event("blink"))
        return Beat(tuple(events), camera, FACE_ACTIONS[int(rng.choice(4, p=(0.4, 0.2, 0.2, 0.2)))])
    if scene.family == "dancer":
        return Beat(tuple(events), camera, pick(rng, DANCER_ACTIONS))
    taken = [s.colour for s in start.things]
    budget = int(rng.choice(3, p=(0.3, 0.55, 0.15)))
    hidden = [i for i, s in enumerate(start.things) if not s.visible]
    order = hidden + [int(i) for i in rng.permutation(len(scene.things)) if int(i) not in hidden]
    for i in order[:budget]:
        event = _thing_event(rng, scene, start, i, taken)
        if event:
            events.append(event)
            taken.append(event.value or "")
    return Beat(tuple(events), camera)
