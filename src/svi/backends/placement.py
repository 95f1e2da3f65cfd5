"""Where a model runs and in which precision, and why: each choice carries its reason.

Knows torch's devices and types; nothing about models. What a user fixes is taken or refused, never replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from svi.errors import UserError, nearest

DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Placement:
    """Choices made for a model.

    Attributes:
        device: where all parts live.
        dtype: of the transformer and the text encoder. The VAE and the image encoder always stay in fp32: every
            clip passes through them, and what bf16 loses there adds up over a long video.
        attention: attention implementation of the transformer, by its diffusers name.
        reasons: why, by the name of the choice.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    attention: str = "native"
    reasons: Mapping[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """One line per choice, for logs: ``device cpu: no CUDA device found``."""
        chosen = {"device": self.device, "dtype": str(self.dtype).removeprefix("torch."), "attention": self.attention}
        return [f"{name} {value}: {self.reasons.get(name, 'default')}" for name, value in chosen.items()]


def choose(device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Placement:
    """Fill in what the caller leaves open.

    Raises:
        UserError: for a device this machine does not have, or a type nobody knows.
    """
    where, why_device = _device(device)
    what, why_dtype = _dtype(dtype, where)
    why_attention = "torch's scaled_dot_product_attention: no extra package, same result on every machine of a kind"
    return Placement(where, what, "native", {"device": why_device, "dtype": why_dtype, "attention": why_attention})


def _device(asked: str | torch.device | None) -> tuple[torch.device, str]:
    if asked is None:
        if torch.cuda.is_available():
            return torch.device("cuda"), f"found {torch.cuda.get_device_name()}"
        return torch.device("cpu"), "no CUDA device found"
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise UserError(f"unknown device {asked!r}: use cpu, cuda, cuda:0 ...") from None
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(
            f"device {asked} is not there: torch sees {count} CUDA device(s); leave the device out or use cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device mps is not there: leave the device out or use cpu")
    return device, "asked for"


def _dtype(asked: str | torch.dtype | None, device: torch.device) -> tuple[torch.dtype, str]:
    if isinstance(asked, torch.dtype):
        if not asked.is_floating_point:
            raise UserError(f"a model cannot run in {asked}: use fp32 or bf16")
        return asked, "asked for"
    if asked is not None:
        if asked.lower() not in DTYPES:
            raise UserError(f"unknown dtype {asked!r}: {nearest(asked, DTYPES)}")
        return DTYPES[asked.lower()], "asked for"
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16, "the card computes in bf16, which the model was trained in"
    return torch.float32, f"exact on {device.type}; bf16 has to be asked for"
