"""LoRA files in all their dialects, attached to a Wan transformer; what does not fit is refused, never skipped.

The libraries load nothing, with a mere log line, when names do not match: the video then lacks its LoRA and nobody
knows. Here every key of a file must find its module, in its shape. Strengths change per clip without reloading.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svi.backends.official import DIT, DIT_BLOCK
from svi.backends.weights import checkpoint, safetensors, sha256
from svi.errors import UserError, nearest

# In the order in which they are taken off; `module.pipe.dit.blocks...` has three.
PREFIXES = ("module.", "_orig_mod.", "base_model.model.", "model.", "pipe.", "dit.", "diffusion_model.", "transformer.")
KOHYA_PREFIXES = ("lora_unet_", "lora_transformer_")
SUFFIX = re.compile(
    r"\.(?:lora_(?P<peft>[AB])(?:\.\w+)?\.weight|lora_(?P<kohya>down|up)\.weight|lora\.(?P<old>down|up)\.weight|(?P<alpha>alpha))$"
)
FACTOR = {"A": "A", "B": "B", "down": "A", "up": "B"}
FOLDER = "loras"
CHECKPOINT_SUFFIXES = frozenset({".ckpt", ".pt", ".pth"})
SUFFIXES = CHECKPOINT_SUFFIXES | {".safetensors"}


@dataclass(frozen=True)
class LoraSpec:
    """What the user asked for: ``source`` (a name or a file) at ``strength``."""

    source: str
    strength: float = 1.0

    @property
    def name(self) -> str:
        """How strengths refer to it: the name, or the file's name without its ending."""
        path = Path(self.source)
        return path.stem if path.suffix in SUFFIXES else path.name

    @property
    def origin(self) -> str:
        """How it is found again from anywhere: a file by its full name, a name as it is."""
        return os.path.abspath(self.source) if Path(self.source).is_file() else self.source


def parse_spec(spec: str) -> LoraSpec:
    """``NAME|FILE[:STRENGTH]``; a colon that no number follows belongs to the file name.

    Raises:
        UserError: for an empty source or a strength that is not finite.
    """
    source, colon, tail = spec.rpartition(":")
    try:
        strength = float(tail) if colon else 1.0
    except ValueError:
        source, strength = spec, 1.0
    source = (source if colon else spec).strip()
    if not source:
        raise UserError(f"{spec!r} names no LoRA: write NAME or FILE, with :STRENGTH if not 1")
    if not abs(strength) < float("inf"):
        raise UserError(f"strength of LoRA {source} must be a finite number, not {tail}")
    return LoraSpec(source, strength)


class Loras:
    """The LoRAs attached to one transformer."""

    def __init__(self, transformer: Any, strengths: Mapping[str, float], files: Mapping[str, str]) -> None:
        self._transformer, self.loaded, self.files = transformer, dict(strengths), dict(files)
        self.set_strengths({})

    def set_strengths(self, strengths: Mapping[str, float]) -> None:
        """Strengths from here on; those not named are as loaded.

        Raises:
            UserError: for a LoRA that is not loaded.
        """
        for name in strengths:
            if name not in self.loaded:
                raise UserError(f"LoRA {name!r} is not loaded: {nearest(name, self.loaded)}")
        now = {**self.loaded, **strengths}
        adapters = [_adapter(index) for index in range(len(now))]
        self._transformer.set_adapters(adapters, [float(now[name]) for name in self.loaded])
        # peft makes the adapters that it activates trainable.
        for name, parameter in self._transformer.named_parameters():
            if any(f".{adapter}." in name for adapter in adapters):
                parameter.requires_grad_(False)


def load_loras(transformer: Any, specs: Sequence[LoraSpec], *, folder: Path | None = None) -> Loras:
    """Attach LoRAs to ``transformer``.

    Args:
        folder: model folder; ``loras/NAME.safetensors`` in it, or beside it, can be asked for by name.

    Raises:
        UserError: for an unknown name, a damaged file, a key or a shape that does not fit the model, or two of one name.
    """
    strengths: dict[str, float] = {}
    files: dict[str, str] = {}
    for index, spec in enumerate(specs):
        if spec.name in strengths:
            raise UserError(f"two LoRAs are called {spec.name!r}: give each once, or rename one file")
        path = find_lora(spec.source, folder)
        state = convert(read_lora(path), transformer, str(path))
        _attach(transformer, state, _adapter(index), path)
        strengths[spec.name], files[spec.name] = spec.strength, sha256(path)
    return Loras(transformer, strengths, files)


def _adapter(index: int) -> str:
    # peft allows no dots in adapter names, file names have them.
    return f"lora_{index}"


def find_lora(source: str, folder: Path | None = None) -> Path:
    """The file of a LoRA by path or name.

    Raises:
        UserError: where there is none; the nearest name is given.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    places = [folder / FOLDER, folder.parent / FOLDER] if folder else []
    named = {found.stem: found for place in places for found in sorted(place.glob("*.safetensors"))}
    if source in named:
        return named[source]
    if path.suffix in SUFFIXES or path.parent != Path("."):
        raise UserError(f"LoRA file {source} is missing")
    raise UserError(f"unknown LoRA {source!r}: {nearest(source, named)} (or give a .safetensors file)")


def names_file(spec: str) -> bool:
    """Whether ``NAME|FILE[:STRENGTH]`` is meant as a file, which can be looked for before the model is known."""
    path = Path(parse_spec(spec).source).expanduser()
    return path.is_file() or path.suffix in SUFFIXES


def read_lora(path: Path) -> dict[str, Tensor]:
    """All tensors of a LoRA file: safetensors, or a checkpoint of plain tensors."""
    return dict(safetensors([path])) if path.suffix == ".safetensors" else checkpoint(path)


def convert(state: Mapping[str, Tensor], transformer: Any, source: str) -> dict[str, Tensor]:
    """Any dialect -> ``{diffusers module}.lora_A.weight`` and ``.lora_B.weight``, scale 1, in the order of the modules.

    ``alpha``, where a file has it, is multiplied into B as ``alpha / rank``; without one the scale is 1, as in the
    published merge.

    Raises:
        UserError: for a key that belongs to no module, a pair that is not whole, a shape that does not fit.
    """
    modules = _linear_modules(transformer)
    names = _known_names(modules)
    pairs: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in state.items():
        match = SUFFIX.search(key)
        module = names.get(_plain(key[: match.start()])) if match else None
        if match is None or module is None:
            raise UserError(f"{source} does not fit this model: nothing here is called {key!r}")
        kind = FACTOR.get(match["peft"] or match["kohya"] or match["old"] or "", "alpha")
        if kind in pairs[module]:
            raise UserError(f"{source} holds {key!r} twice under different names")
        pairs[module][kind] = tensor
    if not pairs:
        raise UserError(f"{source} holds no LoRA weights")
    converted: dict[str, Tensor] = {}
    for module in (name for name in modules if name in pairs):
        down, up = _checked(pairs[module], modules[module], module, source)
        converted[f"{module}.lora_A.weight"], converted[f"{module}.lora_B.weight"] = down, up
    return converted


def _checked(pair: Mapping[str, Tensor], module: Any, name: str, source: str) -> tuple[Tensor, Tensor]:
    if "A" not in pair or "B" not in pair:
        raise UserError(f"{source} has only half of the LoRA for {name}: the file is not whole")
    down, up = pair["A"].float(), pair["B"].float()
    expected = (module.in_features, module.out_features)
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or (down.shape[1], up.shape[0]) != expected:
        raise UserError(
            f"{source} does not fit this model: {name} maps {expected[0]} to {expected[1]} features, "
            f"the LoRA has A {tuple(down.shape)} and B {tuple(up.shape)}"
        )
    if not (down.isfinite().all() and up.isfinite().all()):
        raise UserError(f"{source} holds NaN or infinity in the LoRA for {name}: fetch the file again")
    if "alpha" in pair:
        up = up * (float(pair["alpha"]) / down.shape[0])
    return down, up


def _attach(transformer: Any, state: Mapping[str, Tensor], adapter: str, path: Path) -> None:
    transformer.load_lora_adapter(dict(state), adapter_name=adapter, prefix=None)
    # The library reports what it could not place to its log only.
    placed = sum(adapter in module.lora_A for module in transformer.modules() if hasattr(module, "lora_A"))
    if 2 * placed != len(state):
        raise UserError(f"{path}: only {placed} of its {len(state) // 2} LoRA modules could be attached")
    transformer.requires_grad_(False)


def _linear_modules(transformer: Any) -> dict[str, Any]:
    """Linear layers by diffusers name, seen through LoRAs that are already attached."""
    found: dict[str, Any] = {}
    for name, module in transformer.named_modules():
        if name.endswith(".base_layer"):
            found[name.removesuffix(".base_layer")] = module
        elif isinstance(module, torch.nn.Linear) and ".lora_" not in name:
            found[name] = module
    return found


def _known_names(modules: Mapping[str, Any]) -> dict[str, str]:
    """Every name under which files know a module -> its diffusers name."""
    top, block = ({ours: official for official, ours in table.items()} for table in (DIT, DIT_BLOCK))
    names: dict[str, str] = {}
    for module in modules:
        match = re.fullmatch(r"(blocks\.\d+\.)(.+)", module)
        official = match[1] + block[match[2]] if match else top[module]
        for form in (module, official):
            names[form] = module
            names.update({prefix + form.replace(".", "_"): module for prefix in KOHYA_PREFIXES})
    return names


def _plain(stem: str) -> str:
    """``stem`` without the prefixes that trainers and user interfaces put before a module's name."""
    for prefix in PREFIXES:
        stem = stem.removeprefix(prefix)
    return stem
