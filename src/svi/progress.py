"""Four ways to show what a run tells: rich bars, plain lines, JSON lines, and quiet.

Knows nothing about models or files: it turns the events of ``svi.generation.events`` into words. A reporter is a
callable that takes one event; ``reporter(mode)`` makes the one for a mode.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, TextIO

from svi.generation import events
from svi.generation.events import Event
from svi.words import human_time, shortened

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

Mode = Literal["auto", "bars", "plain", "json", "quiet"]


@dataclass(frozen=True)
class Overview(Event):
    """What is about to run. ``target``: clips in all (None = endless); ``seconds``: length of the video when done."""

    kind: ClassVar[str] = "overview"
    run: str
    model: str
    preset: str
    width: int
    height: int
    num_frames: int
    fps: float
    steps: int
    done: int
    target: int | None
    seconds: float | None
    playlist: str


@dataclass(frozen=True)
class Loading(Event):
    """A stage of loading a model, or a choice made for it with its reason."""

    kind: ClassVar[str] = "loading"
    model: str
    message: str


def headline(event: Overview) -> list[str]:
    """What runs, how long the video will be, where it is written and how to stop: two lines."""
    length = "endless" if event.target is None else f"{event.target} clip{'s' * (event.target != 1)}"
    if event.seconds is not None:
        length += f" = {human_time(event.seconds)} of video"
    if event.done:
        length += f", {event.done} already made"
    settings = f"{event.width}x{event.height} at {event.fps:g} fps, {event.steps} steps"
    return [
        f"{event.model}, preset {event.preset}, {settings}: {length}",
        f"writing {event.run} (watch {event.playlist} while it grows); Ctrl-C stops after the current step",
    ]


class Pace:
    """Seconds per clip, smoothed, and from it the time left."""

    def __init__(self) -> None:
        self.per_clip: float | None = None

    def add(self, took_s: float) -> None:
        """Take one more clip into account."""
        self.per_clip = took_s if self.per_clip is None else 0.7 * self.per_clip + 0.3 * took_s

    def left(self, done: int, target: int | None) -> float | None:
        """Seconds left after ``done`` of ``target`` clips; None when that cannot be known."""
        return None if self.per_clip is None or target is None else self.per_clip * max(0, target - done)


class Reporter(Protocol):
    """Shows events; a context manager, so that bars are cleared whatever happens."""

    def __call__(self, event: Event) -> None: ...

    def __enter__(self) -> Reporter: ...

    def __exit__(self, *exc: object) -> None: ...


class _Plain:
    """One line per clip: for logs and pipes. Progress goes to ``err``, the video's path at the end to ``out``."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self.out, self.err, self.pace = out, err, Pace()
        self.prompt, self.run, self.loading, self.began = "", "", False, time.monotonic()

    def __enter__(self) -> _Plain:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Overview):
            self.run = event.run
            for text in headline(event):
                self.say(text)
        elif isinstance(event, Loading):
            if not self.loading:
                self.say(f"loading {event.model}")
            self.loading = True
        elif isinstance(event, events.ClipStarted):
            self.prompt = event.prompt
        elif isinstance(event, events.ClipFinished):
            self.pace.add(event.seconds)
            self.say(self.clip_line(event))
        elif isinstance(event, events.Notice):
            self.say(event.message)
        elif isinstance(event, events.Finished):
            took = human_time(time.monotonic() - self.began)
            self.say(f"done: {event.count} clips, {human_time(event.seconds)} of video, in {took}")
            self.say(f"next: svi show {self.run} --sheet; svi extend {self.run} --clips 5; svi export {self.run}")
            self.result(event.video)
        elif isinstance(event, events.Stopped):
            self.say(f"stopped; {event.message}")

    def clip_line(self, event: events.ClipFinished) -> str:
        """``clip 2 (3/12) 1.2 s, 11 s left: a cat walks``."""
        count = f"{event.clip + 1}" if event.target is None else f"{event.clip + 1}/{event.target}"
        left = self.pace.left(event.clip + 1, event.target)
        eta = f", {human_time(left)} left" if left else ""
        return f"clip {event.clip} ({count}) {human_time(event.seconds)}{eta}: {shortened(self.prompt)}"

    def say(self, text: str) -> None:
        """Write one line of progress."""
        self.err.write(text + "\n")
        self.err.flush()

    def result(self, text: str) -> None:
        """Write what the command made, for whoever reads stdout."""
        self.out.write(text + "\n")
        self.out.flush()


class _Bars(_Plain):
    """Two rich bars, steps of the clip and clips of the run, above which the plain lines scroll."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        super().__init__(out, err)
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.bars: Bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[eta]}"),
            console=Console(file=err, highlight=False),
            transient=True,
        )
        self.loads: TaskID | None = None
        self.steps: TaskID | None = None
        self.clips: TaskID | None = None
        self.clip_began = time.monotonic()

    def __enter__(self) -> _Bars:
        self.bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bars.stop()

    def say(self, text: str) -> None:
        from rich.text import Text

        self.bars.console.print(Text(text), soft_wrap=True)

    def __call__(self, event: Event) -> None:
        if isinstance(event, events.Finished | events.Stopped):
            self.bars.stop()
        super().__call__(event)
        if isinstance(event, Loading):
            if self.loads is None:
                self.loads = self.bars.add_task(event.message, total=None, count="", eta="")
            self.bars.update(self.loads, description=event.message)
        elif isinstance(event, Overview):
            if self.loads is not None:
                self.bars.remove_task(self.loads)
            self.steps = self.bars.add_task("steps", total=event.steps, count=f"0/{event.steps}", eta="")
            self.clips = self.bars.add_task("clips", total=event.target, count="", eta="")
            self.show_clips(event.done, event.target)
        elif isinstance(event, events.ClipStarted) and self.steps is not None:
            self.clip_began = time.monotonic()
            self.bars.update(self.steps, completed=0, total=event.steps, count=f"0/{event.steps}", eta="")
        elif isinstance(event, events.Step) and self.steps is not None:
            left = (time.monotonic() - self.clip_began) / event.step * (event.steps - event.step)
            count, eta = f"{event.step}/{event.steps}", f"{human_time(left)} left"
            self.bars.update(self.steps, completed=event.step, total=event.steps, count=count, eta=eta)
        elif isinstance(event, events.ClipFinished):
            self.show_clips(event.clip + 1, event.target)

    def show_clips(self, done: int, target: int | None) -> None:
        """Move the bar of the run."""
        if self.clips is not None:
            left = self.pace.left(done, target)
            eta = "endless" if target is None else "" if left is None else f"{human_time(left)} left"
            count = str(done) if target is None else f"{done}/{target}"
            self.bars.update(self.clips, completed=done, total=target, count=count, eta=eta)


class _Json(_Plain):
    """One JSON object per line on ``out``: ``{"kind": "clip_finished", "clip": 3, ...}``."""

    def __call__(self, event: Event) -> None:
        self.result(json.dumps(event.to_dict(), ensure_ascii=False))


class _Quiet(_Plain):
    """The path of the video on ``out``; on ``err`` only how to go on after a stop."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, events.Finished):
            self.result(event.video)
        elif isinstance(event, events.Stopped):
            self.say(f"stopped; {event.message}")


def reporter(mode: Mode = "auto", out: TextIO | None = None, err: TextIO | None = None) -> Reporter:
    """The reporter for ``mode``; ``auto`` = bars on a terminal, plain lines elsewhere."""
    out, err = out or sys.stdout, err or sys.stderr
    if mode == "auto":
        mode = "bars" if err.isatty() else "plain"
    kinds: dict[str, type[_Plain]] = {"bars": _Bars, "plain": _Plain, "json": _Json, "quiet": _Quiet}
    return kinds[mode](out, err)
