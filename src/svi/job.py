"""One piece of work for ``svi.api``: inputs checked, model loaded, run opened or made, and set going.

The order is always the same: everything that is cheap to check first, then the weights, then the first file. Where torchrun
started several processes, all check, the first makes the video, and the others take part in its steps.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import torch

from svi.backends.base import Backend
from svi.conditioning.memory import ClipMemory
from svi.conditioning.policy import get_policy
from svi.errors import UserError
from svi.generation.clip import Clip, ClipPlan
from svi.generation.events import Listener, Notice, Step
from svi.generation.images import Reference
from svi.generation.lock import holder
from svi.generation.manifest import RunSettings, check_running, run_running, running_of, running_record
from svi.generation.plans import clip_plans
from svi.generation.rollout import Stopped, rollout
from svi.generation.run import Run
from svi.generation.run_folder import check_new
from svi.generation.stitch import total_frames
from svi.generation.storyboard import Storyboard
from svi.generation.storyboard_edit import followed_by
from svi.options import Model, Pictures, Place
from svi.prepare import (
    Length,
    ModelChoice,
    Prepared,
    Prompts,
    Sampling,
    Story,
    new_run_folder,
    prepare,
    read_story,
    run_loras,
    settings_for,
    window_of,
)
from svi.progress import Loading, Overview

if TYPE_CHECKING:
    from svi.backends.parallel import Team
    from svi.generation.images import Source

Given = ParamSpec("Given")


@dataclass(frozen=True)
class Job:
    """Checked inputs and a loaded model."""

    prepared: Prepared
    backend: Backend

    @classmethod
    def prepare(
        cls,
        image: Source | None,
        prompts: Prompts | None,
        length: Length,
        sampling: Sampling,
        model: Model,
        loras: Sequence[str],
        place: Place,
        folder: Path | None,
    ) -> Job:
        """The job of a new video. ``folder``: where its run will be, None = it will not be kept.

        Raises:
            UserError: for the first mistake found.
            Followed: in a process that another one led, once that is done.
        """
        story = Story.read(image, prompts)
        if isinstance(model, Backend):
            prepared = prepare(story, length=length, sampling=sampling, geometry=model.geometry, info=model.info)
            tell(prepared.notes, place.on_event)
            return cls.of(prepared, model)
        if place.download:  # what follows may fetch many GB
            story.check_image()
        choice = model_choice(model, loras, place)
        geometry, info = choice.peek()
        prepared = prepare(story, length=length, sampling=sampling, geometry=geometry, info=info)
        tell(prepared.notes, place.on_event)
        return cls.of(prepared, load_together(choice, prepared.settings, place, folder))

    @classmethod
    def of(cls, prepared: Prepared, backend: Backend) -> Job:
        """With how the model runs, known now that it is loaded, among the settings."""
        settings = prepared.settings.model_copy(update=running_of(backend))
        return cls(replace(prepared, settings=settings), backend)

    @classmethod
    def branch(
        cls,
        run: Run,
        at: int,
        prompts: Prompts | None,
        length: Length,
        sampling: Sampling,
        model: Model | None,
        loras: Sequence[str] | None,
        place: Place,
        folder: Path,
    ) -> Job:
        """The job of a branch in ``folder``: what is left out is as in ``run``. Raises as :meth:`prepare` does."""
        more = None if prompts is None else read_story(prompts)[0]
        story = run.storyboard()
        if more is not None:
            story = followed_by(story, at, more)
        old = run.settings
        same = {name: getattr(old, name) for name in (*Pictures.__annotations__, "num_frames")}
        asked = {name: value for name in same if (value := getattr(sampling, name)) is not None}
        sampling = replace(sampling, **{**same, **asked})
        chosen = model if isinstance(model, Backend) else _branch_choice(run, model, loras, place)
        geometry, info = (chosen.geometry, chosen.info) if isinstance(chosen, Backend) else chosen.peek()
        size = (old.width, old.height)
        settings = settings_for(story, sampling, geometry, info, size, fps=old.fps, shift=old.shift)
        reference = Reference(run.reference(), (), run.manifest.reference.source)
        prepared = Prepared(story, reference, settings, _branch_target(run, at, length, settings, more))
        if isinstance(chosen, Backend):
            return cls.of(prepared, chosen)
        return cls.of(prepared, load_together(chosen, settings, place, folder))

    def new_run(self, folder: Path) -> Run:
        """A new run folder for this job."""
        return Run.create(
            folder,
            settings=self.prepared.settings,
            storyboard=self.prepared.storyboard,
            reference=self.prepared.reference,
            model=self.backend.info,
            clips=self.prepared.target,
        )


def model_choice(model: str | PathLike[str], loras: Sequence[str], place: Place) -> ModelChoice:
    """A model by name with its LoRAs, checked as far as possible without loading it."""
    if isinstance(loras, str):
        raise UserError(f"loras is a list: write [{loras!r}]")
    # A folder is stored by its full name, so that the run is found again from anywhere.
    name = str(Path(model).absolute()) if Path(model).is_dir() else str(model)
    choice = ModelChoice(name, tuple(loras), place.device, place.dtype, place.download, place.running)
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
    place = replace(place, running=run_running(settings, place.running))
    choice = model_choice(model or record.name, run_loras(record, settings), place)
    check_running(settings, running_record(choice.look()))
    return load_together(choice, settings, place, run.path)


def _branch_choice(
    run: Run, model: str | PathLike[str] | None, loras: Sequence[str] | None, place: Place
) -> ModelChoice:
    record = run.manifest.model
    specs = run_loras(record, run.settings) if loras is None and model is None else tuple(loras or ())
    place = replace(place, running=run_running(run.settings, place.running))
    return model_choice(model or record.name, specs, place)


def _branch_target(run: Run, at: int, length: Length, settings: RunSettings, more: Storyboard | None) -> int | None:
    if length.given:
        target = None if length.endless else length.clips or length.in_clips(settings)
    elif more is not None:
        target = at + more.planned_clips
    else:
        target = max(run.count, target_of(run) or 0)
    if target is not None and target < max(at, 1):
        raise UserError(
            f"a branch at clip {at} has at least {max(at, 1)} clips, not {target}: the length is that of the whole video"
        )
    return target


def opened(run: Run | str | PathLike[str], *, idle: bool = True) -> Run:
    """A run by object or folder. ``idle``: refuse one that another process is working on, before anything changes.

    Raises:
        UserError: for what is no run, is damaged, or is in use.
    """
    found = run if isinstance(run, Run) else Run.open(Path(run))
    who = holder(found.path / ".lock") if idle else None
    if who:
        raise UserError(f"{found.path} is in use by process {who}; wait for it or stop it first")
    return found


def target_of(run: Run) -> int | None:
    """Clips that the run shall have, None = endless or unknown."""
    try:
        return run.target
    except UserError:  # a damaged state.json only says how long; the new length replaces it
        return None


def branch_folder(run: Run, out: str | PathLike[str] | None) -> Path:
    """Where a branch goes: ``out``, or a new name beside the run."""
    if out is not None:
        return new_run_folder(out, "")
    home, name = run.path.resolve().parent, run.path.resolve().name
    path = next(p for n in itertools.count(1) if not (p := home / f"{name}-branch-{n}").exists())
    check_new(path)
    return path


def run_name(image: object, prompts: Prompts | None) -> str:
    """Words for the name of a new run's folder: the image's name, the storyboard's, or ``example``."""
    if isinstance(image, str | PathLike):
        return Path(image).stem
    if isinstance(prompts, PathLike):
        return Path(prompts).stem
    if isinstance(prompts, Storyboard) and prompts.title:
        return prompts.title
    return "example" if prompts is None else "video"


def tell(notes: Sequence[str], on_event: Listener) -> None:
    """Pass on what a user should know."""
    for note in notes:
        on_event(Notice(f"note: {note}"))


def go(run: Run, backend: Backend, place: Place, *, clips: int | None = None, endless: bool = False) -> Run:
    """Announce what will be made, and make it. ``clips``: a new total."""
    total = clips if clips is not None or endless else target_of(run)
    place.on_event(overview(run, total))
    run.generate(backend, clips=clips, endless=endless, on_event=place.on_event, should_stop=place.should_stop)
    return run


def overview(run: Run, target: int | None) -> Overview:
    """What is about to run. ``target``: clips in all, None = endless."""
    settings = run.settings
    overlap = get_policy(settings.preset).overlap
    seconds = None if target is None else total_frames(target, settings.num_frames, overlap) / settings.fps
    return Overview(
        run=str(run.path),
        model=run.manifest.model.name,
        preset=settings.preset,
        width=settings.width,
        height=settings.height,
        num_frames=settings.num_frames,
        fps=settings.fps,
        steps=settings.steps,
        done=run.count,
        target=target,
        seconds=seconds,
        playlist=str(run.playlist),
    )


def stream_clips(prepared: Prepared, backend: Backend, place: Place, live: Iterator[str] | None) -> Iterator[Clip]:
    """Clips without a run folder. ``live``: asked for the prompt of each clip, where there is no fixed story."""
    story, settings = prepared.storyboard, prepared.settings
    plans = clip_plans(story, settings, stop=prepared.target)
    if live is not None:
        plans = (replace(plan, prompt=text) for text, plan in zip(live, plans, strict=False))
    step: list[int] = []

    def planned() -> Iterator[ClipPlan]:
        for plan in plans:
            step[:] = [plan.index]
            yield plan

    def on_step(done: int, steps: int) -> None:
        place.on_event(Step(step[0], done, steps))

    clips = rollout(
        planned(),
        ClipMemory.start(prepared.reference.image),
        backend=backend,
        policy=get_policy(settings.preset),
        on_step=on_step,
        should_stop=place.should_stop,
    )
    with contextlib.suppress(Stopped):
        yield from clips
