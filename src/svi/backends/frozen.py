"""The frozen base of a training: its large matrices in 8 or 4 bits, and its encoders out of the way while it learns.

``fp8`` and ``int8`` through torchao, ``nf4`` through bitsandbytes: extras, asked for by name where they are missing. Only the
linear layers of the blocks are quantised, which hold 98 % of the weights; embeddings, norms and the head stay exact. Knows
nothing about LoRAs: they are attached afterwards, and learn through what is here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Literal

import torch
from torch import nn

from svi.errors import UserError

Quantisation = Literal["fp8", "int8", "nf4"]
ENCODERS = ("vae", "text_encoder", "image_encoder")


def quantise(transformer: Any, how: Quantisation) -> None:
    """Store the linear layers in the blocks of ``transformer`` in fewer bits, in place, one after another.

    Raises:
        UserError: where the package is missing.
    """
    module = "torchao.quantization" if how != "nf4" else "bitsandbytes.nn"
    package = module.partition(".")[0]
    try:
        library = import_module(module)
    except ImportError:
        raise UserError(
            f"model.quantisation={how} needs {package}: pip install {package}, or leave the base as it is"
        ) from None
    if how == "nf4":
        _nf4(transformer, library)
    else:
        config = library.Int8WeightOnlyConfig() if how == "int8" else library.Float8WeightOnlyConfig()
        library.quantize_(transformer.blocks, config, filter_fn=lambda part, name: isinstance(part, nn.Linear))
    transformer.requires_grad_(False)


def _nf4(transformer: Any, bitsandbytes: Any) -> None:
    for module in list(transformer.blocks.modules()):
        for name, layer in list(module.named_children()):
            if type(layer) is not nn.Linear:
                continue
            made = bitsandbytes.Linear4bit(
                layer.in_features,
                layer.out_features,
                bias=layer.bias is not None,
                compute_dtype=layer.weight.dtype,
                quant_type="nf4",
                device="meta",
            )
            made.weight = bitsandbytes.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=made)
            made.bias = layer.bias
            setattr(module, name, made.to(layer.weight.device))


def park_encoders(backend: Any) -> None:
    """Move VAE and encoders, which a training step does not need, to main memory."""
    _move(backend, torch.device("cpu"))


@contextmanager
def encoders_at_work(backend: Any) -> Iterator[None]:
    """VAE and encoders on the device of the model, for the time of the block."""
    _move(backend, backend.device)
    try:
        yield
    finally:
        park_encoders(backend)


def _move(backend: Any, device: torch.device) -> None:
    for name in ENCODERS:
        part = getattr(backend, name)
        if part is not None and backend.device.type != "cpu":
            part.to(device)
