"""Weights in 8 or 4 bits: which ways there are, what each needs, and doing it linear by linear.

Only the matrices of the blocks are stored smaller, which hold 98 % of the weights; embeddings, norms, modulation, head and
LoRAs stay as they are. LoRAs have to be attached (or merged) before: what comes after would be created in 8 bits, or refused.
Knows torchao, bitsandbytes and the layerwise casting of diffusers; nothing about devices or profiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn

from svi.errors import UserError, nearest

LORA_PARTS = ("lora_A", "lora_B", "lora_embedding", "lora_magnitude")


@dataclass(frozen=True)
class Way:
    """A way to store weights in fewer bits.

    Attributes:
        summary: one line for users.
        bytes: of each weight, scales included.
        package: what has to be installed, None where nothing has.
        needs_cuda: whether it computes on a CUDA device only.
        capability: least compute capability of that device.
        error: how far the output of a transformer moves, relative to fp32: measured on random weights.
        apply: what does it, given ``(transformer, dtype)``.
    """

    summary: str
    bytes: float
    package: str | None
    apply: Callable[[Any, torch.dtype], None]
    error: float
    needs_cuda: bool = False
    capability: tuple[int, int] = (0, 0)


def quantise(transformer: Any, how: str, dtype: torch.dtype) -> int:
    """Store the matrices in the blocks of ``transformer`` as ``how`` says, in place.

    Args:
        transformer: a Wan transformer, LoRAs attached.
        how: key of ``WAYS``.
        dtype: what it computes in.

    Returns:
        How many matrices were changed.

    Raises:
        UserError: for an unknown way, one whose package is missing, or one that this device cannot compute.
    """
    way = get_way(how)
    check(how, next(transformer.parameters()).device)
    count = sum(1 for _ in matrices(transformer))
    way.apply(transformer, dtype)
    transformer.requires_grad_(False)
    return count


def get_way(how: str) -> Way:
    """The way called ``how``; UserError for an unknown one."""
    if how not in WAYS:
        raise UserError(f"unknown quantisation {how!r}: {nearest(how, WAYS)}")
    return WAYS[how]


def check(how: str, device: torch.device) -> None:
    """Raise UserError unless ``how`` can be done, and computed with, here."""
    way = get_way(how)
    if way.package is not None:
        _library(how, way.package)
    if way.needs_cuda:
        if device.type != "cuda":
            raise UserError(f"{how} computes on a CUDA device only, not on {device.type}: take int8, or leave it out")
        found = torch.cuda.get_device_capability(device)
        if found < way.capability:
            least, have = (".".join(map(str, pair)) for pair in (way.capability, found))
            raise UserError(f"{how} needs a card of compute capability {least}, this one has {have}: take fp8 or int8")


def matrices(transformer: Any) -> Iterator[tuple[str, nn.Linear]]:
    """Names and linear layers in the blocks, without those of LoRAs."""
    for name, module in transformer.blocks.named_modules():
        if isinstance(module, nn.Linear) and not any(part in name.split(".") for part in LORA_PARTS):
            yield name, module


def _library(how: str, package: str) -> Any:
    module = {"torchao": "torchao.quantization", "bitsandbytes": "bitsandbytes.nn"}[package]
    try:
        return import_module(module)
    except ImportError as error:
        reason = "" if isinstance(error, ModuleNotFoundError) and error.name == package else f" ({error})"
        raise UserError(
            f"{how} needs {package}{reason}: pip install 'stable-video-infinity[quantise]', or take fp8, which needs nothing"
        ) from None


def _fp8(transformer: Any, dtype: torch.dtype) -> None:
    """Stored in 8 bits, cast to ``dtype`` block by block when it works; a cast there and back changes nothing further."""
    from diffusers.hooks import apply_layerwise_casting

    for _, layer in matrices(transformer):
        apply_layerwise_casting(layer, storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)


def _torchao(config: str) -> Callable[[Any, torch.dtype], None]:
    def apply(transformer: Any, dtype: torch.dtype) -> None:
        library = _library(config, "torchao")
        chosen = {id(layer) for _, layer in matrices(transformer)}
        settings = getattr(library, config)()
        library.quantize_(transformer.blocks, settings, filter_fn=lambda module, name: id(module) in chosen)

    return apply


def _nf4(transformer: Any, dtype: torch.dtype) -> None:
    library = _library("nf4", "bitsandbytes")
    for name, layer in list(matrices(transformer)):
        device = layer.weight.device
        smaller = library.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=dtype,
            quant_type="nf4",
            device="meta",
        )
        smaller.weight = library.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=smaller)
        smaller.bias = layer.bias
        owner, _, leaf = name.rpartition(".")
        setattr(transformer.blocks.get_submodule(owner), leaf, smaller.to(device))


WAYS: dict[str, Way] = {
    "fp8": Way("8-bit floats, computes as before; no further package", 1.0, None, _fp8, 0.045),
    "int8": Way(
        "8-bit integers with a scale per row, computes as before",
        1.0,
        "torchao",
        _torchao("Int8WeightOnlyConfig"),
        0.02,
    ),
    "fp8-fast": Way(
        "8-bit floats that the card also multiplies",
        1.0,
        "torchao",
        _torchao("Float8DynamicActivationFloat8WeightConfig"),
        0.06,
        needs_cuda=True,
        capability=(8, 9),
    ),
    "nf4": Way("4 bits: the smallest and the least faithful", 0.53, "bitsandbytes", _nf4, 0.15, needs_cuda=True),
}
