"""Solvers on equations whose solutions are known."""

import itertools
import math

import pytest
import torch

from svi.schedule import shifted_sigmas
from svi.solvers import SOLVERS


def solve(solver, velocity, state, sigmas):
    history = None
    for sigma, sigma_next in itertools.pairwise(sigmas):
        state, history = solver.step(state, velocity, sigma, sigma_next, history)
    return state


def bending(noisy, sigma):
    """``dx/ds = 3 cos(3 s) x``; solution ``x(s) = x(1) exp(sin(3 s) - sin(3))``."""
    return 3 * torch.cos(3 * sigma) * noisy


def error(solver, steps, begin=1.0, end=0.0):
    sigmas = torch.linspace(begin, end, steps + 1, dtype=torch.float64)
    exact = math.exp(math.sin(3 * end) - math.sin(3 * begin))
    return abs(float(solve(solver, bending, torch.ones(1, dtype=torch.float64), sigmas)) - exact)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_order_of_convergence(solver):
    # Not from 1 to 0: there, heun and dpm take Euler steps by design.
    coarse, fine = error(solver, 160, 0.9, 0.3), error(solver, 320, 0.9, 0.3)
    assert math.log2(coarse / fine) == pytest.approx(solver.order, abs=0.05)


@pytest.mark.parametrize("solver", [s for s in SOLVERS.values() if s.order > 1], ids=lambda s: s.name)
def test_second_order_beats_euler_over_the_whole_path(solver):
    assert error(solver, 40) < error(SOLVERS["euler"], 40) / 3


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_a_straight_path_is_followed_exactly(solver):
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 1, 4, 3, 2, 2, generator=generator)
    reached = solve(solver, lambda noisy, sigma: noise - clean, noise, shifted_sigmas(7, 5.0))
    assert torch.allclose(reached, clean, atol=2e-6)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_evaluations_are_as_described_and_never_at_sigma_zero(solver):
    seen = []

    def velocity(noisy, sigma):
        seen.append(float(sigma))
        return bending(noisy, sigma)

    solve(solver, velocity, torch.ones(1), shifted_sigmas(5))
    assert min(seen) > 0
    spared = 1 if solver.name == "heun" else 0  # its last step needs no second slope
    assert len(seen) == 5 * solver.evaluations - spared


def test_euler_is_the_published_step_to_the_bit():
    state, slope = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    sigma, sigma_next = shifted_sigmas(50)[3:5]
    stepped, history = SOLVERS["euler"].step(state, lambda noisy, level: slope, sigma, sigma_next, None)
    assert torch.equal(stepped, state + slope * (sigma_next - sigma))
    assert history is None


def test_multistep_state_is_explicit():
    """Two runs that take turns do not disturb each other."""
    solver, sigmas = SOLVERS["adams"], shifted_sigmas(6)
    alone = [solve(solver, bending, torch.full((1,), start), sigmas) for start in (1.0, -2.0)]
    states, histories = [torch.ones(1), torch.full((1,), -2.0)], [None, None]
    for sigma, sigma_next in itertools.pairwise(sigmas):
        for run in range(2):
            states[run], histories[run] = solver.step(states[run], bending, sigma, sigma_next, histories[run])
    assert all(torch.equal(mixed, lone) for mixed, lone in zip(states, alone, strict=True))


def test_registry_names_agree():
    assert all(name == solver.name and solver.summary for name, solver in SOLVERS.items())
    assert next(iter(SOLVERS)) == "euler"
