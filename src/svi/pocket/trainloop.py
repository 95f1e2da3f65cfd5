"""A small resumable training loop for the pocket model's stages: checkpoint, log, stop and go on.

Every batch is a pure function of ``(seed, step)``, so a resumed run sees the data that an undisturbed one would.
Knows nothing about what is trained.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from rich.console import Console
from torch import Tensor, nn

Result = TypeVar("Result")


@dataclass
class Stage:
    """One stage of training.

    Attributes:
        name: file stem of its checkpoint and log.
        modules: what is trained and saved, by name.
        total_steps: optimizer steps.
        loss: ``(step, generator) -> (loss, numbers to log)``; the generator is seeded by ``(seed, step)``.
        lr, warmup, weight_decay: linear warm-up, constant until ``decay_from`` of the steps, then a cosine to
            ``lr * final_lr_ratio``.
        optimizer: ``adamw``, or ``muon`` for inner matrices and kernels with AdamW for the rest.
        ema_decay: average of the weights that is kept beside them (None: none).
        on_sample: called every ``sample_every`` steps and at the end, to look at the result.
    """

    name: str
    modules: dict[str, nn.Module]
    total_steps: int
    loss: Callable[[int, torch.Generator], tuple[Tensor, dict[str, float]]]
    lr: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.01
    final_lr_ratio: float = 0.02
    decay_from: float = 0.0
    optimizer: Literal["adamw", "muon"] = "adamw"
    ema_decay: float | None = None
    on_sample: Callable[[int], dict[str, float]] | None = None
    sample_every: int = 500
    ema: dict[str, Tensor] = field(default_factory=dict)

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [(f"{k}.{n}", p) for k, m in self.modules.items() for n, p in m.named_parameters() if p.requires_grad]


def learning_rate(stage: Stage, step: int) -> float:
    """Linear warm-up, constant until ``decay_from``, then a cosine down to ``final_lr_ratio``."""
    if step < stage.warmup:
        return stage.lr * (step + 1) / stage.warmup
    start = max(stage.warmup, round(stage.decay_from * stage.total_steps))
    progress = min(1.0, max(0.0, (step - start) / max(1, stage.total_steps - start)))
    low = stage.final_lr_ratio
    return stage.lr * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


def step_generator(seed: int, step: int) -> torch.Generator:
    """The only source of randomness of a step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


class KernelMuon(torch.optim.Muon):
    """Muon, which takes matrices only, on linear weights and on convolution kernels seen as (out, in x taps) matrices."""

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float, weight_decay: float) -> None:
        self.kernels = list(parameters)
        self.matrices = [nn.Parameter(_as_matrix(kernel.data, kernel)) for kernel in self.kernels]
        for matrix, kernel in zip(self.matrices, self.kernels, strict=True):
            assert matrix.data_ptr() == kernel.data_ptr(), "the matrix has to be a view of the kernel"
        super().__init__(self.matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for matrix, kernel in zip(self.matrices, self.kernels, strict=True):
            matrix.grad = None if kernel.grad is None else _as_matrix(kernel.grad, kernel)
        return super().step(closure)


def _as_matrix(tensor: Tensor, like: Tensor) -> Tensor:
    """``(out, in, *taps)`` -> ``(out, -1)``, in the order in which ``like`` lies in memory (channels last or not)."""
    return tensor.reshape(len(tensor), -1) if like.is_contiguous() else tensor.movedim(1, -1).flatten(1)


def _group_of(stage: Stage, name: str, parameter: nn.Parameter) -> str:
    inner_matrix = parameter.ndim == 2 and (".blocks." in name or ".block." in name) and "_bias" not in name
    inner_kernel = parameter.ndim in (4, 5) and "patch_embedding" not in name
    if stage.optimizer == "muon" and (inner_matrix or inner_kernel):
        return "muon"
    return "decay" if parameter.ndim > 1 else "plain"


class Bfloat16(nn.Module):
    """Modules that compute with bf16 copies of their fp32 weights; gradients reach the fp32 ones.

    Autocast would keep every norm in fp32 and cast back and forth: 1.6 times the time of a step of the VAE on a CPU.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.inner = nn.ModuleDict(modules)

    def forward(self, compute: Callable[[], Any]) -> Any:
        return compute()

    def run(self, compute: Callable[[], Result]) -> Result:
        """What ``compute`` returns when the modules' weights are bf16."""
        low = {name: parameter.bfloat16() for name, parameter in self.named_parameters()}
        return cast("Result", torch.func.functional_call(self, low, (compute,)))


def make_optimizers(parameters: Iterable[tuple[str, nn.Parameter]], stage: Stage) -> list[torch.optim.Optimizer]:
    """The stage's optimizers; matrices and kernels decay, gains and biases do not."""
    groups: dict[str, list[nn.Parameter]] = {"muon": [], "decay": [], "plain": []}
    for name, parameter in parameters:
        groups[_group_of(stage, name, parameter)].append(parameter)
    decayed = {"params": groups["decay"], "weight_decay": stage.weight_decay}
    plain = {"params": groups["plain"], "weight_decay": 0.0}
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW([decayed, plain], lr=stage.lr, betas=(0.9, 0.95))]
    if groups["muon"]:
        optimizers.append(KernelMuon(groups["muon"], stage.lr, stage.weight_decay))
    return optimizers


def train(stage: Stage, folder: Path, *, seed: int, console: Console, save_every_s: float = 120.0) -> None:
    """Run ``stage`` to its end, continuing from ``folder/<name>.pt`` where that exists.

    Writes ``<name>.jsonl`` (one line every 20 steps) and the checkpoint (atomically, every ``save_every_s`` seconds).
    At the end the modules hold the averaged weights if the stage keeps an average.

    Raises:
        FloatingPointError: when the loss is not finite; the last checkpoint stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parameters = stage.named_parameters()
    optimizers = make_optimizers(parameters, stage)
    step, elapsed = _load(stage, folder, optimizers)
    begun = saved = time.monotonic()
    first = step
    for step in range(first, stage.total_steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(stage, step)
        loss, numbers = stage.loss(step, step_generator(seed, step))
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"{stage.name}: loss is {loss.item()} at step {step}; the last checkpoint is intact"
            )
        for _, parameter in parameters:
            parameter.grad = None
        loss.backward()
        norm = nn.utils.clip_grad_norm_([p for _, p in parameters], 1.0)
        for optimizer in optimizers:
            optimizer.step()
        _average(stage, parameters, step)
        now = time.monotonic()
        if step % 20 == 0 or step + 1 == stage.total_steps:
            spent = elapsed + now - begun
            rest = (now - begun) / (step + 1 - first) * (stage.total_steps - step - 1)
            row = {
                "step": step,
                "loss": loss.item(),
                "grad_norm": norm.item(),
                **numbers,
                "lr": learning_rate(stage, step),
            }
            _log(folder / f"{stage.name}.jsonl", {**row, "elapsed_s": round(spent, 1)})
            shown = "  ".join(f"{key} {value:.4f}" for key, value in row.items() if key not in ("step", "lr"))
            console.print(
                f"{stage.name} {step + 1}/{stage.total_steps}  {shown}  left {rest / 60:.1f} min", highlight=False
            )
        if now - saved > save_every_s:
            _save(stage, folder, optimizers, step + 1, elapsed + now - begun)
            saved = now
        if stage.on_sample and (step + 1) % stage.sample_every == 0 and step + 1 < stage.total_steps:
            _sample(stage, folder, step + 1, console)
    _save(stage, folder, optimizers, stage.total_steps, elapsed + time.monotonic() - begun)
    swap_average(stage)
    if stage.on_sample and first < stage.total_steps:
        _sample(stage, folder, stage.total_steps, console, swap=False)


def swap_average(stage: Stage) -> None:
    """Exchange the weights with their average, in place."""
    for name, parameter in stage.named_parameters():
        if name in stage.ema:
            kept = parameter.detach().clone()
            parameter.data.copy_(stage.ema[name])
            stage.ema[name] = kept


def _sample(stage: Stage, folder: Path, step: int, console: Console, *, swap: bool = True) -> None:
    assert stage.on_sample is not None
    if swap:
        swap_average(stage)
    numbers = stage.on_sample(step)
    if swap:
        swap_average(stage)
    _log(folder / f"{stage.name}.jsonl", {"step": step, "sample": numbers})
    console.print(f"{stage.name} sample at {step}: {numbers}", highlight=False)


def _average(stage: Stage, parameters: list[tuple[str, nn.Parameter]], step: int) -> None:
    if stage.ema_decay is None:
        return
    decay = min(stage.ema_decay, (1 + step) / (10 + step))  # a young average follows quickly
    for name, parameter in parameters:
        if name not in stage.ema:
            stage.ema[name] = parameter.detach().clone()
        else:
            stage.ema[name].lerp_(parameter.detach(), 1 - decay)


def _log(path: Path, row: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}) + "\n")


def _save(stage: Stage, folder: Path, optimizers: list[torch.optim.Optimizer], step: int, elapsed: float) -> None:
    state = {name: parameter.detach() for name, parameter in stage.named_parameters()}
    payload = {
        "step": step,
        "elapsed": elapsed,
        "model": state,
        "ema": stage.ema,
        "optimizers": [o.state_dict() for o in optimizers],
    }
    partial = folder / f"{stage.name}.pt.partial"
    with partial.open("wb") as file:
        torch.save(payload, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / f"{stage.name}.pt")


def _load(stage: Stage, folder: Path, optimizers: list[torch.optim.Optimizer]) -> tuple[int, float]:
    path = folder / f"{stage.name}.pt"
    if not path.exists():
        return 0, 0.0
    device = stage.named_parameters()[0][1].device
    payload = torch.load(path, weights_only=True, map_location=device)
    for name, parameter in stage.named_parameters():
        parameter.data.copy_(payload["model"][name])
    stage.ema = payload["ema"]
    states = payload["optimizers"] if "optimizers" in payload else [payload["optimizer"]]
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(state)
    return int(payload["step"]), float(payload["elapsed"])
