"""The plots of a report as SVG text: whiskers, curves with bands and clip borders, a scatter, and matrices as PNG.

Each plot is one panel, narrow enough to be read on a phone; a page sets panels side by side. Every panel carries a title
and a description for those who hear it. Knows numbers and names; nothing about metrics or files.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image

# Okabe and Ito's colours, told apart by all readers, those too pale for thin lines on white left out; then dashed.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#000000", "#8A6D3B")
DASHES = ("", "6 3", "2 2", "8 3 2 3")
GREY, GRID, INK = "#6b6b76", "#e4e4e8", "#1c1c22"
WIDTH = 420  # of a panel, in its own units; text is 12
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 10, 40
POINTS = 200  # of a line at most


@dataclass(frozen=True)
class Whisker:
    """A value with its interval; ``kind``: ``own``, ``reported`` (no interval) or ``fooler``."""

    name: str
    value: float
    low: float
    high: float
    kind: str = "own"


@dataclass(frozen=True)
class Line:
    """A curve: ``x``, ``y`` and its band, ``(k,)`` each; NaN where it has none. ``style``: of the method."""

    name: str
    style: int
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Dot:
    """A method in the plane. ``kind`` as in :class:`Whisker`."""

    name: str
    x: float
    y: float
    style: int
    kind: str = "own"


def colour(style: int) -> str:
    """The colour of the ``style``-th method."""
    return COLOURS[style % len(COLOURS)]


def stroke(style: int) -> str:
    """Attributes of the ``style``-th method's lines: colours repeat with another dash."""
    dash = DASHES[style // len(COLOURS) % len(DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'stroke="{colour(style)}" stroke-width="2" fill="none"{dashed}'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers in [low, high], about ``count``."""
    if not math.isfinite(low) or not math.isfinite(high) or high <= low:
        return [low] if math.isfinite(low) else []
    raw = (high - low) / max(1, count)
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def whiskers(title: str, unit: str, rows: Sequence[Whisker]) -> str:
    """Values with their intervals, one row each, in the order given."""
    spans = [value for row in rows for value in (row.value, row.low, row.high) if math.isfinite(value)]
    left = 14 + 7 * max((len(_cut(row.name)) for row in rows), default=0)
    height = TOP + 24 * len(rows) + BOTTOM
    scale = _Scale.over(spans, left, WIDTH - RIGHT)
    bottom = height - BOTTOM
    parts = [_x_axis(scale, TOP, bottom, unit)]
    for index, row in enumerate(rows):
        y = TOP + 24 * index + 12
        shade = GREY if row.kind != "own" else INK
        italic = ' font-style="italic"' if row.kind != "own" else ""
        parts.append(
            f'<text x="{left - 8}" y="{y + 4}" text-anchor="end" fill="{shade}"{italic}>{escape(_cut(row.name))}</text>'
        )
        if math.isfinite(row.low) and math.isfinite(row.high):
            low, high = scale(row.low), scale(row.high)
            parts.append(
                f'<path d="M{low:.1f} {y}H{high:.1f}M{low:.1f} {y - 4}v8M{high:.1f} {y - 4}v8" {_thin(shade)}/>'
            )
        if math.isfinite(row.value):
            parts.append(_mark(scale(row.value), y, row.kind, shade))
    said = "; ".join(f"{row.name} {row.value:.4g}" for row in rows if math.isfinite(row.value))
    return _panel(title, f"{title}: {said}", height, parts)


def curves(title: str, unit: str, lines: Sequence[Line], borders: Sequence[float], *, label: str = "seconds") -> str:
    """Curves over time with their bands, and where clips begin as upright lines."""
    height = 260
    bottom = height - BOTTOM
    every = [_finite(np.concatenate([line.y, line.low, line.high])) for line in lines]
    values = np.concatenate(every) if every else np.empty(0)
    times = np.concatenate([line.x for line in lines]) if lines else np.empty(0)
    x = _Scale.over([0.0, *times[np.isfinite(times)]], LEFT, WIDTH - RIGHT, room=0)
    y = _Scale.over(list(values), bottom, TOP)
    parts = [_y_axis(y, LEFT, WIDTH - RIGHT), _x_axis(x, TOP, bottom, label, grid=False)]
    shown = [border for border in borders if x.low < border < x.high]
    if shown:
        path = "".join(f"M{x(border):.1f} {TOP}V{bottom}" for border in shown)
        parts.append(f'<path d="{path}" stroke="#9a9aa8" stroke-width="1" stroke-dasharray="2 3" fill="none"/>')
    for line in lines:
        parts += _curve(line, x, y)
    parts.append(f'<text x="{LEFT}" y="{height - 6}" fill="{GREY}">{escape(unit)}</text>')
    said = "; ".join(_said(line) for line in lines)
    return _panel(title, f"{title} over {label}. {said}", height, parts)


def scatter(title: str, x_name: str, y_name: str, dots: Sequence[Dot]) -> str:
    """Methods in the plane of two metrics; foolers are crosses."""
    height = 330
    bottom = height - BOTTOM
    x = _Scale.over([dot.x for dot in dots], LEFT, WIDTH - RIGHT, room=0.12)
    y = _Scale.over([dot.y for dot in dots], bottom, TOP, room=0.12)
    parts = [_y_axis(y, LEFT, WIDTH - RIGHT), _x_axis(x, TOP, bottom, f"{x_name} (right); {y_name} (up)")]
    taken: list[tuple[float, float]] = []
    for dot in sorted(dots, key=lambda dot: -dot.y):
        at_x, at_y = x(dot.x), y(dot.y)
        shade = colour(dot.style) if dot.kind == "own" else GREY
        parts.append(_mark(at_x, at_y, dot.kind, shade))
        right = at_x < WIDTH * 0.62
        text_y = at_y + 4
        while any(abs(text_y - other_y) < 12 and abs(at_x - other_x) < 110 for other_x, other_y in taken):
            text_y += 12
        taken.append((at_x, text_y))
        anchor, shift = ("start", 9) if right else ("end", -9)
        parts.append(
            f'<text x="{at_x + shift:.1f}" y="{text_y:.1f}" text-anchor="{anchor}" fill="{shade}">'
            f"{escape(_cut(dot.name))}</text>"
        )
    said = "; ".join(f"{dot.name} ({dot.x:.3g}, {dot.y:.3g})" for dot in dots)
    return _panel(title, f"{title}. {x_name} to the right, {y_name} upwards: {said}", height, parts)


def matrix(values: np.ndarray) -> str:
    """A square matrix of values in [0, 1] as a PNG in a data URL: dark = alike."""
    clipped = np.nan_to_num(np.clip(values, 0, 1))
    low, middle, high = np.array([253, 246, 227.0]), np.array([86, 160, 180.0]), np.array([12, 24, 64.0])
    share = clipped[..., None]
    shade = np.where(share < 0.5, low + (middle - low) * share * 2, middle + (high - middle) * (share * 2 - 1))
    return data_url(shade.round().astype(np.uint8), kind="PNG")


def data_url(picture: np.ndarray, *, kind: str = "JPEG", width: int | None = None) -> str:
    """A picture ``(H, W, 3)`` uint8 as a data URL, at most ``width`` pixels wide."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    if width is not None and image.width > width:
        image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **({"quality": 82} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


@dataclass(frozen=True)
class _Scale:
    """From values to units of the panel."""

    low: float
    high: float
    begin: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], begin: float, end: float, *, room: float = 0.06) -> _Scale:
        finite = [value for value in values if math.isfinite(value)]
        if not finite:
            return cls(0.0, 1.0, begin, end)
        low, high = min(finite), max(finite)
        margin = room * (high - low) or (max(1e-6, abs(high) * 0.02) if high == low else 0.0)
        return cls(low - margin, high + margin, begin, end)

    def __call__(self, value: float) -> float:
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)


def _panel(title: str, description: str, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" font-size="12" '
        f'font-family="system-ui, sans-serif"><title>{escape(title)}</title><desc>{escape(description)}</desc>'
        + "".join(parts)
        + "</svg>"
    )


def _x_axis(scale: _Scale, top: float, bottom: float, name: str, *, grid: bool = True) -> str:
    parts = []
    for value in ticks(scale.low, scale.high, 4):
        x = scale(value)
        if grid:
            parts.append(f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}" stroke="{GRID}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" fill="{GREY}">{value:g}</text>')
    middle = (scale.begin + scale.end) / 2
    parts.append(f'<text x="{middle:.0f}" y="{bottom + 33}" text-anchor="middle" fill="{GREY}">{escape(name)}</text>')
    return "".join(parts)


def _y_axis(scale: _Scale, left: float, right: float) -> str:
    parts = []
    for value in ticks(scale.low, scale.high, 5):
        y = scale(value)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="{GREY}">{value:g}</text>')
    return "".join(parts)


def _mark(x: float, y: float, kind: str, shade: str) -> str:
    if kind == "fooler":
        return f'<path d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8" stroke="{shade}" stroke-width="2" fill="none"/>'
    if kind == "reported":
        return f'<path d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z" stroke="{shade}" fill="white"/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{shade}"/>'


def _curve(line: Line, x: _Scale, y: _Scale) -> list[str]:
    good = np.flatnonzero(np.isfinite(line.y))
    if not good.size:
        return []
    chosen = good[np.unique(np.linspace(0, good.size - 1, min(POINTS, good.size)).round().astype(int))]
    parts = []
    banded = chosen[np.isfinite(line.low[chosen]) & np.isfinite(line.high[chosen])]
    if banded.size > 1:
        outline = [(line.x[k], line.high[k]) for k in banded] + [(line.x[k], line.low[k]) for k in banded[::-1]]
        points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in outline)
        parts.append(f'<polygon points="{points}" fill="{colour(line.style)}" fill-opacity="0.13"/>')
    points = " ".join(f"{x(line.x[k]):.1f},{y(line.y[k]):.1f}" for k in chosen)
    if chosen.size == 1:
        at = x(line.x[chosen[0]]), y(line.y[chosen[0]])
        return [*parts, f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="3" fill="{colour(line.style)}"/>']
    return [*parts, f'<polyline points="{points}" {stroke(line.style)}/>']


def _said(line: Line) -> str:
    values = _finite(line.y)
    return f"{line.name} from {values[0]:.4g} to {values[-1]:.4g}" if values.size else f"{line.name}: none"


def _finite(values: np.ndarray) -> np.ndarray:
    return np.asarray([value for value in values if math.isfinite(value)], dtype=np.float64)


def _thin(shade: str) -> str:
    return f'stroke="{shade}" stroke-width="1.5" fill="none"'


def _cut(name: str, width: int = 22) -> str:
    return name if len(name) <= width else name[: width - 1] + "…"
