"""From noise to latents: the denoising loop of one clip.

The state is fp32 whatever the model's dtype: a bf16 state would round every step. Takes any velocity function, so
closed-form models can be sampled too; knows nothing about policies, memory or decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from svi.condition import ClipCondition
from svi.errors import UserError, nearest
from svi.guidance import Branch, Guidance
from svi.solvers import SOLVERS, History, Solver

ConditionedVelocity = Callable[[Tensor, Tensor, ClipCondition], Tensor]
"""``(noisy (B, C, F, h, w), sigma (B,), condition) -> velocity``; ``Backend.velocity`` is one."""

Evaluate = Callable[[Tensor, Tensor, Sequence[ClipCondition]], Sequence[Tensor]]
"""``(noisy, sigma (B,), conditions) -> velocities``, one per condition: all branches of a step, perhaps side by side."""


@runtime_checkable
class EvaluatesBranches(Protocol):
    """A backend that evaluates all branches of a step in one call: on several devices side by side, say."""

    def evaluate(self, noisy: Tensor, sigma: Tensor, conditions: Sequence[ClipCondition]) -> Sequence[Tensor]:
        """As :data:`Evaluate`."""
        ...


OnStep = Callable[[int, int], None]
"""Called as ``(step, steps)`` after each step, from 1; may raise to end the clip."""


def clip_noise(seed: int, shape: Sequence[int]) -> Tensor:
    """fp32 noise of a clip, from a CPU generator: the same numbers on every device, and those of the published code."""
    return torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)


def denoise(
    velocity: ConditionedVelocity,
    condition: ClipCondition,
    negative_text: Tensor | None,
    *,
    noise: Tensor,
    sigmas: Tensor,
    guidance: Guidance | float,
    solver: Solver | str = "euler",
    on_step: OnStep | None = None,
    start: int = 0,
    evaluate: Evaluate | None = None,
    without_history: ClipCondition | None = None,
    ending: Tensor | None = None,
) -> Tensor:
    """Latents ``(B, C, F, h, w)`` fp32 of a clip, on the device of the condition.

    Args:
        velocity: the model.
        condition: what the clip is conditioned on.
        negative_text: ``(B, L, D)`` or ``(1, L, D)``; None only where ``guidance`` needs no second evaluation.
        noise: ``(B, C, F, h, w)`` state at ``sigmas[start]``.
        sigmas: ``(steps + 1,)`` falling noise levels (``schedule.shifted_sigmas``).
        guidance: scales; a number is a text scale.
        solver: descriptor or its name in ``SOLVERS``.
        on_step: called after each step.
        start: step to begin with, for a state that is already part of the way.
        evaluate: evaluates all branches of a step, instead of ``velocity`` one by one.
        without_history: the condition as if no clip came before; only where ``guidance`` is by history.
        ending: ``(B, C, k, h, w)`` latents that the clip ends in: the state is led there, at every step as noisy as the rest, and the
            model makes what leads up to it (the replacement method, Ho et al. 2022, arXiv 2204.03458). Any model can be
            sampled so without training; at high noise it sees little of the ending, so the joint may show.
    """
    scales = guidance if isinstance(guidance, Guidance) else Guidance(float(guidance))
    method = _solver(solver) if isinstance(solver, str) else solver
    if tuple(noise.shape) != condition.latent_shape:
        raise ValueError(f"noise {tuple(noise.shape)} does not fit condition {condition.latent_shape}")
    steps = len(sigmas) - 1
    if not 0 <= start < steps:
        raise ValueError(f"start must be in [0, {steps - 1}], not {start}")
    levels = sigmas.float().cpu()  # on the CPU, so that no step waits for the device to learn its noise level
    with torch.inference_mode():
        conditions = _branch_conditions(scales, condition, negative_text, without_history)
        guided = _Guided(velocity, scales, conditions, evaluate, ending)
        state = noise.to(condition.values.device, torch.float32)
        history: History | None = None
        for step in range(start, steps):
            state, history = method.step(state, guided, levels[step], levels[step + 1], history)
            if on_step is not None:
                on_step(step + 1, steps)
    return state.clone()  # outside inference mode: an ordinary tensor, which callers may change in place


def _solver(name: str) -> Solver:
    if name not in SOLVERS:
        raise UserError(f"unknown solver {name!r}: {nearest(name, SOLVERS)}")
    return SOLVERS[name]


def _branch_conditions(
    guidance: Guidance, condition: ClipCondition, negative_text: Tensor | None, without_history: ClipCondition | None
) -> dict[Branch, ClipCondition]:
    """The condition of each branch; text-free ones only where guidance needs them."""
    conditions: dict[Branch, ClipCondition] = {"full": condition}
    if guidance.needs_negative:
        if negative_text is None:
            raise ValueError("guidance other than 1 needs the embedding of a negative prompt (an empty one will do)")
        without_text = condition.with_text(negative_text)
        conditions["without_text"] = without_text
        # As published for Talk: a zero drive, not the encoding of silence.
        silent = {name: torch.zeros_like(signal) for name, signal in condition.drive.items()}
        conditions["without_both"] = replace(without_text, drive=silent)
        if guidance.needs("without_history"):
            if without_history is None:
                raise ValueError("guidance by history needs the condition without it")
            conditions["without_history"] = without_history.with_text(negative_text)
    return conditions


def led_to(ending: Tensor, velocity: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
    """``velocity`` ``(B, C, F, h, w)``, but the last latent frames move straight from ``noisy`` to ``ending`` ``(B, C, k, h, w)``."""
    count = ending.shape[2]
    towards = (noisy[:, :, -count:] - ending) / sigma.to(noisy).clamp_min(1e-6)
    return torch.cat([velocity[:, :, :-count], towards], dim=2)


class _Guided:
    """The guided velocity, as solvers call it: one forward pass per branch, in fp32 afterwards."""

    def __init__(
        self,
        velocity: ConditionedVelocity,
        guidance: Guidance,
        conditions: dict[Branch, ClipCondition],
        evaluate: Evaluate | None = None,
        ending: Tensor | None = None,
    ) -> None:
        self.velocity, self.guidance, self.conditions, self.ending = velocity, guidance, conditions, ending
        self.evaluate = evaluate or self._one_by_one

    def _one_by_one(self, noisy: Tensor, sigma: Tensor, conditions: Sequence[ClipCondition]) -> Sequence[Tensor]:
        return [self.velocity(noisy, sigma, condition) for condition in conditions]

    def __call__(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        level = float(sigma)
        batch = sigma.to(noisy.device).expand(noisy.shape[0])
        branches = self.guidance.branches(level)
        found = self.evaluate(noisy, batch, [self.conditions[branch] for branch in branches])
        predictions = {branch: value.float() for branch, value in zip(branches, found, strict=True)}
        guided = self.guidance.combine(level, predictions)
        return guided if self.ending is None else led_to(self.ending.to(guided), guided, noisy, sigma)
