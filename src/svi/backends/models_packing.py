"""How a condition enters a transformer of the Wan family: beside the noisy latents, or in their place.

Image-to-video models (2.1, 2.2 A14B) read condition and mask as further channels. TI2V-5B has no such channels: latent frames
that are given replace the noisy ones, and their tokens are told that they hold no noise. Knows nothing about modules.
"""

from __future__ import annotations

from torch import Tensor

from svi.condition import ClipCondition


def beside(noisy: Tensor, condition: ClipCondition) -> Tensor:
    """``(B, C + S + C, F, h, w)``: noisy latents, mask, condition."""
    import torch

    return torch.cat([noisy, condition.known.to(noisy), condition.values.to(noisy)], dim=1)


def given(condition: ClipCondition) -> Tensor:
    """Latent frames of which every frame is known, ``(B, 1, F, h, w)`` in {0, 1}."""
    return condition.known.amin(dim=1, keepdim=True)


def in_place(noisy: Tensor, condition: ClipCondition) -> Tensor:
    """``(B, C, F, h, w)``: the condition where it is given, the noisy latents elsewhere."""
    where = given(condition).to(noisy)
    return where * condition.values.to(noisy) + (1 - where) * noisy


def token_timesteps(timestep: Tensor, condition: ClipCondition, patch: tuple[int, int, int]) -> Tensor:
    """Timesteps ``(B,)`` -> one per token ``(B, F/pf * h/ph * w/pw)``, zero where latents are given."""
    frames, height, width = patch
    noisy = 1 - given(condition)[:, 0, ::frames, ::height, ::width].to(timestep)
    return timestep[:, None] * noisy.flatten(1)


def towards_given(predicted: Tensor, noisy: Tensor, sigma: Tensor, condition: ClipCondition) -> Tensor:
    """``predicted``, but what is given moves straight to what it is: a sampler ends at the condition there.

    The published pipeline overwrites those frames after the last step; this is the velocity that leads there, ``noise - clean``
    of a clean frame that is known, so that samplers and training need not know about it.
    """
    where = given(condition).to(noisy)
    level = sigma.to(noisy).clamp_min(1e-6).view(-1, 1, 1, 1, 1)
    return where * (noisy - condition.values.to(noisy)) / level + (1 - where) * predicted
