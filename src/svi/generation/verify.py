"""Is a run intact? Reads every file, compares hashes, and says what can be saved.

Changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from svi.errors import UserError
from svi.generation.clip_store import SEGMENT, ClipStore, remedy
from svi.generation.start import FOLDER
from svi.generation.writer import join_segments

if TYPE_CHECKING:
    from svi.generation.run_view import RunView


@dataclass(frozen=True)
class Problem:
    """One damaged file. ``clip``: whose it is, None for files of the whole run."""

    path: Path
    what: str
    clip: int | None = None

    def __str__(self) -> str:
        return f"{self.path} {self.what}"


@dataclass(frozen=True)
class DamageReport:
    """What :meth:`RunView.verify` found.

    Attributes:
        problems: what is damaged, file by file.
        intact: how many clips from the start are whole; a branch at this clip is always possible.
        total: how many clips the run has on disk.
        advice: what to do, one sentence each.
    """

    problems: tuple[Problem, ...]
    intact: int
    total: int
    advice: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.problems


def examine(run: RunView) -> DamageReport:
    """The damage report of a run."""
    problems = [*_own_files(run)]
    numbers = run.store.numbers()
    count = run.store.count()
    bad: list[int] = []
    for clip in numbers:
        found = [*_clip_problems(run.store, clip)]
        problems += found
        bad += [clip] if found else []
    missing = [] if count == len(numbers) else sorted(set(range(numbers[-1])) - set(numbers))
    problems += [Problem(run.store.folder(clip), "is missing", clip) for clip in missing]
    intact = min([*bad, *missing], default=count)
    return DamageReport(tuple(problems), intact, len(numbers), tuple(_advice(run, bad, missing, intact)))


def _own_files(run: RunView) -> Iterator[Problem]:
    checks = (
        (run.path / "state.json", run.state),
        (run.path / "reference.png", run.reference),
        (run.storyboard_path, run.storyboard),
        *(((run.path / FOLDER, run.film), (run.path / FOLDER, run.start_memory)) if run.manifest.start else ()),
    )
    for path, check in checks:
        try:
            check()
        except UserError as error:
            yield Problem(path, str(error).removeprefix(str(path)).lstrip(" ,:/"))
    lines = run.log.damaged_lines()
    if lines:
        shown = ", ".join(map(str, lines[:5])) + (" ..." if len(lines) > 5 else "")
        yield Problem(run.log.path, f"has damaged lines ({shown}); they are only history, clips do not need them")


def _clip_problems(store: ClipStore, clip: int) -> Iterator[Problem]:
    try:
        for path, what in store.damage(clip):
            yield Problem(path, what, clip)
    except UserError as error:
        path = store.path(clip) / "clip.json"
        yield Problem(path, str(error).removeprefix(str(path)).lstrip(), clip)


def _advice(run: RunView, bad: list[int], missing: list[int], intact: int) -> Iterator[str]:
    for clip in bad:
        yield remedy(run.path, clip)
    if missing:
        yield f"`svi branch {run.path} --at {intact}` makes a new run of the {intact} clips before the first gap"


def salvage(folder: Path, target: Path, *, fps: int) -> int:
    """Join what segments there are in a run whose ``run.json`` cannot be read; damaged ones are left out.

    Returns:
        Number of frames saved.
    """
    store = ClipStore(folder / "clips")
    segments = [store.path(clip) / SEGMENT for clip in store.numbers() if not any(_clip_problems(store, clip))]
    return join_segments(segments, target, fps=fps)
