"""Models of known shape with random weights, for measuring speed and memory where there are no files.

Knows the model classes of diffusers. The numbers are drawn where the model computes, one tensor at a time, at a scale at which
nothing overflows and nothing dies out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svi.backends.memory import TransformerShape
from svi.backends.vae_cost import VaeShape
from svi.backends.weights import empty_weights, fill


def random_transformer(
    shape: TransformerShape, device: torch.device, dtype: torch.dtype, generator: torch.Generator
) -> Any:
    """A Wan transformer of that shape on ``device``; its weights are drawn where ``generator`` is."""
    from diffusers import WanTransformer3DModel

    with empty_weights():
        module = WanTransformer3DModel(**asdict(shape))
    _draw(module, device, dtype, generator, keep_fp32=module._keep_in_fp32_modules)
    return module


def random_vae(shape: VaeShape, device: torch.device, generator: torch.Generator) -> Any:
    """A VAE of that shape, in fp32 as always."""
    from diffusers import AutoencoderKLWan

    given = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(shape).items()}
    plain = dict(latents_mean=[0.0] * shape.z_dim, latents_std=[1.0] * shape.z_dim)
    with empty_weights():
        module = AutoencoderKLWan(**given, **plain)
    _draw(module, device, torch.float32, generator)
    return module


def _draw(
    module: Any, device: torch.device, dtype: torch.dtype, generator: torch.Generator, keep_fp32: Sequence[str] = ()
) -> None:
    def drawn() -> Iterator[tuple[str, Tensor]]:
        for name, value in module.state_dict().items():
            fan_in = value[0].numel() if value.ndim > 1 else 0
            tensor = torch.empty(value.shape, dtype=torch.float32, device=generator.device)
            # Gains are one, biases small, matrices keep the size of what they multiply: nothing overflows, nothing dies.
            if fan_in or name.endswith("bias"):
                tensor.normal_(0.0, fan_in**-0.5 if fan_in else 0.01, generator=generator)
            else:
                tensor.fill_(1.0)
            yield name, tensor

    fill(module, drawn(), source=Path("random weights"), dtype=dtype, device=device, keep_fp32=keep_fp32)
