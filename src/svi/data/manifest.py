"""What there is to train on: manifests and folders of captioned videos become one list of items.

Reads names and captions only; opens no video. Kinds: JSON lines, one object per video; the published layout (a folder
per category with a csv of ``Filename`` and ``Video Description``); folders of videos with a caption file of the same stem
beside each; a single video. What lacks a caption or a file is listed with its reason and left out. The published loader
invents captions ("The mountain", "A video from Cats category") for such videos; nothing is invented here.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from svi.errors import UserError, nearest

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
FILE_COLUMN, CAPTION_COLUMN = "Filename", "Video Description"
NO_CAPTION = "no caption"

Text = Annotated[str, StringConstraints(strict=True, strip_whitespace=True)]
Name = Annotated[str, StringConstraints(strict=True, strip_whitespace=True, min_length=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Line(BaseModel):
    """One line of a manifest in JSON lines."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    video: Name = Field(description="The video file, relative to the manifest.")
    caption: Text = Field("", description="What happens in it.")
    id: Name | None = Field(None, description="A name of its own; left out, the path and the start.")
    start_s: Seconds = Field(0.0, description="Use the video from here on, in seconds.")
    end_s: Seconds | None = Field(None, description="Use the video up to here, in seconds.")
    fps: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] | None = Field(
        None, description="Frames per second to take it for, instead of its own timestamps."
    )


@dataclass(frozen=True)
class VideoItem:
    """A captioned video, or a part of one.

    Attributes:
        id: unique in its manifest.
        path: of the file.
        caption: never empty.
        start_s, end_s: the part to use, in seconds from the first frame; ``end_s`` None = to the end.
        fps: replaces the file's timestamps where given.
    """

    id: str
    path: Path
    caption: str
    start_s: float = 0.0
    end_s: float | None = None
    fps: float | None = None


@dataclass(frozen=True)
class Skipped:
    """Something that is not used: what, why, and what to do about it."""

    name: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class Manifest:
    """Items and what was left out. ``root``: the folder that relative paths start from."""

    root: Path
    items: tuple[VideoItem, ...]
    skipped: tuple[Skipped, ...] = ()


def load_manifest(path: Path | str, *, caption: str | None = None) -> Manifest:
    """The captioned videos at ``path``, a manifest, a folder or a video.

    Args:
        path: what to read; see the module for the kinds.
        caption: of every video that has none of its own.

    Raises:
        UserError: where there is nothing of the kind, or a manifest or csv cannot be understood (with the line).
    """
    path = Path(path)
    if path.is_dir():
        found = list(_folder(path))
        if not found:
            raise _nothing_in(path)
        root = path
    elif not path.exists():
        raise UserError(f"{path} does not exist: give a manifest (.jsonl), a folder of videos or a video")
    else:
        root = path.parent
        kinds = {".jsonl": _json_lines, ".ndjson": _json_lines, ".csv": _table}
        kinds.update(dict.fromkeys(VIDEO_SUFFIXES, _single))
        if path.suffix.lower() not in kinds:
            raise UserError(
                f"{path} is no manifest: give a .jsonl file (one object per line), a .csv with {FILE_COLUMN!r} and "
                f"{CAPTION_COLUMN!r}, a folder of videos or a video ({' '.join(VIDEO_SUFFIXES)})"
            )
        found = list(kinds[path.suffix.lower()](path))
    return _sorted_out(root, found, (caption or "").strip())


def manifest_line(item: VideoItem, folder: Path) -> str:
    """The line of a JSON-lines manifest in ``folder`` that stands for ``item``."""
    values = {
        "video": Path(os.path.relpath(item.path.resolve(), folder.resolve())).as_posix(),
        "caption": item.caption,
        "id": item.id,
        "start_s": item.start_s or None,
        "end_s": item.end_s,
        "fps": item.fps,
    }
    return json.dumps({key: value for key, value in values.items() if value is not None}, ensure_ascii=False)


@dataclass(frozen=True)
class _Found:
    """A video as it is listed. ``where``: the line that lists it; ``why``: why it has no caption, if it has none."""

    path: Path
    line: Line
    where: str
    why: str = NO_CAPTION
    remedy: str = 'write what happens in it ("caption": "...")'


def _sorted_out(root: Path, found: Sequence[_Found], caption: str) -> Manifest:
    """Items with unique ids; what has no caption or no file goes to ``skipped``."""
    items: dict[str, VideoItem] = {}
    skipped = []
    for entry in found:
        line, name = entry.line, _name(entry, root)
        words = line.caption or caption
        if not entry.path.is_file():
            what = "is a folder" if entry.path.is_dir() else "there is no such file"
            skipped.append(Skipped(name, what, f"correct the path in {entry.where}"))
        elif not words:
            skipped.append(Skipped(name, entry.why, entry.remedy))
        elif line.end_s is not None and line.end_s <= line.start_s:
            skipped.append(
                Skipped(name, f"ends at {line.end_s:g} s, before it starts", f"correct end_s in {entry.where}")
            )
        elif name in items:
            raise UserError(f"{entry.where}: {name!r} is listed already; give each line an id of its own")
        else:
            items[name] = VideoItem(name, entry.path, words, line.start_s, line.end_s, line.fps)
    return Manifest(root, tuple(items.values()), tuple(skipped))


def _name(entry: _Found, root: Path) -> str:
    if entry.line.id is not None:
        return entry.line.id
    path = entry.path
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
    return f"{name}@{entry.line.start_s:g}" if entry.line.start_s else name


# -- kinds of manifest -------------------------------------------------------------------------------------------------


def _json_lines(path: Path) -> Iterator[_Found]:
    lines = _text(path).splitlines()
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        where = f"{path}, line {number}"
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error}); one object per line is wanted") from None
        line = _checked(values, where)
        if "://" in line.video:
            raise UserError(f"{where}: {line.video} is an address; fetch the video and name the file")
        yield _Found(path.parent / line.video, line, where)
    if not any(text.strip() for text in lines):
        raise UserError(f'{path} is empty: write one line per video, {{"video": "a.mp4", "caption": "a cat walks"}}')


def _checked(values: Any, where: str) -> Line:
    if not isinstance(values, dict):
        raise UserError(f'{where}: an object is wanted, {{"video": "a.mp4", "caption": "..."}}, not {values!r:.40}')
    try:
        return Line.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            raise UserError(f"{where}: unknown key {key!r}: {nearest(key, Line.model_fields)}") from None
        if first["type"] == "missing":
            raise UserError(f"{where}: {key!r} is missing") from None
        raise UserError(f"{where}: {key}: {first['msg'].lower()}, not {first['input']!r:.60}") from None


def _table(path: Path) -> Iterator[_Found]:
    """Rows of a csv as published. Only two of its columns are read."""
    reader = csv.DictReader(io.StringIO(_text(path)), strict=True)
    try:
        header = [name.strip() for name in reader.fieldnames or ()]
        for column in (FILE_COLUMN, CAPTION_COLUMN):
            if column not in header:
                hint = nearest(column, header)
                raise UserError(f"{path} has no column {column!r} ({hint}); the first line must name the columns")
        reader.fieldnames = header
        seen: set[str] = set()
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            file = (row[FILE_COLUMN] or "").strip()
            if not file:
                raise UserError(f"{where}: {FILE_COLUMN} is empty")
            if file in seen:
                raise UserError(f"{where}: {file!r} is listed already; keep one of the lines")
            seen.add(file)
            words = (row[CAPTION_COLUMN] or "").strip()
            remedy = f"fill in {CAPTION_COLUMN!r} in {where}"
            yield _Found(path.parent / file, Line(video=file, caption=words), where, remedy=remedy)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not a csv ({error})") from None


def _single(path: Path) -> Iterator[_Found]:
    yield _beside(path)


def _beside(path: Path, listed_in: Path | None = None) -> _Found:
    """A video whose caption stands in a text file of the same stem."""
    file = path.with_suffix(".txt")
    remedy = f"write what happens in it into {file.name} beside it" + (f", or list it in {listed_in}" * bool(listed_in))
    where = str(listed_in or path)
    line = Line(video=path.name)
    if not file.is_file():
        why = f"no caption: there is no {file.name} beside it"
        why += f" and {listed_in.name} does not list it" if listed_in else ""
        return _Found(path, line, where, why, remedy)
    try:
        words = file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError:
        return _Found(path, line, where, f"its caption {file.name} is not UTF-8 text", f"save {file.name} as UTF-8")
    except OSError as error:
        why = f"its caption {file.name} cannot be read ({error.strerror})"
        return _Found(path, line, where, why, f"make {file.name} readable")
    return _Found(path, Line(video=path.name, caption=words), where, f"its caption {file.name} is empty", remedy)


def _folder(root: Path) -> Iterator[_Found]:
    """All videos below ``root``, folder by folder: as its csv lists them, otherwise with caption files beside them."""
    for folder, files in _walk(root):
        videos = [folder / name for name in files if name.lower().endswith(VIDEO_SUFFIXES)]
        tables = [folder / name for name in files if name.lower().endswith(".csv")]
        if not tables:
            yield from map(_beside, videos)
            continue
        own = [table for table in tables if table.stem == folder.name]
        if len(own or tables) > 1:
            raise UserError(f"{folder} has {len(tables)} csv files: keep one, or call it {folder.name}.csv")
        table = (own or tables)[0]
        listed = list(_table(table))
        yield from listed
        known = {entry.path for entry in listed}
        yield from (_beside(video, table) for video in videos if video not in known)


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders below ``root`` with their visible files, sorted; links to folders are followed, each folder once."""
    seen: set[str] = set()
    for place, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(place), sorted(name for name in files if not name.startswith("."))


def _nothing_in(folder: Path) -> UserError:
    lists = sorted(folder.glob("*.jsonl"))
    hint = f"give the manifest itself ({lists[0]})" if lists else f"looked for {' '.join(VIDEO_SUFFIXES)}"
    return UserError(f"there are no videos in {folder}: {hint}")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def skipped_lines(skipped: Iterable[Skipped]) -> list[str]:
    """One line for each: name, reason and remedy."""
    return [f"{entry.name}: {entry.reason}; {entry.remedy}" for entry in skipped]
