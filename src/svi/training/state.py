"""Checkpoints of a training: everything that it needs to go on as if it had never stopped, or nothing at all.

A checkpoint is a folder ``step-000100`` that appears under its name only when all of it is on the disk, with a
manifest of sizes and hashes. Files of plain tensors and numbers, read with ``weights_only``.
Knows nothing about what the tensors mean.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from svi.errors import UserError
from svi.files import explained, file_sha256, json_bytes, publish, read_json, sync_folder, write_synced

MANIFEST = "checkpoint.json"
SHARED = "training.pt"
# Not the temporary names of ``svi.files``, which carry the number of one process: all processes write into this folder.
PARTIAL, SEAL = ".partial", ".seal"
# What torch.load raises about a file that is cut, changed or something else.
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk.

    Attributes:
        folder: where it lies.
        step: optimizer steps done.
        ranks: processes that wrote it.
        settings: what decides what its tensors mean (``TrainingConfig.pinned``).
    """

    folder: Path
    step: int
    ranks: int
    settings: Mapping[str, Any]


def rank_file(rank: int) -> str:
    """Name of the file with what belongs to one process: banks and position in the data."""
    return f"rank-{rank:03d}.pt"


class Writer:
    """Writes one checkpoint. Every process puts its own files, then one of them calls :meth:`finish`."""

    def __init__(self, root: Path, step: int) -> None:
        self.final = root / f"step-{step:06d}"
        self.partial = self.final.with_suffix(PARTIAL)
        self.step = step

    def clear(self) -> None:
        """Begin: remove what an earlier attempt left. One process only, before the others put files."""
        with explained(self.partial, "create"):
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)

    def put(self, name: str, payload: Mapping[str, Any]) -> None:
        """Write tensors and plain data under ``name``, hashed on the way: error banks are too large to be read again."""
        path = self.partial / name
        with explained(path), path.open("wb") as file:
            hashing: Any = _Hashing(file)  # as much of a file as torch.save asks for
            torch.save(dict(payload), hashing)
            file.flush()
            os.fsync(file.fileno())
        seal = {"bytes": path.stat().st_size, "sha256": hashing.digest.hexdigest()}
        write_synced(path.with_name(name + SEAL), json_bytes(seal))

    def finish(self, *, ranks: int, settings: Mapping[str, Any]) -> Checkpoint:
        """Write the manifest and give the folder its name. One process only, after all have put their files."""
        seals = sorted(self.partial.glob(f"*{SEAL}"))
        files = {path.name.removesuffix(SEAL): read_json(path) for path in seals}
        content = {"step": self.step, "ranks": ranks, "settings": dict(settings), "files": files}
        write_synced(self.partial / MANIFEST, json_bytes(content))
        for path in seals:
            path.unlink()
        sync_folder(self.partial)
        shutil.rmtree(self.final, ignore_errors=True)
        publish(self.partial, self.final)
        return Checkpoint(self.final, self.step, ranks, settings)


class _Hashing:
    """A file that is hashed while it is written."""

    def __init__(self, file: Any) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return int(self.file.write(data))

    def flush(self) -> None:
        self.file.flush()


def latest(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint under ``root`` whose files are whole, and one line for each newer one that is not."""
    complaints: list[str] = []
    for folder in sorted(root.glob("step-*"), reverse=True):
        if folder.suffix == PARTIAL:
            continue
        fault = _fault(folder)
        if fault is None:
            head = read_json(folder / MANIFEST)
            return Checkpoint(folder, int(head["step"]), int(head["ranks"]), head["settings"]), complaints
        complaints.append(f"checkpoint {folder.name} is not used: {fault}")
    return None, complaints


def load(checkpoint: Checkpoint, name: str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What was put under ``name``.

    Raises:
        UserError: where it cannot be read.
    """
    path = checkpoint.folder / name
    try:
        payload: dict[str, Any] = torch.load(path, weights_only=True, map_location=device)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"cannot read {path}: {reason}; remove {checkpoint.folder} to go on from an earlier one"
        ) from None
    return payload


def prune(root: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints, and what unfinished saves left."""
    folders = sorted(root.glob("step-*"))
    whole = [folder for folder in folders if folder.suffix != PARTIAL]
    for folder in [*whole[: max(0, len(whole) - keep)], *(f for f in folders if f.suffix == PARTIAL)]:
        shutil.rmtree(folder, ignore_errors=True)


def _fault(folder: Path) -> str | None:
    """Why a checkpoint cannot be used; None if it can."""
    try:
        files: Mapping[str, Mapping[str, Any]] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return f"its {MANIFEST} is missing or damaged"
    for name, seal in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != seal["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {seal['bytes']}"
        if file_sha256(path) != seal["sha256"]:
            return f"{name} is damaged"
    return None
