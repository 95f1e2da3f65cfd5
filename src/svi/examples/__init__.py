"""The bundled example: a storyboard and its first frame, both taken from a pocket world, and the code that made them.

``python -m svi.examples`` writes them again, byte for byte.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from svi.generation.storyboard import Storyboard
    from svi.pocket.world import World

FOLDER = Path(__file__).parent
STORYBOARD = FOLDER / "storyboard.yaml"
IMAGE = FOLDER / "reference.png"

SEED = 911
# What happens in a beat (kind, object, value), where the camera goes, and for how many clips of one second it goes on.
SCRIPT: tuple[tuple[tuple[tuple[str, int, str | None], ...], str | None, int], ...] = (
    ((), "stands", 3),
    ((("colour", 0, "blue"),), None, 1),
    ((), None, 3),
    ((("stop", 0, None),), None, 1),
    ((), None, 2),
    ((), "pans right", 2),
    ((("go", 0, "right"),), "stands", 1),
    ((), None, 3),
    ((("night", 0, None),), None, 1),
    ((), None, 3),
    ((("day", 0, None),), None, 1),
    ((), None, 3),
)


def example_world() -> World:
    """The world behind the example; the truth of clip k is ``world.clip(k)``."""
    from svi.pocket.world import Beat, Event, World

    beats = []
    for events, camera, clips in SCRIPT:
        beats += [Beat(tuple(Event(*event) for event in events), camera), *[Beat()] * (clips - 1)]
    return World.sample(SEED, family="things", num_objects=2, camera="stands", lighting="day", beats=beats)


def example_storyboard() -> Storyboard:
    """The captions of that world as a storyboard, one beat per line of the script."""
    from svi.generation.storyboard import Beat, Scene, Storyboard

    world, beats, clip = example_world(), [], 0
    for *_, clips in SCRIPT:
        beats.append(Beat(prompt=world.caption(clip), repeat=clips))
        clip += clips
    return Storyboard(title="A day in the pocket world", image=IMAGE.name, seed=0, scenes=(Scene(beats=tuple(beats)),))


def write_example(folder: Path = FOLDER) -> None:
    """Write ``storyboard.yaml`` and ``reference.png`` into ``folder``."""
    from PIL import Image

    Image.fromarray(example_world().render(0.0)).save(folder / IMAGE.name, format="PNG", optimize=True)
    note = "# Made by `python -m svi.examples`: captions of a pocket world, one beat per line of its script.\n"
    (folder / STORYBOARD.name).write_text(note + example_storyboard().to_yaml(), encoding="utf-8")
