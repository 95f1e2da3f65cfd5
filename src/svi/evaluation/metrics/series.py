"""How the look of a video changes while it runs: light, colour, sharpness, noise; no weights, no truth, any length.

Nine measures are taken of four frames a second, in one pass; each is a metric of its own whose value is the signed contrast of
end and start, and the metric ``look`` tells the worst of all. They describe whole frames: that a thing turns into another,
or stands in the wrong place, none of them sees. What the story changes they cannot tell from drift, unless the true video is there:
then the ``..._truth`` metrics follow the difference to it, frame by frame. Copies change nothing: look at the gates first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from svi.errors import UserError, nearest
from svi.evaluation.drift import SHARE, THRESHOLD, WINDOW_S, Change, change, clip_means, clip_starts
from svi.evaluation.metric import Better, Frames, Kept, Need, Reading, Sample, Score, Skipped, split
from svi.evaluation.metrics.measures import MEASURES, measured, pieces
from svi.evaluation.metrics.shared import Shared

RATE = 4.0  # frames looked at per second
FEWEST = 8  # looked at, below which nothing can be said about a course
Against = Literal["start", "truth"]
AGAINST: tuple[Against, ...] = ("start", "truth")


@dataclass(frozen=True)
class Question:
    """What one metric asks: how a measure (None: the one that changes most) changes, by itself or against the truth."""

    measure: str | None = None
    against: Against = "start"

    @property
    def name(self) -> str:
        """As in tables."""
        return "_".join(
            ["look", *(["truth"] if self.against == "truth" else []), *([self.measure] if self.measure else [])]
        )


QUESTIONS = {q.name: q for against in AGAINST for q in (Question(measure, against) for measure in (None, *MEASURES))}
NAMES = tuple(QUESTIONS)


class Look:
    """How one measure changes over a video, or, without ``measure``, how the one that changes most does.

    Of a measure, ``value`` is the mean of the last 15 % less that of the first 15 %, in its unit; ``extra`` has the fields
    of :class:`svi.evaluation.drift.Change` that are defined and ``reference``, the value of the reference image;
    ``series`` has the values under the measure's name and the means of clips under ``clip``.
    Of ``look``, ``value`` is the largest late-weighted change, as a multiple of what may be noticed (``margin``), and
    ``extra`` has that multiple of every measure. Samples need not have clip borders: then windows of 5 s are its clips.
    Against ``"truth"`` all of this is told of the difference to the true video's values at the same frames.

    Raises:
        UserError: for an unknown measure, or another word than ``start`` or ``truth``.
    """

    version = "1"

    def __init__(self, measure: str | None = None, against: Against = "start") -> None:
        if measure is not None and measure not in MEASURES:
            raise UserError(f"unknown measure {measure!r}: {nearest(measure, MEASURES)}")
        if against not in AGAINST:
            raise UserError(f"cannot compare with {against!r}: {nearest(against, AGAINST)}")
        self.measure = measure
        self.name = Question(measure, against).name
        self.needs = frozenset({Need.TRUTH} if against == "truth" else ())
        self.unit = "margins" if measure is None else MEASURES[measure].unit
        self.better = Better.LOWER if measure is None else Better.ZERO
        self.source = (
            "late-weighted change of the measure that changes most" if measure is None else MEASURES[measure].source
        )

    def key(self) -> str:
        """Every constant that the figure depends on, as JSON."""
        rows = {name: (row.floor, row.margin) for name, row in MEASURES.items() if self.measure in (None, name)}
        facts = dict(rate=RATE, share=SHARE, window_s=WINDOW_S, threshold=THRESHOLD, floor_and_margin=rows)
        return json.dumps(facts, sort_keys=True)

    def missing(self) -> str | None:
        """Nothing is needed."""
        return None

    def start(self, sample: Sample) -> Reading:
        return _SHARED.start(self.name, sample)


class _Rows:
    """Measures of the sampled frames of one video; a few numbers per frame."""

    def __init__(self, measures: Iterable[str]) -> None:
        self._kept = {name: Kept() for name in measures}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, frames: np.ndarray) -> None:
        self._count += len(frames)
        for part in split(Frames(0, frames), pieces(frames)):
            for name, values in measured(part.frames, self._kept).items():
                self._kept[name].add(values)

    def of(self, name: str) -> np.ndarray:
        return self._kept[name].all()


class LookWork:
    """Measures four frames a second of a video, and of the true one where that is asked for."""

    def __init__(self, sample: Sample, names: frozenset[str]) -> None:
        asked = [QUESTIONS[name] for name in names]
        self._sample = sample
        self._measures = [name for name in MEASURES if any(q.measure in (None, name) for q in asked)]
        self._video = _Rows(self._measures)
        self._truth = _Rows(self._measures)
        self._wants_truth = any(q.against == "truth" for q in asked)
        self._step = max(1, round(sample.fps / RATE))
        self._at: list[int] = []
        self._changes: dict[tuple[str, Against], tuple[np.ndarray, Change]] = {}
        self._num_frames = 0

    def add(self, batch: Frames) -> None:
        chosen = slice(-batch.start % self._step, None, self._step)
        self._at += range(batch.start, batch.start + len(batch.frames))[chosen]
        self._num_frames = batch.start + len(batch.frames)
        self._video.add(batch.frames[chosen])
        if self._wants_truth and batch.truth is not None:
            self._truth.add(batch.truth[chosen])

    @cached_property
    def _starts(self) -> np.ndarray:
        return clip_starts(self._sample.borders, self._num_frames, self._sample.fps)

    @cached_property
    def _reference(self) -> dict[str, np.ndarray]:
        """Of the reference image; empty where there is none."""
        if self._sample.reference is None:
            return {}
        return {name: rows[0] for name, rows in measured(self._sample.reference[None], self._measures).items()}

    def _series(self, measure: str, against: Against) -> np.ndarray:
        """Values ``(n,)``, or their difference to the truth's.

        Points become distances: to the truth's, or to the reference's, or else to the mean of the first clip's.
        """
        rows = self._video.of(measure)
        if against == "truth":
            away = rows - self._truth.of(measure)
            return away if rows.ndim == 1 else np.asarray(np.linalg.norm(away, axis=1))
        if rows.ndim == 1:
            return rows
        first = rows[: int(np.searchsorted(self._at, self._starts[1]))] if len(self._starts) > 1 else rows
        home = self._reference[measure] if self._reference else first.mean(0)
        return np.asarray(np.linalg.norm(rows - home, axis=1))

    def _change(self, measure: str, against: Against) -> tuple[np.ndarray, Change]:
        """Series and how it changes; computed once, though the metric of all asks again."""
        if (measure, against) not in self._changes:
            values = self._series(measure, against)
            shape = self._num_frames, self._sample.fps, self._starts
            found = change(self._at, values, *shape, floor=MEASURES[measure].floor)
            self._changes[measure, against] = values, found
        return self._changes[measure, against]

    def result(self, name: str) -> Score | Skipped:
        if len(self._at) < FEWEST:
            return Skipped(f"too short: {len(self._at)} of at least {FEWEST} frames looked at, {RATE:g} per second")
        question = QUESTIONS[name]
        if question.against == "truth" and len(self._truth) < len(self._at):
            return Skipped("no true video is given, or it ends before this one")
        if question.measure is None:
            return self._worst(question.against)
        values, found = self._change(question.measure, question.against)
        if math.isnan(found.difference):
            return Skipped("the first or last frames are of one colour: there is nothing to measure in them")
        means = clip_means(np.array(self._at), values, self._starts)
        series = {question.measure: (self._at, values.tolist()), "clip": (self._starts.tolist(), means.tolist())}
        reference = self._reference.get(question.measure)
        tell = reference is not None and reference.ndim == 0 and question.against == "start"
        known = {"reference": float(reference)} if tell and reference is not None else {}
        return Score(found.difference, series, {**found.numbers(), **known})

    def _worst(self, against: Against) -> Score:
        multiples = {name: self._change(name, against)[1].late / MEASURES[name].margin for name in self._measures}
        multiples = {name: value for name, value in multiples.items() if not math.isnan(value)}
        return Score(max(multiples.values(), default=0.0), extra=multiples)


_SHARED = Shared(LookWork)
