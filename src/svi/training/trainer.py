"""The training loop: batches in, a LoRA out, and everything on disk that a killed training needs to go on.

A step is a function of (seed, rank, step) and of the state that checkpoints hold, so a resumed training equals one that
was never stopped. Knows the method by name only; what a clip is conditioned on was decided when it was encoded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from svi import recycling
from svi.backends.lora_base import weights_sha256
from svi.backends.lora_read import LoraMetadata
from svi.backends.lora_train import attach_lora
from svi.backends.lora_write import save_lora
from svi.backends.wan import WanBackend
from svi.backends.weights import find_model
from svi.data.dataset import Dataset
from svi.data.sample import TrainingBatch
from svi.data.sampler import Loader, Sampler
from svi.error_bank import ErrorBanks
from svi.errors import UserError
from svi.generation.events import Listener
from svi.schedule import SigmaBuckets
from svi.training import state
from svi.training.config import TrainingConfig
from svi.training.distributed import agree, gather_errors, mean_over_ranks, step_generator
from svi.training.events import Note, Saved, Stepped, Validated
from svi.training.methods import METHODS, StepResult, density
from svi.training.optim import Average, learning_rate, make_optimizer
from svi.training.record import Record, environment

if TYPE_CHECKING:
    from accelerate import Accelerator

LORA_FILE = "lora.safetensors"


class Validation(Protocol):
    """A look at the model: numbers, and the path of a picture (or an empty one)."""

    def __call__(self, backend: WanBackend, step: int) -> tuple[Mapping[str, float], str]: ...


@dataclass(frozen=True)
class Finished:
    """How a training ended: after all its steps, or when it was asked to stop (``svi train`` goes on from there)."""

    step: int
    complete: bool
    lora: Path


class Trainer:
    """One training in one process (of several, perhaps).

    Args:
        config: what to train.
        folder: run folder, made where it is missing; one with a checkpoint is gone on with.
        backend: the frozen base; its transformer gets the LoRA.
        dataset: encoded clips.
        accelerator: device and processes.
        listener: told every event; only in the first process.
        validation: see :class:`Validation`.

    Raises:
        UserError: for targets, sizes or budgets that do not fit, and for a checkpoint of other settings.
    """

    def __init__(
        self,
        config: TrainingConfig,
        folder: Path,
        backend: WanBackend,
        dataset: Dataset,
        *,
        accelerator: Accelerator,
        listener: Listener,
        validation: Validation | None = None,
    ) -> None:
        self.config, self.folder, self.backend, self.accelerator = config, folder, backend, accelerator
        self.validation = validation
        self.base_sha256 = weights_sha256(find_model(config.model.name))
        self.tell: Listener = listener if accelerator.is_main_process else (lambda event: None)
        self.empty_text = dataset.empty_text()
        lora, seed = config.lora, config.loop.seed
        attach_lora(
            backend.transformer, rank=lora.rank, alpha=lora.alpha, targets=lora.targets, init=lora.init, seed=seed
        )
        optimizer = make_optimizer((p for p in backend.transformer.parameters() if p.requires_grad), config.optimizer)
        backend.runner, self.optimizer = accelerator.prepare(backend.transformer, optimizer)
        self.parameters: dict[str, nn.Parameter] = {
            name: p for name, p in backend.transformer.named_parameters() if p.requires_grad
        }
        ema = config.optimizer.ema_decay
        self.average = Average(ema, self.parameters) if ema is not None else None
        sampler = Sampler(
            dataset,
            batch_size=config.data.batch_size,
            seed=seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        self.loader = Loader(dataset, sampler, ahead=config.data.workers)
        self.draw = density(config)
        self.method = METHODS[config.method]
        self.banks = self._make_banks(dataset.sample(0, 0).clean.shape)
        self.record = Record(folder / "log.jsonl", enabled=accelerator.is_main_process)
        self.step = 0
        self._resume()

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> Finished:
        """Train to the end, or until ``should_stop`` says so between two steps; either way everything is saved.

        Raises:
            FloatingPointError: when the loss is no longer finite in some process; the last checkpoint is intact.
        """
        loop, begun, first = self.config.loop, time.monotonic(), self.step
        stopped = False
        while self.step < loop.steps and not stopped:
            self._train_step()
            done = self.step - first
            left = (time.monotonic() - begun) / done * (loop.steps - self.step)
            last = self.step == loop.steps
            if self.step % loop.log_every == 0 or last:
                self.tell(Stepped(self.step, loop.steps, left, self.record.flush(self.step, self.banks)))
            stopped = not agree(not should_stop(), self.accelerator)
            if self.step % loop.save_every == 0 or last or stopped:
                self.save()
            if loop.validate_every and (self.step % loop.validate_every == 0 or last):
                self.validate()
        self.loader.close()
        return Finished(self.step, self.step == loop.steps, self.folder / LORA_FILE)

    def _train_step(self) -> None:
        config, count = self.config.optimizer, self.config.optimizer.accumulation
        rate = learning_rate(config, self.step, self.config.loop.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        made = []
        for micro, batch in zip(range(count), self.loader, strict=False):
            generator = step_generator(self.config.loop.seed, self.accelerator.process_index, self.step, micro)
            result = self._forward(batch, generator)
            if not agree(bool(torch.isfinite(result.loss)), self.accelerator):
                raise FloatingPointError(
                    f"the loss is not finite at step {self.step}: lower optimizer.lr, or look at the data; "
                    "the last checkpoint is intact"
                )
            self.accelerator.backward(result.loss / count)
            made.append((result, generator))
        norm = self.accelerator.clip_grad_norm_(self.parameters.values(), config.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.parameters, self.step)
        for result, generator in made:
            self._bank(result, generator)
            self.record.add(result.sigma, result.per_sample.cpu())
        loss = mean_over_ranks(torch.stack([result.loss.detach() for result, _ in made]).mean(), self.accelerator)
        self.record.set(loss=float(loss), grad_norm=float(norm), lr=rate)
        self.step += 1

    def _forward(self, batch: TrainingBatch, generator: torch.Generator) -> StepResult:
        batch = batch.to(self.backend.device)
        sigma = self.draw(batch.size, generator)
        batch = without_text(batch, self.empty_text, self.config.loss.text_dropout, generator)
        method = self.method
        return method(
            self.backend.velocity, batch, self.banks, self.config.recycling, self.config.loss, sigma, generator
        )

    def _bank(self, result: StepResult, generator: torch.Generator) -> None:
        """Store the errors of a step; of all processes while the bank warms up."""
        if result.errors is None:
            return
        errors, enters = result.errors, recycling.admitted(result.errors, self.config.recycling, generator)
        if self.step < self.config.bank.warmup_steps:
            errors, enters = gather_errors(errors, enters, self.accelerator)
        recycling.store(self.banks, errors, enters, generator)

    def _make_banks(self, shape: torch.Size) -> ErrorBanks:
        bank = self.config.bank
        buckets = SigmaBuckets(bank.buckets, bank.shift)
        if self.config.method == "plain":
            return ErrorBanks(buckets)
        channels, frames, height, width = shape
        plan = recycling.plan_banks(
            self.config.recycling,
            (channels, frames, height, width),
            bank_memory=int(bank.memory_gb * 1e9) if bank.memory_gb else free_memory() // 2,
            capacity=bank.capacity,
            buckets=buckets,
            spill_memory=int(bank.spill_gb * 1e9),
        )
        for line in plan.reasons:
            self.tell(Note(f"error bank: {line}"))
        rank = self.accelerator.process_index
        spill = self.folder / "bank" / f"rank-{rank:03d}" if plan.spilled else None
        return ErrorBanks.create(plan, self.config.recycling.banks, policy=bank.policy, folder=spill)

    # -- checkpoints

    def save(self) -> None:
        """Write a checkpoint and the LoRA as it is now."""
        accelerator, writer = self.accelerator, state.Writer(self.checkpoints, self.step)
        weights = {name: full(p) for name, p in self.parameters.items()}
        if accelerator.is_main_process:
            writer.clear()
        accelerator.wait_for_everyone()
        own = {"banks": self.banks.state_dict(), "loader": self.loader.state_dict()}
        writer.put(state.rank_file(accelerator.process_index), own)
        if accelerator.is_main_process:
            shared = {"weights": weights, "optimizer": self.optimizer.state_dict()}
            writer.put(state.SHARED, shared | ({} if self.average is None else {"average": self.average.values}))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            made = writer.finish(ranks=accelerator.num_processes, fingerprint=self.config.fingerprint())
            state.prune(self.checkpoints, self.config.loop.keep)
            self._write_lora(weights)
            self.tell(Saved(self.step, str(made.folder)))
        accelerator.wait_for_everyone()

    def _write_lora(self, weights: Mapping[str, Tensor]) -> None:
        source = weights if self.average is None else self.average.values
        config = self.config
        metadata = LoraMetadata(
            preset=config.data.preset,
            base=self.backend.info.name,
            base_sha256=self.base_sha256,
            alpha=config.lora.alpha,
            recipe=config.recipe,
            expert=config.model.expert,
            details={"steps": self.step, "config": config.model_dump(mode="json"), "environment": environment()},
        )
        plain = {name.replace(".default.", "."): tensor for name, tensor in source.items()}
        save_lora(self.folder / LORA_FILE, plain, metadata, replace=True)

    def _resume(self) -> None:
        found, complaints = state.latest(self.checkpoints)
        for complaint in complaints:
            self.tell(Note(complaint))
        if found is None:
            return
        if found.fingerprint != self.config.fingerprint():
            raise UserError(
                f"{self.folder} was trained with other settings (see its config.yaml): give those, or another folder"
            )
        ranks = self.accelerator.num_processes
        if found.ranks != ranks:
            raise UserError(
                f"{found.folder} was written by {found.ranks} processes, now there are {ranks}, and each has its own error "
                f"banks: start {found.ranks}, or begin a new training with lora.start={self.folder / LORA_FILE}"
            )
        shared = state.load(found, state.SHARED)
        own = state.load(found, state.rank_file(self.accelerator.process_index))
        for name, parameter in self.parameters.items():
            parameter.data.copy_(shared["weights"][name])
        self.optimizer.load_state_dict(shared["optimizer"])
        if self.average is not None:
            self.average.values = {name: value.to(self.backend.device) for name, value in shared["average"].items()}
        self.banks.load_state_dict(own["banks"])
        self.loader.load_state_dict(own["loader"])
        self.step = found.step
        self.tell(Note(f"going on after step {found.step} ({found.folder})"))

    # -- looking

    def validate(self) -> None:
        """Look at the averaged weights (or the present ones): in the first process only, the others wait."""
        if self.validation is not None and self.accelerator.is_main_process:
            if self.average is not None:
                self.average.swap(self.parameters)
            self.backend.transformer.eval()
            numbers, sheet = self.validation(self.backend, self.step)
            self.backend.transformer.train()
            if self.average is not None:
                self.average.swap(self.parameters)
            self.record.write({"step": self.step, "validation": dict(numbers), "sheet": sheet})
            self.tell(Validated(self.step, numbers, sheet))
        self.accelerator.wait_for_everyone()


def without_text(batch: TrainingBatch, empty: Tensor, probability: float, generator: torch.Generator) -> TrainingBatch:
    """The batch with some texts replaced by the empty one, each with ``probability``; takes B draws."""
    drops = torch.rand(batch.size, generator=generator) < probability
    if not drops.any():
        return batch
    text = batch.condition.text
    chosen = torch.where(drops[:, None, None].to(text.device), empty.to(text), text)
    return replace(batch, condition=replace(batch.condition, text=chosen))


def full(parameter: nn.Parameter) -> Tensor:
    """The whole of a parameter on the CPU, also where it is sharded; every process has to ask."""
    tensor: Any = parameter.detach()
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.cpu().clone()


def free_memory() -> int:
    """Bytes of main memory that are free, by what the system says."""
    for line in _meminfo():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 8 * 10**9  # no such file (macOS): a modest guess


def _meminfo() -> Iterator[str]:
    path = Path("/proc/meminfo")
    if path.exists():
        yield from path.read_text(encoding="ascii").splitlines()
