"""What a model costs before anything of it is loaded: parameters, bytes on the device, bytes in RAM, FLOPs of a forward pass.

Pure arithmetic on the JSON configurations of the parts; tests hold it to the modules themselves on the meta device. Knows the
architecture of Wan's transformer, UMT5 and CLIP as formulas (the VAE is in `vae_cost`); nothing about devices, files or torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from svi.backends.layouts import CLIP_VIT_H, UMT5_XXL
from svi.backends.vae_cost import WAN21_VAE, WAN22_VAE, VaeShape

GIB = 2**30
TEXT_TOKENS, IMAGE_TOKENS = 512, 257

Home = Literal["device", "visit", "cpu"]
"""Where a part lives: always on the device; in RAM, on the device while it works; in RAM, working there."""

# What a process holds on a CUDA device before its first tensor, and how much of the rest the allocator wastes.
CONTEXT_BYTES = int(0.7 * GIB)
FRAGMENTATION = 1.06
# Python, its libraries, and one tensor on its way from a file.
PROCESS_BYTES = int(1.2 * GIB)


@dataclass(frozen=True)
class TransformerShape:
    """Sizes of a Wan transformer, named as in its diffusers configuration."""

    num_attention_heads: int = 40
    attention_head_dim: int = 128
    in_channels: int = 36
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    patch_size: tuple[int, int, int] = (1, 2, 2)
    cross_attn_norm: bool = True
    image_dim: int | None = None
    added_kv_proj_dim: int | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> TransformerShape:
        """From a configuration; what it does not say is as in Wan 14B."""
        known = {name: config[name] for name in cls.__dataclass_fields__ if name in config}
        patch = tuple(int(n) for n in known.get("patch_size", (1, 2, 2)))
        return cls(**{**known, "patch_size": patch})

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def block_parameters(self) -> int:
        """Parameters of one block."""
        d, added = self.width, self.added_kv_proj_dim
        attention = 4 * (d * d + d) + 2 * d
        image = 2 * (added * d + d) + d if added else 0
        feed_forward = 2 * d * self.ffn_dim + self.ffn_dim + d
        return 2 * attention + image + (2 * d if self.cross_attn_norm else 0) + feed_forward + 6 * d

    @property
    def other_parameters(self) -> int:
        """Parameters outside the blocks: embeddings, head, modulation."""
        d, patch = self.width, prod(self.patch_size)
        embed = self.in_channels * patch * d + d
        time = self.freq_dim * d + d + d * d + d + 6 * d * d + 6 * d
        text = self.text_dim * d + d + d * d + d
        i = self.image_dim
        image = 2 * i + i * i + i + i * d + d + 2 * d if i else 0
        head = d * self.out_channels * patch + self.out_channels * patch + 2 * d
        return embed + time + text + image + head

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.num_layers * self.block_parameters + self.other_parameters

    def tokens(self, latent_shape: tuple[int, int, int]) -> int:
        """Tokens of a latent video ``(F, h, w)``."""
        return prod(size // patch for size, patch in zip(latent_shape, self.patch_size, strict=True))

    def forward_flops(self, tokens: int) -> int:
        """Floating-point operations of one forward pass; a multiply-add counts two. Elementwise work is left out."""
        d, patch, added = self.width, prod(self.patch_size), self.added_kv_proj_dim or 0
        keys = TEXT_TOKENS + (IMAGE_TOKENS if added else 0)
        self_attention = 8 * tokens * d * d + 4 * tokens * tokens * d
        cross_attention = (
            4 * tokens * d * d + 4 * TEXT_TOKENS * d * d + 4 * IMAGE_TOKENS * added * d + 4 * tokens * keys * d
        )
        block = self_attention + cross_attention + 4 * tokens * d * self.ffn_dim
        ends = 2 * tokens * d * patch * (self.in_channels + self.out_channels)
        once = 2 * (self.freq_dim + d + 6 * d) * d + 2 * TEXT_TOKENS * (self.text_dim + d) * d
        if self.image_dim:
            once += 2 * IMAGE_TOKENS * self.image_dim * (self.image_dim + d)
        return self.num_layers * block + ends + once

    def activation_bytes(self, tokens: int, dtype_bytes: int) -> int:
        """Most that the tensors of a forward pass hold at once, without gradients; the widest place decides.

        Modulation runs in fp32: input, norm, product and sum. Attention holds the stream, its normed copy, query, key,
        value and the halves of a rotation in fp32. The feed-forward holds its hidden layer before and after the GELU.
        """
        d, stream = self.width, 2 * dtype_bytes
        modulation = d * (dtype_bytes + 4 * 4)
        attention = d * (stream + 3 * dtype_bytes + 2 * 4)
        feed_forward = d * stream + 2 * self.ffn_dim * dtype_bytes
        return tokens * max(modulation, attention, feed_forward)


def text_encoder_parameters(config: Mapping[str, Any]) -> int:
    """Parameters of a UMT5 encoder."""
    d, inner, heads = config["d_model"], config["num_heads"] * config["d_kv"], config["num_heads"]
    buckets = config.get("relative_attention_num_buckets", 32)
    layer = 4 * d * inner + buckets * heads + 3 * d * config["d_ff"] + 2 * d
    return int(config["vocab_size"] * d + config["num_layers"] * layer + d)


def image_encoder_parameters(config: Mapping[str, Any]) -> int:
    """Parameters of a CLIP vision tower."""
    d, mlp, patch = config["hidden_size"], config["intermediate_size"], config["patch_size"]
    positions = (config["image_size"] // patch) ** 2 + 1
    layer = 4 * (d * d + d) + 2 * d * mlp + mlp + d + 4 * d
    return int(d + 3 * patch * patch * d + positions * d + config["num_hidden_layers"] * layer + 4 * d)


@dataclass(frozen=True)
class ModelSizes:
    """What has to be known of a model to tell whether it fits.

    Attributes:
        title: its name for people.
        transformer, vae: shapes.
        experts: transformers of that shape, of which one works at a time (Wan 2.2: 2).
        text_parameters, image_parameters: of the encoders; 0 = none.
        lora_parameters: of LoRAs that stay beside the weights.
    """

    title: str
    transformer: TransformerShape
    vae: VaeShape
    experts: int = 1
    text_parameters: int = 0
    image_parameters: int = 0
    lora_parameters: int = 0

    @classmethod
    def of(cls, title: str, configs: Mapping[str, Mapping[str, Any]]) -> ModelSizes:
        """From the configurations of the parts by name, in the diffusers layout.

        Args:
            configs: ``transformer``, and as far as there are any ``transformer_2``, ``vae``, ``text_encoder`` and
                ``image_encoder``; an empty one stands for the published sizes.
        """
        text, image = configs.get("text_encoder"), configs.get("image_encoder")
        return cls(
            title,
            TransformerShape.of(configs["transformer"]),
            VaeShape.of(configs.get("vae", {})),
            2 if "transformer_2" in configs else 1,
            0 if text is None else text_encoder_parameters({**UMT5_XXL, **text}),
            0 if image is None else image_encoder_parameters({**CLIP_VIT_H, **image}),
        )

    @classmethod
    def of_modules(cls, title: str, modules: Mapping[str, Any]) -> ModelSizes:
        """From the parts themselves by name, which may be without weights (on the meta device)."""
        configs = {name: module.config for name, module in modules.items()}
        return cls.of(title, {name: c if isinstance(c, Mapping) else c.to_dict() for name, c in configs.items()})

    def latent_shape(self, window: Window) -> tuple[int, int, int]:
        """``(F, h, w)`` of a clip."""
        spatial, temporal = self.vae.scale_factor_spatial, self.vae.scale_factor_temporal
        return (window.num_frames - 1) // temporal + 1, window.height // spatial, window.width // spatial

    def clip_flops(self, window: Window, steps: int, guided: bool = True) -> int:
        """Of a clip: ``steps`` evaluations (two each with guidance), one encoding, one decoding."""
        forward = self.transformer.forward_flops(self.transformer.tokens(self.latent_shape(window)))
        size = (window.num_frames, window.height, window.width)
        return steps * (1 + guided) * forward + self.vae.encode_flops(*size) + self.vae.decode_flops(*size)


@dataclass(frozen=True)
class Window:
    """The shape of a clip in pixels and frames."""

    height: int = 480
    width: int = 832
    num_frames: int = 81


@dataclass(frozen=True)
class Layout:
    """Where the parts live and how many bytes their weights take.

    Attributes:
        transformer: ``device``; or ``visit``: its blocks wait in RAM and come one by one, the next while one works.
        text, image: of the encoders. The VAE, small and used by every clip, stays on the device.
        dtype_bytes: of what the transformer and the text encoder compute in.
        block_bytes: of each stored weight of the blocks: ``dtype_bytes``, or fewer where they are quantised.
        in_turn: of two experts only the one at work is on the device.
        on_device: False where everything computes in RAM (a CPU).
    """

    transformer: Literal["device", "visit"] = "device"
    text: Home = "device"
    image: Home = "device"
    dtype_bytes: int = 2
    block_bytes: float = 2.0
    in_turn: bool = False
    on_device: bool = True


@dataclass(frozen=True)
class Estimate:
    """Bytes that a layout needs.

    Attributes:
        phases: on the device while it ``encodes text``, ``denoises``, and ``works in the VAE``.
        ram: in main memory.
    """

    phases: Mapping[str, int]
    ram: int

    @property
    def peak(self) -> int:
        """Most on the device at once."""
        return max(self.phases.values())

    def line(self) -> str:
        """``12.3 GiB on the device (while it denoises), 40.1 GiB of RAM``."""
        phase = max(self.phases, key=lambda name: self.phases[name])
        ram = f"{self.ram / GIB:.1f} GiB of RAM"
        return ram if not self.peak else f"{self.peak / GIB:.1f} GiB on the device (while it {phase}), {ram}"


def estimate(sizes: ModelSizes, window: Window, layout: Layout) -> Estimate:
    """What ``layout`` takes for clips of ``window``."""
    shape, dtype = sizes.transformer, layout.dtype_bytes
    block = int(shape.block_parameters * layout.block_bytes) + sizes.lora_parameters * dtype // shape.num_layers
    blocks, ends = shape.num_layers * block, shape.other_parameters * dtype
    vae, image = sizes.vae.parameters * 4, sizes.image_parameters * 4  # both always in fp32
    text = sizes.text_parameters * dtype
    work = {
        "encodes text": text if layout.text == "visit" else 0,
        "denoises": shape.activation_bytes(shape.tokens(sizes.latent_shape(window)), dtype),
        "works in the VAE": sizes.vae.working_bytes(window.height, window.width),
    }
    if layout.transformer == "visit":
        # The block at work and the next, on its way; the ends come and go with each pass.
        resident, waiting = 0, sizes.experts * (blocks + ends)
        work["denoises"] += 2 * block + ends
    else:
        there = 1 if layout.in_turn else sizes.experts
        resident, waiting = there * (blocks + ends), (sizes.experts - there) * (blocks + ends)
    for home, bytes_ in ((layout.text, text), (layout.image, image)):
        resident += bytes_ if home == "device" else 0
        waiting += bytes_ if home != "device" else 0
    resident += vae
    if not layout.on_device:
        return Estimate(dict.fromkeys(work, 0), int((resident + waiting + max(work.values())) * 1.02) + PROCESS_BYTES)
    held = {name: int((resident + bytes_) * FRAGMENTATION) + CONTEXT_BYTES for name, bytes_ in work.items()}
    return Estimate(held, waiting + PROCESS_BYTES)


_I2V_14B = TransformerShape(image_dim=1280, added_kv_proj_dim=5120)
_A14B = TransformerShape()
_TI2V_5B = TransformerShape(24, 128, 48, 48, ffn_dim=14336, num_layers=30)
_TEXT, _IMAGE = text_encoder_parameters(UMT5_XXL), image_encoder_parameters(CLIP_VIT_H)
KNOWN_MODELS: dict[str, tuple[ModelSizes, Window]] = {
    "wan2.1-i2v-14b": (
        ModelSizes("Wan2.1-I2V-14B", _I2V_14B, WAN21_VAE, 1, _TEXT, _IMAGE),
        Window(),
    ),
    "wan2.2-i2v-a14b": (ModelSizes("Wan2.2-I2V-A14B", _A14B, WAN21_VAE, 2, _TEXT), Window()),
    "wan2.2-ti2v-5b": (ModelSizes("Wan2.2-TI2V-5B", _TI2V_5B, WAN22_VAE, 1, _TEXT), Window(704, 1280, 121)),
}
