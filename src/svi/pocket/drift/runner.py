"""Run a drift experiment: what is not there yet is made, in one process or several; stop it whenever you like.

Knows cells and models; what the figures mean is the business of ``results``.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from svi.backends.base import Backend
from svi.backends.peek import peek
from svi.errors import UserError
from svi.evaluation.runner import Tick, Watch
from svi.evaluation.workers import spread
from svi.files import explained, remove_leftovers, write_atomic
from svi.pocket.drift.cells import Cell, Record, cells, fingerprint_of, fingerprints, missing, write_record
from svi.pocket.drift.experiment import Arm, Experiment
from svi.pocket.drift.gain import gains
from svi.pocket.drift.gauge import MEASURES, Gauge
from svi.pocket.drift.rollouts import Window, clips_of, noise_seed, world_of
from svi.pocket.drift.sheets import Film, pictured_clips, save_strip
from svi.pocket.world import World

TOGETHER = 8  # videos in one batch: a clip then takes a quarter less time on a CPU core, far less on a card
COST = {"model": 20.0, "vae": 3.0}  # of a clip, for the time left; everything else costs 1


@dataclass(frozen=True)
class Task:
    """Cells that are made together, with everything that a process needs for it: the same arm in worlds of one scene."""

    experiment: Experiment
    cells: tuple[Cell, ...]
    out: Path
    fingerprint: str
    device: str | None = None

    @property
    def arm(self) -> Arm:
        """What makes them."""
        return self.experiment.arms[self.cells[0].arm]

    @property
    def cost(self) -> float:
        """How long it takes, in some unit."""
        gain = self.experiment.gain
        if self.cells[0].kind == "gain" and gain is not None:
            return COST["model"] * (2 + len(gain.kinds) * len(gain.sizes)) * len(self.cells)
        return COST.get(self.arm.source, 1.0) * self.experiment.clips * len(self.cells)

    def __str__(self) -> str:
        return str(self.cells[0]) + (f" and {len(self.cells) - 1} more" if len(self.cells) > 1 else "")


def tasks_of(todo: Sequence[Cell]) -> Iterator[tuple[Cell, ...]]:
    """Cells in order, those of the same arm and scene together: :data:`TOGETHER` drift curves, a gain alone."""
    for _, group in itertools.groupby(todo, key=lambda cell: (cell.scene, cell.arm, cell.kind)):
        size = TOGETHER if (some := list(group))[0].kind == "clips" else 1
        yield from (tuple(some[begin : begin + size]) for begin in range(0, len(some), size))


def run(
    experiment: Experiment, out: Path, *, jobs: int = 1, device: str | None = None, watch: Watch = lambda tick: None
) -> None:
    """Make every cell that ``out`` does not have yet.

    Args:
        jobs: processes, each with its share of the cores; 1 = this one.
        watch: called after each finished cell; with one process also after each clip.

    Raises:
        UserError: before anything is made for a model or LoRA that is not there, and for cells of other weights.
        KeyboardInterrupt: when stopped; finished cells are kept.
    """
    known = fingerprints(experiment)
    todo, there = missing(list(cells(experiment)), experiment, out, known)
    with explained(out, "create"):
        out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    write_atomic(out / "experiment.yaml", experiment.to_yaml().encode())
    tasks = [Task(experiment, group, out, fingerprint_of(group[0], known), device) for group in tasks_of(todo)]
    progress = _Progress(tasks, watch, there)
    if tasks:
        (_here if jobs == 1 or len(tasks) == 1 else _spread)(tasks, progress, jobs)


class _Progress:
    """Turns what is done into ticks, with the time left at the pace so far."""

    def __init__(self, tasks: Sequence[Task], watch: Watch, there: int) -> None:
        self.total, self.cost, self.count = sum(len(task.cells) for task in tasks), sum(task.cost for task in tasks), 0
        self.spent, self.began, self.watch = 0.0, time.monotonic(), watch
        cells_ = "1 cell" if self.total == 1 else f"{self.total} cells"
        watch(Tick(0.0, None, f"{cells_} to make, {there} there already"))

    def part(self, fraction: float, task: Task) -> None:
        """So much of a task is done."""
        self._tell(self.spent + fraction * task.cost, None)

    def finished(self, task: Task, seconds: float) -> None:
        """A task is done."""
        self.spent += task.cost
        self.count += len(task.cells)
        self._tell(self.spent, f"{self.count}/{self.total} {task}: {seconds:.1f} s")

    def _tell(self, spent: float, line: str | None) -> None:
        took = time.monotonic() - self.began
        left = took / spent * (self.cost - spent) if spent else None
        self.watch(Tick(spent / self.cost if self.cost else 1.0, left, line))


def _here(tasks: Sequence[Task], progress: _Progress, jobs: int) -> None:
    for task in tasks:
        progress.finished(task, make(task, lambda fraction, task=task: progress.part(fraction, task)))  # type: ignore[misc]


def _spread(tasks: Sequence[Task], progress: _Progress, jobs: int) -> None:
    for task, seconds in spread(make, tasks, jobs):
        progress.finished(task, seconds)


@lru_cache(maxsize=1)
def _backend(model: str, loras: tuple[str, ...], device: str | None) -> Backend:
    from svi.backends.wan import load_backend  # seconds of imports, which controls do without

    return load_backend(model, loras=loras, device=device)


def make(task: Task, part: Callable[[float], None] = lambda fraction: None) -> float:
    """Make the cells of a task and write them; seconds that it took. ``part`` hears what share of it is done.

    Raises:
        UserError: where the model gives no picture (NaN), naming the cells.
    """
    began = time.monotonic()
    arm, experiment = task.arm, task.experiment
    model = arm.model or experiment.model
    window = Window.of(arm, peek(model)[0])
    scene = experiment.scenes[task.cells[0].scene]
    made_worlds = [world_of(scene, cell.world, window, experiment.clips) for cell in task.cells]
    backend = None
    if arm.source in ("model", "vae"):
        backend = _backend(model, tuple(f"{name}:{strength}" for name, strength in arm.loras.items()), task.device)
    seeds = [noise_seed(experiment, cell.index) for cell in task.cells]
    try:
        if task.cells[0].kind == "clips":
            clips = clips_of(arm, made_worlds, window, experiment.clips, seeds=seeds, backend=backend)
            records = _watched(task, made_worlds, window, clips, part)
        else:
            assert experiment.gain is not None
            assert backend is not None
            kinds, sizes = experiment.gain.kinds, experiment.gain.sizes
            found = gains(arm, made_worlds[0], backend, kinds=kinds, sizes=sizes, seed=seeds[0])
            records = [Record(task.fingerprint, 1, 0.0, found)]
    except FloatingPointError as error:
        raise UserError(f"{task}: {error}") from None
    seconds = time.monotonic() - began
    for cell, record in zip(task.cells, records, strict=True):
        write_record(cell.path(task.out), replace(record, seconds=seconds / len(task.cells)))
    return seconds


class _Cameraman:
    """Measures the clips of one world as they come, and keeps what sheet and video show of them."""

    def __init__(self, task: Task, cell: Cell, world: World, window: Window) -> None:
        experiment = task.experiment
        self.task, self.cell = task, cell
        self.gauge = Gauge(world, fps=window.fps, events=experiment.scenes[cell.scene].events)
        self.values: dict[str, list[float]] = {name: [] for name in MEASURES}
        self.chosen = pictured_clips(experiment.clips) if cell.index < experiment.sheets else ()
        self.pictures: list[np.ndarray] = []
        self.film = Film(task.out, cell, window.fps) if cell.index < experiment.videos else None

    def take(self, clip: int, frames: np.ndarray) -> None:
        """The next clip."""
        for name, value in self.gauge.clip(frames).items():
            self.values[name].append(value)
        if clip in self.chosen:
            self.pictures.append(frames[-1].copy())
        if self.film is not None:
            self.film.add(np.ascontiguousarray(frames))

    def wrap(self) -> Record:
        """After the last clip."""
        if self.film is not None:
            self.film.finish()
        if self.pictures:
            save_strip(self.cell.path(self.task.out).with_suffix(".png"), self.pictures)
        return Record(self.task.fingerprint, self.task.experiment.clips, 0.0, dict(self.values), self.chosen)


def _watched(
    task: Task,
    made_worlds: Sequence[World],
    window: Window,
    clips: Iterator[list[np.ndarray]],
    part: Callable[[float], None],
) -> list[Record]:
    crew = [_Cameraman(task, cell, world, window) for cell, world in zip(task.cells, made_worlds, strict=True)]
    with contextlib.ExitStack() as films:
        for one in crew:
            films.enter_context(one.film or contextlib.nullcontext())
        for clip, videos in enumerate(clips):
            for one, frames in zip(crew, videos, strict=True):
                one.take(clip, frames)
            part((clip + 1) / task.experiment.clips)
        return [one.wrap() for one in crew]
