"""Model folders in the official Wan layout: name maps and the reader.

The DiT lies in safetensors shards, VAE, CLIP and UMT5 in ``.pth`` files, all under the names of the published code.
Sizes are read off the tensors' shapes where they show there, so that the sparse official ``config.json`` suffices;
``config-encoders.json`` (``clip``, ``t5``) overrides the sizes of the encoders for models that are not the published ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svi.backends.folders import load_tokenizer, make_image_encoder, make_text_encoder
from svi.backends.placement import Placement
from svi.backends.weights import OFFICIAL_STEM as STEM
from svi.backends.weights import (
    Parts,
    Tensors,
    checkpoint,
    empty_weights,
    fill,
    read_json,
    reading,
    safetensors,
    safetensors_files,
)
from svi.errors import UserError

TOKENIZER = "google/umt5-xxl"

# -- name maps: official -> diffusers / transformers; None where a tensor has no home and none is needed ---------------

DIT = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
DIT_BLOCK = {
    **{
        f"{official}_attn.{name}": f"{ours}.{other}"
        for official, ours in (("self", "attn1"), ("cross", "attn2"))
        for name, other in {
            "q": "to_q",
            "k": "to_k",
            "v": "to_v",
            "o": "to_out.0",
            "norm_q": "norm_q",
            "norm_k": "norm_k",
        }.items()
    },
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
    "norm3": "norm2",  # the affine one
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
}
CLIP = {
    "cls_embedding": "embeddings.class_embedding",
    "pos_embedding": "embeddings.position_embedding.weight",
    "patch_embedding": "embeddings.patch_embedding",
    "pre_norm": "pre_layrnorm",  # transformers spells it so
    "post_norm": "post_layernorm",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
T5 = {
    "norm1": "layer.0.layer_norm",
    "norm2": "layer.1.layer_norm",
    **{f"attn.{name}": f"layer.0.SelfAttention.{name}" for name in "qkvo"},
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
VAE_RESIDUAL = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2"}
VAE_TOP = {
    "conv1": "quant_conv",
    "conv2": "post_quant_conv",
    **{f"{side}.conv1": f"{side}.conv_in" for side in ("encoder", "decoder")},
    **{f"{side}.head.0": f"{side}.norm_out" for side in ("encoder", "decoder")},
    **{f"{side}.head.2": f"{side}.conv_out" for side in ("encoder", "decoder")},
}
VAE_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}


def _split(name: str, table: Mapping[str, str]) -> str | None:
    """``name`` with the part that ``table`` knows replaced; a suffix such as ``.weight`` stays."""
    stem, dot, leaf = name.rpartition(".")
    if name in table:
        return table[name]
    return f"{table[stem]}{dot}{leaf}" if stem in table else None


def dit_name(name: str) -> str | None:
    """Official name of a DiT module or tensor -> its diffusers name; None if there is no such."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if match is None:
        return _split(name, DIT)
    mapped = _split(match[2], DIT_BLOCK)
    return mapped and f"blocks.{match[1]}.{mapped}"


def clip_tensors(state: Mapping[str, Tensor]) -> Tensors:
    """The vision tower out of an official CLIP checkpoint, by transformers names; everything else is passed over."""
    for name, tensor in state.items():
        short = name.removeprefix("visual.")
        if short in {name, "head"}:
            continue
        match = re.fullmatch(r"transformer\.(\d+)\.(.+)", short)
        place, rest = (f"encoder.layers.{match[1]}.", match[2]) if match else ("", short)
        if rest.startswith("attn.to_qkv."):
            leaf = rest.rpartition(".")[2]
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                yield f"{place}self_attn.{letter}_proj.{leaf}", part
            continue
        target = _split(rest, CLIP)
        value = tensor.reshape(tensor.shape[-1]) if rest == "cls_embedding" else tensor
        yield f"{place}{target or rest}", value[0] if rest == "pos_embedding" else value


def t5_tensors(state: Mapping[str, Tensor]) -> Tensors:
    """An official UMT5 encoder checkpoint by transformers names."""
    top = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
    for name, tensor in state.items():
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        mapped = _split(match[2], T5) if match else top.get(name)
        yield (f"encoder.block.{match[1]}.{mapped}" if match and mapped else mapped or name), tensor


def vae_name(name: str, res_blocks: int = 2) -> str | None:
    """Official name of a VAE tensor -> its diffusers name; None if there is no such."""
    direct = _split(name, VAE_TOP)
    if direct:
        return direct
    match = re.fullmatch(r"(encoder|decoder)\.(middle|downsamples|upsamples)\.(\d+)\.(.+)", name)
    if match is None:
        return None
    side, group, index, rest = match.groups()
    inner = _split(rest, VAE_RESIDUAL) or rest.replace("shortcut.", "conv_shortcut.")
    if group == "middle":
        return f"{side}.mid_block.{VAE_MIDDLE[index]}.{inner}" if index in VAE_MIDDLE else None
    if group == "downsamples":
        return f"{side}.down_blocks.{index}.{inner}"
    # A block of the decoder is one residual block more than the encoder's, then the upsampler.
    block, place = divmod(int(index), res_blocks + 2)
    layer = f"resnets.{place}" if place <= res_blocks else "upsamplers.0"
    return f"{side}.up_blocks.{block}.{layer}.{inner}"


# -- reader ------------------------------------------------------------------------------------------------------------


def load(
    folder: Path, placement: Placement, say: Callable[[str], None] = lambda line: None, *, need_tokenizer: bool = True
) -> Parts:
    """All parts of an official folder. ``need_tokenizer=False``: go without where there is none.

    Raises:
        UserError: for missing, damaged or foreign files, each named with the remedy.
    """
    files = [folder / "config.json"]
    config = read_json(files[0])
    encoders = {}
    if (folder / "config-encoders.json").is_file():
        files.append(folder / "config-encoders.json")
        encoders = read_json(files[-1])
    tokenizer = load_tokenizer(folder / TOKENIZER, files) if need_tokenizer or (folder / TOKENIZER).is_dir() else None
    say("loading transformer")
    transformer = _transformer(folder, config, placement, files)
    say("loading VAE")
    vae = _vae(_one(folder, "*VAE.pth", files), config.get("vae", {}), placement)
    say("loading text encoder")
    text_encoder = _text_encoder(_one(folder, "models_t5_*.pth", files), encoders.get("t5", {}), placement)
    image_encoder = None
    if transformer.config.image_dim is not None:
        say("loading image encoder")
        image_encoder = _image_encoder(_one(folder, "models_clip_*.pth", files), encoders.get("clip", {}), placement)
    window: dict[str, Any] = {key: config[key] for key in ("height", "width", "num_frames") if key in config}
    return Parts(transformer, vae, text_encoder, tokenizer, image_encoder, files, window)


def _one(folder: Path, pattern: str, files: list[Path]) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        state = "is missing" if not found else f"matches {len(found)} files, one is expected"
        raise UserError(f"{folder / pattern} {state}: fetch the model folder again")
    files.append(found[0])
    return found[0]


def _named(tensors: Tensors, rename: Callable[[str], str | None], source: Path) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        target = rename(name.removeprefix("model.diffusion_model."))
        if target is None:
            raise UserError(
                f"{source} holds {name}, which a Wan model does not have: another model, or an extension of it"
            )
        yield target, tensor


def _transformer(folder: Path, config: Mapping[str, Any], placement: Placement, files: list[Path]) -> Any:
    from diffusers import WanTransformer3DModel

    weights = safetensors_files(folder, STEM)
    files.extend(weights)
    index = folder / f"{STEM}.safetensors.index.json"
    if index.is_file():
        files.append(index)
    settings = config.get("transformer") or _transformer_config(config, _shapes(weights))
    with reading(folder / "config.json"), empty_weights():
        module = WanTransformer3DModel(**settings)
    fill(
        module,
        _named(safetensors(weights), dit_name, folder),
        source=folder,
        dtype=placement.dtype,
        device=placement.device,
        keep_fp32=WanTransformer3DModel._keep_in_fp32_modules,
    )
    return module


def _shapes(weights: list[Path]) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in weights:
        with reading(path), safe_open(str(path), framework="pt", device="cpu") as handle:
            shapes.update((name, tuple(handle.get_slice(name).get_shape())) for name in handle.keys())  # noqa: SIM118
    return shapes


def _transformer_config(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Diffusers configuration from the official one (``dim``, ``num_heads`` ...) and the shapes of the tensors."""
    missing = [key for key in ("dim", "num_heads", "num_layers", "ffn_dim", "in_dim", "out_dim") if key not in config]
    missing += [name for name in ("patch_embedding.weight", "text_embedding.0.weight") if name not in shapes]
    if missing:
        raise UserError(f"config.json and weights are not those of a Wan model: {missing[0]} is missing")
    image = shapes.get("img_emb.proj.0.weight")
    return dict(
        patch_size=tuple(shapes["patch_embedding.weight"][2:]),
        num_attention_heads=config["num_heads"],
        attention_head_dim=config["dim"] // config["num_heads"],
        in_channels=config["in_dim"],
        out_channels=config["out_dim"],
        text_dim=shapes["text_embedding.0.weight"][1],
        freq_dim=config.get("freq_dim", 256),
        ffn_dim=config["ffn_dim"],
        num_layers=config["num_layers"],
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=config.get("eps", 1e-6),
        image_dim=image[0] if image else None,
        added_kv_proj_dim=config["dim"] if image else None,
    )


def _vae(path: Path, config: Mapping[str, Any], placement: Placement) -> Any:
    from diffusers import AutoencoderKLWan

    state = checkpoint(path)
    if "encoder.conv1.weight" not in state or "conv2.weight" not in state:
        raise UserError(f"{path} is not a Wan VAE: fetch the file again")
    found = dict(base_dim=state["encoder.conv1.weight"].shape[0], z_dim=state["conv2.weight"].shape[0])
    with empty_weights():
        module = AutoencoderKLWan(**{**found, **config})
    names = _named(state.items(), vae_name, path)
    fill(module, names, source=path, dtype=torch.float32, device=placement.device)
    return module


def _image_encoder(path: Path, config: Mapping[str, Any], placement: Placement) -> Any:
    from transformers import CLIPVisionConfig

    state = checkpoint(path)
    published = dict(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
        hidden_act="gelu",
    )
    return make_image_encoder(CLIPVisionConfig(**{**published, **config}), clip_tensors(state), path, placement)


def _text_encoder(path: Path, config: Mapping[str, Any], placement: Placement) -> Any:
    from transformers import UMT5Config

    published = dict(
        vocab_size=256384,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
        dense_act_fn="gelu_new",
        is_gated_act=True,
    )
    settings = UMT5Config(**{**published, **config})
    return make_text_encoder(settings, t5_tensors(checkpoint(path)), path, placement)
