"""Runs set going: found by name or made room for, announced, and made clip by clip.

Knows nothing about how a model is loaded or input checked.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from os import PathLike
from pathlib import Path

from svi.backends.base import Backend
from svi.backends.parallel import launched
from svi.conditioning.policy import get_policy
from svi.errors import UserError
from svi.generation.clip import Clip, ClipPlan
from svi.generation.events import Listener, Notice, Step
from svi.generation.lock import holder
from svi.generation.plans import clip_plans
from svi.generation.rollout import Stopped, rollout
from svi.generation.run import Run
from svi.generation.run_folder import check_new
from svi.generation.stitch import total_frames
from svi.generation.storyboard import Storyboard
from svi.job.source import first_memory
from svi.options import Place
from svi.prepare import Prepared, Prompts
from svi.progress import Overview

RUNS = Path("runs")


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


def new_run_folder(out: str | PathLike[str] | None, name: str) -> Path:
    """Where a new run goes: ``out``, or a new folder in ``runs`` called after ``name`` and the time.

    Raises:
        UserError: if it exists already, or cannot be made; of several processes each would find another name.
    """
    if out is None and launched():
        raise UserError("several processes make one run: name its folder with --out RUN")
    if out is None:
        stem = f"{slug(name)}-{datetime.now():%Y%m%d-%H%M%S}"
        counted = (RUNS / (stem if n == 1 else f"{stem}-{n}") for n in itertools.count(1))
        path = next(p for p in counted if not p.exists())
    else:
        path = Path(out)
    check_new(path)
    return path


def slug(text: str) -> str:
    """A short file name from words: ``"A cat walks, slowly"`` -> ``a-cat-walks-slowly``."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    name = "-".join(words)
    return name[:32].strip("-") or "run"


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
    seconds = None if target is None else video_frames(run, target) / settings.fps
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


def video_frames(run: Run, clips: int) -> int:
    """Frames of the whole video once it has ``clips`` clips, those of the user's own video in front of them included."""
    num_frames, overlap = run.settings.num_frames, get_policy(run.settings.preset).overlap
    if run.manifest.start is None:
        return total_frames(clips, num_frames, overlap)
    return run.film_frames + clips * (num_frames - overlap)  # the first clip continues something, too


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
        first_memory(prepared, backend),
        backend=backend,
        policy=get_policy(settings.preset),
        on_step=on_step,
        should_stop=place.should_stop,
    )
    with contextlib.suppress(Stopped):
        yield from clips
