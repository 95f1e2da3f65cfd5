"""DINO and CLIP as extractors of one row per frame, with the preparation of pictures that VBench gives them.

Knows nothing about scores. The networks are transformers' own classes; mode ``"clean"`` antialiases, ``"vbench"`` does
not, and repeats DINO's position embedding of torch.hub.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from svi.backends.placement import choose
from svi.errors import UserError
from svi.evaluation.metrics.extract import Setup, centre_crop, normalise, resized, shorter_side, video_float
from svi.evaluation.metrics.formulas import Mode
from svi.files import read_json

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
LAYER_NORM_EPS = 1e-6  # of the original DINO; the converted config says 1e-12


def dino_positions(table: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Position embeddings for ``rows x columns`` patches as the original DINO stretches them.

    It asks for 0.1 patches more than there are, against rounding, and that shifts every sample; transformers asks for
    the size itself. ``(1, 1 + side^2, d)`` to ``(1, 1 + rows * columns, d)``.

    Source: ``interpolate_pos_encoding`` of facebookresearch/dino, vision_transformer.py.
    """
    side = math.isqrt(table.shape[1] - 1)
    if rows == columns == side:
        return table
    grid = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = ((rows + 0.1) / side, (columns + 0.1) / side)
    stretched = torch.nn.functional.interpolate(grid, scale_factor=scale, mode="bicubic")
    assert stretched.shape[-2:] == (rows, columns)
    return torch.cat([table[:, :1], stretched.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


class DinoEncoder:
    """Class tokens of a DINO vision transformer: ``(n, H, W, 3)`` uint8 to ``(n, d)`` float32.

    The whole frame, its shorter side the one that the network was trained for (224), bilinear.
    """

    def __init__(self, model: Any, mode: Mode, key: str = "") -> None:
        self.key = key
        self._model, self._mode = model.eval(), mode
        self._side: int = model.config.image_size
        if mode == "vbench":
            embeddings, patch = model.embeddings, model.config.patch_size

            def positions(_tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
                return dino_positions(embeddings.position_embeddings, height // patch, width // patch)

            embeddings.interpolate_pos_encoding = positions

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        images = video_float(frames, self._model.device)
        size = shorter_side(images.shape[-2], images.shape[-1], self._side)
        images = normalise(resized(images, size, "bilinear", self._mode), *IMAGENET)
        out = self._model(pixel_values=images.to(self._model.dtype), interpolate_pos_encoding=True)
        return _rows(out.last_hidden_state[:, 0])


class ClipEncoder:
    """CLIP image embeddings, not normalised: ``(n, H, W, 3)`` uint8 to ``(n, d)`` float32.

    Args:
        model: transformers' ``CLIPVisionModelWithProjection``.
        mode: how pictures are resized.
        whole: take the whole frame, with stretched position embeddings, instead of the middle square, which is only
            58 % of a 16:9 frame.
        key: what the embeddings depend on.
    """

    def __init__(self, model: Any, mode: Mode, *, whole: bool = False, key: str = "") -> None:
        self.key = key
        self._model, self._mode, self._whole = model.eval(), mode, whole
        self._side: int = model.config.image_size

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        images = video_float(frames, self._model.device)
        size = shorter_side(images.shape[-2], images.shape[-1], self._side)
        images = resized(images, size, "bicubic", self._mode)
        if not self._whole:
            images = centre_crop(images, self._side)
        images = normalise(images, *CLIP).to(self._model.dtype)
        return _rows(self._model(pixel_values=images, interpolate_pos_encoding=self._whole).image_embeds)


def load_dino(path: Path, setup: Setup) -> DinoEncoder:
    """DINO ViT-B/16 from a folder of the transformers layout.

    Raises:
        UserError: the folder lacks weights of the network.
    """
    from transformers import ViTModel

    return DinoEncoder(_load(ViTModel, path, setup, add_pooling_layer=False, layer_norm_eps=LAYER_NORM_EPS), setup.mode)


def load_clip(path: Path, setup: Setup, *, whole: bool = False) -> ClipEncoder:
    """A CLIP vision tower from a folder of the transformers layout (a whole CLIP; its text half is not read).

    Raises:
        UserError: the folder lacks weights of the network.
    """
    from transformers import CLIPVisionModelWithProjection

    # The width of the embedding stands beside the two towers' own settings; the vision tower alone would not see it.
    width = read_json(path / "config.json").get("projection_dim")
    more = {} if width is None else {"projection_dim": width}
    return ClipEncoder(_load(CLIPVisionModelWithProjection, path, setup, **more), setup.mode, whole=whole)


def _load(kind: Any, path: Path, setup: Setup, **settings: Any) -> Any:
    """A network whose every weight came from the folder: transformers would fill gaps with random numbers."""
    from transformers.utils import logging

    place = choose(setup.device, setup.dtype)
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # the half of CLIP that is not read is no news
    try:
        model, report = kind.from_pretrained(
            path, dtype=place.dtype, local_files_only=True, output_loading_info=True, **settings
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} cannot be read as {kind.__name__} ({str(error)[:120]}): fetch it again") from error
    finally:
        logging.set_verbosity(before)
    absent = [str(name) for name in (*report["missing_keys"], *report["mismatched_keys"])]
    if absent:
        raise UserError(f"{path} lacks weights of {kind.__name__} ({', '.join(sorted(absent)[:3])}): fetch it again")
    return model.to(place.device)


def _rows(features: torch.Tensor) -> np.ndarray:
    return features.float().cpu().numpy()
