"""The storyboard of a run that is being made: read again before each clip when the file changed.

Knows nothing about models or clips. An edit that cannot be read is reported once and the storyboard before it stays.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from svi.errors import UserError, nearest
from svi.generation.journal import Journal
from svi.generation.manifest import RunSettings, merges_loras
from svi.generation.plans import changing_loras, fixed_fields, unknown_loras
from svi.generation.storyboard import Storyboard, parse_storyboard
from svi.generation.textfile import read_text

HEADER = (
    "# The storyboard of this run. It is read again before each clip: edit it while the run goes on.\n"
    "# One clip takes one prompt (`repeat` gives more); the last prompt repeats. Clips that are made stay as they are.\n"
)


class LiveStoryboard:
    """``path``, watched. ``notify`` gets one sentence for each thing that a user should know."""

    def __init__(self, path: Path, settings: RunSettings, journal: Journal, notify: Callable[[str], None]) -> None:
        self.path = path
        self.settings = settings
        self.journal = journal
        self.notify = notify
        self._stamp = self._signature()
        self._text = read_text(path, "storyboard")
        self.storyboard = read_storyboard(self._text, path, settings)
        self._warn_fixed()

    def refresh(self) -> Storyboard:
        """The storyboard as it now is; reads the file only when its size or time changed."""
        stamp = self._signature()
        if stamp == self._stamp:
            return self.storyboard
        self._stamp = stamp
        try:
            text = read_text(self.path, "storyboard")
            if text == self._text:
                return self.storyboard
            self._text = text
            storyboard = read_storyboard(text, self.path, self.settings)
        except UserError as error:
            self.notify(f"{error} (the storyboard before this edit stays in use)")
            self.journal.append("storyboard_refused", reason=str(error))
            return self.storyboard
        if storyboard != self.storyboard:
            self.storyboard = storyboard
            self.journal.append(
                "storyboard_changed", storyboard=storyboard.model_dump(mode="json", exclude_defaults=True)
            )
            self.notify("storyboard.yaml changed: what follows is made from the new one")
            self._warn_fixed()
        return self.storyboard

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _warn_fixed(self) -> None:
        for difference in fixed_fields(self.storyboard, self.settings):
            self.notify(f"{self.path.name}: {difference}: fixed when the run was made, use `svi branch` to change it")


def read_storyboard(text: str, path: Path, settings: RunSettings) -> Storyboard:
    """Parse the storyboard of a run.

    Raises:
        UserError: if it cannot be read, or gives a strength to a LoRA that the run does not have.
    """
    storyboard = parse_storyboard(text, str(path))
    check_loras(storyboard, settings, str(path))
    return storyboard


def check_loras(storyboard: Storyboard, settings: RunSettings, name: str = "storyboard") -> None:
    """Raise UserError if a beat names a LoRA that is not loaded, or changes one that is part of the weights."""
    for lora in unknown_loras(storyboard, settings):
        raise UserError(
            f"{name}: a beat sets the strength of LoRA {lora!r}, not loaded here; {nearest(lora, settings.loras)}"
        )
    for lora in changing_loras(storyboard, settings) if merges_loras(settings) else ():
        raise UserError(
            f"{name}: a beat changes the strength of LoRA {lora!r}, which is merged into the weights: leave it as it is, or go on "
            "with `svi branch --no-merge-loras`"
        )
