"""Makes what the videos of a benchmark lack: model by model, case by case or side by side, and controls of what is there.

What is finished is kept; the same call goes on. Knows nothing about metrics or the command line.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from svi import api
from svi.backends.base import Backend
from svi.benchmark.folder import Bench, check_method
from svi.benchmark.methods import VAE, Method
from svi.benchmark.together import Batch, batches, entry_of, make
from svi.conditioning.policy import get_policy
from svi.errors import UserError
from svi.evaluation.fakes import Shape
from svi.evaluation.reader import look
from svi.evaluation.runner import Tick, Watch
from svi.evaluation.sources import MANIFEST, Entry, write_manifest
from svi.evaluation.suites import Case
from svi.evaluation.workers import spread
from svi.generation.events import ClipFinished, Event, Listener
from svi.generation.rollout import Stopped
from svi.generation.run import Run
from svi.generation.stitch import clips_for_frames
from svi.options import Place
from svi.pocket.bench import control_frames, pocket_prompts, write_video


def generate(
    bench: Bench,
    methods: Sequence[Method],
    *,
    model: str = "pocket",
    place: Place | None = None,
    watch: Watch = lambda tick: None,
    together: int = 1,
    jobs: int = 1,
) -> bool:
    """Make what the methods' videos lack, one method after the other. False: stopped early; the same call goes on.

    Args:
        model: of methods that name none.
        place: device and such; its listener hears every event of a run, too.
        watch: hears of progress and the time left.
        together: videos of a model in one batch (pocket suite), which is faster; each is then a plain file. 1 = one after the
            other, each a run folder that svi show and svi retake understand.
        jobs: processes that share the batches; more than 1 takes batches.

    Raises:
        UserError: for a method that the suite cannot give what it needs, and one that was made with something else before;
            what is finished is kept.
        KeyboardInterrupt: when stopped while several processes work.
    """
    place = place or Place()
    doubled = [method.name for method in methods if [m.name for m in methods].count(method.name) > 1]
    if doubled:
        raise UserError(f"two methods are called {doubled[0]!r}: give one of them another name (NAME:preset=...)")
    batched = [method for method in methods if method.control is None and (max(together, jobs) > 1 or method.inverted)]
    if batched and bench.suite.name != "pocket":
        raise UserError(
            f"{batched[0].name} would be made in batches, but the pictures of {bench.suite.name} differ in size: "
            "leave out --batch and --jobs, and inverted methods"
        )
    for method in methods:
        check_method(bench.videos(method.name), method.made_with(model, download=place.download))
    pace = _Pace(bench, methods, watch)
    heard = replace(place, on_event=pace.heard(place.on_event))
    if not _side_by_side(bench, batched, model, heard, pace, together=together, jobs=jobs):
        return False
    return all(_case_by_case(bench, method, model, heard, pace) for method in methods if method not in batched)


def _case_by_case(bench: Bench, method: Method, model: str, place: Place, pace: _Pace) -> bool:
    """Runs of a model, or controls. False: stopped early."""
    backend = _backend(bench, method, model, place)
    entries: list[Entry] = []
    for index, case in enumerate(bench.cases):
        entry = (_control if method.control else _rollout)(bench, method, case, index, backend, place)
        if entry is None:
            return False
        entries.append(entry)
        write_manifest(bench.videos(method.name) / MANIFEST, entries)
        pace.finished(method, [case])
    return True


def _side_by_side(
    bench: Bench, methods: Sequence[Method], model: str, place: Place, pace: _Pace, *, together: int, jobs: int
) -> bool:
    """Batches of all ``methods``. False: stopped early."""
    todo: list[Batch] = []
    for method in methods:
        lacking = [case.name for case in bench.cases if not _is_made(bench, method, case)]
        todo += batches(bench, method, model, place, lacking, together)
    try:
        if jobs == 1 or len(todo) == 1:
            for batch in todo:
                make(batch, clip_made=partial(pace.made, len(batch.cases)), should_stop=place.should_stop)
                _list(bench, batch.method)
                pace.finished(batch.method, batch.cases)
        else:
            for batch, _ in spread(make, todo, jobs) if todo else ():
                _list(bench, batch.method)
                pace.made(batch.clips * len(batch.cases))
                pace.finished(batch.method, batch.cases)
    except Stopped:
        return False
    for method in methods:
        _list(bench, method)
    return True


def _list(bench: Bench, method: Method) -> None:
    """The manifest of what is there of a method that is made side by side."""
    made = [_entry(bench, method, case) for case in bench.cases if _is_made(bench, method, case)]
    if made:
        write_manifest(bench.videos(method.name) / MANIFEST, made)


def _entry(bench: Bench, method: Method, case: Case) -> Entry:
    """A finished video of a model as a line of the manifest."""
    folder = bench.videos(method.name) / case.name
    if not (folder / "run.json").is_file():
        return entry_of(bench, method, case)
    about = {**case.about, "method": method.about}
    return Entry(case.name, folder, frames=bench.num_frames, truth=case.truth, about=about)


def _backend(bench: Bench, method: Method, model: str, place: Place) -> Backend | None:
    """The model of a method, where there is something left to make with it."""
    if method.control not in (None, VAE) or all(_is_made(bench, method, case) for case in bench.cases):
        return None
    return api.load(
        method.model or model,
        loras=method.loras,
        device=place.device,
        dtype=place.dtype,
        download=place.download,
        on_event=place.on_event,
    )


def _is_made(bench: Bench, method: Method, case: Case) -> bool:
    folder = bench.videos(method.name) / case.name
    if folder.with_name(f"{case.name}.mp4").is_file():
        return True
    return (folder / "run.json").is_file() and Run.open(folder).status().finished


class _Pace:
    """How far it is, counted in clips of models."""

    def __init__(self, bench: Bench, methods: Sequence[Method], watch: Watch) -> None:
        self.watch, self.began, self.count = watch, time.monotonic(), 0
        todo = [(m, c) for m in methods for c in bench.cases if not _is_made(bench, m, c)]
        self.total = sum(
            clips_for_frames(bench.num_frames, bench.clip_frames, get_policy(method.preset).overlap)
            for method, _ in todo
            if method.control is None
        )
        self.left = {(method.name, case.name) for method, case in todo}
        videos = "1 video" if len(todo) == 1 else f"{len(todo)} videos"
        watch(Tick(0.0 if todo else 1.0, None, f"{videos} to make, {self.total} clips of models"))

    def heard(self, listener: Listener) -> Listener:
        """A listener that counts clips and passes everything on."""

        def hear(event: Event) -> None:
            if isinstance(event, ClipFinished):
                self.made(1)
            listener(event)

        return hear

    def made(self, clips: int) -> None:
        """So many clips more."""
        self.count += clips
        self._tell(None)

    def finished(self, method: Method, cases: Sequence[Case]) -> None:
        """Videos are done."""
        new = [case.name for case in cases if (method.name, case.name) in self.left]
        if new:
            self._tell(f"{method.name}/{new[0]}" + (f" and {len(new) - 1} more" if new[1:] else ""))

    def _tell(self, line: str | None) -> None:
        done = min(1.0, self.count / self.total) if self.total else 1.0
        left = (time.monotonic() - self.began) * (1 / done - 1) if self.count and self.total else None
        self.watch(Tick(done, left, line))


def _rollout(
    bench: Bench, method: Method, case: Case, index: int, backend: Backend | None, place: Place
) -> Entry | None:
    """One case as a run folder; None where it was stopped early."""
    if _is_made(bench, method, case):
        return _entry(bench, method, case)
    folder = bench.videos(method.name) / case.name
    window = bench.clip_frames
    overlap = get_policy(method.preset).overlap
    clips = clips_for_frames(bench.num_frames, window, overlap)
    watching: dict[str, Any] = {"on_event": place.on_event, "should_stop": place.should_stop}
    if (folder / "run.json").is_file():
        run = api.resume(Run.open(folder), model=backend, **watching)
    else:
        assert backend is not None
        settings = {key: getattr(bench.suite, key) for key in ("steps", "guidance")} | dict(method.settings)
        prompts: Any = case.prompts
        if bench.suite.name == "pocket":
            prompts = pocket_prompts(case, window, overlap, clips, backend.geometry.fps)
        run = api.generate(
            case.image,
            prompts,
            model=backend,
            out=folder,
            clips=clips,
            preset=method.preset,
            seed=bench.seed(index),
            num_frames=window,
            **settings,
            **watching,
        )
    return _entry(bench, method, case) if run.status().finished else None


def _control(
    bench: Bench, method: Method, case: Case, index: int, backend: Backend | None, place: Place
) -> Entry | None:
    """One case of a control as a video encoded like a run's."""
    assert method.control is not None
    path = bench.videos(method.name) / f"{case.name}.mp4"
    source, fps = _source(bench, method, case)
    window = bench.clip_frames
    if not path.is_file():
        frames = control_frames(method.control, source, Shape(bench.num_frames, window - 1), backend)
        write_video(path, frames, round(fps))
    borders = tuple(range(window - 1, bench.num_frames - window // 2, window - 1))  # what is left is part of the last
    about = {**case.about, "method": method.about}
    return Entry(case.name, path, reference=case.image, truth=case.truth, borders=borders, about=about)


def _source(bench: Bench, method: Method, case: Case) -> tuple[Path, float]:
    """The video that a control is made of, and its rate."""
    if method.of is not None:
        run = bench.videos(method.of) / case.name / "video.mp4"
        found = run if run.is_file() else bench.videos(method.of) / f"{case.name}.mp4"
        if not found.is_file():
            raise UserError(
                f"{method.name} is made of {method.of}, which has no video of {case.name} yet: make it first"
            )
        return found, look(found).fps
    if case.truth is None or bench.suite.name != "pocket":
        raise UserError(f"{bench.suite.name} has no true videos: write {method.control}:of=METHOD")
    return case.truth, bench.suite.fps
