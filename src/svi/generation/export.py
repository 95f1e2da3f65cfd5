"""A run's video in other forms: mp4, gif, webp, or single frames.

Decodes finished segments one frame at a time; the whole video is never in memory. Knows nothing about how a run is made.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from svi.errors import UserError, nearest
from svi.files import explained, new_folder, publish, temporary_name
from svi.generation.clip_store import SEGMENT
from svi.generation.run import Run
from svi.generation.streamed import StreamDecoder, streamed_frames
from svi.generation.verify import salvage
from svi.generation.writer import encode_segment, join_segments, read_frames

Format = Literal["mp4", "gif", "webp", "frames"]
FORMATS: tuple[Format, ...] = ("mp4", "gif", "webp", "frames")
MAX_SCALE = 16
PIECE = 64  # frames encoded at once when an mp4 has to be encoded again
Frame = NDArray[np.uint8]


@dataclass(frozen=True)
class Span:
    """Frames ``first`` to ``last`` (exclusive) of the video."""

    first: int
    last: int

    @property
    def count(self) -> int:
        return self.last - self.first


def export(
    run: Run,
    target: str | Path | None = None,
    *,
    format: str | None = None,
    range: str | None = None,
    scale: int = 1,
    decoder: StreamDecoder | None = None,
) -> Path:
    """Write the video of ``run`` in another form and return where it is. Never replaces a file.

    Args:
        run: the run; the clips that are finished are exported.
        target: file (or folder, for frames); default: beside the run, under its name.
        format: mp4, gif, webp or frames; default: what ``target`` ends in, else mp4.
        range: ``2-3`` = clips 2 and 3; ``1.5-4s`` = seconds; default: everything.
        scale: enlarge by a whole number, with hard pixels. An mp4 is then encoded again; else it is copied.
        decoder: decode the clips' latents again, in one stream (:mod:`svi.generation.streamed`); None = the frames as made.

    Raises:
        UserError: for an unknown form, a range outside the video, or a place that cannot be written.
    """
    form = pick_format(format, target)
    path = pick_target(run, target, form)
    if not 1 <= scale <= MAX_SCALE:
        raise UserError(f"scale must be from 1 to {MAX_SCALE}, not {scale}")
    span = parse_range(run, range)
    with explained(path):
        if form == "mp4" and scale == 1 and range is None and decoder is None:
            run.finish(path)
            return path
        frames = video_frames(run, span, scale, decoder)
        if form == "frames":
            _write_frames(frames, span, path)
        else:
            _write_file(frames, span, run.status().fps, path, form)
    return path


def save_what_is_left(folder: Path, target: Path | None) -> Path | None:
    """Join the clips of a run whose ``run.json`` cannot be read, at the speed that their segments say.

    Returns:
        The mp4 (default: beside the run), or None where there are no clips.
    """
    segments = sorted(folder.glob(f"clips/*/take-*/{SEGMENT}"))
    rates = [rate for rate in map(frame_rate, segments) if rate]
    if not rates:
        return None
    path = target or folder.resolve().parent / f"{folder.resolve().name}-saved.mp4"
    if path.exists():
        raise UserError(f"{path} exists already and is not replaced: give another --out")
    salvage(folder, path, fps=rates[0])
    return path


def frame_rate(path: Path) -> int | None:
    """Frames per second of a segment, None where it cannot be read."""
    import av

    try:
        with av.open(str(path)) as container:
            rate = container.streams.video[0].guessed_rate or container.streams.video[0].average_rate
    except (av.FFmpegError, OSError, IndexError):
        return None
    return round(rate) if rate else None


def pick_format(format: str | None, target: str | Path | None) -> Format:
    """The format asked for, else the one that the target's name ends in, else mp4."""
    word = format or (Path(target).suffix.lstrip(".").lower() if target else "") or ("frames" if target else "mp4")
    for known in FORMATS:
        if word == known:
            return known
    raise UserError(f"unknown export format {word!r}: {nearest(word, FORMATS)}")


def pick_target(run: Run, target: str | Path | None, form: Format) -> Path:
    """Where to write; a new name beside the run when none is given."""
    if target is not None:
        path = Path(target)
        if path.exists():
            raise UserError(f"{path} exists already and is not replaced: give another --out")
        if not path.parent.is_dir():
            raise UserError(f"cannot write {path}: the folder {path.parent} does not exist")
        return path
    ending = "-frames" if form == "frames" else f".{form}"
    home, name = run.path.resolve().parent, run.path.resolve().name
    names = itertools.chain([f"{name}{ending}"], (f"{name}-{n}{ending}" for n in itertools.count(2)))
    return next(home / each for each in names if not (home / each).exists())


def parse_range(run: Run, text: str | None) -> Span:
    """``None`` = the whole video; ``2-3`` clips (last included), ``1.5-4s`` seconds (last excluded).

    Raises:
        UserError: for words that are no range, and for a range outside the video.
    """
    status = run.status()
    if status.count == 0:
        raise UserError(f"{run.path} has no finished clip to export; make some with: svi resume {run.path}")
    if text is None:
        return Span(0, status.frames)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:-\s*(\d+(?:\.\d+)?))?\s*(s?)\s*", text)
    if not match or (not match[3] and ("." in text)):
        raise UserError(f"range must be clips like 2-3 or seconds like 1.5-4s, not {text!r}")
    first, last = match[1], match[2] or match[1]
    if float(last) < float(first):
        raise UserError(f"the range {text!r} ends before it begins")
    return _seconds(status.frames, status.fps, first, last) if match[3] else _clips(run, int(first), int(last))


def _clips(run: Run, first: int, last: int) -> Span:
    count = run.status().count
    if last >= count:
        raise UserError(f"clip {last} does not exist: the run has clips 0 to {count - 1}")
    clips = {c.index: c for c in run.clips()}
    return Span(clips[first].start_frame, clips[last].start_frame + clips[last].new_frames)


def _seconds(frames: int, fps: float, first: str, last: str) -> Span:
    rate = Fraction(fps)
    begin, end = round(Fraction(first) * rate), min(frames, round(Fraction(last) * rate))
    if begin >= frames or end <= begin:
        raise UserError(f"the range {first}-{last}s is not in the video, which has {frames / fps:g} s")
    return Span(begin, end)


def video_frames(run: Run, span: Span, scale: int = 1, decoder: StreamDecoder | None = None) -> Iterator[Frame]:
    """Frames ``(H, W, 3)`` uint8 of a part of the video, one at a time, enlarged ``scale`` times with hard pixels."""
    shown = _stored(run, span) if decoder is None else _streamed(run, span, decoder)
    for frame in shown:
        yield frame if scale == 1 else frame.repeat(scale, axis=0).repeat(scale, axis=1)


def _streamed(run: Run, span: Span, decoder: StreamDecoder) -> Iterator[Frame]:
    frames = (frame.numpy() for frame in streamed_frames(run, decoder))
    film = itertools.chain.from_iterable(read_frames(path) for path, _ in run.film())
    return itertools.islice(itertools.chain(film, frames), span.first, span.last)


def _stored(run: Run, span: Span) -> Iterator[Frame]:
    film, end = [], 0
    for path, count in run.film():  # of a run that goes on from the user's own video
        film.append((path, end, count))
        end += count
    clips = ((clip.segment, clip.start_frame, clip.new_frames) for clip in run.clips())
    for path, begin, count in itertools.chain(film, clips):
        if begin >= span.last or begin + count <= span.first:
            continue
        for index, frame in enumerate(read_frames(path), begin):
            if index >= span.last:
                return
            if index >= span.first:
                yield frame


def durations_ms(count: int, fps: float, unit_ms: int) -> list[int]:
    """How long each of ``count`` frames is shown: whole units (GIF: 10 ms) whose sum does not drift from ``fps``."""
    ends = [round(1000 / unit_ms * (i + 1) / fps) for i in range(count)]
    return [unit_ms * (end - begin) for begin, end in zip([0, *ends], ends, strict=False)]


def _write_frames(frames: Iterator[Frame], span: Span, path: Path) -> None:
    with new_folder(path) as folder:
        for index, frame in enumerate(frames, span.first):
            Image.fromarray(frame).save(folder / f"{index:06d}.png", format="PNG")


def _write_file(frames: Iterator[Frame], span: Span, fps: int, path: Path, form: Format) -> None:
    if form == "mp4":
        _encode_mp4(frames, path, fps)
        return
    temporary = temporary_name(path)
    try:
        _encode_animation(frames, temporary, span.count, fps, form)
        publish(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _encode_animation(frames: Iterator[Frame], path: Path, count: int, fps: float, form: Format) -> None:
    images = (Image.fromarray(frame) for frame in frames)
    settings: dict[str, Any] = {"quality": 85, "method": 4} if form == "webp" else {"disposal": 1}
    duration = durations_ms(count, fps, 10 if form == "gif" else 1)
    next(images).save(
        path, format=form.upper(), save_all=True, append_images=images, duration=duration, loop=0, **settings
    )


def _encode_mp4(frames: Iterator[Frame], path: Path, fps: int) -> None:
    """Encode again, in pieces: one piece is in memory at a time, and the pieces are joined by copying."""
    with tempfile.TemporaryDirectory(prefix=".svi-export-", dir=path.parent) as folder:
        pieces, start = [], 0
        while piece := list(itertools.islice(frames, PIECE)):
            pieces.append(Path(folder) / f"{start:08d}.mp4")
            encoded = encode_segment(torch.from_numpy(np.stack(piece)), fps=fps, start_frame=start)
            pieces[-1].write_bytes(encoded)
            start += len(piece)
        join_segments(pieces, path, fps=fps)
