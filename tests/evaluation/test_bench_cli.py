"""``svi bench``: from a suite to a report on the pocket model, stopped and gone on with, and bad words named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_videos import world_frames, write_video

from svi import benchmark
from svi.benchmark import pocket_metric
from svi.errors import UserError
from svi.evaluation.fakes import FAKES
from svi.evaluation.metric import Frames, Sample, Score
from svi.evaluation.reader import batches, look
from svi.evaluation.registry import METRICS, PROFILES, make, of_profile
from svi.evaluation.sources import list_videos
from svi.options import Place
from svi.pocket.bench import reference_window, world_for

Bench = Callable[..., tuple[int, str, str]]
CLIPS = 3  # of 17 frames, 16 of them new


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two worlds by the pocket model in two presets, by the truth and by two foolers."""
    out = tmp_path_factory.mktemp("bench") / "out"
    bench = benchmark.open_bench(out, "pocket", samples=2, clips=CLIPS)
    words = ("wan:steps=1,guidance=1", "film:steps=1,guidance=1", "truth", "copy-clips", "copy-reference:of=wan")
    assert benchmark.generate(bench, [benchmark.parse_method(word) for word in words])
    return out


def frames_of(path: Path) -> np.ndarray:
    return np.concatenate(list(batches(look(path))))


def test_every_method_has_the_same_cases_and_length(out: Path):
    for method in ("wan", "film", "truth", "copy-clips", "copy-reference"):
        entries = list_videos(out / "videos" / method).entries
        assert [entry.name for entry in entries] == ["000", "001"]
        for entry in entries:
            assert look(entry.video, entry.fps, limit=entry.frames).num_frames == 16 * CLIPS + 1
            assert entry.truth is not None
            assert entry.borders
    assert len(list_videos(out / "videos" / "film").entries[0].borders) == CLIPS  # one clip more, for its overlap of 5


def test_the_truth_is_stored_bit_for_bit(out: Path):
    case = json.loads((out / "cases" / "001" / "case.json").read_text())
    world = world_for(case["world"], reference_window("pocket"), 49)
    assert np.array_equal(frames_of(out / "cases" / "001" / "truth.mkv"), world.clip(0.0, 49, 16))


def test_a_fooler_is_made_of_the_video_it_names(out: Path):
    frames = frames_of(out / "videos" / "copy-reference" / "000.mp4").astype(float)
    first = frames_of(out / "videos" / "wan" / "000" / "video.mp4")[0].astype(float)
    assert np.abs(frames - first).mean() < 4  # encoded twice


def test_generation_goes_on_where_it_stopped(tmp_path: Path, out: Path):
    asked = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 2

    words = [benchmark.parse_method("wan:steps=1,guidance=1")]
    bench = benchmark.open_bench(tmp_path / "again", "pocket", samples=1, clips=CLIPS)
    assert not benchmark.generate(bench, words, place=Place(should_stop=stop))
    assert benchmark.generate(bench, words)
    told: list[str] = []
    assert benchmark.generate(bench, words, watch=lambda tick: told.append(tick.line or ""))
    assert told[0].startswith("0 videos to make")
    whole = out / "videos" / "wan" / "000" / "video.mp4"
    assert np.array_equal(frames_of(tmp_path / "again" / "videos" / "wan" / "000" / "video.mp4"), frames_of(whole))


def test_another_suite_or_length_is_refused(out: Path):
    with pytest.raises(UserError, match="num_frames was 49, is 65"):
        benchmark.open_bench(out, "pocket", samples=2, clips=4)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("shott", "unknown preset 'shott': did you mean 'shot'"),
        ("mine:preset=shot,stps=3", "'stps' is no key: did you mean 'steps'"),
        ("mine:preset=shot,steps=many", "'many' is no number"),
        ("shot:of=wan", "only controls"),
        ("trut", "did you mean 'truth'"),
    ],
)
def test_bad_methods_are_named(word: str, message: str):
    with pytest.raises(UserError, match=message):
        benchmark.parse_method(word)


def test_a_fooler_of_what_is_not_there_says_so(out: Path):
    bench = benchmark.open_bench(out, "pocket", samples=2, clips=CLIPS)
    with pytest.raises(UserError, match="no video of 000 yet: make it first"):
        benchmark.generate(bench, [benchmark.parse_method("ping-pong:of=shot")])


def test_score_compare_and_report(out: Path, bench: Bench, tmp_path: Path):
    extra = tmp_path / "theirs"
    for number in range(2):
        write_video(extra / f"00{number}.mp4", world_frames(49, number))
    metrics = ["--profile", "drift", "--device", "cpu"]
    code, said, err = bench("score", out, "--videos", f"theirs={extra}", *metrics)
    assert code == 0
    assert " 0 failed" in said
    assert "pocket_truth" not in err
    code, again, _ = bench("score", out, "--videos", f"theirs={extra}", *metrics)
    assert again.startswith("0 ok, 0 skipped, 0 failed")

    code, table, _ = bench("compare", out, "--methods", "wan", "film", "truth", "copy-clips", "--against", "truth")
    assert code == 0
    assert "## Pocket world" in table
    assert re.search(r"\| copy-clips \(.*fooler\)", table)
    assert re.search(r"\| truth \|", table)
    assert "n=2" in table
    code, plain, _ = bench("compare", out, "--format", "json")
    assert {row["method"] for row in json.loads(plain)["rows"]} >= {"wan", "theirs"}

    code, paths, _ = bench("report", out, "--sheets", "1", "--title", "A miniature")
    assert code == 0
    assert all(Path(path).is_file() for path in paths.split())
    assert "A miniature" in (out / "report.html").read_text()

    code, held, _ = bench("cache", out, "--prune")
    assert "0 files deleted" in held


def test_a_dry_run_writes_nothing(out: Path, bench: Bench, tmp_path: Path):
    code, said, _ = bench(
        "score", tmp_path / "new", "--videos", f"a={out / 'videos' / 'wan'}", "--profile", "drift", "--dry-run"
    )
    assert code == 0
    assert re.search(r"a: \d+ scores of 2 videos to compute, 0 there", said)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("plan", "pockt"), "did you mean 'pocket'"),
        (("score", "{tmp}", "--videos", "clips"), "write NAME=PATH"),
        (("score", "{tmp}"), "no videos: svi bench generate"),
        (("score", "{tmp}", "--videos", "a={tmp}"), "nothing to score"),
        (("compare", "{tmp}"), "no scores"),
        (("report", "{tmp}/gone"), "no scores"),
        (("generate", "consistent-50s", "--method", "shot", "--out", "{tmp}/o"), "--data FOLDER"),
        (("plan", "pocket", "--profile", "papr"), "did you mean 'paper'"),
        (("plan", "pocket", "--metrics", "psnrr"), "did you mean 'psnr'"),
    ],
)
def test_bad_words_are_named(words: tuple[str, ...], message: str, bench: Bench, tmp_path: Path):
    code, said, _ = bench(*(word.replace("{tmp}", str(tmp_path)) for word in words))
    assert code == 2
    assert message in said


def test_plan_says_what_is_missing_and_what_is_settled(bench: Bench):
    code, said, _ = bench("plan", "consistent-50s", "--samples", "2", "--device", "cpu", "--metrics", "flicker")
    assert code == 0
    assert "2 cases x 1 methods = 2 videos of 801 frames" in said
    assert "frames per second" in said
    assert re.search(r"- imaging_quality.*musiq", said) or re.search(r"\+ imaging_quality", said)
    assert re.search(r"\+ flicker: [\d.]+ ms a frame", said)


def test_every_metric_is_what_its_name_says():
    for name, metric in zip(METRICS, make(METRICS), strict=True):
        assert metric.name == name
    for profile in PROFILES.values():
        names = [metric.name for metric in of_profile(profile.name)]
        assert len(names) == len(set(names))
        assert "duplicate_share" in names  # nothing is ranked without gates
    assert {metric.name for metric in of_profile("vbench-long")} >= {"subject_consistency_long"}


def test_the_metric_that_knows_the_world(out: Path):
    """The same video against its own world and against another one."""
    (metric,) = pocket_metric(out)
    entry = list_videos(out / "videos" / "truth").entries[0]
    video = look(entry.video)
    psnr = []
    for name in ("000", "001"):
        reading = metric.start(Sample(name, entry.video, 16.0, 49, video.height, video.width, borders=(17, 33, 48)))
        start = 0
        for batch in batches(video, 10):
            reading.add(Frames(start, batch))
            start += len(batch)
        score = reading.result()
        assert isinstance(score, Score)
        assert list(score.series["psnr"][0]) == [0, 17, 33]
        psnr.append(score.extra["psnr_late"])
    assert psnr[0] > psnr[1] + 10


def test_controls_are_all_there():
    assert set(benchmark.CONTROLS) == {*FAKES, "vae"}
