"""One piece of work for ``svi.api``: inputs checked, model loaded, run opened or made, and set going.

The order is always the same: everything that is cheap to check first, then the weights, then the first file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from svi.backends.base import Backend
from svi.conditioning.memory import ClipMemory
from svi.conditioning.policy import get_policy
from svi.errors import UserError
from svi.generation.clip import Clip, ClipPlan
from svi.generation.events import Listener, Notice, Step
from svi.generation.images import Reference
from svi.generation.lock import holder
from svi.generation.manifest import RunSettings
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
)
from svi.progress import Loading, Overview

if TYPE_CHECKING:
    from svi.generation.images import Source


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
    ) -> Job:
        """The job of a new video."""
        story = Story.read(image, prompts)
        if isinstance(model, Backend):
            prepared = prepare(story, length=length, sampling=sampling, geometry=model.geometry, info=model.info)
            tell(prepared.notes, place.on_event)
            return cls(prepared, model)
        if place.download:  # what follows may fetch many GB
            story.check_image()
        choice = model_choice(model, loras, place)
        geometry, info = choice.peek()
        prepared = prepare(story, length=length, sampling=sampling, geometry=geometry, info=info)
        tell(prepared.notes, place.on_event)
        return cls(prepared, load_choice(choice, place.on_event))

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
    ) -> Job:
        """The job of a branch: what is left out is as in ``run``."""
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
        return cls(prepared, chosen if isinstance(chosen, Backend) else load_choice(chosen, place.on_event))

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
    choice = ModelChoice(name, tuple(loras), place.device, place.dtype, place.download)
    choice.check()
    return choice


def load_choice(choice: ModelChoice, on_event: Listener) -> Backend:
    """Load the model; each stage is an event."""
    from svi.backends.wan import load_backend

    def progress(line: str) -> None:
        on_event(Loading(choice.model, line))

    return load_backend(choice.model, loras=choice.loras, progress=progress, **choice.place)


def run_backend(run: Run, model: Model | None, place: Place) -> Backend:
    """The model of a run: the one given, else the one that the run was made with."""
    if isinstance(model, Backend):
        return model
    record = run.manifest.model
    choice = model_choice(model or record.name, run_loras(record, run.settings), place)
    return load_choice(choice, place.on_event)


def _branch_choice(
    run: Run, model: str | PathLike[str] | None, loras: Sequence[str] | None, place: Place
) -> ModelChoice:
    record = run.manifest.model
    specs = run_loras(record, run.settings) if loras is None and model is None else tuple(loras or ())
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
    try:
        yield from clips
    except Stopped:
        return
