"""From stored results to a leaderboard: means with intervals over the samples that all methods share, and what differs.

Every comparison is paired by sample. A cell says how many videos it stands on; what was skipped or failed is listed with
its reason and counted nowhere. The best value is marked only where no other's interval reaches it, and never for a
method that a gate calls degenerate. Knows stored results; nothing about videos, nor how a table is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from svi.errors import UserError, nearest
from svi.evaluation import gates, statistics
from svi.evaluation.metric import Better, Score, Skipped
from svi.evaluation.paper import Reported, reported
from svi.evaluation.registry import YES_NO
from svi.evaluation.scored import TRUTH, Scored, unequal
from svi.evaluation.statistics import Estimate
from svi.evaluation.store import MetricNote, Result

PERCENT = "%"
FEWEST = 5  # videos; a bootstrap of fewer gives intervals that are too narrow to call anything best


@dataclass(frozen=True)
class Column:
    """A column: a metric's value, or (``field``) one of its further numbers. ``yes_no``: a share of videos."""

    metric: str
    field: str
    title: str
    unit: str
    better: Better
    source: str
    yes_no: bool = False

    @property
    def id(self) -> str:
        """Unique in a table: ``metric``, or ``metric.field``."""
        return f"{self.metric}.{self.field}" if self.field else self.metric


@dataclass(frozen=True)
class Cell:
    """A mean over the shared samples. ``weighted``: the mean that counts longer videos more, where a protocol has it."""

    estimate: Estimate | None
    best: bool = False
    weighted: float | None = None
    own_n: int = 0


@dataclass(frozen=True)
class MethodRow:
    """A row of the leaderboard.

    Attributes:
        cells: by column id.
        degenerate: videos that a gate refuses, by sample, and why.
        ranked: not more than half of its videos are degenerate.
        samples: videos that can be read.
        left_out: samples that have no score at all, or not in some metric, with reasons.
    """

    method: str
    about: str
    cells: Mapping[str, Cell]
    fooler: bool = False
    degenerate: Mapping[str, str] = field(default_factory=dict)
    ranked: bool = True
    left_out: tuple[tuple[str, str], ...] = ()
    samples: int = 0


@dataclass(frozen=True)
class Difference:
    """``method`` minus ``against`` in one column, paired by sample.

    Attributes:
        estimate: mean difference with its interval.
        p, p_holm: two-sided; the second corrected for all comparisons of the table.
        wins, ties, losses: samples in which ``method`` is better, equal, worse (by the column's direction).
        detectable: the smallest true difference that so many samples would probably have shown.
    """

    method: str
    against: str
    column: str
    estimate: Estimate
    p: float
    p_holm: float
    wins: int
    ties: int
    losses: int
    detectable: float


@dataclass(frozen=True)
class Board:
    """A leaderboard with everything that its reader has to know."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[MethodRow, ...]
    differences: tuple[Difference, ...] = ()
    reported: tuple[Reported, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    details: tuple[Column, ...] = ()
    suite: str = ""


def leaderboard(
    scored: Sequence[Scored],
    *,
    title: str = "",
    suite: str = "",
    against: str | None = None,
    force: bool = False,
    sets: Mapping[str, Mapping[str, Score]] | None = None,
) -> Board:
    """The table of several methods.

    Args:
        scored: rows, in order.
        title: of the table.
        suite: whose rows of the paper stand beside it.
        against: the method that the others are compared with; None = the first.
        force: compare also where frame rates or sizes differ from method to method.
        sets: scores of whole sets by metric and method, as from :func:`svi.evaluation.scored.compare_sets`.

    Raises:
        UserError: where they differ, or ``against`` is unknown.
    """
    names = [one.index.method for one in scored]
    if against is not None and against not in names:
        raise UserError(f"there is no method {against!r} to compare with: {nearest(against, names)}")
    differing = unequal(scored)
    if differing and not force:
        raise UserError(f"these do not compare: {differing[0]}; --force compares all the same")
    columns, details = _columns(scored)
    shared = {column.id: _shared(scored, column) for column in (*columns, *details)}
    cells = {one.index.method: _cells(one, (*columns, *details), shared) for one in scored}
    for column, by_method in _set_columns(scored, sets or {}):
        columns.append(column)
        for name, score in by_method.items():
            cells[name][column.id] = _set_cell(score)
    degenerate = _degenerate(scored)
    ranked = [one.index.method for one in scored if len(degenerate[one.index.method]) * 2 <= _readable(one)]
    best = {column.id: _best(column, cells, ranked) for column in columns if column.metric not in (sets or {})}
    rows = [
        MethodRow(
            method=one.index.method,
            about=one.index.about,
            cells={
                id_: Cell(cell.estimate, best.get(id_) == one.index.method, cell.weighted, cell.own_n)
                for id_, cell in cells[one.index.method].items()
            },
            fooler=one.index.fooler,
            degenerate=degenerate[one.index.method],
            ranked=one.index.method in ranked,
            left_out=one.left_out(),
            samples=_readable(one),
        )
        for one in scored
    ]
    return Board(
        title=title,
        columns=tuple(columns),
        rows=tuple(rows),
        differences=tuple(_differences(scored, columns, shared, against or names[0])) if len(scored) > 1 else (),
        reported=reported(suite),
        missing=_missing(scored),
        warnings=(*differing, *_warnings(scored, columns, shared), *_floors(sets or {})),
        details=tuple(details),
        suite=suite,
    )


# -- cells


def _columns(scored: Sequence[Scored]) -> tuple[list[Column], list[Column]]:
    """Values of metrics, and further numbers, which have no direction and are not ranked."""
    notes: dict[str, MetricNote] = {}
    for one in scored:
        notes |= one.index.metrics
    columns, details = [], []
    for name, note in notes.items():
        values = [value for one in scored for value in one.values(name).values()]
        yes_no = name in YES_NO and set(values) <= {0.0, 100.0 if note.unit == PERCENT else 1.0}
        title = name.replace("_", " ")
        if values:
            columns.append(Column(name, "", title, note.unit, Better(note.better), note.source, yes_no))
        for extra in _extras(scored, name):
            words = f"{title}: {extra.replace('_', ' ')}"
            details.append(Column(name, extra, words, "", Better.NEITHER, note.source))
    return columns, details


def _set_columns(
    scored: Sequence[Scored], sets: Mapping[str, Mapping[str, Score]]
) -> list[tuple[Column, Mapping[str, Score]]]:
    notes = {name: note for one in scored for name, note in one.index.metrics.items()}
    return [
        (Column(name, "", name, notes[name].unit, Better(notes[name].better), notes[name].source), by_method)
        for name, by_method in sets.items()
    ]


def _set_cell(score: Score) -> Cell:
    assert score.value is not None
    low, high = (score.extra.get(end, math.nan) for end in ("low", "high"))
    n = int(score.extra.get("videos", 0))
    return Cell(Estimate(score.value, low, high, n), own_n=n)


def _extras(scored: Sequence[Scored], metric: str) -> list[str]:
    found: dict[str, None] = {}
    for one in scored:
        for _, results in one.samples.values():
            if metric in results:
                found |= dict.fromkeys(results[metric].extra)
    return list(found)


def _shared(scored: Sequence[Scored], column: Column) -> list[str]:
    """Samples that every method with any value has: only those compare."""
    sets = [set(values) for one in scored if (values := one.values(column.metric, column.field))]
    return sorted(set.intersection(*sets)) if sets else []


def _cells(one: Scored, columns: Iterable[Column], shared: Mapping[str, Sequence[str]]) -> dict[str, Cell]:
    cells = {}
    for column in columns:
        values = one.values(column.metric, column.field)
        chosen = [values[sample] for sample in shared[column.id] if sample in values]
        if not chosen:
            cells[column.id] = Cell(None, own_n=len(values))
            continue
        weights = [one.samples[s][1][column.metric].weight for s in shared[column.id] if s in values]
        weighted = None
        if not column.field and len(set(weights)) > 1:
            weighted = float(np.average(chosen, weights=weights))
        cells[column.id] = Cell(_estimate(column, np.array(chosen)), weighted=weighted, own_n=len(values))
    return cells


def _estimate(column: Column, values: np.ndarray) -> Estimate:
    if not column.yes_no:
        return statistics.estimate(values)
    full = 100.0 if column.unit == PERCENT else 1.0
    low, high = statistics.wilson(round(float(values.sum()) / full), len(values))
    return Estimate(float(values.mean()), low * full, high * full, len(values))


def _best(column: Column, cells: Mapping[str, Mapping[str, Cell]], ranked: Sequence[str]) -> str | None:
    """The best method, where its interval lies clear of all others'."""
    found = {name: cell.estimate for name in ranked if (cell := cells[name][column.id]).estimate is not None}
    if len(found) < 2 or column.better is Better.NEITHER or min(e.n for e in found.values()) < FEWEST:
        return None
    if column.better is Better.ZERO:
        spans = {name: _away_from_zero(e) for name, e in found.items()}
    else:
        spans = {name: (e.low, e.high) for name, e in found.items()}
    sign = 1 if column.better is Better.HIGHER else -1
    centre = {name: abs(e.mean) if column.better is Better.ZERO else e.mean for name, e in found.items()}
    first = max(found, key=lambda name: sign * centre[name])
    low, high = spans[first]
    if math.isnan(low):
        return None
    for name, (other_low, other_high) in spans.items():
        clear = other_high < low if sign > 0 else other_low > high
        if name != first and not clear:
            return None
    return first


def _away_from_zero(estimate: Estimate) -> tuple[float, float]:
    """The interval of the distance to zero."""
    low, high = sorted((abs(estimate.low), abs(estimate.high)))
    return (0.0 if estimate.low <= 0 <= estimate.high else low), high


# -- differences


def _differences(
    scored: Sequence[Scored], columns: Sequence[Column], shared: Mapping[str, Sequence[str]], against: str
) -> list[Difference]:
    base = next(one for one in scored if one.index.method == against)
    found: dict[str, Difference] = {}
    for one in scored:
        for column in columns if one is not base else ():
            if column.id not in shared:  # of whole sets
                continue
            ours, theirs = one.values(column.metric, column.field), base.values(column.metric, column.field)
            samples = [sample for sample in shared[column.id] if sample in ours and sample in theirs]
            if len(samples) < 2:
                continue
            a, b = np.array([ours[s] for s in samples]), np.array([theirs[s] for s in samples])
            p = statistics.mcnemar(a > 0, b > 0) if column.yes_no else statistics.permutation_p(a, b)
            won, mean, least = _won(column, a, b), statistics.paired(a, b), statistics.detectable(a - b)
            name = f"{one.index.method}\0{column.id}"
            found[name] = Difference(one.index.method, against, column.id, mean, p, p, *won, detectable=least)
    corrected = statistics.holm({name: difference.p for name, difference in found.items()})
    return [replace(difference, p_holm=corrected[name]) for name, difference in found.items()]


def _won(column: Column, a: np.ndarray, b: np.ndarray) -> tuple[int, int, int]:
    """In how many samples ``a`` is better, equal, worse; in a column without direction: higher, equal, lower."""
    if column.better is Better.ZERO:
        a, b = -np.abs(a), -np.abs(b)
    elif column.better is Better.LOWER:
        a, b = -a, -b
    return int((a > b).sum()), int((a == b).sum()), int((a < b).sum())


# -- what is not there


def _degenerate(scored: Sequence[Scored]) -> dict[str, dict[str, str]]:
    """Videos that a gate refuses, by method and sample, and why; what the true video does too is not held against them."""
    truth = next((one for one in scored if one.index.method == TRUTH), None)
    found: dict[str, dict[str, str]] = {}
    for one in scored:
        reasons: dict[str, str] = {}
        if one is truth:
            found[one.index.method] = reasons
            continue
        for sample, (_, results) in one.samples.items():
            control = None
            if truth is not None and sample in truth.samples:
                control = _scores(truth.samples[sample][1])
            failures = gates.failed(_scores(results), control)
            if failures:
                reasons[sample] = "; ".join(map(str, failures))
        found[one.index.method] = reasons
    return found


def _readable(one: Scored) -> int:
    return sum(not row.excluded for row, _ in one.samples.values())


def _scores(results: Mapping[str, Result]) -> dict[str, Score | Skipped]:
    return {name: Score(result.value, extra=result.extra) for name, result in results.items() if result.status == "ok"}


def _missing(scored: Sequence[Scored]) -> dict[str, str]:
    """Metrics that could not run at all, and why."""
    return {name: note.missing for one in scored for name, note in one.index.metrics.items() if note.missing}


def _warnings(scored: Sequence[Scored], columns: Sequence[Column], shared: Mapping[str, Sequence[str]]) -> list[str]:
    lines = []
    for column in (column for column in columns if column.id in shared):
        counts = {one.index.method: len(one.values(column.metric, column.field)) for one in scored}
        least, most = min(filter(None, counts.values()), default=0), max(counts.values(), default=0)
        n = len(shared[column.id])
        if most and not n:
            lines.append(
                f"{column.title}: no sample was scored for all methods, so none is shown; names map by manifest"
            )
        elif n < most:
            who = ", ".join(name for name, count in counts.items() if count == least)
            lines.append(f"{column.title}: {n} of {most} samples are shared by all methods (fewest: {who})")
    versions = {name: {one.index.metrics[name].version for one in scored if name in one.index.metrics} for name in
                {name for one in scored for name in one.index.metrics}}  # fmt: skip
    lines += [
        f"{name}: scored with versions {', '.join(sorted(v))}: score again"
        for name, v in versions.items()
        if len(v) > 1
    ]
    lengths = {
        one.index.method: {row.facts["num_frames"] for row, _ in one.samples.values() if row.facts} for one in scored
    }
    if len(set(map(frozenset, lengths.values()))) > 1:
        told = ", ".join(f"{name} {'/'.join(map(str, sorted(found)))}" for name, found in lengths.items() if found)
        lines.append(f"lengths differ (frames): {told}")
    return lines


def _floors(sets: Mapping[str, Mapping[str, Score]]) -> list[str]:
    """A distance of sets that is near what two halves of the truth have says nothing."""
    lines = []
    for name, by_method in sets.items():
        for method, score in by_method.items():
            floor, there = score.extra.get("floor"), score.extra.get("value_at_floor")
            if floor is not None and there is not None and there < 2 * floor:
                lines.append(
                    f"{name} of {method}: {there:.3g} where two halves of the truth have {floor:.3g}: says nothing"
                )
    return lines
