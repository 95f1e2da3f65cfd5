"""LoRAs asked for by name or file, attached to a Wan transformer; what does not fit is refused, never skipped.

The libraries load nothing, with a mere log line, when names do not match: the video then lacks its LoRA and nobody
knows. Here every key of a file must find its module, in its shape. Strengths change per clip without reloading.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svi.backends import lora_read
from svi.backends.lora_base import fingerprint
from svi.backends.lora_formats import hint, official_module, other_adapter, owner_of
from svi.backends.lora_read import CHECKPOINT_SUFFIXES, SUFFIXES, LoraFile, Pair, refuse_empty
from svi.backends.weights import SETTINGS_FILE, read_json, sha256
from svi.errors import UserError, nearest

__all__ = [
    "CHECKPOINT_SUFFIXES",
    "LoraSpec",
    "Loras",
    "check_lora",
    "find_lora",
    "load_loras",
    "names_file",
    "parse_spec",
]

FOLDER = "loras"
ABSENT = "nothing here is called"
HINTS = 5  # so many unknown names get their nearest neighbour: the search takes its time
MERGED = "merged"  # entry of svi.json: what was merged into the weights of this folder


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
        UserError: for an unknown name, a damaged file, a key or a shape that does not fit the model, two of one name, or
            a LoRA that was merged into the model already.
    """
    strengths: dict[str, float] = {}
    files: dict[str, str] = {}
    for index, spec in enumerate(specs):
        if spec.name in strengths:
            raise UserError(f"two LoRAs are called {spec.name!r}: give each once, or rename one file")
        path = find_lora(spec.source, folder)
        lora = lora_read.read(path)
        refuse_merged(lora, path, folder)
        state = converted(lora, transformer)
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


def check_lora(spec: str, folder: Path | None) -> None:
    """Refuse a LoRA that is missing, not a LoRA file, or has a strength that is no number."""
    head, colon, tail = spec.rpartition(":")
    if colon and Path(head).is_file() and not _is_number(tail):
        raise UserError(f"strength of LoRA {head} must be a number, not {tail!r}")
    parsed = parse_spec(spec)
    path = find_lora(parsed.source, folder)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                names = list(file.keys())
        except (SafetensorError, OSError, ValueError) as error:
            reason = str(error).partition("\n")[0][:80]
            raise UserError(f"LoRA {path} is damaged or not safetensors ({reason}): fetch the file again") from None
        if not names:
            raise UserError(f"LoRA {path} holds no weights")
    elif path.suffix not in CHECKPOINT_SUFFIXES:
        raise UserError(f"LoRA {path} is not a .safetensors file (checkpoints of plain tensors: .ckpt, .pt, .pth)")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def names_file(spec: str) -> bool:
    """Whether ``NAME|FILE[:STRENGTH]`` is meant as a file, which can be looked for before the model is known."""
    path = Path(parse_spec(spec).source).expanduser()
    return path.is_file() or path.suffix in SUFFIXES


def refuse_merged(lora: LoraFile, path: Path, folder: Path | None) -> None:
    """Raise UserError where ``svi.json`` of the model ``folder`` says that this LoRA is in its weights."""
    settings = folder / SETTINGS_FILE if folder else None
    merged = read_json(settings).get(MERGED) if settings and settings.is_file() else None
    if not merged:
        return
    marks = {sha256(path), fingerprint(lora)}
    for record in merged:
        if marks & {record.get("sha256"), record.get("fingerprint")}:
            raise UserError(
                f"{path} is merged into {folder} already (strength {record.get('strength')}): leave it out, "
                f"or take the model that it was merged into, {record.get('base')}"
            )


def converted(lora: LoraFile, transformer: Any) -> dict[str, Tensor]:
    """``{diffusers module}.lora_A.weight`` and ``.lora_B.weight`` in fp32, scale 1, in the order of the modules.

    ``alpha``, where a file has it, is multiplied into B as ``alpha / rank``; without one the scale is 1, as in the
    published merge.

    Raises:
        UserError: for a key that belongs to no module, a shape that does not fit, NaN, and what is no LoRA.
    """
    modules = _linear_modules(transformer)
    refuse_empty(lora)
    refuse(lora, misfits(lora, {f"{name}.weight": shape for name, shape in modules.items()}, attached=True))
    state: dict[str, Tensor] = {}
    for module in (name for name in modules if name in lora.pairs):
        pair = lora.pairs[module]
        state[f"{module}.lora_A.weight"] = pair.a.float()
        state[f"{module}.lora_B.weight"] = pair.b.float() * pair.scale
    return state


def misfits(lora: LoraFile, shapes: Mapping[str, tuple[int, ...]], *, attached: bool = False) -> list[str]:
    """Every reason why ``lora`` does not fit a model, one line each; empty where it fits.

    Args:
        shapes: of the model's parameters, by diffusers names.
        attached: whether it is to be attached beside the weights, which only pairs can be.
    """
    found = [_foreign(name, shapes if index < HINTS else {}) for index, name in enumerate(lora.foreign)]
    if attached and lora.differences:
        name = next(iter(lora.differences.values()))[1]
        found.append(
            f"it changes {len(lora.differences)} whole tensors ({name!r} ...), which cannot be attached: merge it "
            "(svi lora merge), or leave them out (svi lora convert --lora-only)"
        )
    if lora.networks:
        name = next(iter(lora.networks))
        found.append(
            f"{name!r} belongs to {owner_of(name)}, which this model lacks: svi lora convert --lora-only leaves it out"
        )
    for module, pair in lora.pairs.items():
        found.extend(_misfit(module, pair, shapes))
    for parameter, (tensor, name) in {} if attached else lora.differences.items():
        shape = shapes.get(parameter)
        if shape is None:
            found.append(f"{ABSENT} {name!r}")
        elif shape != tuple(tensor.shape):
            found.append(f"{parameter} is {shape}, its difference {name!r} is {tuple(tensor.shape)}")
        elif not tensor.float().isfinite().all():
            found.append(f"{name!r} holds NaN or infinity: fetch the file again")
    return found


def _foreign(name: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    kind = other_adapter(name)
    if kind:
        return f"{name!r} is part of {kind}, which is not supported"
    modules = [parameter.removesuffix(".weight") for parameter in shapes if parameter.endswith(".weight")]
    stem = re.split(r"\.(?:lora_|lora\.|alpha$|diff)", name)[0]
    return f"{ABSENT} {name!r}{hint(stem, [*modules, *filter(None, map(official_module, modules))])}"


def _misfit(module: str, pair: Pair, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    shape = shapes.get(f"{module}.weight")
    if shape is None:
        return [f"{ABSENT} {pair.stem!r}{_depth(module, shapes)}"]
    if len(shape) != 2 or shape != (pair.b.shape[0], pair.a.shape[1]):
        maps = f"maps {shape[1]} to {shape[0]} features" if len(shape) == 2 else f"is {shape}"
        return [f"{module} {maps}, the LoRA has A {tuple(pair.a.shape)} and B {tuple(pair.b.shape)}"]
    if not (pair.a.float().isfinite().all() and pair.b.float().isfinite().all()):
        return [f"NaN or infinity in the LoRA for {module}: fetch the file again"]
    return []


def _depth(module: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """How many blocks the model has, where ``module`` is in one that it lacks."""
    blocks = {int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")}
    named = re.match(r"blocks\.(\d+)\.", module)
    return f" (the model has {len(blocks)} blocks)" if named and int(named[1]) not in blocks else ""


def refuse(lora: LoraFile, reasons: Sequence[str]) -> None:
    """Raise UserError with the first of :func:`misfits`, if there are any."""
    if reasons:
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        absent = reasons[0].startswith(ABSENT) and len(reasons) < len(lora.pairs)
        remedy = "; svi lora convert --drop PATTERN leaves layers out" if absent else ""
        raise UserError(f"{lora.source} does not fit this model: {reasons[0]}{more}{remedy}")


def _attach(transformer: Any, state: Mapping[str, Tensor], adapter: str, path: Path) -> None:
    transformer.load_lora_adapter(dict(state), adapter_name=adapter, prefix=None)
    # The library reports what it could not place to its log only.
    placed = sum(adapter in module.lora_A for module in transformer.modules() if hasattr(module, "lora_A"))
    if 2 * placed != len(state):
        raise UserError(f"{path}: only {placed} of its {len(state) // 2} LoRA modules could be attached")
    transformer.requires_grad_(False)


def _linear_modules(transformer: Any) -> dict[str, tuple[int, int]]:
    """(out, in) of linear layers by diffusers name, seen through LoRAs that are already attached."""
    found: dict[str, tuple[int, int]] = {}
    for name, module in transformer.named_modules():
        if name.endswith(".base_layer") or (isinstance(module, torch.nn.Linear) and ".lora_" not in name):
            found[name.removesuffix(".base_layer")] = (module.out_features, module.in_features)
    return found
