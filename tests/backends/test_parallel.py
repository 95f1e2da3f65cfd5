"""Two and four processes on the CPU make what one makes: guidance branches side by side, tokens side by side, and both."""

import os
import socket
from itertools import chain, pairwise

import pytest
import torch
from torch import multiprocessing

from svi.backends import parallel
from svi.backends.memory import TransformerShape
from svi.backends.random_weights import random_transformer
from svi.condition import ClipCondition
from svi.errors import UserError
from svi.guidance import Guidance
from svi.schedule import shifted_sigmas
from svi.solvers import SOLVERS

CPU = torch.device("cpu")
SHAPE = TransformerShape(4, 24, 36, 16, 24, 64, 96, 2, image_dim=20, added_kv_proj_dim=96)


def tiny():
    return random_transformer(SHAPE, CPU, torch.float32, torch.Generator().manual_seed(3))


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditions():
    known = torch.zeros(1, 4, 2, 4, 6)
    known[:, :, 0] = 1
    full = ClipCondition(
        draw(1, 1, 16, 2, 4, 6), known, draw(2, 1, 512, 24), draw(4, 1, 257, 20), {"audio": draw(6, 1, 3)}
    )
    return {"full": full, "without_text": full.with_text(draw(5, 1, 512, 24))}


class Model:
    """As much of a backend as a step needs; a LoRA of it scales the output."""

    geometry = info = None

    def __init__(self, transformer):
        self.transformer, self.strength, self.boundary, self.seen = transformer, 1.0, None, []

    def velocity(self, noisy, sigma, condition):
        assert condition.drive["audio"].shape == (1, 3)
        self.seen.append(id(condition))
        inputs = torch.cat([noisy, condition.known, condition.values], dim=1)
        output = self.transformer(inputs, 1000 * sigma, condition.text, condition.image, return_dict=False)[0]
        return self.strength * output

    def set_lora_strengths(self, strengths):
        self.strength = strengths["scale"]

    def set_expert_boundary(self, boundary):
        self.boundary = boundary


def made(model, team, scale):
    """Three steps, as a sampler takes them."""
    guidance, branches, leading = Guidance(scale), conditions(), parallel.Leading(model, team)
    leading.set_lora_strengths({"scale": 0.5})
    leading.set_expert_boundary(0.875)
    state, history, sigmas = draw(7, 1, 16, 2, 4, 6), None, shifted_sigmas(3, 5.0)

    def guided(noisy, sigma):
        level = float(sigma)
        names = guidance.branches(level)
        results = leading.evaluate(noisy, sigma.expand(1), [branches[name] for name in names])
        return guidance.combine(level, dict(zip(names, results, strict=True)))

    with torch.inference_mode():
        for sigma, following in pairwise(sigmas):
            state, history = SOLVERS["euler"].step(state, guided, sigma, following, history)
    return state.clone()


def work(rank, size, folder, ports):
    """One of several processes: once with guidance, and of two once without."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1")
    for port, (name, scale) in zip(ports, (("guided", 5.0), ("plain", 1.0)), strict=False):
        os.environ["MASTER_PORT"] = str(port)
        team = parallel.join(guided=scale != 1, device=CPU)
        assert (team.branches, team.degree) == ((2, size // 2) if scale != 1 else (1, size))
        model = Model(tiny())
        parallel.split_tokens(model.transformer, team, tokens=12)
        if team.leads:
            torch.save(made(model, team, scale), f"{folder}/{name}.pt")
        else:
            assert parallel.follow(model, team) == 3
            assert len(set(model.seen)) == 1  # a condition stays the same object for a clip, as caches need it
        assert (model.strength, model.boundary, len(model.seen)) == (0.5, 0.875, 3)
        parallel.dismiss(team)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    multiprocessing.spawn(work, (2, str(folder), free_ports(2)), nprocs=2)
    return {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in ("guided", "plain")}


ALONE = parallel.Team(0, 1, 1, 1, CPU)


def test_branches_side_by_side_give_the_same_bytes(two_processes):
    assert torch.equal(two_processes["guided"], made(Model(tiny()), ALONE, 5.0))


def test_tokens_side_by_side_give_the_same(two_processes):
    """Ulysses: each process has half of the tokens, and half of the heads in attention."""
    torch.testing.assert_close(two_processes["plain"], made(Model(tiny()), ALONE, 1.0), rtol=1e-5, atol=1e-6)


def test_branches_and_tokens_side_by_side_give_the_same(tmp_path):
    """Four processes: two for each branch, which share its tokens."""
    multiprocessing.spawn(work, (4, str(tmp_path), free_ports(1)), nprocs=4)
    found = torch.load(tmp_path / "guided.pt", weights_only=True)
    torch.testing.assert_close(found, made(Model(tiny()), ALONE, 5.0), rtol=1e-4, atol=1e-5)


def test_alone_there_is_nobody_to_wait_for(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    team = parallel.join(device=CPU)
    assert team.leads
    assert not parallel.launched()
    parallel.split_tokens(tiny(), team)
    parallel.dismiss(team)


@pytest.mark.parametrize(("degree", "tokens", "said"), [(3, None, "4 attention heads"), (4, 30, "30 tokens")])
def test_what_does_not_divide_is_refused(degree, tokens, said):
    team = parallel.Team(0, 2 * degree, 2, degree, CPU)
    with pytest.raises(UserError, match=f"{said}.*start {4 if degree == 3 else 6} instead"):
        parallel.split_tokens(tiny(), team, tokens)


def test_many_videos_are_dealt_out(monkeypatch):
    videos = list(range(7))
    shares = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        shares.append(parallel.my_share(videos))
    assert sorted(chain(*shares)) == videos
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
