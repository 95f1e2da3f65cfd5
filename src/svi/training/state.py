"""Checkpoints of a training: everything that it needs to go on as if it had never stopped, or nothing at all.

A checkpoint is a folder ``step-000100`` that appears under its name only when all of it is on the disk, with a
manifest of sizes and hashes. Files of plain tensors and numbers, read with ``weights_only``.
Knows nothing about what the tensors mean.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from svi.errors import UserError

MANIFEST = "checkpoint.json"
SHARED = "training.pt"
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk.

    Attributes:
        folder: where it lies.
        step: optimizer steps done.
        ranks: processes that wrote it.
        fingerprint: of the settings that decide what the tensors mean (see ``trainer.fingerprint``).
    """

    folder: Path
    step: int
    ranks: int
    fingerprint: str


def rank_file(rank: int) -> str:
    """Name of the file with what belongs to one process: banks and position in the data."""
    return f"rank-{rank:03d}.pt"


class Writer:
    """Writes one checkpoint. Every process puts its own files, then one of them calls :meth:`finish`."""

    def __init__(self, root: Path, step: int) -> None:
        self.final = root / f"step-{step:06d}"
        self.partial = root / f"step-{step:06d}.partial"
        self.step = step

    def clear(self) -> None:
        """Begin: remove what an earlier attempt left. One process only, before the others put files."""
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)

    def put(self, name: str, payload: Mapping[str, Any]) -> None:
        """Write tensors and plain data under ``name``."""
        with (self.partial / name).open("wb") as file:
            torch.save(dict(payload), file)
            file.flush()
            os.fsync(file.fileno())

    def finish(self, *, ranks: int, fingerprint: str) -> Checkpoint:
        """Write the manifest and give the folder its name. One process only, after all have put their files."""
        files = {path.name: _seal(path) for path in sorted(self.partial.iterdir())}
        head = {"step": self.step, "ranks": ranks, "fingerprint": fingerprint}
        manifest = self.partial / MANIFEST
        manifest.write_text(json.dumps({**head, "files": files}, indent=1) + "\n", encoding="utf-8")
        _sync(manifest)
        _sync(self.partial)
        shutil.rmtree(self.final, ignore_errors=True)
        self.partial.rename(self.final)
        _sync(self.final.parent)
        return Checkpoint(self.final, **head)  # type: ignore[arg-type]


def latest(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint under ``root`` whose files are whole, and one line for each newer one that is not."""
    complaints: list[str] = []
    for folder in sorted(root.glob("step-*"), reverse=True):
        if folder.suffix == ".partial":
            continue
        fault = _fault(folder)
        if fault is None:
            head = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            return Checkpoint(folder, int(head["step"]), int(head["ranks"]), str(head["fingerprint"])), complaints
        complaints.append(f"checkpoint {folder.name} is not used: {fault}")
    return None, complaints


def load(checkpoint: Checkpoint, name: str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What was put under ``name``.

    Raises:
        UserError: where it cannot be read.
    """
    try:
        payload: dict[str, Any] = torch.load(checkpoint.folder / name, weights_only=True, map_location=device)
    except Exception as error:
        raise UserError(f"cannot read {checkpoint.folder / name}: {' '.join(str(error).split())[:200]}") from None
    return payload


def prune(root: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints, and what unfinished saves left."""
    folders = sorted(root.glob("step-*"))
    whole = [folder for folder in folders if folder.suffix != ".partial"]
    for folder in [*whole[: max(0, len(whole) - keep)], *(f for f in folders if f.suffix == ".partial")]:
        shutil.rmtree(folder, ignore_errors=True)


def _fault(folder: Path) -> str | None:
    """Why a checkpoint cannot be used; None if it can."""
    try:
        files: Mapping[str, Mapping[str, Any]] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return f"its {MANIFEST} is missing or damaged"
    for name, sealed in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != sealed["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {sealed['bytes']}"
        if _seal(path)["sha256"] != sealed["sha256"]:
            return f"{name} is damaged"
    return None


def _seal(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
