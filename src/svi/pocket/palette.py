"""Named colours of the pocket world.

Knows nothing about shapes, motion or pictures: names, RGB triples (0..255) and distances only.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from svi.errors import UserError

RGB = tuple[int, int, int]

#: Saturated colours of things and clothes.
COLOURS: dict[str, RGB] = {
    "red": (222, 42, 48),
    "orange": (246, 138, 28),
    "yellow": (250, 218, 48),
    "green": (44, 172, 72),
    "cyan": (52, 206, 220),
    "blue": (40, 88, 224),
    "purple": (142, 58, 196),
    "pink": (252, 128, 186),
    "white": (246, 246, 246),
}
#: Softer or darker colours of landscapes.
BACKGROUNDS: dict[str, RGB] = {
    "cream": (244, 232, 200),
    "mint": (176, 228, 196),
    "lavender": (200, 188, 236),
    "peach": (250, 202, 174),
    "sky": (160, 206, 244),
    "sand": (214, 186, 130),
    "gray": (142, 146, 154),
    "brown": (122, 84, 58),
    "olive": (122, 128, 62),
    "teal": (28, 112, 118),
    "navy": (30, 44, 96),
    "maroon": (110, 34, 56),
    "forest": (28, 82, 54),
    "charcoal": (54, 56, 66),
}
SKINS: dict[str, RGB] = {
    "pale": (250, 218, 190),
    "tan": (224, 172, 122),
    "brown": (160, 104, 66),
    "dark": (104, 66, 46),
}
HAIRS: dict[str, RGB] = {"black": (36, 32, 38), "brown": (96, 58, 34), "blond": (238, 204, 104), "red": (190, 76, 36)}
EYES: dict[str, RGB] = {"blue": (40, 88, 224), "green": (44, 150, 72), "brown": (96, 58, 34)}
#: What night multiplies a picture with, per channel.
NIGHT = (0.54, 0.6, 0.86)


def colour_of(name: str) -> RGB:
    """RGB (0..255) of a colour name; things first, then landscapes, skin and hair."""
    for table in (COLOURS, BACKGROUNDS, SKINS, HAIRS):
        if name in table:
            return table[name]
    known = [*COLOURS, *BACKGROUNDS, *SKINS, *HAIRS]
    raise UserError(f"unknown colour {name!r}; nearest known colour: {nearest(name, known)!r}")


def nearest(name: object, known: Iterable[str]) -> str:
    """The known word that looks most like `name`."""
    words = list(known)
    return (difflib.get_close_matches(str(name), words, n=1, cutoff=0.0) or words)[0]


def distance(a: Iterable[float], b: Iterable[float]) -> float:
    """Euclidean distance of two RGB triples."""
    return sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5


def second_tone(name: str) -> RGB:
    """The second colour of a textured thing: a light tint, or a dark shade of a light colour."""
    rgb = COLOURS[name]
    if name in ("white", "yellow", "cyan"):
        return tuple(int(c * 0.5) for c in rgb)  # type: ignore[return-value]
    return tuple(int(c * 0.35 + 255 * 0.65) for c in rgb)  # type: ignore[return-value]
