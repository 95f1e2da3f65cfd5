"""Reference images: every mode arrives as RGB, the size follows the published rule, bad files are one clear line."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from svi.errors import UserError
from svi.generation.images import derived_size, load_reference
from svi.geometry import Geometry

WAN = Geometry()
POCKET = Geometry(height=64, width=96, num_frames=17)


def square(mode: str, value: object) -> Image.Image:
    return Image.new(mode, (96, 64), value)


def palette() -> Image.Image:
    image = square("P", 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    return image


@pytest.mark.parametrize(
    ("make", "suffix", "colour"),
    [
        (lambda: square("RGB", (10, 20, 30)), "png", (10, 20, 30)),
        (lambda: square("L", 77), "png", (77, 77, 77)),
        (lambda: square("1", 1), "png", (255, 255, 255)),
        (lambda: square("RGBA", (200, 100, 0, 0)), "png", (255, 255, 255)),
        (lambda: square("RGBA", (200, 100, 0, 255)), "png", (200, 100, 0)),
        (lambda: square("RGBA", (0, 0, 0, 51)), "webp", (204, 204, 204)),
        (lambda: square("LA", (0, 0)), "png", (255, 255, 255)),
        (palette, "png", (10, 200, 30)),
        (lambda: square("I;16", 65535), "png", (255, 255, 255)),
        (lambda: square("I;16", 32768), "png", (128, 128, 128)),
        (lambda: square("I;16", 257), "png", (1, 1, 1)),
        (lambda: square("CMYK", (0, 0, 0, 255)), "jpg", (0, 0, 0)),
    ],
)
def test_modes(tmp_path: Path, make: Callable[[], Image.Image], suffix: str, colour: tuple[int, int, int]) -> None:
    file = tmp_path / f"image.{suffix}"
    make().save(file, **({"lossless": True, "exact": True} if suffix == "webp" else {}))
    image = load_reference(file, None, POCKET).image
    assert (image.shape, image.dtype) == ((64, 96, 3), torch.uint8)
    assert (image.float() - torch.tensor(colour)).abs().max() <= 1


def test_sixteen_bit_rgb(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\x00" + struct.pack(">HHH", 65535, 32768, 0) * 96
    file = tmp_path / "deep.png"
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 96, 64, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(row * 64))
        + chunk(b"IEND", b"")
    )
    assert load_reference(file, None, POCKET).image[0, 0].tolist() == [255, 128, 0]


def test_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((96, 64, 3), np.uint8)
    pixels[:8] = 255  # bright top of a file that is meant to be turned
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    turned = load_reference(tmp_path / "turned.png", None, POCKET).image
    assert turned.shape == (64, 96, 3)
    assert turned[:, -8:].min() == 255
    assert turned[:, :-8].max() == 0


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [square("RGB", (value, 0, 0)) for value in (10, 200)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    found = load_reference(tmp_path / "a.webp", None, POCKET)
    assert found.image[0, 0, 0] == 10
    assert "first frame" in found.notes[0]


def test_objects_in_memory() -> None:
    array = np.full((64, 96, 3), 9, np.uint8)
    for source in (array, torch.from_numpy(array), Image.fromarray(array), array[:, :, :1], array[:, :, 0]):
        assert load_reference(source, None, POCKET).image.eq(9).all()
    for bad in (array.astype(np.float32), array[None], array[:, :, :2], array[:0]):
        with pytest.raises(UserError, match="image array must"):
            load_reference(bad, None, POCKET)


@pytest.mark.parametrize(
    ("size", "geometry", "expected"),
    [
        ((832, 480), WAN, (832, 480)),  # the three toy images of the published code, and its FAQ's portrait
        ((1024, 571), WAN, (832, 448)),
        ((1129, 779), WAN, (832, 560)),
        ((1204, 2150), WAN, (832, 1472)),
        ((300, 200), WAN, (288, 192)),
        ((5, 5), WAN, (16, 16)),
        ((1024, 571), POCKET, (96, 48)),
    ],
)
def test_published_size_rule(size: tuple[int, int], geometry: Geometry, expected: tuple[int, int]) -> None:
    assert derived_size(*size, geometry) == expected


def test_size_is_given_or_derived_and_a_squashed_image_is_noted() -> None:
    image = Image.new("RGB", (192, 128), "red")
    assert load_reference(image, None, POCKET).notes == ()
    assert load_reference(image, (64, 48), POCKET).image.shape == (48, 64, 3)
    assert any("squashed" in note for note in load_reference(image, (96, 96), POCKET).notes)
    tall = load_reference(Image.new("RGB", (96, 192)), None, POCKET)
    assert tall.image.shape == (192, 96, 3)
    assert tall.notes == ()
    with pytest.raises(UserError, match="multiples of 16, not 90x64: the nearest is 96x64"):
        load_reference(image, (90, 64), POCKET)
    with pytest.raises(UserError, match="times the trained area"):
        load_reference(Image.new("RGB", (96, 960)), None, POCKET)


def test_bad_files(tmp_path: Path) -> None:
    square("RGB", (1, 2, 3)).save(tmp_path / "whole.png")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8))
    noise.save(tmp_path / "whole.jpg")
    files = {
        "empty.png": (b"", "is empty"),
        "text.png": (b"not an image", "is not a png, jpeg or webp"),
        "tiff.png": (b"II*\x00" + bytes(64), "is not a png, jpeg or webp"),
        "cut.png": ((tmp_path / "whole.png").read_bytes()[:70], "damaged or truncated"),
        "cut.jpg": ((tmp_path / "whole.jpg").read_bytes()[:3000], "damaged or truncated"),
    }
    for name, (data, message) in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=message) as caught:
            load_reference(tmp_path / name, None, POCKET)
        assert name in str(caught.value)
    with pytest.raises(UserError, match="does not exist"):
        load_reference(tmp_path / "none.png", None, POCKET)
    with pytest.raises(UserError, match="is a folder"):
        load_reference(tmp_path, None, POCKET)


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_bombs_are_refused_before_decoding(tmp_path: Path, side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    file = tmp_path / "bomb.png"
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(UserError, match="100 megapixels"):
        load_reference(file, None, POCKET)
