"""Dynamic degree and motion smoothness: which frames they look at, by hand; RAFT and the flow of the surrogate."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from feeding import Fake, feed, number, numbered, sample, scored, series

from svi.errors import UserError
from svi.evaluation.metric import Skipped
from svi.evaluation.metrics import raft, smoothness
from svi.evaluation.metrics.dynamic import DynamicDegree
from svi.evaluation.metrics.extract import Setup
from svi.evaluation.metrics.smoothness import FlowMiddle, Foretold, MotionSmoothness, MotionSmoothnessFlow
from svi.evaluation.metrics.weights import Places

NOWHERE = Places(folder=Path("nowhere"), caches=False)


def flow_per_frame(pixels: float, still_from: int = 1000) -> Fake:
    """Flow of ``pixels`` per frame number between the two frames of a pair, until frames stand still."""

    def flow(pairs: np.ndarray) -> np.ndarray:
        first, second = np.minimum(number(pairs), still_from).T
        out = np.zeros((len(pairs), 20, 20, 2))
        out[..., 0] = ((second - first) * pixels)[:, None, None]
        return out

    return Fake(flow)


@pytest.mark.parametrize(("fps", "step"), [(12, 2), (16, 2), (20, 2), (24, 3), (25, 3), (30, 4)])
@pytest.mark.parametrize("num_frames", [40, 41])
def test_pairs_at_every_rate(fps: int, step: int, num_frames: int):
    result = scored(
        DynamicDegree(extractor=flow_per_frame(1.0)), numbered(num_frames), sample(num_frames, fps, (256, 300))
    )
    at = [frame for frame, _ in series(result, "speed")]
    assert at == list(range(0, num_frames - step, step))
    assert result.extra["threshold_px"] == 6
    assert result.value == 0  # at most 4 px per pair
    speeds = [value for _, value in series(result, "speed")]
    assert speeds == pytest.approx([100 * fps / 256] * len(at))  # 1 px per frame, percent of 256 per second


def test_the_frame_rate_of_the_header_decides():
    """3.5 px per frame: 7 px per pair at 16 fps, 10.5 at 24; the threshold at 300 px is 7.03."""
    values = {}
    for mode in ("vbench", "clean"):
        for fps in (16, 24):
            metric = DynamicDegree(Setup(mode=mode), flow_per_frame(3.5))
            values[mode, fps] = scored(metric, numbered(33), sample(33, fps, (300, 300))).value
    assert values == {("vbench", 16): 0, ("vbench", 24): 100, ("clean", 16): 0, ("clean", 24): 100}
    at_20 = [
        scored(DynamicDegree(Setup(mode=m), flow_per_frame(3.5)), numbered(33), sample(33, 20, (300, 300))).value
        for m in ("vbench", "clean")
    ]
    assert at_20 == [0, 100]  # 2/20 s is less than the 1/8 s that the threshold is for


@pytest.mark.parametrize(("still_from", "expected"), [(8, 0), (9, 100)])
def test_a_quarter_must_move(still_from: int, expected: float):
    """33 frames at 16 fps: 17 looked at, 4 needed; motion until frame 8 makes pairs 0-2, 2-4, 4-6, 6-8."""
    metric = DynamicDegree(extractor=flow_per_frame(10, still_from))
    result = scored(metric, numbered(33), sample(33, 16, (400, 400)))  # threshold 9.4 px
    assert result.extra["needed"] == 4
    assert result.extra["moving"] == (4 if still_from == 8 else 5)
    assert result.value == 100
    fewer = DynamicDegree(extractor=flow_per_frame(10, still_from - 2))
    assert scored(fewer, numbered(33), sample(33, 16, (400, 400))).value == expected


def test_long_gives_the_share_of_clips_that_move():
    metric = DynamicDegree(Setup(profile="long"), flow_per_frame(10, still_from=40))
    result = scored(metric, numbered(128), sample(128, 16, (400, 400)))
    assert dict(series(result, "clip")) == {0: 100, 32: 100, 64: 0, 96: 0}
    assert result.value == 50


def test_two_frames_move_by_default_and_one_is_skipped():
    still = flow_per_frame(0)
    assert scored(DynamicDegree(extractor=still), numbered(3), sample(3)).value == 100  # frames 0 and 2: none needed
    assert scored(DynamicDegree(Setup(mode="clean"), still), numbered(3), sample(3)).value == 0
    result = feed(DynamicDegree(extractor=still), numbered(2), sample(2))
    assert isinstance(result, Skipped)
    assert "too short" in result.reason


def test_a_video_shorter_than_its_header_is_skipped():
    result = feed(DynamicDegree(extractor=flow_per_frame(1)), numbered(20), sample(40))
    assert isinstance(result, Skipped)
    assert "ends before" in result.reason


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batches_change_nothing(batch: int):
    about = sample(50, 24, (300, 300))
    for size in (1, 8, 64):
        fake = flow_per_frame(3.5)
        result = scored(DynamicDegree(Setup(batch_size=size, profile="long"), fake), numbered(50), about, batch=batch)
        assert sum(fake.sizes) == len(list(series(result, "speed")))
        assert max(fake.sizes) <= max(1, size // 8)
        assert result.value == 100


def test_small_frames_and_missing_weights_are_reasons():
    metric = DynamicDegree(Setup(places=NOWHERE))
    assert "raft_large_C_T_V1" in str(metric.missing())
    result = feed(metric, np.zeros((4, 64, 96, 3), np.uint8), sample(4, size=(64, 96)))
    assert isinstance(result, Skipped)
    assert "128" in result.reason


# --- RAFT -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> raft.Raft:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return raft.Raft().eval()


def test_raft_has_the_published_weights(network: raft.Raft):
    assert sum(p.numel() for p in network.parameters()) == 5_257_536  # as torchvision says of raft_large
    state = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert state["feature_encoder.layer2.0.downsample.0.weight"] == (96, 64, 1, 1)
    assert state["context_encoder.layer3.1.convnormrelu2.1.running_var"] == (128,)
    assert state["update_block.motion_encoder.convcorr1.0.weight"] == (256, 324, 1, 1)
    assert state["update_block.recurrent_block.convgru2.convq.weight"] == (128, 384, 5, 1)
    assert state["mask_predictor.conv.weight"] == (576, 256, 1, 1)
    assert "feature_encoder.layer1.0.convnormrelu1.1.weight" not in state  # instance norm has none


def test_correlation_finds_where_a_pixel_went():
    """Features that are one-hot per pixel, moved by 2 in x and 1 in y: the look-up peaks at that offset."""
    first = torch.eye(256).reshape(1, 256, 16, 16)
    second = torch.roll(first, (1, 2), dims=(2, 3))
    pyramid = raft.correlation_pyramid(first, second)
    assert [tuple(level.shape[-2:]) for level in pyramid] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    axes = torch.arange(16.0)
    grid = torch.stack(torch.meshgrid(axes, axes, indexing="ij")[::-1])[None]
    seen = raft.look_up(pyramid, grid)[0, :81, 8, 8].reshape(9, 9)
    assert divmod(int(seen.argmax()), 9) == (4 + 2, 4 + 1)  # first axis x


def test_upsampled_flow_of_uniform_motion_is_uniform():
    flow = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 4, 5)
    big = raft.upsampled(flow, torch.randn(1, 576, 4, 5, generator=torch.Generator().manual_seed(0)))
    assert big.shape == (1, 2, 32, 40)
    assert big[0, :, 12, 16].tolist() == pytest.approx([8, -16], rel=1e-5)


def test_only_parity_counts_the_padding(network: raft.Raft, monkeypatch: pytest.MonkeyPatch):
    short = raft.Raft.forward
    monkeypatch.setattr(raft.Raft, "forward", lambda self, a, b: short(self, a, b, 1))
    pairs = np.random.default_rng(0).integers(0, 256, (1, 2, 130, 128, 3), dtype=np.uint8)
    padded, cut = raft.RaftFlow(network, "vbench")(pairs), raft.RaftFlow(network, "clean")(pairs)
    assert padded.shape == (1, 136, 128, 2)
    assert np.array_equal(cut, padded[:, 3:133])


def test_raft_weights_are_loaded_or_refused(network: raft.Raft, tmp_path: Path):
    good, bad = tmp_path / "good.pth", tmp_path / "bad.pth"
    torch.save({k: v for k, v in network.state_dict().items() if "num_batches" not in k}, good)
    loaded = raft.load(good, torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), network.parameters(), strict=True))
    torch.save({"module.fnet.conv1.weight": torch.zeros(64, 3, 7, 7)}, bad)
    with pytest.raises(UserError, match="not torchvision's raft_large"):
        raft.load(bad, torch.device("cpu"))


# --- smoothness -----------------------------------------------------------------------------------------------------


def average(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return ((before.astype(int) + after) // 2).astype(np.uint8)


@pytest.mark.parametrize(("num_frames", "judged"), [(5, [1, 3]), (6, [1, 3]), (7, [1, 3, 5])])
def test_odd_frames_are_judged(num_frames: int, judged: list[int]):
    levels = np.array([0, 30, 20, 20, 40, 90, 60])[:num_frames]  # middles 10, 30, 50: off by 20, 10, 40
    frames = np.broadcast_to(levels[:, None, None, None], (num_frames, 8, 8, 3)).astype(np.uint8)
    result = scored(MotionSmoothness(extractor=Foretold(average)), frames)
    off = [20, 10, 40][: len(judged)]
    assert dict(series(result, "frame")) == pytest.approx(
        {k: 100 * (255 - d) / 255 for k, d in zip(judged, off, strict=True)}
    )
    assert result.value == pytest.approx(100 * (255 - np.mean(off)) / 255)


def test_clean_judges_every_frame_and_long_every_clip():
    frames = numbered(41)
    clean = scored(MotionSmoothness(Setup(mode="clean"), Foretold(average)), frames)
    assert [at for at, _ in series(clean, "frame")] == list(range(1, 40))
    assert clean.value == 100
    long = scored(MotionSmoothness(Setup(profile="long"), Foretold(average)), frames, sample(41, 10))
    assert [at for at, _ in series(long, "clip")] == [0, 20, 21]
    assert isinstance(feed(MotionSmoothness(extractor=Foretold(average)), numbered(2)), Skipped)


def test_amt_is_never_taken_without_asking():
    assert "CC BY-NC" in str(MotionSmoothness(Setup(places=NOWHERE)).missing())
    named = MotionSmoothness(Setup(places=NOWHERE), plugin="a:b")
    assert "amt-s" in str(named.missing())
    assert named.key() != MotionSmoothness(Setup(places=NOWHERE)).key()


def test_a_plug_in_brings_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_amt.py").write_text("def load(weights, device):\n    return lambda before, after: before\n")
    (tmp_path / "amt-s.pth").write_bytes(b"weights")
    monkeypatch.syspath_prepend(str(tmp_path))
    setup = Setup(places=Places(folder=tmp_path, caches=False))
    metric = MotionSmoothness(setup, plugin="my_amt:load")
    assert metric.missing() is None
    assert scored(metric, numbered(5)).value == pytest.approx(100 * 254 / 255)
    for wrong, reason in [
        ("my_amt", "package.module:function"),
        ("my_amt:lode", "no function"),
        ("no_amt:load", "import"),
    ]:
        with pytest.raises(UserError, match=reason):
            smoothness.plugin(wrong)
    sys.modules.pop("my_amt", None)


def test_a_plug_in_must_return_frames():
    broken = Foretold(lambda before, after: before.astype(np.float32))
    with pytest.raises(UserError, match="correct the plug-in"):
        feed(MotionSmoothness(extractor=broken), numbered(5))


def texture(size: int = 160) -> np.ndarray:
    """Smooth noise, ``(size, size, 3)`` floats."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, size // 8, size // 8)))
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)
    return fine[0].permute(1, 2, 0).clamp(0, 255).numpy()


@pytest.mark.parametrize(("dx", "dy"), [(2, 0), (0, -4), (6, 4), (-8, 4)])
def test_symmetric_flow_finds_motion(dx: int, dy: int):
    image = texture()
    window = image[40:120, 40:120]
    moved = image[40 - dy : 120 - dy, 40 - dx : 120 - dx]
    first, last = (torch.from_numpy(x.copy()).float().permute(2, 0, 1)[None] for x in (window, moved))
    flow = smoothness.symmetric_flow(first, last)[0, :, 20:60, 20:60]
    assert float((flow[0] - dx).abs().median()) < 0.25
    assert float((flow[1] - dy).abs().median()) < 0.25


def test_the_surrogate_foretells_motion_and_not_jumps():
    image = texture()

    def video(shifts: list[int]) -> np.ndarray:
        return np.stack([image[40:120, 40 - s : 120 - s] for s in shifts]).astype(np.uint8)

    about = sample(5, size=(80, 80))
    steady, shaking, still = (
        scored(MotionSmoothnessFlow(), video(shifts), about).value
        for shifts in ([0, 2, 4, 6, 8], [0, 6, 4, 10, 8], [0, 0, 0, 0, 0])
    )
    assert steady is not None
    assert shaking is not None
    assert still == pytest.approx(100, abs=0.1)
    assert steady > shaking + 1
    copied = np.abs(video([0]).astype(int) - video([2]).astype(int)).mean()
    assert 255 * (1 - steady / 100) < copied / 2  # better than repeating a neighbour
    metric = MotionSmoothnessFlow()
    assert metric.name == "motion_smoothness_flow"
    assert metric.missing() is None


def test_flow_middle_keeps_shape_and_type():
    frames = np.random.default_rng(0).integers(0, 256, (2, 30, 26, 3), dtype=np.uint8)
    middle = FlowMiddle()(frames, frames)
    assert middle.dtype == np.uint8
    assert np.abs(middle.astype(int) - frames).max() <= 1
