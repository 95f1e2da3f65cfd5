"""Scoring: every video is read once for all metrics that it lacks; what is finished is stored at once and never redone.

A video or metric that breaks is recorded with its reason and goes on being left out, never counted as 0, until it is
asked for again. Knows metrics by their contract only.
"""

from __future__ import annotations

import math
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from svi import __version__
from svi.data.video import UnusableVideoError
from svi.evaluation.metric import Frames, Metric, Need, Reading, Sample, Score, Skipped
from svi.evaluation.reader import BATCH, Video, batches, content_hash, look
from svi.evaluation.sources import Entry, Listing, open_sample
from svi.evaluation.store import MethodIndex, MetricNote, Result, Row, Status, Store, result_key, result_of
from svi.evaluation.workers import spread
from svi.files import DiskFullError, remove_leftovers

LIBRARIES = ("numpy", "torch", "transformers", "torchvision", "timm", "av", "pillow")
PARTS = 20  # times that a video tells how far it is


@dataclass(frozen=True)
class Tick:
    """Progress. ``done`` in [0, 1] of the work of this call; ``line``: what has just been finished, if anything."""

    done: float
    left_s: float | None
    line: str | None = None


Watch = Callable[[Tick], None]


@dataclass(frozen=True)
class Task:
    """A video and the metrics that it still lacks, with the keys of their results."""

    method: str
    entry: Entry
    keys: Mapping[str, str]
    cost: float


@dataclass(frozen=True)
class Plan:
    """What is there of a method, and what is to be done. ``index`` is complete before anything is scored."""

    index: MethodIndex
    tasks: tuple[Task, ...]
    there: int = 0


@dataclass
class Tally:
    """What a call did: results by status, and reasons of what failed."""

    counts: dict[str, int] = field(default_factory=lambda: {"ok": 0, "skipped": 0, "failed": 0})
    failures: list[str] = field(default_factory=list)

    def add(self, task: Task, results: Sequence[Result]) -> None:
        """Count the results of one video."""
        for result in results:
            self.counts[result.status] += 1
        reasons = {f"{task.method}/{task.entry.name}: {r.reason}" for r in results if r.status == "failed"}
        self.failures += sorted(reasons)


def plan(
    method: str,
    listing: Listing,
    metrics: Sequence[Metric],
    store: Store,
    *,
    retry_failed: bool = False,
    about: str = "",
    fooler: bool = False,
) -> Plan:
    """Look at all videos of a method: which cannot be scored and why, and which scores are missing.

    Args:
        method: name of what made the videos.
        listing: the videos.
        metrics: what is asked for; one that cannot run here is noted and left out.
        retry_failed: what failed before is missing again.
        about, fooler: stored in the index.
    """
    notes = {metric.name: _note(metric) for metric in metrics}
    able = [metric for metric in metrics if not notes[metric.name].missing]
    rows, tasks, there = [], [], 0
    for entry in listing.entries:
        try:
            sha = content_hash(entry.video)
            told = _told(entry)
            video = look(entry.video, entry.fps, limit=entry.frames)
        except UnusableVideoError as error:
            rows.append(Row(entry.name, str(entry.video), excluded=str(error)))
            continue
        keys = {m.name: result_key(sha, m.name, m.version, notes[m.name].key, told) for m in able}
        rows.append(Row(entry.name, str(entry.video), sha, _facts(entry, video), keys))
        missing = {name: key for name, key in keys.items() if _is_missing(store, notes[name], key, retry_failed)}
        there += len(keys) - len(missing)
        if missing:
            tasks.append(Task(method, entry, missing, video.num_frames * video.height * video.width * len(missing)))
    rows += [Row(name, str(listing.path), excluded=reason) for name, reason in listing.left_out]
    index = MethodIndex(method, str(listing.path), tuple(rows), notes, about, fooler, versions())
    return Plan(index, tuple(tasks), there)


def score(
    plans: Sequence[Plan],
    metrics: Sequence[Metric],
    store: Store,
    *,
    jobs: int = 1,
    shard: tuple[int, int] = (0, 1),
    batch: int = BATCH,
    watch: Watch = lambda tick: None,
) -> Tally:
    """Compute and store what the plans lack.

    Args:
        plans: of all methods; their indices are stored first, so that a table can be made at any moment.
        jobs: processes; 1 = this one.
        shard: ``(i, n)``: only every n-th video from the i-th on, so that n calls anywhere share the work.
        batch: frames read at a time.
        watch: called as the work goes on.

    Raises:
        UserError: for a full disk; what is finished is kept.
        KeyboardInterrupt: when stopped; what is finished is kept.
    """
    for made in plans:
        store.write_index(made.index)
    for folder in (store.root / "scores").glob("*@*"):
        remove_leftovers(folder)
    number, count = shard
    tasks = [task for made in plans for task in made.tasks][number::count]
    progress = _Progress(tasks, watch, sum(made.there for made in plans))
    tally = Tally()
    given = [_Work(task, tuple(metrics), store.root, batch) for task in tasks]
    if jobs == 1 or len(tasks) < 2:
        for work in given:
            results = _score_video(work, lambda share, task=work.task: progress.part(share, task))  # type: ignore[misc]
            progress.finished(work.task, results)
            tally.add(work.task, results)
        return tally
    for work, results in spread(_score_video, given, jobs):
        progress.finished(work.task, results)
        tally.add(work.task, results)
    return tally


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Of this program and the libraries that scores depend on; stored with every result."""
    found = {"svi": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


# -- planning


def _note(metric: Metric) -> MetricNote:
    missing = metric.missing() or ""
    key = "" if missing else metric.key()
    return MetricNote(metric.name, metric.version, metric.unit, metric.better.value, metric.source, key, missing)


def _told(entry: Entry) -> dict[str, Any]:
    """What a metric is told beside the video; files by their content."""
    files = {"reference": entry.reference, "truth": entry.truth, "audio": entry.audio}
    hashes = {name: None if path is None else content_hash(path) for name, path in files.items()}
    return {"fps": entry.fps, "frames": entry.frames, "prompts": entry.prompts, "borders": entry.borders, **hashes}


def _facts(entry: Entry, video: Video) -> dict[str, Any]:
    return {
        "fps": video.fps,
        "num_frames": video.num_frames,
        "height": video.height,
        "width": video.width,
        "codec": video.codec,
        "notes": list(video.notes),
        "borders": [border for border in entry.borders if 0 < border < video.num_frames],
        "prompts": [list(prompt) for prompt in entry.prompts],
        "about": dict(entry.about),
    }


def _is_missing(store: Store, note: MetricNote, key: str, retry_failed: bool) -> bool:
    result = store.read(note.name, note.version, key)
    return result is None or (retry_failed and result.status == "failed")


# -- one video


@dataclass(frozen=True)
class _Work:
    task: Task
    metrics: tuple[Metric, ...]
    root: Path
    batch: int


@dataclass
class _Under:
    """A metric while a video passes by."""

    metric: Metric
    reading: Reading
    seconds: float = 0.0


def _score_video(work: _Work, part: Callable[[float], None] = lambda share: None) -> list[Result]:
    """Read one video for the metrics that it lacks, and store every result."""
    entry, keys = work.task.entry, work.task.keys
    store = Store(work.root)
    wanted = [metric for metric in work.metrics if metric.name in keys]
    results: list[Result] = []

    def finish(metric: Metric, outcome: Score | Skipped | BaseException, seconds: float) -> None:
        result = _result(metric, keys[metric.name], entry.name, outcome, seconds)
        features = outcome.features if isinstance(outcome, Score) else None
        store.write(result, features if result.status == "ok" else None)
        results.append(result)

    under: list[_Under] = []
    try:
        sample, video = open_sample(entry)
        truth, why_no_truth = _truth(sample, video, wanted)
        for metric in wanted:
            lacking = _lacking(metric, sample, why_no_truth)
            if lacking is not None:
                finish(metric, Skipped(lacking), 0.0)
                continue
            _guarded(lambda metric=metric: under.append(_Under(metric, metric.start(sample))), metric, finish)  # type: ignore[misc]
        _read(video, truth, work.batch, under, finish, part)
    except UnusableVideoError as error:
        done = {result.metric for result in results}
        for metric in wanted:
            if metric.name not in done:
                finish(metric, error, 0.0)
        return results
    for item in under:
        outcome = _guarded(item.reading.result, item.metric, finish)
        if outcome is not None:
            finish(item.metric, outcome, item.seconds)
    return results


Finish = Callable[[Metric, Score | Skipped | BaseException, float], None]


def _read(
    video: Video, truth: Video | None, size: int, under: list[_Under], finish: Finish, part: Callable[[float], None]
) -> None:
    """Pass the frames by all metrics; one that breaks is stored and drops out."""
    told = start = 0
    others: Iterator[Any] = iter(()) if truth is None else _true_batches(truth, size)
    for frames in batches(video, size) if under else ():
        batch = Frames(start, frames, None if truth is None else next(others)[: len(frames)])
        start += len(frames)
        for item in list(under):
            began = time.perf_counter()
            if _guarded(lambda item=item, batch=batch: item.reading.add(batch) or True, item.metric, finish) is None:  # type: ignore[misc]
                under.remove(item)
            item.seconds += time.perf_counter() - began
        if not under:
            return
        if start * PARTS // video.num_frames > told:
            told = start * PARTS // video.num_frames
            part(start / video.num_frames)


def _true_batches(truth: Video, size: int) -> Iterator[Any]:
    try:
        yield from batches(truth, size)
    except UnusableVideoError as error:
        raise UnusableVideoError(f"its true video: {error.reason}", error.remedy) from None


def _guarded(call: Callable[[], Any], metric: Metric, finish: Finish) -> Any:
    """What ``call`` returns; None where it broke, which is stored as a failure of this metric alone."""
    try:
        return call()
    except (MemoryError, DiskFullError, UnusableVideoError):
        raise
    except Exception as error:  # a fault in one metric must not cost the others
        finish(metric, error, 0.0)
        return None


def _result(metric: Metric, key: str, sample: str, outcome: Score | Skipped | BaseException, seconds: float) -> Result:
    made = {"when": datetime.now(UTC).isoformat(timespec="seconds"), **versions()}
    fields: dict[str, Any] = dict(metric=metric.name, version=metric.version, key=key, sample=sample, made=made)
    fields["seconds"] = round(seconds, 3)
    if isinstance(outcome, Score):
        result = result_of(outcome, **fields)
        if result.value is None or math.isfinite(result.value):
            return result
        outcome = ValueError("the score is not a number")
    if isinstance(outcome, Skipped):
        return Result(status="skipped", reason=outcome.reason, **fields)
    status: Status = "failed"
    if isinstance(outcome, UnusableVideoError):
        return Result(status=status, reason=f"video: {outcome}", **fields)
    reason = " ".join(f"{type(outcome).__name__}: {outcome}".split())[:300]
    return Result(status=status, reason=reason, trace="".join(traceback.format_exception(outcome))[-4000:], **fields)


def _truth(sample: Sample, video: Video, metrics: Sequence[Metric]) -> tuple[Video | None, str]:
    """The true video where a metric wants it and it fits; else why it does not."""
    if sample.truth is None or not any(Need.TRUTH in metric.needs for metric in metrics):
        return None, "no true video is given"
    try:
        truth = look(sample.truth, video.fps)
    except UnusableVideoError as error:
        return None, f"the true video cannot be used: {error}"
    if (truth.width, truth.height) != (video.width, video.height):
        return None, f"the true video has {truth.width}x{truth.height} pixels, this one {video.width}x{video.height}"
    if truth.num_frames < video.num_frames:
        return None, f"the true video ends after {truth.num_frames} of {video.num_frames} frames"
    return replace(truth, num_frames=video.num_frames), ""


def _lacking(metric: Metric, sample: Sample, why_no_truth: str) -> str | None:
    """Why a metric does not apply to a sample."""
    there = {
        Need.REFERENCE: sample.reference is not None,
        Need.TRUTH: not why_no_truth,
        Need.PROMPTS: bool(sample.prompts),
        Need.CLIPS: bool(sample.borders),
        Need.AUDIO: sample.audio is not None,
    }
    absent = sorted(need for need in metric.needs if not there[need])
    if not absent:
        return None
    return why_no_truth if absent == [Need.TRUTH] else f"no {' and no '.join(need.value for need in absent)} is given"


class _Progress:
    """Turns what is done into ticks, with the time left at the pace so far."""

    def __init__(self, tasks: Sequence[Task], watch: Watch, there: int) -> None:
        self.total, self.cost = len(tasks), sum(task.cost for task in tasks)
        self.spent, self.count, self.began, self.watch = 0.0, 0, time.monotonic(), watch
        videos = "1 video" if len(tasks) == 1 else f"{len(tasks)} videos"
        scores = sum(len(task.keys) for task in tasks)
        watch(Tick(0.0 if tasks else 1.0, None, f"{scores} scores of {videos} to compute, {there} there already"))

    def part(self, share: float, task: Task) -> None:
        """So much of a video is read."""
        self._tell(self.spent + share * task.cost, None)

    def finished(self, task: Task, results: Sequence[Result]) -> None:
        """A video is done."""
        self.spent += task.cost
        self.count += 1
        ok = sum(result.status == "ok" for result in results)
        bad = next((result.reason for result in results if result.status == "failed"), "")
        said = f"{ok} of {len(results)} scores{'; ' + bad if bad else ''}"
        self._tell(self.spent, f"{self.count}/{self.total} {task.method}/{task.entry.name}: {said}")

    def _tell(self, spent: float, line: str | None) -> None:
        took = time.monotonic() - self.began
        left = took / spent * (self.cost - spent) if spent else None
        self.watch(Tick(spent / self.cost if self.cost else 1.0, left, line))
