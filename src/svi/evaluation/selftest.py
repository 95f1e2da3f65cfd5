"""Is the evaluation itself any good? True videos, foolers and injected drifts are scored and must come out as they must.

Each rule is a row of data: of this case, this figure, less the true video's, lies between these bounds. Some rules say what a
measure does *not* see; they are why there are several. Knows nothing about where true videos come from: the caller hands
in frames. Slow motion in the true video makes rules about motion mean little: hand in something that moves all the time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from svi.errors import UserError
from svi.evaluation import gates
from svi.evaluation.fakes import FAKES, Shape
from svi.evaluation.metric import Frames, Metric, Sample, Score, Skipped
from svi.evaluation.metrics.motion import FIGURES, Motion
from svi.evaluation.metrics.pixels import Psnr
from svi.evaluation.metrics.series import QUESTIONS, Look

BATCH = 32
GATES = "gates"  # in place of a metric's name: how many gates fail


@dataclass(frozen=True)
class Source:
    """A true video.

    Attributes:
        name: in messages.
        frames: gives its frames, ``(H, W, 3)`` uint8, from the first on, at every call anew; at least ``shape.num_frames``.
        fps: frames per second.
        shape: length and clips.
    """

    name: str
    frames: Callable[[], Iterable[np.ndarray]]
    fps: float
    shape: Shape


@dataclass(frozen=True)
class Rule:
    """Where a figure must lie.

    Attributes:
        case: of :data:`svi.evaluation.fakes.FAKES`.
        metric: by name, or ``gates``, the number of gates that fail.
        low, high: bounds, both allowed.
        figure: ``value`` or the name of an extra.
        absolute: as it is; else the true video's figure is taken off.
        why: what the rule stands for.
    """

    case: str
    metric: str
    low: float = -math.inf
    high: float = math.inf
    figure: str = "value"
    absolute: bool = False
    why: str = ""

    def __str__(self) -> str:
        figure = self.metric if self.figure == "value" else f"{self.metric}.{self.figure}"
        bounds = [f">= {self.low:g}"] if math.isfinite(self.low) else []
        bounds += [f"<= {self.high:g}"] if math.isfinite(self.high) else []
        return f"{self.case}: {figure}{'' if self.absolute else ' - truth'} {' and '.join(bounds)}"


@dataclass(frozen=True)
class Finding:
    """A rule and what came out.

    Attributes:
        rule: it.
        figure: of the true video where it came out worst; None where it could not be taken.
        passed: whether the rule holds on every true video; None where its figure cannot be taken here.
        about: which video that was, or why there is no figure.
    """

    rule: Rule
    figure: float | None
    passed: bool | None
    about: str


def _degenerate() -> Iterator[Rule]:
    for case, kind in FAKES.items():
        if kind.role == "fooler":
            yield Rule(case, GATES, low=1, absolute=True, why=f"{kind.about}: never ranked")
    for case in ("tint", "blur", "noise", "flicker", "dark-then-back"):
        yield Rule(case, GATES, high=0, absolute=True, why="worse is not degenerate: it is ranked")


def _ranked() -> Iterator[Rule]:
    for case, kind in FAKES.items():
        if kind.role == "drift" and case not in ("flicker", "shift"):
            yield Rule(case, "look_truth", low=1, why="drifts rank behind truth by more than what may be noticed")
    for case in ("copy-clips", "ping-pong", "copy-reference"):
        yield Rule(case, "look", high=1, why="foolers rank with truth or before it: hence the gates")


RULES: tuple[Rule, ...] = (
    *_degenerate(),
    *_ranked(),
    # Each drift shows in its own measure, with its own sign.
    Rule("tint", "look_truth_colour", low=3, why="a tint moves the mean colour"),
    Rule("tint", "look_luma", low=-1.5, high=1.5, why="and hardly the light"),
    Rule("saturate", "look_chroma", low=3, why="saturation is chroma"),
    Rule("contrast", "look_contrast", low=2, why="contrast is contrast"),
    Rule("darken", "look_luma", high=-6, why="darkening is luma"),
    Rule("blur", "look_sharpness", high=-3, why="blur takes sharpness"),
    Rule("blur", "look_detail", high=-2, why="and fine detail"),
    Rule("sharpen", "look_sharpness", low=2, why="sharpening adds sharpness"),
    Rule("noise", "look_sharpness", low=2, why="so does noise: sharpness alone cannot tell them apart"),
    Rule("noise", "look_noise", low=3, why="the noise estimate can"),
    Rule("noise", "look_luma", low=-1, high=1, why="noise leaves the light alone"),
    Rule("flicker", "flicker", low=0.3, why="flicker is a matter of single frames"),
    Rule("flicker", "look_luma", low=-2, high=2, why="its mean stays"),
    # What start and end cannot see.
    Rule("dark-then-back", "look_luma", low=-1, high=1, why="the contrast of end and start misses what comes back"),
    Rule("dark-then-back", "look_truth_luma", high=-5, figure="excursion", why="the excursion sees it"),
    Rule("dark-then-back", "look_truth_luma", low=2, figure="late", why="and so does the late-weighted change"),
    # What whole-frame measures cannot see.
    Rule("shift", "look_luma", low=-1.5, high=1.5, why="that things stand elsewhere changes no mean"),
    Rule("shift", "psnr", high=-3, figure="lowest", why="only the true video tells"),
    # Copies.
    Rule("copy-clips", "seam_ratio", low=1, why="the jump back to the first frame is a seam"),
    Rule("ping-pong", "seam_ratio", high=0.5, why="turning round is none"),
    Rule("ping-pong", "duplicate_share", low=0.9, why="but every frame comes again"),
    Rule("copy-reference", "reference_copies", low=0.9, absolute=True, why="nothing but the reference"),
    Rule("freeze", "flicker", high=0, why="flicker rewards what stands still"),
    Rule("motion-dies", "motion_retained", high=0.5, absolute=True, why="most of the motion is lost"),
)


def metrics() -> list[Metric]:
    """What is scored: all measures without weights that can run here."""
    looks = [Look(question.measure, question.against) for question in QUESTIONS.values()]
    able: list[Metric] = [*looks, *(Motion(name) for name in FIGURES), Psnr()]
    return [metric for metric in able if metric.missing() is None]


def run(
    sources: Sequence[Source],
    rules: Sequence[Rule] = RULES,
    *,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> list[Finding]:
    """Score every case of every true video and look whether the rules hold.

    Args:
        sources: true videos; a rule must hold on all of them.
        rules: what must come out.
        watch: called with the number of videos scored, and of all.

    Returns:
        A finding per rule, in order.

    Raises:
        UserError: no video, or one of less than four clips.
    """
    if not sources:
        raise UserError("a self-test needs a true video: hand in at least one")
    cases = list(dict.fromkeys(["truth", *(rule.case for rule in rules)]))
    scores: dict[str, dict[str, gates.Scores]] = {}
    for number, source in enumerate(sources):
        if source.shape.num_frames < 4 * source.shape.clip_frames:
            raise UserError(f"{source.name}: {source.shape.num_frames} frames are less than four clips; make it longer")
        scores[source.name] = {}
        for done, case in enumerate(cases, start=number * len(cases) + 1):
            scores[source.name][case] = score_case(source, case)
            watch(done, len(cases) * len(sources))
    return [_finding(rule, scores) for rule in rules]


def score_case(source: Source, case: str) -> dict[str, Score | Skipped]:
    """Scores by metric name of a true video, spoilt as a case says."""
    first = next(iter(source.frames()))
    frames = FAKES[case].make(source.frames(), source.shape)
    sample = Sample(
        name=f"{source.name}/{case}",
        video=Path(case),
        fps=source.fps,
        num_frames=source.shape.num_frames,
        height=first.shape[0],
        width=first.shape[1],
        reference=first,
        borders=range(source.shape.clip_frames, source.shape.num_frames, source.shape.clip_frames),
    )
    return score_frames(zip(frames, source.frames(), strict=False), sample, metrics())


def score_frames(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], sample: Sample, wanted: Sequence[Metric]
) -> dict[str, Score | Skipped]:
    """Scores by metric name of frames that come with the true ones, batch by batch."""
    readings = {metric.name: metric.start(sample) for metric in wanted}
    start, source = 0, iter(pairs)
    while batch := list(itertools.islice(source, BATCH)):
        given = Frames(start, np.stack([frame for frame, _ in batch]), np.stack([truth for _, truth in batch]))
        start += len(batch)
        for reading in readings.values():
            reading.add(given)
    return {name: reading.result() for name, reading in readings.items()}


def _finding(rule: Rule, scores: Mapping[str, Mapping[str, gates.Scores]]) -> Finding:
    """A rule against all sources; the figure is that of the source where least is to spare."""
    worst: tuple[float, float, str] | None = None
    for name, cases in scores.items():
        figure = _figure(rule, cases[rule.case], cases["truth"])
        if isinstance(figure, str):
            return Finding(rule, None, None, f"{name}: {figure}")
        spare = min(figure - rule.low, rule.high - figure)
        if worst is None or spare < worst[0]:
            worst = spare, figure, name
    assert worst is not None
    return Finding(rule, worst[1], worst[0] >= 0, worst[2])


def _figure(rule: Rule, case: gates.Scores, truth: gates.Scores) -> float | str:
    """The figure of a rule, or why there is none."""
    if rule.metric == GATES:
        return _failed_gates(case, truth)
    figures = [_value(rule, scores) for scores in ((case,) if rule.absolute else (case, truth))]
    for figure in figures:
        if isinstance(figure, str):
            return figure
    return float(figures[0]) - sum(float(figure) for figure in figures[1:])


def _failed_gates(case: gates.Scores, truth: gates.Scores) -> float | str:
    """How many gates fail; if none does, but some could not be judged for want of a library, that is no answer."""
    count = len(gates.failed(case, truth if case is not truth else None))
    absent = [gate.metric for gate in gates.GATES if gate.metric not in case]
    if not count and absent:
        return "; ".join(f"{name} cannot be scored here" for name in absent)
    return float(count)


def _value(rule: Rule, scores: gates.Scores) -> float | str:
    score = scores.get(rule.metric)
    if score is None:
        return f"{rule.metric} cannot be scored here"
    if isinstance(score, Skipped):
        return score.reason
    value = score.value if rule.figure == "value" else score.extra.get(rule.figure)
    return value if value is not None else f"{rule.metric} has no {rule.figure}"
