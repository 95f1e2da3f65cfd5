"""The folder of a benchmark: a suite's cases, which every method in it shares, and where the videos of each are.

    OUT/bench.json                       suite, length and cases, fixed by the first call
    OUT/cases/NAME/                      of the pocket suite: frame.png, prompts, truth.mkv
    OUT/videos/METHOD/NAME/              a run folder (svi show, svi resume), or NAME.mp4 of a control, or one made side by side
    OUT/videos/METHOD/method.json        what it was made with
    OUT/videos/METHOD/manifest.jsonl     what svi bench score reads

Makes no video but those of the suite's own truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svi.errors import UserError
from svi.evaluation.folder import BENCH, suite_of
from svi.evaluation.metric import Metric
from svi.evaluation.suites import Case, Suite, get_suite, read_cases
from svi.files import explained, read_json, write_json
from svi.generation.stitch import total_frames
from svi.pocket.bench import WORLD, PocketTruth, pocket_cases, reference_window

METHOD = "method.json"
SEED, SEED_STRIDE = 10_000_000, 30_011  # of case k, the same for all methods; no two cases share noise of a clip


@dataclass(frozen=True)
class Bench:
    """A folder of videos of one suite: what every method in it has in common."""

    out: Path
    suite: Suite
    cases: tuple[Case, ...]
    num_frames: int
    clip_frames: int

    def videos(self, method: str) -> Path:
        """Where a method's videos are."""
        return self.out / "videos" / method

    def seed(self, index: int) -> int:
        """Of the noise of case ``index``, the same for all methods."""
        return SEED + SEED_STRIDE * index


def open_bench(
    out: Path,
    suite: str,
    *,
    data: Path | None = None,
    samples: int | None = None,
    names: Sequence[str] = (),
    clips: int | None = None,
    model: str = "pocket",
) -> Bench:
    """The folder for a suite, made or opened again.

    Args:
        out: the folder.
        suite: its name.
        data: the published data set; the pocket suite needs none.
        samples, names: fewer cases than the suite has.
        clips: shorter videos: as long as so many clips chained by their last frame.
        model: whose clip length and size the pocket suite takes.

    Raises:
        UserError: where the folder was made with another suite, length or cases.
    """
    chosen = get_suite(suite)
    window = reference_window(model) if chosen.name == "pocket" else None
    clip_frames = window.num_frames if window else chosen.num_clip_frames or 81
    num_frames = chosen.num_frames if clips is None else total_frames(clips, clip_frames, 1)
    made = {"suite": suite, "num_frames": num_frames, "model": model if window else None}
    file = out / BENCH
    if file.is_file():
        before = read_json(file)
        differs = [
            f"{key} was {before.get(key)}, is {value}" for key, value in made.items() if before.get(key) != value
        ]
        if differs:
            raise UserError(f"{out} was made with other settings ({'; '.join(differs)}): take another --out")
    else:
        with explained(out, "create"):
            out.mkdir(parents=True, exist_ok=True)
        write_json(file, made)
    if window is not None:
        cases = pocket_cases(out, samples or chosen.samples, window, num_frames)
    elif data is None:
        raise UserError(f"{suite} needs its images and prompts: --data FOLDER of vita-video-gen/svi-benchmark")
    else:
        cases = read_cases(data, chosen, names=names, limit=samples)
    return Bench(out, chosen, tuple(cases), num_frames, clip_frames)


def check_method(folder: Path, made_with: dict[str, Any]) -> None:
    """Note what the videos in ``folder`` are made with, or refuse something else.

    Raises:
        UserError: where they were made otherwise, so that two methods would pass for one.
    """
    file = folder / METHOD
    with explained(folder, "create"):
        folder.mkdir(parents=True, exist_ok=True)
    if not file.is_file():
        write_json(file, made_with)
        return
    before = read_json(file)
    changed = sorted(key for key in {*before, *made_with} if before.get(key) != made_with.get(key))
    if changed:
        raise UserError(
            f"{folder} was made with other {' and '.join(changed)}: give the method another name, or remove the folder"
        )


def pocket_metric(out: Path) -> list[Metric]:
    """The metric that knows the truth, where ``out`` holds videos of the pocket suite."""
    if suite_of(out) != "pocket":
        return []
    cases = {file.parent.name: read_json(file) for file in (out / "cases").glob("*/case.json")}
    seeds = {name: int(case[WORLD]) for name, case in cases.items()}
    return [PocketTruth(seeds, reference_window(str(read_json(out / BENCH).get("model"))))]
