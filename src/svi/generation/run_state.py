"""What changes in a run besides clips: how long it is to be, and a retake that was asked for. ``state.json``.

Knows nothing about clips. Written atomically; a wish stays until it is fulfilled, so a kill in between loses nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from svi.errors import UserError
from svi.files import explained, write_atomic


class Retake(BaseModel):
    """A clip to be made again as take ``take`` with noise seed ``seed``; ``keep_rest``: what follows stays."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    clip: int = Field(ge=0)
    take: int = Field(ge=0)
    seed: int = Field(ge=0)
    keep_rest: bool = False


class RunState(BaseModel):
    """``target``: clips in all, None = endless; ``retake``: wish not yet fulfilled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    target: int | None = Field(None, ge=0)
    retake: Retake | None = None

    def write(self, path: Path) -> None:
        """Replace ``path`` by this state, atomically."""
        write_atomic(path, (self.model_dump_json(indent=2) + "\n").encode())


def read_state(path: Path) -> RunState:
    """The state in ``path``.

    Raises:
        UserError: if it is missing or damaged; the message says how to go on.
    """
    try:
        with explained(path, "read"):
            return RunState.model_validate_json(path.read_bytes())
    except ValidationError as error:
        what = f"is damaged ({error.errors()[0]['msg']})"
    except UserError:
        if path.exists():
            raise
        what = "is missing"
    raise UserError(
        f"{path} {what}; it only says how long the run is to be: `svi extend {path.parent} --clips 1` writes it anew"
    )
