"""What the pocket model can do, against ground truth: ``svi pocket measure``.

Held-out worlds only. Every figure comes with its n and a 95 % bootstrap interval; contact sheets show what the
figures hide. Generation goes through the same ``rollout`` that users run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from rich.console import Console

from svi.backends.base import Backend
from svi.backends.wan import load_backend
from svi.conditioning.memory import ClipMemory
from svi.conditioning.policy import get_policy
from svi.conditioning.window import to_video
from svi.evaluation.statistics import Estimate, estimate
from svi.files import write_json
from svi.generation.clip import ClipPlan
from svi.generation.rollout import rollout_batch
from svi.pocket.control import CONTROLS, controlled, judge_control
from svi.pocket.drift.gauge import Gauge
from svi.pocket.drift.measures import psnr
from svi.pocket.train_vae import HELD_OUT
from svi.pocket.world import World

HELD_OUT_CONTROL = HELD_OUT + 500_000
TOGETHER = 8


def first_clips(
    backend: Backend,
    worlds: Sequence[World],
    seeds: Sequence[int],
    *,
    guidance: float | None = None,
    steps: int | None = None,
) -> Iterator[np.ndarray]:
    """The clip ``(T, H, W, 3)`` uint8 that follows the true first frame and the first caption of each world, preset ``wan``."""
    defaults: Mapping[str, Any] = backend.info.defaults
    shape = backend.geometry
    for begin in range(0, len(worlds), TOGETHER):
        some = list(zip(worlds, seeds, strict=True))[begin : begin + TOGETHER]
        plans = [
            ClipPlan(
                index=0,
                prompt=world.caption(0),
                negative_prompt=str(defaults["negative_prompt"]),
                seed=seed,
                num_frames=shape.num_frames,
                height=shape.height,
                width=shape.width,
                steps=int(steps or defaults["steps"]),
                guidance=float(defaults["guidance"] if guidance is None else guidance),
                shift=float(defaults["shift"]),
            )
            for world, seed in some
        ]
        memory = ClipMemory.start(torch.from_numpy(np.stack([world.render(0.0) for world, _ in some])))
        for clip in next(rollout_batch([plans], memory, backend=backend, policy=get_policy("wan"))):
            yield clip.frames.numpy()


def vae_round_trip(backend: Backend, worlds: int) -> Estimate:
    """PSNR in dB of encode and decode, one clip of each held-out world."""
    values = []
    for index in range(worlds):
        truth = World.sample(HELD_OUT + index).clip(0.0, backend.geometry.num_frames)
        video = to_video(torch.from_numpy(truth)[None])
        with torch.inference_mode():
            decoded = torch.cat(list(backend.decode(backend.encode_video(video)))).numpy()
        values.append(psnr(decoded, truth))
    return estimate(np.array(values))


def single_clip(
    backend: Backend, worlds: int, *, guidance: float | None = None, steps: int | None = None
) -> dict[str, Estimate]:
    """Background PSNR in dB of one clip from a clean first frame, standing camera, constant daylight or night.

    Returns:
        ``background``: where neither truth nor the picture has a thing, as drift is measured (``drift.gauge``).
        ``beside_true_things``: wherever truth has none, so that a thing in the wrong place counts as wrong background.
    """
    shown = [World.sample(HELD_OUT + i, family="things", camera="stands", lighting="day") for i in range(worlds)]
    clips = first_clips(backend, shown, range(worlds), guidance=guidance, steps=steps)
    fps = backend.geometry.fps
    found: dict[str, list[float]] = {"background": [], "beside_true_things": []}
    for world, clip in zip(shown, clips, strict=True):
        clear = np.stack([world.background_mask(i / fps) for i in range(len(clip))])
        found["background"].append(Gauge(world, fps=fps, events=True).clip(clip)["psnr"])
        found["beside_true_things"].append(psnr(clip, world.clip(0.0, len(clip), fps), clear))
    return {name: estimate(np.array(values)) for name, values in found.items()}


def prompt_control(
    backend: Backend, worlds: int, *, guidance: float | None = None, steps: int | None = None
) -> dict[str, Estimate]:
    """Share of held-out cases in which the prompt was followed, per kind of control."""
    shares = {}
    for control in CONTROLS:
        told = [controlled(HELD_OUT_CONTROL + index, control) for index in range(worlds)]
        clips = first_clips(backend, told, range(worlds), guidance=guidance, steps=steps)
        hits = [float(judge_control(world, clip)) for world, clip in zip(told, clips, strict=True)]
        shares[control] = estimate(np.array(hits))
    return shares


def sheet(rows: Sequence[tuple[str, np.ndarray]], path: Path, *, columns: int = 6, scale: int = 2) -> None:
    """Contact sheet: one row per ``(label, frames (T, H, W, 3))``, ``columns`` frames evenly over each."""
    height, width = rows[0][1].shape[1:3]
    cell_h, cell_w, head = height * scale, width * scale, 14
    page = Image.new("RGB", (columns * (cell_w + 2), len(rows) * (cell_h + head)), "white")
    draw = ImageDraw.Draw(page)
    for row, (label, frames) in enumerate(rows):
        draw.text((2, row * (cell_h + head)), label[: columns * cell_w // 6], fill="black")
        for column, index in enumerate(np.linspace(0, len(frames) - 1, columns).round().astype(int)):
            picture = Image.fromarray(frames[index]).resize((cell_w, cell_h), Image.Resampling.NEAREST)
            page.paste(picture, (column * (cell_w + 2), row * (cell_h + head) + head))
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path)


def single_clip_sheet(backend: Backend, path: Path, seeds: Sequence[int]) -> None:
    """Truth above generation, one clip for each held-out world of ``seeds``, all families and cameras."""
    worlds = [World.sample(HELD_OUT + index) for index in seeds]
    save_pairs(worlds, first_clips(backend, worlds, seeds), path)


def control_sheet(backend: Backend, path: Path, per_control: int = 3) -> None:
    """The same for cases of prompt control."""
    seeds = [index for _ in CONTROLS for index in range(per_control)]
    worlds = [controlled(HELD_OUT_CONTROL + i, control) for control in CONTROLS for i in range(per_control)]
    save_pairs(worlds, first_clips(backend, worlds, seeds), path)


def save_pairs(worlds: Sequence[World], clips: Iterable[np.ndarray], path: Path) -> None:
    """A sheet of truth and generation in turns."""
    rows = []
    for world, clip in zip(worlds, clips, strict=True):
        rows.append((f"truth: {world.caption(0)}", world.clip(0.0, len(clip))))
        rows.append(("generated", clip))
    sheet(rows, path)


def seconds_per_clip(backend: Backend, clips: int = 3) -> float:
    """Seconds that a clip of a lone video takes, the median of some."""
    world, seconds = World.sample(HELD_OUT), []
    for seed in range(clips + 1):
        begun = time.perf_counter()
        list(first_clips(backend, [world], [seed]))
        seconds.append(time.perf_counter() - begun)
    return float(np.median(seconds[1:]))


def parser() -> argparse.ArgumentParser:
    """Arguments of ``svi pocket measure``."""
    arguments = argparse.ArgumentParser("svi pocket measure", description=__doc__)
    arguments.add_argument("--model", default="pocket", help="model to measure (default: the bundled one)")
    arguments.add_argument("--out", type=Path, default=Path("pocket-measures"), help="folder for figures and sheets")
    arguments.add_argument("--worlds", type=int, default=32, help="held-out worlds per figure (default 32)")
    arguments.add_argument("--control", type=int, default=50, help="held-out cases per kind of control (default 50)")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Entry point: prints each figure as it is ready and writes them to ``OUT/results.json``."""
    options = parser().parse_args(argv)
    console = Console(soft_wrap=True)
    backend = load_backend(options.model)
    results: dict[str, object] = {"arguments": {k: str(v) for k, v in vars(options).items()}}

    def report(name: str, value: Estimate) -> None:
        results[name] = value.to_dict()
        console.print(f"{name}: {value.mean:.2f} [{value.low:.2f}, {value.high:.2f}] (n = {value.n})", highlight=False)

    report("vae_psnr_db", vae_round_trip(backend, options.worlds))
    for where, value in single_clip(backend, options.worlds).items():
        report(f"single_clip_{where}_psnr_db", value)
    for control, share in prompt_control(backend, options.control).items():
        report(f"control_{control}", share)
    results["seconds_per_clip"] = round(seconds_per_clip(backend), 2)
    console.print(
        f"seconds_per_clip: {results['seconds_per_clip']} ({torch.get_num_threads()} threads)", highlight=False
    )
    single_clip_sheet(backend, options.out / "single-clips.png", range(6))
    control_sheet(backend, options.out / "control.png")
    write_json(options.out / "results.json", results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
