"""Shards: files of encoded windows, named after their content. Knows nothing about how windows are made."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from svi.data.manifest import Skipped, VideoItem
from svi.data.sample import Sample
from svi.data.windows import Bucket
from svi.errors import UserError
from svi.files import read_json, write_atomic, write_json

FILES, SHARDS = "files.json", "shards"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
AGAIN = "run `svi data encode` again (what is finished is kept)"


@dataclass(frozen=True)
class Entry:
    """One window of a shard. ``index``: its number in the source; ``content``: hash of its video's bytes and caption."""

    window: str
    variant: int
    index: int
    content: str


@dataclass(frozen=True)
class ShardPlan:
    """What a shard will hold; ``name`` follows from it."""

    name: str
    bucket: Bucket
    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, settings: Mapping[str, Any], bucket: Bucket, entries: Sequence[Entry]) -> ShardPlan:
        """The shard of these entries under these settings."""
        rows = [[entry.window, entry.variant, entry.content] for entry in entries]
        return cls(digest([fingerprint(settings), str(bucket), rows])[:24], bucket, tuple(entries))

    def path(self, folder: Path) -> Path:
        return folder / SHARDS / f"{self.name}.safetensors"


def digest(value: object) -> str:
    """SHA-256 of a JSON-ready value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def fingerprint(settings: Mapping[str, Any]) -> str:
    """What tells caches apart, whatever the videos."""
    return digest(settings)


# -- what videos hold --------------------------------------------------------------------------------------------------


class Contents:
    """Hashes of videos, computed once while a file's size and time do not change; kept in the cache's folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILES
        self.known: dict[str, list[Any]] = {}
        with contextlib.suppress(UserError):  # missing or damaged: hashes are computed again
            self.known = read_json(self.path)

    def sha256(self, path: Path) -> str:
        """Hash of a video's bytes."""
        name = str(path.resolve())
        try:
            status = path.stat()
            entry = self.known.get(name)
            if entry is None or entry[:2] != [status.st_size, status.st_mtime_ns]:
                with path.open("rb") as stream:
                    found = hashlib.file_digest(stream, "sha256").hexdigest()
                self.known[name] = entry = [status.st_size, status.st_mtime_ns, found]
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from None
        return str(entry[2])

    def of(self, item: VideoItem | None) -> str:
        """Hash of an item: the bytes of its video, its caption and the part that is used."""
        if item is None:
            return ""
        return digest([self.sha256(item.path), item.caption, item.start_s, item.end_s, item.fps])

    def save(self) -> None:
        """Keep what is known."""
        write_json(self.path, self.known)


# -- writing and reading ----------------------------------------------------------------------------------------------


def write_shard(
    folder: Path, plan: ShardPlan, samples: Sequence[tuple[Entry, Sample]], lost: Sequence[Skipped], dtype: str
) -> None:
    """Write a shard, atomically. ``lost``: windows that could not be decoded."""
    found = [sample for _, sample in samples]
    captions = list(dict.fromkeys(sample.caption for sample in found))
    texts = {sample.caption: sample.text for sample in found}
    masks: list[Tensor] = []
    rows = []
    for entry, sample in samples:
        known = next((k for k, mask in enumerate(masks) if torch.equal(mask, sample.known)), len(masks))
        if known == len(masks):
            masks.append(sample.known)
        text = captions.index(sample.caption)
        rows.append(
            {"window": entry.window, "variant": entry.variant, "text": text, "known": known, "first": sample.first}
        )
    metadata = {
        "captions": captions,
        "lengths": [texts[caption].shape[0] for caption in captions],
        "text_tokens": found[0].text_tokens if found else 0,
        "rows": rows,
        "lost": [asdict(entry) for entry in lost],
    }
    tensors: dict[str, Tensor] = {}
    if found:
        for name in ("clean", "values", "anchor"):
            tensors[name] = torch.stack([getattr(sample, name) for sample in found]).to(DTYPES[dtype])
        tensors["text"] = torch.cat([texts[caption] for caption in captions]).to(DTYPES[dtype])
        tensors["known"] = torch.stack(masks).to(torch.uint8)
        tensors["reference"] = torch.stack([sample.reference for sample in found])
        images = [sample.image for sample in found if sample.image is not None]
        if images:
            tensors["image"] = torch.stack(images).to(DTYPES[dtype])
    write_atomic(plan.path(folder), save(tensors, {"shard": json.dumps(metadata, ensure_ascii=False)}))


def empty_text_file(folder: Path) -> Path:
    """Where the embedding of the empty prompt is."""
    return folder / "empty-text.safetensors"


def write_empty_text(folder: Path, text: Tensor, tokens: int, dtype: str) -> None:
    """Write the embedding ``(l, D)`` of the empty prompt and the length that it is padded to."""
    metadata = {"text_tokens": str(tokens)}
    write_atomic(empty_text_file(folder), save({"text": text.to(DTYPES[dtype])}, metadata))


def is_whole(folder: Path, plan: ShardPlan) -> bool:
    """Whether a shard is there and can be read."""
    try:
        shard_metadata(plan.path(folder))
    except UserError:
        return False
    return True


def shard_metadata(path: Path) -> dict[str, Any]:
    """What a shard says about its rows. Raises UserError for a damaged one."""
    with whole(path), safe_open(str(path), "pt") as handle:
        metadata: dict[str, Any] = json.loads(handle.metadata()["shard"])
        return metadata


def read_row(handle: Any, metadata: Mapping[str, Any], row: int) -> Sample:
    """Row ``row`` of an open shard; reads no other."""
    about = metadata["rows"][row]

    def part(key: str, at: int) -> Tensor:
        return _float(handle.get_slice(key)[at : at + 1][0])

    start = sum(metadata["lengths"][: about["text"]])
    stop = start + metadata["lengths"][about["text"]]
    return Sample(
        id=about["window"],
        caption=metadata["captions"][about["text"]],
        clean=part("clean", row),
        values=part("values", row),
        known=part("known", about["known"]),
        text=_float(handle.get_slice("text")[start:stop]),
        text_tokens=metadata["text_tokens"],
        anchor=part("anchor", row),
        reference=handle.get_slice("reference")[row : row + 1][0],
        image=part("image", row) if "image" in handle.keys() else None,  # noqa: SIM118 - not a mapping
        first=about["first"],
    )


def read_empty_text(folder: Path) -> tuple[Tensor, int]:
    """Embedding ``(l, D)`` of the empty prompt, and the length that it is padded to."""
    path = empty_text_file(folder)
    with whole(path), safe_open(str(path), "pt") as handle:
        return _float(handle.get_tensor("text")), int(handle.metadata()["text_tokens"])


class whole:
    """Turns what reading a damaged file raises into one line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SafetensorError | OSError | ValueError | KeyError | TypeError | IndexError):
            if isinstance(error, UserError):
                return
            raise UserError(f"{self.path} is damaged or cut short: delete it and {AGAIN}") from None


def _float(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32)
