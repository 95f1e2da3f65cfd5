"""From pixels to what training needs, and the writing of it: latents, condition, text, image features, anchor.

The condition is made by the same ``build()`` as in generation. Knows no model library: an encoder is whatever has the three
``encode_*`` methods. How the result lies on disk is the business of ``shards``.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from svi.backends.base import ModelInfo
from svi.conditioning.build import build
from svi.conditioning.encodings import Encoder, Encodings
from svi.conditioning.memory import ClipMemory
from svi.conditioning.policy import ConditioningPolicy
from svi.conditioning.window import to_video
from svi.data.cache import Cache, begin, finish
from svi.data.ingest import Window, WindowSource
from svi.data.manifest import Skipped
from svi.data.sample import Sample, real_tokens
from svi.data.shards import DTYPES, Contents, Entry, ShardPlan, empty_text_file, is_whole, write_empty_text, write_shard
from svi.data.sizes import bytes_per_window
from svi.data.video import UnusableVideoError
from svi.data.windows import Bucket
from svi.errors import UserError
from svi.geometry import Geometry

ENCODER_VERSION = 1  # raise when the same window would be encoded to other numbers
SHARD_BYTES = 64 * 2**20  # what a kill may cost: a handful of windows at 480x832
SHARD_WINDOWS = 256
READ_AHEAD = 2  # windows decoded while another is encoded; 97 MB each at 81x480x832
CACHED_TEXTS = 8  # neighbouring windows share their caption

# Fields of a preset that decide what a window looks like; the others (steps, guidance ...) change nothing here.
CONDITIONING = ("hand_off", "motion_frames", "motion_latents", "reference_frames", "known", "image_feature")
# The trained window is not among them: the buckets say what is used.
SCALES = ("latent_channels", "temporal_scale", "spatial_scale", "fps")
# Files of a model folder that no encoder reads: the transformer may be trained on without encoding again.
NOT_ENCODERS = ("transformer", "scheduler", "diffusion_pytorch_model", "high_noise_model", "low_noise_model")
NOT_ENCODER_FILES = ("config.json", "model_index.json", "svi.json", "configuration.json")


@dataclass(frozen=True)
class EncodeConfig:
    """How windows are written.

    Attributes:
        dtype: of stored latents, text and image features.
        variants: epochs whose draws (crop, phase, reference) are encoded; epoch e reads variant ``e % variants``.
        batch_size: windows encoded at once; 1 gives the same bits as encoding on the fly.
    """

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    variants: int = 1
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"latents are stored as {' or '.join(DTYPES)}, not as {self.dtype!r}")
        if self.variants < 1 or self.batch_size < 1:
            raise UserError("variants and batch_size must be at least 1")


@dataclass(frozen=True)
class Progress:
    """How far encoding is: windows ``done`` of ``total``, ``reused`` of them from before; ``left_s`` None = unknown yet."""

    done: int
    total: int
    reused: int
    seconds: float
    left_s: float | None


# -- one window --------------------------------------------------------------------------------------------------------


def encode_windows(
    windows: Sequence[Window], encodings: Encodings, policy: ConditioningPolicy, geometry: Geometry
) -> list[Sample]:
    """Encode windows of one shape that are all first clips or all later ones.

    Raises:
        ValueError: for windows that do not belong together.
    """
    if len({(tuple(window.frames.shape), window.first) for window in windows}) != 1:
        raise ValueError("windows that are encoded together have one shape, and are all first clips or all later ones")
    frames = torch.stack([window.frames for window in windows])
    text = encodings.text([window.caption for window in windows])
    memory = _memory(windows, encodings, policy)
    condition = build(policy, memory, text, encodings=encodings, num_frames=frames.shape[1], geometry=geometry)
    with torch.no_grad():
        clean = encodings.encoder.encode_video(to_video(frames))
    anchor = encodings.anchor(memory.reference)
    return [
        Sample(
            id=window.id,
            caption=window.caption,
            clean=_own(clean[k]),
            values=_own(condition.values[k]),
            known=_own(condition.known[k]),
            text=_own(real_tokens(condition.text[k])),
            text_tokens=condition.text.shape[1],
            anchor=_own(anchor[k]),
            reference=window.reference.clone(),
            image=None if condition.image is None else _own(condition.image[k]),
            first=window.first,
        )
        for k, window in enumerate(windows)
    ]


def _memory(windows: Sequence[Window], encodings: Encodings, policy: ConditioningPolicy) -> ClipMemory:
    """What came before the windows, as a run would remember it."""
    reference = torch.stack([window.reference for window in windows])
    if windows[0].first:
        return ClipMemory.start(reference)
    frames = torch.stack([window.handed for window in windows])
    latents = None
    if policy.motion_latents:
        context = torch.stack([window.context for window in windows])
        with torch.no_grad():
            latents = encodings.encoder.encode_video(to_video(context))[:, :, -policy.motion_latents :].float()
    return ClipMemory(reference, frames, latents, clip_index=1)


def _own(tensor: Tensor) -> Tensor:
    """An fp32 copy on the CPU that keeps nothing else alive."""
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()


def empty_text(encodings: Encodings) -> tuple[Tensor, int]:
    """Embedding ``(l, D)`` of the empty prompt, for text dropout, and the length it is padded to."""
    text = encodings.text([""])[0]
    return _own(real_tokens(text)), text.shape[0]


# -- what decides the numbers ------------------------------------------------------------------------------------------


def encoder_files(info: ModelInfo) -> dict[str, str]:
    """Hashes of the files that encoding depends on: VAE, text encoder with tokenizer, image encoder."""
    return {
        name: digest
        for name, digest in sorted(info.files.items())
        if not name.startswith(NOT_ENCODERS) and name not in NOT_ENCODER_FILES
    }


def model_settings(
    policy: ConditioningPolicy, geometry: Geometry, files: Mapping[str, str], *, image_branch: bool
) -> dict[str, Any]:
    """What of a model and a preset decides the content of a cache, JSON-ready: what a trainer asks a cache for.

    Args:
        policy, geometry: of the preset and the model.
        files: hashes of the encoders' files (:func:`encoder_files`).
        image_branch: whether the model reads CLIP features (:func:`has_image_branch`).
    """
    preset, scales = asdict(policy), asdict(geometry)
    return {
        "encoder_version": ENCODER_VERSION,
        "model": dict(files),
        "image_branch": image_branch,
        "geometry": {**{name: scales[name] for name in SCALES}, "patch": list(geometry.patch)},
        "conditioning": {name: preset[name] for name in CONDITIONING},
    }


def cache_settings(
    source: WindowSource, config: EncodeConfig, files: Mapping[str, str], *, image_branch: bool
) -> dict[str, Any]:
    """Everything beside the videos that decides the content of a cache, JSON-ready."""
    return {
        **model_settings(source.policy, source.geometry, files, image_branch=image_branch),
        "windows": dict(source.describe()),
        "dtype": config.dtype,
        "variants": config.variants,
    }


def has_image_branch(encoder: Encoder) -> bool:
    """Whether the model reads CLIP features; asks the encoder with a small grey picture."""
    with torch.no_grad():
        return encoder.encode_image(torch.zeros(1, 3, 32, 32)) is not None


# -- all windows -------------------------------------------------------------------------------------------------------


def plan_shards(
    source: WindowSource, config: EncodeConfig, settings: Mapping[str, Any], known: Path
) -> list[ShardPlan]:
    """Shards of all windows in all variants, in order; each holds windows of one bucket.

    A shard is named after its content: the settings, its windows and the bytes of their videos. So a shard that exists
    under its name needs no work, whether encoding was stopped or videos were added since.

    Raises:
        UserError: for an endless source, and for no windows.
    """
    if source.size is None:
        raise UserError("an endless source has no end to encode: say how many windows")
    if source.size == 0:
        raise UserError("there is nothing to encode: no window is usable (`svi data check` lists the reasons)")
    contents = Contents(known)
    entries: dict[Bucket, list[Entry]] = {}
    for variant in range(config.variants):
        for index in range(source.size):
            entry = Entry(source.window_id(index), variant, index, contents.of(source.item_of(index)))
            entries.setdefault(source.bucket_of(index), []).append(entry)
    contents.save()
    plans = []
    for bucket, group in sorted(entries.items()):
        size = bytes_per_window(bucket, source.geometry, dtype=config.dtype)
        step = max(1, min(SHARD_WINDOWS, SHARD_BYTES // size))
        plans += [ShardPlan.of(settings, bucket, group[k : k + step]) for k in range(0, len(group), step)]
    return plans


def encode(
    source: WindowSource,
    encoder: Encoder,
    folder: Path,
    config: EncodeConfig | None = None,
    *,
    files: Mapping[str, str],
    replace: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Cache:
    """Write a cache of all windows of ``source`` into ``folder``, or go on with one.

    Finished shards are kept whatever happens, and are not made again. Windows whose video cannot be decoded are left out and
    listed in the cache with the reason.

    Args:
        source: where windows come from, with their preset and geometry; not endless.
        encoder: of the model.
        folder: of the cache.
        config: how it is written.
        files: hashes of the encoders' files (:func:`encoder_files`).
        replace: throw away a cache in ``folder`` that was made with other settings.
        on_progress: called after each batch.

    Raises:
        UserError: a cache with other settings (what differs is named), a folder that is no cache, a full disk, nothing
            to encode.
    """
    config = config or EncodeConfig()
    settings = cache_settings(source, config, files, image_branch=has_image_branch(encoder))
    begin(folder, settings, replace=replace)
    plans = plan_shards(source, config, settings, folder)
    encodings = Encodings(encoder, capacity=CACHED_TEXTS)
    if not empty_text_file(folder).is_file():
        write_empty_text(folder, *empty_text(encodings), config.dtype)
    meter = _Meter(sum(len(plan.entries) for plan in plans), on_progress)
    for plan in plans:
        if is_whole(folder, plan):
            meter.reuse(len(plan.entries))
            continue
        samples, lost = _encoded(plan, source, encodings, config.batch_size, meter)
        write_shard(folder, plan, samples, lost, config.dtype)
    return finish(folder, settings, plans, _items(source))


def _encoded(
    plan: ShardPlan, source: WindowSource, encodings: Encodings, batch_size: int, meter: _Meter
) -> tuple[list[tuple[Entry, Sample]], list[Skipped]]:
    """Samples of a shard's windows, and the windows that could not be decoded."""
    samples: list[tuple[Entry, Sample]] = []
    lost: list[Skipped] = []
    waiting: list[tuple[Entry, Window]] = []

    def work() -> None:
        for _, group in groupby(waiting, key=lambda pair: pair[1].first):
            pairs = list(group)
            encoded = encode_windows([window for _, window in pairs], encodings, source.policy, source.geometry)
            samples.extend((entry, sample) for (entry, _), sample in zip(pairs, encoded, strict=True))
        meter.add(len(waiting))
        waiting.clear()

    for entry, window in _read(plan.entries, source):
        if isinstance(window, Window):
            waiting.append((entry, window))
        else:
            lost.append(Skipped(entry.window, window.reason, window.remedy))
            meter.add(1)
        if len(waiting) == batch_size:
            work()
    if waiting:
        work()
    return samples, lost


def _read(entries: Sequence[Entry], source: WindowSource) -> Iterator[tuple[Entry, Window | UnusableVideoError]]:
    """Windows in order, the next ones being decoded while the caller encodes."""

    def read(entry: Entry) -> Window | UnusableVideoError:
        try:
            return source.read(entry.index, entry.variant)
        except UnusableVideoError as error:
            return error

    pool = ThreadPoolExecutor(1)  # a source need not be thread-safe
    try:
        coming = deque(pool.submit(read, entry) for entry in entries[:READ_AHEAD])
        for number, entry in enumerate(entries):
            if number + READ_AHEAD < len(entries):
                coming.append(pool.submit(read, entries[number + READ_AHEAD]))
            yield entry, coming.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _items(source: WindowSource) -> Iterable[Any]:
    """The videos that windows come from, each once."""
    assert source.size is not None
    found = {item.id: item for k in range(source.size) if (item := source.item_of(k)) is not None}
    return found.values()


class _Meter:
    """Counts windows and tells the pace; those of an earlier start do not count for it."""

    def __init__(self, total: int, tell: Callable[[Progress], None]) -> None:
        self.total, self.tell = total, tell
        self.done = self.reused = 0
        self.began = time.monotonic()

    def add(self, count: int) -> None:
        self.done += count
        self._tell()

    def reuse(self, count: int) -> None:
        self.reused += count
        self.done += count
        self._tell()

    def _tell(self) -> None:
        seconds, made = time.monotonic() - self.began, self.done - self.reused
        left = seconds / made * (self.total - self.done) if made else None
        self.tell(Progress(self.done, self.total, self.reused, seconds, left))
