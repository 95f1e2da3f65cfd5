"""What a weight file is, from the names and shapes of its tensors: never from its file name, never from its values.

Knows the names that the Wan family goes by (official, ComfyUI, diffusers, transformers) and what distinguishes its members and
their extensions. Knows nothing about files, folders or modules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from svi.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]
Role = Literal["transformer", "vae", "text_encoder", "image_encoder", "lora", "audio", "unknown"]
Naming = Literal["official", "diffusers"]

# ComfyUI and its relatives put the transformer below these.
PREFIXES = ("model.diffusion_model.", "diffusion_model.")
HEAD_DIM = 128  # of every published Wan; the tensors do not show it

# What an extension of Wan adds, by the start of a name below the blocks or at the top, and what it is called.
EXTENSIONS = {
    "audio_proj": "MultiTalk",
    "audio_cross_attn": "MultiTalk",
    "norm_x": "MultiTalk",
    "dwpose_embedding": "UniAnimate-DiT",
    "randomref_embedding_pose": "UniAnimate-DiT",
    "vace_blocks": "VACE",
    "vace_patch_embedding": "VACE",
    "face_adapter": "Animate",
    "motion_encoder": "Animate",
    "pose_patch_embedding": "Animate",
    "casual_audio_encoder": "S2V",
    "audio_injector": "S2V",
    "ref_conv": "Fun-Control",
    "control_adapter": "Fun-Control",
}
# (width, layers, channels in, channels out, image branch) -> name
FAMILIES = {
    (5120, 40, 36, 16, True): "Wan2.1-I2V-14B",
    (5120, 40, 36, 16, False): "Wan2.2-I2V-A14B (one expert)",
    (3072, 30, 48, 48, False): "Wan2.2-TI2V-5B",
    (5120, 40, 16, 16, False): "Wan-T2V-14B",
    (1536, 30, 16, 16, False): "Wan2.1-T2V-1.3B",
}
# A tensor that gives another model away, and its name.
FOREIGN = {
    "double_blocks.0.img_attn.qkv.weight": "Flux or HunyuanVideo",
    "double_blocks.0.img_attn_qkv.weight": "HunyuanVideo",
    "input_blocks.0.0.weight": "Stable Diffusion",
    "joint_blocks.0.x_block.attn.qkv.weight": "Stable Diffusion 3",
    "transformer_blocks.0.attn.add_q_proj.weight": "Qwen-Image, Flux or another model of diffusers",
    "transformer_blocks.0.attn1.to_q.weight": "LTX-Video or another model of diffusers",
    "model.embed_tokens.weight": "a language model",
    "text_model.embeddings.token_embedding.weight": "the text tower of a CLIP",
}


@dataclass(frozen=True)
class Identity:
    """What a set of tensors is.

    Attributes:
        role: part of a video model that it is.
        title: its name for people.
        naming: whose names its tensors have; None where that does not matter.
        extension: what was added to a transformer (``MultiTalk``), or None.
        quantised: ``fp8``, ``scaled fp8``, ``GGUF``, or None.
    """

    role: Role
    title: str
    naming: Naming | None = None
    extension: str | None = None
    quantised: str | None = None

    def __str__(self) -> str:
        more = [text for text in (self.extension and f"with {self.extension}", self.quantised) if text]
        return self.title + (f" ({', '.join(more)})" if more else "")


def plain(name: str) -> str:
    """A tensor's name without the prefix that ComfyUI has."""
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def identify(shapes: Shapes, *, quantised: str | None = None) -> Identity:
    """What the tensors of these names and shapes are; role ``unknown`` names the model they seem to be of."""
    named = {plain(name): shape for name, shape in shapes.items()}
    if not named:
        return Identity("unknown", "an empty file")
    if any(".lora_" in name or ".lora." in name for name in named):
        return Identity("lora", "a LoRA")
    for found in (_transformer(named), _vae(named), _text_encoder(named), _image_encoder(named)):
        if found is not None:
            return Identity(found.role, found.title, found.naming, found.extension, quantised)
    extension = extension_of(named)
    if extension is not None:
        return Identity("audio" if extension == "MultiTalk" else "unknown", f"the {extension} extension of Wan alone")
    title = next((title for name, title in FOREIGN.items() if name in named), "another model")
    return Identity("unknown", title)


def extension_of(names: Iterable[str]) -> str | None:
    """The extension that tensors of these names belong to; None for a plain Wan."""
    for name in names:
        stem = re.sub(r"^blocks\.\d+\.", "", plain(name)).partition(".")[0]
        if stem in EXTENSIONS:
            return EXTENSIONS[stem]
    return None


def _transformer(shapes: Shapes) -> Identity | None:
    official = "head.head.weight" in shapes and "time_projection.1.weight" in shapes
    if not official and "condition_embedder.time_proj.weight" not in shapes:
        return None
    if "patch_embedding.weight" not in shapes:
        return None
    facts = _facts(shapes, "official" if official else "diffusers")
    title = FAMILIES.get(facts, f"a Wan transformer {facts[0]} wide, {facts[1]} layers")
    if any(name.endswith(("img_emb.emb_pos", "image_embedder.pos_embed")) for name in shapes):
        title = title.replace("I2V", "FLF2V")
    return Identity("transformer", title, "official" if official else "diffusers", extension_of(shapes))


def _facts(shapes: Shapes, naming: Naming) -> tuple[int, int, int, int, bool]:
    patch = shapes["patch_embedding.weight"]
    head = shapes.get("head.head.weight" if naming == "official" else "proj_out.weight", (0, 0))
    image = "img_emb.proj.0.weight" if naming == "official" else "condition_embedder.image_embedder.norm1.weight"
    return patch[0], count(shapes, "blocks"), patch[1], head[0] // max(1, prod(patch[2:])), image in shapes


def _vae(shapes: Shapes) -> Identity | None:
    marks: tuple[tuple[Naming, str, str], ...] = (
        ("official", "encoder.conv1.weight", "conv2.weight"),
        ("diffusers", "encoder.conv_in.weight", "post_quant_conv.weight"),
    )
    for naming, first, last in marks:
        if first in shapes and last in shapes and len(shapes[first]) == 5:
            newer = any(".avg_shortcut" in name or "downsamples.0.downsamples" in name for name in shapes)
            newer |= any(name.startswith("encoder.down_blocks.0.resnets") for name in shapes)
            return Identity("vae", f"Wan {'2.2' if newer else '2.1'} VAE", naming)
    return None


def _text_encoder(shapes: Shapes) -> Identity | None:
    if "token_embedding.weight" in shapes and "blocks.0.ffn.gate.0.weight" in shapes:
        return Identity("text_encoder", "UMT5 encoder", "official")
    if "encoder.block.0.layer.0.SelfAttention.q.weight" in shapes:
        last = count({name.removeprefix("encoder."): shape for name, shape in shapes.items()}, "block") - 1
        if f"encoder.block.{last}.layer.0.SelfAttention.relative_attention_bias.weight" in shapes and last > 0:
            return Identity("text_encoder", "UMT5 encoder", "diffusers")
        return Identity("unknown", "a T5 that is no UMT5")
    return None


def _image_encoder(shapes: Shapes) -> Identity | None:
    names = {name.removeprefix("visual.") for name in shapes}
    if "cls_embedding" in names and "pre_norm.weight" in names:
        return Identity("image_encoder", "CLIP image encoder", "official")
    if "embeddings.class_embedding" in {name.removeprefix("vision_model.") for name in shapes}:
        return Identity("image_encoder", "CLIP image encoder", "diffusers")
    return None


def count(shapes: Iterable[str], stack: str) -> int:
    """How many layers ``stack`` has: one more than the highest number after its name."""
    found = [int(match[1]) for name in shapes if (match := re.match(rf"{re.escape(stack)}\.(\d+)\.", name))]
    return 1 + max(found, default=-1)


# -- configurations, as far as shapes show them ------------------------------------------------------------------------


def transformer_config(shapes: Shapes, given: Mapping[str, Any]) -> dict[str, Any]:
    """Diffusers configuration of a transformer under official names.

    Args:
        given: the official ``config.json`` or what there is of it; only ``num_heads`` is not in the shapes, and only a
            width that is no multiple of 128 (as of every published Wan) needs it.

    Raises:
        UserError: where tensors are missing that every Wan has, or nobody says how many heads there are.
    """
    needed = ("patch_embedding.weight", "text_embedding.0.weight", "head.head.weight", "blocks.0.ffn.0.weight")
    missing = [name for name in (*needed, "time_embedding.0.weight") if name not in shapes]
    if missing:
        raise UserError(f"these are not the weights of a Wan model: {missing[0]} is missing")
    patch = shapes["patch_embedding.weight"]
    width = patch[0]
    heads = int(given.get("num_heads") or (width // HEAD_DIM if width % HEAD_DIM == 0 else 0))
    if heads < 1 or width % heads:
        raise UserError(f"a Wan model {width} wide needs config.json to say num_heads, which its tensors do not show")
    image = shapes.get("img_emb.proj.0.weight")
    return dict(
        patch_size=tuple(patch[2:]),
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        in_channels=patch[1],
        out_channels=shapes["head.head.weight"][0] // prod(patch[2:]),
        text_dim=shapes["text_embedding.0.weight"][1],
        freq_dim=shapes["time_embedding.0.weight"][1],
        ffn_dim=shapes["blocks.0.ffn.0.weight"][0],
        num_layers=count(shapes, "blocks"),
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=given.get("eps", 1e-6),
        image_dim=image[0] if image else None,
        added_kv_proj_dim=width if image else None,
    )


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """Diffusers configuration of a VAE under official names; the one of Wan 2.2 works on patches of 2 by 2 pixels.

    Raises:
        UserError: where it is no VAE of Wan.
    """
    found = _vae(shapes)
    if found is None or found.naming != "official":
        raise UserError("not a Wan VAE")
    config: dict[str, Any] = dict(base_dim=shapes["encoder.conv1.weight"][0], z_dim=shapes["conv2.weight"][0])
    if found.title != "Wan 2.2 VAE":
        return config
    return config | dict(
        decoder_base_dim=shapes["decoder.head.0.gamma"][0],
        in_channels=shapes["encoder.conv1.weight"][1],
        out_channels=shapes["decoder.head.2.weight"][0],
        is_residual=True,
        patch_size=2,
        scale_factor_spatial=16,
        scale_factor_temporal=4,
        latents_mean=list(MEAN_22),
        latents_std=list(STD_22),
    )


def text_config(shapes: Shapes) -> dict[str, Any]:
    """Transformers configuration of a UMT5 encoder under transformers names; everything shows in the shapes."""
    first = "encoder.block.0.layer."
    heads = shapes[f"{first}0.SelfAttention.relative_attention_bias.weight"][1]
    vocabulary, width = shapes.get("shared.weight") or shapes["encoder.embed_tokens.weight"]
    return dict(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=shapes[f"{first}0.SelfAttention.q.weight"][0] // heads,
        d_ff=shapes[f"{first}1.DenseReluDense.wi_0.weight"][0],
        num_layers=count({name.removeprefix("encoder."): () for name in shapes}, "block"),
        num_heads=heads,
        **UMT5_KIND,
    )


UMT5_KIND = dict(feed_forward_proj="gated-gelu", dense_act_fn="gelu_new", is_gated_act=True)
UMT5_XXL = dict(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, **UMT5_KIND)
CLIP_VIT_H = dict(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=16,
    image_size=224,
    patch_size=14,
    hidden_act="gelu",
)
# Statistics of the latents of the Wan 2.2 VAE, which its file does not hold (wan/modules/vae2_2.py).
# fmt: off
MEAN_22 = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)
STD_22 = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)
# fmt: on
