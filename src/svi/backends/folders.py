"""Model folders in the diffusers layout: one folder per part, each with its config and safetensors.

Reads the files itself instead of calling ``from_pretrained``, which returns modules without weights after a mere warning
when names do not match, and asks the hub for what it does not find.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from svi.backends.placement import Placement
from svi.backends.weights import Parts, Tensors, empty_weights, fill, read_json, reading, safetensors, safetensors_files
from svi.errors import UserError

TIED_EMBEDDING = "encoder.embed_tokens.weight"


def load(folder: Path, placement: Placement, say: Callable[[str], None]) -> Parts:
    """All parts of a folder with ``model_index.json``.

    Raises:
        UserError: for another kind of model, and for missing, damaged or foreign files.
    """
    index = folder / "model_index.json"
    listed = read_json(index)
    _check_index(index, listed)
    files = [index]
    transformer = _transformer(folder / "transformer", placement, say, files)
    vae = _vae(folder / "vae", placement, say, files)
    text_encoder = _text_encoder(folder / "text_encoder", placement, say, files)
    image_encoder = None
    if transformer.config.image_dim is not None:
        image_encoder = _image_encoder(folder / "image_encoder", placement, say, files)
    tokenizer = load_tokenizer(folder / "tokenizer", files)
    return Parts(transformer, vae, text_encoder, tokenizer, image_encoder, files)


def _check_index(index: Path, listed: dict[str, Any]) -> None:
    kind = listed.get("_class_name")
    names = [entry[1] for entry in listed.values() if isinstance(entry, list) and len(entry) == 2]
    if "WanTransformer3DModel" not in names:
        raise UserError(f"{index} describes {kind or 'no model'}: only Wan image-to-video models are supported")
    if (listed.get("transformer_2") or [None])[0] is not None:
        raise UserError(
            f"{index} describes a model of two experts (Wan 2.2), which is not supported yet: take Wan 2.1 I2V"
        )


def _config(folder: Path, files: list[Path]) -> dict[str, Any]:
    files.append(folder / "config.json")
    return read_json(folder / "config.json")


def _transformer(folder: Path, placement: Placement, say: Callable[[str], None], files: list[Path]) -> Any:
    from diffusers import WanTransformer3DModel

    say("loading transformer")
    return _diffusers_model(WanTransformer3DModel, folder, placement.dtype, placement.device, files)


def _vae(folder: Path, placement: Placement, say: Callable[[str], None], files: list[Path]) -> Any:
    from diffusers import AutoencoderKLWan

    say("loading VAE")
    return _diffusers_model(AutoencoderKLWan, folder, torch.float32, placement.device, files)


def _diffusers_model(kind: Any, folder: Path, dtype: torch.dtype, device: torch.device, files: list[Path]) -> Any:
    config = _config(folder, files)
    if config.get("_class_name", kind.__name__) != kind.__name__:
        raise UserError(f"{folder / 'config.json'} describes {config['_class_name']}, not {kind.__name__}")
    with reading(folder / "config.json"), empty_weights():
        module = kind.from_config(config)
    weights = safetensors_files(folder, "diffusion_pytorch_model")
    files.extend(weights)
    keep = kind._keep_in_fp32_modules or ()
    fill(module, safetensors(weights), source=folder, dtype=dtype, device=device, keep_fp32=keep)
    return module


def _text_encoder(folder: Path, placement: Placement, say: Callable[[str], None], files: list[Path]) -> Any:
    from transformers import UMT5Config

    say("loading text encoder")
    config = _config(folder, files)
    weights = safetensors_files(folder, "model")
    files.extend(weights)
    with reading(folder / "config.json"):
        parsed = UMT5Config.from_dict(config)
    return make_text_encoder(parsed, safetensors(weights), folder, placement)


def make_text_encoder(config: Any, tensors: Tensors, source: Path, placement: Placement) -> Any:
    """UMT5 from tensors by their transformers names; the embedding is stored once or twice, and held once."""
    from transformers import UMT5EncoderModel

    with empty_weights():
        module = UMT5EncoderModel(config)
    stored = ((name, tensor) for name, tensor in tensors if name != TIED_EMBEDDING)
    device, dtype = placement.device, placement.dtype
    fill(module, stored, source=source, dtype=dtype, device=device, optional=[TIED_EMBEDDING], tie=_tie_embedding)
    return module


def _tie_embedding(module: Any) -> None:
    module.set_input_embeddings(module.shared)


def _image_encoder(folder: Path, placement: Placement, say: Callable[[str], None], files: list[Path]) -> Any:
    from transformers import CLIPVisionConfig

    say("loading image encoder")
    config = _config(folder, files)
    weights = safetensors_files(folder, "model")
    files.extend(weights)
    # Folders written by transformers 4 have the prefix; the position ids are computed, not learnt.
    named = ((name.removeprefix("vision_model."), tensor) for name, tensor in safetensors(weights))
    learnt = ((name, tensor) for name, tensor in named if not name.endswith("position_ids"))
    with reading(folder / "config.json"):
        parsed = CLIPVisionConfig.from_dict(config)
    return make_image_encoder(parsed, learnt, folder, placement)


def make_image_encoder(config: Any, tensors: Tensors, source: Path, placement: Placement) -> Any:
    """The vision tower of CLIP from tensors by their transformers names, in fp32."""
    from transformers import CLIPVisionModel

    with empty_weights():
        module = CLIPVisionModel(config)
    fill(module, tensors, source=source, dtype=torch.float32, device=placement.device)
    return module


def load_tokenizer(folder: Path, files: list[Path]) -> Any:
    """The tokenizer in ``folder``, from local files only."""
    from transformers import AutoTokenizer

    found = [path for path in sorted(folder.glob("*")) if path.suffix in {".json", ".model", ".txt"}]
    if not any(path.name in {"tokenizer.json", "spiece.model"} for path in found):
        raise UserError(f"{folder} has no tokenizer.json or spiece.model: fetch the model folder again")
    files.extend(found)
    with reading(folder / "tokenizer_config.json"):
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
