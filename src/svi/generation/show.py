"""What a run holds, for people: a report of its clips and a contact sheet.

Reads a run through ``Run`` only; decodes no more frames than it shows. Knows nothing about terminals.
"""

from __future__ import annotations

import contextlib
import os
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from svi.errors import UserError
from svi.files import replacing
from svi.generation.clip_store import ClipInfo
from svi.generation.run import Run
from svi.generation.writer import read_frames

MIN_FRAME_WIDTH = 160  # a pocket frame is 96 px wide: too small to judge
MAX_FRAME_WIDTH = 320
SMALL = 128  # pixels of width up to which enlarging keeps hard pixels
GAP = 4
FONT_PX = 13
LINE_PX = 17
BACKGROUND, INK, PALE = (24, 24, 28), (236, 236, 236), (160, 160, 170)


@dataclass(frozen=True)
class ClipRow:
    """One clip in a report. Times in seconds of the video."""

    clip: int
    start_s: float
    end_s: float
    take: int
    takes: int
    seed: int
    prompt: str
    took_s: float


@dataclass(frozen=True)
class RunReport:
    """What ``svi show`` tells about a run. ``damage``: one line per damaged or missing part; ``advice``: what to do."""

    run: str
    state: str
    model: str
    preset: str
    width: int
    height: int
    fps: float
    steps: int
    guidance: float
    seed: int
    clips: int
    target: int | None
    seconds: float
    disk_bytes: int
    video: str | None
    rows: tuple[ClipRow, ...]
    damage: tuple[str, ...]
    advice: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def report(run: Run) -> RunReport:
    """Everything ``svi show`` tells; checks every file of the run, and does not stop at damaged ones."""
    settings, found = run.settings, run.verify()
    rows, state, target = readable_rows(run), "damaged", None
    with contextlib.suppress(UserError):  # a damaged state.json or clip.json stands in ``damage``
        target = run.target
        state = state_of(run)
    videos = (run.path / "video.mp4", run.playlist)  # video.mp4 may be older than the last clips
    up_to_date_first = videos if state == "finished" else videos[::-1]
    video = next((str(path) for path in up_to_date_first if path.is_file()), None)
    return RunReport(
        run=str(run.path),
        state=state,
        model=run.manifest.model.name,
        preset=settings.preset,
        width=settings.width,
        height=settings.height,
        fps=settings.fps,
        steps=settings.steps,
        guidance=settings.guidance,
        seed=settings.seed,
        clips=run.count,
        target=target,
        seconds=max((row.end_s for row in rows), default=0.0),
        disk_bytes=disk_bytes(run.path),
        video=video,
        rows=rows,
        damage=tuple(str(problem) for problem in found.problems),
        advice=tuple(found.advice),
    )


def readable_rows(run: Run) -> tuple[ClipRow, ...]:
    """The rows of all clips whose record can be read."""
    rows = []
    for clip in range(run.count):
        with contextlib.suppress(UserError):
            rows.append(clip_row(run.store.info(clip), run.settings.fps))
    return tuple(rows)


def state_of(run: Run) -> str:
    """One word or two: running, finished, stopped, or a retake that waits."""
    status = run.status()
    if status.running_pid:
        return f"running (process {status.running_pid})"
    if status.retake is not None:
        return f"a retake waits: svi resume {run.path}"
    if status.target is not None and status.count >= status.target:
        return "finished"
    return f"stopped: svi resume {run.path}" if status.count else f"not begun: svi resume {run.path}"


def clip_row(clip: ClipInfo, fps: float) -> ClipRow:
    """The row of one clip."""
    end = clip.start_frame + clip.new_frames
    took, takes = sum(clip.timing.values()), sum(1 for _ in clip.path.parent.glob("take-*"))
    return ClipRow(clip.index, clip.start_frame / fps, end / fps, clip.take, takes, clip.seed, clip.prompt, took)


def disk_bytes(folder: Path) -> int:
    """Bytes of all files below ``folder``; files that vanish meanwhile count nothing."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_size
            except OSError:
                continue
    return total


def contact_sheet(run: Run, *beside: Run, rows: int = 12, columns: int = 6) -> Image.Image:
    """A picture of the run: a row per clip (evenly chosen where there are more than ``rows``), ``columns`` frames each.

    Args:
        run: what is shown.
        beside: other runs, each to the right of the one before.
        rows, columns: of each run.

    Raises:
        UserError: if no clip of a run is finished.
    """
    sheets = [_sheet_of(each, rows, columns) for each in (run, *beside)]
    if len(sheets) == 1:
        return sheets[0]
    joined = Image.new("RGB", (sum(sheet.width for sheet in sheets), max(sheet.height for sheet in sheets)), BACKGROUND)
    x = 0
    for sheet in sheets:
        joined.paste(sheet, (x, 0))
        x += sheet.width
    return joined


def _sheet_of(run: Run, rows: int, columns: int) -> Image.Image:
    clips = list(run.clips())
    if not clips:
        raise UserError(f"{run.path} has no finished clip to show; make some with: svi resume {run.path}")
    chosen = [clips[i] for i in evenly(len(clips), rows)]
    strips = [strip(clip, columns, run.status().fps) for clip in chosen]
    status = run.status()
    title = (
        f"{run.path.name}: {status.count} clips, {status.seconds:.1f} s at {status.fps:g} fps, "
        f"{status.width}x{status.height}, {status.model}, preset {status.preset}, "
        f"{''.join(f'LoRA {name}, ' for name in run.manifest.model.loras)}seed {run.settings.seed}"
    )
    width = max(GAP * 2 + 640, *(image.width for image in strips))
    head = text_band([title], width, INK)
    sheet = Image.new("RGB", (width, head.height + sum(image.height for image in strips) + GAP), BACKGROUND)
    y = 0
    for image in (head, *strips):
        sheet.paste(image, (0, y))
        y += image.height
    return sheet


def save_sheet(run: Run, target: Path, *, beside: Sequence[Run] = (), rows: int = 12, columns: int = 6) -> Path:
    """Write the contact sheet as PNG, atomically; an older sheet of the same name is replaced. Arguments as above.

    Raises:
        UserError: if it cannot be written there, or the name does not end in .png.
    """
    if target.suffix.lower() != ".png":
        raise UserError(f"a contact sheet is a PNG: name it {target.with_suffix('.png')}, not {target}")
    if not target.parent.is_dir():
        raise UserError(f"cannot write {target}: the folder {target.parent} does not exist")
    if target.is_dir():
        raise UserError(f"cannot write {target}: it is a folder")
    image = contact_sheet(run, *beside, rows=rows, columns=columns)
    with replacing(target) as temporary:
        image.save(temporary, format="PNG")
    return target


def strip(clip: ClipInfo, columns: int, fps: float) -> Image.Image:
    """The row of one clip: its number, times and prompt above ``columns`` frames."""
    wanted = evenly(clip.new_frames, columns)
    frames: dict[int, Image.Image] = {}
    for index, frame in enumerate(read_frames(clip.segment)):
        if index in wanted:
            frames[index] = enlarged(Image.fromarray(frame))
        if index >= wanted[-1]:
            break
    width = GAP + sum(image.width + GAP for image in frames.values())
    row = clip_row(clip, fps)
    take = f"  take {row.take} ({row.takes} in all)" if row.takes > 1 else ""
    label = f"clip {row.clip}  {row.start_s:.1f}-{row.end_s:.1f} s  seed {row.seed}{take}"
    per_line = max(40, int(width / (FONT_PX * 0.52)))
    band = text_band([label, *textwrap.wrap(row.prompt or "(no prompt)", per_line, max_lines=2)], width, PALE)
    height = max(image.height for image in frames.values())
    out = Image.new("RGB", (width, band.height + height + GAP), BACKGROUND)
    out.paste(band, (0, 0))
    for column, image in enumerate(frames.values()):
        out.paste(image, (GAP + column * (image.width + GAP), band.height))
    return out


def text_band(lines: Sequence[str], width: int, colour: tuple[int, int, int]) -> Image.Image:
    """Lines of text on the sheet's background; the first is brighter."""
    band = Image.new("RGB", (width, len(lines) * LINE_PX + GAP * 2), BACKGROUND)
    draw, font = ImageDraw.Draw(band), ImageFont.load_default(size=FONT_PX)
    for index, line in enumerate(lines):
        draw.text((GAP, GAP + index * LINE_PX), line, fill=INK if index == 0 else colour, font=font)
    return band


def enlarged(image: Image.Image) -> Image.Image:
    """A frame wide enough to judge: whole multiples with hard pixels where it is tiny, shrunk where it is large."""
    if image.width < MIN_FRAME_WIDTH:
        factor = -(-MIN_FRAME_WIDTH // image.width)
        method = Image.Resampling.NEAREST if image.width <= SMALL else Image.Resampling.BICUBIC
        return image.resize((image.width * factor, image.height * factor), method)
    if image.width > MAX_FRAME_WIDTH:
        height = round(image.height * MAX_FRAME_WIDTH / image.width)
        return image.resize((MAX_FRAME_WIDTH, height), Image.Resampling.LANCZOS)
    return image


def evenly(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` indices out of ``range(count)``, evenly spaced, first and last among them."""
    if count <= wanted:
        return list(range(count))
    if wanted == 1:
        return [0]
    return sorted({round(i * (count - 1) / (wanted - 1)) for i in range(wanted)})
