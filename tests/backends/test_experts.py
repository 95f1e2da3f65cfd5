"""Two experts: which one at which noise level, where the other waits, and what is said about it."""

import pytest
import torch
from torch import nn

from svi.backends.experts import Expert, Experts, HasExperts, choose_keep
from svi.backends.wan import load_backend
from svi.conditioning.policy import PRESETS
from svi.errors import UserError
from svi.schedule import is_high, shifted_sigmas

CPU = torch.device("cpu")


class Adapter:
    """What LoRAs look like to the pair."""

    def __init__(self):
        self.loaded, self.now = {"film": 1.0}, {}

    def set_strengths(self, strengths):
        self.now = dict(strengths)


def make(keep="both", loras=(), say=lambda line: None):
    """A pair whose experts add 1 (high) and 2 (low), and a list of what was loaded."""
    loaded = []

    def load(side):
        loaded.append(side)
        module = nn.Linear(1, 1)
        nn.init.constant_(module.weight, 0.0)
        nn.init.constant_(module.bias, {"high": 1.0, "low": 2.0}[side])
        return Expert(module, Adapter() if loras else None)

    return Experts(load, 0.9, CPU, keep, loras, say), loaded


def predict(experts, *sigmas):
    level = torch.tensor(sigmas)
    return experts.predict(level, lambda module, where: module(level[where][:, None]))[:, 0].tolist()


@pytest.mark.parametrize(("boundary", "high"), [(0.875, 21), (0.9, 18)])
def test_steps_of_each_expert_are_those_of_the_published_pipelines(boundary, high):
    sigmas = shifted_sigmas(50, 5.0)[:-1]
    assert int(is_high(sigmas, boundary).sum()) == high
    timesteps = 1000 * sigmas
    assert is_high(sigmas, boundary).tolist() == [float(step) >= boundary * 1000 for step in timesteps]


@pytest.mark.parametrize("boundary", [0.875, 0.9])
def test_a_level_on_the_boundary_is_high(boundary):
    exact = torch.tensor([boundary], dtype=torch.float32)
    assert is_high(exact, boundary).tolist() == [True]
    assert is_high(exact - 1e-4, boundary).tolist() == [False]


def test_each_of_a_batch_gets_its_expert():
    experts, _ = make()
    assert predict(experts, 1.0, 0.1, 0.95, 0.3) == [1.0, 2.0, 1.0, 2.0]
    assert predict(experts, 0.95) == [1.0]
    assert predict(experts, 0.2, 0.1) == [2.0, 2.0]


def test_the_preset_moves_the_boundary_and_the_pair_says_so():
    said = []
    experts, _ = make(say=said.append)
    assert "sigma 0.9, then low (as the model's authors)" in experts.line()
    assert predict(experts, 0.88) == [2.0]
    experts.set_boundary(0.875)
    assert predict(experts, 0.88) == [1.0]
    experts.set_boundary(0.875)
    experts.set_boundary(None)
    assert predict(experts, 0.88) == [2.0]
    assert [line.split(",")[0] for line in said] == [
        "experts: high noise down to sigma 0.875",
        "experts: high noise down to sigma 0.9",
    ]
    assert "by the preset; the model's authors: 0.9" in said[0]
    with pytest.raises(UserError, match="between 0 and 1, not 875"):
        experts.set_boundary(875)


@pytest.mark.parametrize(("keep", "loads"), [("both", 2), ("swap", 2), ("reload", 4)])
def test_one_is_read_again_only_where_it_was_dropped(keep, loads):
    experts, loaded = make(keep)
    for sigma in (0.95, 0.5, 0.4, 0.95, 0.2):
        predict(experts, sigma)
    assert len(loaded) == loads


def test_strengths_reach_an_expert_that_is_loaded_later():
    for keep in ("both", "reload"):
        experts, _ = make(keep, loras=["film"])
        experts.take("high")
        experts.set_strengths({"film": 0.5})
        for side in ("low", "high", "low"):
            experts.take(side)
            assert experts._held[side].loras.now == {"film": 0.5}
    with pytest.raises(UserError, match="did you mean 'film'"):
        experts.set_strengths({"flim": 1.0})


def test_memory_decides_where_the_other_waits(monkeypatch):
    gib = 2**30
    free = {"cuda": 20 * gib, "cpu": 64 * gib}
    monkeypatch.setattr("svi.backends.experts._free_bytes", lambda device: free[device.type])
    cuda = torch.device("cuda")
    assert choose_keep(cuda, 10 * gib)[0] == "both"
    assert choose_keep(cuda, 28 * gib)[0] == "swap"
    free["cpu"] = 8 * gib
    assert choose_keep(cuda, 28 * gib)[0] == "reload"
    assert choose_keep(CPU, 28 * gib)[0] == "reload"
    assert choose_keep(CPU, 2 * gib)[0] == "both"
    assert all(len(choose_keep(device, 28 * gib)[1]) > 20 for device in (cuda, CPU))


def test_models_of_one_transformer_pass_over_a_boundary(backend):
    assert isinstance(backend, HasExperts)
    backend.set_expert_boundary(PRESETS["pro"].expert_boundary)
    assert backend.experts is None
    assert load_backend("pocket", device="cpu").experts is None
