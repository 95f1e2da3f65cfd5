"""What a benchmark takes before anything is done: videos, weights, disk and time. Measures on this machine, guesses nothing.

Knows suites, metrics and the shapes of models; makes no video.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from svi.backends.peek import peek
from svi.evaluation.metric import Frames, Metric, Need, Sample
from svi.evaluation.suites import Suite
from svi.generation.stitch import clips_for_frames, total_frames

TRIAL_FRAMES = 16
H264_BYTES = 0.06  # per pixel and frame at CRF 16: measured on runs of the pocket model; real scenes take less
LATENT_BYTES = 4  # float32
MB = 1e6


def make_plan(
    suite: Suite,
    metrics: Sequence[Metric],
    cases: int,
    *,
    model: str = "pocket",
    methods: int = 1,
    clips: int | None = None,
) -> dict[str, Any]:
    """The plan as plain data; :func:`told` puts it in words.

    Args:
        suite: what is to be made.
        metrics: what is to be scored.
        cases: videos per method.
        model: whose shapes decide the size of clips; only its JSON files are read.
        methods: how many.
        clips: shorter videos than the suite's.

    Raises:
        UserError: for a model that is not here.
    """
    geometry, info = peek(model)
    window = suite.num_clip_frames or geometry.num_frames
    num_frames = suite.num_frames if clips is None else total_frames(clips, window, 1)
    per_video = clips_for_frames(num_frames, window, 1)
    height, width = geometry.height, geometry.width
    videos = cases * methods
    rows = [_metric_row(metric, height, width, suite.fps) for metric in metrics]
    latents = math.prod(geometry.latent_shape(window, height, width)) * LATENT_BYTES
    bytes_ = videos * (per_video * latents + num_frames * height * width * H264_BYTES)
    per_frame = [row["seconds_per_frame"] for row in rows if row["seconds_per_frame"] is not None]
    return {
        "suite": suite.name,
        "about": suite.about,
        "source": suite.source,
        "cases": cases,
        "methods": methods,
        "frames": num_frames,
        "fps": suite.fps,
        "seconds": num_frames / suite.fps,
        "clips": per_video,
        "model": info.name,
        "size": [width, height],
        "steps": suite.steps or info.defaults.get("steps"),
        "disk_bytes": round(bytes_),
        "score_seconds": videos * num_frames * sum(per_frame),
        "settled": [{"topic": s.topic, "says": list(s.says), "choice": s.choice} for s in suite.settled],
        "metrics": rows,
    }


def told(plan: dict[str, Any]) -> str:
    """A plan in words."""
    from svi.words import human_time

    videos, clips = plan["cases"] * plan["methods"], plan["cases"] * plan["methods"] * plan["clips"]
    lines = [
        f"{plan['suite']}: {plan['about']} ({plan['source']})",
        f"  {plan['cases']} cases x {plan['methods']} methods = {videos} videos of {plan['frames']} frames "
        f"({plan['seconds']:.1f} s at {plan['fps']:g} fps)",
        f"  to make: {clips} clips of {plan['model']}, {plan['size'][0]}x{plan['size'][1]}, {plan['steps']} steps; "
        "time: svi bench speed tells seconds per clip",
        f"  disk: about {plan['disk_bytes'] / MB:,.0f} MB",
        f"  to score: about {human_time(plan['score_seconds'])} with what is here, one process on this machine",
        "metrics:",
    ]
    for row in plan["metrics"]:
        cost = row["seconds_per_frame"]
        state = row["missing"] or (
            "measured once videos are there" if cost is None else f"{1000 * cost:.1f} ms a frame"
        )
        needs = f" (needs {', '.join(row['needs'])})" if row["needs"] else ""
        lines.append(f"  {'-' if row['missing'] else '+'} {row['name']}{needs}: {state}")
    if plan["settled"]:
        lines.append("what the sources leave open, and what is done:")
        for settled in plan["settled"]:
            lines.append(f"  {settled['topic']}: {'; '.join(settled['says'])}. Here: {settled['choice']}")
    return "\n".join(lines)


def _metric_row(metric: Metric, height: int, width: int, fps: float) -> dict[str, Any]:
    missing = metric.missing()
    return {
        "name": metric.name,
        "unit": metric.unit,
        "better": metric.better.value,
        "source": metric.source,
        "needs": sorted(need.value for need in metric.needs),
        "missing": missing,
        "seconds_per_frame": None if missing else _trial(metric, height, width, fps),
    }


def _trial(metric: Metric, height: int, width: int, fps: float) -> float | None:
    """Seconds per frame on a few frames of noise, loading left out; None where a metric needs what is not there yet."""
    if metric.needs - {Need.REFERENCE, Need.TRUTH, Need.CLIPS}:
        return None
    rng = np.random.Generator(np.random.PCG64(0))
    frames = rng.integers(0, 256, (TRIAL_FRAMES, height, width, 3), dtype=np.uint8)
    sample = Sample(
        name="trial",
        video=Path("trial"),
        fps=fps,
        num_frames=TRIAL_FRAMES,
        height=height,
        width=width,
        reference=frames[0],
        borders=(TRIAL_FRAMES // 2,),
    )
    try:
        for _ in range(2):  # the first loads
            reading = metric.start(sample)
            began = time.perf_counter()
            reading.add(Frames(0, frames, frames))
            reading.result()
            took = time.perf_counter() - began
    except Exception:  # a trial says how long it takes, not whether it is right: scoring tells what is wrong
        return None
    return took / TRIAL_FRAMES
