"""The small MUSIQ: the weights it loads, its patches, and what it refuses."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from feeding import sample, scored

from svi.errors import UserError
from svi.evaluation.metrics import musiq
from svi.evaluation.metrics.extract import Setup
from svi.evaluation.metrics.imaging import ImagingQuality, MusiqScores
from svi.evaluation.metrics.weights import Places


def published_names() -> dict[str, tuple[int, ...]]:
    """Names and shapes in ``musiq_spaq_ckpt-358bb6af.pth``."""
    stem = {"conv_root.weight": (64, 3, 7, 7), "gn_root.weight": (64,), "gn_root.bias": (64,)}
    shapes = {"conv1": (64, 64, 1, 1), "conv2": (64, 64, 3, 3), "conv3": (256, 64, 1, 1), "conv_proj": (256, 64, 1, 1)}
    stem |= {f"block1.{name}.weight": shape for name, shape in shapes.items()}
    norms = {"gn1": 64, "gn2": 64, "gn3": 256, "gn_proj": 256}
    stem |= {f"block1.{name}.{part}": (size,) for name, size in norms.items() for part in ("weight", "bias")}
    inner = "transformer_encoder."
    stem |= {"embedding.weight": (384, 16384), "embedding.bias": (384,), "head.weight": (1, 384), "head.bias": (1,)}
    stem |= {
        f"{inner}posembed_input.position_emb": (1, 100, 384),
        f"{inner}scaleembed_input.scale_emb": (3, 384),
        f"{inner}cls": (1, 1, 384),
    }
    stem |= {f"{inner}encoder_norm.{part}": (384,) for part in ("weight", "bias")}
    for k in range(14):
        block = f"{inner}transformer.encoderblock_{k}."
        stem |= {f"{block}{norm}.{part}": (384,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
        linear = {f"attention.{name}": (384, 384) for name in ("query", "key", "value", "out")}
        linear |= {"mlp.fc1": (1152, 384), "mlp.fc2": (384, 1152)}
        for name, shape in linear.items():
            stem |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
    return stem


def test_names_and_shapes_are_those_of_the_checkpoint():
    with torch.device("meta"):
        model = musiq.Musiq()
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == published_names()


@pytest.mark.parametrize(
    ("size", "counts"),
    [((295, 512), (5 * 7, 7 * 12, 10 * 16)), ((64, 96), (5 * 7, 8 * 12, 2 * 3)), ((224, 224), (49, 144, 49))],
)
def test_three_scales_of_patches(size, counts):
    patches, places, scales = musiq.multiscale_patches(torch.zeros(2, 3, *size))
    assert patches.shape == (2, sum(counts), 3, 32, 32)
    assert len(places) == len(scales) == sum(counts)
    assert tuple(torch.bincount(scales).tolist()) == counts
    assert int(places.min()) == 0
    assert int(places.max()) <= 99


def test_places_on_the_grid():
    assert musiq.grid_places(10, 10).tolist() == list(range(100))
    assert musiq.grid_places(2, 3).tolist() == [0, 3, 6, 50, 53, 56]
    assert musiq.grid_places(1, 20).tolist() == [k // 2 for k in range(20)]


def test_a_patch_holds_its_part_of_the_picture():
    picture = torch.arange(64.0 * 96).reshape(1, 1, 64, 96).expand(1, 3, 64, 96)
    patches, _, scales = musiq.multiscale_patches(picture)
    native = patches[0, scales == 2]
    assert torch.equal(native[4, 0], picture[0, 0, 32:64, 32:64])


def test_padding_is_that_of_tensorflow():
    padded = musiq.pad_same(torch.ones(1, 1, 32, 32), 7, 2)
    assert padded.shape == (1, 1, 37, 37)
    assert padded[0, 0, :, 5].tolist() == [0, 0] + [1] * 32 + [0] * 3


@pytest.fixture(scope="module")
def small() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = musiq.Musiq(width=16, hidden=32, heads=2, layers=2)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_scores_of_frames_do_not_see_their_batch(small: torch.nn.Module):
    frames = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)
    scores = MusiqScores(small, "vbench")
    together = scores(frames)
    assert together.shape == (3, 1)
    alone = np.concatenate([scores(frame[None]) for frame in frames])
    assert together == pytest.approx(alone, abs=1e-4)
    assert len(set(together[:, 0].tolist())) == 3


def test_large_frames_are_judged_at_512(small: torch.nn.Module):
    seen = []
    small.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    MusiqScores(small, "vbench")(np.zeros((1, 480, 832, 3), np.uint8))
    MusiqScores(small, "clean")(np.zeros((1, 64, 96, 3), np.uint8))
    assert seen == [(1, 3, 295, 512), (1, 3, 64, 96)]


def test_a_checkpoint_is_loaded_and_its_hash_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: torch.nn.Module
):
    monkeypatch.setattr(musiq, "Musiq", partial(musiq.Musiq, width=16, hidden=32, heads=2, layers=2))
    path = tmp_path / "musiq_spaq_ckpt-358bb6af.pth"
    torch.save(small.state_dict(), path)
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    setup = Setup(places=Places(folder=tmp_path, caches=False))
    metric = ImagingQuality(setup)
    assert metric.missing() is None
    with pytest.raises(UserError, match="is not the published musiq-spaq"):
        metric.start(sample(2, size=(32, 32)))
    known = Places(folder=tmp_path, caches=False, hashes={"musiq-spaq": hashlib.sha256(path.read_bytes()).hexdigest()})
    result = scored(ImagingQuality(Setup(places=known)), frames, sample(2, size=(32, 32)))
    assert result.value == pytest.approx(float(MusiqScores(small, "vbench")(frames).mean()), rel=1e-5)


def test_other_networks_are_refused(tmp_path: Path):
    path = tmp_path / "other.pth"
    torch.save({"head.0.weight": torch.zeros(10, 384)}, path)  # the AVA checkpoint has ten outputs
    with pytest.raises(UserError, match="not a MUSIQ checkpoint"):
        musiq.load(path, torch.device("cpu"))
