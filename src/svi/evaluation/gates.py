"""Gates before any ranking: a video that copies, stands still or burns out scores well everywhere, and is not ranked.

Works on finished scores by metric name; knows nothing about videos. A gate fails only where the figure is out of bounds with
certainty (its whole interval, where it has one). Where a control is given (the true video, or one made clip by clip from clean
pictures), what the control does too is not held against a video: stories do come to rest, and things do come again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from svi.evaluation.metric import Score, Skipped

ROUNDING = 1e-9  # of what is taken off for the control
Scores = Mapping[str, Score | Skipped]


@dataclass(frozen=True)
class Gate:
    """Bounds of one figure.

    Attributes:
        name: in a few words, of the fault.
        metric: whose score is looked at.
        low, high: bounds, both allowed.
        figure: ``value``, or the name of an extra.
        unit: of the bounds.
        control: how a control's figure is taken off: as a ``difference`` or as a ``ratio``.
    """

    name: str
    metric: str
    low: float
    high: float
    figure: str = "value"
    unit: str = ""
    control: Literal["difference", "ratio"] = "difference"


# Bounds: where the probe of foolers and injected faults (svi.evaluation.selftest) separates them from true video. Shares
# of duplicates and copies leave room for the few frames of a calm moment; foolers have all of them.
GATES: tuple[Gate, ...] = (
    Gate("motion not retained", "motion_retained", 0.8, 1.25, control="ratio"),
    Gate("frames come again", "duplicate_share", 0.0, 0.02),
    Gate("frames are exact copies", "unique_share", 0.98, math.inf),
    Gate("the reference comes again", "reference_copies", 0.0, 0.02),
    Gate("clipped", "look_clipped", -math.inf, 1.0, figure="excursion", unit="%"),
    Gate("black", "black_share", 0.0, 0.01),
)
METRICS = tuple(dict.fromkeys(gate.metric for gate in GATES))  # what must be scored for gates to be judged


@dataclass(frozen=True)
class Failure:
    """A failed gate and the figure that failed it (with a control: what is left of it)."""

    gate: Gate
    figure: float

    def __str__(self) -> str:
        gate, unit = self.gate, f" {self.gate.unit}" if self.gate.unit else ""
        bounds = " to ".join(f"{bound:g}" for bound in (gate.low, gate.high) if math.isfinite(bound))
        limit = "at most " if math.isinf(gate.low) else "at least " if math.isinf(gate.high) else ""
        return f"{gate.name} ({gate.metric} {self.figure:.3g}{unit}, allowed {limit}{bounds}{unit})"


def failed(scores: Scores, control: Scores | None = None, gates: Sequence[Gate] = GATES) -> list[Failure]:
    """Gates that a video fails, in order; any makes it degenerate. What was not scored fails nothing: see :func:`unknown`.

    Args:
        scores: of the video, by metric name.
        control: of what is allowed, scored the same way; a figure that the control lacks is judged without it.
        gates: other bounds than the usual ones.
    """
    found = []
    for gate in gates:
        interval = _interval(scores, gate)
        if interval is None:
            continue
        allowed = None if control is None else _interval(control, gate)
        value, low, high = (_without(part, allowed, gate) for part in interval)
        if high < gate.low - ROUNDING or low > gate.high + ROUNDING:
            found.append(Failure(gate, value))
    return found


def unknown(scores: Scores, gates: Sequence[Gate] = GATES) -> dict[str, str]:
    """Gates by name that cannot be judged, with the reason."""
    reasons = {}
    for gate in gates:
        score = scores.get(gate.metric)
        if score is None:
            reasons[gate.name] = f"{gate.metric} was not scored"
        elif isinstance(score, Skipped):
            reasons[gate.name] = score.reason
        elif _interval(scores, gate) is None:
            reasons[gate.name] = f"{gate.metric} has no {gate.figure}"
    return reasons


def _interval(scores: Scores, gate: Gate) -> tuple[float, float, float] | None:
    """Figure, and both ends of its interval; a figure without an interval is certain."""
    score = scores.get(gate.metric)
    if score is None or isinstance(score, Skipped):
        return None
    value = score.value if gate.figure == "value" else score.extra.get(gate.figure)
    if value is None or math.isnan(value):
        return None
    if gate.figure != "value":
        return value, value, value
    return value, score.extra.get("low", value), score.extra.get("high", value)


def _without(figure: float, control: tuple[float, float, float] | None, gate: Gate) -> float:
    """What is left of a figure when the control's is taken off: its ratio to that, or less what that is out of bounds by."""
    if control is None:
        return figure
    if gate.control == "ratio":
        return figure / control[0] if control[0] else math.inf
    return figure - min(0.0, control[0] - gate.low) - max(0.0, control[0] - gate.high)
