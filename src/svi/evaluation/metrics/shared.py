"""One look at a video for several metrics: what they have in common is computed once, each takes its own figure from it.

Knows nothing about what is computed. The runner starts each metric on its own and hands each the same batches; readings
that are started for the same sample before its first frame join the same work, and only the first of them to be
handed a batch does it. Metrics that are read one after the other each do the whole work, with the same result.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Protocol

from svi.evaluation.metric import Frames, Sample, Score, Skipped


class Work(Protocol):
    """What is done with the frames of one video."""

    def add(self, batch: Frames) -> None:
        """Take the next frames."""

    def result(self, name: str) -> Score | Skipped:
        """What a metric found, after the last frame."""


class Shared:
    """Hands out readings that work together.

    Args:
        begin: starts the work for a sample and the names of the metrics that want something of it.
    """

    def __init__(self, begin: Callable[[Sample, frozenset[str]], Work]) -> None:
        self._begin = begin
        self._open: weakref.ref[_Pass] | None = None  # lives as long as its readings

    def start(self, name: str, sample: Sample) -> SharedReading:
        """A reading of the metric called ``name``."""
        under = self._open() if self._open is not None else None
        if under is None or not under.can_join(name, sample):
            under = _Pass(self._begin, sample)
            self._open = weakref.ref(under)
        return SharedReading(under, name)


class SharedReading:
    """One metric's share in the work."""

    def __init__(self, under: _Pass, name: str) -> None:
        self._under, self._name = under, name
        under.names.add(name)

    def add(self, batch: Frames) -> None:
        self._under.take(batch)

    def result(self) -> Score | Skipped:
        return self._under.work().result(self._name)


class _Pass:
    """The work on one video, and how far it is."""

    def __init__(self, begin: Callable[[Sample, frozenset[str]], Work], sample: Sample) -> None:
        self.names: set[str] = set()
        self._begin, self._sample = begin, sample
        self._work: Work | None = None
        self._position = 0
        self._broken: Exception | None = None

    def can_join(self, name: str, sample: Sample) -> bool:
        return sample is self._sample and self._work is None and name not in self.names

    def work(self) -> Work:
        if self._work is None:
            self._work = self._begin(self._sample, frozenset(self.names))
        return self._work

    def take(self, batch: Frames) -> None:
        """Do what of a batch has not been done yet. What broke once is broken for all: half a batch would count twice."""
        if self._broken is not None:
            raise self._broken
        seen = self._position - batch.start
        assert seen >= 0, f"frames {self._position} to {batch.start} are missing"
        if seen >= len(batch.frames):
            return
        truth = None if batch.truth is None else batch.truth[seen:]
        try:
            self.work().add(Frames(self._position, batch.frames[seen:], truth))
        except Exception as error:
            self._broken = error
            raise
        self._position += len(batch.frames) - seen
