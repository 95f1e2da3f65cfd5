"""Stage 2 of the pocket model: latents of a fixed set of captioned clips, written once.

Each clip is one beat of a world: its 17 frames start where the beat starts, so the caption says what happens in it.
The condition is made by the same ``build`` that generation uses. Resumable shard by shard.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from svi.backends.vae import channels_last
from svi.conditioning.build import build
from svi.conditioning.encodings import Encodings
from svi.conditioning.memory import ClipMemory
from svi.conditioning.policy import ConditioningPolicy, get_policy
from svi.conditioning.window import to_video
from svi.geometry import Geometry
from svi.pocket.train_vae import HELD_OUT
from svi.pocket.world import World

SHARD = 128
BEATS = 4  # clips start at one of the first beats of a world
DRILL_SEED = 500_000_000  # keeps the worlds of drills apart from the others
DRILLED = ("stop", "go", "turn", "colour")
Draw = Callable[[int, int, int], tuple[np.ndarray, str]]


@dataclass
class LatentSet:
    """Encoded clips.

    Attributes:
        clean: ``(N, C, F, h, w)`` normalised latents, bf16.
        values: ``(N, C, F, h, w)`` condition latents, bf16.
        known: ``(1, S, F, h, w)`` the mask that all clips share.
        first: ``(N, H, W, 3)`` uint8, the first frame of each clip.
        captions: what happens in each clip.
    """

    clean: Tensor
    values: Tensor
    known: Tensor
    first: Tensor
    captions: list[str]


class VideoEncoder:
    """A bf16 copy of the VAE alone as an ``Encoder``: what ``build`` needs to make training conditions."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = channels_last(copy.deepcopy(vae).bfloat16())
        self.mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
        self.std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)

    @torch.no_grad()
    def encode_video(self, video: Tensor) -> Tensor:
        video = video.to(self.vae.device, torch.bfloat16).contiguous(memory_format=torch.channels_last_3d)
        latents = self.vae.encode(video).latent_dist.mode()
        return (latents.float().cpu() - self.mean) * (1 / self.std)

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        return torch.zeros(len(prompts), 1, 1)  # texts are encoded while training

    def encode_image(self, images: Tensor) -> Tensor | None:
        return None


def clip_of(index: int, seed: int, num_frames: int) -> tuple[np.ndarray, str]:
    """Frames ``(T, H, W, 3)`` uint8 and caption of training clip ``index``: any world, one of its first beats."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
    world = World.sample(int(torch.randint(HELD_OUT, (1,), generator=generator)))
    beat = int(torch.randint(BEATS, (1,), generator=generator))
    return world.clip(beat * world.beat_s, num_frames), world.caption(beat)


def drill_of(index: int, seed: int, num_frames: int) -> tuple[np.ndarray, str]:
    """The same of drill ``index``: a standing camera and one or two things, to which something happens three times in four.

    In an arbitrary world a word such as "left" moves a few of a thousand latent cells, once in ten clips.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + index + DRILL_SEED)
    eventful = index % 4 > 0
    while True:
        number = int(torch.randint(HELD_OUT, (1,), generator=generator))
        world = World.sample(number, family="things", camera="stands", num_objects=1 + index % 2)
        beat = int(torch.randint(BEATS, (1,), generator=generator))
        if any(event.kind in DRILLED for event in world.beat(beat).events) == eventful:
            return world.clip(beat * world.beat_s, num_frames), world.caption(beat)


def encode_clips(
    frames: Tensor, encoder: VideoEncoder, policy: ConditioningPolicy, geometry: Geometry
) -> dict[str, Tensor]:
    """``(B, T, H, W, 3)`` uint8 -> tensors of a :class:`LatentSet`."""
    condition = build(
        replace(policy, image_feature=None),
        ClipMemory.start(frames[:, 0]),
        encoder.encode_text([""]),
        encodings=Encodings(encoder, capacity=0),
        num_frames=frames.shape[1],
        geometry=geometry,
    )
    return {
        "clean": encoder.encode_video(to_video(frames)).bfloat16(),
        "values": condition.values.bfloat16(),
        "known": condition.known[:1].bfloat16(),
        "first": frames[:, 0].contiguous(),
    }


def encode(
    vae: AutoencoderKLWan,
    folder: Path,
    *,
    clips: int,
    seed: int,
    geometry: Geometry,
    console: Console,
    draw: Draw = clip_of,
) -> LatentSet:
    """Encode the first ``clips`` clips of ``draw`` into ``folder`` (skipping shards that are there) and return them all."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder, policy = VideoEncoder(vae), get_policy("wan")
    begun, made = time.monotonic(), 0
    for start in range(0, clips, SHARD):
        path = folder / f"{start // SHARD:05d}.safetensors"
        if path.exists():
            continue
        stop = min(start + SHARD, clips)
        drawn = [draw(index, seed, geometry.num_frames) for index in range(start, stop)]
        parts = []
        for offset in range(0, len(drawn), 8):
            frames = torch.stack([torch.from_numpy(frames) for frames, _ in drawn[offset : offset + 8]])
            parts.append(encode_clips(frames, encoder, policy, geometry))
        tensors = {
            name: torch.cat([part[name] for part in parts]).contiguous() for name in ("clean", "values", "first")
        }
        partial = path.with_suffix(".partial")
        metadata = {"captions": json.dumps([caption for _, caption in drawn])}
        save_file({**tensors, "known": parts[0]["known"].contiguous()}, partial, metadata=metadata)
        partial.replace(path)
        made += len(drawn)
        left = (time.monotonic() - begun) / made * (clips - stop)
        console.print(f"encode {stop}/{clips}  left {left / 60:.1f} min", highlight=False)
    return load_latents(folder, clips)


def joined(sets: Sequence[LatentSet]) -> LatentSet:
    """Several sets as one."""
    parts = {name: torch.cat([getattr(each, name) for each in sets]) for name in ("clean", "values", "first")}
    return LatentSet(**parts, known=sets[0].known, captions=[caption for each in sets for caption in each.captions])


def load_latents(folder: Path, clips: int) -> LatentSet:
    """The first ``clips`` encoded clips of ``folder``."""
    parts: dict[str, list[Tensor]] = {"clean": [], "values": [], "first": [], "known": []}
    captions: list[str] = []
    for path in sorted(folder.glob("*.safetensors"))[: -(-clips // SHARD)]:
        with safe_open(path, "pt") as shard:
            for name, tensors in parts.items():
                tensors.append(shard.get_tensor(name))
            captions += json.loads(shard.metadata()["captions"])
    return LatentSet(
        torch.cat(parts["clean"]), torch.cat(parts["values"]), parts["known"][0], torch.cat(parts["first"]), captions
    )
