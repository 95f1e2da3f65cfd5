"""A report of a benchmark: one HTML file that needs nothing else, and the same tables in files for other programs.

Puts together what the leaderboard, the plots and the pictures are; computes no score.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from svi.evaluation import export, statistics
from svi.evaluation import report_html as html
from svi.evaluation.report_frames import Sheet, make_sheet, pick
from svi.evaluation.report_plots import Dot, Line, Whisker, curves, scatter, whiskers
from svi.evaluation.runner import Tick, Watch
from svi.evaluation.scored import Scored
from svi.evaluation.store import MetricNote, Row
from svi.evaluation.suites import SUITES
from svi.evaluation.table import Board, Column
from svi.files import explained, write_atomic, write_json

BINS = 80  # points of a curve at most
OPEN = 9  # curves shown at once; the rest can be opened
STEADY = ("subject_consistency", "background_consistency", "look")  # the first that was scored stands for consistency
MOVING = ("dynamic_degree", "motion")


def write_report(
    scored: Sequence[Scored], board: Board, folder: Path, *, sheets: int = 2, watch: Watch = lambda tick: None
) -> list[Path]:
    """Write report.html, report.md, leaderboard.csv, leaderboard.tex, samples.csv and summary.json.

    Args:
        scored, board: results and their leaderboard.
        folder: where the files go.
        sheets: samples of which frames are shown; their videos are read again.
        watch: called while videos are read.

    Returns:
        The files, the page first.

    Raises:
        UserError: for a full disk.
    """
    with explained(folder, "create"):
        folder.mkdir(parents=True, exist_ok=True)
    found = _sheets(scored, sheets, watch)
    texts = {
        "report.html": page(scored, board, found),
        "report.md": export.markdown(board),
        "leaderboard.csv": export.board_csv(board),
        "leaderboard.tex": export.latex(board),
        "samples.csv": export.samples_csv(scored, board),
    }
    for name, text in texts.items():
        write_atomic(folder / name, text.encode())
    write_json(folder / "summary.json", export.summary(board))
    return [folder / name for name in (*texts, "summary.json")]


def page(scored: Sequence[Scored], board: Board, found: Sequence[Sheet] = ()) -> str:
    """The report as one HTML page without outside requests."""
    methods = [row.method for row in board.rows]
    notes = {name: note for one in scored for name, note in one.index.metrics.items()}
    plotted = series_plots(scored, notes)
    over_time = html.legend(methods) + html.figures(plotted[:OPEN]) if plotted else ""
    if plotted[OPEN:]:
        more = f"<summary>{len(plotted) - OPEN} more curves</summary>{html.figures(plotted[OPEN:])}"
        over_time += f"<details>{more}</details>"
    suite = SUITES.get(board.suite)
    settled = [(s.topic, "; ".join(s.says), s.choice) for s in suite.settled] if suite else []
    videos = sum(row.samples for row in board.rows)
    subtitle = f"{len(methods)} methods, {videos} videos{f': {suite.about}' if suite else ''}"
    sections = [
        ("opening", board.title or "Benchmark", html.opening(board, suite.opening if suite else ())),
        ("first", "Read this first", html.first_words(board)),
        ("leaderboard", "Leaderboard", html.leaderboard(board)),
        ("motion", "Consistency against motion", _against_motion(board)),
        ("intervals", "Values with their intervals", html.figures(_whiskers(board))),
        ("differences", "Differences, paired by video", html.differences(board)),
        ("time", "Over time", over_time),
        ("frames", "Frames", html.sheets(found)),
        ("degenerate", "Degenerate videos", html.degenerate(board)),
        ("left-out", "Left out, and counted nowhere", html.left_out(board)),
        ("provenance", "Where it comes from", html.provenance(notes, _made(scored), settled)),
    ]
    footer = f"svi bench report, {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"
    return html.page(board.title or "Benchmark", subtitle, sections, footer)


# -- over time


def series_plots(scored: Sequence[Scored], notes: Mapping[str, MetricNote]) -> list[tuple[str, str]]:
    """A panel per series of every metric: mean over videos with its band, one line per method."""
    names: dict[tuple[str, str], None] = {}
    for one in scored:
        for _, results in one.samples.values():
            for metric, result in results.items():
                names |= dict.fromkeys((metric, name) for name in result.series)
    rows = [row for one in scored for row, _ in one.samples.values() if row.facts]
    borders = [border / row.facts["fps"] for row in rows[:1] for border in row.facts["borders"]]
    found = []
    for metric, name in names:
        lines = [line for style, one in enumerate(scored) if (line := _line(one, metric, name, style)) is not None]
        if lines:
            title = metric.replace("_", " ") + ("" if metric.endswith(name) else f": {name.replace('_', ' ')}")
            found.append((title, curves(title, notes[metric].unit if metric in notes else "", lines, borders)))
    return found


def _line(one: Scored, metric: str, name: str, style: int) -> Line | None:
    """The mean over videos at even times, with its 95 % band."""
    courses = []
    for row, results in one.samples.values():
        result = results.get(metric)
        if result is None or name not in result.series or not row.facts:
            continue
        at, values = result.series[name]
        courses.append((np.array(at) / row.facts["fps"], np.array(values, dtype=np.float64), row.facts))
    courses = [course for course in courses if len(course[0]) > 1]
    if not courses:
        return None
    end = max(facts["num_frames"] / facts["fps"] for _, _, facts in courses)
    bins = min(BINS, max(len(times) for times, _, _ in courses))
    rows = np.stack([_binned(times, values, end, bins) for times, values, _ in courses])
    mean = statistics.curve(rows)
    middle = (np.arange(bins) + 0.5) * end / bins
    return Line(one.index.method, style, middle, mean.mean, mean.low, mean.high)


def _binned(times: np.ndarray, values: np.ndarray, end: float, bins: int) -> np.ndarray:
    """Mean of the values in each of ``bins`` equal parts of ``[0, end)``; NaN where there is none."""
    good = np.isfinite(values)
    place = np.minimum((times[good] / end * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    sums = np.bincount(place, values[good], minlength=bins)
    return np.asarray(sums / np.where(counts, counts, np.nan))


# -- plots of the leaderboard


def _whiskers(board: Board) -> list[tuple[str, str]]:
    found = []
    for column in board.columns:
        rows = []
        for row in board.rows:
            cell = row.cells.get(column.id)
            if cell is not None and cell.estimate is not None:
                e = cell.estimate
                kind = "fooler" if row.fooler or not row.ranked else "own"
                rows.append(Whisker(row.method, e.mean, e.low, e.high, kind))
        for paper in board.reported:
            value = export.reported_value(paper, column)
            if value is not None:
                rows.append(Whisker(f"{paper.method}, paper", value, float("nan"), float("nan"), "reported"))
        if rows:
            title = f"{column.title} {export.ARROWS[column.better]}".strip()
            found.append((title, whiskers(column.title, column.unit, rows)))
    return found


def _against_motion(board: Board) -> str:
    """Consistency alone is won by a still picture: the plane of both, with the foolers marked."""
    columns = {column.id: column for column in board.columns}
    steady = next((columns[name] for name in STEADY if name in columns), None)
    moving = next((columns[name] for name in MOVING if name in columns), None)
    if steady is None or moving is None:
        return ""
    dots = []
    for style, row in enumerate(board.rows):
        x, y = row.cells[moving.id].estimate, row.cells[steady.id].estimate
        if x is not None and y is not None:
            dots.append(Dot(row.method, x.mean, y.mean, style, "fooler" if row.fooler or not row.ranked else "own"))
    for paper in board.reported:
        at = export.reported_value(paper, moving), export.reported_value(paper, steady)
        if at[0] is not None and at[1] is not None:
            dots.append(Dot(f"{paper.method}, paper", at[0], at[1], 0, "reported"))
    if not dots:
        return ""
    title = f"{_named(steady)} against {_named(moving)}"
    told = (
        "<p>Whoever repeats or stands still is consistent. Crosses are foolers and methods that a gate calls degenerate; "
        "diamonds are what the paper reports.</p>"
    )
    return told + html.figures([(title, scatter(title, _named(moving), _named(steady), dots))])


def _named(column: Column) -> str:
    return f"{column.title}{f' ({column.unit})' if column.unit else ''}"


# -- pictures and provenance


def _sheets(scored: Sequence[Scored], count: int, watch: Watch) -> list[Sheet]:
    if not count or not scored:
        return []
    shared = set.intersection(*[set(one.samples) for one in scored])
    rows: list[Row] = [row for row, _ in scored[0].samples.values()]
    wanted = [(one, name) for name in pick(rows, sorted(shared), count) for one in scored if name in one.samples]
    began, found = time.monotonic(), []
    for number, (one, name) in enumerate(wanted, 1):
        row, results = one.samples[name]
        found.append(make_sheet(one.index.method, row, results, one.index.metrics))
        left = (time.monotonic() - began) / number * (len(wanted) - number)
        watch(Tick(number / len(wanted), left))
    return found


def _made(scored: Sequence[Scored]) -> dict[str, Any]:
    """Software, and what the files are, in a few lines."""
    made: dict[str, Any] = {}
    for one in scored:
        made |= one.index.made
    rows = [row.facts for one in scored for row, _ in one.samples.values() if row.facts]
    for fact, words in (("codec", "codecs"), ("fps", "frame rates"), ("num_frames", "frames")):
        made[words] = ", ".join(map(str, sorted({row[fact] for row in rows})))
    made["sizes"] = ", ".join(sorted({f"{row['width']}x{row['height']}" for row in rows}))
    handled = sorted({note for row in rows for note in row["notes"]})
    if handled:
        made["how files were read"] = "; ".join(handled)
    for one in scored:
        made[f"videos of {one.index.method}"] = one.index.source
    return made
