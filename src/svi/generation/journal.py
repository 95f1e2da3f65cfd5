"""The journal of a run: one JSON object per line, appended and synced, never rewritten.

Knows nothing about what the events mean. It is a record for people and servers: nothing that is needed to continue a
run is read from it, so a damaged journal costs history, not video. A line that a power cut tore in two is at the end
of the file, is skipped by readers and removed by the next writer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from svi.files import explained


class Journal:
    """Append-only event log in ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, kind: str, **fields: Any) -> None:
        """Add one event with the present time, durably."""
        event = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": kind, **fields}
        line = (json.dumps(event, ensure_ascii=False) + "\n").encode()
        with explained(self.path, "append to"), self.path.open("ab") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())

    def mend(self) -> int:
        """Cut a torn last line off; returns how many bytes went. Call with the run locked."""
        if not self.path.exists():
            return 0
        with explained(self.path, "mend"), self.path.open("rb+") as stream:
            size = stream.seek(0, os.SEEK_END)
            end = _end_of_last_line(stream.fileno(), size)
            if end < size:
                stream.truncate(end)
                os.fsync(stream.fileno())
            return size - end

    def read(self) -> Iterator[dict[str, Any]]:
        """All readable events, oldest first, one line in memory at a time."""
        for _, event in self._lines():
            if event is not None:
                yield event

    def damaged_lines(self) -> list[int]:
        """Numbers (from 1) of complete lines that are not JSON objects; a torn last line does not count."""
        return [number for number, event in self._lines() if event is None]

    def _lines(self) -> Iterator[tuple[int, dict[str, Any] | None]]:
        if not self.path.exists():
            return
        with explained(self.path, "read"), self.path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.endswith(b"\n"):
                    yield number, _parse(line)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _end_of_last_line(handle: int, size: int, block: int = 4096) -> int:
    """Position after the last newline, read backwards so that a long journal costs nothing."""
    position = size
    while position > 0:
        begin = max(0, position - block)
        found = os.pread(handle, position - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        position = begin
    return 0
