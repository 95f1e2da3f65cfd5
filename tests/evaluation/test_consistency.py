"""Consistency, aesthetic and imaging quality: by hand through fake extractors, and through tiny networks."""

from __future__ import annotations

import gc
import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from feeding import Fake, feed, flat, numbered, sample, scored, series, table

from svi.errors import UserError
from svi.evaluation.metric import Frames, Skipped
from svi.evaluation.metrics.aesthetic import AestheticQuality, load_head
from svi.evaluation.metrics.consistency import BackgroundConsistency, SubjectConsistency
from svi.evaluation.metrics.encoders import ClipEncoder, DinoEncoder, dino_positions
from svi.evaluation.metrics.extract import Setup, centre_crop, resized, shorter_side
from svi.evaluation.metrics.imaging import ImagingQuality
from svi.evaluation.metrics.weights import Places

ROWS = np.array([[2.0, 0.0], [1.0, 1.0], [0.0, 3.0], [-1.0, 0.0]])
HALF = math.sqrt(0.5)
NOWHERE = Places(folder=Path("nowhere"), caches=False)


@pytest.mark.parametrize("metric", [SubjectConsistency, BackgroundConsistency])
def test_consistency_by_hand(metric):
    result = scored(metric(extractor=table(ROWS)), numbered(4))
    assert result.value == pytest.approx(100 * (HALF + HALF / 2 + 0) / 3)
    assert result.weight == 3  # VBench's mean over videos counts frames
    assert dict(series(result, "to_first")) == pytest.approx({1: HALF, 2: 0.0, 3: -1.0})
    assert dict(series(result, "to_previous")) == pytest.approx({1: HALF, 2: HALF, 3: 0.0})


def test_clean_counts_opposite_features_as_opposite_and_videos_alike():
    result = scored(SubjectConsistency(Setup(mode="clean"), table(ROWS)), numbered(4))
    assert result.value == pytest.approx(100 * (HALF + HALF / 2 - 0.5) / 3)
    assert result.weight == 1


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_batches_change_nothing(batch: int, batch_size: int):
    rows = np.random.default_rng(0).standard_normal((11, 5))
    alone = scored(SubjectConsistency(extractor=table(rows)), numbered(11), batch=11)
    again = scored(SubjectConsistency(Setup(batch_size=batch_size), table(rows)), numbered(11), batch=batch)
    assert again.value == alone.value
    assert again.series == alone.series


@pytest.mark.parametrize("fps", [12, 16, 20, 24, 25, 30])
@pytest.mark.parametrize("extra", [0, 1, 7])
def test_long_averages_clips_of_two_seconds(fps: int, extra: int):
    """Features turn by 90 degrees after the first clip: inside it nothing changes, and the mean says so."""
    count = 4 * fps + extra
    rows = np.zeros((count, 2))
    rows[: 2 * fps, 0] = rows[2 * fps :, 1] = 1
    metric = SubjectConsistency(Setup(profile="long"), table(rows))
    result = scored(metric, numbered(count), sample(count, fps))
    assert metric.name == "subject_consistency_long"
    assert result.value == pytest.approx(100)
    assert [at for at, _ in series(result, "clip")] == [0, 2 * fps] + ([2 * fps + extra] if extra else [])
    assert result.weight == 1
    # ... what it hides: the first frames of the clips differ. With a tail there are three: (0 + 0) / 2, (1 + 0) / 2.
    assert result.extra["clip_to_clip"] == pytest.approx(25 if extra else 0)
    whole = scored(SubjectConsistency(extractor=table(rows)), numbered(count), sample(count, fps))
    assert whole.value is not None
    assert whole.value < 80


def test_one_frame_has_no_consistency():
    result = feed(SubjectConsistency(extractor=table(ROWS)), numbered(1))
    assert isinstance(result, Skipped)
    assert "one frame" in result.reason
    assert isinstance(feed(SubjectConsistency(extractor=table(ROWS)), numbered(0)), Skipped)


def test_names_and_keys_keep_modes_and_profiles_apart():
    made = [
        SubjectConsistency(Setup(mode=mode, profile=profile), table(ROWS))
        for mode in ("vbench", "clean")
        for profile in ("paper", "long")
    ]
    assert len({metric.name for metric in made}) == len({metric.key() for metric in made}) == 4
    assert made[0].name == "subject_consistency"
    assert json.loads(made[0].key()) == {"mode": "vbench", "profile": "paper", "extractor": "fake"}


def test_aesthetic_quality_by_hand():
    head = (np.array([10.0, 20.0]), 5.0)
    rows = np.array([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    result = scored(AestheticQuality(extractor=table(rows), head=head), numbered(3))
    assert result.value == pytest.approx(100 * (2.7 + 2.5 + 1.5) / 3, rel=1e-6)
    assert [value for _, value in series(result, "frame")] == pytest.approx([270, 250, 150], rel=1e-6)
    assert result.weight == 1


def test_imaging_quality_by_hand():
    scores = np.array([[70.0], [50.0], [30.0]])
    result = scored(ImagingQuality(extractor=table(scores)), numbered(3))
    assert result.value == pytest.approx(50)
    assert result.extra["worst"] == pytest.approx(30)


@pytest.mark.parametrize(("mode", "expected"), [("vbench", (0 + 1 + 4 / 4) / 3), ("clean", (0 + 4 + 1) / 9)])
def test_the_tail_of_a_long_video(mode, expected):
    """9 frames in clips of 4, worth 0 0 0 0 | 1 1 1 1 | 1: VBench completes the tail with three of the clip before."""
    scores = np.array([[0.0]] * 4 + [[100.0]] * 5)
    result = scored(ImagingQuality(Setup(mode=mode, profile="long"), table(scores)), numbered(9), sample(9, fps=2))
    assert result.value == pytest.approx(100 * expected)


def test_memory_grows_by_a_row_per_frame():
    """1,000 frames of 120 x 160 are 58 MB as bytes and 230 MB as floats."""
    metric = ImagingQuality(extractor=Fake(lambda frames: frames.mean(axis=(1, 2, 3))[:, None]))
    reading = metric.start(sample(1000, size=(120, 160)))
    gc.collect()
    tracemalloc.start()
    for start in range(0, 1000, 8):
        reading.add(Frames(start, np.full((8, 120, 160, 3), start % 256, np.uint8)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not isinstance(reading.result(), Skipped)
    assert peak < 15e6


def test_missing_weights_are_a_reason_with_a_remedy():
    for metric in (SubjectConsistency, BackgroundConsistency, AestheticQuality, ImagingQuality):
        made = metric(Setup(places=NOWHERE))
        reason = made.missing()
        assert reason is not None
        assert reason.startswith(f"{made.name}: weights ")
        assert "nowhere" in reason
        with pytest.raises(UserError, match="not found"):
            made.start(sample(4))


@pytest.mark.parametrize("wrong", [{"mode": "vbensh"}, {"profile": "longer"}])
def test_unknown_settings_name_their_neighbour(wrong):
    with pytest.raises(UserError, match="did you mean"):
        Setup(**wrong)


# --- the real classes, tiny -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("dino")
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViTModel(config, add_pooling_layer=False)
        torch.nn.init.normal_(model.embeddings.position_embeddings)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP, as the hub has it: the vision tower must be found in it."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    small = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    config = CLIPConfig(
        text_config=dict(small, vocab_size=50),
        vision_config=dict(small, image_size=32, patch_size=8),
        projection_dim=12,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    return folder


def pictures(count: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def test_subject_consistency_with_a_dino_folder(dino_folder: Path):
    values = {}
    frames = pictures(5, (36, 64))
    for mode in ("vbench", "clean"):
        metric = SubjectConsistency(Setup(mode=mode, places=Places(paths={"dino-vitb16": dino_folder})))
        assert metric.missing() is None
        assert len(json.loads(metric.key())["weights"]["dino-vitb16"]) == 64
        values[mode] = scored(metric, frames, sample(5, size=(36, 64))).value
        still = scored(metric, frames[[0, 0, 0]], sample(3, size=(36, 64)))
        assert still.value == pytest.approx(100, abs=1e-4)
    assert 0 < values["vbench"] < 100
    assert values["vbench"] != values["clean"]


def test_dino_is_read_with_the_original_epsilon(dino_folder: Path):
    from svi.evaluation.metrics.encoders import load_dino

    encoder = load_dino(dino_folder, Setup())
    assert encoder._model.config.layer_norm_eps == 1e-6
    assert encoder._model.layernorm.eps == 1e-6


def test_dino_positions_are_sampled_a_tenth_of_a_patch_off():
    """A ramp across 4 patches, stretched to 8: sample k lies at (k + 0.5) * 4 / 8.1 - 0.5, not at ... * 4 / 8 ...

    So two samples at mirrored places add up to 4 * 8 / 8.1 - 1 instead of 3.
    """
    ramp = torch.arange(4.0).expand(4, 4).reshape(1, 16, 1)
    positions = torch.cat([torch.full((1, 1, 1), 7.0), ramp], dim=1)
    assert dino_positions(positions, 4, 4) is positions
    stretched = dino_positions(positions, 4, 8)
    assert stretched.shape == (1, 33, 1)
    assert stretched[0, 0, 0] == 7
    middle = stretched[0, 1:].reshape(4, 8)[1, 3:5]
    assert float(middle.sum()) == pytest.approx(4 * 8 / 8.1 - 1, abs=0.02)


def test_the_tenth_of_a_patch_is_what_parity_adds(dino_folder: Path):
    """On a square of the trained size both modes are the plain network; elsewhere only mode "vbench" is shifted."""
    from transformers import ViTModel

    def encoder(mode):
        return DinoEncoder(ViTModel.from_pretrained(dino_folder, add_pooling_layer=False), mode)

    square, wide = pictures(2, (32, 32)), pictures(2, (32, 56))
    assert np.array_equal(encoder("vbench")(square), encoder("clean")(square))
    parity, clean = encoder("vbench")(wide), encoder("clean")(wide)
    difference = np.abs(parity - clean).max()
    assert 1e-4 < difference < 1


def test_background_consistency_and_aesthetics_with_a_clip_folder(clip_folder: Path):
    frames = pictures(4, (36, 64))
    about = sample(4, size=(36, 64))
    places = Places(paths={"clip-vit-b32": clip_folder, "clip-vit-l14": clip_folder})
    values = [
        scored(BackgroundConsistency(Setup(mode=m, places=places)), frames, about).value for m in ("vbench", "clean")
    ]
    assert all(value is not None and 0 < value < 100 for value in values)
    assert values[0] != values[1]
    result = scored(AestheticQuality(Setup(places=places), head=(np.ones(12), 0.0)), frames, about)
    assert len(list(series(result, "frame"))) == 4


def test_only_clean_background_sees_beyond_the_middle_square(clip_folder: Path):
    from transformers import CLIPVisionModelWithProjection

    model = CLIPVisionModelWithProjection.from_pretrained(clip_folder, projection_dim=12)
    frames = pictures(2, (32, 64))
    frames[1] = frames[0]
    frames[1, :, :8] = 0  # far to the left
    middle, whole = ClipEncoder(model, "vbench"), ClipEncoder(model, "clean", whole=True)
    assert np.array_equal(*middle(frames))
    assert not np.allclose(*whole(frames), atol=1e-4)


def test_a_folder_that_lacks_weights_is_refused(clip_folder: Path, dino_folder: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_bytes((dino_folder / "config.json").read_bytes())
    state = load_file(dino_folder / "model.safetensors")
    del state["layernorm.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights of ViTModel \(layernorm.weight\)"):
        SubjectConsistency(Setup(places=Places(paths={"dino-vitb16": tmp_path}))).start(sample(4))
    with pytest.raises(UserError, match="lacks weights"):  # another network
        SubjectConsistency(Setup(places=Places(paths={"dino-vitb16": clip_folder}))).start(sample(4))


def test_networks_have_the_published_size():
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, ViTConfig, ViTModel

    def clip(patch: int, width: int, layers: int, heads: int, projection: int) -> torch.nn.Module:
        return CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=4 * width,
                patch_size=patch,
                image_size=224,
                projection_dim=projection,
            )
        )

    with torch.device("meta"):
        made = [ViTModel(ViTConfig(), add_pooling_layer=False), clip(32, 768, 12, 12, 512), clip(14, 1024, 24, 16, 768)]
    assert [sum(p.numel() for p in model.parameters()) for model in made] == [85_798_656, 87_849_216, 303_966_208]


# --- pictures as networks get them ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 832), (224, 388)), ((832, 480), (388, 224)), ((300, 300), (224, 224)), ((64, 96), (224, 336))],
)
def test_the_longer_side_is_truncated(size, expected):
    assert shorter_side(*size, 224) == expected


def test_only_clean_clamps_what_bicubic_overshoots():
    images = torch.zeros(1, 3, 8, 8)
    images[..., 4:] = 255
    up = resized(images, (16, 16), "bicubic", "vbench")
    assert up.max() > 256
    assert up.min() < -1
    clean = resized(images, (16, 16), "bicubic", "clean")
    assert clean.max() <= 255
    assert clean.min() >= 0
    assert resized(images, (8, 8), "bicubic", "vbench") is images


def test_only_clean_antialiases():
    """Lines of one pixel, to a third: averaged to grey, or hit and missed."""
    lines = torch.zeros(1, 3, 24, 24)
    lines[..., ::3] = 255
    aliased = resized(lines, (8, 8), "bilinear", "vbench")
    smooth = resized(lines, (8, 8), "bilinear", "clean")
    assert aliased.max() == 0  # samples lie between the lines
    assert smooth.mean() == pytest.approx(85, abs=3)


def test_the_middle_square_of_odd_margins():
    columns = torch.arange(7.0).expand(1, 3, 4, 7)
    assert centre_crop(columns, 4)[0, 0, 0].tolist() == [2, 3, 4, 5]  # a margin of 1.5, half to even
    assert centre_crop(torch.arange(5.0).expand(1, 3, 4, 5), 4)[0, 0, 0].tolist() == [0, 1, 2, 3]  # 0.5


# --- files ----------------------------------------------------------------------------------------------------------


def test_the_head_is_read_and_checked(tmp_path: Path):
    good, bad = tmp_path / "good.pth", tmp_path / "bad.pth"
    torch.save({"weight": torch.full((1, 768), 0.5), "bias": torch.tensor([2.0])}, good)
    weight, bias = load_head(good)
    assert (weight.shape, bias, weight[3]) == ((768,), 2.0, 0.5)
    torch.save({"layers.0.weight": torch.zeros(1024, 768)}, bad)  # the improved predictor, another network
    with pytest.raises(UserError, match="not LAION's linear head"):
        load_head(bad)


def test_flat_frames_are_consistent():
    result = scored(SubjectConsistency(extractor=Fake(lambda f: f.reshape(len(f), -1)[:, :3] + 1.0)), flat([9] * 6))
    assert result.value == pytest.approx(100)
