"""Optimizer, learning rate and average of the trained weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from svi.training.config import Optimizer

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
}


def learning_rate(config: Optimizer, step: int, steps: int) -> float:
    """Linear warm-up, then the schedule over what is left of ``steps``: a function of the step alone, so nothing to resume."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.lr * SCHEDULES[config.schedule](min(1.0, progress))


def make_optimizer(parameters: Iterable[nn.Parameter], config: Optimizer) -> torch.optim.Optimizer:
    """AdamW, as published."""
    return torch.optim.AdamW(parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)


class Average:
    """Exponential moving average of named parameters, kept beside them in fp32; young averages follow quickly."""

    def __init__(self, decay: float, parameters: Mapping[str, nn.Parameter]) -> None:
        self.decay = decay
        self.values: dict[str, Tensor] = {name: p.detach().float().clone() for name, p in parameters.items()}

    def update(self, parameters: Mapping[str, nn.Parameter], step: int) -> None:
        """Move towards the parameters after step ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in parameters.items():
            self.values[name].lerp_(parameter.detach().float(), 1 - decay)

    def swap(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Exchange the parameters with their average, in place; once more undoes it."""
        for name, parameter in parameters.items():
            kept = parameter.detach().float().clone()
            parameter.data.copy_(self.values[name])
            self.values[name].copy_(kept)
