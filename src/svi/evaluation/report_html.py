"""The words and tables of a report as HTML text. Knows the leaderboard and the parts of a page; draws and reads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from svi.evaluation.export import (
    ARROWS,
    DIFFERENCE_HEAD,
    NONE,
    difference_rows,
    grouped,
    interval,
    number,
    reported_value,
)
from svi.evaluation.report_frames import Sheet
from svi.evaluation.report_plots import colour, data_url, matrix
from svi.evaluation.store import MetricNote
from svi.evaluation.table import Board, Cell, Column, MethodRow

STYLE = """
:root { --ink: #1c1c22; --pale: #5b5b66; --line: #dcdce2; --soft: #f5f5f8; --bad: #a3260a; --accent: #0b5cad; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; color: var(--ink); background: #fff; font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
header, main, footer { max-width: 1240px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.25rem; margin: 40px 0 8px; padding-top: 12px; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 20px 0 6px; }
p, ul { margin: 6px 0 12px; max-width: 78ch; }
li { margin: 2px 0; }
a { color: var(--accent); }
nav a { display: inline-block; margin: 4px 14px 4px 0; padding: 4px 0; }
.pale, figcaption, .ci { color: var(--pale); }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; margin: 8px 0 16px; }
.scroll:focus-visible, summary:focus-visible, a:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 8px 12px; color: var(--pale); }
th, td { padding: 7px 12px; text-align: right; vertical-align: top; border-top: 1px solid var(--line); white-space: nowrap; }
thead th { background: var(--soft); border-top: 0; font-weight: 600; vertical-align: bottom; white-space: normal; min-width: 6.5em; }
th:first-child, td:first-child { text-align: left; }
tbody th { position: sticky; left: 0; background: #fff; font-weight: 500; border-right: 1px solid var(--line); }
.text td, .text th { text-align: left; white-space: normal; }
.ci { display: block; font-size: .8125rem; }
.best { font-weight: 700; }
.reported th, .reported td { color: var(--pale); font-style: italic; background: #fafafc; }
.badge { display: inline-block; white-space: nowrap; padding: 0 7px; margin-left: 4px; border-radius: 9px; font-size: .75rem; border: 1px solid; }
.bad { color: var(--bad); } .mark { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 7px; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 18px; }
figure { margin: 0; } figure svg { width: 100%; height: auto; display: block; } figcaption { font-size: .875rem; }
.plots figcaption { font-weight: 600; color: var(--ink); font-size: .9375rem; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; padding: 0; list-style: none; max-width: none; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)); gap: 8px; margin: 6px 0 18px; }
.sheet img { width: 100%; height: auto; display: block; border-radius: 3px; }
.sheet .alike img, .sheet .small img { image-rendering: pixelated; }
.worst figcaption { color: var(--bad); }
details { margin: 8px 0; } summary { cursor: pointer; padding: 6px 0; font-weight: 600; }
code { font-size: .875em; overflow-wrap: anywhere; white-space: normal; }
footer { padding-top: 20px; padding-bottom: 40px; }
@media (max-width: 600px) {
  header, main, footer { padding-left: 14px; padding-right: 14px; }
  h1 { font-size: 1.4rem; } th, td { padding: 6px 8px; } tbody th { min-width: 8em; max-width: 40vw; white-space: normal; overflow-wrap: anywhere; }
  .sheet { grid-template-columns: repeat(auto-fill, minmax(96px, 1fr)); }
}
@media print { .scroll { overflow: visible; } details > * { display: block; } }
"""

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1><p class="pale">{subtitle}</p><nav aria-label="Sections">{links}</nav></header>
<main>{sections}</main>
<footer class="pale">{footer}</footer>
</body>
</html>
"""


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str, str]], footer: str) -> str:
    """A whole page. ``sections``: id, heading, HTML; empty ones are left out."""
    shown = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{id_}">{escape(heading)}</a>' for id_, heading, _ in shown)
    body = "".join(f'<section id="{id_}"><h2>{escape(heading)}</h2>{html}</section>\n' for id_, heading, html in shown)
    values = {"title": escape(title), "subtitle": escape(subtitle), "links": links, "sections": body}
    return PAGE.format(style=STYLE, footer=escape(footer), **values)


def first_words(board: Board) -> str:
    """What a reader has to know before the numbers."""
    lines = [f"<li>{escape(line)}</li>" for line in board.warnings]
    for row in board.rows:
        if row.degenerate:
            count = f"{len(row.degenerate)} of {row.samples} videos"
            rank = "" if row.ranked else ", so it is not ranked"
            reason = next(iter(row.degenerate.values()))
            lines.append(
                f'<li><b class="bad">{escape(row.method)}</b>: {count} degenerate{rank}; {escape(reason)}</li>'
            )
    lines += [f"<li>{escape(name)} was not scored. {escape(why)}</li>" for name, why in board.missing.items()]
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def leaderboard(board: Board) -> str:
    """A table per group of metrics."""
    parts = [
        "<p>Means over the videos that all methods share, with 95 % intervals and the number of videos. Bold: the best, "
        "where there are at least five videos and no other method's interval reaches it. Rows in grey are what the paper reports, not reproduced here.</p>"
    ]
    parts += [f"<h3>{escape(group)}</h3>{_table(board, columns, group)}" for group, columns in grouped(board)]
    return "".join(parts)


def opening(board: Board, ids: Sequence[str]) -> str:
    """The one table that a suite's report opens with: the columns ``ids`` that were scored."""
    columns = [column for id_ in ids for column in board.columns if column.id == id_]
    return _table(board, columns, board.title) if columns else ""


def _table(board: Board, columns: Sequence[Column], label: str) -> str:
    styles = {row.method: index for index, row in enumerate(board.rows)}
    head = "".join(f'<th scope="col">{_head(column)}</th>' for column in columns)
    rows = "".join(_row(row, columns, styles[row.method]) for row in board.rows)
    for paper in board.reported:
        values = [reported_value(paper, column) for column in columns]
        if any(value is not None for value in values):
            cells = "".join(f"<td>{NONE if value is None else number(value)}</td>" for value in values)
            name = (
                f"{paper.method} <span class='badge'>reported, {paper.where}</span><span class='ci'>n={paper.n}</span>"
            )
            rows += f'<tr class="reported"><th scope="row">{name}</th>{cells}</tr>'
    table = f'<thead><tr><th scope="col">method</th>{head}</tr></thead><tbody>{rows}</tbody>'
    return scroll(f"<table>{table}</table>", label)


def _head(column: Column) -> str:
    arrow = ARROWS[column.better]
    unit = f' <span class="ci">{escape(column.unit)}</span>' if column.unit else ""
    said = f' <span aria-label="{escape(column.better.value)} is better">{arrow}</span>' if arrow else ""
    return f"{escape(column.title)}{said}{unit}"


def _row(row: MethodRow, columns: Sequence[Column], style: int) -> str:
    badges = ""
    if row.degenerate:
        said = f"{len(row.degenerate)}/{row.samples} degenerate" if row.ranked else "degenerate"
        badges += f'<span class="badge bad">{said}</span>'
    badges += '<span class="badge">fooler</span>' if row.fooler else ""
    about = f'<span class="ci">{escape(row.about)}</span>' if row.about else ""
    mark = f'<span class="mark" style="background:{colour(style)}"></span>'
    cells = "".join(_cell(row.cells.get(column.id)) for column in columns)
    return f'<tr><th scope="row">{mark}{escape(row.method)}{badges}{about}</th>{cells}</tr>'


def _cell(cell: Cell | None) -> str:
    if cell is None or cell.estimate is None:
        return f"<td>{NONE}</td>"
    estimate = cell.estimate
    best = ' class="best"' if cell.best else ""
    told = " ".join(filter(None, [interval(estimate), f"n={estimate.n}"]))
    weighted = "" if cell.weighted is None else f'<span class="ci">frame-weighted {number(cell.weighted)}</span>'
    return f'<td><span{best}>{number(estimate.mean)}</span><span class="ci">{told}</span>{weighted}</td>'


def differences(board: Board) -> str:
    """Every paired comparison."""
    if not board.differences:
        return ""
    head = "".join(f'<th scope="col">{escape(word)}</th>' for word in DIFFERENCE_HEAD)
    rows = "".join(
        f'<tr><th scope="row">{escape(cells[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells[1:])
        + "</tr>"
        for cells in difference_rows(board)
    )
    told = (
        "<p>Each method less the one it is compared with, video by video. p is two-sided (signs flipped; McNemar for yes or "
        "no) and corrected for all comparisons here by Holm's method. A difference smaller than the least detectable one "
        "would probably not have been seen with so many videos: not found is not absent.</p>"
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f"{told}<details><summary>{len(board.differences)} comparisons</summary>{scroll(table, 'differences')}</details>"


def figures(plots: Iterable[tuple[str, str]]) -> str:
    """Plots side by side, each with its caption."""
    parts = [f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>" for title, svg in plots]
    return f'<div class="plots">{"".join(parts)}</div>' if parts else ""


def legend(methods: Sequence[str]) -> str:
    """Which colour is whose."""
    items = (
        f'<li><span class="mark" style="background:{colour(i)}"></span>{escape(name)}</li>'
        for i, name in enumerate(methods)
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def sheets(found: Sequence[Sheet]) -> str:
    """Contact sheets by sample and method."""
    parts = []
    for sample in dict.fromkeys(sheet.sample for sheet in found):
        parts.append(f"<h3>{escape(sample)}</h3>")
        for sheet in (sheet for sheet in found if sheet.sample == sample):
            parts.append(f"<p><b>{escape(sheet.method)}</b></p>")
            parts.append(f'<p class="bad">{escape(sheet.fault)}</p>' if sheet.fault else _sheet(sheet))
    told = (
        "<p>Frames at even times, then those that a metric finds worst, and how alike all times are: both axes are time, "
        "dark is alike. Copies of a clip show as stripes beside the diagonal, there-and-back as a lattice, a still picture as "
        "one dark square.</p>"
    )
    return told + "".join(parts) if parts else ""


def _sheet(sheet: Sheet) -> str:
    cells = []
    for picture in sheet.pictures:
        said = f"{picture.seconds:.1f} s, frame {picture.frame}{': ' + picture.why if picture.why else ''}"
        classes = ("worst " if picture.why else "") + ("small" if picture.pixels.shape[1] < 160 else "")
        alt = f"{sheet.method}, {sheet.sample}, {said}"
        cells.append(_image(data_url(picture.pixels), alt, said, classes, picture.pixels.shape))
    if sheet.alike is not None:
        alt = f"{sheet.method}, {sheet.sample}: likeness of each time with each other, mean {sheet.alike.mean():.2f}"
        cells.append(_image(matrix(sheet.alike), alt, "self-similarity", "alike", sheet.alike.shape))
    return f'<div class="sheet">{"".join(cells)}</div>'


def _image(url: str, alt: str, caption: str, classes: str, shape: Sequence[int]) -> str:
    size = f'width="{shape[1]}" height="{shape[0]}"'
    return (
        f'<figure class="{classes.strip()}"><img src="{url}" alt="{escape(alt)}" {size} loading="lazy">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def left_out(board: Board) -> str:
    """What is counted nowhere, and why."""
    rows = [(row.method, sample, reason) for row in board.rows for sample, reason in row.left_out]
    return text_table(("method", "video", "why"), rows, "videos and scores that are left out") if rows else ""


def degenerate(board: Board) -> str:
    """Every video that a gate refuses."""
    rows = [(row.method, sample, reason) for row in board.rows for sample, reason in row.degenerate.items()]
    if not rows:
        return ""
    table = text_table(("method", "video", "why"), rows, "degenerate videos")
    return f"<details><summary>{len(rows)} videos</summary>{table}</details>"


def provenance(
    notes: Mapping[str, MetricNote], made: Mapping[str, Any], settled: Sequence[tuple[str, str, str]]
) -> str:
    """Metrics with versions and sources, software, and how contradictions of the sources are settled."""
    rows = [(n.name, n.version, n.unit or NONE, n.better, n.source, n.key or n.missing) for n in notes.values()]
    parts = [text_table(("metric", "version", "unit", "better", "source", "settings"), rows, "metrics", code=5)]
    parts.append(text_table(("what", "value"), [(str(k), str(v)) for k, v in made.items()], "software and files"))
    if settled:
        parts.append("<h3>What the sources leave open</h3>")
        parts.append(text_table(("topic", "they say", "here"), settled, "contradictions"))
    return "".join(parts)


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], label: str, *, code: int | None = None) -> str:
    """A table of words. ``code``: a column in typewriter."""
    top = "".join(f'<th scope="col">{escape(word)}</th>' for word in head)
    body = ""
    for row in rows:
        cells = [f"<code>{escape(text)}</code>" if index == code else escape(text) for index, text in enumerate(row)]
        body += f'<tr><th scope="row">{cells[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in cells[1:]) + "</tr>"
    return scroll(f'<table class="text"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>', label)


def scroll(table: str, label: str) -> str:
    """A table that scrolls sideways on a narrow screen, by keyboard too."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{table}</div>'
