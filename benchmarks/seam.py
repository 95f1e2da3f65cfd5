"""What decoding a run as one stream changes where its clips meet, against decoding clip by clip as published.

Both decode the same latents of one run. A joint shows as a step between frames that is larger than the usual one. Writes its
section of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from common import new_run, table, write_section
from torch import Tensor

from svi.backends.decoder import Decoder
from svi.backends.models_vae import codec
from svi.backends.wan import WanBackend, load_backend
from svi.generation.run import Run
from svi.generation.streamed import streamed_frames

AFTER = (0, 1, 3, 7, 15, 31)  # frames behind a joint at which the two decodings are compared


@dataclass(frozen=True)
class Seams:
    """What was measured, in levels of 255.

    Attributes:
        within: median step from frame to frame inside of clips, of each decoding (clip by clip, stream).
        across: step over each joint, of each decoding.
        apart: mean distance of the two decodings so many frames behind a joint.
    """

    within: tuple[float, float]
    across: tuple[list[float], list[float]]
    apart: dict[int, float]


def clip_by_clip(run: Run, backend: WanBackend) -> Tensor:
    """All frames ``(T, H, W, 3)`` uint8 of the video, each clip decoded by itself."""
    parts = []
    for clip in run.clips():
        frames = torch.cat(list(backend.decode(run.store.latents(clip.index))))
        parts.append(frames[clip.overlap :])
    return torch.cat(parts)


def measure(run: Run, backend: WanBackend) -> Seams:
    """Both decodings of a finished run, compared."""
    cold = clip_by_clip(run, backend).float()
    stream = torch.stack(list(streamed_frames(run, Decoder(codec(backend.vae))))).float()
    joints = [clip.start_frame for clip in run.clips()][1:]
    steps = [(video[1:] - video[:-1]).abs().mean(dim=(1, 2, 3)) for video in (cold, stream)]
    inside = torch.ones(len(steps[0]), dtype=torch.bool)
    inside[[joint - 1 for joint in joints]] = False
    apart = (cold - stream).abs().mean(dim=(1, 2, 3))
    length = min(clip.new_frames for clip in run.clips())
    return Seams(
        (float(steps[0][inside].median()), float(steps[1][inside].median())),
        ([float(steps[0][joint - 1]) for joint in joints], [float(steps[1][joint - 1]) for joint in joints]),
        {after: statistics.mean(float(apart[joint + after]) for joint in joints) for after in AFTER if after < length},
    )


def section(found: Seams, clips: int) -> str:
    """The measurement as Markdown."""
    rows = [
        (
            name,
            f"{found.within[n]:.2f}",
            f"{statistics.median(found.across[n]):.2f}",
            f"{max(found.across[n]):.2f}",
            f"{statistics.median(found.across[n]) / found.within[n]:.2f}",
        )
        for n, name in enumerate(("clip by clip, as published", "one stream"))
    ]
    header = ["decoded", "step inside clips", "step over joints, median", "largest", "joints / inside"]
    apart = ", ".join(f"{level:.2f} after {after + 1}" for after, level in found.apart.items())
    return "\n\n".join(
        (
            f"{clips} clips of the built-in model, preset `pro` without its LoRA; mean absolute differences in levels of 255.",
            table(header, rows),
            f"Distance of the two decodings behind a joint, by frames: {apart}.",
        )
    )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=8, help="clips of the run (default: 8)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    parser.add_argument("--model", default="pocket", help="what svi.load takes (default: pocket)")
    parser.add_argument("--run", type=Path, help="measure this finished run instead, with --model as it was made")
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    options = parser.parse_args()
    if options.clips < 2:
        parser.error("--clips must be at least 2: one clip has no joint")
    backend = load_backend(options.model)
    assert isinstance(backend, WanBackend)
    if options.run is not None:
        run = Run.open(options.run)
        body = section(measure(run, backend), run.count)
    else:
        with new_run(backend, options.clips, options.steps, "pro") as run:
            run.generate(backend)
            body = section(measure(run, backend), options.clips)
    print(body)
    if options.write:
        write_section("seam", body)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
