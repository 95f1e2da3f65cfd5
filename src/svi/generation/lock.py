"""One process at a time may change a run.

Knows nothing about what is changed. The lock is the operating system's (``flock``), so it vanishes with the process that
held it, however that died; the file's content only tells a person who holds it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from svi.errors import UserError
from svi.files import explained

if sys.platform != "win32":
    import fcntl


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` for the block.

    Raises:
        UserError: if another process (or another object in this one) holds it.
    """
    with explained(path, "lock"):
        stream = path.open("a+", encoding="utf-8")
    with stream:
        if not _try_lock(stream, patience_s=0.3):  # `holder` takes the lock for an instant to look
            raise UserError(
                f"{path.parent} is in use by {_holder(stream) or 'another process'}; wait for it or stop it first"
            )
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        stream.flush()
        yield


def holder(path: Path) -> int | None:
    """Process id of who holds the lock just now, or None."""
    try:
        stream = path.open("r+", encoding="utf-8")
    except OSError:
        return None
    with stream:
        if _try_lock(stream):
            return None
        words = _holder(stream).split()
        return int(words[1]) if len(words) > 1 and words[1].isdecimal() else 0


def _try_lock(stream: IO[str], patience_s: float = 0.0) -> bool:
    if sys.platform == "win32":  # runs work, but two processes on one run are not told apart
        return True
    give_up = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= give_up:
                return False
            time.sleep(0.02)
        else:
            return True


def _holder(stream: IO[str]) -> str:
    stream.seek(0)
    return stream.read(200).strip()
