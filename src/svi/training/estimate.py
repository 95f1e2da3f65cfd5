"""How much memory a training will take in each process, part by part, before anything is loaded: arithmetic only.

Knows the configuration and the sizes of the model; asks no device and opens no weights. An estimate: allocators and kernels add
some tenths to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from svi import recycling
from svi.backends.base_memory import (
    FP32,
    block_bytes,
    checkpoint_bytes,
    latent_values,
    lora_parameters,
)
from svi.backends.memory import ModelSizes, Window
from svi.backends.quantise import get_way
from svi.bank_plan import readable
from svi.errors import UserError
from svi.schedule import SigmaBuckets
from svi.training.config import TrainingConfig

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Need:
    """One line: bytes on the device and in main memory, of what, and why so many."""

    what: str
    device: int
    ram: int
    why: str

    def __str__(self) -> str:
        device, ram = (readable(size) if size else "-" for size in (self.device, self.ram))
        return f"{self.what:12} {device:>9} on the device {ram:>9} in main memory   {self.why}"


def needs(
    config: TrainingConfig, sizes: ModelSizes, window: Window, *, ranks: int = 1, bank_memory: int | None = None
) -> list[Need]:
    """What each part takes in one of ``ranks`` processes while it trains; the last line is the sum.

    Args:
        config: of the training.
        sizes, window: of the model and its clips (``base_memory.base_sizes``).
        ranks: processes.
        bank_memory: for the banks of a process; None = no limit.
    """
    made = [
        _base(config, sizes, ranks),
        _encoders(config, sizes),
        *_lora(config, sizes, ranks),
        _activations(config, sizes, window),
        _banks(config, sizes, window, ranks, bank_memory),
    ]
    return [*made, Need("together", sum(n.device for n in made), sum(n.ram for n in made), "in each process")]


def _base(config: TrainingConfig, sizes: ModelSizes, ranks: int) -> Need:
    shape, own, how = sizes.transformer, DTYPE_BYTES[config.model.dtype], config.model.quantisation
    stored = own if how is None else get_way(how).bytes
    total = int(shape.num_layers * shape.block_parameters * stored) + shape.other_parameters * own
    why = f"{shape.parameters / 1e9:.1f} billion weights in {how or config.model.dtype}"
    if config.parallel.strategy == "fsdp2" and ranks > 1:
        gathered = int(2 * shape.block_parameters * stored)  # the block at work, and the next
        return Need("base", total // ranks + gathered, 0, f"{why}, shared out over {ranks}, two blocks of it whole")
    if how is not None:
        why += f"; {readable(shape.parameters * own)} for a moment while it is loaded"
    return Need("base", total, 0, why)


def _encoders(config: TrainingConfig, sizes: ModelSizes) -> Need:
    total = sizes.text_parameters * DTYPE_BYTES[config.model.dtype]
    total += (sizes.image_parameters + sizes.vae.parameters) * FP32
    return Need("encoders", 0, total, "on the device while clips are encoded and in validation")


def _lora(config: TrainingConfig, sizes: ModelSizes, ranks: int) -> list[Need]:
    lora, strategy = config.lora, config.parallel.strategy
    count = lora_parameters(sizes.transformer, lora.targets, lora.rank)
    whole = 1 if strategy != "fsdp2" else ranks
    parts = ranks if strategy != "ddp" else 1
    average = 0 if config.optimizer.ema_decay is None else FP32 * count // parts
    return [
        Need("LoRA", 2 * FP32 * count // whole, 0, f"{count / 1e6:.0f} million weights and their gradients in float32"),
        Need(
            "optimizer",
            2 * FP32 * count // parts + average,
            0,
            "AdamW's two moments" + (", average" if average else ""),
        ),
    ]


def _activations(config: TrainingConfig, sizes: ModelSizes, window: Window) -> Need:
    shape, model, batch = sizes.transformer, config.model, config.data.batch_size
    own, tokens = DTYPE_BYTES[model.dtype], shape.tokens(sizes.latent_shape(window))
    block = block_bytes(shape, tokens, config.lora.targets, config.lora.rank, dtype_bytes=own, batch=batch)
    passing = batch * shape.activation_bytes(tokens, own)
    if not model.gradient_checkpointing:
        kept, why = block * shape.num_layers, "all blocks"
    else:
        kept, why = (
            checkpoint_bytes(shape, tokens, dtype_bytes=own, batch=batch),
            "what goes into each block, and one block",
        )
        passing += block
    why = f"{batch} x {window.num_frames} frames of {window.height}x{window.width}: {why}"
    if model.offload_activations:
        return Need("activations", passing, kept, why)
    return Need("activations", passing + kept, 0, why)


def _banks(config: TrainingConfig, sizes: ModelSizes, window: Window, ranks: int, bank_memory: int | None) -> Need:
    bank = config.bank
    try:
        plan = recycling.plan_banks(
            config.recycling,
            latent_values(sizes, window),
            bank_memory=bank_memory,
            capacity=bank.capacity,
            buckets=SigmaBuckets(bank.buckets, bank.shift),
            ranks=ranks,
            spill_memory=int(bank.spill_gb * 1e9),
        )
    except UserError as error:  # an estimate says so; the training itself refuses
        return Need("error banks", 0, 0, str(error))
    if not plan.banks:
        return Need("error banks", 0, 0, "none: no error is injected")
    return Need("error banks", 0, 0 if plan.spilled else plan.total_bytes, plan.reasons[-1])
