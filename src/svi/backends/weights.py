"""Finding and reading model folders: which layout, which files, are they whole.

Every tensor is read by itself, checked against the module it belongs to and placed in its final type, so that loading
holds the model plus one tensor; nothing is left over, nothing is left without a value. Reading is the same for both
layouts, they differ in names only. Nothing here goes to the network unless ``allow_download`` says so.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from svi.backends import models_hashes
from svi.backends.catalogue import MODELS
from svi.backends.placement import Placement
from svi.errors import UserError, nearest

SETTINGS_FILE = "svi.json"
OFFICIAL_STEM = "diffusion_pytorch_model"
POCKET = "pocket"
# Short names of models on the hub, in the diffusers layout.
REGISTERED: dict[str, str] = {model.name: model.hub_id for model in MODELS}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.pth"]  # .pth: VAE and encoders of the official layout
# The experts of Wan 2.2: folders of the official layout, high noise first.
EXPERT_FOLDERS = ("high_noise_model", "low_noise_model")
# Where single weight files lie: in the folder itself, or one below, as ComfyUI sorts them.
LOOSE = ("*.safetensors", "*.gguf", "*/*.safetensors", "*/*.gguf")

Tensors = Iterable[tuple[str, Tensor]]


@dataclass
class Parts:
    """The loaded parts of a model, the files they came from and the settings the folder recommends.

    Attributes:
        transformer: of a model of two experts (Wan 2.2 A14B) the one for high noise.
        text_encoder: None where it is left for later.
        experts: how to read the two transformers, ``high`` and ``low``; empty for a model of one.
        boundary: noise level at which the model's authors change experts.
        read_text: reads the text encoder that was left for later; None where it is loaded.
        text_files: all that decide what a prompt is turned into: of the text encoder and of the tokenizer.
        stored: how the files of the transformer hold their numbers where they are quantised; None = as they are.
    """

    transformer: Any
    vae: Any
    text_encoder: Any | None
    tokenizer: Any | None
    image_encoder: Any | None
    files: list[Path] = field(default_factory=list)
    defaults: dict[str, Any] = field(default_factory=dict)
    experts: dict[str, Callable[[], Any]] = field(default_factory=dict)
    boundary: float | None = None
    read_text: Callable[[], Any] | None = None
    text_files: list[Path] = field(default_factory=list)
    stored: str | None = None


# -- which folder ------------------------------------------------------------------------------------------------------


def find_model(model: str, *, allow_download: bool = False) -> Path:
    """The folder of a model by name, path or hub id.

    Raises:
        UserError: where there is none; the message names the nearest known name or the command that fetches it.
    """
    if model == POCKET:
        from importlib.resources import files

        folder = Path(str(files("svi.pocket").joinpath("assets", "model")))
        if not folder.is_dir():
            raise UserError("this installation lacks the pocket model: reinstall, or build it with `svi pocket build`")
        return folder
    path = Path(model).expanduser()
    if model and path.is_dir():
        return path
    if path.is_file():
        raise UserError(f"{model} is a file, not a model folder: give the folder that holds it")
    hub_id = REGISTERED.get(model, model)
    if not HUB_ID.fullmatch(hub_id):
        if len(path.parts) > 1:
            raise UserError(f"there is no folder {model}: give a model folder, or {POCKET!r} for the built-in model")
        raise UserError(
            f"unknown model {model!r}: {nearest(model, [POCKET, *REGISTERED])} (or give a folder or a hub id)"
        )
    return _from_hub(model, hub_id, allow_download)


def _from_hub(model: str, hub_id: str, allow_download: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=HUB_FILES, local_files_only=not allow_download))
    except Exception as error:  # the hub client has a dozen kinds, all of which mean: it is not here
        if allow_download:
            raise UserError(f"could not download {hub_id}: {error}") from error
        raise UserError(
            f"model {model!r} is neither a folder nor downloaded yet: `svi models download {model}` fetches it from the "
            "Hugging Face hub, and so does --download before a video; or give a folder that holds it"
        ) from None


def layout(folder: Path) -> Literal["diffusers", "official", "loose"]:
    """Which layout a model folder has: diffusers', Wan's own, or single files as ComfyUI keeps them.

    Raises:
        UserError: for a folder that is no model.
    """
    if (folder / "model_index.json").is_file():
        return "diffusers"
    if (folder / "config.json").is_file() and any(folder.glob(f"{OFFICIAL_STEM}*.safetensors*")):
        return "official"
    if any((folder / name).is_dir() for name in EXPERT_FOLDERS):
        return "official"
    if any(found for pattern in LOOSE for found in folder.glob(pattern)):
        return "loose"
    raise UserError(
        f"{folder} is no model folder: it has neither model_index.json (diffusers layout) nor config.json with "
        f"{OFFICIAL_STEM}*.safetensors (official Wan layout), nor single weight files"
    )


def load_parts(
    folder: Path,
    placement: Placement,
    say: Callable[[str], None] = lambda line: None,
    *,
    expert: Literal["high", "low"] | None = None,
    late_text: bool | None = False,
) -> Parts:
    """Load all parts of a model folder in any layout.

    Args:
        expert: one of the two of Wan 2.2 A14B alone.
        late_text: whether the text encoder is only checked and left to ``Parts.read_text``; None = where its files are large.

    Raises:
        UserError: for a folder that is no model, and for missing, damaged or foreign files in it.
    """
    from svi.backends.models_parts import load, survey

    found = survey(folder)
    parts = load(found if expert is None else found.only(expert), placement, say, late_text=late_text)
    settings = folder / SETTINGS_FILE
    if settings.is_file():
        parts.files.append(settings)
        parts.defaults.update(read_json(settings))
    return parts


# -- reading files -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a library raises about ``path`` into one line that names it and the remedy."""
    from safetensors import SafetensorError

    remedy = "fetch the file again"
    try:
        if path.stat().st_size < 1024 and path.read_bytes().startswith(b"version https://git-lfs"):
            raise UserError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder")
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {remedy}") from None
    except (SafetensorError, pickle.UnpicklingError, EOFError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).split("\n", 1)[0][:120]
        raise UserError(f"{path} is damaged, cut short or not what its name says ({reason}): {remedy}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        return content


def safetensors_files(folder: Path, stem: str) -> list[Path]:
    """The weight files called ``stem`` in ``folder``: one file, or the shards that its index lists."""
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        if single.is_file():
            return [single]
        raise UserError(f"{single} is missing: fetch the model folder again (only .safetensors weights are read here)")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise UserError(f"{index} has no weight_map: fetch the file again")
    shards = [folder / name for name in sorted({str(name) for name in weight_map.values()})]
    for shard in shards:
        if not shard.is_file():
            raise UserError(f"{shard} is missing, though {index.name} lists it: fetch the file again")
    return shards


def safetensors(paths: Sequence[Path]) -> Tensors:
    """Names and tensors of safetensors files, one tensor in memory at a time."""
    from safetensors import safe_open

    for path in paths:
        with reading(path):
            handle: Any = safe_open(str(path), framework="pt", device="cpu")
        with handle:
            for name in list(handle.keys()):
                with reading(path):
                    tensor = handle.get_tensor(name)
                yield name, tensor


def checkpoint(path: Path, *, headers: bool = False) -> dict[str, Tensor]:
    """A ``.pth`` file of plain tensors. Never unpickles anything else.

    Args:
        headers: names and shapes only: tensors on the meta device.
    """
    with reading(path):
        where = "meta" if headers else "cpu"
        content = torch.load(path, map_location=where, weights_only=True, mmap=zipfile.is_zipfile(path))
    while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds something other than named tensors: fetch the file again")
    return content


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep diffusers and transformers from logging what is checked here anyway."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    before = [(log, log.get_verbosity()) for log in (diffusers_logging, transformers_logging)]
    for log, _ in before:
        log.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            # Several LoRAs on one model are meant.
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            yield
    finally:
        for log, level in before:
            log.set_verbosity(level)


# -- filling modules ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def empty_weights() -> Iterator[None]:
    """Modules made inside have parameters without storage and buffers with their values."""
    import accelerate

    with accelerate.init_empty_weights(include_buffers=False):
        yield


def checked(module: Any, tensors: Tensors, *, source: Path, optional: Iterable[str] = ()) -> Tensors:
    """``tensors``, each known to belong to ``module`` in its shape; at the end, none is missing.

    Args:
        source: what to name in errors.
        optional: names that may be absent.

    Raises:
        UserError: for a tensor that the module does not have or has in another shape, one that comes twice, and one that
            is missing.
    """
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    seen: set[str] = set()
    for name, tensor in tensors:
        if name in seen:
            raise UserError(f"{source} holds {name} twice: two files of the same kind lie there, keep one")
        if name not in wanted:
            raise UserError(
                f"{source} holds {name}, which {type(module).__name__} lacks: config and weights do not fit"
            )
        if wanted[name] != tuple(tensor.shape):
            raise UserError(
                f"{source}: {name} is {tuple(tensor.shape)}, the config says {wanted[name]}: they do not fit"
            )
        seen.add(name)
        yield name, tensor
    missing = sorted(wanted.keys() - seen - set(optional))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{source} lacks {missing[0]}{more}: fetch the file again")


def fill(
    module: Any,
    tensors: Tensors,
    *,
    source: Path,
    dtype: torch.dtype,
    device: torch.device,
    keep_fp32: Sequence[str] = (),
    optional: Iterable[str] = (),
    tie: Callable[[Any], None] | None = None,
) -> None:
    """Give every parameter of ``module`` its tensor, and its evaluation mode.

    Args:
        tensors: names as in the module's state dict, with their values.
        source: what to name in errors.
        keep_fp32: parts of names whose tensors stay in fp32 whatever ``dtype``.
        optional: names that may be absent, because ``tie`` (called when all else is filled) ties them to others.

    Raises:
        UserError: as :func:`checked`; and for NaN or infinity, which would spread over every picture.
    """
    for name, tensor in checked(module, tensors, source=source, optional=optional):
        exact = any(part in name.split(".") for part in keep_fp32)
        # A copy even where nothing changes: a tensor mapped from the file would change or fail with it during a run.
        value = tensor.to(device, torch.float32 if exact else dtype, copy=True).contiguous()
        _refuse_nan(name, value, source)
        owner, _, leaf = name.rpartition(".")
        parent = module.get_submodule(owner)
        if leaf in parent._parameters:
            parent.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
        else:
            parent.register_buffer(leaf, value)
    if tie is not None:
        tie(module)
    module.to(device).eval().requires_grad_(False)


def _refuse_nan(name: str, value: Tensor, source: Path) -> None:
    # A sum is one pass without a copy; only where it is not finite is it worth while to look closer.
    if not value.sum(dtype=torch.float32).isfinite() and not value.isfinite().all():
        raise UserError(f"{source}: {name} holds NaN or infinity in {str(value.dtype)[6:]}: fetch the file again")


# -- identity ----------------------------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    """Hash of a file, computed once while its size and time do not change."""
    return models_hashes.sha256(path)


def hashes(folder: Path, files: Iterable[Path]) -> Mapping[str, str]:
    """``{name relative to folder: sha256}``, sorted by name."""
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(set(files))}
