"""Solvers of the sampling ODE ``d noisy / d sigma = velocity(noisy, sigma)``: pure step functions.

A step gets the state, the velocity function, this and the next noise level, and what it kept from its last step; it
returns the new state and what to keep. Tensors are fp32; noise levels are 0-dim fp32 tensors. Knows nothing about
models, guidance or schedules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from svi import flow

VelocityFn = Callable[[Tensor, Tensor], Tensor]
"""``(noisy, sigma) -> velocity``."""


@dataclass(frozen=True)
class History:
    """What a multistep solver keeps of its last step: the level it started from and what it evaluated there."""

    sigma: Tensor
    value: Tensor


StepFn = Callable[[Tensor, VelocityFn, Tensor, Tensor, History | None], tuple[Tensor, History | None]]


def euler_step(
    noisy: Tensor, velocity: VelocityFn, sigma: Tensor, sigma_next: Tensor, history: History | None = None
) -> tuple[Tensor, History | None]:
    """First order, one evaluation; the published solver."""
    return noisy + velocity(noisy, sigma) * (sigma_next - sigma), None


def heun_step(
    noisy: Tensor, velocity: VelocityFn, sigma: Tensor, sigma_next: Tensor, history: History | None = None
) -> tuple[Tensor, History | None]:
    """Second order, two evaluations: the mean of the slopes at both ends.

    The last step (to sigma 0) is Euler's: models are not trained at sigma 0, and one first-order step keeps the order.
    """
    slope = velocity(noisy, sigma)
    guess = noisy + slope * (sigma_next - sigma)
    if sigma_next == 0:
        return guess, None
    return noisy + (slope + velocity(guess, sigma_next)) * ((sigma_next - sigma) / 2), None


def midpoint_step(
    noisy: Tensor, velocity: VelocityFn, sigma: Tensor, sigma_next: Tensor, history: History | None = None
) -> tuple[Tensor, History | None]:
    """Second order, two evaluations: the slope half-way."""
    half = (sigma_next - sigma) / 2
    middle = noisy + velocity(noisy, sigma) * half
    return noisy + velocity(middle, sigma + half) * (sigma_next - sigma), None


def adams_step(
    noisy: Tensor, velocity: VelocityFn, sigma: Tensor, sigma_next: Tensor, history: History | None = None
) -> tuple[Tensor, History | None]:
    """Second order, one evaluation: two-step Adams-Bashforth for uneven steps; the first step is Euler's."""
    step, slope = sigma_next - sigma, velocity(noisy, sigma)
    kept = History(sigma, slope)
    if history is None:
        return noisy + slope * step, kept
    bend = step / (2 * (sigma - history.sigma))
    return noisy + (slope + bend * (slope - history.value)) * step, kept


def dpm_step(
    noisy: Tensor, velocity: VelocityFn, sigma: Tensor, sigma_next: Tensor, history: History | None = None
) -> tuple[Tensor, History | None]:
    """Second order, one evaluation: DPM-Solver++(2M) (arXiv 2211.01095) on the straight path.

    Extrapolates the estimate of the clean sample in ``log((1 - sigma) / sigma)``, which bends less than the velocity
    does. Steps from sigma 1 and to sigma 0 have no finite log and are Euler's.
    """
    clean = flow.to_clean(noisy, velocity(noisy, sigma), sigma)
    kept = History(sigma, clean)
    if history is not None and sigma_next > 0 and history.sigma < 1:
        ratio = (_log_snr(sigma_next) - _log_snr(sigma)) / (_log_snr(sigma) - _log_snr(history.sigma))
        clean = clean + (ratio / 2) * (clean - history.value)
    return clean + (sigma_next / sigma) * (noisy - clean), kept


def _log_snr(sigma: Tensor) -> Tensor:
    return ((1 - sigma) / sigma).log()


@dataclass(frozen=True)
class Solver:
    """A way to step.

    Attributes:
        name: key in ``SOLVERS``.
        summary: one line for users.
        order: order of convergence.
        evaluations: velocity evaluations per step.
        step: the step function.
    """

    name: str
    summary: str
    order: int
    evaluations: int
    step: StepFn


SOLVERS: dict[str, Solver] = {
    solver.name: solver
    for solver in (
        Solver("euler", "first order; what the published models were sampled with", 1, 1, euler_step),
        Solver("heun", "second order, twice the cost of a step", 2, 2, heun_step),
        Solver("midpoint", "second order, twice the cost of a step", 2, 2, midpoint_step),
        Solver("adams", "second order at the cost of euler (two-step Adams-Bashforth)", 2, 1, adams_step),
        Solver("dpm", "second order at the cost of euler (DPM-Solver++ 2M)", 2, 1, dpm_step),
    )
}
