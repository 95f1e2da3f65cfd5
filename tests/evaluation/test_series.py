"""Measures of pictures, of motion and against truth: known pictures give known numbers, however they are cut into batches."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from data_videos import write_video
from feeding import feed, flat, sample, scored

from svi.errors import UserError
from svi.evaluation.metric import Better, Frames, Need, Score, Skipped
from svi.evaluation.metrics import course
from svi.evaluation.metrics.measures import MEASURES, measured
from svi.evaluation.metrics.motion import FIGURES, Flow, Motion
from svi.evaluation.metrics.pixels import Psnr, Ssim, ssim
from svi.evaluation.metrics.series import QUESTIONS, Look
from svi.evaluation.metrics.shared import Shared
from svi.generation.writer import read_frames

SIDE = 48


def grain(sigma: float, mean: float = 128, seed: int = 0, count: int = 1) -> np.ndarray:
    """Grey noise, ``(count, SIDE, SIDE, 3)``."""
    noise = np.random.default_rng(seed).normal(mean, sigma, (count, SIDE, SIDE, 1))
    return noise.round().clip(0, 255).astype(np.uint8).repeat(3, -1)


def waves(cycles_per_pixel: float) -> np.ndarray:
    wave = 128 + 60 * np.sin(2 * np.pi * cycles_per_pixel * np.arange(64))
    return np.broadcast_to(wave.round().astype(np.uint8)[None, None, :, None], (1, 64, 64, 3))


def of(name: str, frames: np.ndarray) -> float:
    return float(measured(frames, [name])[name][0])


# -- measures


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((119, 119, 119), (50.03, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
    ],
)
def test_lab_of_known_colours(rgb: tuple[int, int, int], lab: tuple[float, float, float]):
    frame = np.broadcast_to(np.array(rgb, np.uint8), (1, 4, 4, 3))
    assert measured(frame, ["colour"])["colour"][0] == pytest.approx(lab, abs=0.05)
    assert of("luma", frame) == pytest.approx(lab[0], abs=0.05)
    assert of("chroma", frame) == pytest.approx(np.hypot(*lab[1:]), abs=0.05)
    assert of("contrast", frame) == pytest.approx(0, abs=1e-3)


def test_contrast_and_clipping_of_half_and_half():
    halves = np.zeros((1, 4, 4, 3), np.uint8)
    halves[:, 2:] = 255
    assert of("contrast", halves) == pytest.approx(50, abs=0.01)
    assert of("clipped", halves) == 100
    halves[:, 2:] = (255, 0, 0)
    assert of("clipped", halves) == 50
    assert [of("clipped", flat([level])) for level in (2, 3, 252, 253)] == [100, 0, 0, 100]


def test_colourfulness_of_half_red_half_grey():
    """Red: rg = 100, yb = 50; grey: 0. So both have half of that as mean and as spread."""
    frame = np.full((1, 4, 4, 3), 100, np.uint8)
    frame[:, 2:] = (200, 100, 100)
    assert of("colourfulness", frame) == pytest.approx(1.3 * np.hypot(50, 25), rel=1e-5)
    assert of("colourfulness", flat([90])) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("sigma", [3.0, 8.0])
def test_noise_is_found_in_grey_levels_and_in_sharpness(sigma: float):
    assert of("noise", grain(sigma)) == pytest.approx(sigma, rel=0.05)
    assert of("sharpness", grain(sigma)) == pytest.approx(10 * np.log10(20 * sigma**2), abs=0.4)


def test_noise_is_blind_to_slopes_and_sharpness_has_a_floor():
    slope = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, None, :, None], (1, 64, 64, 3))
    assert of("noise", slope) == pytest.approx(0, abs=1e-4)
    assert of("sharpness", slope) == of("sharpness", flat([0])) == pytest.approx(10 * np.log10(20 / 12))


def test_detail_is_the_share_of_fine_waves():
    assert of("detail", waves(0.4)) == pytest.approx(0, abs=0.1)
    assert of("detail", waves(0.05)) < -30
    both = (waves(0.4).astype(int) + waves(0.05)) // 2
    assert of("detail", both.astype(np.uint8)) == pytest.approx(10 * np.log10(0.5), abs=0.2)
    assert np.isnan(of("detail", flat([7])))


# -- a video's look


def rising(num_frames: int = 80) -> np.ndarray:
    """Noise whose mean rises a level each frame: 5 s at 16 fps."""
    return (grain(6, 60, seed=1).astype(int) + np.arange(num_frames)[:, None, None, None]).astype(np.uint8)


@pytest.mark.parametrize("batch", [1, 7, 80])
def test_batches_do_not_matter_and_four_frames_a_second_are_seen(batch: int):
    frames, about = rising(), sample(80, borders=range(20, 80, 20))
    whole = scored(Look("luma"), frames, about, batch=33)
    result = scored(Look("luma"), frames, about, batch=batch)
    assert result.extra == pytest.approx(whole.extra, rel=1e-4, abs=1e-4)
    at, values = result.series["luma"]
    np.testing.assert_allclose(values, whole.series["luma"][1], rtol=1e-5)
    assert list(at) == list(range(0, 80, 4))
    np.testing.assert_allclose(values, measured(frames[::4], ["luma"])["luma"], rtol=1e-5)
    assert list(result.series["clip"][0]) == [0, 20, 40, 60]
    assert result.value == pytest.approx(result.extra["end"] - result.extra["start"])
    assert result.value > 20
    assert result.extra["slope_low"] <= result.extra["slope"] <= result.extra["slope_high"]


def test_look_is_the_worst_measure_in_margins():
    result = scored(Look(), rising(), sample(80, borders=range(20, 80, 20)))
    assert set(result.extra) == set(MEASURES)
    assert result.value == max(result.extra.values())
    luma = scored(Look("luma"), rising(), sample(80, borders=range(20, 80, 20)))
    assert result.extra["luma"] == pytest.approx(luma.extra["late"] / MEASURES["luma"].margin)


def test_colour_is_measured_from_the_reference_or_from_the_first_clip():
    frames = rising()
    own = scored(Look("colour"), frames, sample(80, borders=range(20, 80, 20)))
    other = scored(Look("colour"), frames, sample(80, borders=range(20, 80, 20), reference=frames[-1]))
    assert own.value > 15
    assert other.value < -15  # it comes nearer


def test_against_truth_what_the_story_changes_is_no_drift():
    frames, about = rising(), sample(80, borders=range(20, 80, 20))
    same = scored(Look(against="truth"), frames, about, truth=frames)
    assert same.value == 0
    darker = scored(Look("luma", "truth"), frames - np.uint8(10), about, truth=frames)
    assert darker.value == pytest.approx(0, abs=0.7)  # as dark at the end as at the start
    assert max(darker.series["luma"][1]) < -3
    assert Need.TRUTH in Look(against="truth").needs
    without = feed(Look(against="truth"), frames, about)
    assert isinstance(without, Skipped)
    assert "no true video" in without.reason


def test_too_short_and_unknown():
    assert isinstance(feed(Look("luma"), flat([1] * 20)), Skipped)
    assert isinstance(feed(Look("detail"), flat([1] * 80)), Skipped)  # of one colour
    with pytest.raises(UserError, match="did you mean 'luma'"):
        Look("lumma")
    with pytest.raises(UserError, match="unknown figure"):
        Motion("speed")
    with pytest.raises(UserError, match="cannot compare"):
        Psnr("nothing")  # type: ignore[arg-type]


def test_every_name_is_its_own_and_every_key_tells_constants():
    metrics = [
        *(Look(q.measure, q.against) for q in QUESTIONS.values()),
        *map(Motion, FIGURES),
        Psnr(),
        Ssim("reference"),
    ]
    assert len({metric.name for metric in metrics}) == len(metrics)
    assert [q.name for q in QUESTIONS.values()] == [Look(q.measure, q.against).name for q in QUESTIONS.values()]
    assert all(metric.key().startswith("{") and metric.source for metric in metrics)
    assert Look("luma").better is Better.ZERO


# -- one pass for all


class Counting:
    """Counts frames."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def add(self, batch: Frames) -> None:
        if len(batch.frames) > 8:
            raise ValueError("broken")
        self.seen += range(batch.start, batch.start + len(batch.frames))

    def result(self, name: str) -> Score:
        return Score(len(self.seen), extra={name: 1})


def test_metrics_of_one_video_share_the_work():
    works: list[Counting] = []
    shared = Shared(lambda about, names: works.append(Counting()) or works[-1])
    about, frames = sample(12), flat([0] * 12)
    together = [shared.start(name, about) for name in "abc"]
    for start in (0, 5, 10):
        for reading in together:
            reading.add(Frames(start, frames[start : start + 5]))
    assert len(works) == 1
    assert works[0].seen == list(range(12))
    assert [reading.result() for reading in together] == [Score(12, extra={name: 1}) for name in "abc"]

    late = shared.start("d", about)  # the others have begun: it works for itself
    late.add(Frames(0, frames[:8]))
    assert late.result() == Score(8, extra={"d": 1})
    again = shared.start("a", sample(12))
    again.add(Frames(0, frames[:3]))
    assert len(works) == 3


def test_what_breaks_for_one_breaks_for_all():
    shared = Shared(lambda about, names: Counting())
    about = sample(9)
    readings = [shared.start(name, about) for name in "ab"]
    for reading in readings:
        with pytest.raises(ValueError, match="broken"):
            reading.add(Frames(0, flat([0] * 9)))


# -- motion


def scene(num_frames: int, step: float = 1.0, size: int = 64) -> np.ndarray:
    """A texture that goes sideways, ``step`` pixels a frame."""
    rng = np.random.default_rng(5)
    coarse = rng.integers(40, 216, (size // 4, 64))
    wide = np.kron(coarse, np.ones((4, 4))).astype(np.uint8)
    return np.stack([wide[:, (at := round(step * k) % 128) : at + size, None].repeat(3, -1) for k in range(num_frames)])


def test_flicker_is_back_and_forth_not_up():
    assert course.flicker(np.arange(9.0)) == 0
    assert course.flicker(np.array([0.0, 1, 0, 1, 0])) == 2
    assert scored(Motion("flicker"), flat([100, 120] * 20)).value > 10
    assert scored(Motion("flicker"), flat([100] * 40)).value == 0


def test_seams_stand_out_from_their_own_clips():
    steps = np.array([np.nan, 1, 1, 8, 2, 2, 2, 0, 0, 0])
    np.testing.assert_allclose(course.seam_ratios(steps, [3, 7]), [4, 0])
    assert np.isnan(course.seam_ratios(np.zeros(6), [3])).all()
    jumps = scene(48)
    jumps[24:] = 255 - jumps[24:]
    result = scored(Motion("seam_ratio"), jumps, sample(48, borders=[24]))
    assert result.value == result.extra["worst"] > 3
    assert scored(Motion("seam_ratio"), scene(48), sample(48, borders=[24])).value == pytest.approx(1, abs=0.2)
    assert Motion("seam_ratio").needs == {Need.CLIPS}


def test_distance_to_the_nearest_elsewhere():
    thumbs = np.array([[0.0, 0], [10, 10], [20, 20], [0, 3], [50, 50]])
    found = course.nearest_elsewhere(thumbs, apart=3)
    np.testing.assert_allclose(found, [np.sqrt(4.5), 40, np.nan, np.sqrt(4.5), 40], atol=1e-3)


def test_calm_is_not_copied():
    distance = np.array([0.1, 0.4, 0.4, 0.9, 1.1, 1.1])
    local = np.array([0.0, 0.2, 2.0, 7.0, 7.0, 20.0])  # the last: fast, so the codec may be that far off
    assert course.same(distance, local).tolist() == [True, False, True, True, False, True]


def test_foolers_come_again_and_truth_does_not():
    frames, about = scene(96), sample(96, borders=range(24, 96, 24))
    copied = np.concatenate([frames[:24]] * 4)
    assert scored(Motion("duplicate_share"), frames, about).value == 0
    assert scored(Motion("duplicate_share"), copied, about).value == 1
    assert scored(Motion("unique_share"), frames, about).value == 1
    assert scored(Motion("unique_share"), copied, about).value == 0.25
    still = frames[:1].repeat(96, 0)
    assert scored(Motion("reference_copies"), still, about).value == 1
    assert scored(Motion("reference_copies"), frames, about).value == 0
    assert isinstance(feed(Motion("duplicate_share"), frames[:1]), Skipped)


@pytest.mark.parametrize("crf", ["16", "23"])
def test_copies_are_found_through_a_codec(tmp_path: Path, crf: str):
    """No frame is an exact copy then; the true video, encoded alike, still has none."""
    frames, about = scene(96, 2.0), sample(96, borders=range(24, 96, 24))
    to_and_fro = frames[np.array([*range(24), *range(22, 0, -1)] * 3)[:96]]
    shares = []
    for number, shown in enumerate((frames[:60], to_and_fro)):
        path = write_video(tmp_path / f"{number}.mp4", shown, options={"crf": crf})
        decoded = np.stack(list(read_frames(path)))
        shares.append(scored(Motion("duplicate_share"), decoded, about).value)
    assert shares[0] == 0
    assert shares[1] > 0.9


def test_black_frames_are_counted():
    assert scored(Motion("black_share"), flat([0, 0, 0, 90])).value == 0.75


def test_without_opencv_flow_says_so_and_the_rest_works(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert "stable-video-infinity[evaluation]" in (Motion().missing() or "")
    assert Motion("flicker").missing() is None
    with pytest.raises(UserError, match="OpenCV"):
        Flow()
    assert scored(Motion("flicker"), flat([100] * 9)).value == 0


@pytest.mark.parametrize(("fps", "step"), [(16, 1.0), (24, 1.0), (8, 2.0)])
def test_speed_is_in_percent_of_the_short_side_per_second(fps: float, step: float):
    pytest.importorskip("cv2")
    result = scored(Motion(), scene(25, step, size=128), sample(25, fps, size=(128, 128)))
    assert result.value == pytest.approx(100 * step * fps / 128, rel=0.15)


def test_retained_motion():
    pytest.importorskip("cv2")
    steady = scene(96, size=128)
    slow = np.concatenate([steady[:48], steady[47:71].repeat(2, 0)])
    assert scored(Motion("motion_retained"), steady).value == pytest.approx(1, abs=0.1)
    half = scored(Motion("motion_retained"), slow)
    assert half.value == pytest.approx(0.5, abs=0.1)
    assert half.extra["low"] <= half.value <= half.extra["high"]
    assert isinstance(feed(Motion("motion_retained"), steady[:1].repeat(96, 0)), Skipped)


# -- against truth and reference


def test_psnr_of_a_known_difference_and_the_order_of_means():
    truth = flat([100] * 6)
    frames = flat([105, 105, 105, 100, 100, 100])
    result = scored(Psnr(), frames, truth=truth)
    five = 10 * np.log10(255**2 / 25)
    assert result.value == pytest.approx((five + 60) / 2)
    assert result.extra["of_mean_error"] == pytest.approx(10 * np.log10(255**2 / 12.5))
    assert result.extra["lowest"] == pytest.approx(five)
    by_reference = scored(Psnr("reference"), frames, sample(6, reference=truth[0]))
    assert by_reference.value == pytest.approx(result.value)


def test_ssim_of_flat_frames_is_its_luminance_term():
    c1 = (0.01 * 255) ** 2
    found = ssim(flat([100], (16, 20)), flat([120], (16, 20)))
    assert found == pytest.approx((2 * 100 * 120 + c1) / (100**2 + 120**2 + c1), abs=1e-4)


def test_ssim_is_that_of_the_formula():
    x, y = grain(20, seed=1)[:, :11, :11], grain(20, seed=2)[:, :11, :11]  # one window only
    at = np.arange(11) - 5
    window = np.exp(-(at**2) / 4.5)
    window = np.outer(window, window) / window.sum() ** 2
    a, b = x[0, ..., 0].astype(float), y[0, ..., 0].astype(float)
    ma, mb = (window * a).sum(), (window * b).sum()
    va, vb, ab = ((window * p * q).sum() for p, q in ((a - ma, a - ma), (b - mb, b - mb), (a - ma, b - mb)))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    wanted = (2 * ma * mb + c1) * (2 * ab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    assert ssim(x, y) == pytest.approx(wanted, abs=1e-4)
    assert ssim(x, x) == pytest.approx(1)


@pytest.mark.parametrize(
    ("metric", "frames", "truth", "reason"),
    [
        (Psnr(), flat([1] * 3), None, "no true video"),
        (Psnr(), flat([1] * 3), flat([1] * 3, (8, 16)), "16x8, this video 8x8"),
        (Ssim(), flat([1] * 3), flat([1] * 3), "too small"),
        (Ssim("reference"), flat([1] * 3), None, "no reference image"),
    ],
)
def test_what_cannot_be_compared_is_skipped_with_its_reason(metric, frames, truth, reason: str):
    result = feed(metric, frames, truth=truth)
    assert isinstance(result, Skipped)
    assert reason in result.reason
