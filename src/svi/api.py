"""The Python interface: load a model, make a video, stream clips, go on with a run.

    backend = svi.load("pocket")
    run = svi.generate("cat.png", ["a cat walks", "the cat sits down"], clips=8, model=backend, out="runs/cat")
    svi.extend("runs/cat", ["the cat jumps"], clips=4, model=backend)
    for clip in svi.stream("cat.png", ["a cat walks"], model=backend):
        show(clip.new_frames)

All input is checked before weights are loaded; every mistake is a ``svi.UserError`` that names the remedy. The command
line is a thin layer over these functions. Knows nothing about terminals.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Unpack, cast

from svi.backends.base import Backend
from svi.errors import UserError
from svi.generation.clip import Clip
from svi.generation.events import Listener, silent
from svi.generation.run import Run
from svi.generation.storyboard_edit import followed_by, with_prompt
from svi.job import (
    Followed,
    Job,
    branch_folder,
    dismissing,
    go,
    led,
    load_choice,
    model_choice,
    new_run_folder,
    opened,
    run_backend,
    run_name,
    shared,
    stream_clips,
    target_of,
)
from svi.options import BranchOptions, GenerateOptions, Machine, Model, Running, place_of, split
from svi.prepare import Length, Prompts, read_story

if TYPE_CHECKING:
    from svi.generation.images import Source

AnyRun = Run | str | PathLike[str]


def load(
    model: str | PathLike[str] = "pocket",
    *,
    loras: Sequence[str] = (),
    device: str | None = None,
    dtype: str | None = None,
    download: bool = False,
    text_cache: bool | None = None,
    on_event: Listener = silent,
    **running: Unpack[Running],
) -> Backend:
    """Load a model with its LoRAs.

    Args:
        model: ``pocket`` (embedded), a folder in diffusers or official layout, or a hub id.
        loras: ``NAME|FILE[:STRENGTH]`` each; one whose keys do not match the model is refused.
        device, dtype: None = the best there is; ``svi doctor`` tells the reasons.
        download: whether a hub model that is not here may be fetched.
        text_cache: as :class:`svi.options.Machine` has it.
        on_event: gets one ``Notice`` per stage.
        running: :class:`svi.options.Running`.

    Raises:
        UserError: for an unknown model, damaged or missing files, a LoRA that does not fit.
    """
    place = place_of(
        {
            "device": device,
            "dtype": dtype,
            "download": download,
            "text_cache": text_cache,
            "on_event": on_event,
            "should_stop": None,
            **running,
        }
    )
    return load_choice(model_choice(model, loras, place), on_event)


@led
def generate(
    image: Source | None = None,
    prompts: Prompts | None = None,
    *,
    model: Model = "pocket",
    loras: Sequence[str] = (),
    out: str | PathLike[str] | None = None,
    clips: int | None = None,
    seconds: float | None = None,
    endless: bool = False,
    **options: Unpack[GenerateOptions],
) -> Run:
    """Make a video from an image and prompts, as a run folder that can be resumed, extended, branched and retaken.

    Args:
        image: path, PIL image, or ``(H, W, 3)`` uint8 array; None = the image that the storyboard names. Without image
            and prompts, the bundled example is made. The path of a video (mp4, mov, mkv ...) = go on from its end.
        prompts: one prompt, a list of them, a ``Path`` of a prompt file or storyboard, or a ``Storyboard``. One prompt
            drives one clip, the last one repeats.
        model: as in :func:`load`, or a loaded backend.
        loras: as in :func:`load`; only where ``model`` is not loaded yet.
        out: folder of the run, which must not exist; None = a new one in ``runs``.
        clips, seconds, endless: length, at most one of them; none = as long as the story.
        options: :class:`svi.options.Pictures`, :class:`svi.options.Window`, :class:`svi.options.Machine`.

    Returns:
        The run; ``run.status().finished`` tells whether it was stopped early.

    Raises:
        UserError: for bad input; nothing is written then.
    """
    sampling, place = split(options)
    length = Length(clips, seconds, endless)
    folder = new_run_folder(out, run_name(image, prompts))
    job = Job.prepare(image, prompts, length, sampling, model, loras, place, folder)
    with dismissing(job.backend):
        return go(job.new_run(folder), job.backend, place)


def stream(
    image: Source | None = None,
    prompts: Prompts | Iterator[str] | None = None,
    *,
    model: Model = "pocket",
    loras: Sequence[str] = (),
    out: str | PathLike[str] | None = None,
    clips: int | None = None,
    seconds: float | None = None,
    **options: Unpack[GenerateOptions],
) -> Iterator[Clip]:
    """The clips of a video, one by one as they are made: endless, unless ``clips`` or ``seconds`` say otherwise.

    Nothing is written unless ``out`` names a run folder. The input is checked at the call, not at the first clip; a
    clip is made when it is asked for. ``clip.new_frames`` are the frames that it adds to the video.

    Args:
        prompts: as in :func:`generate`, or an iterator that is asked for one prompt before each clip (a live stream of
            prompts); the video ends where it ends.
        image, model, loras, out, clips, seconds, options: as in :func:`generate`.

    Raises:
        UserError: for bad input.
    """
    sampling, place = split(options)
    length = Length(clips, seconds, endless=clips is None and seconds is None)
    live = prompts if isinstance(prompts, Iterator) else None
    if live is not None:
        if out is not None:
            raise UserError("a run needs prompts that it can read again: give a list, or leave out `out`")
        first = next(live, "")
        prompts, live = [first], itertools.chain([first], live)
    folder = None if out is None else new_run_folder(out, "")
    try:
        job = Job.prepare(image, cast("Prompts | None", prompts), length, sampling, model, loras, place, folder)
    except Followed:
        return iter(())
    if folder is None:
        return shared(stream_clips(job.prepared, job.backend, place, live), job.backend)
    run = job.new_run(folder)
    return shared(run.stream(job.backend, on_event=place.on_event, should_stop=place.should_stop), job.backend)


@led
def resume(run: AnyRun, *, model: Model | None = None, **options: Unpack[Machine]) -> Run:
    """Go on with a run that was stopped. ``model``: None = the one that the run was made with.

    Raises:
        UserError: for a damaged run, and for weights or LoRAs that changed.
    """
    run, place = opened(run), place_of(options)
    backend = run_backend(run, model, place)
    with dismissing(backend):
        return go(run, backend, place)


@led
def extend(
    run: AnyRun,
    prompts: Prompts | None = None,
    *,
    clips: int | None = None,
    seconds: float | None = None,
    endless: bool = False,
    model: Model | None = None,
    **options: Unpack[Machine],
) -> Run:
    """Make a run longer: by ``clips``, by ``seconds``, without end, or by as many clips as there are new prompts.

    New prompts drive the clips from the present end on; without any, the story goes on as it was.

    Raises:
        UserError: for bad input; the run then stays as it was.
    """
    run, place, length = opened(run), place_of(options), Length(clips, seconds, endless)
    more = None if prompts is None else read_story(prompts)[0]
    if more is None and not length.given:
        raise UserError("say how much longer: --clips N, --seconds S, --endless, or new prompts")
    end = max(run.count, target_of(run) or 0)
    story = None if more is None else followed_by(run.storyboard(), end, more)
    added = more.planned_clips if more is not None and not length.given else length.added(run.settings)
    backend = run_backend(run, model, place)
    with dismissing(backend):
        if story is not None:
            run.edit(story)
        return go(run, backend, place, clips=None if added is None else end + added, endless=endless)


@led
def retake(
    run: AnyRun,
    clip: int,
    *,
    keep_rest: bool = False,
    seed: int | None = None,
    prompt: str | None = None,
    model: Model | None = None,
    **options: Unpack[Machine],
) -> Run:
    """Make clip ``clip`` (from 0) again; the old take is kept. What follows is made again too, unless ``keep_rest``.

    Raises:
        UserError: for a clip that does not exist; the run then stays as it was.
    """
    run, place = opened(run), place_of(options)
    if prompt is not None and not prompt.strip():
        raise UserError("the prompt is empty: say what happens in the clip")
    if not 0 <= clip < run.count:
        have = f"it has clips 0 to {run.count - 1}" if run.count else "it has none yet"
        raise UserError(f"clip {clip} does not exist in {run.path}: {have}")
    story = None if prompt is None else with_prompt(run.storyboard(), clip, prompt, clips=target_of(run))
    backend = run_backend(run, model, place)
    with dismissing(backend):
        if story is not None:
            run.edit(story)
        run.retake(clip, keep_rest=keep_rest, seed=seed)
        return go(run, backend, place)


@led
def branch(
    run: AnyRun,
    at: int,
    prompts: Prompts | None = None,
    *,
    out: str | PathLike[str] | None = None,
    clips: int | None = None,
    seconds: float | None = None,
    endless: bool = False,
    model: Model | None = None,
    loras: Sequence[str] | None = None,
    **options: Unpack[BranchOptions],
) -> Run:
    """A new run that shares the clips before ``at`` with ``run`` and goes its own way from clip ``at`` on.

    Everything left out is as in ``run``. ``clips`` and ``seconds`` are the length of the whole new video; left out, it
    ends with the new prompts, or is as long as ``run``.

    Raises:
        UserError: for bad input; nothing is written then.
    """
    run, length = opened(run), Length(clips, seconds, endless)
    sampling, place = split(options, BranchOptions)
    if not 0 <= at <= run.count:
        have = f"it has {run.count} finished clips, so --at is from 0 to {run.count}"
        raise UserError(f"cannot branch {run.path} at clip {at}: {have}")
    folder = branch_folder(run, out)
    job = Job.branch(run, at, prompts, length, sampling, model, loras, place, folder)
    with dismissing(job.backend):
        new = run.branch(
            at,
            folder,
            settings=job.prepared.settings,
            storyboard=job.prepared.storyboard,
            model=job.backend.info,
            clips=job.prepared.target,
        )
        return go(job.noted(new), job.backend, place)
