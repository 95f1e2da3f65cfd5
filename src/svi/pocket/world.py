"""Pocket world: captioned videos with exact ground truth, made from an integer seed.

`World.sample(seed)` draws a landscape, things or a person, a camera and an endless storyboard of beats;
`render(t)` is the exact frame at any time, `state(t)` the truth behind it, `caption(k)` the sentence of
beat k. Knows nothing about models, latents or training.
Units: seconds, pixels (x to the right, y down), frames (T, H, W, 3) uint8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from svi.errors import UserError
from svi.pocket import _draw, people, storyboard
from svi.pocket import palette as pal
from svi.pocket.captions import describe
from svi.pocket.palette import COLOURS, colour_of
from svi.pocket.scene import CAMERAS, FAMILIES, LIGHTINGS, Scene, check_beats, draw_beat, draw_scene
from svi.pocket.storyboard import Beat, Event, Start

__all__ = [
    "CAMERAS",
    "COLOURS",
    "FAMILIES",
    "LIGHTINGS",
    "Beat",
    "Event",
    "ObjectState",
    "World",
    "WorldState",
    "captions",
    "colour_of",
]


@dataclass(frozen=True)
class ObjectState:
    """An object at one time: centre, radius (half its width) in px, velocity in px/s, rgb by daylight 0..255."""

    shape: str
    texture: str
    x: float
    y: float
    radius: float
    colour_name: str
    rgb: tuple[float, float, float]
    velocity: tuple[float, float]
    visible: float


@dataclass(frozen=True)
class WorldState:
    """The truth at one time: camera (x, y, zoom), light in [0, 1], objects back to front, mouth, joints (x, y)."""

    camera: tuple[float, float, float]
    light: float
    objects: tuple[ObjectState, ...]
    mouth: float | None
    joints: dict[str, tuple[float, float]] | None


def _check_size(size: tuple[int, int]) -> None:
    good = tuple(max(m, round(v / 16) * 16) for v, m in zip(size, (48, 64), strict=True))
    if tuple(size) != good:
        raise UserError(f"size {tuple(size)} must be multiples of 16, at least (48, 64); nearest: {good}")


class World:
    """One endless captioned video; made by `World.sample`. Beat k covers frames just after k * beat_s up to its end."""

    def __init__(self, seed: int, scene: Scene, beats: Sequence[Beat] | None = None, beat_s: float = 1.0) -> None:
        self.seed, self.scene, self.beat_s = seed, scene, beat_s
        self.size, self.scale = scene.size, scene.size[0] / 64
        self._given = None if beats is None else tuple(beats)
        self._pan = storyboard.PAN_SPEEDS[scene.pan] * self.scale
        self._starts: list[Start] = [scene.start]
        self._beats: dict[int, Beat] = {}
        self._landscape: torch.Tensor | None = None
        if self._given is not None:
            check_beats(self._given, scene)
        self._mouth: Callable[[np.ndarray], np.ndarray] | None = None

    @classmethod
    def sample(
        cls,
        seed: int,
        *,
        family: str | None = None,
        camera: str | None = None,
        lighting: str | None = None,
        num_objects: int | None = None,
        size: tuple[int, int] = (64, 96),
        beats: Sequence[Beat] | None = None,
        beat_s: float = 1.0,
    ) -> World:
        """The world of a seed; what is None is drawn. Given beats are followed by beats in which nothing happens."""
        choices = (("family", family, FAMILIES), ("camera", camera, CAMERAS), ("lighting", lighting, LIGHTINGS))
        for what, word, known in choices:
            if word is not None:
                storyboard.check(what, word, known)
        _check_size(size)
        if num_objects is not None and num_objects not in (1, 2, 3):
            raise UserError(f"num_objects is {num_objects}; nearest: {min(3, max(1, num_objects))}")
        if not 0.75 <= beat_s < math.inf:
            raise UserError(f"beat_s is {beat_s}; nearest: 0.75 (an event needs the time)")
        rng = _rng(seed, 0)
        scene = draw_scene(rng, family, camera, lighting, num_objects, (int(size[0]), int(size[1])))
        return cls(seed, scene, beats, beat_s)

    def with_beats(self, beats: Sequence[Beat]) -> World:
        """The same world with another storyboard."""
        world = World(self.seed, self.scene, beats, self.beat_s)
        world._landscape, world._mouth = self._landscape, self._mouth
        return world

    def with_mouth(self, signal: Callable[[np.ndarray], np.ndarray]) -> World:
        """The same world whose mouth follows signal(seconds (T,)) -> opening (T,) in [0, 1]."""
        world = World(self.seed, self.scene, self._given, self.beat_s)
        world._landscape, world._mouth = self._landscape, signal
        return world

    def beat(self, k: int) -> Beat:
        """Beat k >= 0, as given or drawn; deterministic and endless."""
        if k not in self._beats:
            start = self.start(k)
            if self._given is None:
                self._beats[k] = draw_beat(_rng(self.seed, 1, k), self.scene, start, k == 0)
            else:
                self._beats[k] = self._given[k] if k < len(self._given) else Beat()
        return self._beats[k]

    def start(self, k: int) -> Start:
        """Everything that can change, at the start of beat k (the end of beat k - 1)."""
        if k < 0:
            raise UserError(f"beat {k} does not exist; nearest: 0")
        while len(self._starts) <= k:
            args = self.scene.things, self.size, self.scale, self.beat_s, self._pan
            before = self.beat(len(self._starts) - 1)
            self._starts.append(storyboard.advance(self._starts[-1], before, *args))
        return self._starts[k]

    def caption(self, k: int) -> str:
        """The sentence of beat k: lower case, at most 60 words."""
        return describe(_rng(self.seed, 2, k), self.scene, self.start(k), self.beat(k))

    def render(self, t: float, *, objects: bool = True) -> np.ndarray:
        """The frame (H, W, 3) uint8 at time t >= 0; objects=False leaves only the background."""
        return self._frames(np.array([t]), objects)[0]

    def clip(self, start: float, num_frames: int = 17, fps: int = 16, *, objects: bool = True) -> np.ndarray:
        """Frames (T, H, W, 3) uint8 at start, start + 1 / fps, ...; equal to stacked `render`."""
        return self._frames(start + np.arange(num_frames) / fps, objects)

    def background_mask(self, t: float) -> np.ndarray:
        """(H, W) bool: True where no pixel of an object or person lies within 2 px."""
        k, u = self._split(np.array([t]))[0]
        cover = np.zeros((1, 1, *self.size), np.float32)
        for layer in self._layers(k, u):
            _draw.composite(cover, layer, mask=True)
        grown = torch.nn.functional.max_pool2d(torch.from_numpy(cover), 5, stride=1, padding=2)
        return grown.numpy()[0, 0] < 1 / 255

    def state(self, t: float) -> WorldState:
        """The truth at time t >= 0."""
        k, u = self._split(np.array([t]))[0]
        start, beat = self.start(k), self.beat(k)
        camera = self._camera(k, u)[0]
        objects = []
        for thing, track in self._tracks(k, u):
            was, to = (np.array(COLOURS[c], float) for c in (track.colour, track.colour_to))
            r, g, b = (float(c) for c in was + track.mix[0] * (to - was))
            name = track.colour_to if track.mix[0] > 0.5 else track.colour
            where, speed = (float(track.x[0]), float(track.y[0])), (float(track.vx[0]), float(track.vy[0]))
            look, alpha = (thing.shape, thing.texture), float(track.alpha[0])
            objects.append(ObjectState(*look, *where, thing.radius, name, (r, g, b), speed, alpha))
        mouth = joints = None
        if isinstance(self.scene.person, people.Face):
            mouth = float(self._opening(k, u)[0])
        elif isinstance(self.scene.person, people.Dancer):
            joints = {n: (float(x[0]), float(y[0])) for n, (x, y) in self._joints(k, u).items()}
        light = float(storyboard.light_track(start.light, beat, u)[0])
        return WorldState(tuple(float(v) for v in camera), light, tuple(objects), mouth, joints)  # type: ignore[arg-type]

    # -- drawing

    def _split(self, times: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Times (T,) grouped by beat: (k, seconds since it began). A boundary belongs to the beat it ends."""
        if times[0] < 0:
            raise UserError(f"time {times[0]} lies before the world; nearest: 0")
        k = np.maximum(np.ceil(times / self.beat_s - 1e-6).astype(int) - 1, 0)
        return [(int(i), np.minimum(times[k == i] - i * self.beat_s, self.beat_s)) for i in np.unique(k)]

    def _frames(self, times: np.ndarray, objects: bool) -> np.ndarray:
        if self._landscape is None:
            s = self.scene
            colours = np.array([pal.BACKGROUNDS[c] for c in s.colours], np.float32)
            self._landscape = _draw.padded(_draw.landscape(_rng(self.seed, 3), s.texture, colours, s.size, s.blobs))
        parts = []
        for k, u in self._split(times):
            canvas = _draw.view(self._landscape, self._camera(k, u), self.size)
            if objects:
                for layer in self._layers(k, u):
                    _draw.composite(canvas, layer)
            light = storyboard.light_track(self.start(k).light, self.beat(k), u)
            if light.min() < 1:
                tint = np.array(pal.NIGHT) + light[:, None] * (1 - np.array(pal.NIGHT))
                canvas *= tint.astype(np.float32)[:, :, None, None]
            parts.append((canvas + np.float32(0.5)).astype(np.uint8))
        out = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return np.ascontiguousarray(out.transpose(0, 2, 3, 1))

    def _camera(self, k: int, u: np.ndarray) -> np.ndarray:
        start = self.start(k)
        return storyboard.camera_track(start, self.beat(k).camera or start.move, u, self.beat_s, self._pan)

    def _tracks(self, k: int, u: np.ndarray) -> Iterator[tuple[storyboard.Thing, storyboard.Track]]:
        start, beat = self.start(k), self.beat(k)
        for i, (thing, s) in enumerate(zip(self.scene.things, start.things, strict=True)):
            event = storyboard.event_for(beat, i)
            yield thing, storyboard.track(thing, s, event, u, self.size, self.scale)

    def _opening(self, k: int, u: np.ndarray) -> np.ndarray:
        if self._mouth is not None:
            return np.clip(self._mouth(k * self.beat_s + u), 0.0, 1.0)
        return people.mouth_opening(self.beat(k).action or "is silent", u, self.beat_s)

    def _joints(self, k: int, u: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        assert isinstance(self.scene.person, people.Dancer)
        action = self.beat(k).action or "stands"
        return people.dancer_joints(self.scene.person, action, u, self.beat_s, self.scale)

    def _layers(self, k: int, u: np.ndarray) -> Iterator[_draw.Layer]:
        """Layers back to front at times u (T,) of beat k."""
        person = self.scene.person
        if isinstance(person, people.Face):
            eyes = people.eye_opening(any(e.kind == "blink" for e in self.beat(k).events), u)
            shift = people.face_shift(person, u, self.beat_s, self.scale)
            yield from people.face_layers(person, shift, self._opening(k, u), eyes, self.scale)
        elif person is not None:
            yield from people.dancer_layers(person, self._joints(k, u), self.scale)
        for thing, track in self._tracks(k, u):
            if track.alpha.any():
                yield _thing_layer(thing, track, self.scale)


def _thing_layer(thing: storyboard.Thing, track: storyboard.Track, scale: float) -> _draw.Layer:
    x0, y0, x, y = _draw.boxes(track.x, track.y, thing.radius, thing.radius)
    alpha = _draw.coverage(_draw.sdf(thing.shape, x, y, thing.radius))
    alpha = alpha * track.alpha.astype(np.float32)[:, None, None]

    def mixed(table: Callable[[str], object]) -> np.ndarray:
        a, b = (np.array(table(c), np.float32) for c in (track.colour, track.colour_to))
        return (a + track.mix[:, None] * (b - a)).astype(np.float32)

    rgb = mixed(COLOURS.__getitem__)
    weight = _draw.pattern(thing.texture, x, y, 13.0 * scale)
    if weight is not None:
        second = mixed(pal.second_tone)
        rgb = rgb[:, :, None, None] + weight[:, None] * (second - rgb)[:, :, None, None]
    return _draw.Layer(x0, y0, alpha, rgb)


def _rng(seed: int, *path: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, *path]))


def captions(seed: int) -> Iterator[str]:
    """Endless captions of all families, beats and wordings, for training a tokenizer."""
    rng = _rng(seed, 4)
    while True:
        world = World.sample(int(rng.integers(2**31)))
        for k in range(int(rng.integers(1, 4))):
            yield world.caption(k)
