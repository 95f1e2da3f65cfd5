"""Cells of an experiment: one arm in one world, one JSON file each, which names exactly what it was made with.

A cell is written when it is finished, whole, and never changed: kill the process at any time and nothing that was
finished is lost. Its fingerprint covers arm, scene, weights and the version of the measures, so that results of
different models never mix.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from svi.backends.lora import find_lora
from svi.backends.peek import peek
from svi.backends.weights import find_model, sha256
from svi.errors import UserError
from svi.files import write_atomic
from svi.pocket.drift.experiment import Arm, Experiment
from svi.pocket.drift.gauge import MEASURES, VERSION
from svi.pocket.drift.rollouts import Window, worlds

BLOCK = 8  # worlds that all arms finish before the next ones begin, so that a stopped experiment still compares
Kind = Literal["clips", "gain"]


@dataclass(frozen=True)
class Cell:
    """One arm in one world. ``index``: of the world in its scene. ``kind``: drift over clips, or the error gain."""

    scene: str
    arm: str
    world: int
    index: int
    kind: Kind = "clips"

    def path(self, out: Path) -> Path:
        """Its file."""
        return out / self.kind / self.scene / self.arm / f"{self.world}.json"

    def __str__(self) -> str:
        return f"{self.scene}/{self.arm} world {self.index}" + (" error gain" if self.kind == "gain" else "")


@dataclass(frozen=True)
class Record:
    """A finished cell. ``values``: per measure one value per clip, or per error gain its four numbers by name."""

    fingerprint: str
    clips: int
    seconds: float
    values: dict[str, Any]
    pictured: tuple[int, ...] = ()

    def curve(self, measure: str, clips: int) -> np.ndarray:
        """Values of a measure over the first ``clips`` clips."""
        return np.array([np.nan if v is None else v for v in self.values[measure][:clips]], dtype=np.float64)


def cells(experiment: Experiment) -> Iterator[Cell]:
    """All cells in the order in which they are made: blocks of worlds, in each all arms."""
    for scene, kind in experiment.scenes.items():
        seeds = worlds(kind, experiment.worlds_in(scene), experiment.seed)
        arms = [name for name, arm in experiment.arms.items() if not arm.scenes or scene in arm.scenes]
        for begin in range(0, len(seeds), BLOCK):
            block = list(enumerate(seeds))[begin : begin + BLOCK]
            yield from (Cell(scene, arm, seed, index) for arm in arms for index, seed in block)
        if experiment.gain is not None:
            chosen = list(enumerate(seeds))[: experiment.gain.worlds]
            models = [arm for arm in arms if experiment.arms[arm].source == "model"]
            yield from (Cell(scene, arm, seed, index, "gain") for arm in models for index, seed in chosen)


def fingerprints(experiment: Experiment) -> dict[tuple[str, str], str]:
    """Fingerprint by (scene, arm). Looks at every model and LoRA, so that what is missing is said before anything is made.

    Raises:
        UserError: for a model or a LoRA that is not there, naming the arm; for a preset that does not fit the model.
    """
    found = {}
    for name, arm in experiment.arms.items():
        try:
            made_with = _arm_fingerprint(arm, arm.model or experiment.model)
        except UserError as error:
            raise UserError(f"arm {name}: {error}") from None
        for scene, kind in experiment.scenes.items():
            gain = None if experiment.gain is None else experiment.gain.model_dump(exclude={"worlds"}, mode="json")
            parts = [VERSION, experiment.seed, kind.model_dump(mode="json", exclude={"worlds"}), made_with]
            found[scene, name] = _digest(parts)
            found[f"gain:{scene}", name] = _digest([*parts, gain])
    return found


def fingerprint_of(cell: Cell, known: dict[tuple[str, str], str]) -> str:
    """The fingerprint that a cell must have."""
    return known[(f"gain:{cell.scene}" if cell.kind == "gain" else cell.scene), cell.arm]


def _arm_fingerprint(arm: Arm, model: str) -> dict[str, Any]:
    geometry, _ = peek(model)
    Window.of(arm, geometry)
    folder = find_model(model)
    loras = {f"{sha256(find_lora(source, folder))}": strength for source, strength in arm.loras.items()}
    settings = arm.model_dump(mode="json", exclude={"loras", "model", "scenes"})
    weights = _model_digest(folder) if arm.source in ("model", "vae") else ""
    window = [geometry.num_frames, geometry.height, geometry.width, geometry.fps]
    return {"arm": settings, "loras": loras, "model": weights, "window": window}


@lru_cache(maxsize=8)
def _model_digest(folder: Path) -> str:
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in (".safetensors", ".json", ".pth")]
    return _digest([[path.relative_to(folder).as_posix(), sha256(path)] for path in files if "loras" not in path.parts])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def write_record(path: Path, record: Record) -> None:
    """Write a finished cell, atomically; NaN becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(_plain(record.__dict__), allow_nan=False) + "\n").encode())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return round(value, 6) if np.isfinite(value) else None
    return value


def read_record(path: Path) -> Record | None:
    """A finished cell; None where there is none, or where the file is not one (it is then made again)."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        record = Record(**{**data, "pictured": tuple(data["pictured"])})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if isinstance(record.values, dict) else None


def missing(
    wanted: Sequence[Cell], experiment: Experiment, out: Path, known: dict[tuple[str, str], str]
) -> tuple[list[Cell], int]:
    """The cells that are still to be made, and how many are there.

    Raises:
        UserError: for a cell that was made with something else.
    """
    todo = []
    for cell in wanted:
        record = read_record(cell.path(out))
        if record is not None and record.fingerprint != fingerprint_of(cell, known):
            raise UserError(
                f"{cell.path(out)} was made with other weights, settings or measures than arm {cell.arm} has now: "
                f"give another --out, or rename the arm; to make it again, remove {cell.path(out).parent}"
            )
        enough = record is not None and (cell.kind == "gain" or usable(record, experiment.clips))
        if not enough:
            todo.append(cell)
    return todo, len(wanted) - len(todo)


def usable(record: Record, clips: int) -> bool:
    """Whether a cell has so many clips of every measure."""
    return record.clips >= clips and all(len(record.values.get(name, ())) >= clips for name in MEASURES)
