"""Small multiples of curves with intervals, as SVG: a panel per measure, a line per arm, one legend.

Text that any browser shows and a diff can read; needs no plotting library. Knows curves, nothing about drift.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from svi.evaluation.statistics import Curve

# Okabe and Ito's colours, told apart by all readers; then the same, dashed.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A6D3B")
WIDTH, HEIGHT = 300, 190  # of a panel's field, px
LEFT, TOP, RIGHT, BOTTOM = 52, 34, 16, 36  # around it
COLUMNS = 3
POINTS = 160  # of a line at most
LEGEND = 18  # px per row


@dataclass(frozen=True)
class Line:
    """A curve over clips and whose it is."""

    name: str
    curve: Curve


@dataclass(frozen=True)
class Panel:
    """One measure."""

    title: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class _Axes:
    """From clips (counted from 1) and values to pixels of the page."""

    left: float
    top: float
    clips: int
    low: float
    high: float

    def x(self, clip: float) -> float:
        return self.left + (clip - 1) / max(1, self.clips - 1) * WIDTH

    def y(self, value: float) -> float:
        return self.top + (1 - (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)) * HEIGHT


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers in [low, high], about ``count``."""
    raw = (high - low) / max(1, count)
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def draw(title: str, names: Sequence[str], panels: Sequence[Panel]) -> str:
    """The page. ``names``: all arms in the order of the legend, which gives each its colour."""
    cell_w, cell_h = LEFT + WIDTH + RIGHT, TOP + HEIGHT + BOTTOM
    columns = min(COLUMNS, max(1, len(panels)))
    rows = -(-len(panels) // columns)
    per_row = max(1, columns * cell_w // 190)
    legend_rows = -(-len(names) // per_row)
    width, head = columns * cell_w, 34 + legend_rows * LEGEND
    height = head + rows * cell_h
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for index, name in enumerate(names):
        x, y = LEFT + index % per_row * 190, 40 + index // per_row * LEGEND
        parts.append(f'<line x1="{x}" y1="{y - 4}" x2="{x + 22}" y2="{y - 4}" {_stroke(index)}/>')
        parts.append(f'<text x="{x + 28}" y="{y}">{escape(name)}</text>')
    order = {name: index for index, name in enumerate(names)}
    for index, panel in enumerate(panels):
        left, top = index % columns * cell_w + LEFT, head + index // columns * cell_h + TOP
        parts += _panel(panel, order, left, top)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _stroke(index: int) -> str:
    dash = ("", ' stroke-dasharray="6 3"', ' stroke-dasharray="2 2"')[index // len(COLOURS) % 3]
    return f'stroke="{COLOURS[index % len(COLOURS)]}" stroke-width="1.8" fill="none"{dash}'


def _panel(panel: Panel, order: dict[str, int], left: float, top: float) -> list[str]:
    clips = max((len(line.curve.mean) for line in panel.lines), default=1)
    axes = _Axes(left, top, clips, *_range(panel.lines))
    parts = [f'<text x="{left}" y="{top - 10}" font-weight="bold">{escape(panel.title)}</text>']
    for value in ticks(axes.low, axes.high):
        y = axes.y(value)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + WIDTH}" y2="{y:.1f}" stroke="#e4e4e8"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{value:g}</text>')
    for clip in _clip_ticks(clips):
        x = axes.x(clip)
        parts.append(f'<text x="{x:.1f}" y="{top + HEIGHT + 16}" text-anchor="middle" fill="#555">{clip}</text>')
    parts.append(f'<text x="{left + WIDTH / 2}" y="{top + HEIGHT + 30}" text-anchor="middle" fill="#555">clip</text>')
    for line in panel.lines:
        parts += _line(line, order[line.name], axes)
    return parts


def _range(lines: Sequence[Line]) -> tuple[float, float]:
    values = np.concatenate([np.concatenate([line.curve.mean, line.curve.low, line.curve.high]) for line in lines])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    room = 0.06 * (high - low) or max(0.1, abs(high) * 0.1)
    return low - room, high + room


def _clip_ticks(clips: int) -> list[int]:
    if clips <= 8:
        return list(range(1, clips + 1))
    return [1, *(round(value) for value in ticks(1, clips) if value > clips / 12)]


def _line(line: Line, index: int, axes: _Axes) -> list[str]:
    chosen = np.unique(np.linspace(0, len(line.curve.mean) - 1, POINTS).round().astype(int))
    good = [k for k in chosen if np.isfinite(line.curve.mean[k])]
    if not good:
        return []
    parts = []
    banded = [k for k in good if np.isfinite(line.curve.low[k])]
    if len(banded) > 1:
        upper = [(axes.x(k + 1), axes.y(line.curve.high[k])) for k in banded]
        lower = [(axes.x(k + 1), axes.y(line.curve.low[k])) for k in reversed(banded)]
        colour = COLOURS[index % len(COLOURS)]
        parts.append(f'<polygon points="{_points(upper + lower)}" fill="{colour}" fill-opacity="0.15"/>')
    middle = [(axes.x(k + 1), axes.y(line.curve.mean[k])) for k in good]
    if len(middle) == 1:
        x, y = middle[0]
        return [*parts, f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" {_stroke(index)}/>']
    return [*parts, f'<polyline points="{_points(middle)}" {_stroke(index)}/>']


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
