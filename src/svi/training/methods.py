"""One training step: which errors a batch gets, what the model should have said, and which errors it made.

Knows tensors and a velocity function. Nothing about optimizers, files or processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from svi import flow, recycling
from svi.condition import ClipCondition
from svi.recycling import ErrorPlan, Errors, RecyclingConfig
from svi.schedule import bell_weight, logit_normal_density, stratified_density, uniform_density
from svi.training.config import Loss, TrainingConfig

Density = Callable[[int, torch.Generator], Tensor]
MAX_REDRAWS = 10_000


class Batch(Protocol):
    """What a step reads of ``svi.data.TrainingBatch``."""

    @property
    def clean(self) -> Tensor: ...

    @property
    def condition(self) -> ClipCondition: ...


@dataclass(frozen=True)
class StepResult:
    """What a step gives.

    Attributes:
        loss: scalar, with gradient: mean of the weighted losses.
        per_sample: ``(B,)`` unweighted mean squared errors, detached.
        sigma: ``(B,)`` noise levels, on the CPU.
        errors: what the model got wrong, for the banks.
    """

    loss: Tensor
    per_sample: Tensor
    sigma: Tensor
    errors: Errors


def error_recycling_step(
    velocity: Callable[[Tensor, Tensor, ClipCondition], Tensor],
    batch: Batch,
    draw: Callable[[Tensor, torch.Generator], ErrorPlan],
    config: RecyclingConfig,
    loss: Loss,
    sigma: Tensor,
    generator: torch.Generator,
) -> StepResult:
    """A step of error-recycling fine-tuning (paper sections 4.1 and 4.4). With ``clean_prob`` 1, a plain one.

    Args:
        velocity: the model, ``Backend.velocity``.
        batch: B clips with their conditions.
        draw: ``(sigma, generator) -> plan``: which errors a batch gets (``Replay.draw``).
        config: how errors are harvested.
        loss: weight of each noise level.
        sigma: ``(B,)`` noise levels, from :func:`density`.
        generator: all randomness of the step, on the CPU.
    """
    clean = batch.clean
    plan = draw(sigma, generator).to(clean)
    noise = torch.randn(clean.shape, generator=generator, dtype=torch.float32).to(clean)
    noise = recycling.inject(noise, plan.noise)
    level = sigma.to(clean.device)
    noisy = flow.interpolate(recycling.inject(clean, plan.video), noise, level)
    predicted = velocity(noisy, level, batch.condition.with_error(plan.image))
    wanted = recycling.target(clean, noise)
    per_sample = (predicted.float() - wanted.float()).square().flatten(1).mean(1)
    weight = bell_weight(sigma, shift=loss.shift) if loss.weight == "bell" else torch.ones_like(sigma)
    return StepResult(
        loss=(per_sample * weight.to(per_sample)).mean(),
        per_sample=per_sample.detach(),
        sigma=sigma,
        errors=recycling.harvest(predicted.detach(), wanted, level, plan, how=config.harvest),
    )


def density(config: TrainingConfig) -> Density:
    """``(batch, generator) -> sigma (batch,)``: the noise levels that a configuration trains.

    One of two experts is trained on its side of the boundary only: draws from the other side are made again.
    """
    shift = config.loss.shift
    draws: dict[str, Density] = {
        "uniform": lambda batch, generator: uniform_density(batch, generator, shift=shift),
        "stratified": lambda batch, generator: stratified_density(batch, generator, shift=shift),
        "logit_normal": lambda batch, generator: logit_normal_density(batch, generator, shift=shift),
    }
    draw, (low, high) = draws[config.loss.density], sigma_range(config)
    if (low, high) == (0.0, 1.0):
        return draw

    def inside(batch: int, generator: torch.Generator) -> Tensor:
        kept = torch.empty(0)
        for _ in range(MAX_REDRAWS):
            sigma = draw(batch, generator)
            kept = torch.cat([kept, sigma[(sigma >= low) & (sigma <= high)]])
            if len(kept) >= batch:
                return kept[:batch]
        raise RuntimeError(f"no noise level in [{low}, {high}] came up: {config.loss.density} never draws there")

    return inside


def sigma_range(config: TrainingConfig) -> tuple[float, float]:
    """Least and largest noise level that the trained model is asked at."""
    boundary = config.loss.boundary
    return {None: (0.0, 1.0), "high": (boundary, 1.0), "low": (0.0, boundary)}[config.model.expert]
