"""Noise levels: the steps of sampling, the draws of training, loss weights, and error buckets.

Everything follows the published implementation's flow-matching scheduler: a straight grid from 1 to 0, bent by a
``shift`` towards high noise. Knows nothing about models, solvers or timesteps (``1000 * sigma``, a backend's affair).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

TABLE_STEPS = 1000
TIMESTEPS = 1000.0  # of a noise level of 1: what models are told
"""Entries of the published training table of noise levels."""


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Bend noise levels towards 1: ``shift * s / (1 + (shift - 1) * s)``; 0 and 1 stay, order stays."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def shifted_sigmas(steps: int, shift: float = 5.0, *, device: torch.device | str | None = None) -> Tensor:
    """Noise levels of a sampling run: ``(steps + 1,)`` fp32, falling from 1 to exactly 0.

    Bit-equal to the published schedule (``linspace(1, 0, steps + 1)[:-1]``, shifted, then 0); computed on the CPU
    so that every device samples at the same levels.

    Raises:
        ValueError: for fewer than one step or a shift that is not positive.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    _check_shift(shift)
    grid = torch.linspace(1, 0, steps + 1, dtype=torch.float32)[:-1]
    return torch.cat([shift_sigma(grid, shift), torch.zeros(1)]).to(device)


def _check_shift(shift: float) -> None:
    if not shift > 0:
        raise ValueError(f"shift must be positive, not {shift}")


@lru_cache(maxsize=8)
def _training_table(shift: float, entries: int = TABLE_STEPS) -> Tensor:
    """``(entries,)`` noise levels that published training draws from, from 1 down to (not including) 0."""
    return shifted_sigmas(entries, shift)[:-1]


# --- densities: (batch, generator) -> sigma (batch,) fp32 on the generator's device --------------------------------


def uniform_density(batch: int, generator: torch.Generator, *, shift: float = 5.0) -> Tensor:
    """Published: a uniform entry of the shifted table of 1000 noise levels, for each sample on its own. ``(batch,)``."""
    table = _training_table(shift).to(generator.device)
    return table[torch.randint(TABLE_STEPS, (batch,), generator=generator, device=generator.device)]


def stratified_density(batch: int, generator: torch.Generator, *, shift: float = 5.0) -> Tensor:
    """The same density, drawn once from each of ``batch`` equal strata, in random order: less variance. ``(batch,)``.

    Continuous, in (0, 1]. Source of the idea: k-diffusion (``enable_stratified``).
    """
    _check_shift(shift)
    device = generator.device
    strata = torch.randperm(batch, generator=generator, device=device)
    return shift_sigma(1 - (strata + torch.rand(batch, generator=generator, device=device)) / batch, shift)


def logit_normal_density(
    batch: int, generator: torch.Generator, *, mean: float = 0.0, std: float = 1.0, shift: float = 1.0
) -> Tensor:
    """``sigmoid(mean + std * normal)``, then shifted: mass at middle levels (Stable Diffusion 3). ``(batch,)`` in (0, 1)."""
    _check_shift(shift)
    normal = torch.randn(batch, generator=generator, device=generator.device)
    return shift_sigma(torch.sigmoid(mean + std * normal), shift)


# --- loss weights ---------------------------------------------------------------------------------------------------


def bell_weight(sigma: Tensor, *, shift: float = 5.0) -> Tensor:
    """Published loss weight of each ``sigma`` (any shape): a bell, ``exp(-2 (sigma - 1/2)^2)``.

    Lowered so that its least value on the training table is 0, then scaled so that its mean over that table is 1.
    The published code looks up the same numbers by index.
    """
    least, mean = _bell_scale(shift)
    return (_bell(sigma) - least).clamp_min(0) / mean


def _bell(sigma: Tensor) -> Tensor:
    return torch.exp(-2 * (sigma - 0.5) ** 2)


@lru_cache(maxsize=8)
def _bell_scale(shift: float) -> tuple[float, float]:
    """Least value of the bell on the training table, and the mean of what is above it."""
    bell = _bell(_training_table(shift))
    least = bell.min()
    return float(least), float((bell - least).mean())


# --- error buckets --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SigmaBuckets:
    """The levels that sampling visits, as buckets: an error made near one of them is reused at it.

    Attributes:
        steps: number of buckets; the published 50 are the levels of a 50-step run, without the final 0.
        shift: of that run.
    """

    steps: int = 50
    shift: float = 5.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")
        _check_shift(self.shift)

    def __len__(self) -> int:
        return self.steps

    @property
    def sigmas(self) -> Tensor:
        """``(steps,)`` fp32 level of each bucket, falling from 1."""
        return _training_table(self.shift, self.steps)

    def bucket_of(self, sigma: Tensor) -> Tensor:
        """Index of the bucket nearest to each ``sigma`` (any shape), int64; a tie goes to the higher level."""
        distance = (sigma[..., None].float() - self.sigmas.to(sigma.device)).abs()
        return distance.argmin(dim=-1)


def is_high(sigma: Tensor, boundary: float) -> Tensor:
    """Which noise levels belong to the high-noise expert, ``(B,)`` bool.

    Compared as timesteps in fp32, as the published pipelines do: with ``sigma`` itself, a level that lies on the boundary but
    for its last bit would fall to the other side.
    """
    return TIMESTEPS * sigma.float() >= torch.tensor(TIMESTEPS * boundary, dtype=torch.float32, device=sigma.device)
