"""What the pocket model can do, against ground truth: ``svi pocket measure``.

Held-out worlds only. Every figure comes with its n and a 95 % bootstrap interval; contact sheets show what the
figures hide. Generation goes through the same ``rollout`` that users run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
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
from svi.generation.clip import Clip, ClipPlan
from svi.generation.rollout import rollout
from svi.pocket.control import CONTROLS, controlled, judge_control
from svi.pocket.train_vae import HELD_OUT
from svi.pocket.world import World

HELD_OUT_CONTROL = HELD_OUT + 500_000


@dataclass(frozen=True)
class Figure:
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}] (n = {self.n})"


def figure(values: Sequence[float], *, seed: int = 0, draws: int = 2000) -> Figure:
    """Mean of ``values`` with a percentile bootstrap over them."""
    data = np.asarray(values, dtype=np.float64)
    rng = np.random.Generator(np.random.PCG64(seed))
    means = data[rng.integers(len(data), size=(draws, len(data)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Figure(float(data.mean()), float(low), float(high), len(data))


def psnr(frames: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> float:
    """PSNR in dB of uint8 ``frames`` against ``truth`` ``(T, H, W, 3)``, on ``mask`` ``(T, H, W)`` where given."""
    error = (frames.astype(np.float64) - truth.astype(np.float64)) ** 2
    mse = error.mean() if mask is None else error[mask].mean()
    return float(10 * np.log10(255**2 / max(mse, 1e-9)))


def clips_of(
    backend: Backend,
    world: World,
    clips: int,
    *,
    preset: str = "wan",
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
) -> Iterator[Clip]:
    """A rollout that follows the beats of ``world`` from its true first frame."""
    defaults: Mapping[str, Any] = backend.info.defaults
    shape = backend.geometry
    policy = get_policy(preset)
    plans = (
        ClipPlan(
            index=k,
            prompt=world.caption(k),
            negative_prompt=str(defaults["negative_prompt"]),
            seed=seed + policy.seed_stride * k,
            num_frames=shape.num_frames,
            height=shape.height,
            width=shape.width,
            steps=int(steps or defaults["steps"]),
            guidance=float(defaults["guidance"] if guidance is None else guidance),
            shift=float(defaults["shift"]),
        )
        for k in range(clips)
    )
    reference = torch.from_numpy(world.render(0.0))
    return rollout(plans, ClipMemory.start(reference), backend=backend, policy=policy)


def masks(world: World, start_frame: int, num_frames: int, fps: int = 16) -> np.ndarray:
    """``(T, H, W)`` bool, True on the background."""
    return np.stack([world.background_mask((start_frame + i) / fps) for i in range(num_frames)])


def vae_round_trip(backend: Backend, worlds: int) -> Figure:
    """PSNR in dB of encode and decode, one clip of each held-out world."""
    values = []
    for index in range(worlds):
        truth = World.sample(HELD_OUT + index).clip(0.0, backend.geometry.num_frames)
        video = to_video(torch.from_numpy(truth)[None])
        with torch.inference_mode():
            decoded = torch.cat(list(backend.decode(backend.encode_video(video)))).numpy()
        values.append(psnr(decoded, truth))
    return figure(values)


def single_clip(backend: Backend, worlds: int, *, guidance: float | None = None, steps: int | None = None) -> Figure:
    """Background PSNR in dB of one clip from a clean first frame, standing camera, constant daylight or night."""
    values = []
    for index in range(worlds):
        world = World.sample(HELD_OUT + index, family="things", camera="stands", lighting="day")
        clip = next(clips_of(backend, world, 1, seed=index, guidance=guidance, steps=steps))
        truth = world.clip(0.0, len(clip.frames))
        values.append(psnr(clip.frames.numpy(), truth, masks(world, 0, len(truth))))
    return figure(values)


def prompt_control(
    backend: Backend, worlds: int, *, guidance: float | None = None, steps: int | None = None
) -> dict[str, Figure]:
    """Share of held-out cases in which the prompt was followed, per kind of control."""
    shares = {}
    for control in CONTROLS:
        hits = []
        for index in range(worlds):
            world = controlled(HELD_OUT_CONTROL + index, control)
            clip = next(clips_of(backend, world, 1, seed=index, guidance=guidance, steps=steps))
            hits.append(float(judge_control(world, clip.frames.numpy())))
        shares[control] = figure(hits)
    return shares


@dataclass(frozen=True)
class Drift:
    """A long rollout of one world: background PSNR in dB of each clip, and each clip's last frame ``(K, H, W, 3)`` uint8."""

    caption: str
    curve: list[float]
    last_frames: np.ndarray


def drift(backend: Backend, worlds: int, clips: int, *, preset: str = "wan") -> list[Drift]:
    """Long rollouts against truth, standing camera by daylight.

    The landscape does not change, so truth for it is known at any length, whatever the things did meanwhile; where
    things truly are is masked out.
    """
    rollouts = []
    for index in range(worlds):
        world = World.sample(HELD_OUT + index, family="things", camera="stands", lighting="day")
        background = world.clip(0.0, 1, objects=False)
        frame, curve, last = 0, [], []
        for clip in clips_of(backend, world, clips, preset=preset, seed=index):
            new = clip.new_frames.numpy()
            truth = np.broadcast_to(background, new.shape)
            curve.append(psnr(new, truth, masks(world, frame, len(new))))
            last.append(new[-1])
            frame += len(new)
        rollouts.append(Drift(world.caption(0), curve, np.stack(last)))
    return rollouts


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
    rows = []
    for index in seeds:
        world = World.sample(HELD_OUT + index)
        clip = next(clips_of(backend, world, 1, seed=index))
        rows.append((f"truth: {world.caption(0)}", world.clip(0.0, len(clip.frames))))
        rows.append(("generated", clip.frames.numpy()))
    sheet(rows, path)


def parser() -> argparse.ArgumentParser:
    """Arguments of ``svi pocket measure``."""
    arguments = argparse.ArgumentParser("svi pocket measure", description=__doc__)
    arguments.add_argument("--model", default="pocket", help="model to measure (default: the bundled one)")
    arguments.add_argument("--out", type=Path, default=Path("pocket-measures"), help="folder for figures and sheets")
    arguments.add_argument("--worlds", type=int, default=32, help="held-out worlds per figure (default 32)")
    arguments.add_argument("--control", type=int, default=50, help="held-out cases per kind of control (default 50)")
    arguments.add_argument("--drift-worlds", type=int, default=16, help="worlds of the long rollout (default 16)")
    arguments.add_argument("--clips", type=int, default=50, help="clips of the long rollout (default 50)")
    arguments.add_argument("--preset", default="wan", help="preset of the long rollout (default wan, the baseline)")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Entry point: prints each figure as it is ready and writes them to ``OUT/results.json``."""
    options = parser().parse_args(argv)
    console = Console(soft_wrap=True)
    backend = load_backend(options.model)
    results: dict[str, object] = {"arguments": {k: str(v) for k, v in vars(options).items()}}

    def report(name: str, value: Figure) -> None:
        results[name] = asdict(value)
        console.print(f"{name}: {value}", highlight=False)

    report("vae_psnr_db", vae_round_trip(backend, options.worlds))
    report("single_clip_background_psnr_db", single_clip(backend, options.worlds))
    for control, share in prompt_control(backend, options.control).items():
        report(f"control_{control}", share)
    single_clip_sheet(backend, options.out / "single-clips.png", range(6))
    if options.drift_worlds:
        rollouts = drift(backend, options.drift_worlds, options.clips, preset=options.preset)
        results[f"drift_{options.preset}"] = [[round(value, 2) for value in each.curve] for each in rollouts]
        for clip in sorted({0, 1, 4, 9, 19, options.clips - 1} & set(range(options.clips))):
            report(f"drift_{options.preset}_clip_{clip + 1}_db", figure([each.curve[clip] for each in rollouts]))
        rows = [(f"{options.preset}, clips 1 to {options.clips}: {r.caption}", r.last_frames) for r in rollouts[:6]]
        sheet(rows, options.out / f"drift-{options.preset}.png", columns=8)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
