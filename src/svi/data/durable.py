"""Files that are either whole or not there: written under a temporary name, synced, renamed. Knows nothing of contents."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any

from svi.errors import UserError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
TEMPORARY = ".tmp-"


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: readers see the old bytes or the new ones, also after a power cut.

    Raises:
        UserError: where it cannot be written; what was there before stays.
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY}{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary_gone(temporary)
        if error.errno in FULL:
            remedy = "free some space and start again; what is finished is kept"
            raise UserError(f"the disk is full: could not write {path}; {remedy}") from error
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    except BaseException:
        temporary_gone(temporary)
        raise


def temporary_gone(path: Path) -> None:
    """Delete a file if it is there, whatever happens."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _sync_folder(path: Path) -> None:
    if os.name != "nt":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: missing, damaged, or something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged ({str(error)[:80]})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds no object")
    return value


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left half-written in ``folder``; files of processes that still run stay."""
    for path in folder.glob(f".*{TEMPORARY}*"):
        pid = path.name.rpartition(TEMPORARY)[2]
        if not pid.isdigit() or int(pid) == os.getpid() or not _runs(int(pid)):
            temporary_gone(path)


def _runs(pid: int) -> bool:
    if os.name == "nt":  # where signal 0 is Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
