"""Putting a new run folder in place: complete, or not at all.

Knows nothing about what the files in it mean.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from svi.errors import UserError
from svi.files import json_bytes, new_folder, sync_folder, write_synced
from svi.generation.live import HEADER, check_loras
from svi.generation.manifest import Manifest
from svi.generation.run_state import RunState
from svi.generation.storyboard import Storyboard


def check_new(out: Path) -> None:
    """Refuse a place where no new run can be made.

    Raises:
        UserError: for a file, a run, a folder with something in it, or a folder that cannot be written.
    """
    if (out / "run.json").exists():
        raise UserError(f"{out} already holds a run: `svi resume {out}` goes on with it, or choose another --out")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: choose another --out")
    try:
        if out.is_dir() and any(out.iterdir()):
            raise UserError(f"{out} is a folder with other things in it: choose a new or empty --out")
    except OSError as error:
        raise UserError(f"cannot read {out}: {error.strerror}") from None
    parent = next((folder for folder in out.absolute().parents if folder.exists()), None)
    if parent is None or not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot create {out}: {parent} is not a folder that can be written")


@contextlib.contextmanager
def new_run(
    out: Path, manifest: Manifest, storyboard: Storyboard, state: RunState, reference_png: bytes
) -> Iterator[Path]:
    """A temporary folder with the files every run begins with, to add to; becomes ``out`` when the block ends well."""
    check_new(out)
    check_loras(storyboard, manifest.settings)
    settings = manifest.settings
    fixed = {name: getattr(settings, name) for name in ("preset", "seed", "steps", "guidance", "negative_prompt")}
    own = storyboard.model_copy(update={**fixed, "image": "reference.png", "clips": None})
    with new_folder(out) as folder:
        write_synced(folder / "run.json", json_bytes(manifest.model_dump(mode="json")))
        write_synced(folder / "state.json", (state.model_dump_json(indent=2) + "\n").encode())
        write_synced(folder / "storyboard.yaml", (HEADER + own.to_yaml()).encode())
        write_synced(folder / "reference.png", reference_png)
        write_synced(folder / "journal.jsonl", b"")
        (folder / "clips").mkdir()
        yield folder
        sync_folder(folder / "clips")


def checked_clips(clips: int | None, made: int = 0) -> int | None:
    """A total number of clips, None = endless.

    Raises:
        UserError: unless it is at least 1 and not below what is made already.
    """
    if clips is None:
        return None
    total = required_clips(clips)
    if total < made:
        raise UserError(f"the run already has {made} clips, more than {total}: `svi branch` makes a shorter one")
    return total


def required_clips(clips: int) -> int:
    """``clips`` if it is a whole number of at least 1, else a UserError."""
    if isinstance(clips, bool) or not isinstance(clips, int) or clips < 1:
        raise UserError(f"the number of clips must be a whole number of at least 1, not {clips!r}")
    return clips
