"""The arithmetic of the metrics, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from svi.evaluation.metrics import formulas as f


@pytest.mark.parametrize(
    ("fps", "interval", "needed_of_5_s"),
    [(12, 2, 8), (16, 2, 10), (20, 2, 12), (24, 3, 10), (25, 3, 10), (30, 4, 10), (8, 1, 10), (3, 1, 4)],
)
def test_dynamic_degree_looks_at_eight_frames_a_second_or_nearly(fps: int, interval: int, needed_of_5_s: int):
    assert f.dynamic_interval(fps) == interval
    looked_at = f.dynamic_frames((0, 5 * fps), fps)
    assert looked_at[:2] == [0, interval]
    assert f.dynamic_need(len(looked_at), "vbench") == needed_of_5_s


def test_the_same_frames_need_less_when_the_header_says_24():
    at_16, at_24 = (f.dynamic_frames((0, 801), fps) for fps in (16, 24))
    assert (len(at_16), f.dynamic_need(len(at_16), "vbench")) == (401, 100)
    assert (len(at_24), f.dynamic_need(len(at_24), "vbench")) == (267, 67)


def test_a_quarter_of_the_frames_is_rounded_half_to_even():
    assert [f.dynamic_need(n, "vbench") for n in (2, 3, 6, 10, 14, 16)] == [0, 1, 2, 2, 4, 4]
    assert f.dynamic_need(2, "clean") == 1


def test_two_frames_always_move_for_vbench():
    still = np.zeros(1)
    assert f.moves(still, 2, 11.25, "vbench")
    assert not f.moves(still, 2, 11.25, "clean")
    assert not f.moves(np.zeros(0), 1, 11.25, "vbench")


def test_the_threshold_is_that_of_480p():
    assert f.dynamic_threshold(480, 832) == 11.25
    assert f.dynamic_threshold(832, 480) == 11.25
    # 24 fps looks every 3/24 s, just the 1/8 s that is meant; 20 fps every 2/20 s, so less motion is enough.
    assert f.dynamic_threshold(480, 832, 3 / 24) == 11.25
    assert f.dynamic_threshold(480, 832, 2 / 20) == pytest.approx(9.0)


def test_the_threshold_must_be_exceeded_by_enough_pairs():
    speeds = np.array([12.0, 11.25, 12.0, 0.0])
    assert not f.moves(speeds, 12, 11.25, "vbench")  # 2 of 3
    assert f.moves(speeds, 8, 11.25, "vbench")  # 2 of 2


def test_the_fastest_twentieth_decides():
    flow = np.zeros((2, 10, 10, 2))
    flow[0, 0, :5] = (3, 4)  # 5 of 100 pixels at 5 px
    flow[1, 0, :4] = (3, 4)  # 4 of 100: the fifth stands still
    assert f.top_flow(flow).tolist() == [5.0, 4.0]
    assert math.isnan(f.top_flow(np.ones((1, 4, 4, 2)))[0])


def test_consistency_by_hand():
    features = np.array([[2.0, 0.0], [1.0, 1.0], [0.0, 3.0], [-1.0, 0.0]])
    half = math.sqrt(0.5)
    # frames 1, 2, 3: (previous, first) = (half, half), (half, 0), (0, -1)
    assert f.consistency(features, "vbench") == pytest.approx([half, half / 2, 0.0])
    assert f.consistency(features, "clean") == pytest.approx([half, half / 2, -0.5])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_consistency_does_not_see_the_length_of_features(scale: float):
    features = np.random.default_rng(0).standard_normal((5, 7))
    assert f.consistency(scale * features, "vbench") == pytest.approx(f.consistency(features, "vbench"))


def test_laion_by_hand():
    embeddings = np.array([[3.0, 4.0], [0.0, 2.0]])
    assert f.laion(embeddings, np.array([10.0, 20.0]), 5.0) == pytest.approx([(6 + 16 + 5) / 10, 2.5])


@pytest.mark.parametrize(
    ("size", "vbench", "clean"),
    [
        ((480, 832), (295, 512), (295, 512)),
        ((832, 480), (512, 295), (512, 295)),
        ((720, 1280), (288, 512), (288, 512)),
        ((400, 768), (266, 512), (267, 512)),
        ((512, 512), (512, 512), (512, 512)),
        ((64, 96), (64, 96), (64, 96)),
    ],
)
def test_imaging_quality_resizes_only_what_is_larger_than_512(size, vbench, clean):
    assert f.imaging_size(*size, "vbench") == vbench
    assert f.imaging_size(*size, "clean") == clean


def test_clips_of_two_seconds():
    assert f.clips(96, 16, "vbench") == [(0, 32), (32, 64), (64, 96)]
    # the tail of 6 is completed with the 26 frames before it
    assert f.clips(70, 16, "vbench") == [(0, 32), (32, 64), (38, 70)]
    assert f.clips(70, 16, "clean") == [(0, 32), (32, 64), (64, 70)]
    assert f.clips(20, 16, "vbench") == f.clips(20, 16, "clean") == [(0, 20)]
    assert f.clips(0, 16, "vbench") == []


@pytest.mark.parametrize("fps", [12, 16, 20, 24, 25, 30, 23.976, 29.97])
def test_clips_cover_every_frame_at_every_rate(fps: float):
    for num_frames in (1, 31, 32, 33, 160, 161):
        for mode in ("vbench", "clean"):
            covered = {frame for start, stop in f.clips(num_frames, fps, mode) for frame in range(start, stop)}
            assert covered == set(range(num_frames))
    assert f.clips(200, 23.976, "vbench")[0] == (0, 46)  # int(fps), as published
    assert f.clips(200, 23.976, "clean")[0] == (0, 48)


def test_smoothness_judges_odd_frames_and_loses_the_last_of_an_even_number():
    assert f.smooth_triples((0, 5), "vbench") == [(0, 1, 2), (2, 3, 4)]
    assert f.smooth_triples((0, 6), "vbench") == [(0, 1, 2), (2, 3, 4)]
    assert f.smooth_triples((0, 5), "clean") == [(0, 1, 2), (1, 2, 3), (2, 3, 4)]
    assert f.smooth_triples((10, 13), "vbench") == [(10, 11, 12)]
    assert f.smooth_triples((0, 2), "clean") == []
    assert f.smoothness(np.array([0.0, 5.1])) == pytest.approx(0.99)


def test_frechet_of_points_on_a_line():
    # means 1 and 4, variances 2 and 8: 9 + 2 + 8 - 2 sqrt(16)
    assert f.frechet(np.array([[0.0], [2.0]]), np.array([[2.0], [6.0]])) == pytest.approx(11.0)


def test_frechet_of_rotated_distributions():
    """Against the closed form for covariances that share their axes, with more and with fewer rows than columns."""
    rng = np.random.default_rng(1)
    for rows in (400, 3):
        basis = np.linalg.qr(rng.standard_normal((6, 6)))[0]
        first = rng.standard_normal((rows, 6))
        first -= first.mean(axis=0)
        scales = np.array([1.0, 2.0, 0.5, 3.0, 1.0, 0.1])
        # (X S)(Y): with Y = X the product of covariances is S C C S, whose root has a known trace only for S = s I
        assert f.frechet(first @ basis, first @ basis) == pytest.approx(0.0, abs=1e-9)
        grown = 3 * first @ basis + scales
        expected = np.sum(scales**2) + 4 * np.sum(first**2) / (rows - 1)
        assert f.frechet(first @ basis, grown) == pytest.approx(expected)


def test_kernel_distance_by_hand():
    first, second = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])
    # kernel (xy + 1)^3: within 1 and 27, between (1 + 1 + 8 + 27) / 4
    assert f.kernel_distance(first, second) == pytest.approx(1 + 27 - 2 * 37 / 4)


def test_kernel_distance_is_unbiased():
    rng = np.random.default_rng(0)
    values = [f.kernel_distance(rng.standard_normal((20, 4)), rng.standard_normal((20, 4))) for _ in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(len(values))
    assert min(values) < 0 < max(values)


def test_sync_finds_the_shift_and_its_confidence():
    rng = np.random.default_rng(0)
    sound = rng.standard_normal((200, 16))
    video = np.roll(sound, 4, axis=0)  # the picture is 4 frames late: sound is early
    confidence, distance, offset = f.sync_scores(f.sync_distances(video, sound, mode="clean"))
    assert offset == 4
    assert distance < 0.3  # the four rows that rolled round
    assert confidence == pytest.approx(math.sqrt(2 * 16), rel=0.1)


def test_sync_by_hand():
    video, sound = np.array([[0.0], [0.0], [0.0]]), np.array([[1.0], [2.0], [4.0]])
    published = f.sync_distances(video, sound, reach=1)
    assert published == pytest.approx(np.array([[0, 1, 2], [1, 2, 4], [2, 4, 0]]), abs=1e-5)
    # means 1, 7/3, 2: least 1, median 2; shift -1 is offset +1
    assert f.sync_scores(published) == pytest.approx((1.0, 1.0, 1), abs=1e-5)
    clean = f.sync_distances(video, sound, reach=1, mode="clean")
    assert np.isnan(clean[0, 0])
    assert np.isnan(clean[2, 2])
    # means 1.5, 7/3, 3
    assert f.sync_scores(clean) == pytest.approx((7 / 3 - 1.5, 1.5, 1), abs=1e-5)


def test_means_over_windows():
    assert f.mean_over_windows([1.0, 0.0], [9, 1], "vbench") == 0.5
    assert f.mean_over_windows([1.0, 0.0], [9, 1], "clean") == 0.9
