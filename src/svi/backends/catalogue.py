"""Which models and LoRAs there are for which preset: names, hub ids, sizes, licences. A table, no behaviour.

Sizes are those of the hub's files (official layout in fp32 for 2.1, bf16 for the rest), from counted parameters. Knows
nothing about files on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

GB = 10**9
Kind = Literal["single", "experts", "in place"]


@dataclass(frozen=True)
class Component:
    """A part of a model: ``parameters`` in numbers, ``official_bytes`` and ``diffusers_bytes`` on disk."""

    name: str
    parameters: int
    official_bytes: int
    diffusers_bytes: int


@dataclass(frozen=True)
class Model:
    """A published base model.

    Attributes:
        name: short name, as ``--model`` takes it.
        title: the authors' name, as presets name their base.
        hub_id: in the diffusers layout; ``official_id``: in Wan's own.
        kind: ``single`` transformer, two ``experts``, or conditioned ``in place`` (TI2V).
        parts: what it consists of.
        tensors: of the transformer (of each, where there are two).
        defaults: what its authors recommend where it is not Wan 2.1's.
        licence, gated: of the weights; gated ones want their conditions accepted on the hub first.
    """

    name: str
    title: str
    hub_id: str
    official_id: str
    kind: Kind
    parts: tuple[Component, ...]
    tensors: int
    defaults: dict[str, Any] = field(default_factory=dict)
    licence: str = "Apache-2.0"
    gated: bool = False

    @property
    def parameters(self) -> int:
        """Parameters of the transformer; of one, where there are two."""
        return self.parts[0].parameters

    def size_bytes(self, layout: str = "diffusers") -> int:
        """Bytes of a download."""
        return sum(part.official_bytes if layout == "official" else part.diffusers_bytes for part in self.parts)


@dataclass(frozen=True)
class Lora:
    """A published LoRA: ``file`` in ``hub_id``, for a preset's ``base``; ``side`` where it is for one of two experts."""

    hub_id: str
    file: str
    base: str
    size_bytes: int
    side: Literal["high", "low"] | None = None
    licence: str = "see the model card"

    @property
    def name(self) -> str:
        """File name without folder and ending."""
        return self.file.rpartition("/")[2].removesuffix(".safetensors")


_TEXT = Component("text encoder", 5_680_910_336, 11_361_920_418, 11_361_887_232)
_CLIP = Component("image encoder", 630_766_080, 4_772_359_251, 1_264_217_240)
_VAE_21 = Component("VAE", 126_892_531, 507_609_880, 507_591_892)
_VAE_22 = Component("VAE", 704_688_668, 2_818_839_170, 2_818_776_856)
_I2V_14B = Component("transformer", 16_394_878_784, 65_579_515_136, 65_579_515_136)
_A14B = tuple(
    Component(f"{side}-noise transformer", 14_288_901_184, 57_155_604_736, 57_155_604_736) for side in ("high", "low")
)
_TI2V_5B = Component("transformer", 4_999_787_712, 19_999_150_848, 19_999_150_848)

MODELS: tuple[Model, ...] = (
    *(
        Model(
            f"wan2.1-i2v-{size.lower()}",
            f"Wan2.1-I2V-14B-{size}",
            f"Wan-AI/Wan2.1-I2V-14B-{size}-Diffusers",
            f"Wan-AI/Wan2.1-I2V-14B-{size}",
            "single",
            (_I2V_14B, _VAE_21, _TEXT, _CLIP),
            tensors=1303,
        )
        for size in ("480P", "720P")
    ),
    Model(
        "wan2.2-i2v-a14b",
        "Wan2.2-I2V-A14B",
        "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
        "Wan-AI/Wan2.2-I2V-A14B",
        "experts",
        (*_A14B, _VAE_21, _TEXT),
        tensors=1095,
    ),
    Model(
        "wan2.2-ti2v-5b",
        "Wan2.2-TI2V-5B",
        "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        "Wan-AI/Wan2.2-TI2V-5B",
        "in place",
        (_TI2V_5B, _VAE_22, _TEXT),
        tensors=825,
        # wan/configs/wan_ti2v_5B.py; its window is 704 x 1280.
        defaults={"height": 704, "width": 1280, "num_frames": 121, "fps": 24},
    ),
)

# Rank 128 without alpha: 613,416,960 numbers; version 1.0 in fp32, version 2.0 in 16 bits.
_SVI, _RANK_128 = "vita-video-gen/svi-model", 613_416_960
_V1 = {
    "shot": "svi-shot",
    "film": "svi-film",
    "film-transitions": "svi-film-transitions",
    "film-opt": "svi-film-opt-10212025",
    "tom": "svi-tom",
    "talk": "svi-talk",
    "dance": "svi-dance",
}
_WAN21, _WAN22 = "Wan2.1-I2V-14B-480P", "Wan2.2-I2V-A14B"


def _pair(version: str) -> tuple[Lora, ...]:
    return tuple(
        Lora(_SVI, f"version-2.0/SVI_{_WAN22}_{side}_noise_lora_{version}.safetensors", _WAN22, 2 * _RANK_128, side)
        for side in ("high", "low")
    )


LORAS: dict[str, tuple[Lora, ...]] = {
    "wan": (),
    **{preset: (Lora(_SVI, f"version-1.0/{file}.safetensors", _WAN21, 4 * _RANK_128),) for preset, file in _V1.items()},
    "svi2-wan21": (Lora(_SVI, "version-2.0/SVI_Wan2.1-I2V-14B_lora_v2.0.safetensors", _WAN21, 4 * _RANK_128),),
    "svi2-wan22": _pair("v2.0"),
    "pro": _pair("v2.0_pro"),
}
"""LoRAs that each preset was published with, by preset."""

BASES: dict[str, str] = {preset: (loras[0].base if loras else _WAN21) for preset, loras in LORAS.items()}
"""The model that each preset was published for, as its authors call it."""


def model_of(base: str) -> Model | None:
    """The model that a preset names as its base; what follows a plus sign (``+ MultiTalk``) belongs to a driver."""
    title = base.partition(" + ")[0]
    return next((model for model in MODELS if model.title == title), None)
