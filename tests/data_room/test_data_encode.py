"""From videos to batches: the same numbers from a cache and on the fly, after any kill, and never from a stale cache."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from data_videos import captioned, world_frames, write_video

from svi.backends.base import Backend
from svi.backends.wan import load_backend
from svi.conditioning.build import build
from svi.conditioning.encodings import Encodings
from svi.conditioning.memory import ClipMemory
from svi.conditioning.policy import PRESETS
from svi.conditioning.window import to_video
from svi.data import encode as encoding
from svi.data.cache import open_cache
from svi.data.dataset import CachedDataset, LiveDataset, batch_of
from svi.data.encode import EncodeConfig, cache_settings, encode, encoder_files, model_settings
from svi.data.ingest import VideoSource, Window
from svi.data.manifest import load_manifest
from svi.data.sample import Sample, collate
from svi.data.video import UnusableVideoError
from svi.data.windows import WindowRule, published_rule
from svi.errors import UserError

EXACT = EncodeConfig(dtype="float32", variants=2)
TENSORS = ("clean", "values", "known", "text", "anchor", "reference", "image")


@pytest.fixture(scope="module")
def pocket() -> Backend:
    return load_backend("pocket", device="cpu")


@pytest.fixture(scope="module")
def tiny(model_folder: Path) -> Backend:
    return load_backend(str(model_folder), device="cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of 48x32, for the tiny model: 2 + 2 + 1 windows of 9 frames."""
    folder = tmp_path_factory.mktemp("clips")
    for seed, count in enumerate((24, 20, 12)):
        frames = world_frames(count, seed, (48, 64))[:, 8:40, 8:56]
        captioned(write_video(folder / f"{seed}.mkv", frames, codec="ffv1"), f"scene {seed} with a ball")
    return folder


def source(folder: Path, backend: Backend, preset: str = "shot", **rule: Any) -> VideoSource:
    policy = PRESETS[preset]
    return VideoSource(load_manifest(folder), backend.geometry, policy, replace(published_rule(policy), **rule))


def write(found: VideoSource, backend: Backend, folder: Path, config: EncodeConfig = EXACT, **options: Any) -> Any:
    return encode(found, backend, folder, config, files=encoder_files(backend.info), **options)


def assert_same(a: Sample, b: Sample) -> None:
    assert (a.id, a.caption, a.text_tokens, a.first) == (b.id, b.caption, b.text_tokens, b.first)
    for name in TENSORS:
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None), name
        if x is not None:
            torch.testing.assert_close(x, y, rtol=0, atol=0)


@pytest.mark.parametrize("preset", ["shot", "film", "pro"])
def test_a_cache_equals_encoding_on_the_fly(tiny: Backend, clips: Path, tmp_path: Path, preset: str) -> None:
    """To the bit, for every draw: crop, phase, reference, first clips and later ones."""
    found = source(clips, tiny, preset, first_clip_prob=0.5, windows_per_video=1)
    write(found, tiny, tmp_path / "cache", EXACT)
    cached, live = CachedDataset(tmp_path / "cache"), LiveDataset(found, tiny)
    assert cached.size == live.size
    samples = [(index, epoch, cached.sample(index, epoch)) for index in range(found.size) for epoch in range(2)]
    for index, epoch, sample in samples:
        assert_same(sample, live.sample(index, epoch))
    assert {sample.first for *_, sample in samples} == {True, False}
    assert_same(cached.sample(0, 5), samples[1][2])  # the draws of epoch 5 are those of variant 1


def test_the_pocket_model_reads_what_was_encoded(pocket: Backend, tmp_path: Path) -> None:
    captioned(write_video(tmp_path / "clips/a.mp4", world_frames(40)), "a red ball rolls")
    found = source(tmp_path / "clips", pocket, "pro", windows_per_video=1, first_clip_prob=0)
    write(found, pocket, tmp_path / "cache", replace(EXACT, variants=1))
    cached = CachedDataset(tmp_path / "cache", items=[found.item_of(0)])
    sample = cached.sample(0, 0)
    assert_same(sample, LiveDataset(found, pocket).sample(0, 0))
    assert sample.clean.shape == (16, 5, 8, 12)
    assert 2 <= len(sample.text) < 40
    torch.testing.assert_close(cached.empty_text(), pocket.encode_text([""]), rtol=0, atol=0)
    batch = batch_of(cached, [(0, 0), (0, 1)])
    torch.testing.assert_close(batch.condition.text[:1], pocket.encode_text(["a red ball rolls"]), rtol=0, atol=0)
    with torch.no_grad():
        predicted = pocket.velocity(torch.zeros_like(batch.clean), torch.tensor([0.3, 0.8]), batch.condition)
    assert predicted.shape == batch.clean.shape


def test_the_condition_is_the_one_of_generation(tiny: Backend, clips: Path) -> None:
    """First and later clips of every kind of hand-off, against ``build`` on the memory that a run would have."""
    encodings = Encodings(tiny)
    for preset, first in [("shot", 0.0), ("film", 0.0), ("film", 1.0), ("svi2-wan21", 0.0), ("pro", 0.0), ("pro", 1.0)]:
        policy = PRESETS[preset]
        found = source(clips, tiny, preset, first_clip_prob=first)
        window = found.read(0, 0)
        assert window.first == bool(first)
        sample = encoding.encode_windows([window], encodings, policy, tiny.geometry)[0]
        memory = ClipMemory.start(window.frames[0])
        if not first:
            latents = (
                tiny.encode_video(to_video(window.context[None]))
                if len(window.context)
                else torch.zeros(1, 16, 1, 4, 6)
            )
            past = window.frames[None, : policy.motion_frames or 1]
            memory = replace(ClipMemory.start(window.reference), frames=past, latents=latents, clip_index=3)
        text = tiny.encode_text([window.caption])
        wanted = build(policy, memory, text, encodings=encodings, num_frames=9, geometry=tiny.geometry)
        torch.testing.assert_close(sample.values[None], wanted.values, rtol=0, atol=0)
        torch.testing.assert_close(sample.known[None], wanted.known, rtol=0, atol=0)
        torch.testing.assert_close(sample.image[None], wanted.image, rtol=0, atol=0)
        batch = collate([sample])
        torch.testing.assert_close(batch.condition.text, wanted.text, rtol=0, atol=0)
        torch.testing.assert_close(sample.clean[None], tiny.encode_video(to_video(window.frames[None])))


@pytest.mark.parametrize("preset", ["shot", "film", "pro"])
def test_handcrafted_errors_lie_in_the_condition_only(tiny: Backend, clips: Path, preset: str) -> None:
    plain, spoilt = (
        LiveDataset(source(clips, tiny, preset, degraded_prob=share, first_clip_prob=0.0), tiny) for share in (0.0, 1.0)
    )
    for index in range(3):
        a, b = plain.sample(index, 0), spoilt.sample(index, 0)
        motion = slice(1, 2) if preset == "pro" else slice(0, 1)
        assert torch.equal(a.clean, b.clean)
        assert torch.equal(a.anchor, b.anchor)
        assert not torch.allclose(a.values[:, motion], b.values[:, motion], atol=1e-3)
        assert torch.equal(b.values, spoilt.sample(index, 0).values)
    assert not torch.equal(spoilt.sample(0, 0).values, spoilt.sample(0, 1).values)


def test_small_files_hold_all_that_is_needed(tiny: Backend, clips: Path, tmp_path: Path) -> None:
    found = source(clips, tiny)
    cache = write(found, tiny, tmp_path / "cache", EncodeConfig(variants=2, batch_size=3))
    files = list((tmp_path / "cache/shards").glob("*"))
    assert len(files) == 1
    assert cache.windows == [f"{k}.mkv#{n}" for k, n in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]]
    live, stored = LiveDataset(found, tiny), CachedDataset(tmp_path / "cache")
    for index in range(5):
        a, b = live.sample(index, 1), stored.sample(index, 1)
        torch.testing.assert_close(a.clean, b.clean, rtol=0.02, atol=0.02)  # bf16, three at once
        torch.testing.assert_close(a.known, b.known, rtol=0, atol=0)
    latents = 2 * 16 * 3 * 4 * 6 * 2
    assert files[0].stat().st_size < 10 * (latents + 16 * 24 * 2 + 32 * 48 * 3 + 17 * 96 * 2) + 40 * 96 * 2 + 20000


# -- kills -------------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from svi.backends.wan import load_backend
from svi.conditioning.policy import PRESETS
from svi.data import encode as encoding
from svi.data.ingest import VideoSource
from svi.data.manifest import load_manifest
from svi.data.windows import published_rule

encoding.SHARD_WINDOWS = 2
backend = load_backend(sys.argv[1], device="cpu")
policy = PRESETS["shot"]
source = VideoSource(load_manifest(sys.argv[2]), backend.geometry, policy, published_rule(policy))
config = encoding.EncodeConfig(dtype="float32", variants=2)
die = lambda progress: progress.done == 5 and os.kill(os.getpid(), signal.SIGKILL)
encoding.encode(source, backend, Path(sys.argv[3]), config, files=encoding.encoder_files(backend.info), on_progress=die)
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_kill_costs_no_more_than_a_shard(
    tiny: Backend, model_folder: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [sys.executable, "-c", KILLED, str(model_folder), str(clips), str(tmp_path / "killed")]
    ended = subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert len(list((tmp_path / "killed/shards").glob("*.safetensors"))) == 2
    with pytest.raises(UserError, match="was not finished"):
        CachedDataset(tmp_path / "killed")
    (tmp_path / "killed/shards/.x.safetensors.tmp-999999999").write_bytes(b"half")
    monkeypatch.setattr(encoding, "SHARD_WINDOWS", 2)
    told: list[encoding.Progress] = []
    write(source(clips, tiny), tiny, tmp_path / "killed", on_progress=told.append)
    assert told[-1].done == told[-1].total == 10
    assert told[-1].reused == 4
    assert told[2].left_s is not None
    write(source(clips, tiny), tiny, tmp_path / "whole")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


# -- stale caches ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tiny: Backend, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache; not to be changed."""
    folder = tmp_path_factory.mktemp("caches") / "shot"
    write(source(clips, tiny), tiny, folder, EncodeConfig(dtype="float32"))
    return folder


def test_a_stale_cache_is_refused_and_says_what_differs(tiny: Backend, clips: Path, cache: Path) -> None:
    files = encoder_files(tiny.info)
    assert files
    assert not any(name.startswith("transformer") for name in files)  # it may be trained without encoding again
    wanted = cache_settings(source(clips, tiny), EncodeConfig(dtype="float32"), files, image_branch=True)
    assert open_cache(cache, wanted).windows
    shot = model_settings(PRESETS["shot"], tiny.geometry, files, image_branch=True)
    assert open_cache(cache, shot).windows
    vae = "vae/diffusion_pytorch_model.safetensors"
    cases: list[tuple[dict[str, Any], str]] = [
        (
            model_settings(PRESETS["film"], tiny.geometry, files, image_branch=True),
            "conditioning.motion_frames is 1, not 5",
        ),
        (
            model_settings(PRESETS["shot"], tiny.geometry, {**files, vae: "0"}, image_branch=True),
            f"model file {vae} changed",
        ),
        (
            model_settings(PRESETS["shot"], replace(tiny.geometry, fps=24), files, image_branch=True),
            "geometry.fps is 16, not 24",
        ),
        ({**shot, "encoder_version": 99}, "encoder_version is 1, not 99"),
        ({**shot, "image_branch": False}, "image_branch is True, not False"),
    ]
    for settings, words in cases:
        with pytest.raises(UserError, match="made with other settings") as caught:
            open_cache(cache, settings)
        assert words in str(caught.value)
        assert "encode again" in str(caught.value)
    same = model_settings(PRESETS["wan"], tiny.geometry, files, image_branch=True)
    again = model_settings(PRESETS["tom"], tiny.geometry, files, image_branch=True)
    assert same == again  # names and sampling settings of a preset do not matter


def test_encoding_into_another_cache_is_refused(tiny: Backend, clips: Path, cache: Path, tmp_path: Path) -> None:
    before = contents(cache)
    with pytest.raises(UserError, match=r"dtype is float32, not bfloat16.*--replace"):
        write(source(clips, tiny), tiny, cache, EncodeConfig())
    assert contents(cache) == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="no cache of training data"):
        write(source(clips, tiny), tiny, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_changed_videos(tiny: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A video that changed is noticed by its bytes; what did not change is not encoded again."""
    monkeypatch.setattr(encoding, "SHARD_WINDOWS", 1)
    frames = world_frames(24, 0, (48, 64))[:, 8:40, 8:56]
    paths = [
        captioned(write_video(tmp_path / f"clips/{k}.mkv", frames[k:], codec="ffv1"), f"ball {k}") for k in range(3)
    ]
    folder, rule = tmp_path / "cache", {"windows_per_video": 1}

    def now() -> VideoSource:
        return source(tmp_path / "clips", tiny, **rule)

    def items() -> list[Any]:
        return [now().item_of(index) for index in range(now().size)]

    write(now(), tiny, folder, EncodeConfig())
    os.utime(paths[0], (1, 1))  # copied, say: another time, the same bytes
    CachedDataset(folder, items=items())
    write_video(paths[1], frames[::-1][:20], codec="ffv1")
    captioned(paths[2], "another caption")
    captioned(write_video(tmp_path / "clips/3.mkv", frames, codec="ffv1"))
    with pytest.raises(UserError, match=r"1 new \(3.mkv\), 2 changed \(1.mkv, 2.mkv\)"):
        CachedDataset(folder, items=items())
    told: list[encoding.Progress] = []
    write(now(), tiny, folder, EncodeConfig(), on_progress=told.append)
    assert (told[-1].total, told[-1].reused) == (4, 1)
    assert len(list((folder / "shards").glob("*"))) == 4
    assert CachedDataset(folder, items=items()).sample(2, 0).caption == "another caption"


def test_damaged_caches(tiny: Backend, clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    write(source(clips, tiny), tiny, folder, EncodeConfig())
    shard = next((folder / "shards").glob("*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"{shard.name} is damaged or cut short"):
        CachedDataset(folder).sample(0, 0)
    write(source(clips, tiny), tiny, folder, EncodeConfig())
    assert shard.read_bytes() == whole
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name} is missing"):
        CachedDataset(folder)
    (folder / "cache.json").write_text("{")
    with pytest.raises(UserError, match="cache.json is missing or damaged"):
        CachedDataset(folder)
    with pytest.raises(UserError, match="no cache of training data"):
        CachedDataset(tmp_path / "nowhere")


# -- windows that cannot be decoded ------------------------------------------------------------------------------------


class Broken(VideoSource):
    """Window 1 cannot be decoded."""

    def read(self, index: int, epoch: int) -> Window:
        if index == 1:
            raise UnusableVideoError("frame 12 cannot be decoded")
        return super().read(index, epoch)


def test_windows_that_cannot_be_decoded_are_left_out_and_listed(tiny: Backend, clips: Path, tmp_path: Path) -> None:
    policy = PRESETS["shot"]
    found = Broken(load_manifest(clips), tiny.geometry, policy, WindowRule())
    cache = write(found, tiny, tmp_path / "cache", EncodeConfig())
    assert [entry.name for entry in cache.lost] == ["0.mkv#1"]
    assert cache.lost[0].reason == "frame 12 cannot be decoded"
    assert CachedDataset(tmp_path / "cache").size == 4
    with pytest.raises(UserError, match=r"0.mkv#1: frame 12 cannot be decoded"):
        LiveDataset(found, tiny).sample(1, 0)


def test_batches_are_of_one_shape(tiny: Backend, clips: Path) -> None:
    sample = LiveDataset(source(clips, tiny), tiny).sample(0, 0)
    wide = replace(sample, clean=sample.clean.repeat(1, 1, 1, 2))
    for samples, words in [
        ([], "at least one"),
        ([sample, wide], "one shape"),
        ([sample, replace(sample, image=None)], "image"),
    ]:
        with pytest.raises(ValueError, match=words):
            collate(samples)
    assert collate([sample, sample]).to("cpu").size == 2


def test_window_groups_must_agree(tiny: Backend, clips: Path) -> None:
    windows: Sequence[Window] = [source(clips, tiny).read(0, 0)]
    mixed = [windows[0], replace(windows[0], first=True)]
    with pytest.raises(ValueError, match="one shape"):
        encoding.encode_windows(mixed, Encodings(tiny), PRESETS["shot"], tiny.geometry)
