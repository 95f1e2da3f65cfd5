"""Making the videos of a suite: every method, case by case, as runs that go on where they stopped; and naive foolers.

The layer above ``svi.api`` where evaluation meets generation and the pocket world, neither of which knows it. Knows
nothing about metrics or the command line.

    OUT/bench.json                       suite, length and cases, fixed by the first call
    OUT/cases/NAME/                      of the pocket suite: frame.png, prompts, truth.mkv
    OUT/videos/METHOD/NAME/              a run folder (svi show, svi resume), or NAME.mp4 of a control
    OUT/videos/METHOD/manifest.jsonl     what svi bench score reads
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from svi import api
from svi.backends.base import Backend
from svi.conditioning.policy import PRESETS, get_policy
from svi.errors import UserError, nearest
from svi.evaluation.fakes import FAKES, Shape
from svi.evaluation.folder import BENCH, suite_of
from svi.evaluation.metric import Metric
from svi.evaluation.reader import look
from svi.evaluation.runner import Tick, Watch
from svi.evaluation.sources import MANIFEST, Entry, write_manifest
from svi.evaluation.suites import Case, Suite, get_suite, read_cases
from svi.files import explained, read_json, write_json
from svi.generation.events import ClipFinished, Event, Listener
from svi.generation.run import Run
from svi.generation.stitch import clips_for_frames, total_frames
from svi.options import Place
from svi.pocket.bench import (
    WORLD,
    PocketTruth,
    control_frames,
    pocket_cases,
    pocket_prompts,
    reference_window,
    write_video,
)

VAE = "vae"
CONTROLS = {name: f"{kind.role}: {kind.about}" if kind.role != "truth" else kind.about for name, kind in FAKES.items()}
CONTROLS[VAE] = "the true video through the model's VAE: what no rollout can better"
KEYS = ("preset", "lora", "model", "steps", "guidance", "solver", "of")
SEED, SEED_STRIDE = 10_000_000, 30_011  # of case k, the same for all methods; no two cases share noise of a clip


@dataclass(frozen=True)
class Method:
    """What makes videos: a preset with its model and LoRAs, or a control. ``of``: whose first clip a fooler repeats."""

    name: str
    preset: str = "wan"
    loras: tuple[str, ...] = ()
    model: str | None = None
    control: str | None = None
    of: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def about(self) -> str:
        """In a line, for tables."""
        if self.control is not None:
            return CONTROLS[self.control] + (f", of {self.of}" if self.of else "")
        parts = [f"preset {self.preset}", *(f"LoRA {lora}" for lora in self.loras)]
        parts += [f"model {self.model}"] if self.model else []
        return ", ".join([*parts, *(f"{key} {value}" for key, value in self.settings.items())])


def parse_method(text: str) -> Method:
    """``NAME[:key=value,...]``: ``shot``, ``erft:preset=shot,lora=shot:0.9,steps=8``, ``truth``, ``copy-clips:of=shot``.

    Raises:
        UserError: for an unknown key or name; the nearest is named.
    """
    name, _, rest = text.partition(":")
    given: dict[str, list[str]] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or key not in KEYS:
            raise UserError(f"method {text!r}: {key!r} is no key: {nearest(key, KEYS)}")
        given.setdefault(key, []).append(value)
    if name in CONTROLS and set(given) <= {"of"}:
        return Method(name, control=name, of=given.get("of", [None])[-1])
    if "of" in given:
        raise UserError(f"method {text!r}: only controls ({', '.join(CONTROLS)}) are made of another method's video")
    preset = given.get("preset", [name])[-1]
    if preset not in PRESETS:
        raise UserError(f"method {text!r}: unknown preset {preset!r}: {nearest(preset, [*PRESETS, *CONTROLS])}")
    settings = {key: convert(given[key][-1], text) for key, convert in _NUMBERS.items() if key in given}
    if "solver" in given:
        settings["solver"] = given["solver"][-1]
    return Method(name, preset, tuple(given.get("lora", ())), given.get("model", [None])[-1], settings=settings)


def _number(kind: Callable[[str], Any]) -> Callable[[str, str], Any]:
    def convert(value: str, text: str) -> Any:
        try:
            return kind(value)
        except ValueError:
            raise UserError(f"method {text!r}: {value!r} is no number") from None

    return convert


_NUMBERS = {"steps": _number(int), "guidance": _number(float)}


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


def generate(
    bench: Bench,
    methods: Sequence[Method],
    *,
    model: str = "pocket",
    place: Place | None = None,
    watch: Watch = lambda tick: None,
) -> bool:
    """Make what the methods' videos lack, one method after the other. False: stopped early; the same call goes on.

    Args:
        model: of methods that name none.
        place: device and such; its listener hears every event, too.
        watch: hears of progress and the time left.

    Raises:
        UserError: for a method that the suite cannot give what it needs; what is finished is kept.
    """
    place = place or Place()
    doubled = [method.name for method in methods if [m.name for m in methods].count(method.name) > 1]
    if doubled:
        raise UserError(f"two methods are called {doubled[0]!r}: give one of them another name (NAME:preset=...)")
    pace = _Pace(bench, methods, watch)
    for method in methods:
        with explained(bench.videos(method.name), "create"):
            bench.videos(method.name).mkdir(parents=True, exist_ok=True)
        heard = replace(place, on_event=pace.heard(place.on_event))
        backend = _backend(bench, method, model, heard)
        make = _control if method.control else _rollout
        entries: list[Entry] = []
        for index, case in enumerate(bench.cases):
            entry = make(bench, method, case, index, backend, heard)
            if entry is None:
                return False
            entries.append(entry)
            write_manifest(bench.videos(method.name) / MANIFEST, entries)
            pace.finished(method, case)
    return True


def _backend(bench: Bench, method: Method, model: str, place: Place) -> Backend | None:
    """The model of a method, where there is something left to make with it."""
    if method.control not in (None, VAE) or all(_is_made(bench, method, case) for case in bench.cases):
        return None
    here = {"device": place.device, "dtype": place.dtype, "download": place.download, "on_event": place.on_event}
    return api.load(method.model or model, loras=method.loras, **here)  # type: ignore[arg-type]


def _is_made(bench: Bench, method: Method, case: Case) -> bool:
    if method.control is not None:
        return (bench.videos(method.name) / f"{case.name}.mp4").is_file()
    folder = bench.videos(method.name) / case.name
    return (folder / "run.json").is_file() and Run.open(folder).status().finished


class _Pace:
    """How far it is, counted in clips of models."""

    def __init__(self, bench: Bench, methods: Sequence[Method], watch: Watch) -> None:
        self.watch, self.began, self.count = watch, time.monotonic(), 0
        clips = clips_for_frames(bench.num_frames, bench.clip_frames, 1)
        todo = [(m, c) for m in methods for c in bench.cases if not _is_made(bench, m, c)]
        self.total = sum(clips for method, _ in todo if method.control is None)
        self.left = {(method.name, case.name) for method, case in todo}
        videos = "1 video" if len(todo) == 1 else f"{len(todo)} videos"
        watch(Tick(0.0 if todo else 1.0, None, f"{videos} to make, {self.total} clips of models"))

    def heard(self, listener: Listener) -> Listener:
        """A listener that counts clips and passes everything on."""

        def hear(event: Event) -> None:
            if isinstance(event, ClipFinished):
                self.count += 1
                self._tell(None)
            listener(event)

        return hear

    def finished(self, method: Method, case: Case) -> None:
        """A video is done."""
        if (method.name, case.name) in self.left:
            self._tell(f"{method.name}/{case.name}")

    def _tell(self, line: str | None) -> None:
        done = min(1.0, self.count / self.total) if self.total else 1.0
        left = (time.monotonic() - self.began) * (1 / done - 1) if self.count and self.total else None
        self.watch(Tick(done, left, line))


# -- scoring


def pocket_metric(out: Path) -> list[Metric]:
    """The metric that knows the truth, where ``out`` holds videos of the pocket suite."""
    if suite_of(out) != "pocket":
        return []
    cases = {file.parent.name: read_json(file) for file in (out / "cases").glob("*/case.json")}
    seeds = {name: int(case[WORLD]) for name, case in cases.items()}
    return [PocketTruth(seeds, reference_window(str(read_json(out / BENCH).get("model"))))]


# -- methods


def _rollout(
    bench: Bench, method: Method, case: Case, index: int, backend: Backend | None, place: Place
) -> Entry | None:
    """One case as a run folder; None where it was stopped early."""
    folder = bench.videos(method.name) / case.name
    window = bench.clip_frames
    overlap = get_policy(method.preset).overlap
    clips = clips_for_frames(bench.num_frames, window, overlap)
    watching: dict[str, Any] = {"on_event": place.on_event, "should_stop": place.should_stop}
    if (folder / "run.json").is_file():
        run = Run.open(folder)
        if not run.status().finished:
            run = api.resume(run, model=backend, **watching)
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
            seed=SEED + SEED_STRIDE * index,
            num_frames=window,
            **settings,
            **watching,
        )
    if not run.status().finished:
        return None
    return Entry(
        case.name, folder, frames=bench.num_frames, truth=case.truth, about={**case.about, "method": method.about}
    )


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
