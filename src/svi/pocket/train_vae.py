"""Stage 1 of the pocket model: the video VAE.

Single frames first, then 5, then whole clips: the weights learn space before time, which on a CPU saves most of
the hours. Squared error (with a trace of L1) and a small KL term, as a latent that bears a little noise is easier to
diffuse. The class's default initialisation is too small for this depth: see ``widen``.
Knows nothing about text or diffusion.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from svi.backends.vae import WanVae, channels_last
from svi.conditioning.window import to_video
from svi.pocket.trainloop import Bfloat16, Stage
from svi.pocket.world import World

L1_WEIGHT = 0.02
GAIN = 1.8
HELD_OUT = 1_000_000_000  # seeds from here on are never trained on


@dataclass(frozen=True)
class Phase:
    """``steps`` optimizer steps on batches of ``batch`` videos of ``frames`` frames, with weight ``kl`` on the KL term.

    With ``crop`` each video is a square of so many pixels, the liveliest of a few random ones: for the same cost more
    worlds in a step, a gradient with less noise, and less of it spent on ground that stands still.

    The last phase presses harder: latents that carry detail far below a hundredth of their spread (a KL above ten nats
    per value) decode well but cannot be generated.
    """

    frames: int
    batch: int
    steps: int
    kl: float = 1e-5
    crop: int | None = None


PHASES = (Phase(1, 8, 500), Phase(5, 2, 1300), Phase(17, 1, 550, kl=1e-4))
POLISH = (Phase(17, 12, 2000, kl=5e-5, crop=32), Phase(17, 2, 200, kl=5e-5))


def phase_at(phases: tuple[Phase, ...], step: int) -> Phase:
    """The phase that ``step`` belongs to; the last one for steps beyond the end."""
    for phase in phases:
        if step < phase.steps:
            return phase
        step -= phase.steps
    return phases[-1]


def sample_video(batch: int, num_frames: int, generator: torch.Generator, crop: int | None = None) -> Tensor:
    """Random worlds at random times, ``(B, T, H, W, 3)`` uint8; with ``crop`` a lively square of each."""
    seeds = torch.randint(HELD_OUT, (batch,), generator=generator).tolist()
    starts = torch.randint(64, (batch,), generator=generator).tolist()
    clips = [World.sample(seed).clip(start / 16, num_frames) for seed, start in zip(seeds, starts, strict=True)]
    if crop is not None:
        clips = [lively_square(clip, crop, generator) for clip in clips]
    return torch.stack([torch.from_numpy(clip) for clip in clips])


def lively_square(clip: np.ndarray, crop: int, generator: torch.Generator, tries: int = 3) -> np.ndarray:
    """Of ``tries`` random squares of a clip ``(T, H, W, 3)`` the one that varies most: ``(T, crop, crop, 3)``."""
    height, width = clip.shape[1:3]
    tops = torch.randint(height - crop + 1, (tries,), generator=generator).tolist()
    lefts = torch.randint(width - crop + 1, (tries,), generator=generator).tolist()
    squares = [clip[:, top : top + crop, left : left + crop] for top, left in zip(tops, lefts, strict=True)]
    return max(squares, key=lambda square: float(square[::4].std(axis=0).mean()))


def round_trip(vae: AutoencoderKLWan, video: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior mean, log variance and the reconstruction from a sample, all fp32; ``noise`` as latents are shaped."""
    posterior = vae.encode(video).latent_dist
    reconstruction = vae.decode(posterior.mean + posterior.std * noise).sample
    return posterior.mean.float(), posterior.logvar.float(), reconstruction.float()


@torch.no_grad()
def widen(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Scale the fresh kernels from torch's default variance, 1 / (3 fan_in), to about 1 / fan_in, and start with little noise.

    Without it one batch of four frames cannot be learnt at learning rate 1e-3 (12.8 dB after 60 steps) and only
    slowly at 3e-4 (16.0 dB); with it 21 to 23 dB after the same steps.
    """
    for parameter in vae.parameters():
        if parameter.ndim in (4, 5):
            parameter.mul_(GAIN)
    log_variance = slice(vae.config.z_dim, None)
    vae.quant_conv.bias[log_variance] = -6.0
    vae.quant_conv.weight[log_variance] *= 0.1
    return vae


def vae_stage(vae: AutoencoderKLWan, phases: tuple[Phase, ...] = PHASES, *, name: str = "vae") -> Stage:
    """A training stage of ``vae``: ``PHASES`` on fresh (widened) weights, then ``POLISH`` on what came out."""
    low = Bfloat16({"vae": channels_last(vae)})
    ratio, cell = vae.config.scale_factor_temporal, vae.config.scale_factor_spatial

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        phase = phase_at(phases, step)
        video = to_video(sample_video(phase.batch, phase.frames, generator, phase.crop)).to(vae.device)
        video = video.contiguous(memory_format=torch.channels_last_3d)
        batch, _, frames, height, width = video.shape
        shape = (batch, vae.config.z_dim, (frames - 1) // ratio + 1, height // cell, width // cell)
        noise = torch.randn(shape, generator=generator).to(vae.device).bfloat16()
        mean, logvar, reconstruction = low.run(lambda: round_trip(vae, video.bfloat16(), noise))
        error = reconstruction - video
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        mse = error.detach().square().mean()
        return error.square().mean() + L1_WEIGHT * error.abs().mean() + phase.kl * kl, {
            "psnr": psnr(mse).item(),
            "kl": kl.item(),
        }

    total = sum(phase.steps for phase in phases)
    return Stage(
        name,
        {"vae": vae},
        total,
        loss,
        lr=8e-4,
        warmup=50,
        weight_decay=0.0,
        optimizer="muon",
        on_sample=lambda step: {"held_out_psnr": held_out_psnr(vae, 8)},
        sample_every=500,
    )


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of a mean squared error on values in [-1, 1]."""
    return 10 * torch.log10(4 / mse)


@torch.no_grad()
def held_out_psnr(vae: AutoencoderKLWan, worlds: int, num_frames: int = 17) -> float:
    """Mean over held-out worlds of the round-trip PSNR of one clip each, in dB, through fp32 and uint8 as users see it."""
    values, codec = [], WanVae(copy.deepcopy(vae))
    for index in range(worlds):
        video = to_video(torch.from_numpy(World.sample(HELD_OUT + index).clip(0.0, num_frames))[None]).to(vae.device)
        decoded = torch.cat(list(codec.decode(codec.encode(video))), dim=2)
        shown = ((decoded + 1) * 127.5).clip(0, 255).to(torch.uint8).float() * (2 / 255) - 1
        values.append(psnr((shown - video).square().mean()).item())
    return sum(values) / len(values)


@torch.no_grad()
def latent_statistics(vae: AutoencoderKLWan, *, seed: int, clips: int = 64) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each latent channel over random clips, for ``latents_mean`` and ``latents_std``."""
    generator = torch.Generator().manual_seed(seed)
    latents = []
    for _ in range(clips // 4):
        video = to_video(sample_video(4, 17, generator)).to(vae.device)
        with torch.autocast(vae.device.type, torch.bfloat16):
            latents.append(vae.encode(video).latent_dist.mode().float().cpu())
    values = torch.cat(latents).transpose(0, 1).flatten(1)
    return [round(x, 5) for x in values.mean(1).tolist()], [round(x, 5) for x in values.std(1).tolist()]
