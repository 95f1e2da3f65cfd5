"""The reference image: from whatever a user hands in to the ``(H, W, 3)`` uint8 tensor that a run starts from.

Knows nothing about runs or models beyond a :class:`~svi.geometry.Geometry`. Orientation tags are applied, transparency
is laid on white (what browsers show), 16-bit values are scaled to 8 bits, an animation gives its first frame.

Size, as published: an image no wider than the training width keeps its size, a wider one is scaled to that width;
both sides are then floored to multiples of ``Geometry.size_multiple`` and the image is squashed (not cropped) by the
few pixels this takes, with the same bicubic filter. Only the width is limited, so a tall portrait comes out far above
the trained area, which is refused beyond ``MAX_AREA`` times it.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from svi.errors import UserError
from svi.geometry import Geometry

MAX_PIXELS = 100_000_000
MAX_FILE_BYTES = 256 * 1024 * 1024
MAX_AREA = 8.0
FORMATS = ("PNG", "JPEG", "WEBP")

Source: TypeAlias = "str | PathLike[str] | Image.Image | np.ndarray[Any, Any] | Tensor"


@dataclass(frozen=True)
class Reference:
    """An image ready to start a run.

    Attributes:
        image: ``(H, W, 3)`` uint8.
        notes: what a user should know about how it was converted, one sentence each.
        source: file name as given, or the kind of object.
    """

    image: Tensor
    notes: tuple[str, ...] = ()
    source: str = ""

    @property
    def height(self) -> int:
        return int(self.image.shape[0])

    @property
    def width(self) -> int:
        return int(self.image.shape[1])


def load_reference(source: Source, size: tuple[int, int] | None, geometry: Geometry) -> Reference:
    """Load, convert and resize a reference image.

    Args:
        source: path of a png, jpeg or webp file, a PIL image, or an ``(H, W)`` or ``(H, W, 1|3|4)`` uint8 array.
        size: ``(width, height)`` in pixels; None = derived from the image by the published rule.
        geometry: of the model that will animate it.

    Raises:
        UserError: no such image, not an image, truncated, too large, or a size that the model cannot take.
    """
    name = str(source) if isinstance(source, str | PathLike) else type(source).__name__
    notes: list[str] = []
    with _readable(name):
        image = _opened(source, name, notes)
        _check_pixels(image.size, name)
        image = _to_rgb(image, notes)
    width, height = size or derived_size(image.width, image.height, geometry)
    try:
        geometry.check_size(height, width)
    except ValueError as error:
        raise UserError(str(error)) from None
    notes += _size_notes(image.size, (width, height), geometry, derived=size is None)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return Reference(torch.from_numpy(np.array(image, dtype=np.uint8)), tuple(notes), name)


def derived_size(width: int, height: int, geometry: Geometry) -> tuple[int, int]:
    """The published rule (``calculate_dimensions``): ``(width, height)``, at least one ``size_multiple`` each."""
    step = geometry.size_multiple
    if width > geometry.width:
        width, height = geometry.width, int(height * geometry.width / width)
    return max(step, width // step * step), max(step, height // step * step)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """One UserError for everything that a decoder can raise on bad bytes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns from 89 MP on; our own cap is checked before decoding
            yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"image {name} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{name} is a folder, not an image") from None
    except PermissionError:
        raise UserError(f"cannot read image {name}: permission denied") from None
    except Image.DecompressionBombError:
        raise UserError(f"image {name} has more than {MAX_PIXELS // 10**6} megapixels: scale it down first") from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, struct.error, MemoryError) as error:
        raise UserError(f"image {name} is damaged or truncated: {error}") from None


def _opened(source: Source, name: str, notes: list[str]) -> Image.Image:
    if isinstance(source, Image.Image):
        return source.copy()
    if isinstance(source, Tensor | np.ndarray):
        return _from_array(source)
    path = Path(source)
    if path.is_dir():
        raise IsADirectoryError(name)
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"image {name} is empty")
    if size > MAX_FILE_BYTES:
        raise UserError(f"image {name} has {size // 2**20} MiB, more than {MAX_FILE_BYTES // 2**20}")
    try:
        image = Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        raise UserError(f"{name} is not a png, jpeg or webp image") from None
    _check_pixels(image.size, name)
    if getattr(image, "n_frames", 1) > 1:
        notes.append(f"{name} is an animation: its first frame is used")
        image.seek(0)
    image.load()
    return image


def _from_array(source: Tensor | np.ndarray[Any, Any]) -> Image.Image:
    array = source.detach().cpu().numpy() if isinstance(source, Tensor) else source
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise UserError(f"an image array must be uint8 (H, W) or (H, W, 1|3|4), not {array.dtype} {array.shape}")
    if 0 in array.shape:
        raise UserError(f"an image array must not be empty, but has shape {array.shape}")
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array))


def _check_pixels(size: tuple[int, int], name: str) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise UserError(
            f"image {name} has {size[0]}x{size[1]} pixels, more than {MAX_PIXELS // 10**6} megapixels: scale it down first"
        )


def _to_rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bit(image)
        notes.append("16-bit image scaled to 8 bits")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        if image.getchannel("A").getextrema() != (255, 255):
            notes.append("transparent parts were laid on white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit greys by 255/65535, rounded; Pillow's own conversion clips them to white instead."""
    values = np.asarray(image).astype(np.float64)
    top = 65535.0 if image.mode.startswith("I") else 1.0
    image_8 = np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(image_8)


def _size_notes(was: tuple[int, int], size: tuple[int, int], geometry: Geometry, *, derived: bool) -> list[str]:
    width, height = size
    area = width * height / (geometry.width * geometry.height)
    trained = f"{geometry.width}x{geometry.height}"
    if derived and area > MAX_AREA:
        raise UserError(
            f"a {was[0]}x{was[1]} image would give a {width}x{height} video, {area:.0f} times the trained area "
            f"({trained}): crop the image or give --size"
        )
    squash = (width / height) / (was[0] / was[1])
    if max(squash, 1 / squash) > 1.1:
        return [f"the image is squashed from {was[0]}x{was[1]} to {width}x{height}: crop it first to keep its shape"]
    return []
