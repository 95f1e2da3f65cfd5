"""What a model folder says about itself, read from its JSON files in milliseconds: shapes and recommended settings.

Lets every input be checked before weights are loaded. Knows the layouts' file names, nothing about modules; what it
cannot read it leaves at Wan 2.1's values, because loading checks again and explains better.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from svi.backends.base import ModelInfo
from svi.backends.catalogue import MODELS
from svi.backends.weights import EXPERT_FOLDERS, SETTINGS_FILE, find_model, layout, read_json
from svi.errors import UserError
from svi.geometry import Geometry

WINDOW = ("height", "width", "num_frames", "fps")
NEWER_VAE = {"z_dim": 48, "scale_factor_spatial": 16}  # of Wan 2.2 TI2V-5B


def peek(model: str, *, allow_download: bool = False) -> tuple[Geometry, ModelInfo]:
    """Geometry and recommended settings of ``model``, without its weights; ``info.files`` stays empty.

    Raises:
        UserError: where there is no such model, its folder is no model, or ``svi.json`` is damaged.
    """
    folder = find_model(model, allow_download=allow_download)
    vae, transformer, defaults = _described(folder, layout(folder))
    settings = folder / SETTINGS_FILE
    defaults |= read_json(settings) if settings.is_file() else {}
    temporal = vae.get("scale_factor_temporal", 4)
    spatial = vae.get("scale_factor_spatial", 8)
    patch = transformer.get("patch_size", (1, 2, 2))
    try:
        geometry = Geometry(
            latent_channels=int(vae.get("z_dim", 16)),
            temporal_scale=int(temporal),
            spatial_scale=int(spatial),
            patch=(int(patch[0]), int(patch[1]), int(patch[2])),
            **{key: int(defaults[key]) for key in WINDOW if key in defaults},
        )
    except (TypeError, ValueError, IndexError) as error:
        raise UserError(f"the configuration of {folder} is damaged ({error}): fetch the model folder again") from None
    return geometry, ModelInfo(name=model, defaults=defaults)


def _described(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Configurations of VAE and transformer as far as JSON files have them, and the recommended window."""
    if kind == "diffusers":
        vae, transformer = _config(folder / "vae"), _config(folder / "transformer")
        return vae, transformer, recommended(vae.get("z_dim", 16))
    config = _config(folder) or _config(folder / EXPERT_FOLDERS[0])
    transformer = config.get("transformer", {})
    latents = config.get("out_dim") or transformer.get("out_channels") or _latents_of_files(folder, kind)
    window = {key: config[key] for key in WINDOW if key in config}
    vae = dict(NEWER_VAE) if latents == NEWER_VAE["z_dim"] else {"z_dim": latents}
    return vae, transformer, {**recommended(latents), **window}


def _latents_of_files(folder: Path, kind: str) -> int:
    """Channels of the latents, where only the headers of weight files tell."""
    if kind != "loose":
        return 16
    from svi.backends.layouts_loose import identified

    for identity, read in identified(folder).values():
        if identity.role == "vae":
            return read.shapes.get("conv2.weight", (16,))[0]
    return 16


def recommended(latent_channels: object) -> dict[str, Any]:
    """What the authors of the model with these latents recommend where it is not Wan 2.1's."""
    if latent_channels != NEWER_VAE["z_dim"]:
        return {}
    return dict(next(model.defaults for model in MODELS if model.kind == "in place"))


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return read_json(path) if path.is_file() else {}
