"""LoRA files for tests, made for the shapes of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from svi.backends.lora_base import base_weights
from svi.backends.lora_formats import official_module
from svi.condition import ClipCondition

KIT = Path(__file__).parent.parent / "data" / "parity" / "wan21-i2v-tiny"
PUBLISHED = KIT / "lora-official-names.safetensors"
TARGETS = ("attn1.to_q", "attn2.to_v", "attn1.to_out.0", "ffn.net.0.proj", "ffn.net.2")
SIGMA = torch.tensor([0.5])
Pairs = dict[str, tuple[Tensor, Tensor]]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pairs_for(folder: Path, *, rank: int = 4, seed: int = 0, targets: Iterable[str] = TARGETS) -> Pairs:
    """(A, B) by diffusers module; ``B @ A`` is about a tenth of the weights' size."""
    shapes = base_weights(folder).shapes
    chosen = [n.removesuffix(".weight") for n in shapes if any(n.endswith(f".{t}.weight") for t in targets)]
    assert chosen
    pairs = {}
    for index, module in enumerate(sorted(chosen)):
        out, in_ = shapes[f"{module}.weight"]
        a, b = draw(1000 * seed + 2 * index, rank, in_), draw(1000 * seed + 2 * index + 1, out, rank)
        pairs[module] = (a / in_**0.5, 0.1 * b / rank**0.5)
    return pairs


def diffusers(pairs: Pairs) -> dict[str, Tensor]:
    return {
        f"transformer.{m}.lora_{s}.weight": t.clone() for m, p in pairs.items() for s, t in zip("AB", p, strict=True)
    }


def official(pairs: Pairs, prefix: str = "pipe.dit.") -> dict[str, Tensor]:
    named = {f"{prefix}{official_module(m)}.lora_": p for m, p in pairs.items()}
    return {f"{n}{s}.default.weight": t.clone() for n, p in named.items() for s, t in zip("AB", p, strict=True)}


def comfyui(pairs: Pairs, alpha: float | None = None, prefix: str = "diffusion_model.") -> dict[str, Tensor]:
    state = {}
    for module, (a, b) in pairs.items():
        name = f"{prefix}{official_module(module)}"
        state |= {f"{name}.lora_down.weight": a.clone(), f"{name}.lora_up.weight": b.clone()}
        if alpha is not None:
            state[f"{name}.alpha"] = torch.tensor(alpha)
    return state


def save(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file(dict(state), path, metadata=metadata)
    return path


def pocket_inputs() -> tuple[Tensor, ClipCondition]:
    """Noisy latents and a condition for a model of the pocket model's widths."""
    known = torch.zeros(1, 4, 2, 4, 6)
    known[:, :, 0] = 1
    text = torch.zeros(1, 512, 96)
    text[:, :5] = draw(3, 1, 5, 96)
    return draw(1, 1, 16, 2, 4, 6), ClipCondition(draw(2, 1, 16, 2, 4, 6), known, text, draw(4, 1, 17, 96))
