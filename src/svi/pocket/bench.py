"""The pocket suite of ``svi bench``: worlds as cases with their true video, controls, and the metric that knows the worlds.

The measures are those of ``svi drift`` (:mod:`svi.pocket.drift.gauge`), taken from the finished video, as it is watched.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from svi.backends.base import Backend
from svi.backends.peek import peek
from svi.errors import UserError
from svi.evaluation.fakes import FAKES, Shape
from svi.evaluation.metric import Better, Frames, Need, Reading, Sample, Score, Skipped
from svi.evaluation.reader import frames as read_frames
from svi.evaluation.reader import look
from svi.evaluation.runner import Tick, Watch
from svi.evaluation.selftest import Finding, Source, run
from svi.evaluation.statistics import late, slopes
from svi.evaluation.suites import Case
from svi.files import explained, replacing, sync_file, write_json
from svi.generation.stitch import clips_for_frames
from svi.generation.writer import encode_segment, join_segments
from svi.pocket.drift.experiment import STANDING, Arm
from svi.pocket.drift.gauge import MEASURES, VERSION, Gauge
from svi.pocket.drift.rollouts import Window, decoded, world_of, worlds
from svi.pocket.world import World

WORLD = "world"  # key of a case's ``about``
CHUNK = 160  # frames
MINUTE_S = 60.0


def reference_window(model: str) -> Window:
    """Clips of a model chained by their last frame: their length is that of a world's beats, for every preset."""
    return Window.of(Arm(), peek(model)[0])


def world_for(seed: int, window: Window, num_frames: int) -> World:
    """The world of a case: everything in it goes on as it began."""
    return world_of(STANDING, seed, window, clips_for_frames(num_frames, window.num_frames, 1))


def pocket_cases(out: Path, count: int, window: Window, num_frames: int) -> list[Case]:
    """The first ``count`` held-out worlds of a standing camera: first frame, captions by beat, and the truth without loss.

    Written to ``out/cases`` where they are not there yet.
    """
    cases = []
    for number, seed in enumerate(worlds(STANDING, count, 0)):
        name = f"{number:03d}"
        folder = out / "cases" / name
        frame, truth, about = folder / "frame.png", folder / "truth.mkv", folder / "case.json"
        world = world_for(seed, window, num_frames)
        captions = tuple(world.caption(beat) for beat in range(int(num_frames / window.fps / world.beat_s) + 2))
        told = {WORLD: seed, "beat_s": world.beat_s, "fps": window.fps, "captions": list(captions)}
        if not about.is_file():
            with explained(folder, "create"):
                folder.mkdir(parents=True, exist_ok=True)
            _write_lossless(truth, _frames(world, num_frames, window.fps), window)
            with replacing(frame) as temporary:
                Image.fromarray(world.render(0.0)).save(temporary, format="PNG")
            write_json(about, told)
        cases.append(Case(name, frame, captions, truth=truth, about={WORLD: seed, "beat_s": world.beat_s}))
    return cases


def pocket_prompts(case: Case, window: int, overlap: int, clips: int, fps: float) -> list[str]:
    """The caption of the beat in which each clip begins, whatever the preset's overlap."""
    assert isinstance(case.prompts, tuple)
    beat_s, last = float(case.about["beat_s"]), len(case.prompts) - 1
    starts = (clip * (window - overlap) / fps for clip in range(clips))
    return [case.prompts[min(last, int(start / beat_s + 1e-6))] for start in starts]


class PocketTruth:
    """How far a video of the pocket world is from the truth, clip by clip, by every measure of ``svi drift``.

    ``value``: share of things that are whole (right size and shape), mean over the last tenth of the clips, in percent.
    ``series``: every measure per clip. ``extra``: ``NAME_late`` (mean over the last tenth) and ``NAME_slope`` (Theil-Sen
    per minute).

    Args:
        worlds: the world's seed by sample.
        window: clips that the worlds' beats are made for.
    """

    name = "pocket_truth"
    version = f"1.{VERSION}"
    unit = "%"
    better = Better.HIGHER
    needs = frozenset({Need.CLIPS, Need.TRUTH})
    source = "svi.pocket.drift.gauge"

    def __init__(self, worlds: Mapping[str, int], window: Window) -> None:
        self.worlds, self.window = dict(worlds), window

    def key(self) -> str:
        return str(self.window)  # which world it is, the hash of its true video tells

    def missing(self) -> str | None:
        return (
            None if self.worlds else "pocket_truth: these are no videos of the pocket suite (svi bench generate pocket)"
        )

    def start(self, sample: Sample) -> Reading:
        if sample.name not in self.worlds:
            raise UserError(f"the world of {sample.name} is not known")
        return _Clips(sample, world_for(self.worlds[sample.name], self.window, sample.num_frames))


class _Clips:
    def __init__(self, sample: Sample, world: World) -> None:
        usual = float(np.median(np.diff([0, *sample.borders])))
        inside = [border for border in sample.borders if sample.num_frames - border >= usual / 2]  # a stump is no clip
        self.borders, self.starts, self.fps = [*inside, sample.num_frames], [0, *inside], sample.fps
        self.gauge = Gauge(world, fps=round(sample.fps))
        self.waiting: list[np.ndarray] = []
        self.count = 0
        self.found: dict[str, list[float]] = {name: [] for name in MEASURES}

    def add(self, batch: Frames) -> None:
        for frame in batch.frames:
            self.waiting.append(frame)
            self.count += 1
            if self.count == self.borders[len(self.found["psnr"])]:
                for name, value in self.gauge.clip(np.stack(self.waiting)).items():
                    self.found[name].append(value)
                self.waiting = []

    def result(self) -> Score | Skipped:
        clips = len(self.found["psnr"])
        if clips < 2:
            return Skipped("fewer than two clips")
        per_minute = MINUTE_S * self.fps / float(np.median(np.diff(self.borders))) if clips > 2 else float("nan")
        extra = {}
        for name, values in self.found.items():
            row = np.array(values)[None]
            if np.isfinite(row).any():
                extra[f"{name}_late"] = float(late(row)[0])
                extra[f"{name}_slope"] = float(slopes(row)[0]) * per_minute
        if not np.isfinite(extra.get("whole_late", np.nan)):
            return Skipped("nothing that could be whole is in this world")
        return Score(100 * extra["whole_late"], {n: (self.starts, v) for n, v in self.found.items()}, extra)


def control_frames(control: str, source: Path, shape: Shape, backend: Backend | None) -> Iterator[np.ndarray]:
    """The frames of a control of ``svi bench``, made of a video: one of :data:`svi.evaluation.fakes.FAKES`, or ``vae``."""
    frames = read_frames(look(source))
    if control == "vae":
        assert backend is not None
        return _through(FAKES["truth"].make(frames, shape), backend.geometry.num_frames, backend)
    return FAKES[control].make(frames, shape)


def _through(frames: Iterator[np.ndarray], window: int, backend: Backend) -> Iterator[np.ndarray]:
    """Frames through the VAE, a window at a time; the last frame of a window begins the next."""
    kept: list[np.ndarray] = []
    overlap = 0
    for frame in frames:
        kept.append(frame)
        if len(kept) == window:
            yield from decoded(np.stack(kept), backend)[overlap:]
            kept, overlap = kept[-1:], 1
    if len(kept) > overlap:  # a tail shorter than a window: padded by its last frame
        padded = np.stack([*kept, *[kept[-1]] * (window - len(kept))])
        yield from decoded(padded, backend)[overlap : len(kept)]


def write_video(path: Path, frames: Iterator[np.ndarray], fps: int) -> None:
    """Frames as H.264, encoded as those of runs are; appears whole."""
    with tempfile.TemporaryDirectory(prefix="svi-bench-") as folder:
        segments, part, start = [], [], 0
        for frame in frames:
            part.append(frame)
            if len(part) == CHUNK:
                segments.append(_segment(Path(folder), part, fps, start))
                start, part = start + len(part), []
        if part:
            segments.append(_segment(Path(folder), part, fps, start))
        join_segments(segments, path, fps=fps)


def _segment(folder: Path, frames: Sequence[np.ndarray], fps: int, start: int) -> Path:
    path = folder / f"{start:08d}.mp4"
    path.write_bytes(encode_segment(torch.from_numpy(np.stack(frames)), fps=fps, start_frame=start))
    return path


def _frames(world: World, num_frames: int, fps: int) -> Iterator[np.ndarray]:
    for start in range(0, num_frames, CHUNK):
        yield from world.clip(start / fps, min(CHUNK, num_frames - start), fps)


def _write_lossless(path: Path, frames: Iterator[np.ndarray], window: Window) -> None:
    """Frames as FFV1, bit for bit; appears whole."""
    with replacing(path) as temporary:
        with av.open(str(temporary), "w", format="matroska") as container:
            stream = container.add_stream("ffv1", rate=window.fps)
            stream.height, stream.width = window.size
            stream.pix_fmt = "bgr0"
            for number, frame in enumerate(frames):
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                picture.pts, picture.time_base = number, Fraction(1, window.fps)
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
        sync_file(temporary)


# -- the self-test

SELF_TEST = Shape(num_frames=8 * 16, clip_frames=16)
SELF_TEST_FPS = 16


def self_test(count: int, watch: Watch) -> list[Finding]:
    """The rules of :mod:`svi.evaluation.selftest` on ``count`` worlds in which something moves all the time."""
    sources = []
    for seed in range(1, count + 1):
        world = World.sample(seed, family="things", camera="pans", lighting="day")

        def frames(world: World = world) -> Iterator[np.ndarray]:
            return _frames(world, SELF_TEST.num_frames, SELF_TEST_FPS)

        sources.append(Source(f"world {seed}", frames, SELF_TEST_FPS, SELF_TEST))
    began = time.monotonic()

    def tell(done: int, total: int) -> None:
        left = (time.monotonic() - began) / done * (total - done)
        watch(Tick(done / total, left, f"{done}/{total} videos"))

    return run(sources, watch=tell)
