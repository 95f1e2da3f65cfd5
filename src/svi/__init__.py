"""Endless videos from one image and a stream of prompts.

    import svi

    run = svi.generate("cat.png", ["a cat walks", "the cat sits down"], clips=10, out="runs/cat")
    for clip in svi.stream("cat.png", ["a cat walks"]):      # no end, no files
        show(clip.new_frames)

Names are imported when used, so that ``import svi`` stays fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from svi.api import branch as branch
    from svi.api import extend as extend
    from svi.api import generate as generate
    from svi.api import load as load
    from svi.api import resume as resume
    from svi.api import retake as retake
    from svi.api import stream as stream
    from svi.backends.base import Backend as Backend
    from svi.backends.base import ModelInfo as ModelInfo
    from svi.conditioning.policy import PRESETS as PRESETS
    from svi.errors import UserError as UserError
    from svi.generation.clip import Clip as Clip
    from svi.generation.clip import ClipPlan as ClipPlan
    from svi.generation.export import export as export
    from svi.generation.run import Run as Run
    from svi.generation.show import contact_sheet as contact_sheet
    from svi.generation.storyboard import Storyboard as Storyboard

__version__ = "0.1.0"

_HOMES = {
    "load": "svi.api",
    "generate": "svi.api",
    "stream": "svi.api",
    "resume": "svi.api",
    "extend": "svi.api",
    "retake": "svi.api",
    "branch": "svi.api",
    "export": "svi.generation.export",
    "contact_sheet": "svi.generation.show",
    "Backend": "svi.backends.base",
    "ModelInfo": "svi.backends.base",
    "PRESETS": "svi.conditioning.policy",
    "UserError": "svi.errors",
    "Clip": "svi.generation.clip",
    "ClipPlan": "svi.generation.clip",
    "Run": "svi.generation.run",
    "Storyboard": "svi.generation.storyboard",
}
__all__ = sorted([*_HOMES, "__version__"])  # noqa: PLE0605 - one list, above


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'svi' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
