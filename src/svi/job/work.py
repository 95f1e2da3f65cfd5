"""One piece of work for ``svi.api``: inputs checked, model loaded, run made.

The order is always the same: everything that is cheap to check first, then the weights, then the first file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from svi.backends.base import Backend
from svi.errors import UserError
from svi.generation.events import Notice
from svi.generation.images import Reference
from svi.generation.manifest import RunSettings, device_of, running_of
from svi.generation.plans import changing_loras
from svi.generation.run import Run
from svi.generation.storyboard import Storyboard
from svi.generation.storyboard_edit import followed_by
from svi.job.advice import advice, facts_of
from svi.job.running import target_of, tell
from svi.job.source import check_start, start_of
from svi.job.together import branch_choice, load_together, model_choice
from svi.options import Model, Pictures, Place
from svi.prepare import (
    Length,
    ModelChoice,
    Prepared,
    Prompts,
    Sampling,
    Story,
    prepare,
    read_story,
    settings_for,
)

if TYPE_CHECKING:
    from svi.generation.images import Source


@dataclass(frozen=True)
class Job:
    """Checked inputs and a loaded model.

    Attributes:
        prepared: the inputs, with how the model runs among the settings.
        backend: the model.
        warned: what experience says against the settings (:mod:`svi.job.advice`), as it was told.
    """

    prepared: Prepared
    backend: Backend
    warned: tuple[str, ...] = ()

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
        story = Story.read(image, prompts, sampling.anchor)
        if isinstance(model, Backend):
            prepared = prepare(story, length=length, sampling=sampling, geometry=model.geometry, info=model.info)
            tell(prepared.notes, place.on_event)
            return cls.of(prepared, model, place)
        if place.download:  # what follows may fetch many GB
            story.check_image()
        choice = model_choice(model, loras, place)
        geometry, info = choice.peek()
        prepared = prepare(story, length=length, sampling=sampling, geometry=geometry, info=info)
        early = advice(facts_of(prepared, geometry, info))  # loading may take minutes
        tell((*prepared.notes, *early), place.on_event)
        choice = loras_apart(choice, prepared, place)
        return cls.of(prepared, load_together(choice, prepared.settings, place, folder), place, early)

    @classmethod
    def of(cls, prepared: Prepared, backend: Backend, place: Place, early: Sequence[str] = ()) -> Job:
        """With how the model runs, known now that it is loaded, among the settings; ``early``: advice that was told already."""
        settings = prepared.settings.model_copy(update=running_of(backend))
        prepared = replace(prepared, settings=settings)
        warned = advice(facts_of(prepared, backend.geometry, backend.info, backend))
        tell([line for line in warned if line not in early], place.on_event)
        return cls(prepared, backend, warned)

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
        chosen = model if isinstance(model, Backend) else branch_choice(run, model, loras, place)
        geometry, info = (chosen.geometry, chosen.info) if isinstance(chosen, Backend) else chosen.peek()
        size = (old.width, old.height)
        settings = settings_for(story, sampling, geometry, info, size, fps=old.fps, shift=old.shift)
        reference = Reference(run.reference(), (), run.manifest.reference.source)
        prepared = Prepared(story, reference, settings, _branch_target(run, at, length, settings, more))
        if at == 0:
            check_start(run, settings)
        if isinstance(chosen, Backend):
            return cls.of(prepared, chosen, place)
        chosen = loras_apart(chosen, prepared, place)
        return cls.of(prepared, load_together(chosen, settings, place, folder), place)

    def new_run(self, folder: Path) -> Run:
        """A new run folder for this job."""
        run = Run.create(
            folder,
            settings=self.prepared.settings,
            storyboard=self.prepared.storyboard,
            reference=self.prepared.reference,
            model=self.backend.info,
            clips=self.prepared.target,
            start=start_of(self.prepared, self.backend),
            device=device_of(self.backend),
        )
        return self.noted(run)

    def noted(self, run: Run) -> Run:
        """``run`` with what was told against its settings in its journal."""
        if self.warned:
            run.log.append("advice", notes=list(self.warned))
        return run


def loras_apart(choice: ModelChoice, prepared: Prepared, place: Place) -> ModelChoice:
    """``choice`` with LoRAs beside the weights where their strengths change from beat to beat; says so.

    Raises:
        UserError: where they were to be merged by name.
    """
    changing = changing_loras(prepared.storyboard, prepared.settings)
    if not changing or not choice.look().speed.merge_loras:
        return choice
    reason = f"the strength of {', '.join(changing)} changes from beat to beat"
    if choice.running.get("merge_loras"):
        raise UserError(f"LoRAs cannot be merged, {reason}: leave --merge-loras out")
    place.on_event(Notice(f"LoRAs beside the weights: {reason}"))
    return replace(choice, running={**choice.running, "merge_loras": False})


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
