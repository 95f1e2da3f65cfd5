"""Model folders in the diffusers layout: one folder per part, each with its config and safetensors.

Reads the files itself instead of calling ``from_pretrained``, which returns modules without weights after a mere warning
when names do not match, and asks the hub for what it does not find.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from svi.backends.models_parts import Part, PartName, Survey
from svi.backends.models_parts import load as load_survey
from svi.backends.placement import Placement
from svi.backends.weights import Parts, Tensors, read_json, reading, safetensors_files
from svi.errors import UserError

STEMS = {"text_encoder": "model", "image_encoder": "model"}  # of the weight files; the parts of diffusers have another
STEM = "diffusion_pytorch_model"


def load(folder: Path, placement: Placement, say: Callable[[str], None] = lambda line: None) -> Parts:
    """All parts of a folder with ``model_index.json``.

    Raises:
        UserError: for another kind of model, and for missing, damaged or foreign files.
    """
    return load_survey(survey(folder), placement, say)


def survey(folder: Path) -> Survey:
    """What lies where in a folder with ``model_index.json``.

    Raises:
        UserError: for another kind of model, and for missing files.
    """
    index = folder / "model_index.json"
    listed = read_json(index)
    _check_index(index, listed)
    second = (listed.get("transformer_2") or [None])[0] is not None
    names: tuple[PartName, ...] = ("transformer", "transformer_2", "vae", "text_encoder")
    parts = {name: part(name, folder / name) for name in names if second or name != "transformer_2"}
    if read_json(folder / "transformer" / "config.json").get("image_dim") is not None:
        parts["image_encoder"] = part("image_encoder", folder / "image_encoder")
    boundary = listed.get("boundary_ratio")
    if not isinstance(boundary, int | float | None):
        raise UserError(f"{index}: boundary_ratio is {boundary!r}, not a number: fetch the file again")
    return Survey(folder, parts, [index], boundary=boundary, tokenizer=folder / "tokenizer")


def _check_index(index: Path, listed: dict[str, Any]) -> None:
    kind = listed.get("_class_name")
    names = [entry[1] for entry in listed.values() if isinstance(entry, list) and len(entry) == 2]
    if "WanTransformer3DModel" not in names:
        raise UserError(f"{index} describes {kind or 'no model'}: only Wan image-to-video models are supported")


def part(name: PartName, place: Path) -> Part:
    """One part of a model in its folder.

    Raises:
        UserError: for a configuration of another class, and for missing files.
    """
    documents = [place / "config.json"]
    config = read_json(documents[0])
    stem = STEMS.get(name, STEM)
    weights = safetensors_files(place, stem)
    index = place / f"{stem}.safetensors.index.json"
    documents += [index] if index.is_file() else []
    make, names = _MAKERS.get(name, _diffusers_model)(config, documents[0])
    return Part(name, place, tuple(weights), make, names, tuple(documents))


Maker = tuple[Callable[[], Any], Callable[[Tensors], Tensors]]


def _diffusers_model(config: dict[str, Any], document: Path) -> Maker:
    import diffusers

    kind = diffusers.AutoencoderKLWan if document.parent.name == "vae" else diffusers.WanTransformer3DModel
    if config.get("_class_name", kind.__name__) != kind.__name__:
        raise UserError(f"{document} describes {config['_class_name']}, not {kind.__name__}")
    return lambda: kind.from_config(config), lambda stream: stream


def _text_encoder(config: dict[str, Any], document: Path) -> Maker:
    from transformers import UMT5Config

    with reading(document):
        parsed = UMT5Config.from_dict(config)
    return lambda: make_text_encoder(parsed), text_names


def _image_encoder(config: dict[str, Any], document: Path) -> Maker:
    from transformers import CLIPVisionConfig

    with reading(document):
        parsed = CLIPVisionConfig.from_dict(config)
    return lambda: make_image_encoder(parsed), image_names


_MAKERS: dict[str, Callable[[dict[str, Any], Path], Maker]] = {
    "text_encoder": _text_encoder,
    "image_encoder": _image_encoder,
}


def text_names(stream: Tensors) -> Tensors:
    """UMT5 by transformers names; the embedding is stored once or twice, and held once."""
    seen: set[str] = set()
    for name, tensor in stream:
        target = SHARED_EMBEDDING if name in {SHARED_EMBEDDING, TIED_EMBEDDING} else name
        if target == SHARED_EMBEDDING and target in seen:
            continue
        seen.add(target)
        yield target, tensor


SHARED_EMBEDDING = "shared.weight"
TIED_EMBEDDING = "encoder.embed_tokens.weight"


def image_names(stream: Tensors) -> Tensors:
    """The tower of CLIP by transformers names."""
    for name, tensor in stream:
        # Folders written by transformers 4 have the prefix; the position ids are computed, not learnt; the projection to
        # the text's space lies behind the layer that Wan reads.
        if not name.endswith("position_ids") and not name.startswith("visual_projection."):
            yield name.removeprefix("vision_model."), tensor


def make_text_encoder(config: Any) -> Any:
    """A UMT5 of this configuration."""
    from transformers import UMT5EncoderModel

    return UMT5EncoderModel(config)


def make_image_encoder(config: Any) -> Any:
    """The vision tower of a CLIP of this configuration."""
    from transformers import CLIPVisionModel

    return CLIPVisionModel(config)


def load_tokenizer(folder: Path, files: list[Path]) -> Any:
    """The tokenizer in ``folder``, from local files only."""
    from transformers import AutoTokenizer

    found = [path for path in sorted(folder.glob("*")) if path.suffix in {".json", ".model", ".txt"}]
    if not any(path.name in {"tokenizer.json", "spiece.model"} for path in found):
        raise UserError(f"{folder} has no tokenizer.json or spiece.model: fetch the model folder again")
    files.extend(found)
    with reading(folder / "tokenizer_config.json"):
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
