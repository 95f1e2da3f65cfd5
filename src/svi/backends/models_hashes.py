"""Hashes of weight files, computed once: hashing 65 GB at every start would keep a film maker waiting for a minute.

A file is known by its full name, size and time of change; those of large files are remembered across processes in the user's
cache folder. A memory that cannot be read or written is none: the hash is computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path

from svi.errors import UserError
from svi.files import write_atomic

LARGE = 64 * 2**20  # bytes; smaller files are hashed in less time than a look into the memory takes
ENTRIES = 1000


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    status = path.stat()
    return _sha256(str(path.resolve()), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _sha256(path: str, size: int, modified_ns: int) -> str:
    key = f"{path} {size} {modified_ns}"
    if size >= LARGE:
        known = _remembered().get(key)
        if known is not None:
            return known
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if size >= LARGE:
        _remember(key, found)
    return found


def memory() -> Path:
    """The file that remembers."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "svi" / "sha256.json"


def _remembered() -> dict[str, str]:
    try:
        content = json.loads(memory().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in content.items()} if isinstance(content, dict) else {}


def _remember(key: str, value: str) -> None:
    entries = {**_remembered(), key: value}
    newest = dict(list(entries.items())[-ENTRIES:])
    with contextlib.suppress(OSError, UserError):
        memory().parent.mkdir(parents=True, exist_ok=True)
        write_atomic(memory(), json.dumps(newest).encode())
