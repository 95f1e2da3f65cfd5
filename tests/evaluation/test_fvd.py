"""FVD and KVD of sets with known features, I3D as a program with a hash, and LPIPS with a stand-in network."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from feeding import Fake, feed, flat, number, numbered, sample, scored, series

from svi.errors import UserError
from svi.evaluation.metric import Better, Need, Skipped
from svi.evaluation.metrics.extract import Setup
from svi.evaluation.metrics.formulas import frechet
from svi.evaluation.metrics.fvd import Fvd, draw, fvd_over_time, split_half
from svi.evaluation.metrics.lpips import LpipsReference, LpipsTruth
from svi.evaluation.metrics.weights import Places


def videos(count: int, windows: int, shift: float = 0.0, seed: int = 0, width: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((windows, width)) + shift for _ in range(count)]


@pytest.mark.parametrize(("num_frames", "windows"), [(16, 1), (31, 1), (32, 2), (81, 5)])
def test_windows_of_sixteen_frames_do_not_overlap(num_frames: int, windows: int):
    fake = Fake(lambda groups: number(groups)[:, [0, -1]])
    result = scored(Fvd(extractor=fake), numbered(num_frames))
    assert result.value is None
    assert result.features is not None
    assert result.features.tolist() == [[16 * k, 16 * k + 15] for k in range(windows)]


def test_fifteen_frames_are_too_short():
    result = feed(Fvd(extractor=Fake(number)), numbered(15))
    assert isinstance(result, Skipped)
    assert "16 frames" in result.reason


def test_both_sides_have_equal_numbers_of_windows():
    result = Fvd(resamples=0).compare(videos(3, 4), videos(20, 5, seed=1))
    assert result.extra["windows"] == 12
    assert result.extra["videos"] == 3
    assert "low" not in result.extra


def test_a_shifted_set_is_far_and_the_same_one_near_its_floor():
    reference = videos(40, 5)
    metric = Fvd(resamples=40)
    same, shifted = (metric.compare(videos(40, 5, shift, seed=1), reference) for shift in (0.0, 2.0))
    assert same.value is not None
    assert shifted.value == pytest.approx(4 * 2**2, rel=0.2)  # four dimensions, each two apart
    assert same.value < 0.3
    assert same.extra["floor"] == shifted.extra["floor"]
    assert same.extra["floor_windows"] == 100
    assert same.extra["value_at_floor"] == pytest.approx(same.extra["floor"], abs=0.3)
    assert shifted.extra["value_at_floor"] > 10 * shifted.extra["floor"]
    assert shifted.extra["low"] < shifted.value < shifted.extra["high"] + 1
    assert shifted.extra["kvd"] > 10 * abs(same.extra["kvd"])


def test_few_windows_have_a_high_floor():
    """The reason for printing it: two sets of one distribution, 10 windows in 100 dimensions."""
    result = Fvd(resamples=0).compare(videos(10, 1, width=100), videos(20, 1, seed=1, width=100))
    assert result.value is not None
    assert result.value > 100  # as large as the whole variance
    assert result.extra["floor"] > 100


def test_comparing_is_repeatable_and_the_seed_is_part_of_the_key():
    ours, theirs = videos(5, 3), videos(9, 3, seed=1)
    assert Fvd().compare(ours, theirs) == Fvd().compare(ours, theirs)
    assert Fvd(seed=1).compare(ours, theirs) != Fvd().compare(ours, theirs)
    assert Fvd(extractor=Fake(number), seed=1).key() != Fvd(extractor=Fake(number)).key()
    assert Fvd(Setup(mode="clean"), Fake(number)).key() == Fvd(extractor=Fake(number)).key()


def test_drift_shows_over_time():
    """Each window moves one further away: FVD against the first true windows grows with its square."""
    moving = [rows + np.arange(6)[:, None] for rows in videos(50, 6)]
    frames, values = fvd_over_time(moving, videos(50, 6, seed=1))
    assert frames == [0, 16, 32, 48, 64, 80]
    assert values[0] < 0.5
    assert values[5] == pytest.approx(4 * 25, rel=0.2)
    assert values == sorted(values)
    assert [at for at, _ in series(Fvd(resamples=0).compare(moving, moving), "window")] == frames


def test_the_curve_ends_where_one_video_goes_on():
    assert fvd_over_time([*videos(2, 2), *videos(1, 5)], videos(3, 2))[0] == [0, 16]


def test_one_video_is_compared_without_interval_or_floor():
    result = Fvd().compare(videos(1, 4), videos(1, 4, seed=1))
    assert result.value is not None
    assert not {"floor", "low"} & set(result.extra)


def test_too_few_windows_are_refused():
    with pytest.raises(UserError, match="the method: 1 windows"):
        Fvd().compare(videos(1, 1), videos(5, 5))
    with pytest.raises(UserError, match="the true set"):
        Fvd().compare(videos(5, 5), [])


def test_halves_are_halves_of_videos():
    halves = split_half([np.full((3, 1), k) for k in range(5)], np.random.default_rng(0))
    assert halves is not None
    one, other = (set(half[:, 0].tolist()) for half in halves)
    assert len(one) == 2
    assert one | other == set(range(5))
    assert not one & other


def test_draws_are_without_repetition():
    rows = np.arange(10.0)[:, None]
    drawn = draw(rows, 4, np.random.default_rng(0))[:, 0].tolist()
    assert len(set(drawn)) == 4
    assert drawn == sorted(drawn)
    assert draw(rows, 10, np.random.default_rng(0)) is rows


# --- I3D ------------------------------------------------------------------------------------------------------------


class Program(torch.nn.Module):
    """Has the signature of the published I3D; its features are the mean colour, resized and rescaled if asked."""

    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        if rescale:
            x = x / 127.5 - 1
        out = x.mean(dim=[2, 3, 4])
        return out if return_features and resize else out * 0


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "i3d_torchscript.pt"
    torch.jit.script(Program()).save(str(path))
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_program_runs_only_with_its_hash(program: Path):
    without = Fvd(Setup(places=Places(paths={"i3d-torchscript": program})))
    assert "sha256" in str(without.missing())
    with pytest.raises(UserError, match="only with its hash"):
        without.start(sample(16))
    wrong = Places(paths={"i3d-torchscript": program}, hashes={"i3d-torchscript": "0" * 64})
    with pytest.raises(UserError, match="is not the published i3d-torchscript"):
        Fvd(Setup(places=wrong)).start(sample(16))
    right = Places(
        paths={"i3d-torchscript": program},
        hashes={"i3d-torchscript": hashlib.sha256(program.read_bytes()).hexdigest()},
    )
    metric = Fvd(Setup(places=right))
    assert metric.missing() is None
    features = scored(metric, flat([0] * 16 + [255] * 16)).features
    assert features is not None
    assert features == pytest.approx(np.array([[-1.0] * 3, [1.0] * 3]))


def test_a_missing_program_is_a_reason():
    assert "i3d_torchscript.pt" in str(Fvd(Setup(places=Places(folder=Path("nowhere"), caches=False))).missing())


# --- LPIPS ----------------------------------------------------------------------------------------------------------


def difference() -> Fake:
    return Fake(lambda pairs: np.abs(np.diff(number(pairs), axis=1))[:, 0] / 255)


@pytest.mark.parametrize("batch", [1, 3, 10])
def test_lpips_against_the_reference(batch: int):
    frames = flat([0, 51, 102, 51])
    about = sample(4, reference=frames[0])
    result = scored(LpipsReference(extractor=difference()), frames, about, batch)
    assert result.value == pytest.approx(0.2)
    assert dict(series(result, "frame")) == pytest.approx({0: 0, 1: 0.2, 2: 0.4, 3: 0.2})
    assert isinstance(feed(LpipsReference(extractor=difference()), frames, sample(4)), Skipped)


def test_lpips_against_the_truth():
    frames, truth = flat([0, 51, 102]), flat([0, 0, 0])
    metric = LpipsTruth(extractor=difference())
    assert metric.needs == {Need.TRUTH}
    assert metric.better is Better.LOWER
    assert scored(metric, frames, truth=truth).value == pytest.approx(0.2)
    result = feed(metric, frames, truth=truth[:2])
    assert isinstance(result, Skipped)
    assert "shorter" in result.reason


def test_lpips_says_what_it_needs():
    reason = LpipsTruth(Setup(places=Places(folder=Path("nowhere"), caches=False))).missing()
    assert reason is not None
    assert "pip install lpips" in reason or "alexnet" in reason


def test_frechet_grows_with_noise():
    rows = videos(1, 200)[0]
    values = [frechet(rows, rows + sigma * videos(1, 200, seed=2)[0]) for sigma in (0.0, 0.5, 1.0)]
    assert values == sorted(values)
