"""Ctrl-C and SIGTERM: once stops after the current step, twice stops now. Knows nothing about runs."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """A context in which the first signal only asks to stop. ``asked`` says whether one came.

    Before :meth:`arm` is called (weights are being loaded, nothing is written yet) the first signal stops at once.
    """

    def __init__(self) -> None:
        self.armed, self.count = False, 0
        self._before: dict[int, object] = {}

    def arm(self) -> None:
        """From here on the first signal waits for the end of the step."""
        self.armed = True

    def asked(self) -> bool:
        """Whether a signal came."""
        return self.count > 0

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal gave back, it takes

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if not self.armed or self.count > 1:
            raise KeyboardInterrupt
        # Not through sys.stderr: the signal may have come in the middle of writing to it.
        os.write(2, b"\nstopping after this step; once more stops now\n")
