"""Model folders in the official Wan layout: name maps, and what lies where.

The DiT lies in safetensors shards (the two of Wan 2.2 A14B in ``high_noise_model`` and ``low_noise_model``), VAE, CLIP and UMT5
in ``.pth`` files, all under the names of the published code. Sizes are read off the tensors' shapes where they show there, so
that the sparse official ``config.json`` suffices; ``config-encoders.json`` (``clip``, ``t5``) overrides the sizes of the encoders
for models that are not the published ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from svi.backends.folders import make_image_encoder, make_text_encoder
from svi.backends.layouts import CLIP_VIT_H, UMT5_XXL, extension_of, plain, transformer_config, vae_config
from svi.backends.layouts_files import headers, shapes_of
from svi.backends.models_parts import Part, PartName, Survey
from svi.backends.models_parts import load as load_survey
from svi.backends.placement import Placement
from svi.backends.weights import EXPERT_FOLDERS, Parts, Tensors, read_json, safetensors_files
from svi.backends.weights import OFFICIAL_STEM as STEM
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


def clip_tensors(stream: Tensors) -> Tensors:
    """The vision tower out of an official CLIP checkpoint, by transformers names; everything else is passed over."""
    for name, tensor in stream:
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


def t5_tensors(stream: Tensors) -> Tensors:
    """An official UMT5 encoder checkpoint by transformers names."""
    top = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
    for name, tensor in stream:
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
    nested = re.fullmatch(r"(?:down|up)samples\.(\d+)\.(.+)", rest)
    if nested is not None:
        return _nested_vae_name(side, index, nested[1], nested[2])
    if group == "downsamples":
        return f"{side}.down_blocks.{index}.{inner}"
    # A block of the decoder is one residual block more than the encoder's, then the upsampler.
    block, place = divmod(int(index), res_blocks + 2)
    layer = f"resnets.{place}" if place <= res_blocks else "upsamplers.0"
    return f"{side}.up_blocks.{block}.{layer}.{inner}"


def _nested_vae_name(side: str, block: str, place: str, rest: str) -> str | None:
    """The VAE of Wan 2.2 keeps the layers of a block in a list of its own: residual blocks, then the change of size."""
    part, resize = ("down_blocks", "downsampler") if side == "encoder" else ("up_blocks", "upsampler")
    if rest.startswith(("resample.", "time_conv.")):
        return f"{side}.{part}.{block}.{resize}.{rest}"
    inner = _split(rest, VAE_RESIDUAL) or rest.replace("shortcut.", "conv_shortcut.")
    return f"{side}.{part}.{block}.resnets.{place}.{inner}"


# -- reader ------------------------------------------------------------------------------------------------------------


def load(
    folder: Path, placement: Placement, say: Callable[[str], None] = lambda line: None, *, need_tokenizer: bool = True
) -> Parts:
    """All parts of an official folder. ``need_tokenizer=False``: go without where there is none.

    Raises:
        UserError: for missing, damaged or foreign files, each named with the remedy.
    """
    return load_survey(survey(folder, need_tokenizer=need_tokenizer), placement, say)


def survey(folder: Path, *, need_tokenizer: bool = True) -> Survey:
    """What lies where in an official folder.

    Raises:
        UserError: for missing, damaged or foreign files.
    """
    pair = any((folder / name).is_dir() for name in EXPERT_FOLDERS)
    places = [folder / name for name in EXPERT_FOLDERS] if pair else [folder]
    names: tuple[PartName, ...] = ("transformer", "transformer_2")
    files: list[Path] = []
    config = read_json(places[0] / "config.json")
    if pair and (folder / "config.json").is_file():
        files.append(folder / "config.json")
        config = {**config, **read_json(files[-1])}
    encoders: dict[str, Any] = {}
    if (folder / "config-encoders.json").is_file():
        files.append(folder / "config-encoders.json")
        encoders = read_json(files[-1])
    parts: dict[PartName, Part] = {
        name: transformer_part(name, place, read_json(place / "config.json"))
        for name, place in zip(names, places, strict=False)
    }
    parts["vae"] = vae_part(one(folder, "*VAE.pth"), config.get("vae", {}))
    parts["text_encoder"] = text_part(one(folder, "models_t5_*.pth"), encoders.get("t5", {}))
    if "img_emb.proj.0.weight" in shapes_of(headers(parts["transformer"].files)):
        parts["image_encoder"] = image_part(one(folder, "models_clip_*.pth"), encoders.get("clip", {}))
    tokenizer = folder / TOKENIZER
    found = Survey(folder, parts, files, {key: config[key] for key in WINDOW if key in config})
    found.tokenizer = tokenizer if need_tokenizer or tokenizer.is_dir() else None
    return found


WINDOW = ("height", "width", "num_frames")


def one(folder: Path, pattern: str) -> Path:
    """The only file of that pattern in ``folder``.

    Raises:
        UserError: where there is none, or several.
    """
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        state = "is missing" if not found else f"matches {len(found)} files, one is expected"
        raise UserError(f"{folder / pattern} {state}: fetch the model folder again")
    return found[0]


def named(stream: Tensors, rename: Callable[[str], str | None], source: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors by the names that ``rename`` gives; one that it has no name for is an error."""
    for name, tensor in stream:
        target = rename(plain(name))
        if target is None:
            extension = extension_of([name])
            what = f"the {extension} extension of it" if extension else "another model, or an extension of it"
            raise UserError(f"{source} holds {name}, which a Wan model does not have: {what}")
        yield target, tensor


def transformer_part(name: PartName, place: Path, config: Mapping[str, Any]) -> Part:
    """The transformer whose shards lie in ``place`` beside its ``config.json``."""
    weights = safetensors_files(place, STEM)
    index = place / f"{STEM}.safetensors.index.json"
    documents = (place / "config.json", *([index] if index.is_file() else []))
    return official_transformer(name, place, weights, config, documents)


def official_transformer(
    name: PartName, place: Path, files: Iterable[Path], config: Mapping[str, Any], documents: tuple[Path, ...] = ()
) -> Part:
    """A transformer under official names in ``files``; ``config`` as Wan's own, or with all of diffusers' under ``transformer``."""
    from diffusers import WanTransformer3DModel

    weights = tuple(files)

    def make() -> Any:
        found = {plain(key): shape for key, shape in shapes_of(headers(weights)).items()}
        return WanTransformer3DModel(**(config.get("transformer") or transformer_config(found, config)))

    return Part(name, place, weights, make, partial(_dit_names, source=place), documents)


def _dit_names(stream: Tensors, *, source: Path) -> Tensors:
    return named(stream, dit_name, source)


def vae_part(path: Path, config: Mapping[str, Any]) -> Part:
    """The VAE in one file under official names; ``config`` overrides what its shapes say."""
    from diffusers import AutoencoderKLWan

    def make() -> Any:
        try:
            found = vae_config(shapes_of(headers([path])))
        except UserError as error:
            raise UserError(f"{path} is {error}: fetch the file again") from None
        return AutoencoderKLWan(**{**found, **config})

    return Part("vae", path, (path,), make, lambda stream: named(stream, vae_name, path))


def image_part(path: Path, config: Mapping[str, Any]) -> Part:
    """The CLIP tower in one file under official names; it has the published sizes but where ``config`` says otherwise."""
    from transformers import CLIPVisionConfig

    settings = {**CLIP_VIT_H, **config}
    return Part("image_encoder", path, (path,), lambda: make_image_encoder(CLIPVisionConfig(**settings)), clip_tensors)


def text_part(path: Path, config: Mapping[str, Any]) -> Part:
    """The UMT5 in one file under official names; it has the published sizes but where ``config`` says otherwise."""
    from transformers import UMT5Config

    settings = {**UMT5_XXL, **config}
    return Part("text_encoder", path, (path,), lambda: make_text_encoder(UMT5Config(**settings)), t5_tensors)
