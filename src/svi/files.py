"""Durable files: runs, caches, checkpoints and LoRAs are written through here, so a reader never sees half of anything.

Knows nothing about what is in them. A file is written under a temporary name in the same folder, synced, and
renamed; a folder is filled under a temporary name and renamed as a whole. An operating-system error becomes one
:class:`~svi.errors.UserError` that says what could not be written and what to do.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from svi.errors import UserError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
TEMPORARY = ".tmp-"


class DiskFullError(UserError):
    """No space left (or a quota or a file-size limit was hit); what was finished before is intact."""


@contextlib.contextmanager
def explained(path: Path, action: str = "write") -> Iterator[None]:
    """Turn an ``OSError`` inside the block into a UserError about ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DiskFullError(
                f"the disk is full: could not {action} {path} ({error.strerror}); what is finished is intact: "
                "free some space, then give the same command again (for a run: `svi resume`)"
            ) from error
        raise UserError(f"cannot {action} {path}: {error.strerror or error}") from error


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable (a no-op where folders cannot be opened)."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Make the content of a file durable."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def write_synced(path: Path, data: bytes) -> None:
    """Write ``data`` to a new file and sync it. Not atomic: for files inside a folder that is renamed later."""
    with explained(path), path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: readers see the old bytes or the new ones, also after a power cut."""
    with replacing(path) as temporary:
        write_synced(temporary, data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name for a file that becomes ``path`` when the block ends well, and vanishes when it does not.

    What the block writes under it has to be synced by the block, where that matters.
    """
    temporary = temporary_name(path)
    try:
        with explained(path):
            yield temporary
        publish(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_atomic(path, json_bytes(value))


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


def json_bytes(value: object) -> bytes:
    """Indented, sorted by insertion, UTF-8 as it is, with a newline at the end."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def temporary_name(path: Path) -> Path:
    """A sibling name that :func:`remove_leftovers` recognises."""
    return path.with_name(f".{path.name}{TEMPORARY}{os.getpid()}")


def publish(temporary: Path, path: Path) -> None:
    """Rename a finished, synced file or folder to its final name, durably."""
    with explained(path):
        os.replace(temporary, path)
        sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` when the block ends well, and vanishes when it does not."""
    temporary = temporary_name(path)
    with explained(path, "create"):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    try:
        yield temporary
        with explained(path):
            sync_folder(temporary)
        publish(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left half-written in ``folder`` (not below it); that of processes that still run stays."""
    for path in folder.glob(f".*{TEMPORARY}*"):
        pid = path.name.rpartition(TEMPORARY)[2]
        if not pid.isdigit() or int(pid) == os.getpid() or not _runs(int(pid)):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


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


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link ``source`` to ``target``; copy where the file system cannot link. Finished files never change."""
    try:
        os.link(source, target)
    except OSError:
        with explained(target):
            shutil.copyfile(source, target)


def sha256(data: bytes | memoryview) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
