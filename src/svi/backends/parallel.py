"""Several GPUs for one video: guidance branches side by side on two, tokens side by side beyond (Ulysses).

Rank 0 leads: it runs the whole program and hands each evaluation to the others, which know no clips and only follow. So there
is one run folder, one Ctrl-C and nothing that could come apart between ranks. What comes back equals one process' result.
Knows torch.distributed and the context parallelism of diffusers; nothing about samplers, guidance scales or files.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from svi.condition import ClipCondition
from svi.errors import UserError

Velocity = Callable[[Tensor, Tensor, ClipCondition], Tensor]
ItemT = TypeVar("ItemT")

LEADER = 0
CALLS = ("set_lora_strengths", "set_expert_boundary")  # what a leader may have its followers do
TIMEOUT = timedelta(hours=12)  # a follower waits while its leader decodes, writes, or waits for a user


@dataclass(frozen=True)
class Team:
    """The processes of one video.

    Attributes:
        rank, size: this process, and how many there are.
        branches: groups of processes, each of which evaluates its share of the guidance branches.
        degree: processes in a group, among which the tokens are split.
        device: of this process.
        mesh: torch's device mesh over (branches, ring, ulysses); None where there is one process.
    """

    rank: int
    size: int
    branches: int
    degree: int
    device: torch.device
    mesh: Any = None

    @property
    def group(self) -> int:
        """Which group of branches this process belongs to."""
        return self.rank // self.degree

    @property
    def leads(self) -> bool:
        """Whether this is the process that runs the program."""
        return self.rank == LEADER

    def line(self) -> str:
        """One line for people."""
        split = f", tokens of each split among {self.degree}" if self.degree > 1 else ""
        return f"{self.size} processes: {self.branches} guidance branch(es) at a time{split}"


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join(*, guided: bool = True, device: torch.device | None = None) -> Team:
    """Join the processes that torchrun started; alone where it started none.

    Args:
        guided: whether a step has two branches or more; without guidance all processes share the tokens of one.
        device: left out, the CUDA device of this process' local rank, or the CPU.

    Raises:
        UserError: for more processes than devices.
    """
    size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    where = device or _local_device(local)
    if size == 1:
        return Team(0, 1, 1, 1, where)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if not dist.is_initialized():
        # gloo beside nccl: headers are read on the CPU.
        dist.init_process_group("cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo", timeout=TIMEOUT)
    branches = 2 if guided and size % 2 == 0 else 1
    degree = size // branches
    mesh = init_device_mesh(where.type, (branches, 1, degree), mesh_dim_names=("branches", "ring", "ulysses"))
    return Team(dist.get_rank(), size, branches, degree, where, mesh)


def _local_device(local: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local >= torch.cuda.device_count():
        raise UserError(
            f"torchrun started process {local} on this machine, which has {torch.cuda.device_count()} GPU(s): "
            f"use --nproc-per-node {torch.cuda.device_count()}"
        )
    return torch.device("cuda", local)


def split_tokens(transformer: Any, team: Team, tokens: int | None = None) -> None:
    """Let the processes of a group share the tokens of each forward pass of ``transformer``.

    Args:
        tokens: of a clip, to be checked where it is known.

    Raises:
        UserError: where heads or tokens do not divide; the message says by what they would.
    """
    if team.degree == 1:
        return
    from diffusers import ContextParallelConfig

    heads = transformer.config.num_attention_heads
    for what, count in (("attention heads", heads), ("tokens of a clip", tokens)):
        if count is not None and count % team.degree:
            fit = max(n for n in range(1, team.degree) if count % n == 0)
            raise UserError(
                f"{count} {what} cannot be split among {team.degree} processes: start {fit * team.branches} instead"
            )
    config = ContextParallelConfig(ulysses_degree=team.degree, mesh=team.mesh["ring", "ulysses"])
    with _counted_processors(team):
        transformer.enable_parallelism(config=config)


@contextlib.contextmanager
def _counted_processors(team: Team) -> Iterator[None]:
    """On CPUs torch counts no accelerators, and diffusers divides by their number; a count of one is right there."""
    if team.device.type != "cpu":
        yield
        return
    count = torch.accelerator.device_count
    torch.accelerator.device_count = lambda: 1
    try:
        yield
    finally:
        torch.accelerator.device_count = count


# -- lead and follow ---------------------------------------------------------------------------------------------------


class Leading:
    """A backend on rank 0 whose evaluations are shared with the other ranks, which are in :func:`follow`.

    To everyone else it is that backend: encoders and VAE work here alone. With a team of one it only passes on.

    Attributes:
        backend, team: as given.
        geometry, info: the backend's.
    """

    def __init__(self, backend: Any, team: Team) -> None:
        self.backend, self.team = backend, team
        self.geometry, self.info = backend.geometry, backend.info
        self._known: list[ClipCondition] = []

    def evaluate(self, noisy: Tensor, sigma: Tensor, conditions: Sequence[ClipCondition]) -> list[Tensor]:
        """Velocities of ``noisy`` ``(B, C, F, h, w)`` at ``sigma`` ``(B,)`` for each condition, as one process computes them."""
        if self.team.size == 1:
            return [self.backend.velocity(noisy, sigma, condition) for condition in conditions]
        self._tell_new(conditions)
        numbers = [_index(self._known, condition) for condition in conditions]
        _send({"evaluate": numbers}, [noisy, sigma], self.team)
        return _share(self.backend.velocity, self.team, noisy, sigma, conditions)

    def _tell_new(self, conditions: Sequence[ClipCondition]) -> None:
        """A condition lasts for a clip: it is sent once, and known by its number afterwards, so that caches find it again."""
        if any(_index(self._known, condition) is None for condition in conditions):
            self._known = list(conditions)
            _send({"conditions": len(conditions)}, [], self.team)
            for condition in conditions:
                _send_condition(condition, self.team)

    def velocity(self, noisy: Tensor, sigma: Tensor, condition: ClipCondition) -> Tensor:
        """As the backend's."""
        return self.evaluate(noisy, sigma, [condition])[0]

    def set_lora_strengths(self, strengths: Mapping[str, float]) -> None:
        """As the backend's, on every rank."""
        self._everywhere("set_lora_strengths", dict(strengths))

    def set_expert_boundary(self, boundary: float | None) -> None:
        """As the backend's, on every rank."""
        self._everywhere("set_expert_boundary", boundary)

    def _everywhere(self, name: str, value: Any) -> None:
        getattr(self.backend, name)(value)  # first here: what is refused is refused before anyone hears of it
        if self.team.size > 1:
            _send({"call": name, "with": value}, [], self.team)

    def encode_video(self, video: Tensor) -> Tensor:
        """As the backend's."""
        result: Tensor = self.backend.encode_video(video)
        return result

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """As the backend's."""
        yield from self.backend.decode(latents)

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """As the backend's."""
        result: Tensor = self.backend.encode_text(prompts)
        return result

    def encode_image(self, images: Tensor) -> Tensor | None:
        """As the backend's."""
        result: Tensor | None = self.backend.encode_image(images)
        return result


def follow(backend: Any, team: Team) -> int:
    """Take part in the leader's evaluations until it calls :func:`dismiss`; returns how many there were.

    Args:
        backend: the same model as the leader's; neither its VAE nor its encoders are used.
    """
    done, known = 0, list[ClipCondition]()
    while True:
        header, tensors = _receive(team)
        if "conditions" in header:
            known = [_receive_condition(team) for _ in range(header["conditions"])]
        elif "call" in header:
            if header["call"] not in CALLS:
                raise ValueError(f"a leader may not call {header['call']!r}")
            getattr(backend, header["call"])(header["with"])
        elif "evaluate" in header:
            noisy, sigma = tensors
            with torch.inference_mode():
                _share(backend.velocity, team, noisy, sigma, [known[number] for number in header["evaluate"]])
            done += 1
        else:
            return done


def dismiss(team: Team) -> None:
    """Tell the followers that there is no more work, and leave."""
    if team.size == 1:
        return
    if team.leads:
        _send({}, [], team)
    dist.barrier()
    dist.destroy_process_group()


def my_share(items: Sequence[ItemT]) -> list[ItemT]:
    """Of many independent videos those of this process: every ``WORLD_SIZE``-th, beginning with its rank.

    No process waits for another, so this needs no :func:`join`.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return list(items[rank::size])


def _index(known: Sequence[ClipCondition], condition: ClipCondition) -> int | None:
    return next((number for number, other in enumerate(known) if other is condition), None)


def _share(
    velocity: Velocity, team: Team, noisy: Tensor, sigma: Tensor, conditions: Sequence[ClipCondition]
) -> list[Tensor]:
    """Every group evaluates its branches; all get all."""
    mine = {n: velocity(noisy, sigma, c) for n, c in enumerate(conditions) if n % team.branches == team.group}
    results = []
    for number in range(len(conditions)):
        owner = (number % team.branches) * team.degree
        result = mine[number].contiguous() if number in mine else torch.empty(noisy.shape, device=noisy.device)
        dist.broadcast(result, owner)
        results.append(result)
    return results


# -- messages: a JSON header, then plain tensors; nothing is pickled ---------------------------------------------------


def _send_condition(condition: ClipCondition, team: Team) -> None:
    names = [name for name in ("values", "known", "text", "image") if getattr(condition, name) is not None]
    tensors = [getattr(condition, name) for name in names]
    _send({"names": names, "drive": list(condition.drive)}, [*tensors, *condition.drive.values()], team)


def _receive_condition(team: Team) -> ClipCondition:
    header, tensors = _receive(team)
    names = header["names"]
    parts = dict(zip(names, tensors, strict=False))
    drive = dict(zip(header["drive"], tensors[len(names) :], strict=True))
    made = ClipCondition(parts["values"], parts["known"], parts["text"], parts.get("image"))
    return replace(made, drive=drive) if drive else made


def _send(header: dict[str, Any], tensors: Sequence[Tensor], team: Team) -> None:
    described = {**header, "tensors": [[list(t.shape), str(t.dtype).removeprefix("torch.")] for t in tensors]}
    words = torch.frombuffer(bytearray(json.dumps(described).encode()), dtype=torch.uint8)
    dist.broadcast(torch.tensor([len(words)]), LEADER)
    dist.broadcast(words, LEADER)
    for tensor in tensors:
        dist.broadcast(tensor.detach().to(team.device).contiguous(), LEADER)


def _receive(team: Team) -> tuple[dict[str, Any], list[Tensor]]:
    length = torch.zeros(1, dtype=torch.int64)
    dist.broadcast(length, LEADER)
    words = torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(words, LEADER)
    header: dict[str, Any] = json.loads(bytes(words.tolist()))
    tensors = []
    for shape, dtype in header.pop("tensors"):
        tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=team.device)
        dist.broadcast(tensor, LEADER)
        tensors.append(tensor)
    return header, tensors
