"""What an experiment found: from finished cells to ``results.json``, tables, plots and contact sheets.

Takes what is there: a stopped experiment has results too, with fewer worlds, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from svi.evaluation.statistics import Curve, Estimate, curve, estimate, late, slopes
from svi.files import write_atomic, write_json
from svi.pocket.drift.cells import Cell, Record, read_record, usable
from svi.pocket.drift.experiment import Experiment
from svi.pocket.drift.gauge import HEADLINE, MEASURES, VERSION
from svi.pocket.drift.measures import PSNR_CAP
from svi.pocket.drift.plots import Line, Panel, draw
from svi.pocket.drift.rollouts import worlds
from svi.pocket.drift.sheets import pictured_clips, read_strip, sheet

DECIMALS = {"dB": 1, "grey levels": 1, "of full range": 3}  # everything else: 2
Matrices = dict[str, np.ndarray]  # measure -> (worlds, clips), NaN where a cell or a value is missing


@dataclass(frozen=True)
class SceneResult:
    """What was found in one scene: matrices and error gains by arm; ``done``: worlds that each arm has finished."""

    seeds: tuple[int, ...]
    arms: dict[str, Matrices]
    gains: dict[str, dict[str, Matrices]]
    done: dict[str, int]


def gather(experiment: Experiment, out: Path) -> dict[str, SceneResult]:
    """Everything finished in ``out``, by scene."""
    found = {}
    for scene, kind in experiment.scenes.items():
        seeds = worlds(kind, experiment.worlds_in(scene), experiment.seed)
        arms, gains, done = {}, {}, {}
        for name, arm in experiment.arms.items():
            if arm.scenes and scene not in arm.scenes:
                continue
            records = [read_record(Cell(scene, name, seed, i).path(out)) for i, seed in enumerate(seeds)]
            records = [record if record and usable(record, experiment.clips) else None for record in records]
            done[name] = sum(record is not None for record in records)
            if done[name]:
                arms[name] = _matrices(records, experiment.clips)
            known = [read_record(Cell(scene, name, seed, i, "gain").path(out)) for i, seed in enumerate(seeds)]
            if any(known):
                gains[name] = _gain_matrices([record for record in known if record])
        found[scene] = SceneResult(tuple(seeds), arms, gains, done)
    return found


def _matrices(records: list[Record | None], clips: int) -> Matrices:
    nothing = np.full(clips, np.nan)
    rows = {name: [nothing if r is None else r.curve(name, clips) for r in records] for name in MEASURES}
    return {name: np.stack(each) for name, each in rows.items() if not np.isnan(each).all()}


def _gain_matrices(records: list[Record]) -> dict[str, Matrices]:
    """``kind-size`` -> number's name -> ``(worlds, 1)``."""
    return {
        case: {name: np.array([[_number(r.values[case][name])] for r in records]) for name in records[0].values[case]}
        for case in records[0].values
    }


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def summary(experiment: Experiment, found: dict[str, SceneResult]) -> dict[str, Any]:
    """``results.json``: per scene and arm the curves, the ends, changes and slopes with intervals; paired differences."""
    scenes = {}
    for scene, result in found.items():
        arms = {name: {**_arm_summary(values), "worlds": result.done[name]} for name, values in result.arms.items()}
        pairs = [pair for pair in experiment.compared() if set(pair) <= set(result.arms)]
        differences = [{"arms": list(pair), **_difference(*(result.arms[name] for name in pair))} for pair in pairs]
        gains = {
            name: {
                case: {k: estimate(v[:, 0]).to_dict() for k, v in numbers.items()} for case, numbers in cases.items()
            }
            for name, cases in result.gains.items()
        }
        scenes[scene] = {"seeds": list(result.seeds), "arms": arms, "differences": differences, "error_gain": gains}
    measures = {name: {"label": m.label, "unit": m.unit, "about": m.about} for name, m in MEASURES.items()}
    plain = experiment.model_dump(mode="json")
    return {"experiment": plain, "measures_version": VERSION, "measures": measures, "scenes": scenes}


def ends(values: np.ndarray) -> dict[str, np.ndarray]:
    """Numbers of ``(worlds, K)`` per world: at the second clip, at the end, the change between, the slope per ten clips."""
    second, end = values[:, min(1, values.shape[1] - 1)], late(values)
    return {"clip_2": second, "end": end, "change": end - second, "slope_per_10": 10 * slopes(values)}


def _arm_summary(matrices: Matrices) -> dict[str, Any]:
    rows: dict[str, Any] = {"curves": {name: _curve_data(curve(values)) for name, values in matrices.items()}}
    for name, values in matrices.items():
        for what, per_world in ends(values).items():
            rows.setdefault(what, {})[name] = estimate(per_world).to_dict()
    return rows


def _curve_data(found: Curve) -> dict[str, list[float | int | None]]:
    def plain(values: np.ndarray) -> list[float | int | None]:
        return [None if np.isnan(v) else round(float(v), 5) for v in values]

    return {
        "mean": plain(found.mean),
        "low": plain(found.low),
        "high": plain(found.high),
        "n": [int(v) for v in found.n],
    }


def _difference(first: Matrices, second: Matrices) -> dict[str, Any]:
    """First minus second, world by world: at the end, and in how much it changed since clip 2."""
    both = [name for name in first if name in second]
    rows = {name: (ends(first[name]), ends(second[name])) for name in both}
    return {
        what: {name: estimate(a[what] - b[what]).to_dict() for name, (a, b) in rows.items()}
        for what in ("end", "change", "slope_per_10")
    }


# -- for people --------------------------------------------------------------------------------------------------------


def write_results(experiment: Experiment, out: Path) -> str:
    """Write ``results.json``, ``results.md``, a plot per scene and the contact sheets; returns the Markdown."""
    found = gather(experiment, out)
    write_json(out / "results.json", summary(experiment, found))
    parts = [f"# {experiment.name}", *([experiment.about] if experiment.about else [])]
    for scene, result in found.items():
        if not result.arms:
            continue
        picture = out / f"{scene}.svg"
        write_atomic(picture, plot(experiment, scene, result).encode())
        parts += [f"## {scene}", _caption(experiment, scene, result), f"![drift in {scene}]({picture.name})"]
        parts += tables(experiment, result)
        _sheets(experiment, scene, result, out)
    text = "\n\n".join(parts) + "\n"
    write_atomic(out / "results.md", text.encode())
    return text


def _caption(experiment: Experiment, scene: str, result: SceneResult) -> str:
    kind = experiment.scenes[scene]
    words = [kind.family or "all families", f"camera {kind.camera or 'as drawn'}", kind.lighting or "day and night"]
    words.append("with events" if kind.events else "no events")
    done = {name: count for name, count in result.done.items() if count < len(result.seeds)}
    unfinished = f" Unfinished: {', '.join(f'{name} {count}' for name, count in done.items())}." if done else ""
    return (
        f"{', '.join(words)}; {len(result.seeds)} held-out world{'s' * (len(result.seeds) != 1)} (seeds {result.seeds[0]} to {result.seeds[-1]}), "
        f"{experiment.clips} clips each. Means over worlds with 95 % bootstrap intervals; the end is the last tenth of "
        f"the clips.{unfinished}"
    )


def tables(experiment: Experiment, result: SceneResult) -> list[str]:
    """Markdown tables of a scene: ends, changes, paired differences, error gains."""
    names = [name for name in HEADLINE if any(name in values for values in result.arms.values())]
    rest = [name for name in MEASURES if name not in HEADLINE and any(name in v for v in result.arms.values())]
    parts = ["At the end:", _table(result, names, "end"), _table(result, rest, "end")]
    parts += ["Change from clip 2 to the end:", _table(result, names, "change")]
    parts += ["Slope per ten clips (Theil-Sen, without the first clip):", _table(result, names, "slope_per_10")]
    pairs = [pair for pair in experiment.compared() if set(pair) <= set(result.arms)]
    if pairs:
        rows = []
        for a, b in pairs:
            both = {
                name: (ends(result.arms[a][name])["end"], ends(result.arms[b][name])["end"])
                for name in names
                if name in result.arms[a] and name in result.arms[b]
            }
            cells = [told(estimate(both[n][0] - both[n][1]), n, sign=True) if n in both else "–" for n in names]
            rows.append(f"| {a} − {b} | {' | '.join(cells)} |")
        parts += ["Difference at the end, world by world:", "\n".join([*_head("arms", names), *rows])]
    if result.gains:
        parts += [
            "Error gain (error that comes out of a clip / error that went in; below 1 it dies out):",
            _gains(result),
        ]
    return parts


def _head(first: str, names: list[str]) -> list[str]:
    labels = [f"{MEASURES[name].label} ({MEASURES[name].unit})" for name in names]
    return [f"| {first} | {' | '.join(labels)} |", "|---" * (len(names) + 1) + "|"]


def _table(result: SceneResult, names: list[str], what: str) -> str:
    rows = _head("arm", names)
    for arm, values in result.arms.items():
        cells = [told(estimate(ends(values[n])[what]), n, sign=what != "end") if n in values else "–" for n in names]
        rows.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _gains(result: SceneResult) -> str:
    cases = list(next(iter(result.gains.values())))
    rows = [f"| arm | {' | '.join(cases)} |", "|---" * (len(cases) + 1) + "|"]
    for arm, found in result.gains.items():
        cells = [told(estimate(found[case]["gain"][:, 0]), "") if case in found else "–" for case in cases]
        rows.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(rows)


def told(value: Estimate, measure: str, *, sign: bool = False) -> str:
    """``26.5 [26.1, 27.0]``; a dash where there is no value."""
    if np.isnan(value.mean):
        return "–"
    digits = DECIMALS.get(MEASURES[measure].unit, 2) if measure in MEASURES else 2
    mark = "+z" if sign else "z"  # z: no minus before a rounded zero
    mean, low, high = (f"{number:{mark}.{digits}f}".replace("-", "−") for number in (value.mean, value.low, value.high))
    return mean if value.n < 2 else f"{mean} [{low}, {high}]"


def plot(experiment: Experiment, scene: str, result: SceneResult) -> str:
    """The curves of a scene as SVG."""
    names = [name for name in HEADLINE if any(name in values for values in result.arms.values())]
    panels = []
    for name in names:
        shown = {arm: values[name] for arm, values in result.arms.items() if name in values}
        if name == "psnr":  # perfect arms would press all others to the floor of the panel
            shown = {arm: values for arm, values in shown.items() if np.nanmin(values) < PSNR_CAP} or shown
        lines = [Line(arm, curve(values)) for arm, values in shown.items()]
        panels.append(Panel(f"{MEASURES[name].label} ({MEASURES[name].unit})", lines))
    return draw(f"{experiment.name}: {scene}", list(result.arms), panels)


def _sheets(experiment: Experiment, scene: str, result: SceneResult, out: Path) -> None:
    clips = pictured_clips(experiment.clips)
    for index, seed in enumerate(result.seeds[: experiment.sheets]):
        rows = []
        for arm in result.arms:
            path = Cell(scene, arm, seed, index).path(out)
            record = read_record(path)
            strip = read_strip(path.with_suffix(".png"), len(record.pictured)) if record and record.pictured else None
            if record is not None and strip is not None:
                by_clip = dict(zip(record.pictured, strip, strict=True))
                rows.append((arm, [by_clip.get(clip) for clip in clips]))
        if rows:
            title = f"{experiment.name}, {scene}, world {index} (seed {seed}): last frame of each clip"
            sheet(title, [f"clip {clip + 1}" for clip in clips], rows, out / f"{scene}-{index}.png")
