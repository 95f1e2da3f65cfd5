"""Single weight files in one folder, as ComfyUI and its relatives keep them: each is told by its header, none by its name.

    FOLDER/                          or, as ComfyUI sorts them, one folder below:
      wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors      diffusion_models/ or unet/
      wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors       vae/
      wan_2.1_vae.safetensors                               text_encoders/ or clip/
      umt5_xxl_fp8_e4m3fn_scaled.safetensors                clip_vision/
      google/umt5-xxl/ or tokenizer/                        (the tokenizer is a folder of small files)

Of two experts only the file name says which is for high noise. Knows nothing about modules beyond what makes a part.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from svi.backends import official
from svi.backends.folders import image_names, make_image_encoder, make_text_encoder, text_names
from svi.backends.layouts import CLIP_VIT_H, Identity, identify, plain, text_config
from svi.backends.layouts_files import CHECKPOINTS, GGUF, SAFETENSORS, Header, header, shapes_of
from svi.backends.models_parts import Part, PartName, Survey
from svi.backends.weights import Tensors, read_json
from svi.errors import UserError

TOKENIZERS = ("google/umt5-xxl", "tokenizer", "umt5-xxl", ".")
TOWER = "visual."
LORAS = "loras"  # a folder of LoRAs beside the weights is none of the model's files
NEEDED: dict[PartName, str] = {
    "vae": "the VAE (wan_2.1_vae.safetensors or Wan2.1_VAE.pth)",
    "text_encoder": "the text encoder (umt5_xxl_*.safetensors or models_t5_*.pth)",
}


def survey(folder: Path) -> Survey:
    """What lies where in a folder of single files.

    Raises:
        UserError: where a part is missing, comes twice, or is not plain Wan image-to-video.
    """
    found = identified(folder)
    settings = folder / "config.json"
    config = read_json(settings) if settings.is_file() else {}
    encoders = folder / "config-encoders.json"
    sizes = read_json(encoders) if encoders.is_file() else {}
    parts: dict[PartName, Part] = {}
    pair = _transformers(folder, found)
    for name, path in pair.items():
        parts[name] = _transformer(name, path, found[path], config)
    parts["vae"] = _vae(_only(folder, found, "vae"), found, config)
    parts["text_encoder"] = _text(_only(folder, found, "text_encoder"), found, sizes.get("t5", {}))
    names = {plain(name) for name in found[pair["transformer"]][1].shapes}
    if names & {"img_emb.proj.0.weight", "condition_embedder.image_embedder.norm1.weight"}:
        parts["image_encoder"] = _image(_only(folder, found, "image_encoder"), found, sizes.get("clip", {}))
    tokenizer = next((folder / name for name in TOKENIZERS if _is_tokenizer(folder / name)), folder / TOKENIZERS[0])
    documents = [path for path in (settings, encoders) if path.is_file()]
    return Survey(folder, parts, documents, tokenizer=tokenizer)


Found = Mapping[Path, tuple[Identity, Header]]


def identified(folder: Path) -> dict[Path, tuple[Identity, Header]]:
    """Every weight file in ``folder`` and one below, with what it is.

    Raises:
        UserError: for a damaged file.
    """
    suffixes = {SAFETENSORS, GGUF, *CHECKPOINTS}
    paths = [path for pattern in ("*", "*/*") for path in sorted(folder.glob(pattern)) if path.suffix in suffixes]
    kept = [path for path in paths if path.is_file() and path.parent.name != LORAS and not path.name.startswith(".")]
    told = {}
    for path in kept:
        read = header(path)
        told[path] = (identify(read.shapes, quantised=read.quantised), read)
    return told


def _transformers(folder: Path, found: Found) -> dict[PartName, Path]:
    """The file of each transformer: one, or two of which the names say ``high`` and ``low``."""
    paths = [path for path, (identity, _) in found.items() if identity.role == "transformer"]
    if not paths:
        listed = ", ".join(f"{path.name} ({identity})" for path, (identity, _) in found.items())
        raise UserError(f"{folder} has no Wan transformer among its files: {listed}")
    if len(paths) == 1:
        return {"transformer": paths[0]}
    sides: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        sides[noise_side(path.relative_to(folder).as_posix()) or ""].append(path)
    if len(paths) == 2 and len(sides["high"]) == len(sides["low"]) == 1:
        return {"transformer": sides["high"][0], "transformer_2": sides["low"][0]}
    names = ", ".join(path.relative_to(folder).as_posix() for path in paths)
    raise UserError(
        f"{folder} holds {len(paths)} transformers ({names}): link the one you want, or a pair called high and low, into a "
        "folder of their own with VAE, text encoder and tokenizer"
    )


def noise_side(name: str) -> str | None:
    """``high`` or ``low`` where a file name says which expert of Wan 2.2 it is (``..._HIGH_...``, ``low_noise``), else None."""
    words = set(re.findall(r"[a-z]+", name.lower())) | set(re.findall(r"(high|low)(?=noise)", name.lower()))
    sides = words & {"high", "low"}
    return sides.pop() if len(sides) == 1 else None


def _only(folder: Path, found: Found, name: PartName) -> Path:
    paths = [path for path, (identity, _) in found.items() if identity.role == name]
    if len(paths) == 1:
        return paths[0]
    what = NEEDED.get(name, "the CLIP image encoder (clip_vision_h.safetensors or models_clip_*.pth)")
    if not paths:
        raise UserError(f"{folder} lacks {what}: put it or a link to it there")
    names = ", ".join(path.relative_to(folder).as_posix() for path in paths)
    raise UserError(f"{folder} has {what} {len(paths)} times ({names}): keep one")


def _transformer(name: PartName, path: Path, found: tuple[Identity, Header], config: Mapping[str, Any]) -> Part:
    if found[0].naming == "official":
        return official.official_transformer(name, path, [path], config)
    if "transformer" not in config:
        raise UserError(f"{path} has the names of diffusers and no configuration: keep it in the folder it came in")
    from diffusers import WanTransformer3DModel

    def names(stream: Tensors) -> Tensors:
        return ((plain(stored), tensor) for stored, tensor in stream)

    return Part(name, path, (path,), lambda: WanTransformer3DModel(**config["transformer"]), names)


def _vae(path: Path, found: Found, config: Mapping[str, Any]) -> Part:
    if found[path][0].naming == "official":
        return official.vae_part(path, config.get("vae", {}))
    raise UserError(f"{path} has the names of diffusers and no configuration: take the file as Wan or ComfyUI has it")


def _text(path: Path, found: Found, sizes: Mapping[str, Any]) -> Part:
    from transformers import UMT5Config

    identity, read = found[path]
    if identity.naming == "official":
        return official.text_part(path, {**_official_text_sizes(read), **sizes})
    settings = {**text_config(read.shapes), **sizes}
    return Part("text_encoder", path, (path,), lambda: make_text_encoder(UMT5Config(**settings)), text_names)


def _official_text_sizes(read: Header) -> dict[str, Any]:
    """Sizes of a UMT5 under official names, from its shapes under the other ones."""
    import torch

    empty = ((name, torch.empty(shape, device="meta")) for name, shape in read.shapes.items())
    return text_config(shapes_of(official.t5_tensors(empty)))


def _image(path: Path, found: Found, sizes: Mapping[str, Any]) -> Part:
    from transformers import CLIPVisionConfig

    identity, read = found[path]
    if identity.naming == "official":
        part = official.image_part(path, sizes)
        return part if any(name.startswith(TOWER) for name in read.shapes) else replace(part, names=_bare_tower)
    settings = {**CLIP_VIT_H, **sizes}
    return Part("image_encoder", path, (path,), lambda: make_image_encoder(CLIPVisionConfig(**settings)), image_names)


def _bare_tower(stream: Tensors) -> Tensors:
    """The tower of CLIP cut out of its checkpoint, without the word that it had in front of its names there."""
    return official.clip_tensors((f"{TOWER}{name}", tensor) for name, tensor in stream)


def _is_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "spiece.model"))
