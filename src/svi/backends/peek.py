"""What a model folder says about itself, read from its JSON files in milliseconds: shapes and recommended settings.

Lets every input be checked before weights are loaded. Knows the layouts' file names, nothing about modules; what it
cannot read it leaves at Wan 2.1's values, because loading checks again and explains better.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from svi.backends.base import ModelInfo
from svi.backends.weights import SETTINGS_FILE, find_model, layout, read_json
from svi.errors import UserError
from svi.geometry import Geometry

WINDOW = ("height", "width", "num_frames", "fps")


def peek(model: str, *, allow_download: bool = False) -> tuple[Geometry, ModelInfo]:
    """Geometry and recommended settings of ``model``, without its weights; ``info.files`` stays empty.

    Raises:
        UserError: where there is no such model, its folder is no model, or ``svi.json`` is damaged.
    """
    folder = find_model(model, allow_download=allow_download)
    layout(folder)
    settings = folder / SETTINGS_FILE
    defaults: dict[str, Any] = read_json(settings) if settings.is_file() else {}
    vae, transformer = _config(folder / "vae"), _config(folder / "transformer")
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


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return read_json(path) if path.is_file() else {}
