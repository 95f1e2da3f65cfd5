"""A folder of encoded windows: ``cache.json`` (settings, fingerprint, rows, videos), shards, and the empty prompt.

A cache is used only where all that decides its numbers is as wanted; otherwise what differs is named, with the remedy. A cache
that was being made when the power went is gone on with; one that was complete stays complete while it is added to.
"""

from __future__ import annotations

import contextlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from svi.data.manifest import Skipped, VideoItem
from svi.data.sample import Sample
from svi.data.shards import (
    AGAIN,
    SHARDS,
    Contents,
    ShardPlan,
    empty_text_file,
    fingerprint,
    read_empty_text,
    read_row,
    shard_metadata,
    whole,
)
from svi.data.windows import Bucket
from svi.errors import UserError
from svi.files import read_json, remove_leftovers, write_json

FORMAT = "svi-training-cache"
VERSION = 1
INDEX = "cache.json"
OPEN_SHARDS = 32
NAMED = 3  # differences that a message names


def begin(folder: Path, settings: Mapping[str, Any], *, replace: bool) -> None:
    """Make ``folder`` a cache with these settings, or go on with one that has the same.

    Raises:
        UserError: another cache (what differs is named) or something else is there.
    """
    index, old = folder / INDEX, False
    if index.is_file():
        lines = differences(_index(folder)["settings"], settings)
        if lines and not replace:
            raise UserError(f"{stale(folder, lines)}; take another folder, or --replace throws the old cache away")
        old = bool(lines)
    elif folder.exists() and (not folder.is_dir() or any(not p.name.startswith(".") for p in folder.iterdir())):
        raise UserError(f"{folder} exists and is no cache of training data: give a new folder")
    _make(folder)
    remove_leftovers(folder)
    if old or not index.is_file():
        write_json(index, _content(settings, complete=False))
    _make(folder / SHARDS)
    remove_leftovers(folder / SHARDS)
    for path in [*(folder / SHARDS).glob("*.safetensors"), empty_text_file(folder)] if old else []:
        path.unlink(missing_ok=True)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {folder}: {error.strerror or error}") from None


def _content(settings: Mapping[str, Any], *, complete: bool) -> dict[str, Any]:
    mark = {"format": FORMAT, "version": VERSION, "complete": complete, "fingerprint": fingerprint(settings)}
    return {**mark, "settings": settings}


def finish(folder: Path, settings: Mapping[str, Any], plans: Sequence[ShardPlan], items: Iterable[VideoItem]) -> Cache:
    """Write what the cache holds, throw away shards that it does not need any more, and open it."""
    contents, shards, lost = Contents(folder), [], []
    for plan in plans:
        metadata = shard_metadata(plan.path(folder))
        rows = [[row["window"], row["variant"]] for row in metadata["rows"]]
        shards.append({"name": plan.name, "bucket": str(plan.bucket), "rows": rows})
        lost += metadata["lost"]
    videos = {item.id: contents.of(item) for item in items}
    write_json(folder / INDEX, {**_content(settings, complete=True), "shards": shards, "lost": lost, "videos": videos})
    kept = {plan.path(folder) for plan in plans}
    for path in (folder / SHARDS).glob("*.safetensors"):
        if path not in kept:
            path.unlink(missing_ok=True)
    return open_cache(folder)


class Cache:
    """Encoded windows, read one at a time.

    Attributes:
        folder: where it is.
        settings, fingerprint: what it was made with.
        windows: ids of the windows that are there in every variant, in order.
        variants: epochs of draws that are encoded.
        lost: windows that could not be decoded.
    """

    def __init__(self, folder: Path, index: Mapping[str, Any]) -> None:
        self.folder, self.settings = folder, index["settings"]
        self.fingerprint: str = index["fingerprint"]
        self.variants: int = self.settings["variants"]
        self.lost = tuple(Skipped(**entry) for entry in index["lost"])
        self.videos: dict[str, str] = index["videos"]
        self._rows: dict[tuple[str, int], tuple[str, int]] = {}
        self._buckets: dict[str, Bucket] = {}
        for shard in index["shards"]:
            for row, (window, variant) in enumerate(shard["rows"]):
                self._rows[window, variant] = (shard["name"], row)
                self._buckets[window] = Bucket.parse(shard["bucket"])
        every = range(self.variants)
        self.windows = [window for window in self._buckets if all((window, v) in self._rows for v in every)]
        self._open: OrderedDict[str, tuple[Any, dict[str, Any]]] = OrderedDict()

    def bucket_of(self, window: str) -> Bucket:
        """Shape of a window."""
        return self._buckets[window]

    def read(self, window: str, variant: int) -> Sample:
        """A window as it was encoded for a variant.

        Raises:
            UserError: for a damaged shard.
        """
        name, row = self._rows[window, variant]
        path = self.folder / SHARDS / f"{name}.safetensors"
        with whole(path):
            handle, metadata = self._shard(name, path)
            return read_row(handle, metadata, row)

    def empty_text(self) -> tuple[Tensor, int]:
        """Embedding ``(l, D)`` of the empty prompt, and the length that it is padded to."""
        return read_empty_text(self.folder)

    def check_videos(self, items: Iterable[VideoItem]) -> None:
        """Refuse a cache whose videos are not those of ``items``; reads a video only where its size or time changed.

        Raises:
            UserError: videos were added, removed or changed; some are named.
        """
        contents = Contents(self.folder)
        now = {item.id: contents.of(item) for item in items}
        with contextlib.suppress(UserError):  # a cache may lie where nothing can be written
            contents.save()
        changes = {
            "new": [name for name in now if name not in self.videos],
            "gone": [name for name in self.videos if name not in now],
            "changed": [name for name, value in now.items() if self.videos.get(name, value) != value],
        }
        lines = [f"{len(names)} {what} ({_some(names)})" for what, names in changes.items() if names]
        if lines:
            raise UserError(f"the videos are not those that {self.folder} was made from: {', '.join(lines)}; {AGAIN}")

    def _shard(self, name: str, path: Path) -> tuple[Any, dict[str, Any]]:
        if name not in self._open:
            handle: Any = safe_open(str(path), "pt")
            self._open[name] = handle, json.loads(handle.metadata()["shard"])
            while len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(name)
        return self._open[name]


def open_cache(folder: Path | str, expected: Mapping[str, Any] | None = None) -> Cache:
    """The cache in ``folder``.

    Args:
        folder: of the cache.
        expected: settings that it must have been made with, all (``encode.cache_settings``) or those of the model and the
            preset (``encode.model_settings``); None = whatever it has.

    Raises:
        UserError: no cache, an unfinished or damaged one, or one with other settings (what differs is named).
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder} is no cache of training data: make one with `svi data encode`")
    index = _index(folder)
    if not index["complete"]:
        raise UserError(f"the encoding of {folder} was not finished: {AGAIN}")
    wanted = {**index["settings"], **(expected or {})}
    lines = differences(index["settings"], wanted)
    if lines:
        raise UserError(f"{stale(folder, lines)}; encode again into another folder, or with --replace into this one")
    paths = [folder / SHARDS / f"{shard['name']}.safetensors" for shard in index["shards"]]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is missing: {AGAIN}")
    return Cache(folder, index)


def _index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    index = read_json(path)
    if index.get("format") != FORMAT or "settings" not in index or "complete" not in index:
        raise UserError(f"{path} is no index of training data: give another folder")
    if index.get("version") != VERSION:
        raise UserError(f"{folder} was written by another version of svi ({index.get('version')}): encode it again")
    return index


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


# -- what differs ------------------------------------------------------------------------------------------------------


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What two settings differ in, one phrase each: ``conditioning.motion_frames is 1, not 5``."""
    old, new = dict(_flat(found)), dict(_flat(json.loads(json.dumps(wanted))))
    names = [*old, *(name for name in new if name not in old)]
    return [_difference(name, old, new) for name in names if old.get(name, names) != new.get(name, names)]


def _difference(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    if name.startswith("model."):
        file = name.removeprefix("model.")
        return f"model file {file} " + ("changed" if name in old and name in new else "is of one of them only")
    return f"{name} is {old.get(name, 'not set')}, not {new.get(name, 'set')}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def stale(folder: Path, lines: Sequence[str]) -> str:
    """One line about a cache that does not fit."""
    more = f" and {len(lines) - NAMED} more" if len(lines) > NAMED else ""
    return f"the cache {folder} was made with other settings: {'; '.join(lines[:NAMED])}{more}"
