"""Which videos there are: manifests, folders of videos or PNG frames, and run folders become one list of entries.

Opens no video. A name is what a manifest says, else the path below the folder without its ending; it is a label that
results are paired by, and nothing is ever read out of it. Knows nothing about metrics.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from svi.data.manifest import VIDEO_SUFFIXES
from svi.data.video import UnusableVideoError
from svi.errors import UserError, nearest
from svi.evaluation.metric import Sample
from svi.evaluation.reader import Video, look, natural
from svi.files import write_atomic

MANIFEST = "manifest.jsonl"
RUN = "run.json"

Name = Annotated[str, StringConstraints(strict=True, strip_whitespace=True, min_length=1, max_length=200)]
FrameNumber = Annotated[int, Field(strict=True, ge=0)]


class Line(BaseModel):
    """One line of a manifest of videos to score."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = Field(description="Unique here; videos of two methods are compared where their names are equal.")
    video: Name = Field(description="Video, folder of PNG frames, or run folder, relative to the manifest.")
    fps: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] | None = Field(
        None, description="Frames per second to take it for, instead of its own timestamps."
    )
    frames: Annotated[int, Field(strict=True, ge=1)] | None = Field(None, description="Score only the first so many.")
    reference: Name | None = Field(None, description="The image that the video started from.")
    truth: Name | None = Field(None, description="The video as it should be, frame by frame.")
    audio: Name | None = Field(None, description="What drove it.")
    prompts: tuple[tuple[FrameNumber, str], ...] = Field((), description="First frame and text of each prompt.")
    borders: tuple[FrameNumber, ...] = Field((), description="First frames of clips 1, 2, ...")
    about: dict[str, Any] = Field(default_factory=dict, description="Anything else that is known; not looked at here.")


@dataclass(frozen=True)
class Entry:
    """A video that is listed; see :class:`Line`. Paths are absolute."""

    name: str
    video: Path
    fps: float | None = None
    frames: int | None = None
    reference: Path | None = None
    truth: Path | None = None
    audio: Path | None = None
    prompts: tuple[tuple[int, str], ...] = ()
    borders: tuple[int, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """Videos, and what was found but cannot be used: its name and why."""

    path: Path
    entries: tuple[Entry, ...]
    left_out: tuple[tuple[str, str], ...] = ()


def list_videos(path: Path | str) -> Listing:
    """The videos at ``path``: a manifest, a folder with one, a run folder, a folder of runs, videos or PNG frames.

    Raises:
        UserError: where there is nothing of the kind, or a line of a manifest cannot be understood.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: give a folder of videos, a run, or a manifest ({MANIFEST})")
    if path.is_file():
        found = list(_manifest(path)) if path.suffix.lower() == ".jsonl" else [Entry(path.stem, path.absolute())]
    elif (path / MANIFEST).is_file():
        found = list(_manifest(path / MANIFEST))
    else:
        found = [Entry(name, video) for name, video in _folder(path.absolute())]
    if not found:
        kinds = f"videos ({' '.join(VIDEO_SUFFIXES)}), folders of PNG frames, run folders or {MANIFEST}"
        raise UserError(f"{path} holds nothing to score: put {kinds} there")
    entries, left_out = [], []
    for entry in found:
        try:
            entries.append(_of_run(entry) if (entry.video / RUN).is_file() else entry)
        except UserError as error:
            left_out.append((entry.name, str(error)))
    return Listing(path, tuple(entries), tuple(left_out))


def open_sample(entry: Entry) -> tuple[Sample, Video]:
    """What a metric is told of an entry, and the video to read.

    Raises:
        UnusableVideoError: where the video, its reference or its borders cannot be used.
    """
    video = look(entry.video, entry.fps, limit=entry.frames)
    reference = None
    if entry.reference is not None:
        reference = _picture(entry.reference, (video.width, video.height))
    borders = sorted({border for border in entry.borders if 0 < border < video.num_frames})
    sample = Sample(
        name=entry.name,
        video=entry.video,
        fps=video.fps,
        num_frames=video.num_frames,
        height=video.height,
        width=video.width,
        reference=reference,
        truth=entry.truth,
        prompts=entry.prompts,
        borders=borders,
        audio=entry.audio,
    )
    return sample, video


def write_manifest(path: Path, entries: Sequence[Entry]) -> None:
    """Write entries as a manifest with paths relative to it, atomically."""
    write_atomic(path, "".join(_line(entry, path.parent) + "\n" for entry in entries).encode())


def _line(entry: Entry, folder: Path) -> str:
    def relative(file: Path | None) -> str | None:
        return None if file is None else Path(os.path.relpath(file.absolute(), folder.absolute())).as_posix()

    values: dict[str, Any] = {
        "name": entry.name,
        "video": relative(entry.video),
        "fps": entry.fps,
        "frames": entry.frames,
        "reference": relative(entry.reference),
        "truth": relative(entry.truth),
        "audio": relative(entry.audio),
        "prompts": entry.prompts,
        "borders": entry.borders,
        "about": entry.about,
    }
    kept = {key: value for key, value in values.items() if value not in (None, (), {})}
    return json.dumps(kept, ensure_ascii=False)


def _manifest(path: Path) -> Iterator[Entry]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    seen: dict[str, int] = {}
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        where = f"{path} line {number}"
        entry = _entry(_checked(text, where), path.parent.absolute())
        if entry.name in seen:
            raise UserError(f"{where}: {entry.name!r} stands in line {seen[entry.name]} already: names are unique")
        seen[entry.name] = number
        yield entry


def _checked(text: str, where: str) -> Line:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where} is not JSON ({error})") from None
    try:
        return Line.model_validate(data)
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in mistake["loc"]) or "the line"
        if mistake["type"] == "extra_forbidden":
            raise UserError(f"{where}: unknown key {name!r}: {nearest(name, Line.model_fields)}") from None
        raise UserError(f"{where}: {name}: {mistake['msg']}") from None


def _entry(line: Line, folder: Path) -> Entry:
    def absolute(name: str | None) -> Path | None:
        return None if name is None else folder / name

    return Entry(
        name=line.name,
        video=folder / line.video,
        fps=line.fps,
        frames=line.frames,
        reference=absolute(line.reference),
        truth=absolute(line.truth),
        audio=absolute(line.audio),
        prompts=line.prompts,
        borders=line.borders,
        about=dict(line.about),
    )


def _folder(path: Path) -> Iterator[tuple[str, Path]]:
    """Names and paths of what a folder holds, at any depth; a run and a folder of pictures are one video each."""
    if (path / RUN).is_file() or _holds_pictures(path):
        yield path.name, path
        return
    found = list(_below(path))
    stems = [video.with_suffix("").relative_to(path).as_posix() for video in found]
    for stem, video in zip(stems, found, strict=True):
        unique = video.is_dir() or stems.count(stem) > 1
        yield (video.relative_to(path).as_posix() if unique else stem), video


def _below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir(), key=lambda path: natural(path.name)):
        if path.name.startswith("."):
            continue
        if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES:
            yield path
        elif path.is_dir():
            if (path / RUN).is_file() or _holds_pictures(path):
                yield path
            else:
                yield from _below(path)


def _holds_pictures(path: Path) -> bool:
    """Pictures, no video and no folder: a preview beside a video, or a reference beside runs, is not a frame."""
    found = [file for file in path.iterdir() if not file.name.startswith(".")]
    endings = {file.suffix.lower() for file in found}
    return ".png" in endings and not endings & set(VIDEO_SUFFIXES) and not any(file.is_dir() for file in found)


def _of_run(entry: Entry) -> Entry:
    """The video of a run folder, with its reference, prompts and clip borders.

    Raises:
        UserError: for a run that has no finished video.
    """
    from svi.generation.run import Run

    run = Run.open(entry.video)
    clips = list(run.clips())
    video = run.path / "video.mp4"
    if not clips:
        raise UserError("the run has no finished clip yet")
    if not video.is_file():
        raise UserError(f"the run has no video.mp4 yet: svi resume {run.path}, or svi export {run.path}")
    prompts: list[tuple[int, str]] = []
    for clip in clips:
        if not prompts or prompts[-1][1] != clip.prompt:
            prompts.append((clip.start_frame, clip.prompt))
    reference = run.path / "reference.png"
    return Entry(
        name=entry.name,
        video=video,
        fps=entry.fps or float(run.settings.fps),
        frames=entry.frames,
        reference=entry.reference or (reference if reference.is_file() else None),
        truth=entry.truth,
        audio=entry.audio,
        prompts=entry.prompts or tuple(prompts),
        borders=entry.borders or tuple(clip.start_frame for clip in clips[1:]),
        about={
            "preset": run.settings.preset,
            "seed": run.settings.seed,
            "model": run.manifest.model.name,
            **entry.about,
        },
    )


def _picture(path: Path, size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """A reference image in the video's size: scaled to cover it, and cropped in the middle."""
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        raise UnusableVideoError(f"its reference {path} is no readable picture", "correct the manifest") from None
    if picture.size != size:
        scale = max(size[0] / picture.width, size[1] / picture.height)
        large = (max(size[0], round(picture.width * scale)), max(size[1], round(picture.height * scale)))
        picture = picture.resize(large, Image.Resampling.LANCZOS)
        left, top = (large[0] - size[0]) // 2, (large[1] - size[1]) // 2
        picture = picture.crop((left, top, left + size[0], top + size[1]))
    return np.array(picture)
