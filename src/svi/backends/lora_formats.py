"""Names in LoRA files: which tensor belongs to which weight of a Wan transformer, in every dialect, both ways.

Tables and pure functions. Weights are called by their diffusers names here (``blocks.0.attn1.to_q``); files call them by
diffusers or official names, with dots or underscores, behind prefixes. Knows nothing about files or models.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from svi.backends.official import DIT, DIT_BLOCK, dit_name

Format = Literal["diffusers", "official", "comfyui"]

# Taken off again and again until none is left: `_forward_module.module.model.pipe.dit.blocks...` has five.
PREFIXES = (
    "module.",
    "_forward_module.",  # Lightning around DeepSpeed
    "_orig_mod.",
    "base_model.model.",
    "model.",
    "pipe.",
    "dit.",
    "diffusion_model.",
    "transformer.",
)
KOHYA_PREFIXES = ("lora_unet_", "lora_transformer_")
# Networks that published files carry beside the LoRA, and who reads them.
NETWORKS = {
    "dwpose_embedding.": "the pose encoder of SVI-Dance and UniAnimate-DiT",
    "randomref_embedding_pose.": "the reference-pose encoder of UniAnimate-DiT",
    "inpaint_embedding.": "an inpainting encoder",
    "learn_in_embedding.": "an input encoder of the published trainer",
}
# Adapters of other kinds, by a part of their names.
OTHER_ADAPTERS = {
    ".dora_scale": "DoRA",
    ".lora_magnitude_vector": "DoRA",
    ".lokr_": "LoKr",
    ".hada_": "LoHa",
    ".lora_mid.": "LoCon with a middle factor",
    ".oft_": "OFT",
    ".set_weight": "a whole weight (set_weight)",
}
# Formats by how their keys begin, tried in this order; what fits none has official names.
SIGNS = (
    ("kohya / musubi", re.compile(r"lora_(?:unet|transformer)_")),
    ("peft", re.compile(r"base_model\.model\.")),
    ("comfyui", re.compile(r"(?:model\.)?diffusion_model\.")),
    ("diffusers", re.compile(r"transformer\.|(?:.*\.)?(?:attn[12]|condition_embedder|proj_out|ffn\.net)\.")),
    ("official", re.compile(r"")),
)
FACTOR = re.compile(
    r"\.(?:lora_(?P<peft>[AB])(?:\.\w+)?\.weight|lora_(?P<kohya>down|up)\.weight"
    r"|(?:processor\.)?lora\.(?P<old>down|up)\.weight|(?P<alpha>alpha))$"
)
DIFFERENCE = re.compile(r"\.(?P<leaf>diff|diff_b|diff_m)$")
SIDES = {"A": "A", "B": "B", "down": "A", "up": "B"}
# How a whole-tensor difference is called after its module, and which parameter it changes.
LEAVES = {"diff": "weight", "diff_b": "bias"}
MODULATION = "diff_m"

_TOP = {**DIT, **{ours: ours for ours in DIT.values()}}
_BLOCK = {**DIT_BLOCK, **{ours: ours for ours in DIT_BLOCK.values()}}
_FLAT_TOP = {name.replace(".", "_"): ours for name, ours in _TOP.items()}
_FLAT_BLOCK = {name.replace(".", "_"): ours for name, ours in _BLOCK.items()}
_OFFICIAL_TOP = {ours: official for official, ours in DIT.items()}
_OFFICIAL_BLOCK = {ours: official for official, ours in DIT_BLOCK.items()}
_FLAT = re.compile(r"blocks_(\d+)_(.+)")
_DOTTED = re.compile(r"blocks\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Key:
    """What the name of one tensor says.

    Attributes:
        kind: ``A``, ``B`` or ``alpha`` of a pair, a ``difference`` to add to a whole parameter, a tensor of another
            ``network``, or ``foreign``: nothing that a Wan LoRA has.
        target: the module (pairs) or the parameter (differences) by its diffusers name; otherwise the key itself.
        stem: the key without its ending, as the file writes it.
    """

    kind: Literal["A", "B", "alpha", "difference", "network", "foreign"]
    target: str
    stem: str


def parse(key: str) -> Key:
    """What ``key`` names; see :class:`Key`."""
    factor = FACTOR.search(key)
    if factor is not None:
        stem = key[: factor.start()]
        module = module_of(stem)
        if module is not None:
            side = SIDES.get(factor["peft"] or factor["kohya"] or factor["old"] or "", "alpha")
            return Key(side, module, stem)  # type: ignore[arg-type]  # the values of SIDES are kinds
    difference = DIFFERENCE.search(key)
    if difference is not None:
        stem = key[: difference.start()]
        parameter = _changed(stem, difference["leaf"])
        if parameter is not None:
            return Key("difference", parameter, stem)
    bare = plain(key)
    if any(bare.startswith(network) for network in NETWORKS):
        return Key("network", key, key)
    return Key("foreign", key, key)


def _changed(stem: str, leaf: str) -> str | None:
    if leaf == MODULATION:
        return dit_name(f"{plain(stem)}.modulation")
    module = module_of(stem)
    return module and f"{module}.{LEAVES[leaf]}"


def plain(name: str) -> str:
    """``name`` without the prefixes that trainers and user interfaces put before a module's name."""
    before = ""
    while before != name:
        before = name
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
    return name


def module_of(stem: str) -> str | None:
    """The diffusers name of the module that a file calls ``stem``; None where Wan has none of that name."""
    stem = plain(stem)
    for prefix in KOHYA_PREFIXES:
        stem = stem.removeprefix(prefix)
    flat = stem.replace(".", "_")
    match = _FLAT.fullmatch(flat)
    if match is None:
        return _FLAT_TOP.get(flat)
    inner = _FLAT_BLOCK.get(match[2])
    return inner and f"blocks.{match[1]}.{inner}"


def official_module(module: str) -> str | None:
    """Diffusers name of a module of the transformer -> its official name; None where the official model has none."""
    match = _DOTTED.fullmatch(module)
    if match is None:
        return _OFFICIAL_TOP.get(module)
    inner = _OFFICIAL_BLOCK.get(match[2])
    return inner and f"blocks.{match[1]}.{inner}"


def _spelled(module: str, official: bool) -> str:
    name = official_module(module) if official else module
    assert name is not None, f"{module} was read from a table that it is not in"
    return name


# Per format: prefix, whether modules have official names, endings of A and B.
_SPELLING: dict[Format, tuple[str, bool, str, str]] = {
    "diffusers": ("transformer.", False, "lora_A.weight", "lora_B.weight"),
    "official": ("pipe.dit.", True, "lora_A.default.weight", "lora_B.default.weight"),
    "comfyui": ("diffusion_model.", True, "lora_down.weight", "lora_up.weight"),
}
FORMATS: tuple[Format, ...] = ("diffusers", "official", "comfyui")


def factor_name(module: str, side: Literal["A", "B", "alpha"], to: Format) -> str:
    """How format ``to`` calls one side of the pair of ``module``."""
    prefix, official, a, b = _SPELLING[to]
    ending = {"A": a, "B": b, "alpha": "alpha"}[side]
    return f"{prefix}{_spelled(module, official)}.{ending}"


def difference_name(parameter: str, to: Format) -> str:
    """How format ``to`` calls the difference of ``parameter`` (a diffusers name)."""
    prefix = _SPELLING[to][0]
    module, _, leaf = parameter.rpartition(".")
    if leaf == "scale_shift_table":  # the one parameter that hangs on no module of its own
        official = _spelled(parameter, True).removesuffix(".modulation")
        return f"{prefix}{official}.{MODULATION}"
    ending = next(name for name, changed in LEAVES.items() if changed == leaf)
    return f"{prefix}{_spelled(module, True)}.{ending}"


def format_of(keys: Iterable[str]) -> str:
    """Which dialect these keys of a LoRA have, for people to read; several joined by `` + ``, ``unknown`` without keys."""
    found = {next(name for name, sign in SIGNS if sign.match(key)) for key in keys}
    return " + ".join(sorted(found)) or "unknown"


def other_adapter(key: str) -> str | None:
    """What kind of adapter ``key`` belongs to, where that is one which is not supported."""
    return next((kind for part, kind in OTHER_ADAPTERS.items() if part in key), None)


def owner_of(key: str) -> str:
    """Who reads a tensor of another network."""
    bare = plain(key)
    return next(owner for network, owner in NETWORKS.items() if bare.startswith(network))


def hint(name: str, known: Iterable[str]) -> str:
    """``: did you mean 'x'?`` for a name that is nearly one of ``known``, otherwise nothing."""
    match = difflib.get_close_matches(plain(name), list(known), n=1, cutoff=0.6)
    return f": did you mean {match[0]!r}?" if match else ""


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """Sorting key under which block 10 comes after block 9."""
    parts = re.split(r"(\d+)", name)
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in parts)
