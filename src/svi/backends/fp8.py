"""safetensors files with weights in 8-bit floats, as ComfyUI has them: read back as the numbers they stand for.

``fp8`` files hold rounded weights. ``scaled fp8`` files hold, beside ``X.weight``, the number it has to be multiplied by:
``X.scale_weight`` or ``X.weight_scale``, one for all or one per row. Leaving the scale out would run and give noise.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svi.backends.weights import Tensors, reading
from svi.errors import UserError

SCALES = (".scale_weight", ".weight_scale")
# Scales of activations, which only matter to kernels that compute in fp8; marks; and a tokenizer that ComfyUI stores along.
PASSED_OVER = (".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8", "spiece_model")
FP8_TYPES = ("F8_E4M3", "F8_E5M2")
KNOWN_TYPES = (*FP8_TYPES, "F64", "F32", "F16", "BF16")


def is_helper(name: str) -> bool:
    """Whether a stored tensor serves another one instead of being a weight."""
    return name.endswith((*SCALES, *PASSED_OVER))


def kind(types: Mapping[str, str]) -> str | None:
    """``fp8``, ``scaled fp8`` or None, from the types of stored tensors by name."""
    if not any(stored in FP8_TYPES for stored in types.values()):
        return None
    return "scaled fp8" if any(name.endswith(SCALES) for name in types) else "fp8"


def refuse_unknown(path: Path, types: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise UserError for weights that cannot be turned back into numbers: int8, 4 bits, scales of a wrong shape."""
    for name, stored in types.items():
        if stored not in KNOWN_TYPES and not is_helper(name) and not name.endswith("position_ids"):
            raise UserError(
                f"{path} holds {name} as {stored}, a quantisation that is not read here: take the bf16, fp16, fp8 or GGUF file"
            )
        if stored in FP8_TYPES and name.endswith(".weight") and f"{name}_scale_2" in types:
            raise UserError(f"{path} is quantised to 4 bits (nvfp4), which is not read here: take the fp8 or GGUF file")

    for name in shapes:
        scale = _scale_of(name, shapes)
        if scale is not None and prod(shapes[scale]) not in {1, shapes[name][0]}:
            raise UserError(
                f"{path} is damaged: a scale of shape {shapes[scale]} for {name} of shape {shapes[name]}: fetch the file again"
            )


def tensors(path: Path) -> Tensors:
    """Names and tensors of one safetensors file, one in memory at a time, scales multiplied in (in fp32)."""
    from safetensors import safe_open

    with reading(path):
        handle: Any = safe_open(str(path), framework="pt", device="cpu")
    with handle:
        names = list(handle.keys())
        scales = {name for name in names if name.endswith(SCALES)}
        for name in names:
            if is_helper(name):
                continue
            with reading(path):
                tensor = handle.get_tensor(name)
                scale = _scale_of(name, scales)
                value = tensor if scale is None else _scaled(tensor, handle.get_tensor(scale))
            yield name, value


def _scale_of(name: str, scales: Container[str]) -> str | None:
    stem, _, leaf = name.rpartition(".")
    if leaf != "weight":
        return None
    return next((f"{stem}{ending}" for ending in SCALES if f"{stem}{ending}" in scales), None)


def _scaled(tensor: Tensor, scale: Tensor) -> Tensor:
    scale = scale.to(torch.float32)
    if scale.numel() > 1:
        scale = scale.reshape(-1, *[1] * (tensor.ndim - 1))
    return tensor.to(torch.float32) * scale
