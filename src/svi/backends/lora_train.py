"""A trainable LoRA on a frozen transformer. The one place where training meets peft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F

from svi.backends.lora_read import read
from svi.errors import UserError, nearest

Initialisation = Literal["kaiming", "gaussian"]
ADAPTER = "default"


def attach_lora(
    transformer: Any, *, rank: int, alpha: float, targets: Sequence[str], init: Initialisation, seed: int
) -> dict[str, nn.Parameter]:
    """Freeze ``transformer`` and put a fresh LoRA on the linear layers whose names end in one of ``targets``.

    The second matrix of every pair is zero, so that nothing changes at first. The first is the same for a seed on
    every machine. Weights of the LoRA are fp32; its products are in the type of what comes in, as the base's are.

    Returns:
        The trainable parameters by name.

    Raises:
        UserError: for a target that no layer has.
    """
    names = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            known = {name.split(".", 2)[-1].split(".", 1)[-1] for name in names if name.startswith("blocks.0.")}
            raise UserError(f"the transformer has no layer {target!r} for a LoRA: {nearest(target, known)}")
    transformer.requires_grad_(False)
    inside = [n for n in names if n.startswith("blocks.") and any(n.endswith(f".{target}") for target in targets)]
    transformer.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=inside), adapter_name=ADAPTER)
    parameters = {name: p for name, p in transformer.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in parameters.items():
        parameter.data = parameter.data.float()
        if ".lora_A." in name:
            fresh = torch.empty(parameter.shape)
            if init == "kaiming":
                nn.init.kaiming_uniform_(fresh, a=5**0.5, generator=generator)
            else:
                nn.init.normal_(fresh, std=1 / rank, generator=generator)
            parameter.data.copy_(fresh)
    for module in transformer.modules():
        if isinstance(module, BaseTunerLayer):
            _compute_in_input_dtype(module)
    return parameters


def _compute_in_input_dtype(layer: Any) -> None:
    """Cast the small matrices of a pair to the activations' type; peft casts the activations, a quarter of a training step."""
    layer.cast_input_dtype_enabled = False
    for linear in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]):
        linear.forward = partial(_product, linear)


def _product(linear: nn.Linear, inputs: Tensor) -> Tensor:
    return F.linear(inputs, linear.weight.to(inputs.dtype))


def begin_with(parameters: Mapping[str, nn.Parameter], file: str, *, alpha: float) -> None:
    """Give a fresh LoRA the weights of a file, in any naming; a file of another alpha is scaled, so that it adds the same.

    Args:
        parameters: from :func:`attach_lora`.
        file: of the LoRA.
        alpha: of the fresh one.

    Raises:
        UserError: for a file that cannot be read, and one of other layers or another rank.
    """
    pairs = read(Path(file)).pairs
    targets = {name.rpartition(".lora_A.")[0]: name for name in parameters if ".lora_A." in name}
    for kind, names in (("lacks", targets.keys() - pairs.keys()), ("also has", pairs.keys() - targets.keys())):
        if names:
            raise UserError(
                f"{file} {kind} the layer {min(names)} ({len(names)} in all): lora.targets has to be as it was made"
            )
    for module, name in targets.items():
        a, b = parameters[name], parameters[name.replace(".lora_A.", ".lora_B.")]
        pair = pairs[module]
        if pair.a.shape != a.shape or pair.b.shape != b.shape:
            raise UserError(
                f"{file} has rank {pair.rank} at {module}, the training {a.shape[0]}: set lora.rank={pair.rank}"
            )
        a.data.copy_(pair.a)
        b.data.copy_(pair.b.float() * (pair.scale * pair.rank / alpha))
