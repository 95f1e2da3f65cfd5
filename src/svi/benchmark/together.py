"""Videos of one method made side by side in a batch: faster than one after the other, and stopped and gone on with as easily.

While a batch is under way it is a folder with a file per clip, each with all that the next one needs; at the end each video is
encoded and the folder removed. Also makes videos whose last clip comes first. Knows nothing about what is scored.

    OUT/videos/METHOD/.making/KEY/batch.json     which cases
    OUT/videos/METHOD/.making/KEY/0007.safetensors    the eighth clip that was made: its frames of each case, and the memory
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from svi import api
from svi.backends.base import Backend
from svi.benchmark.folder import Bench
from svi.benchmark.methods import Method
from svi.conditioning.memory import ClipMemory
from svi.conditioning.policy import ConditioningPolicy, get_policy
from svi.errors import UserError
from svi.evaluation.sources import Entry
from svi.evaluation.suites import Case
from svi.files import explained, read_json, remove_leftovers, write_atomic, write_json
from svi.generation.clip import Clip, ClipPlan
from svi.generation.images import load_reference
from svi.generation.manifest import resolve_settings
from svi.generation.plans import clip_plan
from svi.generation.rollout import ShouldStop, as_made, rollout_batch
from svi.generation.stitch import clips_for_frames
from svi.generation.storyboard import storyboard_from_prompts
from svi.options import Place
from svi.pocket.bench import pocket_prompts, write_video

MAKING, CASES, FRAMES, MEMORY = ".making", "batch.json", "frames", "memory."


@dataclass(frozen=True)
class Batch:
    """Cases of one method that are made side by side: all that a process needs for it.

    Attributes:
        seeds: of the noise of each case.
        out: folder of the method's videos.
        model, device, dtype, download: as in ``svi.load``.
        num_frames: of the video, at least; ``clip_frames``: of a clip.
    """

    method: Method
    cases: tuple[Case, ...]
    seeds: tuple[int, ...]
    out: Path
    num_frames: int
    clip_frames: int
    model: str
    device: str | None = None
    dtype: str | None = None
    download: bool = False

    @property
    def policy(self) -> ConditioningPolicy:
        """How clips hand over."""
        return get_policy(self.method.preset)

    @property
    def clips(self) -> int:
        """Of each video."""
        return clips_for_frames(self.num_frames, self.clip_frames, self.policy.overlap)

    @property
    def folder(self) -> Path:
        """Where it is while it is under way; other cases are another folder."""
        names = "\n".join(case.name for case in self.cases)
        return self.out / MAKING / hashlib.sha256(names.encode()).hexdigest()[:12]

    def video(self, case: Case) -> Path:
        """Where a finished video goes."""
        return self.out / f"{case.name}.mp4"


def batches(
    bench: Bench, method: Method, model: str, place: Place, lacking: Sequence[str], size: int
) -> Iterator[Batch]:
    """The cases ``lacking`` of a method, in batches of at most ``size``; those that were begun come first, as they were."""
    out = bench.videos(method.name)
    index = {case.name: number for number, case in enumerate(bench.cases)}
    begun = [read_json(file)["cases"] for file in sorted(out.glob(f"{MAKING}/*/{CASES}"))]
    groups = [names for names in begun if set(names) <= set(index) and set(names) & set(lacking)]
    rest = [name for name in lacking if not any(name in names for names in groups)]
    groups += [rest[start : start + size] for start in range(0, len(rest), size)]
    for names in groups:
        yield Batch(
            method,
            tuple(bench.cases[index[name]] for name in names),
            tuple(bench.seed(index[name]) for name in names),
            out,
            bench.num_frames,
            bench.clip_frames,
            method.model or model,
            place.device,
            place.dtype,
            place.download,
        )


def make(batch: Batch, *, clip_made: Callable[[], None] = lambda: None, should_stop: ShouldStop | None = None) -> float:
    """Make the videos of a batch, or go on with them; seconds that it took.

    Args:
        clip_made: called after each clip of all videos.
        should_stop: asked between steps.

    Raises:
        svi.generation.rollout.Stopped: when ``should_stop`` says so; what is made is kept.
        UserError: for a model that cannot be loaded, or a damaged file.
    """
    began = time.monotonic()
    backend = _backend(batch.model, batch.method.loras, batch.device, batch.dtype, batch.download)
    with explained(batch.folder, "create"):
        batch.folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(batch.folder)
    write_json(batch.folder / CASES, {"cases": [case.name for case in batch.cases]})
    kept = _clips(batch.folder)
    videos = [_plans(batch, backend, case, seed) for case, seed in zip(batch.cases, batch.seeds, strict=True)]
    plans = as_made(list(zip(*videos, strict=True)), batch.policy)
    memory = _memory(kept[-1]) if kept else _start(batch, backend)
    rest = rollout_batch(plans[len(kept) :], memory, backend=backend, policy=batch.policy, should_stop=should_stop)
    for number, clips in enumerate(rest, len(kept)):
        _keep(batch.folder / f"{number:04d}.safetensors", clips)
        clip_made()
    files = as_made(_clips(batch.folder), batch.policy)
    for number, case in enumerate(batch.cases):
        if not batch.video(case).is_file():
            write_video(batch.video(case), _frames(files, number), backend.geometry.fps)
    shutil.rmtree(batch.folder)
    with contextlib.suppress(OSError):  # others are under way
        batch.folder.parent.rmdir()
    return time.monotonic() - began


def entry_of(bench: Bench, method: Method, case: Case) -> Entry:
    """A finished video as a line of the manifest."""
    policy = get_policy(method.preset)
    window = bench.clip_frames
    clips = clips_for_frames(bench.num_frames, window, policy.overlap)
    # With inverted hand-off the frames that two clips share belong to the later one; what of the overlap lies at its front is
    # the reference.
    first = window if policy.hand_off != "inverted" else window - policy.overlap + 1
    return Entry(
        case.name,
        bench.videos(method.name) / f"{case.name}.mp4",
        frames=bench.num_frames,
        reference=case.image,
        truth=case.truth,
        borders=tuple(first + (window - policy.overlap) * clip for clip in range(clips - 1)),
        about={**case.about, "method": method.about, "preset": method.preset},
    )


@lru_cache(maxsize=1)
def _backend(model: str, loras: tuple[str, ...], device: str | None, dtype: str | None, download: bool) -> Backend:
    return api.load(model, loras=loras, device=device, dtype=dtype, download=download)


def _plans(batch: Batch, backend: Backend, case: Case, seed: int) -> list[ClipPlan]:
    """The plans of a video, in its order: what a run with the same settings would make."""
    geometry, window = backend.geometry, batch.clip_frames
    story = storyboard_from_prompts(pocket_prompts(case, window, batch.policy.overlap, batch.clips, geometry.fps))
    settings = resolve_settings(
        geometry,
        backend.info,
        story,
        width=geometry.width,
        height=geometry.height,
        preset=batch.method.preset,
        seed=seed,
        num_frames=window,
        loras=dict(backend.info.lora_strengths),
        **batch.method.settings,
    )
    return [clip_plan(story, settings, clip) for clip in range(batch.clips)]


def _start(batch: Batch, backend: Backend) -> ClipMemory:
    geometry = backend.geometry
    size = (geometry.width, geometry.height)
    return ClipMemory.start(torch.stack([load_reference(case.image, size, geometry).image for case in batch.cases]))


# -- clips on disk -----------------------------------------------------------------------------------------------------


def _keep(file: Path, clips: Sequence[Clip]) -> None:
    memory = ClipMemory.together([clip.memory for clip in clips]).tensors()
    tensors = {FRAMES: torch.stack([clip.new_frames for clip in clips])}
    write_atomic(file, save({**tensors, **{MEMORY + name: each.contiguous() for name, each in memory.items()}}))


def _clips(folder: Path) -> list[Path]:
    """The unbroken row of clips from the first that was made."""
    files: list[Path] = []
    while (file := folder / f"{len(files):04d}.safetensors").is_file():
        files.append(file)
    return files


def _memory(file: Path) -> ClipMemory:
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from None
    return ClipMemory.from_tensors(
        {name.removeprefix(MEMORY): tensor for name, tensor in tensors.items() if name.startswith(MEMORY)}
    )


def _frames(files: Sequence[Path], video: int) -> Iterator[np.ndarray[Any, Any]]:
    """The frames ``(H, W, 3)`` uint8 of one video."""
    for file in files:
        try:
            with safe_open(str(file), "numpy") as opened:
                frames = opened.get_slice(FRAMES)[video]
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from None
        yield from frames


def _damaged(file: Path, error: Exception) -> UserError:
    return UserError(f"{file} is damaged ({error}): remove {file.parent} to make those videos again")
