"""LoRAs as part of a loaded transformer's weights: nothing beside them to compute, and strengths that stay.

A LoRA of rank 128 beside the weights costs 2.4 % of a forward pass and several passes over memory; in them it costs nothing. The
sum is made in fp32 over all LoRAs and rounded once. Nothing is ever taken out again: in bf16 that would leave a third of the
weights changed. :mod:`svi.backends.lora_merge` does the same to files. Knows nothing about clips.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svi.backends import lora_read
from svi.backends.lora import LoraSpec, converted, find_lora, refuse_merged
from svi.backends.placement import Placement
from svi.backends.weights import sha256
from svi.errors import UserError, nearest


def why_apart(placement: Placement) -> str | None:
    """Why LoRAs stay beside the weights, None where they become part of them.

    A quantised sum would round away much of what a LoRA adds, and users see other pictures from SVI's LoRAs in fp8 when they
    are merged; every kind of quantised base takes LoRAs beside it.
    """
    if not placement.speed.merge_loras:
        return f"the preset {placement.speed.name} has it so"
    if placement.quantise is not None:
        return f"weights stored as {placement.quantise} would lose much of what a LoRA adds"
    return None


class FusedLoras:
    """What stands for LoRAs that are part of the weights: it knows their strengths, and refuses others.

    Attributes:
        loaded: strengths by name, as :class:`svi.backends.lora.Loras` has them.
        files: hashes by name.
    """

    def __init__(self, strengths: Mapping[str, float], files: Mapping[str, str]) -> None:
        self.loaded, self.files = dict(strengths), dict(files)

    def set_strengths(self, strengths: Mapping[str, float]) -> None:
        """Accept the strengths that the LoRAs were merged with.

        Raises:
            UserError: for another strength, or a LoRA that is not loaded.
        """
        for name, value in strengths.items():
            if name not in self.loaded:
                raise UserError(f"LoRA {name!r} is not loaded: {nearest(name, self.loaded)}")
            if value != self.loaded[name]:
                raise UserError(
                    f"LoRA {name!r} is merged into the weights at strength {self.loaded[name]:g} and cannot be {value:g} in "
                    "one clip: take --speed reference (svi branch, in a run that has begun), or leave the strength out"
                )


def fuse_loras(
    transformer: Any,
    specs: Sequence[LoraSpec],
    *,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> FusedLoras:
    """Add LoRAs to the weights of ``transformer``, in place; arguments as of :func:`svi.backends.lora.load_loras`.

    Raises:
        UserError: as :func:`svi.backends.lora.load_loras`, and for a sum that leaves the range of the weights' type.
    """
    strengths: dict[str, float] = {}
    files: dict[str, str] = {}
    states: list[tuple[float, dict[str, Tensor]]] = []
    for spec in specs:
        if spec.name in strengths:
            raise UserError(f"two LoRAs are called {spec.name!r}: give each once, or rename one file")
        path = find_lora(spec.source, folder)
        lora = lora_read.read(path)
        refuse_merged(lora, path, folder)
        states.append((spec.strength, converted(lora, transformer)))
        strengths[spec.name], files[spec.name] = spec.strength, sha256(path)
    suffix = ".lora_A.weight"
    modules = dict.fromkeys(name.removesuffix(suffix) for _, state in states for name in state if name.endswith(suffix))
    effect = error = 0.0
    for module in modules:
        added, lost = _add(transformer.get_submodule(module).weight, module, states)
        effect, error = effect + added, error + lost
    named = ", ".join(f"{name} at {value:g}" for name, value in strengths.items())
    rounding = (error / effect) ** 0.5 if effect else 0.0
    say(f"LoRAs merged into {len(modules)} matrices: {named}; rounding costs {rounding:.1%} of what they add")
    return FusedLoras(strengths, files)


@torch.no_grad()
def _add(weight: Tensor, module: str, states: Sequence[tuple[float, Mapping[str, Tensor]]]) -> tuple[float, float]:
    """Add all LoRAs of one matrix to it; returns the squares of what was to be added, and of what rounding lost."""
    change = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
    for strength, state in states:
        if f"{module}.lora_A.weight" in state:
            a, b = (state[f"{module}.lora_{factor}.weight"].to(weight.device) for factor in "AB")
            change += strength * (b @ a)
    exact = weight.float() + change
    stored = exact.to(weight.dtype)
    if not stored.isfinite().all():
        raise UserError(
            f"{module} leaves the range of {str(weight.dtype)[6:]} with these LoRAs: lower their strength, or take --dtype bf16"
        )
    weight.copy_(stored)
    lost = float((stored.float() - exact).square().sum(dtype=torch.float64))
    return float(change.square().sum(dtype=torch.float64)), lost
