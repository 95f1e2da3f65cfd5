"""Run a drift experiment: what is not there yet is made, in one process or several; stop it whenever you like.

Knows cells and models; what the figures mean is the business of ``results``.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from svi.backends.base import Backend
from svi.backends.peek import peek
from svi.errors import UserError
from svi.files import explained, remove_leftovers, write_atomic
from svi.pocket.drift.cells import Cell, Record, cells, fingerprint_of, fingerprints, missing, write_record
from svi.pocket.drift.experiment import Arm, Experiment
from svi.pocket.drift.gain import gains
from svi.pocket.drift.gauge import MEASURES, Gauge
from svi.pocket.drift.rollouts import Window, clips_of, noise_seed, world_of
from svi.pocket.drift.sheets import Film, pictured_clips, save_strip
from svi.pocket.world import World

COST = {"model": 20.0, "vae": 3.0}  # of a clip, for the time left; everything else costs 1
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Tick:
    """Progress. ``done`` in [0, 1] of the work of this call; ``line``: what has just been finished, if anything."""

    done: float
    left_s: float | None
    line: str | None = None


Watch = Callable[[Tick], None]


@dataclass(frozen=True)
class Task:
    """A cell with everything that a process needs to make it."""

    experiment: Experiment
    cell: Cell
    out: Path
    fingerprint: str
    device: str | None = None

    @property
    def arm(self) -> Arm:
        """What makes it."""
        return self.experiment.arms[self.cell.arm]

    @property
    def cost(self) -> float:
        """How long it takes, in some unit."""
        gain = self.experiment.gain
        if self.cell.kind == "gain" and gain is not None:
            return COST["model"] * (2 + len(gain.kinds) * len(gain.sizes))
        return COST.get(self.arm.source, 1.0) * self.experiment.clips


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
    tasks = [Task(experiment, cell, out, fingerprint_of(cell, known), device) for cell in todo]
    progress = _Progress(tasks, watch, there)
    if tasks:
        (_here if jobs == 1 or len(tasks) == 1 else _spread)(tasks, progress, jobs)


class _Progress:
    """Turns what is done into ticks, with the time left at the pace so far."""

    def __init__(self, tasks: Sequence[Task], watch: Watch, there: int) -> None:
        self.total, self.cost, self.count = len(tasks), sum(task.cost for task in tasks), 0
        self.spent, self.began, self.watch = 0.0, time.monotonic(), watch
        cells_ = "1 cell" if len(tasks) == 1 else f"{len(tasks)} cells"
        watch(Tick(0.0, None, f"{cells_} to make, {there} there already"))

    def part(self, fraction: float, task: Task) -> None:
        """So much of a task is done."""
        self._tell(self.spent + fraction * task.cost, None)

    def finished(self, task: Task, seconds: float) -> None:
        """A task is done."""
        self.spent += task.cost
        self.count += 1
        self._tell(self.spent, f"{self.count}/{self.total} {task.cell}: {seconds:.1f} s")

    def _tell(self, spent: float, line: str | None) -> None:
        took = time.monotonic() - self.began
        left = took / spent * (self.cost - spent) if spent else None
        self.watch(Tick(spent / self.cost if self.cost else 1.0, left, line))


def _here(tasks: Sequence[Task], progress: _Progress, jobs: int) -> None:
    for task in tasks:
        progress.finished(task, make(task, lambda fraction, task=task: progress.part(fraction, task)))  # type: ignore[misc]


def _spread(tasks: Sequence[Task], progress: _Progress, jobs: int) -> None:
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context("spawn")
    with _threads_of_children(threads), ProcessPoolExecutor(jobs, context, _begin_worker, (threads,)) as pool:
        try:
            waiting = {pool.submit(make, task): task for task in tasks}
            for future in as_completed(waiting):
                progress.finished(waiting[future], future.result())
        except BrokenProcessPool:
            raise UserError(
                "a process died, perhaps for want of memory: finished cells are kept; run it again with fewer --jobs"
            ) from None
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if not isinstance(error, Exception):  # stopped: what is under way is not waited for
                for process in multiprocessing.active_children():
                    process.terminate()
            raise


@contextlib.contextmanager
def _threads_of_children(threads: int) -> Iterator[None]:
    """Environment of the processes that are started inside: numpy reads its thread count when it is imported."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _begin_worker(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends its children
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    if parent is not None:  # a worker whose parent was killed would wait for work for ever

        def follow() -> None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


@lru_cache(maxsize=1)
def _backend(model: str, loras: tuple[str, ...], device: str | None) -> Backend:
    from svi.backends.wan import load_backend  # seconds of imports, which controls do without

    return load_backend(model, loras=loras, device=device)


def make(task: Task, part: Callable[[float], None] = lambda fraction: None) -> float:
    """Make one cell and write it; seconds that it took. ``part`` hears what share of it is done.

    Raises:
        UserError: where the model gives no picture (NaN), naming the cell.
    """
    began = time.monotonic()
    arm, cell, experiment = task.arm, task.cell, task.experiment
    model = arm.model or experiment.model
    window = Window.of(arm, peek(model)[0])
    world = world_of(experiment.scenes[cell.scene], cell.world, window, experiment.clips)
    backend = None
    if arm.source in ("model", "vae"):
        backend = _backend(model, tuple(f"{name}:{strength}" for name, strength in arm.loras.items()), task.device)
    seed = noise_seed(experiment, cell.index)
    try:
        if cell.kind == "clips":
            clips = clips_of(arm, world, window, experiment.clips, seed=seed, backend=backend)
            record = _watched(task, world, window, clips, part)
        else:
            assert experiment.gain is not None
            assert backend is not None
            found = gains(arm, world, backend, kinds=experiment.gain.kinds, sizes=experiment.gain.sizes, seed=seed)
            record = Record(task.fingerprint, 1, 0.0, found)
    except FloatingPointError as error:
        raise UserError(f"{cell}: {error}") from None
    seconds = time.monotonic() - began
    write_record(cell.path(task.out), replace(record, seconds=seconds))
    return seconds


def _watched(
    task: Task, world: World, window: Window, clips: Iterator[np.ndarray], part: Callable[[float], None]
) -> Record:
    """Measure clips as they come, and keep what sheet and video show of them."""
    cell, experiment = task.cell, task.experiment
    gauge = Gauge(world, fps=window.fps, events=experiment.scenes[cell.scene].events)
    values: dict[str, list[float]] = {name: [] for name in MEASURES}
    chosen = pictured_clips(experiment.clips) if cell.index < experiment.sheets else ()
    pictures: list[np.ndarray] = []
    film = Film(task.out, cell, window.fps) if cell.index < experiment.videos else None
    with film or contextlib.nullcontext():
        for clip, frames in enumerate(clips):
            for name, value in gauge.clip(frames).items():
                values[name].append(value)
            if clip in chosen:
                pictures.append(frames[-1].copy())
            if film is not None:
                film.add(np.ascontiguousarray(frames))
            part((clip + 1) / experiment.clips)
        if film is not None:
            film.finish()
    if pictures:
        save_strip(cell.path(task.out).with_suffix(".png"), pictures)
    return Record(task.fingerprint, experiment.clips, 0.0, dict(values), chosen)
