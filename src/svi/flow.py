"""The flow-matching convention, once.

``sigma`` is the noise level in [0, 1]; 1 is pure noise. A noisy sample lies on the straight line between the
clean one and the noise, and the velocity is that line's direction:

    noisy    = (1 - sigma) * clean + sigma * noise
    velocity = noise - clean            = d noisy / d sigma
    clean    = noisy - sigma * velocity
    noise    = noisy + (1 - sigma) * velocity

Tensors are ``(B, ...)``; ``sigma`` is ``(B,)`` or a scalar. Knows nothing about models or schedules.
"""

from __future__ import annotations

import torch
from torch import Tensor


def expand(sigma: Tensor | float, like: Tensor) -> Tensor:
    """``sigma`` as a tensor that broadcasts against ``like`` ``(B, ...)`` along the batch, in its dtype."""
    sigma = torch.as_tensor(sigma, dtype=like.dtype, device=like.device)
    if sigma.ndim > 1 or (sigma.ndim == 1 and sigma.shape[0] not in (1, like.shape[0])):
        raise ValueError(f"sigma must be a scalar or ({like.shape[0]},), not {tuple(sigma.shape)}")
    return sigma.reshape(-1, *(1,) * (like.ndim - 1)) if sigma.ndim else sigma


def interpolate(clean: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """Noisy sample at noise level ``sigma``: ``(1 - sigma) * clean + sigma * noise``."""
    level = expand(sigma, clean)
    return (1 - level) * clean + level * noise


def velocity(clean: Tensor, noise: Tensor) -> Tensor:
    """Direction from clean to noise: ``noise - clean``."""
    return noise - clean


def to_clean(noisy: Tensor, predicted_velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """One-step estimate of the clean sample: ``noisy - sigma * velocity``."""
    return noisy - expand(sigma, noisy) * predicted_velocity


def to_noise(noisy: Tensor, predicted_velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """One-step estimate of the noise: ``noisy + (1 - sigma) * velocity``."""
    return noisy + (1 - expand(sigma, noisy)) * predicted_velocity
