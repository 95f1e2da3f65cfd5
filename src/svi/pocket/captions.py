"""Captions: what a viewer sees in a beat, in varied lower-case words from a small vocabulary.

A caption names every colour, texture, shape, direction and speed and what happens; direction and speed
cannot be read off a first frame. Knows scenes and beats, nothing about pixels.
"""

from __future__ import annotations

import re

import numpy as np

from svi.pocket.people import Dancer, Face
from svi.pocket.scene import Scene, pick
from svi.pocket.storyboard import Beat, Event, Start, Thing, ThingStart, direction_of, event_for

MAX_WORDS = 60
MOVE = ("moves", "glides", "drifts", "travels")
HOW = {"slow": ("slowly", "gently"), "medium": ("steadily", "calmly"), "fast": ("fast", "quickly")}
STILL = ("stands still", "rests", "does not move")
WAYS = {
    "left": ("to the left", "left"),
    "right": ("to the right", "right"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
    "up left": ("up and to the left", "up left"),
    "up right": ("up and to the right", "up right"),
    "down left": ("down and to the left", "down left"),
    "down right": ("down and to the right", "down right"),
}
CAMERA = {
    "stands": ("the camera stands still", "the camera does not move", "fixed camera"),
    "pans": ("the camera pans {how} {way}", "the view moves {how} {way}", "camera pans {how} {way}"),
    "zooms": ("the camera zooms {way}", "the view zooms {way}", "slow zoom {way}"),
}
PAN_HOW = {"slow": ("slowly", "gently"), "fast": ("fast", "quickly")}
GROUND = {
    "gradient": ("a {a} background that fades into {b}", "a soft gradient of {a} and {b}"),
    "striped": ("a background with {a} and {b} stripes", "a striped {a} and {b} background"),
    "checked": ("a checked {a} and {b} background", "a background with {a} and {b} checks"),
    "cloudy": ("a cloudy {a} and {b} background", "a background of {a} and {b} clouds"),
    "dotted": ("a {a} background with {b} dots", "a dotted {a} and {b} background"),
}
BLOBS = ("with {c} hills", "with hills in {c}")
BEFORE = ("over", "in front of", "on")
LIGHT = {True: ("by day", "in daylight", "in bright light"), False: ("at night", "in the dark", "in dim light")}
CHANGES = {
    "night": ("night falls", "it gets dark", "the light fades into night"),
    "day": ("the sun rises", "it gets bright", "morning comes"),
}
MOUTHS = {
    "talks": ("talks", "speaks", "is talking"),
    "talks fast": ("talks fast", "speaks quickly", "is talking fast"),
    "sings": ("sings with a wide mouth", "opens the mouth wide and closes it slowly"),
    "is silent": ("is silent", "keeps the mouth closed", "says nothing"),
}
DANCES = {
    "waves": ("waves both arms", "waves its arms", "swings both arms up and down"),
    "jumps": ("jumps", "jumps up and down", "hops"),
    "sways": ("sways from side to side", "bends to the right and to the left"),
    "squats": ("bends its knees", "squats and gets up"),
    "kicks": ("kicks to the right and to the left", "kicks with both legs"),
    "stands": ("stands still", "does not dance", "rests"),
}


def _one(rng: np.random.Generator, options: tuple[str, ...], **words: str) -> str:
    return pick(rng, options).format(**words)


def _size(thing: Thing, scale: float) -> str:
    r = thing.radius / scale
    return "small " if r < 9.7 else "big " if r > 11.7 else ""


def _noun(thing: Thing, colour: str, scale: float) -> str:
    texture = "" if thing.texture == "plain" else f"{thing.texture} "
    return f"{_size(thing, scale)}{texture}{colour} {thing.shape}"


def _place(s: ThingStart, size: tuple[int, int]) -> str:
    row = ("top", "", "bottom")[min(2, int(3 * s.y / size[0]))]
    column = ("left", "", "right")[min(2, int(3 * s.x / size[1]))]
    if not row and not column:
        return "in the middle"
    return f"at the {row} {column}".replace("  ", " ").rstrip() if row else f"on the {column}"


def _motion(rng: np.random.Generator, thing: Thing, s: ThingStart) -> str:
    way = direction_of(s.vx, s.vy)
    if way is None:
        return pick(rng, STILL)
    return f"{pick(rng, MOVE)} {pick(rng, HOW[thing.speed])} {pick(rng, WAYS[way])}"


def _happening(rng: np.random.Generator, thing: Thing, s: ThingStart, event: Event) -> str:
    """What an event does, to follow 'it'."""
    way = pick(rng, WAYS[event.value]) if event.value in WAYS else ""
    if event.kind == "stop":
        return pick(rng, ("stops", "comes to a halt", "stops moving"))
    if event.kind == "go":
        return f"starts to move {pick(rng, HOW[thing.speed])} {way}"
    if event.kind == "turn":
        old = direction_of(s.vx, s.vy)
        return f"{'turns around and' if old and _opposite(old, event.value or '') else 'turns and'} {pick(rng, MOVE)} {way}"
    return _one(rng, ("turns {c}", "becomes {c}", "changes its colour to {c}", "changes to {c}"), c=event.value or "")


def _opposite(a: str, b: str) -> bool:
    flip = {"left": "right", "right": "left", "up": "down", "down": "up"}
    return " ".join(flip[w] for w in a.split()) == b


def _things(rng: np.random.Generator, scene: Scene, start: Start, beat: Beat) -> list[str]:
    scale = scene.size[0] / 64
    out = []
    for i, (thing, s) in enumerate(zip(scene.things, start.things, strict=True)):
        event = event_for(beat, i)
        noun = _noun(thing, s.colour, scale)
        if not s.visible:
            if event and event.kind == "appear":
                verb = pick(rng, ("appears", "fades in", "comes up"))
                text = f"a {noun} {verb} {_place(s, scene.size)}"
                out.append(text + (f" and {_motion(rng, thing, s)}" if direction_of(s.vx, s.vy) else ""))
            continue
        text = f"a {noun} {_motion(rng, thing, s)}"
        if event and event.kind != "appear":
            text += f" {pick(rng, ('and then', 'then', 'and soon'))} {_happening(rng, thing, s, event)}"
        out.append(text)
    return out


def _person(rng: np.random.Generator, scene: Scene, beat: Beat) -> str:
    person = scene.person
    if isinstance(person, Face):
        hair = f"{'long' if person.long_hair else 'short'} {person.hair} hair"
        who = f"a {person.skin} face with {hair}, {person.eyes} eyes and a {person.shirt} shirt"
        text = f"{who} {pick(rng, MOUTHS[beat.action or 'is silent'])}"
        if person.sways:
            text += pick(rng, (" and sways gently", " while swaying gently"))
        if any(e.kind == "blink" for e in beat.events):
            text += pick(rng, (", then blinks", " and blinks once"))
        return text
    assert isinstance(person, Dancer)
    who = pick(rng, ("dancer", "stick figure"))
    clothes = f"a {person.shirt} shirt and {person.trousers} trousers"
    return f"a {person.skin} {who} in {clothes} {pick(rng, DANCES[beat.action or 'stands'])}"


def _camera(rng: np.random.Generator, move: str, pan: str) -> str:
    kind, _, way = move.partition(" ")
    words = {"way": pick(rng, WAYS[way]) if kind == "pans" else way, "how": pick(rng, PAN_HOW[pan])}
    return _one(rng, CAMERA[kind], **words)


def describe(rng: np.random.Generator, scene: Scene, start: Start, beat: Beat) -> str:
    """The caption of a beat that begins at `start`: the first wording of at most MAX_WORDS words."""
    for _ in range(50):
        text = _describe(rng, scene, start, beat)
        if len(text.split()) <= MAX_WORDS:
            break
    return text


def _describe(rng: np.random.Generator, scene: Scene, start: Start, beat: Beat) -> str:
    subjects = [_person(rng, scene, beat)] if scene.person else _things(rng, scene, start, beat)
    a, b, c = scene.colours
    ground = _one(rng, GROUND[scene.texture], a=a, b=b)
    if scene.blobs:
        ground += " " + _one(rng, BLOBS, c=c)
    light = pick(rng, LIGHT[start.light > 0.5])
    change = next((pick(rng, CHANGES[e.kind]) for e in beat.events if e.kind in CHANGES), "")
    camera = _camera(rng, beat.camera or start.move, scene.pan)
    text = ", ".join(subjects)
    if rng.random() < 0.7 or not subjects:
        text = f"{text} {pick(rng, BEFORE)} {ground} {light}".strip()
    else:
        text = f"{light}, {pick(rng, BEFORE)} {ground}, {text}"
    tail = [camera, change] if rng.random() < 0.5 else [change, camera]
    sentence = ". ".join([text, ", ".join(t for t in tail if t)]) + "."
    return re.sub(r"\ba (?=[aeiou])", "an ", sentence)
