"""Finished clips on disk: ``clips/0007/take-0/`` and what is in it.

Knows nothing about models or how clips are made. A take appears by one rename, complete and synced, or not at all. The
current take of a clip is its highest-numbered ``take-N``; ``take-N.old`` was superseded because an earlier clip
changed. Clips are superseded from the last one backwards, so at any moment the current ones form an unbroken row.
"""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor

from svi.conditioning.memory import ClipMemory
from svi.errors import UserError
from svi.files import (
    explained,
    file_sha256,
    json_bytes,
    link_or_copy,
    new_folder,
    publish,
    remove_leftovers,
    sha256,
    sync_folder,
    write_synced,
)
from svi.generation.clip import Clip
from svi.generation.writer import encode_segment

MEMORY, LATENTS, SEGMENT, THUMBNAIL, RECORD = (
    "memory.safetensors",
    "latents.safetensors",
    "segment.mp4",
    "thumbnail.jpg",
    "clip.json",
)
_TAKE = re.compile(r"take-(\d+)(\.old)?")
THUMBNAIL_WIDTH = 320


@dataclass(frozen=True)
class ClipInfo:
    """A finished take, as ``clip.json`` tells.

    Attributes:
        index, take: which clip, which take of it.
        path: folder of the take.
        start_frame: position in the video of the first frame that it adds; ``new_frames``: how many it adds.
        overlap: frames at its front that repeat the clip before and are not in the video.
        prompt, seed: what it shows, and the seed of its noise.
        settings: of the run, as they were when it was made.
        plan: all fields of its :class:`~svi.generation.clip.ClipPlan`.
        timing: seconds by stage.
        files: SHA-256 of each file; ``frames_sha256`` of all decoded frames, ``(T, H, W, 3)`` uint8.
    """

    index: int
    take: int
    path: Path
    start_frame: int
    new_frames: int
    overlap: int
    prompt: str
    seed: int
    frames_sha256: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    timing: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    created: str = ""

    @property
    def segment(self) -> Path:
        """The clip's new frames as a video that plays on its own."""
        return self.path / SEGMENT

    @property
    def thumbnail(self) -> Path:
        """The middle one of the clip's new frames, at most 320 pixels wide."""
        return self.path / THUMBNAIL

    @property
    def preset(self) -> str | None:
        """Policy it was made under."""
        return self.settings.get("preset")

    @property
    def takes(self) -> int:
        """How many takes of this clip are on disk, superseded ones included."""
        return len(ClipStore(self.path.parent.parent).takes(self.index))

    @property
    def end_frame(self) -> int:
        """Position in the video just after its last frame."""
        return self.start_frame + self.new_frames


class ClipStore:
    """The folder ``clips`` of a run. Holds nothing in memory; every answer is read from the disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, clip: int) -> Path:
        return self.root / f"{clip:04d}"

    def numbers(self) -> list[int]:
        """Clips that have a current take, sorted."""
        if not self.root.is_dir():
            return []
        with explained(self.root, "read"):
            names = [path.name for path in self.root.iterdir() if path.name.isdecimal()]
        return sorted(number for number in map(int, names) if self.current(number) is not None)

    def count(self) -> int:
        """Length of the unbroken row of finished clips from clip 0."""
        numbers = self.numbers()
        return next((i for i, number in enumerate(numbers) if number != i), len(numbers))

    def takes(self, clip: int) -> list[tuple[int, bool]]:
        """All takes of a clip as ``(number, superseded)``, sorted."""
        folder = self.folder(clip)
        if not folder.is_dir():
            return []
        found = [_TAKE.fullmatch(path.name) for path in folder.iterdir() if path.is_dir()]
        return sorted((int(match[1]), bool(match[2])) for match in found if match)

    def current(self, clip: int) -> int | None:
        """Number of the take that counts, None where the clip is still to be made."""
        return max((number for number, old in self.takes(clip) if not old), default=None)

    def next_take(self, clip: int) -> int:
        """A take number that was never used for this clip."""
        return max((number for number, _ in self.takes(clip)), default=-1) + 1

    def path(self, clip: int, take: int | None = None) -> Path:
        """Folder of a take; None = the current one."""
        number = self.current(clip) if take is None else take
        if number is None:
            raise UserError(f"{self.root.parent}: clip {clip} does not exist")
        return self.folder(clip) / f"take-{number}"

    def info(self, clip: int, take: int | None = None) -> ClipInfo:
        """What ``clip.json`` says.

        Raises:
            UserError: if the clip does not exist or its record is damaged.
        """
        path = self.path(clip, take)
        try:
            data = json.loads((path / RECORD).read_bytes())
            info = ClipInfo(path=path, **data)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path / RECORD} is damaged ({error}); {remedy(self.root.parent, clip)}") from None
        if info.index != clip or not isinstance(info.start_frame, int) or not isinstance(info.new_frames, int):
            raise UserError(f"{path / RECORD} is damaged (clip {info.index}); {remedy(self.root.parent, clip)}")
        return info

    def memory(self, clip: int) -> ClipMemory:
        """What the clip after ``clip`` needs, checked against its hash."""
        return ClipMemory.from_tensors(self._tensors(clip, MEMORY))

    def latents(self, clip: int) -> Tensor:
        """``(1, C, F, h, w)`` fp32, all latents of a clip, checked against their hash."""
        return self._tensors(clip, LATENTS)["latents"]

    def checked_file(self, clip: int, name: str) -> Path:
        """Path of a file of the current take, once its hash was found right.

        Raises:
            UserError: if it is missing or damaged; the message names the remedy.
        """
        info = self.info(clip)
        path = info.path / name
        with explained(path, "read"):
            what = _damage(path, info.files.get(name))
        if what:
            raise UserError(f"{path} {what}; {remedy(self.root.parent, clip)}")
        return path

    def _tensors(self, clip: int, name: str) -> dict[str, Tensor]:
        return load_file(self.checked_file(clip, name))

    def save(self, clip: Clip, *, take: int, start_frame: int, settings: Mapping[str, Any], created: str) -> ClipInfo:
        """Put a made clip on disk for good; returns once it is durable. ``settings``: of the run, as plain data."""
        frames = clip.new_frames
        begun = time.perf_counter()
        content = {
            MEMORY: save({name: tensor.contiguous() for name, tensor in clip.memory.tensors().items()}),
            LATENTS: save({"latents": clip.latents.contiguous()}),
            SEGMENT: encode_segment(frames, fps=settings["fps"], start_frame=start_frame),
            THUMBNAIL: thumbnail(frames[frames.shape[0] // 2]),
        }
        record: dict[str, Any] = {
            "index": clip.plan.index,
            "take": take,
            "start_frame": start_frame,
            "new_frames": int(frames.shape[0]),
            "overlap": clip.overlap,
            "prompt": clip.plan.prompt,
            "seed": clip.plan.seed,
            "frames_sha256": sha256(clip.frames.contiguous().numpy().tobytes()),
            "settings": dict(settings),
            "plan": asdict(clip.plan),
            "timing": {**clip.timing, "encode_s": time.perf_counter() - begun},
            "files": {name: sha256(data) for name, data in content.items()},
            "created": created,
        }
        target = self.folder(clip.plan.index) / f"take-{take}"
        self._make_folder(clip.plan.index)
        with new_folder(target) as temporary:
            for name, data in content.items():
                write_synced(temporary / name, data)
            write_synced(temporary / RECORD, json_bytes(record))
        return ClipInfo(path=target, **record)

    def _make_folder(self, clip: int) -> None:
        folder = self.folder(clip)
        with explained(folder, "create"):
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self.root)

    def clean(self, clip: int) -> None:
        """Remove what a killed process left half-written at ``clip``."""
        remove_leftovers(self.folder(clip))

    def supersede_after(self, clip: int) -> int:
        """Set aside all takes of the clips after ``clip``, last clip first; returns how many clips that were."""
        after = [number for number in self.numbers() if number > clip]
        for number in reversed(after):
            for take, old in reversed(self.takes(number)):
                if not old:
                    path = self.folder(number) / f"take-{take}"
                    publish(path, path.with_name(f"{path.name}.old"))
        return len(after)

    def copy_to(self, other: ClipStore, clip: int) -> None:
        """Give another store the current take of ``clip`` as its take 0, by hard links where possible."""
        source = self.info(clip)
        other._make_folder(clip)
        with new_folder(other.folder(clip) / "take-0") as temporary:
            for name in source.files:
                link_or_copy(source.path / name, temporary / name)
            record = {**json.loads((source.path / RECORD).read_bytes()), "take": 0}
            write_synced(temporary / RECORD, json_bytes(record))

    def damage(self, clip: int) -> Iterator[tuple[Path, str]]:
        """Files of the current take that are missing or changed, each with what is wrong."""
        info = self.info(clip)
        for name, expected in info.files.items():
            if what := _damage(info.path / name, expected):
                yield info.path / name, what


def _damage(path: Path, expected: str | None) -> str | None:
    """What is wrong with a file, None if nothing is."""
    if not path.is_file():
        return "is missing"
    return None if file_sha256(path) == expected else "is damaged (its hash differs)"


def remedy(run: Path, clip: int) -> str:
    """How to get a damaged clip back."""
    return f"`svi retake {run} --clip {clip} --keep-rest` makes it again"


def thumbnail(frame: Tensor) -> bytes:
    """``(H, W, 3)`` uint8 -> JPEG, at most ``THUMBNAIL_WIDTH`` wide."""
    image = Image.fromarray(frame.contiguous().numpy())
    image.thumbnail((THUMBNAIL_WIDTH, THUMBNAIL_WIDTH * 4))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
