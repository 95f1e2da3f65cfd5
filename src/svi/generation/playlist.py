"""The video so far as an HLS playlist: segments that exist, in order; playable while it grows.

Knows nothing about how segments are made, only that each begins with an initialisation section. Segments are named by
byte ranges of the files that stand in the run, so nothing is written twice; a line is added per clip in one write, and the
file is built again atomically when a run is opened for work.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from svi.files import explained, write_atomic
from svi.generation.writer import header_size

END = "#EXT-X-ENDLIST\n"


@dataclass(frozen=True)
class Entry:
    """One segment: ``path`` of the file, ``frames`` in it."""

    path: Path
    frames: int


class Playlist:
    """``path`` (an ``.m3u8`` file) with segments below the same folder."""

    def __init__(self, path: Path, *, fps: int, longest_frames: int) -> None:
        self.path = path
        self.fps = fps
        self.longest_s = math.ceil(longest_frames / fps)
        self._header: bytes | None = None

    def rebuild(self, entries: Iterable[Entry]) -> None:
        """Write the playlist for ``entries`` from nothing, atomically."""
        self._header = None
        lines = [
            "#EXTM3U\n#EXT-X-VERSION:7\n",
            f"#EXT-X-TARGETDURATION:{max(1, self.longest_s)}\n",
            "#EXT-X-MEDIA-SEQUENCE:0\n#EXT-X-PLAYLIST-TYPE:EVENT\n#EXT-X-INDEPENDENT-SEGMENTS\n",
        ]
        lines += [self._lines(entry) for entry in entries]
        write_atomic(self.path, "".join(lines).encode())

    def append(self, entry: Entry) -> None:
        """Add one segment, in one write."""
        text = self._lines(entry).encode()
        with explained(self.path, "append to"):
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            try:
                os.write(handle, text)
            finally:
                os.close(handle)

    def end(self) -> None:
        """Say that nothing follows, so that players stop waiting; once is enough."""
        with explained(self.path, "append to"), self.path.open("rb+") as stream:
            stream.seek(-len(END), os.SEEK_END)
            if stream.read() != END.encode():
                stream.write(END.encode())

    def _lines(self, entry: Entry) -> str:
        """Lines of a segment; the initialisation section is named again only where its bytes changed."""
        name = entry.path.relative_to(self.path.parent).as_posix()
        size = header_size(entry.path)
        with entry.path.open("rb") as stream:
            header = stream.read(size)
        lines = ""
        if header != self._header:
            self._header = header
            lines = f'#EXT-X-MAP:URI="{name}",BYTERANGE="{size}@0"\n'
        length = entry.path.stat().st_size - size
        return f"{lines}#EXTINF:{entry.frames / self.fps:.6f},\n#EXT-X-BYTERANGE:{length}@{size}\n{name}\n"
