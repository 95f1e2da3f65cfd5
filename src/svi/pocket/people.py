"""The face and the dancer: what they look like, how they move in a beat, and their layers.

Every action starts and ends a beat in the rest pose, so any two actions join without a jump, and the
caption alone determines the motion. Units: pixels of a picture 64 high, scaled by `scale`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from svi.pocket._draw import Array, Layer, boxes, capsule, coverage, solid
from svi.pocket.palette import COLOURS, EYES, HAIRS, SKINS

#: Mouth movements: openings per second, how far it opens.
MOUTHS = {"talks": (2, 0.75), "talks fast": (3, 0.75), "sings": (1, 1.0), "is silent": (0, 0.0)}
#: Dance movements: repetitions per second.
DANCES = {"waves": 1, "jumps": 1, "sways": 1, "squats": 1, "kicks": 1, "stands": 0}
BONES = (
    ("hip", "left_knee"),
    ("left_knee", "left_foot"),
    ("hip", "right_knee"),
    ("right_knee", "right_foot"),
    ("neck", "hip"),
    ("neck", "left_elbow"),
    ("left_elbow", "left_hand"),
    ("neck", "right_elbow"),
    ("right_elbow", "right_hand"),
)


@dataclass(frozen=True)
class Face:
    """A big face: centre in pixels, names of its colours, whether it sways."""

    x: float
    y: float
    skin: str
    hair: str
    eyes: str
    shirt: str
    long_hair: bool
    sways: bool


@dataclass(frozen=True)
class Dancer:
    """A stick figure: x of the hip and y of the ground in pixels, names of its colours."""

    x: float
    ground: float
    skin: str
    shirt: str
    trousers: str
    hair: str


def _cycles(per_second: float, beat_s: float) -> int:
    return max(1, round(per_second * beat_s)) if per_second else 0


def mouth_opening(action: str, u: Array, beat_s: float) -> Array:
    """Mouth opening in [0, 1] at times u (T,) of a beat; closed at both ends."""
    rate, wide = MOUTHS[action]
    return wide * (0.5 - 0.5 * np.cos(2 * np.pi * _cycles(rate, beat_s) * u / beat_s))


def face_shift(face: Face, u: Array, beat_s: float, scale: float) -> Array:
    """Sideways sway in pixels at times u (T,)."""
    return np.sin(2 * np.pi * u / beat_s) * (3.0 * scale * face.sways)


def eye_opening(blinks: bool, u: Array) -> Array:
    """Eye opening in [0, 1]: one blink of 5 frames in the middle of a beat that blinks."""
    return 1.0 - blinks * np.clip(1.5 - np.abs(u - 0.5) * 8, 0.0, 1.0)


def _ellipse(rx: float, ry: float) -> Callable[[Array, Array], Array]:
    small = min(rx, ry)
    return lambda x, y: (np.sqrt((x / np.float32(rx)) ** 2 + (y / np.float32(ry)) ** 2) - 1) * np.float32(small)


def face_layers(face: Face, shift: Array, mouth: Array, eyes: Array, s: float) -> Iterator[Layer]:
    """Layers of a face; shift, mouth, eyes are (T,)."""
    x, y = face.x + shift, np.full(shift.shape, face.y)
    still = np.full(shift.shape, face.x) + 0.5 * shift
    skin, hair = np.array(SKINS[face.skin]), np.array(HAIRS[face.hair])

    def ellipse(cx: Array, cy: Array, rx: float, ry: float, rgb: object) -> Layer:
        return solid(_ellipse(rx, ry), cx, cy, rx, ry, np.asarray(rgb))

    yield ellipse(still, y + 41 * s, 30 * s, 19 * s, COLOURS[face.shirt])
    if face.long_hair:
        yield ellipse(x, y + 1 * s, 23 * s, 27 * s, hair)
    else:
        yield ellipse(x, y - 7 * s, 20.5 * s, 19 * s, hair)
    yield ellipse(still, y + 21 * s, 7 * s, 9 * s, skin * 0.86)
    yield ellipse(x, y + 1 * s, 17.5 * s, 21 * s, skin)
    yield _fringe(x, y - 13.5 * s, s, hair)
    for side in (-1, 1):
        ex, ey = x + side * 7.5 * s, y - 2 * s
        yield _squashed(ex, ey, 4.6 * s, 3.8 * s, eyes, np.array((250, 250, 250)))
        yield _squashed(ex, ey, 2.6 * s, 2.8 * s, eyes, np.array(EYES[face.eyes]) * 0.8)
    yield ellipse(x, y + 5 * s, 2.4 * s, 2.6 * s, skin * 0.82)
    lips = np.array((196, 48, 62))
    yield _squashed(x, y + 12.5 * s, 7.5 * s, 7.0 * s, 0.28 + 0.72 * mouth, lips)
    yield _squashed(x, y + 12.5 * s, 5.4 * s, 5.0 * s, np.maximum(mouth * 1.0, 1e-3), np.array((70, 14, 26)))


def _fringe(x: Array, y: Array, s: float, rgb: Array) -> Layer:
    """The cap of hair on a forehead: the upper part of the head's ellipse."""

    def cap(px: Array, py: Array) -> Array:
        head = _ellipse(18.5 * s, 21 * s)(px, py - np.float32(13.5 * s))
        return np.maximum(head, py + px * px * np.float32(-0.018 / s))

    return solid(cap, x, y, 19 * s, 10 * s, rgb)


def _squashed(cx: Array, cy: Array, rx: float, ry: float, opening: Array, rgb: Array) -> Layer:
    """An ellipse whose height is ry * opening (T,); it vanishes softly as it closes."""
    x0, y0, x, y = boxes(cx, cy, rx, ry)
    tall = np.maximum(ry * opening, 0.3).astype(np.float32)[:, None, None]
    d = np.sqrt((x / np.float32(rx)) ** 2 + (y / tall) ** 2)
    alpha = coverage((d - 1) * np.minimum(tall, np.float32(rx)))
    alpha *= np.clip(opening * ry, 0, 1).astype(np.float32)[:, None, None]
    return Layer(x0, y0, alpha, np.broadcast_to(np.asarray(rgb, np.float32), (len(cx), 3)))


def _polar(ox: Array, oy: Array, angle: Array, length: float) -> tuple[Array, Array]:
    """A point at `length` from (ox, oy); angle 0 = straight down, positive = to the right."""
    return ox + np.sin(angle) * length, oy + np.cos(angle) * length


def dancer_joints(dancer: Dancer, action: str, u: Array, beat_s: float, s: float) -> dict[str, tuple[Array, Array]]:
    """Eleven joints, each a pair of arrays (T,) of x and y in pixels."""
    phase = 2 * np.pi * _cycles(DANCES[action], beat_s) * u / beat_s
    up = 0.5 - 0.5 * np.cos(phase)  # 0 at rest, 1 at the height of the movement
    swing, zero = np.sin(phase), np.zeros_like(u)
    lift = up * (8.0 * s) if action == "jumps" else zero
    bend = up * 1.0 if action == "squats" else zero
    lean = swing * 0.3 if action == "sways" else zero
    raised = {"waves": 2.0, "jumps": 1.1, "squats": 0.9}.get(action, 0.0) * up
    thigh, shin, torso, arm = 10.0 * s, 10.0 * s, 15.0 * s, 8.0 * s
    spread = 0.3
    hip_y = dancer.ground - lift - np.cos(spread + bend * 0.75) * thigh - np.cos(spread * 0.4 - bend * 0.35) * shin
    hip = (dancer.x + lean * 4 * s, hip_y)
    joints = {"hip": hip, "neck": _polar(*hip, np.pi - lean, torso)}
    joints["head"] = _polar(*joints["neck"], np.pi - lean * 1.2, 7.5 * s)
    for side, name in ((-1, "left"), (1, "right")):
        kick = np.maximum(side * swing, 0) * 1.2 if action == "kicks" else zero
        knee = _polar(*hip, side * (spread + bend * 0.75 + kick), thigh)
        foot = _polar(*knee, side * (spread * 0.4 - bend * 0.35 + kick), shin)
        if action == "sways":
            foot = (np.full_like(u, dancer.x + side * (np.sin(spread) * thigh + np.sin(spread * 0.4) * shin)), foot[1])
            knee = ((hip[0] + foot[0]) / 2 + side * (np.sin(spread) * thigh - np.sin(spread * 0.4) * shin) / 2, knee[1])
        elbow = _polar(*joints["neck"], side * (0.75 + raised * 0.75) + lean, arm)
        hand = _polar(*elbow, side * (0.35 + raised * 1.25) + lean, arm)
        joints |= {f"{name}_knee": knee, f"{name}_foot": foot, f"{name}_elbow": elbow, f"{name}_hand": hand}
    return joints


def dancer_layers(dancer: Dancer, joints: dict[str, tuple[Array, Array]], s: float) -> Iterator[Layer]:
    """Layers of a dancer: legs, torso, head, arms, hands and feet."""
    legs, shirt = np.array(COLOURS[dancer.trousers]), np.array(COLOURS[dancer.shirt])
    skin = np.array(SKINS[dancer.skin])
    for a, b in BONES[:4]:
        yield _limb(joints[a], joints[b], 3.6 * s, legs)
    for name in ("left_foot", "right_foot"):
        yield _disc(joints[name], 3.8 * s, np.array((44, 40, 48)))
    yield _limb(joints["neck"], joints["hip"], 5.6 * s, shirt)
    for a, b in BONES[5:]:
        yield _limb(joints[a], joints[b], 3.4 * s, shirt)
    head = joints["head"]
    yield _disc((head[0], head[1] - 1.2 * s), 7.6 * s, np.array(HAIRS[dancer.hair]))
    yield _disc((head[0], head[1] + 0.8 * s), 6.6 * s, skin)
    for name in ("left_hand", "right_hand"):
        yield _disc(joints[name], 3.6 * s, skin)


def _disc(centre: tuple[Array, Array], r: float, rgb: Array) -> Layer:
    return solid(lambda x, y: np.sqrt(x * x + y * y) - r, *centre, r, r, rgb)


def _limb(a: tuple[Array, Array], b: tuple[Array, Array], r: float, rgb: Array) -> Layer:
    cx, cy, dx, dy = (a[0] + b[0]) / 2, (a[1] + b[1]) / 2, (b[0] - a[0]) / 2, (b[1] - a[1]) / 2
    hx, hy = dx.astype(np.float32)[:, None, None], dy.astype(np.float32)[:, None, None]
    hw, hh = float(np.abs(dx).max()) + r, float(np.abs(dy).max()) + r
    return solid(lambda x, y: capsule(x, y, hx, hy, r), cx, cy, hw, hh, rgb)
