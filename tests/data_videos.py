"""Small real videos for the tests of training data, written with PyAV from frames of pocket world."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np

from svi.pocket.world import World

UNIT = Fraction(1, 16000)


@lru_cache(maxsize=8)
def world_frames(count: int, seed: int = 0, size: tuple[int, int] = (64, 96), fps: int = 16) -> np.ndarray:
    """``(count, H, W, 3)`` uint8 of a world in motion."""
    return World.sample(seed, size=size, family="things", camera="pans").clip(0.0, count, fps)


def counted_frames(count: int, size: tuple[int, int] = (64, 96)) -> np.ndarray:
    """Frames that carry their number (up to 255) in eight black and white fields, which survive any codec."""
    bits = (np.arange(count)[:, None] >> np.arange(8)) & 1
    fields = bits.reshape(count, 2, 4).repeat(size[0] // 2, axis=1).repeat(size[1] // 4, axis=2)
    return (255 * fields[..., None]).repeat(3, axis=3).astype(np.uint8)


def number_of(frame: np.ndarray) -> int:
    """Which of :func:`counted_frames` it is."""
    height, width = frame.shape[0] // 2, frame.shape[1] // 4
    fields = frame[: 2 * height, : 4 * width].reshape(2, height, 4, width, 3).mean(axis=(1, 3, 4)).reshape(8)
    return int(((fields > 127) << np.arange(8)).sum())


def write_video(
    path: Path,
    frames: np.ndarray,
    fps: float = 16,
    *,
    codec: str = "libx264",
    times: Sequence[float] | None = None,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    faststart: bool = False,
) -> Path:
    """Write frames at a constant rate, or at ``times`` in seconds. ``codec`` ffv1 is lossless."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lossless = codec == "ffv1"
    container_options = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", options=container_options) as container:
        rate = Fraction(fps).limit_denominator(1000)
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0" if lossless else "yuv420p"
        if times is not None:
            stream.codec_context.time_base = UNIT
        if rotation:
            stream.set_display_rotation(rotation)
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            if times is None:
                picture.pts, picture.time_base = number, 1 / rate
            else:
                picture.pts, picture.time_base = round(times[number] / UNIT), UNIT
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def captioned(path: Path, caption: str = "a red ball rolls over green hills") -> Path:
    """Write the caption file beside a video."""
    path.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
    return path
