"""The model of a job: chosen, checked, loaded, and shared among the processes that torchrun started.

Where there are several processes, all check, the first makes the video, and the others take part in its steps. Knows nothing
about what is made with the model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import wraps
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import torch

from svi.backends.base import Backend
from svi.errors import UserError
from svi.generation.clip import Clip
from svi.generation.events import Listener, Notice
from svi.generation.manifest import RunSettings, check_running, run_running, running_of, running_record
from svi.generation.run import Run
from svi.options import Model, Place
from svi.prepare import ModelChoice, run_loras, window_of
from svi.progress import Loading

if TYPE_CHECKING:
    from svi.backends.parallel import Team

Given = ParamSpec("Given")


def model_choice(model: str | PathLike[str], loras: Sequence[str], place: Place) -> ModelChoice:
    """A model by name with its LoRAs, checked as far as possible without loading it."""
    if isinstance(loras, str):
        raise UserError(f"loras is a list: write [{loras!r}]")
    # A folder is stored by its full name, so that the run is found again from anywhere.
    name = str(Path(model).absolute()) if Path(model).is_dir() else str(model)
    choice = ModelChoice(
        name, tuple(loras), place.device, place.dtype, place.download, place.running, text_cache=place.text_cache
    )
    choice.check()
    return choice


def load_choice(choice: ModelChoice, on_event: Listener, team: Team | None = None) -> Backend:
    """Load the model; each stage is an event. ``team``: processes that will share its work."""
    from svi.backends.wan import load_backend

    place = choice.place
    decided = "memory" in place

    def progress(line: str) -> None:
        # What was decided, in the words "choice: reason", stays to be read; stages come and go.
        on_event(Notice(line) if decided and ": " in line else Loading(choice.model, line))

    return load_backend(choice.model, loras=choice.loras, progress=progress, team=team, **place)


# -- several processes -------------------------------------------------------------------------------------------------


class Followed(Exception):
    """This process took part in what another one led, and is done. ``folder``: of the run, None = it was not kept."""

    def __init__(self, folder: Path | None) -> None:
        super().__init__(f"took part in {folder}")
        self.folder = folder


def load_together(choice: ModelChoice, settings: RunSettings, place: Place, folder: Path | None) -> Backend:
    """The model that ``settings`` are for: alone, or as the first of the processes that torchrun started.

    Raises:
        UserError: as :func:`load_choice`, and for a device by number where there are several processes.
        Followed: in the other processes, which work here until :func:`dismissing` lets them go.
    """
    from svi.backends import parallel

    choice = replace(choice, window=window_of(settings))
    if not parallel.launched():
        return load_choice(choice, place.on_event)
    if place.device not in (None, "cpu", "cuda"):
        raise UserError(f"each process takes a device of its own, so none can be on {place.device}: leave --device out")
    device = torch.device("cpu") if place.device == "cpu" else None
    team = parallel.join(guided=settings.guidance != 1, device=device)
    backend = load_choice(choice, place.on_event, team)
    if team.leads:
        place.on_event(Notice(team.line()))
        return parallel.Leading(backend, team)
    parallel.follow(backend, team)
    parallel.dismiss(team)
    raise Followed(folder)


@contextlib.contextmanager
def dismissing(backend: Backend) -> Iterator[None]:
    """At the end let the processes go that take part in ``backend``.

    After a fault of the program nobody knows what they wait for: the exit code of this process makes torchrun end them.
    """
    from svi.backends import parallel

    def dismiss() -> None:
        if isinstance(backend, parallel.Leading):
            parallel.dismiss(backend.team)

    try:
        yield
    except (UserError, GeneratorExit):
        dismiss()
        raise
    dismiss()


def shared(clips: Iterator[Clip], backend: Backend) -> Iterator[Clip]:
    """``clips``, after the last of which :func:`dismissing` lets go."""
    with dismissing(backend):
        yield from clips


def led(make: Callable[Given, Run]) -> Callable[Given, Run]:
    """What makes a run, such that processes that only took part return that run as well."""

    @wraps(make)
    def call(*args: Given.args, **options: Given.kwargs) -> Run:
        try:
            return make(*args, **options)
        except Followed as done:
            if done.folder is None:
                raise
            return Run.open(done.folder)

    return call


# -- the model of a run ------------------------------------------------------------------------------------------------


def run_backend(run: Run, model: Model | None, place: Place) -> Backend:
    """The model of a run, running as it did: the one given, else the one that the run was made with.

    Raises:
        UserError: for one that would run otherwise, so that later clips would not fit the earlier ones.
        Followed: in a process that another one led, once that is done.
    """
    if isinstance(model, Backend):
        check_running(run.settings, running_of(model))
        return model
    record, settings = run.manifest.model, run.settings
    choice = model_choice(model or record.name, run_loras(record, settings), as_run(settings, place))
    check_running(settings, running_record(choice.look()))
    return load_together(choice, settings, place, run.path)


def branch_choice(
    run: Run, model: str | PathLike[str] | None, loras: Sequence[str] | None, place: Place
) -> ModelChoice:
    """The model of a branch: that of ``run`` with its LoRAs, running as it did, where nothing else is asked for.

    Raises:
        UserError: as :func:`model_choice`.
    """
    record = run.manifest.model
    specs = run_loras(record, run.settings) if loras is None and model is None else tuple(loras or ())
    return model_choice(model or record.name, specs, as_run(run.settings, place))


def as_run(settings: RunSettings, place: Place) -> Place:
    """``place``, where what is left open is as a run's clips were made."""
    return replace(place, dtype=place.dtype or settings.dtype or None, running=run_running(settings, place.running))
