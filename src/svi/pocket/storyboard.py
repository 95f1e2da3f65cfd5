"""Beats, events and the closed-form motion they cause.

A beat starts from a `Start` (everything that can change), and `advance` gives the start of the next
beat, so one storyboard is one continuous truth. Knows nothing about pixels.
Units: pixels, seconds; x to the right, y down; times inside a beat are called u, arrays of shape (T,).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from svi.errors import UserError
from svi.pocket.palette import COLOURS, nearest

EVENT_START = 2 / 16  # seconds after the beat begins
RAMP = 3 / 16  # seconds a stop, a start or each half of a turn takes
FADE = 4 / 16  # seconds a colour change or an appearance takes
THING_EVENTS = ("stop", "go", "turn", "colour", "appear")
EVENTS = (*THING_EVENTS, "night", "day", "blink")
SPEEDS = {"slow": 6.0, "medium": 12.0, "fast": 22.0}  # px/s in a picture 64 high
PAN_SPEEDS = {"slow": 6.0, "fast": 16.0}
DIRECTIONS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up left": (-1, -1),
    "up right": (1, -1),
    "down left": (-1, 1),
    "down right": (1, 1),
}
BEAT_CAMERAS = ("stands", "pans left", "pans right", "pans up", "pans down", "zooms in", "zooms out")
FACE_ACTIONS = ("talks", "talks fast", "sings", "is silent")
DANCER_ACTIONS = ("waves", "jumps", "sways", "squats", "kicks", "stands")
ZOOM_CLOSE = 1.35


def check(what: str, word: object, known: Iterable[str]) -> None:
    """Refuse an unknown word and name the nearest known one."""
    words = tuple(known)
    if word not in words:
        raise UserError(f"unknown {what} {word!r}; nearest: {nearest(word, words)!r} (known: {', '.join(words)})")


@dataclass(frozen=True)
class Event:
    """One thing that happens in a beat: `kind` from EVENTS, object index, and a colour or direction name."""

    kind: str
    target: int = 0
    value: str | None = None

    def __post_init__(self) -> None:
        check("event", self.kind, EVENTS)
        if self.kind in ("go", "turn"):
            check("direction", self.value, DIRECTIONS)
        elif self.kind == "colour":
            check("colour", self.value, COLOURS)


@dataclass(frozen=True)
class Beat:
    """What happens in one beat; camera None = as in the beat before, action None = the family's rest."""

    events: tuple[Event, ...] = ()
    camera: str | None = None
    action: str | None = None

    def __post_init__(self) -> None:
        if self.camera is not None:
            check("camera", self.camera, BEAT_CAMERAS)
        if self.action is not None:
            check("action", self.action, (*FACE_ACTIONS, *DANCER_ACTIONS))


@dataclass(frozen=True)
class Thing:
    """What never changes about an object; radius = half its width and height in pixels."""

    shape: str
    texture: str
    radius: float
    speed: str


@dataclass(frozen=True)
class ThingStart:
    """An object at the start of a beat: centre (px), velocity (px/s), colour name, visible."""

    x: float
    y: float
    vx: float
    vy: float
    colour: str
    visible: bool = True


@dataclass(frozen=True)
class Start:
    """Everything that can change, at the start of a beat. Camera centre in landscape pixels."""

    things: tuple[ThingStart, ...]
    camera: tuple[float, float, float]
    move: str
    light: float


def direction_of(vx: float, vy: float) -> str | None:
    """Name of the direction of a velocity, None when it stands still."""
    sign = (int(np.sign(round(vx, 6))), int(np.sign(round(vy, 6))))
    return next((name for name, d in DIRECTIONS.items() if d == sign), None)


def velocity(direction: str, speed: str, scale: float) -> tuple[float, float]:
    """Velocity in px/s of a named direction and speed."""
    check("direction", direction, DIRECTIONS)
    dx, dy = DIRECTIONS[direction]
    v = SPEEDS[speed] * scale / (dx * dx + dy * dy) ** 0.5
    return dx * v, dy * v


def fold(x: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Bounce a straight path off two walls: position and the sign (+1, -1) its velocity has got."""
    span = high - low
    phase = np.mod(x - low, 2 * span)
    back = phase > span
    return low + np.where(back, 2 * span - phase, phase), np.where(back, -1.0, 1.0)


def _after(u: np.ndarray, begin: float, length: float) -> np.ndarray:
    return np.clip((u - begin) / length, 0.0, 1.0)


def ramp(u: np.ndarray, begin: float, length: float) -> np.ndarray:
    """Smooth step from 0 to 1 that begins at `begin` and takes `length` seconds."""
    a = _after(u, begin, length)
    return a * a * (3 - 2 * a)


@dataclass(frozen=True)
class Track:
    """An object over the times of a beat: arrays of shape (T,); colours as names and a mix in [0, 1]."""

    x: np.ndarray
    y: np.ndarray
    vx: np.ndarray
    vy: np.ndarray
    alpha: np.ndarray
    mix: np.ndarray
    colour: str
    colour_to: str


def _axis(
    u: np.ndarray, x0: float, v0: float, v1: float, kind: str | None, low: float, high: float
) -> tuple[np.ndarray, np.ndarray]:
    """Position and velocity along one axis."""
    if kind is None:
        x, sign = fold(x0 + v0 * u, low, high)
        return x, v0 * sign
    begin, second = EVENT_START, EVENT_START + RAMP
    if kind == "go":
        second = begin
    falling = np.clip(u - begin, 0.0, RAMP)
    t_old = np.minimum(u, begin) + falling - falling**2 / (2 * RAMP)
    x, sign = fold(x0 + v0 * t_old, low, high)
    v = v0 * sign * (1 - falling / RAMP)
    if kind == "stop":
        return x, v
    rising = np.clip(u - second, 0.0, RAMP)
    t_new = rising**2 / (2 * RAMP) + np.maximum(u - second - RAMP, 0.0)
    x, sign = fold(x + v1 * t_new, low, high)
    return x, v + v1 * sign * (rising / RAMP)


def track(
    thing: Thing, start: ThingStart, event: Event | None, u: np.ndarray, size: tuple[int, int], scale: float
) -> Track:
    """The exact path of one object in a beat at times u (T,), seconds since the beat began."""
    kind = event.kind if event and event.kind in ("stop", "go", "turn") else None
    new = (0.0, 0.0)
    if event and kind in ("go", "turn"):
        new = velocity(event.value or "left", thing.speed, scale)
    edge = thing.radius + 1
    x, vx = _axis(u, start.x, start.vx, new[0], kind, edge, size[1] - edge)
    y, vy = _axis(u, start.y, start.vy, new[1], kind, edge, size[0] - edge)
    alpha = np.full(u.shape, float(start.visible))
    mix, colour_to = np.zeros(u.shape), start.colour
    if event and event.kind == "appear":
        alpha = np.maximum(alpha, ramp(u, EVENT_START, FADE))
    if event and event.kind == "colour":
        mix, colour_to = ramp(u, EVENT_START, FADE), event.value or start.colour
    return Track(x, y, vx, vy, alpha, mix, start.colour, colour_to)


def event_for(beat: Beat, index: int) -> Event | None:
    """The event of a beat that concerns object `index`."""
    return next((e for e in beat.events if e.target == index and e.kind in THING_EVENTS), None)


def camera_track(start: Start, move: str, u: np.ndarray, beat_s: float, pan: float) -> np.ndarray:
    """Camera (x, y, zoom) at times u: shape (T, 3); pan in picture px/s."""
    x, y, zoom = start.camera
    out = np.empty((len(u), 3))
    out[:] = x, y, zoom
    if move.startswith("pans"):
        dx, dy = DIRECTIONS[move.split()[1]]
        out[:, 0] += dx * pan / zoom * u
        out[:, 1] += dy * pan / zoom * u
    elif move.startswith("zooms"):
        goal = ZOOM_CLOSE if move == "zooms in" else 1.0
        out[:, 2] = zoom * (goal / zoom) ** (u / beat_s)
    return out


def light_track(light: float, beat: Beat, u: np.ndarray) -> np.ndarray:
    """Light in [0, 1] (0 = night, 1 = day) at times u: shape (T,)."""
    goal = next((float(e.kind == "day") for e in beat.events if e.kind in ("night", "day")), light)
    return light + (goal - light) * ramp(u, EVENT_START, 0.5)


def advance(
    start: Start,
    beat: Beat,
    things: tuple[Thing, ...],
    size: tuple[int, int],
    scale: float,
    beat_s: float,
    pan: float,
) -> Start:
    """The start of the next beat."""
    end = np.array([beat_s])
    after = []
    for i, (thing, s) in enumerate(zip(things, start.things, strict=True)):
        p = track(thing, s, event_for(beat, i), end, size, scale)
        after.append(
            replace(
                s,
                x=float(p.x[0]),
                y=float(p.y[0]),
                vx=float(p.vx[0]),
                vy=float(p.vy[0]),
                colour=p.colour_to,
                visible=bool(p.alpha[0] > 0.5),
            )
        )
    move = beat.camera or start.move
    x, y, zoom = camera_track(start, move, end, beat_s, pan)[0]
    light = light_track(start.light, beat, end)[0]
    return Start(tuple(after), (float(x), float(y), float(zoom)), move, float(light))
