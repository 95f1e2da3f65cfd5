"""The training loop: batches in, a LoRA out, and everything on disk that a killed training needs to go on.

A step is a function of (seed, rank, step) and of the state that checkpoints hold, so a resumed training equals one that
was never stopped. Knows nothing about how the LoRA is held (``learner``) or errors are kept (``replay``); what a clip is
conditioned on was decided when it was encoded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from svi.backends.frozen import encoders_at_work
from svi.backends.lora_read import LoraMetadata
from svi.backends.lora_write import save_lora
from svi.backends.wan import WanBackend
from svi.data.dataset import Dataset
from svi.data.sample import TrainingBatch
from svi.data.sampler import Loader, Sampler
from svi.errors import UserError
from svi.generation.events import Listener
from svi.training import state
from svi.training.config import TrainingConfig, differences
from svi.training.distributed import agree, mean_over_ranks, step_generator
from svi.training.events import Note, Saved, Stepped, Validated
from svi.training.learner import Learner, trainable_attention
from svi.training.methods import StepResult, density, error_recycling_step
from svi.training.optim import learning_rate
from svi.training.record import Record, environment
from svi.training.replay import Replay, Shape

if TYPE_CHECKING:
    from accelerate import Accelerator

LORA_FILE = "lora.safetensors"
NAMED = 3  # differences that a message names


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
        base_sha256: of the base's weights, for the LoRA's metadata.
        indices: clips to train on; None = all.
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
        base_sha256: str | None = None,
        indices: Sequence[int] | None = None,
        validation: Validation | None = None,
    ) -> None:
        self.config, self.folder, self.backend, self.accelerator = config, folder, backend, accelerator
        self.validation, self.base_sha256 = validation, base_sha256
        self.tell: Listener = listener if accelerator.is_main_process else (lambda event: None)
        self.empty_text = dataset.empty_text()
        found = self._checkpoint()
        self.learner = Learner(config, backend, accelerator)
        sampler = Sampler(
            dataset,
            batch_size=config.data.batch_size,
            seed=config.loop.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            indices=indices,
        )
        self.loader = Loader(dataset, sampler, ahead=config.data.prefetch)
        self.draw = density(config)
        own = None if found is None else state.load(found, state.rank_file(accelerator.process_index))
        self.replay = Replay(
            config,
            shapes_of(dataset, backend),
            folder,
            accelerator,
            saved=None if own is None else own["replay"],
            tell=lambda line: self.tell(Note(line)),
        )
        self.record = Record(folder / "log.jsonl", accelerator)
        self.step = 0
        if found is not None and own is not None:
            self._resume(found, own)

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
            pace = (time.monotonic() - begun) / (self.step - first)
            last = self.step == loop.steps
            if self.step % loop.log_every == 0 or last:
                self.record.set(step_s=pace)
                numbers = self.record.flush(self.step, self.replay.stats())
                self.tell(Stepped(self.step, loop.steps, pace * (loop.steps - self.step), numbers))
            stopped = not agree(not should_stop(), self.accelerator)
            if self.step % loop.save_every == 0 or last or stopped:
                self.save()
            if loop.validate_every and (self.step % loop.validate_every == 0 or last):
                self.validate()
        self.loader.close()
        self.accelerator.end_training()
        return Finished(self.step, self.step == loop.steps, self.folder / LORA_FILE)

    def _train_step(self) -> None:
        config, learner = self.config.optimizer, self.learner
        rate = learning_rate(config, self.step, self.config.loop.steps)
        learner.begin(rate)
        made = []
        for micro in range(config.accumulation):
            batch = next(self.loader)
            generator = step_generator(self.config.loop.seed, self.accelerator.process_index, self.step, micro)
            with learner.batch(), trainable_attention(self.accelerator.device):
                result = self._forward(batch, generator)
                if not agree(bool(torch.isfinite(result.loss)), self.accelerator):
                    raise FloatingPointError(
                        f"the loss is not finite at step {self.step}: lower optimizer.lr, or look at the data; "
                        "the last checkpoint is intact"
                    )
                learner.backward(result.loss)
            made.append((shape_of(batch.clean), result, generator))
        norm = learner.finish(self.step)
        for shape, result, generator in made:
            self.replay.store(shape, result.errors, self.step, generator)
            self.record.add(result.sigma, result.per_sample.cpu())
        mean = torch.stack([result.loss.detach() for _, result, _ in made]).mean()
        self.record.set(loss=float(mean_over_ranks(mean, self.accelerator)), grad_norm=norm, lr=rate)
        self.step += 1

    def _forward(self, batch: TrainingBatch, generator: torch.Generator) -> StepResult:
        batch, config = batch.to(self.backend.device), self.config
        sigma = self.draw(batch.size, generator)
        batch = without_text(batch, self.empty_text, config.loss.text_dropout, generator)
        shape = shape_of(batch.clean)
        with self.learner.forward():
            return error_recycling_step(
                self.backend.velocity,
                batch,
                lambda level, drawn: self.replay.draw(shape, level, drawn),
                config.recycling,
                config.loss,
                sigma,
                generator,
            )

    # -- checkpoints

    def save(self) -> None:
        """Write a checkpoint and the LoRA as it is now."""
        accelerator, learner, writer = self.accelerator, self.learner, state.Writer(self.checkpoints, self.step)
        weights, averages, optimizer = learner.weights(), learner.averages(), learner.optimizer_state()
        if accelerator.is_main_process:
            writer.clear()
        accelerator.wait_for_everyone()
        own: dict[str, Any] = {"replay": self.replay.state_dict(), "loader": self.loader.state_dict()}
        writer.put(
            state.rank_file(accelerator.process_index), own | ({"optimizer": optimizer} if learner.zero2 else {})
        )
        if accelerator.is_main_process:
            shared: dict[str, Any] = {"weights": weights, "average": averages}
            writer.put(state.SHARED, shared | ({} if learner.zero2 else {"optimizer": optimizer}))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            made = writer.finish(ranks=accelerator.num_processes, settings=self.config.pinned())
            state.prune(self.checkpoints, self.config.loop.keep)
            self._write_lora(weights if averages is None else averages)
            self.tell(Saved(self.step, str(made.folder)))
        accelerator.wait_for_everyone()

    def _write_lora(self, weights: Mapping[str, Tensor]) -> None:
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
        plain = {name.replace(".default.", "."): tensor for name, tensor in weights.items()}
        save_lora(self.folder / LORA_FILE, plain, metadata, replace=True)

    def _checkpoint(self) -> state.Checkpoint | None:
        """The checkpoint to go on from, None where there is none."""
        found, complaints = state.latest(self.checkpoints)
        for complaint in complaints:
            self.tell(Note(complaint))
        if found is None:
            return None
        changed = differences(found.settings, self.config.pinned())
        if changed:
            more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
            raise UserError(
                f"{self.folder} was trained with other settings: {'; '.join(changed[:NAMED])}{more}; "
                "give those, or another folder"
            )
        ranks = self.accelerator.num_processes
        if found.ranks != ranks:
            raise UserError(
                f"{found.folder} was written by {found.ranks} processes, now there are {ranks}, and each has its own error "
                f"banks: start {found.ranks}, or begin a new training with lora.start={self.folder / LORA_FILE}"
            )
        return found

    def _resume(self, found: state.Checkpoint, own: Mapping[str, Any]) -> None:
        """Go on from ``found``, of which ``own`` belongs to this process; the banks have theirs already."""
        shared = state.load(found, state.SHARED)
        self.learner.load(shared["weights"], {**shared, **own}["optimizer"], shared["average"])
        self.loader.load_state_dict(own["loader"])
        self.step = found.step
        self.tell(Note(f"going on after step {found.step} ({found.folder})"))

    # -- looking

    def validate(self) -> None:
        """Look at the averaged weights (or the present ones) in the first process; in all where only all hold the model."""
        together = self.config.parallel.strategy == "fsdp2"
        if self.validation is not None and (self.accelerator.is_main_process or together):
            with self.learner.at_rest(), encoders_at_work(self.backend):
                numbers, sheet = self.validation(self.backend, self.step)
            self.record.looked(self.step, numbers, sheet)
            self.tell(Validated(self.step, numbers, sheet))
        self.accelerator.wait_for_everyone()


def shape_of(latents: Tensor) -> Shape:
    """``(C, F, h, w)`` of a batch ``(B, C, F, h, w)``."""
    _, channels, frames, height, width = latents.shape
    return channels, frames, height, width


def shapes_of(dataset: Dataset, backend: WanBackend) -> list[Shape]:
    """Shapes of all latents of a data set, each once."""
    buckets = sorted({dataset.bucket_of(index) for index in range(dataset.size or 1)})
    return [backend.geometry.latent_shape(b.num_frames, b.height, b.width) for b in buckets]


def without_text(batch: TrainingBatch, empty: Tensor, probability: float, generator: torch.Generator) -> TrainingBatch:
    """The batch with some texts replaced by the empty one, each with ``probability``; takes B draws."""
    drops = torch.rand(batch.size, generator=generator) < probability
    if not drops.any():
        return batch
    text = batch.condition.text
    chosen = torch.where(drops[:, None, None].to(text.device), empty.to(text), text)
    return replace(batch, condition=replace(batch.condition, text=chosen))
