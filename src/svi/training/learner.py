"""What learns: the LoRA on its frozen base, its optimizer and its average, whole or in pieces over several processes.

Three strategies hide here: every process has all of it (``ddp``), the blocks of the base are shared out (``fsdp2``),
or DeepSpeed shares out the optimizer (``zero2``). What goes into files is whole and on the CPU, whichever it is, but for
DeepSpeed's optimizer, of which each process keeps its part. Knows nothing about losses, banks or files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from svi.backends.lora_train import attach_lora, begin_with
from svi.backends.quantise import quantise
from svi.backends.wan import WanBackend
from svi.training.config import TrainingConfig
from svi.training.distributed import share_out
from svi.training.optim import Average, make_optimizer

if TYPE_CHECKING:
    from accelerate import Accelerator


class Learner:
    """The trainable part of a training.

    Args:
        config: which LoRA, and how it learns.
        backend: the frozen base; its transformer gets the LoRA, its ``runner`` becomes what trains.
        accelerator: device, processes and strategy.

    Raises:
        UserError: for targets that no layer has, and a start that does not fit.
    """

    def __init__(self, config: TrainingConfig, backend: WanBackend, accelerator: Accelerator) -> None:
        lora, self.config, self.accelerator = config.lora, config, accelerator
        self.zero2 = config.parallel.strategy == "zero2"
        self.shared_out = config.parallel.strategy == "fsdp2" and accelerator.num_processes > 1
        transformer = backend.transformer
        fresh = attach_lora(
            transformer, rank=lora.rank, alpha=lora.alpha, targets=lora.targets, init=lora.init, seed=config.loop.seed
        )
        if lora.start is not None:
            begin_with(fresh, lora.start, alpha=lora.alpha)
        if config.model.quantisation is not None:
            quantise(transformer, config.model.quantisation, backend.placement.dtype)
            for parameter in fresh.values():  # quantising freezes all there is
                parameter.requires_grad_(True)
        if config.model.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        if self.shared_out:
            share_out(transformer, accelerator)
        # Sharing out puts other parameters in the place of these.
        self.parameters: dict[str, nn.Parameter] = {
            name: p for name, p in transformer.named_parameters() if p.requires_grad
        }
        made = make_optimizer(self.parameters.values(), config.optimizer)
        if self.shared_out:
            self.runner, self.optimizer = transformer, accelerator.prepare(made)
        else:
            self.runner, self.optimizer = accelerator.prepare(transformer, made)
        backend.runner = self.runner
        self.backend, self.transformer = backend, transformer
        ema = config.optimizer.ema_decay
        self.average = None if ema is None else Average(ema, self.parameters)

    def begin(self, rate: float) -> None:
        """Begin a step with this learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Around the forward and backward pass of one of the batches of a step: ranks exchange gradients in the last only."""
        with self.accelerator.accumulate(self.runner):
            if self.shared_out:
                self.runner.set_requires_gradient_sync(self.accelerator.sync_gradients)
            yield

    def forward(self) -> AbstractContextManager[None]:
        """Around a forward pass: what the backward pass needs goes to main memory where that is wanted."""
        if not self.config.model.offload_activations:
            return nullcontext()
        around: AbstractContextManager[None] = torch.autograd.graph.save_on_cpu(
            pin_memory=self.accelerator.device.type == "cuda"
        )
        return around

    def backward(self, loss: Tensor) -> None:
        """Backward pass of one batch's loss; a step's gradient is the mean of its batches'."""
        self.accelerator.backward(loss)

    def finish(self, step: int) -> float:
        """Clip once, step, follow with the average. Returns the norm of the gradient before clipping."""
        norm = self.accelerator.clip_grad_norm_(self.parameters.values(), self.config.optimizer.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.parameters, step)
        return float(whole(norm)) if isinstance(norm, Tensor) else float(norm or 0.0)

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Averaged weights, evaluation mode, the optimizer in main memory, and a model that one process can ask alone."""
        if self.average is not None:
            self.average.swap(self.parameters)
        self.transformer.eval()
        self.backend.runner = self.transformer  # the wrapper of several processes would wait for the others
        homes = _offload(self.optimizer)
        try:
            yield
        finally:
            for tensor, device in homes:
                tensor.data = tensor.data.to(device)
            self.backend.runner = self.runner
            self.transformer.train()
            if self.average is not None:
                self.average.swap(self.parameters)

    # -- state

    def weights(self) -> dict[str, Tensor]:
        """The LoRA as it learns, fp32 on the CPU; every process has to ask."""
        if self.zero2:
            masters = import_module("deepspeed.utils").safe_get_full_fp32_param
            return {name: masters(p).cpu().clone() for name, p in self.parameters.items()}
        return {name: whole(p) for name, p in self.parameters.items()}

    def averages(self) -> dict[str, Tensor] | None:
        """Their average, likewise; None without one."""
        return None if self.average is None else {name: whole(value) for name, value in self.average.values.items()}

    def optimizer_state(self) -> dict[str, Any]:
        """State of the optimizer, whole and on the CPU; with ``zero2`` the part of this process. Every process has to ask."""
        state = self.optimizer.state_dict()
        if self.zero2:  # its loss scaler is an object, which no checkpoint may hold, and bf16 has none
            state = {name: value for name, value in state.items() if name != "loss_scaler"}
        found: dict[str, Any] = _walk(state, whole)
        return found

    def load(
        self, weights: Mapping[str, Tensor], optimizer: Mapping[str, Any], average: Mapping[str, Tensor] | None
    ) -> None:
        """Go on from what the three methods above gave."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(spread(weights[name], parameter))
        if self.zero2:
            ranks = self.accelerator.num_processes
            self.optimizer.optimizer.load_state_dict([dict(optimizer)] * ranks, load_from_fp32_weights=True)
        else:
            self.optimizer.load_state_dict(dict(optimizer))
            for parameter, state in self.optimizer.state.items():
                state.update({key: spread(value, parameter) for key, value in state.items()})
        if self.average is not None and average is not None:
            self.average.values = {name: spread(average[name], p) for name, p in self.parameters.items()}


def trainable_attention(device: torch.device) -> AbstractContextManager[None]:
    """Around forward and backward passes: attention that is fast there.

    On a CPU the fused kernel's backward pass takes three times as long in bf16 as plain matrix products, which keep more in
    memory.
    """
    chosen: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    return chosen


def whole(tensor: Tensor) -> Tensor:
    """A copy of all of a tensor on the CPU, also where it is shared out; then every process has to ask."""
    held: Any = tensor.detach()
    full: Tensor = held.full_tensor() if hasattr(held, "full_tensor") else held
    return full.to("cpu", copy=True)


def spread(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on the device of ``like``, shared out as that is; numbers beside a parameter (steps) stay as they are."""
    if tensor.shape != like.shape:
        return tensor
    held: Any = like
    if not hasattr(held, "device_mesh"):
        return tensor.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), held.device_mesh, held.placements)


def _walk(tree: Any, change: Any) -> Any:
    """``tree`` of dicts, lists and tuples with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: _walk(value, change) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_walk(value, change) for value in tree)
    return tree


def _offload(optimizer: Any) -> list[tuple[Tensor, torch.device]]:
    """Move the state of an optimizer on a GPU to main memory; returns what lay where. Shared-out state is small and stays."""
    moved = []
    for state in optimizer.state.values():
        for tensor in state.values():
            if type(tensor) is Tensor and tensor.is_cuda:
                moved.append((tensor, tensor.device))
                tensor.data = tensor.data.cpu()
    return moved
