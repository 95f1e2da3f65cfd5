"""Our clip against one call of the stock diffusers pipeline: same model, same image, same noise, same steps.

Both take turns on the same job in one process: continue this frame, with this prompt, from this noise. Also measures which part of a clip is
spent outside transformer and VAE, writing to disk included. Writes its section of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import new_run, picture, prompts, table, write_section
from torch import Tensor

from svi.backends.encoders import clip_pixels
from svi.backends.wan import WanBackend, load_backend
from svi.backends.weights import find_model
from svi.conditioning.encodings import Encodings
from svi.conditioning.memory import ClipMemory
from svi.conditioning.policy import get_policy
from svi.generation.clip import ClipPlan
from svi.generation.rollout import make_clip
from svi.generation.sampler import clip_noise
from svi.schedule import shifted_sigmas

POLICY = get_policy("wan")  # what the stock pipeline does: last frame, grey, joined by the last frame


@dataclass
class Stopwatch:
    """Seconds spent inside the functions it wraps."""

    seconds: float = 0.0
    undo: list[Callable[[], None]] = field(default_factory=list)

    def wrap(self, owner: Any, name: str) -> None:
        """Time every call of ``owner.name``, until `restore`."""
        original = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        setattr(owner, name, watched)
        self.undo.append(lambda: delattr(owner, name))

    def restore(self) -> None:
        """Unwrap everything."""
        for step in self.undo:
            step()


def stock_pipeline(folder: Path, steps: int, shift: float) -> Any:
    """The stock pipeline on the same folder, walking the same noise levels and preparing images for CLIP as Wan does."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline
    from transformers import BatchFeature

    class SameLevels(FlowMatchEulerDiscreteScheduler):
        def set_timesteps(self, *_: Any, **__: Any) -> None:  # its own levels end elsewhere, by sigma_min
            super().set_timesteps(sigmas=shifted_sigmas(steps, shift)[:-1].tolist())

    pipe = WanImageToVideoPipeline.from_pretrained(folder)
    side = pipe.image_encoder.config.image_size

    def prepare(
        images: Any, **_: Any
    ) -> Any:  # the processor of transformers crops, so that no frame could be compared
        video = pipe.video_processor.preprocess(images)
        return BatchFeature({"pixel_values": clip_pixels(video, side)})

    pipe.image_processor = prepare
    pipe.scheduler = SameLevels(shift=1.0)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def plan_of(backend: WanBackend, index: int, prompt: str, steps: int | None) -> ClipPlan:
    """Clip ``index`` with the settings that the model recommends."""
    recommended, window = backend.info.defaults, backend.geometry
    return ClipPlan(
        index=index,
        prompt=prompt,
        negative_prompt=str(recommended.get("negative_prompt", "")),
        seed=POLICY.seed_stride * index,
        num_frames=window.num_frames,
        height=window.height,
        width=window.width,
        steps=steps or int(str(recommended.get("steps", POLICY.steps))),
        guidance=float(str(recommended.get("guidance", POLICY.guidance))),
        shift=float(str(recommended.get("shift", POLICY.shift))),
    )


def stock_clip(pipe: Any, plan: ClipPlan, frame: Tensor, noise: Tensor) -> Tensor:
    """One call of the stock pipeline: frames ``(T, H, W, 3)`` uint8."""
    from PIL import Image

    video = pipe(
        image=Image.fromarray(frame.numpy()),
        prompt=plan.prompt,
        negative_prompt=plan.negative_prompt,
        height=plan.height,
        width=plan.width,
        num_frames=plan.num_frames,
        num_inference_steps=plan.steps,
        guidance_scale=plan.guidance,
        latents=noise,
        output_type="np",
    ).frames[0]
    return torch.from_numpy(video * 255).clip(0, 255).to(torch.uint8)


def timed(times: list[float], make: Callable[[], Any]) -> Any:
    """What ``make`` makes; its seconds are appended to ``times``."""
    began = time.perf_counter()
    made = make()
    times.append(time.perf_counter() - began)
    return made


def compare(backend: WanBackend, pipe: Any, clips: int, steps: int | None) -> tuple[list[float], list[float], float]:
    """Seconds per clip of ours and theirs, in turns on the same jobs; share of differing frame values."""
    window = backend.geometry
    memory = ClipMemory.start(picture(window.height, window.width))
    encodings = Encodings(backend)
    shape = (1, *window.latent_shape(window.num_frames, window.height, window.width))
    ours: list[float] = []
    theirs: list[float] = []
    different = 0.0
    for index, prompt in enumerate(prompts(clips + 1)):
        plan = plan_of(backend, index, prompt, steps)
        noise = clip_noise(plan.seed, shape)
        our_clip = partial(make_clip, plan, memory, backend=backend, policy=POLICY, encodings=encodings)
        their_clip = partial(stock_clip, pipe, plan, memory.frames[0, -1], noise)
        if index % 2:
            clip, frames = timed(ours, our_clip), timed(theirs, their_clip)
        else:
            frames, clip = timed(theirs, their_clip), timed(ours, our_clip)
        off = (clip.frames.int() - frames.int()).abs()
        different = max(different, float((off > 1).float().mean()))
        memory = clip.memory
        print(f"clip {index}: ours {ours[-1]:.2f} s, diffusers {theirs[-1]:.2f} s, over 1 level apart {different:.2%}")
    return ours[1:], theirs[1:], different


def outside_share(backend: WanBackend, clips: int, steps: int | None) -> tuple[list[float], list[float]]:
    """Seconds per clip of a whole run, disk included, and the part of them outside transformer and VAE."""
    watch = Stopwatch()
    watch.wrap(backend.transformer, "forward")
    watch.wrap(backend.vae, "encode")
    watch.wrap(backend.vae.decoder, "forward")
    totals: list[float] = []
    outside: list[float] = []
    with new_run(backend, clips + 1, steps) as run:
        began = time.perf_counter()
        for _ in run.stream(backend):
            totals.append(time.perf_counter() - began)
            outside.append(totals[-1] - watch.seconds)
            began, watch.seconds = time.perf_counter(), 0.0
    watch.restore()
    return totals[1:], outside[1:]


def main() -> int:
    """Measure, print, write the section; 1 if ours is slower or too much is spent outside transformer and VAE."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pocket", help="pocket or a diffusers folder (default: pocket)")
    parser.add_argument("--clips", type=int, default=10, help="clips of each, after one to warm up (default: 10)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: what the model recommends)")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    backend = load_backend(options.model, device="cpu", dtype="float32")
    assert isinstance(backend, WanBackend)
    plan = plan_of(backend, 0, "", options.steps)
    pipe = stock_pipeline(Path(find_model(options.model, allow_download=False)), plan.steps, plan.shift)
    ours, theirs, different = compare(backend, pipe, options.clips, options.steps)
    totals, outside = outside_share(backend, options.clips, options.steps)
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    ratio = statistics.median(ratios)
    share = sum(outside) / sum(totals)
    rows = [
        ("our clip, median", f"{statistics.median(ours):.2f} s"),
        ("diffusers pipeline call, median", f"{statistics.median(theirs):.2f} s"),
        ("ours / diffusers, median of pairs", f"**{ratio:.3f}** ({min(ratios):.3f} to {max(ratios):.3f})"),
        ("frame values more than 1 level apart, worst clip", f"{different:.2%}"),
        ("clip of a whole run, stored and journalled, mean", f"{statistics.mean(totals):.2f} s"),
        ("of it outside transformer and VAE", f"**{share:.1%}**"),
    ]
    what = (
        f"{plan.width} × {plan.height} pixels, {plan.num_frames} frames, {plan.steps} steps, guidance {plan.guidance:g}"
    )
    body = f"{what}; n = {len(ours)} pairs.\n\n" + table(["measured", "value"], rows)
    print(body)
    if not options.no_write:
        write_section("against_diffusers", body)
    return int(ratio > 1.02 or share >= 0.10)


if __name__ == "__main__":
    raise SystemExit(main())
