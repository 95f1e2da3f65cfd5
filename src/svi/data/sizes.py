"""How many bytes a cache will take, from shapes and JSON files alone: nothing is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from svi.backends.weights import find_model, read_json
from svi.data.ingest import VideoSource
from svi.data.shards import DTYPES
from svi.data.windows import Bucket
from svi.geometry import Geometry

TEXT_WIDTH = 4096  # umT5-xxl, where a model folder does not tell
CLIP_NUMBERS = 257 * 1280  # the published CLIP, in the official layout
TOKENS_PER_WORD = 1.4


def bytes_per_window(
    bucket: Bucket,
    geometry: Geometry,
    *,
    dtype: str = "bfloat16",
    text: int = 100 * TEXT_WIDTH,
    image: int = CLIP_NUMBERS,
) -> int:
    """Bytes that a window takes on disk.

    Args:
        bucket: its shape.
        geometry: of the model.
        dtype: as which latents and features are stored.
        text, image: numbers in its text embedding and in its image features.
    """
    channels, latent_frames, height, width = geometry.latent_shape(bucket.num_frames, bucket.height, bucket.width)
    plane = channels * height * width
    stored = 2 * plane * latent_frames + plane + text + image
    return stored * DTYPES[dtype].itemsize + bucket.height * bucket.width * 3


def estimate(source: VideoSource, model: str, *, dtype: str, variants: int, allow_download: bool = False) -> int:
    """Bytes of a cache of all windows of ``source``, to some percent; captions count once per video."""
    width, image = feature_sizes(find_model(model, allow_download=allow_download))
    total, seen = 0, set()
    for index in range(source.size):
        item = source.item_of(index)
        tokens = 0 if item.id in seen else round(TOKENS_PER_WORD * len(item.caption.split())) + 1
        seen.add(item.id)
        bucket = source.bucket_of(index)
        total += bytes_per_window(bucket, source.geometry, dtype=dtype, text=tokens * width, image=image)
    return total * variants


def feature_sizes(folder: Path) -> tuple[int, int]:
    """Width of a model's text embeddings, and how many numbers its image features have (0 without an image branch)."""
    text = _config(folder / "text_encoder").get("d_model", TEXT_WIDTH)
    clip = _config(folder / "image_encoder")
    if clip:
        patches = (int(clip["image_size"]) // int(clip["patch_size"])) ** 2 + 1
        reads_image = _config(folder / "transformer").get("image_dim", True) is not None
        return int(text), patches * int(clip["hidden_size"]) * reads_image
    return int(text), CLIP_NUMBERS * any(folder.glob("models_clip*"))


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return read_json(path) if path.is_file() else {}
