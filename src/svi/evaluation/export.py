"""A leaderboard as Markdown, CSV, LaTeX and JSON, and one line per video as CSV. Knows the table; computes nothing."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from svi.evaluation.metric import Better
from svi.evaluation.paper import Reported
from svi.evaluation.registry import GROUPS, group_of
from svi.evaluation.scored import Scored
from svi.evaluation.statistics import Estimate
from svi.evaluation.table import PERCENT, Board, Cell, Column, MethodRow

ARROWS = {Better.HIGHER: "↑", Better.LOWER: "↓", Better.ZERO: "→ 0", Better.NEITHER: ""}
TEX_ARROWS = {
    Better.HIGHER: r"$\uparrow$",
    Better.LOWER: r"$\downarrow$",
    Better.ZERO: r"$\rightarrow 0$",
    Better.NEITHER: "",
}
TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    sign: f"\\{sign}" for sign in "&%$#_{}"
}
NONE = "–"


def grouped(board: Board) -> list[tuple[str, list[Column]]]:
    """Columns under their headings, in the order in which those stand in a report."""
    found: dict[str, list[Column]] = {}
    for column in board.columns:
        found.setdefault(group_of(column.metric), []).append(column)
    return [(name, found[name]) for name in GROUPS if name in found]


def number(value: float) -> str:
    """As many digits as tell something: ``98.13``, ``0.004``, ``12.7``, ``337``."""
    if not math.isfinite(value):
        return NONE
    size = abs(value)
    digits = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 or size == 0 else 3
    if 0 < size < 0.0005:
        return f"{value:.1e}"
    text = f"{value:.{digits}f}"
    return text[1:] if float(text) == 0 and text.startswith("-") else text


def interval(estimate: Estimate) -> str:
    """``97.20 to 98.90``; of one video, which has none: empty."""
    if math.isnan(estimate.low):
        return ""
    return f"{number(estimate.low)} to {number(estimate.high)}"


def reported_value(row: Reported, column: Column) -> float | None:
    """What the paper says, in the unit of a column: its percent are shares where ours are."""
    value = row.values.get(column.metric) if not column.field else None
    shares = ("consistency", "quality", "degree", "smoothness")
    if value is not None and column.unit != PERCENT and column.metric.rpartition("_")[2] in shares:
        return value / 100
    return value


def name_of(row: MethodRow) -> str:
    """A method with what its reader must know of it."""
    marks = [] if row.ranked else ["degenerate"]
    if row.ranked and row.degenerate:
        marks.append(f"{len(row.degenerate)} of {row.samples} degenerate")
    marks += ["fooler"] if row.fooler else []
    return f"{row.method} ({', '.join(marks)})" if marks else row.method


def markdown(board: Board) -> str:
    """Everything as Markdown: tables by group, differences, what is missing and left out."""
    parts = [f"# {board.title}\n" if board.title else ""]
    for group, columns in grouped(board):
        head = [f"{c.title} {ARROWS[c.better]}{f' ({c.unit})' if c.unit else ''}".strip() for c in columns]
        rows = [
            [name_of(row), *(_cell(row.cells.get(c.id), "**{}**", " [{}], n={}") for c in columns)]
            for row in board.rows
        ]
        for paper in board.reported:
            values = [reported_value(paper, column) for column in columns]
            if any(value is not None for value in values):
                told = [NONE if value is None else f"*{number(value)}*" for value in values]
                rows.append([f"*{paper.method}, reported ({paper.where}, n={paper.n})*", *told])
        parts.append(f"## {group}\n\n{_pipes(['method', *head], rows)}")
    if board.differences:
        parts.append(f"## Differences, paired by sample\n\n{_pipes(DIFFERENCE_HEAD, difference_rows(board))}")
    notes = [f"- {line}" for line in board.warnings]
    notes += [f"- {metric} was not scored: {reason}" for metric, reason in board.missing.items()]
    if notes:
        parts.append("## Read this first\n\n" + "\n".join(notes) + "\n")
    left_out = [f"- {row.method}/{sample}: {reason}" for row in board.rows for sample, reason in row.left_out]
    degenerate = [
        f"- {row.method}/{sample}: {reason}" for row in board.rows for sample, reason in row.degenerate.items()
    ]
    for title, lines in (("Left out, and counted nowhere", left_out), ("Degenerate videos", degenerate)):
        if lines:
            parts.append(f"## {title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(filter(None, parts))


DIFFERENCE_HEAD = ("method", "against", "metric", "difference", "95 % interval", "n", "p", "p (Holm)", "better/equal/worse",
                   "least detectable")  # fmt: skip


def difference_rows(board: Board) -> list[list[str]]:
    """Paired differences as text, one row each."""
    return [
        [
            difference.method,
            difference.against,
            difference.column,
            number(difference.estimate.mean),
            interval(difference.estimate),
            str(difference.estimate.n),
            p_value(difference.p),
            p_value(difference.p_holm),
            f"{difference.wins}/{difference.ties}/{difference.losses}",
            number(difference.detectable),
        ]
        for difference in board.differences
    ]


def p_value(p: float) -> str:
    """``0.032``, ``<0.001``."""
    return NONE if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def board_csv(board: Board) -> str:
    """One line per method and column: mean, interval, n; the paper's rows with ``reported`` = 1."""
    head = ["method", "metric", "mean", "low", "high", "n", "best", "degenerate_videos", "ranked", "reported"]
    lines: list[Sequence[Any]] = []
    for row in board.rows:
        for column in (*board.columns, *board.details):
            cell = row.cells.get(column.id)
            if cell is not None and cell.estimate is not None:
                e = cell.estimate
                state = [int(cell.best), len(row.degenerate), int(row.ranked), 0]
                lines.append([row.method, column.id, e.mean, _blank(e.low), _blank(e.high), e.n, *state])
    for paper in board.reported:
        for column in board.columns:
            value = reported_value(paper, column)
            if value is not None:
                lines.append([f"{paper.method} ({paper.where})", column.id, value, "", "", paper.n, 0, "", "", 1])
    return _csv(head, lines)


def samples_csv(scored: Sequence[Scored], board: Board) -> str:
    """One line per video: what it is, whether it is degenerate, and every score; empty where there is none."""
    columns = (*board.columns, *board.details)
    facts = ("fps", "num_frames", "width", "height", "codec")
    degenerate = {row.method: row.degenerate for row in board.rows}
    head = ["method", "sample", *facts, "degenerate", "excluded", *(column.id for column in columns)]
    values = {(one.index.method, c.id): one.values(c.metric, c.field) for one in scored for c in columns}
    lines = []
    for one in scored:
        method = one.index.method
        for sample, (row, _) in one.samples.items():
            told = [row.facts.get(fact, "") for fact in facts]
            scores = [values[method, column.id].get(sample, "") for column in columns]
            lines.append([method, sample, *told, degenerate[method].get(sample, ""), row.excluded, *scores])
    return _csv(head, lines)


def latex(board: Board) -> str:
    """Tables by group with booktabs; the paper's rows in grey (needs ``xcolor``)."""
    parts = ["% needs \\usepackage{booktabs,xcolor}; mean [95 % interval], number of videos"]
    for group, columns in grouped(board):
        head = " & ".join(["method", *(f"{_tex(c.title)} {TEX_ARROWS[c.better]}".strip() for c in columns)])
        lines = [
            " & ".join(
                [
                    _tex(name_of(row)),
                    *(_cell(row.cells.get(c.id), r"\textbf{{{}}}", r" {{\scriptsize[{}], $n$={}}}") for c in columns),
                ]
            )
            for row in board.rows
        ]
        for paper in board.reported:
            values = [reported_value(paper, column) for column in columns]
            if any(value is not None for value in values):
                told = [f"{paper.method}, reported", *("--" if v is None else number(v) for v in values)]
                lines.append(" & ".join(rf"\textcolor{{gray}}{{{_tex(text)}}}" for text in told))
        body = " \\\\\n".join(lines).replace(NONE, "--")
        parts.append(
            f"% {group}\n\\begin{{tabular}}{{l{'r' * len(columns)}}}\n\\toprule\n{head} \\\\\n\\midrule\n{body} \\\\\n"
            "\\bottomrule\n\\end{tabular}"
        )
    return "\n\n".join(parts) + "\n"


def summary(board: Board) -> dict[str, Any]:
    """The table as plain data; None for NaN."""
    plain: dict[str, Any] = _without_nan(asdict(board))
    return plain


FORMATS: dict[str, Callable[[Board], str]] = {"md": markdown, "csv": board_csv, "tex": latex}


def _cell(cell: Cell | None, best: str, rest: str) -> str:
    """``rest`` takes the interval and n."""
    if cell is None or cell.estimate is None:
        return NONE
    estimate = cell.estimate
    mean = number(estimate.mean)
    told = interval(estimate)
    if not told:
        return f"{mean} (n={estimate.n})"
    return (best.format(mean) if cell.best else mean) + rest.format(told, estimate.n)


def _pipes(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"

    rule = line(["---", *["---:"] * (len(head) - 1)])
    return line(head) + rule + "".join(line(row) for row in rows)


def _csv(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    return text.getvalue()


def _blank(value: float) -> float | str:
    return "" if math.isnan(value) else value


def _tex(text: str) -> str:
    return "".join(TEX.get(sign, sign) for sign in text)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
