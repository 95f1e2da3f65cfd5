"""Pocket world as an endless source of training clips: clip ``n`` shows world ``n``.

Knows worlds; what a model makes of the frames is the business of ``svi.data``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from svi.pocket.world import World

WORLD_VERSION = 2  # raise when the same seed would show other frames
KEPT = 64  # worlds kept: a window asks for its frames, then for its caption
BEATS = 3  # clips begin with one of the beats 1 to 3, so that there is a past to continue


class PocketClips:
    """Endless captioned clips of pocket world; see ``svi.data.endless.EndlessClips``.

    Numbers from ``svi.pocket.train_vae.HELD_OUT`` on are held out: nothing is trained on them.

    Args:
        fps: frames per second.
    """

    identity = f"pocket world {WORLD_VERSION}"
    size = (64, 96)
    around = (16, 48)

    def __init__(self, fps: int = 16) -> None:
        self.fps = fps
        self._worlds: OrderedDict[int, World] = OrderedDict()

    def world(self, index: int) -> World:
        """The world that clip ``index`` shows."""
        if index not in self._worlds:
            self._worlds[index] = World.sample(index)
            while len(self._worlds) > KEPT:
                self._worlds.popitem(last=False)
        return self._worlds[index]

    def beat(self, index: int) -> int:
        """The beat that clip ``index`` begins with."""
        return 1 + index % BEATS

    def frames(self, index: int, offsets: Sequence[int]) -> np.ndarray:
        """``(len(offsets), H, W, 3)`` uint8; offset 0 is where the beat begins."""
        world = self.world(index)
        first = self.beat(index) * world.beat_s
        return np.stack([world.render(first + offset / self.fps) for offset in offsets])

    def caption(self, index: int) -> str:
        """What happens in that beat."""
        return self.world(index).caption(self.beat(index))
