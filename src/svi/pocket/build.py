"""Make the pocket model from nothing: ``svi pocket build``.

Stages, each resumable: the VAE (``train_vae``), latents of a fixed set of clips (``encode``), the text encoder
(``train_text``), the diffusion transformer with its image encoder (``train_dit``). Kill it at any time and run the same
command again. What comes out is an ordinary diffusers folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from svi.backends.placement import Placement
from svi.backends.wan import WanBackend, load_backend
from svi.geometry import Geometry
from svi.pocket.components import SETTINGS, Components, new_components, save_components
from svi.pocket.encode import clip_of, drill_of, encode, joined
from svi.pocket.train_dit import BATCH, dit_stage
from svi.pocket.train_text import CAPTIONS, STEPS, text_stage
from svi.pocket.train_vae import PHASES, POLISH, Phase, latent_statistics, vae_stage, widen
from svi.pocket.trainloop import train


def parser() -> argparse.ArgumentParser:
    """Arguments of ``svi pocket build``."""
    arguments = argparse.ArgumentParser("svi pocket build", description=__doc__)
    arguments.add_argument("out", type=Path, help="folder for checkpoints, logs and, in model/, the finished model")
    arguments.add_argument("--seed", type=int, default=0, help="weights, data and noise follow from it (default 0)")
    arguments.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    arguments.add_argument(
        "--start", metavar="MODEL", help="go on from a model (pocket or a folder) instead of nothing"
    )
    arguments.add_argument("--device", default="cpu", help="where to train: cpu (default; exact to resume) or cuda")
    arguments.add_argument("--clips", type=int, default=4096, help="clips of any world to encode (default 4096)")
    arguments.add_argument("--drills", type=int, default=3072, help="clips in which something happens (default 3072)")
    arguments.add_argument("--steps", type=int, default=6000, help="steps of the transformer (default 6000)")
    arguments.add_argument("--batch", type=int, default=BATCH, help=f"clips per step of it (default {BATCH})")
    arguments.add_argument("--vae-scale", type=float, default=1.0, help="times the usual steps of the VAE (default 1)")
    arguments.add_argument("--text-scale", type=float, default=1.0, help="the same for the text encoder (default 1)")
    arguments.add_argument("--stage", choices=("vae", "encode", "text", "dit"), default="dit", help="stop after this")
    arguments.add_argument("--random", action="store_true", help="write random weights to OUT and stop (for tests)")
    return arguments


def geometry() -> Geometry:
    """The pocket model's window."""
    names = ("height", "width", "num_frames", "fps")
    return Geometry(**{name: SETTINGS[name] for name in names})


def scaled_phases(phases: tuple[Phase, ...], scale: float) -> tuple[Phase, ...]:
    """The same phases with ``scale`` times the steps, at least one each."""
    return tuple(replace(phase, steps=max(1, round(phase.steps * scale))) for phase in phases)


def finish_vae(parts: Components, out: Path, *, fresh: bool, seed: int, scale: float, console: Console) -> None:
    """Stage 1, with the latent statistics written into the VAE's configuration. One that is not ``fresh`` is polished only."""
    stages = [("vae", PHASES), ("vae-polish", POLISH)]
    if fresh:
        widen(parts.vae)
    for name, phases in stages if fresh else stages[1:]:
        train(vae_stage(parts.vae, scaled_phases(phases, scale), name=name), out, seed=seed, console=console)
    statistics = out / "vae-latents.json"
    if not statistics.exists():
        mean, std = latent_statistics(parts.vae, seed=seed)
        statistics.write_text(json.dumps({"latents_mean": mean, "latents_std": std}) + "\n")
    parts.vae.register_to_config(**json.loads(statistics.read_text()))


def finish_text(parts: Components, out: Path, *, seed: int, scale: float, console: Console) -> None:
    """The text encoder, taught and then frozen."""
    steps, captions = (max(1, round(count * scale)) for count in (STEPS, CAPTIONS))
    train(
        text_stage(parts.text_encoder, parts.tokenizer, seed=seed, steps=steps, captions=captions),
        out,
        seed=seed,
        console=console,
    )
    parts.text_encoder.requires_grad_(False).eval()


def parts_of(model: str) -> Components:
    """The parts of an existing model, to go on training them."""
    backend = load_backend(model, device="cpu", dtype="float32")
    assert isinstance(backend, WanBackend)
    parts = Components(backend.transformer, backend.vae, backend.text_encoder, backend.tokenizer, backend.image_encoder)
    parts.vae.requires_grad_(True)
    return parts


def training_backend(parts: Components) -> WanBackend:
    """The parts as a backend that computes in bf16; what is unfrozen in them trains through it."""
    placement = Placement(parts.transformer.device, torch.bfloat16)
    inner = (parts.transformer, parts.vae, parts.text_encoder, parts.tokenizer, parts.image_encoder)
    return WanBackend(*inner, placement=placement)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parser().parse_args(argv)
    console = Console(file=sys.stdout, soft_wrap=True)
    if options.threads:
        torch.set_num_threads(options.threads)
    parts = parts_of(options.start) if options.start else new_components(options.seed)
    if options.random:
        save_components(parts, options.out)
        return 0
    for part in (parts.vae, parts.transformer, parts.text_encoder, parts.image_encoder):
        part.to(options.device)
    finish_vae(parts, options.out, fresh=not options.start, seed=options.seed, scale=options.vae_scale, console=console)
    if options.stage == "vae":
        return 0
    sets = {"latents": (options.clips, clip_of), "drills": (options.drills, drill_of)}
    shared = {"seed": options.seed, "geometry": geometry(), "console": console}
    data = joined(
        [encode(parts.vae, options.out / name, clips=n, draw=draw, **shared) for name, (n, draw) in sets.items() if n]
    )
    if options.stage == "encode":
        return 0
    finish_text(parts, options.out, seed=options.seed, scale=options.text_scale, console=console)
    if options.stage == "text":
        return 0
    stage = dit_stage(training_backend(parts), data, steps=options.steps, batch=options.batch)
    train(stage, options.out, seed=options.seed, console=console)
    save_components(parts, options.out / "model", dtype=torch.float16)
    console.print(f"model: {options.out / 'model'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
