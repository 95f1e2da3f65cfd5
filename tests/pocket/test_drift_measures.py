"""Measures of drift: a true clip that is spoilt in a known way scores that amount, and nothing else."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from svi.evaluation.statistics import curve, estimate, late, row_mean, slope, slopes
from svi.pocket.drift import measures as m
from svi.pocket.drift.experiment import Scene
from svi.pocket.drift.gain import DIRECTIONS, compared, corrupted
from svi.pocket.drift.gauge import MEASURES, Gauge
from svi.pocket.drift.plots import Line, Panel, draw, ticks
from svi.pocket.drift.rollouts import Window, world_of, worlds
from svi.pocket.drift.valid import ValidPatches
from svi.pocket.world import World

WINDOW = Window(17, 1, 16, (64, 96))
PERFECT = {"psnr": 60, "colour": 0, "gain": 1, "offset": 0, "sharpness": 0, "area": 1, "present": 1, "whole": 1}
STEADY = {"shape": 1, "thing_colour": 0, "motion": 1, "travel": 1, "duplicates": 0}


def standing(number: int = 0, **scene: object) -> World:
    kind = Scene(**{"num_objects": 2, **scene})  # type: ignore[arg-type]
    return world_of(kind, worlds(kind, number + 1, 0)[number], WINDOW, 4)


def true_clips(world: World, count: int = 2) -> list[np.ndarray]:
    first = world.clip(0.0, 17)
    return [first, *(world.clip((16 * k + 1) / 16, 16) for k in range(1, count))]


def measured(world: World, clips: list[np.ndarray], events: bool = False) -> dict[str, float]:
    gauge = Gauge(world, fps=16, events=events)
    return [gauge.clip(clip) for clip in clips][-1]


def spoilt(world: World, change, count: int = 2) -> dict[str, float]:
    return measured(world, [change(clip) for clip in true_clips(world, count)])


def blurred(frames: np.ndarray, times: int) -> np.ndarray:
    out = frames.astype(np.float64)
    for _ in range(times):
        out = out + DIRECTIONS["blur"](out, np.random.default_rng(0))
    return out.round().astype(np.uint8)


def noisy(frames: np.ndarray, size: float) -> np.ndarray:
    noise = np.random.default_rng(1).standard_normal(frames.shape) * size
    return (frames + noise).round().clip(0, 255).astype(np.uint8)


def test_truth_scores_perfectly_in_every_kind_of_scene():
    for kind in (dict(), dict(camera="pans"), dict(family="dancer"), dict(family="face"), dict(events=True)):
        values = spoilt(standing(**kind), lambda clip: clip)
        assert list(values) == list(MEASURES)
        for name, perfect in {**PERFECT, **STEADY}.items():
            if not np.isnan(values[name]):
                assert values[name] == pytest.approx(perfect, abs=0.12 if name == "travel" else 0.02), (kind, name)
        assert values["palette"] < 0.03
        assert values["seam"] == pytest.approx(0)
    assert np.isnan(spoilt(standing(camera="pans"), lambda clip: clip)["psnr"]), (
        "a moved camera leaves no pixel's truth"
    )


@pytest.mark.parametrize("number", range(3))
def test_a_tint_is_colour_and_nothing_else(number):
    world = standing(number)
    values = spoilt(world, lambda clip: (clip.astype(int) * 0.8 + 10).round().astype(np.uint8))
    assert values["gain"] == pytest.approx(0.8, abs=0.02)
    assert values["offset"] == pytest.approx(10 / 255, abs=0.01)
    moved = 0.2 * world.clip(1.0, 1, objects=False).astype(float) - 10
    assert values["colour"] == pytest.approx(np.sqrt((moved**2).mean()) / 255, abs=0.005)
    assert values["psnr"] == pytest.approx(-20 * np.log10(values["colour"]), abs=0.5)
    for name in ("area", "present", "whole", "shape", "travel"):
        assert values[name] == pytest.approx(1, abs=0.12), name
    assert values["duplicates"] == 0


def test_an_offset_is_its_size_in_decibels():
    frames, mask = np.full((3, 8, 8, 3), 100, np.uint8), np.ones((3, 8, 8), bool)
    assert m.psnr(frames + 5, frames) == pytest.approx(20 * np.log10(255 / 5))
    assert m.psnr(frames, frames) == m.PSNR_CAP
    assert np.isnan(m.psnr(frames, frames, ~mask))


def test_the_transfer_is_found_among_outliers_and_without_contrast():
    rng = np.random.default_rng(0)
    truth = rng.uniform(20, 200, (4000, 3))
    seen = truth * np.array((1.1, 1.0, 0.7)) + np.array((5, -8, 20))
    seen[:800] = 255
    found = m.fit_transfer(seen, truth)
    assert found.gain == pytest.approx((1.1, 1.0, 0.7), abs=1e-3)
    assert found.offset == pytest.approx((5, -8, 20), abs=0.1)
    assert found.undo(seen[800:]) == pytest.approx(truth[800:], abs=0.1)
    flat = np.full((100, 3), 50.0)
    assert m.fit_transfer(flat + 7, flat).gain == pytest.approx(np.ones(3))
    assert m.fit_transfer(flat + 7, flat).error(flat) == pytest.approx(7 / 255)
    shuffled = rng.permutation(truth) * 0.5 + 30
    assert m.moment_transfer(shuffled, truth).gain == pytest.approx(np.full(3, 0.5), abs=0.01)


def test_blur_and_noise_are_sharpness_and_residual_each_steadily():
    world = standing(1)
    blurs = [spoilt(world, lambda clip, times=times: blurred(clip, times), 1) for times in (0, 1, 3)]
    noises = [spoilt(world, lambda clip, size=size: noisy(clip, size), 1) for size in (0.0, 6.0, 12.0)]
    assert blurs[0]["sharpness"] > blurs[1]["sharpness"] + 1 > blurs[2]["sharpness"] + 2
    assert noises[0]["sharpness"] < noises[1]["sharpness"] - 1 < noises[2]["sharpness"] - 2
    for values in (*blurs, *noises):
        assert values["colour"] < 0.02
        assert values["whole"] == 1


@pytest.mark.parametrize("kind", [dict(), dict(family="dancer"), dict(camera="pans", lighting="night")])
def test_the_residual_rises_with_every_fault(kind):
    """True frames that the bank has never seen have the lowest residual; blur, noise and tint raise it steadily."""
    world = standing(0, **kind)
    bank, truth = ValidPatches(world), world.clip(3.0, 9)

    def tinted(frames: np.ndarray, size: int) -> np.ndarray:
        return (frames.astype(int) + np.array((size, 0, -size))).clip(0, 255).astype(np.uint8)

    faults = {
        "blur": [blurred(truth, times) for times in (0, 2, 6)],
        "noise": [noisy(truth, size) for size in (0.0, 10.0, 20.0)],
        "tint": [tinted(truth, size) for size in (0, 20, 40)],
    }
    for name, frames in faults.items():
        values = [bank.residual(each) for each in frames]
        assert values[0] < values[1] < values[2], (name, values)
    swapped = truth[..., ::-1].copy()
    assert bank.residual(swapped) > 1.5 * bank.residual(truth)


def test_things_elsewhere_are_no_fault_of_the_background():
    world = standing(2)
    clips = true_clips(world, 3)
    values = measured(world, [clips[0], clips[2]])  # a second too early
    assert values["psnr"] > 40
    assert values["colour"] < 0.005
    for name in ("area", "present", "whole", "shape", "travel"):
        assert values[name] == pytest.approx(1, abs=0.25), name


def test_things_that_are_gone_are_gone():
    world = standing()
    values = measured(world, [world.clip(k + 1 / 16, 16, objects=False) for k in range(2)])
    assert values["psnr"] == 60
    for name in ("area", "present", "whole", "motion", "travel"):
        assert values[name] == pytest.approx(0, abs=0.05), name
    assert np.isnan(values["thing_colour"])


def test_half_a_thing_is_present_but_not_whole():
    world = standing(0, num_objects=1)
    cut = []
    for k, clip in enumerate(true_clips(world)):
        half, begin = clip.copy(), (16 * k + 1) / 16 if k else 0.0
        for t in range(len(half)):
            edge = int(world.state(begin + t / 16).objects[0].x)
            half[t, :, :edge] = world.render(begin + t / 16, objects=False)[:, :edge]
        cut.append(half)
    values = measured(world, cut)
    assert values["area"] == pytest.approx(0.5, abs=0.12)
    assert (values["present"], values["whole"]) == (1, 0)
    assert values["shape"] < 0.7


def test_slow_motion_is_as_much_motion_as_it_is():
    world = standing(0, num_objects=1)
    values = measured(world, [world.clip(0.0, 17), world.clip(1.0 + 1 / 32, 16, 32)])
    assert values["travel"] == pytest.approx(0.5, abs=0.12)
    assert values["motion"] == pytest.approx(0.5, abs=0.15)
    assert values["duplicates"] == 0


def test_repetitions_are_found():
    world = standing()
    first, second, third = true_clips(world, 3)
    assert measured(world, [first, second, first[1:]])["duplicates"] == 1
    assert measured(world, [first, first[-2::-1]])["duplicates"] == 1
    frozen = measured(world, [np.repeat(first[:1], 17, axis=0)])
    assert (frozen["duplicates"], frozen["motion"]) == (1, 0)
    jumped = measured(world, [first, third])
    assert jumped["seam"] > 2
    assert jumped["duplicates"] == 0


def test_what_is_remembered_does_not_grow():
    rng = np.random.default_rng(0)
    shown = m.Shown(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8), first=1, latest=2)
    clips = [rng.integers(0, 255, (4, 8, 8, 3), dtype=np.uint8) for _ in range(10)]
    for clip in clips:
        shown.add(clip)
    assert len(shown._kept) == 4
    assert shown.distance(clips[0]).max() == shown.distance(clips[9]).max() == 0
    assert shown.distance(clips[4]).min() > 10


def test_slopes_and_ends():
    clips = np.arange(20.0)
    wild = 3 - 0.5 * clips
    wild[7] = 1000.0
    assert slope(wild) == pytest.approx(-0.5)
    assert slope(np.array([100.0, *clips])) == pytest.approx(1.0), "the first clip starts from the true image"
    assert slope(np.arange(500) * 0.25) == pytest.approx(0.25)
    assert np.isnan(slope(np.full(5, np.nan)))
    both = np.stack([clips, 2 * clips])
    assert slopes(both) == pytest.approx([1, 2])
    assert late(both) == pytest.approx([18.5, 37])
    assert np.isnan(row_mean(np.full((1, 3), np.nan))).all()


def test_intervals_are_over_worlds():
    rng = np.random.default_rng(0)
    values = rng.normal(5, 1, (64, 3))
    values[3, 1] = np.nan
    found = curve(values)
    assert list(found.n) == [64, 63, 64]
    assert (found.low < found.mean).all()
    assert found.high - found.low == pytest.approx(np.full(3, 4 / 8), abs=0.1)
    alone = estimate(np.array([2.0, np.nan]))
    assert (alone.mean, alone.n) == (2.0, 1)
    assert alone.to_dict()["low"] is None


def test_a_known_error_has_a_known_gain():
    rng = np.random.default_rng(0)
    frames = rng.integers(60, 190, (5, 16, 24, 3), dtype=np.uint8)
    for name, direction in DIRECTIONS.items():
        found = corrupted(frames, direction(frames, rng), 8.0) - frames.astype(float)
        assert m.rms(found[-1]) == pytest.approx(8.0, rel=0.04), name
    error = rng.standard_normal((5, 4, 4, 3)) * 10
    assert compared(error, 0.5 * error, 2) == pytest.approx(
        {"in": m.rms(error[-2:]), "out": m.rms(error[-2:]) / 2, "gain": 0.5, "kept": 0.5}
    )
    assert compared(error, -error, 1)["kept"] == pytest.approx(-1)


def test_a_plot_is_a_picture_with_round_numbers():
    assert ticks(0.2, 10.1) == [2, 4, 6, 8, 10]
    assert ticks(-0.013, 0.021) == pytest.approx([-0.01, 0, 0.01, 0.02])
    values = np.random.default_rng(0).normal(size=(4, 500))
    values[:, 3] = np.nan
    lines = [Line("a <b>", curve(values)), Line("one", curve(values[:1]))]
    page = draw("x & y", ["a <b>", "one"], [Panel("dB", lines)] * 4)
    root = ElementTree.fromstring(page)
    kinds = [child.tag.rpartition("}")[2] for child in root]
    assert kinds.count("polyline") == 8
    assert kinds.count("polygon") == 4, "one world has no interval"
    assert len(page) < 80_000
