"""Scoring: once, in one pass, resumable after a kill, failures named and never counted, memory bounded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import pytest
from data_videos import counted_frames, write_video

from svi.evaluation.metric import Better, Frames, Need, Sample, Score, Skipped
from svi.evaluation.reader import BATCH
from svi.evaluation.runner import Tally, plan, score
from svi.evaluation.sources import Entry, Listing, list_videos, write_manifest
from svi.evaluation.store import Store

COUNT = 40


@dataclass
class Brightness:
    """Mean of all pixels; counts the frames that it is shown."""

    name: str = "brightness"
    version: str = "1"
    unit: str = ""
    better: Better = Better.NEITHER
    needs: frozenset[Need] = frozenset()
    source: str = "a test"
    settings: str = ""
    gone: str | None = None
    breaks_at: int | None = None
    seen: list[int] = field(default_factory=list)

    def key(self) -> str:
        return self.settings

    def missing(self) -> str | None:
        return self.gone

    def start(self, sample: Sample) -> Brightness.Reading:
        return Brightness.Reading(self, sample)

    class Reading:
        def __init__(self, metric: Brightness, sample: Sample) -> None:
            self.metric, self.sample, self.means = metric, sample, []

        def add(self, batch: Frames) -> None:
            assert batch.start == len(self.means)
            if self.metric.breaks_at is not None and batch.start >= self.metric.breaks_at:
                raise RuntimeError("out of luck")
            self.metric.seen += range(batch.start, batch.start + len(batch.frames))
            self.means += batch.frames.mean((1, 2, 3)).tolist()

        def result(self) -> Score | Skipped:
            assert len(self.means) == self.sample.num_frames
            if self.metric.settings == "nan":
                return Score(float("nan"))
            at = range(len(self.means))
            return Score(float(np.mean(self.means)), {"mean": (at, self.means)}, {"first": self.means[0]}, np.eye(2))


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    for name in "abc":
        write_video(folder / f"{name}.mp4", np.roll(counted_frames(COUNT), ord(name), 0))
    return folder


def run(videos: Path, store: Store, *metrics: Brightness, **options: object) -> Tally:
    retry = bool(options.pop("retry_failed", False))
    made = plan("ours", list_videos(videos), metrics, store, retry_failed=retry)
    return score([made], metrics, store, **options)  # type: ignore[arg-type]


def results(store: Store) -> dict[str, dict[str, tuple[str, float | None, str]]]:
    index = store.index("ours")
    assert index is not None
    return {
        row.name: {name: (found.status, found.value, found.reason) for name, found in scores.items()}
        for row, scores in store.results(index)
    }


def test_everything_is_read_once_and_never_again(videos: Path, tmp_path: Path):
    store, one, two = Store(tmp_path / "out"), Brightness(), Brightness("other")
    assert run(videos, store, one, two).counts == {"ok": 6, "skipped": 0, "failed": 0}
    assert one.seen == two.seen == [*range(COUNT)] * 3
    one.seen, two.seen = [], []
    assert run(videos, store, one, two).counts["ok"] == 0
    assert one.seen == two.seen == []
    run(videos, store, one, Brightness("third"))
    assert one.seen == []  # only what is missing is computed


def test_what_is_stored_comes_back_whole(videos: Path, tmp_path: Path):
    store = Store(tmp_path / "out")
    run(videos, store, Brightness())
    index = store.index("ours")
    assert index is not None
    (row, found), *_ = store.results(index)
    result = found["brightness"]
    assert result.value == pytest.approx(np.mean(result.series["mean"][1]))
    assert list(result.series["mean"][0]) == list(range(COUNT))
    assert result.extra["first"] == result.series["mean"][1][0]
    assert store.features(result) is not None
    assert result.made["svi"]
    assert row.facts["fps"] == 16
    assert index.metrics["brightness"].source == "a test"


def test_a_score_is_found_by_content_not_by_name(videos: Path, tmp_path: Path):
    store, metric = Store(tmp_path / "out"), Brightness()
    run(videos, store, metric)
    (videos / "a.mp4").rename(videos / "z.mp4")
    write_video(videos / "b.mp4", counted_frames(COUNT)[::-1])
    metric.seen = []
    run(videos, store, metric)
    assert metric.seen == [*range(COUNT)]  # b alone
    for changed in (Brightness(version="2"), Brightness(settings="other weights")):
        run(videos, store, changed)
        assert len(changed.seen) == 3 * COUNT
    entry = list_videos(videos / "c.mp4").entries[0]
    told = Listing(videos, (Entry("c", entry.video, borders=(8,)),))
    score([plan("ours", told, [metric], store)], [metric], store)
    assert metric.seen[COUNT:] == [*range(COUNT)]  # told of a border: may score otherwise


def test_a_metric_that_breaks_costs_only_itself(videos: Path, tmp_path: Path):
    store, good, bad = Store(tmp_path / "out"), Brightness(), Brightness("bad", breaks_at=BATCH)
    tally = run(videos, store, good, bad)
    assert tally.counts == {"ok": 3, "skipped": 0, "failed": 3}
    assert "ours/a: RuntimeError: out of luck" in tally.failures
    assert results(store)["a"]["bad"] == ("failed", None, "RuntimeError: out of luck")
    assert results(store)["a"]["brightness"][0] == "ok"
    bad.breaks_at = None
    assert run(videos, store, bad).counts["ok"] == 0  # not tried again ...
    assert run(videos, store, bad, retry_failed=True).counts["ok"] == 3  # ... unless asked
    assert results(store)["a"]["bad"][0] == "ok"


def test_nan_is_no_score(videos: Path, tmp_path: Path):
    store = Store(tmp_path / "out")
    run(videos, store, Brightness(settings="nan"))
    assert results(store)["a"]["brightness"][2] == "ValueError: the score is not a number"


def test_a_metric_that_cannot_run_is_noted_not_stored(videos: Path, tmp_path: Path):
    store, metric = Store(tmp_path / "out"), Brightness(gone="no weights: put them there")
    assert run(videos, store, metric).counts == {"ok": 0, "skipped": 0, "failed": 0}
    index = store.index("ours")
    assert index is not None
    assert index.metrics["brightness"].missing == "no weights: put them there"
    metric.gone = None
    assert run(videos, store, metric).counts["ok"] == 3


def test_broken_videos_are_named_and_left_out(videos: Path, tmp_path: Path):
    (videos / "empty.mp4").touch()
    (videos / "text.mp4").write_text("hello")
    clear = np.full((COUNT, 32, 48, 4), 255, np.uint8)
    clear[30:, ..., 3] = 0
    write_rgba(videos / "clear.mkv", clear)
    store = Store(tmp_path / "out")
    metric = Brightness()
    tally = run(videos, store, metric)
    index = store.index("ours")
    assert index is not None
    excluded = {row.name: row.excluded for row in index.rows if row.excluded}
    assert set(excluded) == {"empty", "text"}
    assert "empty" in excluded["empty"]
    found = results(store)
    assert [found[name]["brightness"][0] for name in "abc"] == ["ok"] * 3
    assert found["clear"]["brightness"][:2] == ("failed", None)
    assert found["clear"]["brightness"][2].startswith("video: frame 30 is partly transparent: flatten it")
    assert tally.counts == {"ok": 3, "skipped": 0, "failed": 1}


def write_rgba(path: Path, frames: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=16)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "bgra"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgba")))
        container.mux(stream.encode(None))


def test_what_a_metric_needs_and_does_not_get_is_a_reason(videos: Path, tmp_path: Path):
    store = Store(tmp_path / "out")
    needs = Brightness("needs", needs=frozenset({Need.REFERENCE, Need.AUDIO}))
    truth = Brightness("truth", needs=frozenset({Need.TRUTH}))
    run(videos, store, needs, truth)
    assert results(store)["a"]["needs"][2] == "no audio and no reference image is given"
    assert results(store)["a"]["truth"][2] == "no true video is given"
    short = write_video(tmp_path / "short.mp4", counted_frames(COUNT - 1))
    write_manifest(videos / "manifest.jsonl", [Entry("a", videos / "a.mp4", truth=short)])
    run(videos, store, truth)
    assert results(store)["a"]["truth"][2] == f"the true video ends after {COUNT - 1} of {COUNT} frames"


def test_shards_share_the_work_and_each_index_is_whole(videos: Path, tmp_path: Path):
    store, first, second = Store(tmp_path / "out"), Brightness(), Brightness()
    assert run(videos, store, first, shard=(0, 2)).counts["ok"] == 2
    assert set(results(store)) == {"a", "b", "c"}
    assert run(videos, store, second, shard=(0, 1)).counts["ok"] == 1


def test_prune_keeps_what_is_referred_to(videos: Path, tmp_path: Path):
    store = Store(tmp_path / "out")
    run(videos, store, Brightness())
    (videos / "a.mp4").unlink()
    run(videos, store, Brightness())
    count, freed = store.prune()
    assert count == 2  # a score and its features
    assert freed > 0
    assert all(scores["brightness"][0] == "ok" for scores in results(store).values())


def test_several_processes_score_the_same(videos: Path, tmp_path: Path):
    from svi.evaluation.registry import make

    metrics = make(["look", "look_luma", "unique_share"])
    found = []
    for jobs in (1, 2):
        store = Store(tmp_path / str(jobs))
        score([plan("ours", list_videos(videos), metrics, store)], metrics, store, jobs=jobs)
        found.append(results(store))
    assert found[0] == found[1]
    assert {status for scores in found[0].values() for status, _, _ in scores.values()} <= {"ok", "skipped"}


SCRIPT = """
import sys, time
from pathlib import Path
from svi.evaluation import runner
from svi.evaluation.metric import Better, Score
from svi.evaluation.sources import list_videos
from svi.evaluation.store import Store

class Slow:
    name, version, unit, better, needs, source = "slow", "1", "", Better.NEITHER, frozenset(), ""
    def key(self): return ""
    def missing(self): return None
    def start(self, sample): return self
    def add(self, batch): time.sleep({delay})
    def result(self): return Score(1.0)

store = Store(Path(sys.argv[2]))
made = runner.plan("ours", list_videos(sys.argv[1]), [Slow()], store)
print(len(made.tasks), flush=True)
runner.score([made], [Slow()], store, watch=lambda tick: print(tick.line, flush=True) if tick.line else None)
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_resumed(videos: Path, tmp_path: Path, sign: signal.Signals):
    """Stopped in the second of three videos: the first one's score stays, and only two are computed afterwards."""
    out = tmp_path / "out"
    words = [str(videos), str(out)]
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT.replace("{delay}", "0.6"), *words], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("1/3"):
                time.sleep(0.3)
                os.kill(process.pid, sign)
                break
    assert process.returncode != 0
    assert {name: len(scores) for name, scores in results(Store(out)).items()} == {"a": 1, "b": 0, "c": 0}
    again = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("{delay}", "0"), *words], capture_output=True, text=True, check=True
    )
    assert again.stdout.splitlines()[0] == "2"
    assert {name: scores["slow"][:2] for name, scores in results(Store(out)).items()} == dict.fromkeys(
        "abc", ("ok", 1.0)
    )
    assert not [path for path in out.rglob("*") if ".tmp-" in path.name]


def test_a_damaged_result_is_computed_again(videos: Path, tmp_path: Path):
    store, metric = Store(tmp_path / "out"), Brightness()
    run(videos, store, metric)
    path = next((tmp_path / "out" / "scores" / "brightness@1").glob("*.json"))
    path.write_text(json.dumps({"schema": 1})[:-3])
    metric.seen = []
    run(videos, store, metric)
    assert len(metric.seen) == COUNT


MEMORY = """
import resource, sys
from pathlib import Path
from svi.evaluation import runner
from svi.evaluation.registry import make
from svi.evaluation.sources import Entry, Listing
from svi.evaluation.store import Store

video = Path(sys.argv[1])
entry = Entry("long", video, truth=video, borders=(16, 32), frames=int(sys.argv[3]))
metrics, store = make(["look", "look_truth", "duplicate_share", "psnr"]), Store(Path(sys.argv[2]))
tally = runner.score([runner.plan("m", Listing(video, (entry,)), metrics, store)], metrics, store)
assert tally.counts["ok"] == 4, tally
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_memory_does_not_grow_with_the_video(tmp_path: Path):
    """Four times as many frames, which would be 345 MB more as floats, 86 MB more as bytes, take no more."""
    still = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (240, 416, 3), dtype=np.uint8)
    frames = np.stack([np.roll(still, 3 * number, 1) for number in range(8)])
    video = write_video(
        tmp_path / "long.mp4", np.concatenate([frames] * 48), options={"preset": "ultrafast", "crf": "40"}
    )
    peaks = []
    for count in (96, 384):
        words = [sys.executable, "-c", MEMORY, str(video), str(tmp_path / str(count)), str(count)]
        peaks.append(float(subprocess.run(words, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] - peaks[0] < 60
