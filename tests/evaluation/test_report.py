"""The report: one page that asks nobody for anything, is well-formed, and shows what a number hides."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from data_videos import world_frames, write_video

from svi.evaluation.folder import read_board
from svi.evaluation.registry import make
from svi.evaluation.report import page, write_report
from svi.evaluation.report_frames import make_sheet, similarity, worst_frames
from svi.evaluation.report_plots import Dot, Line, Whisker, curves, scatter, ticks, whiskers
from svi.evaluation.runner import plan, score
from svi.evaluation.sources import Entry, list_videos, write_manifest
from svi.evaluation.store import MetricNote, Result, Row, Store

FILES = {"report.html", "report.md", "leaderboard.csv", "leaderboard.tex", "samples.csv", "summary.json"}
VOID = {"meta", "br", "img", "link", "hr", "input"}


class Checked(HTMLParser):
    """Notes tags, ids, alternative texts, and whether everything that is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods of two videos, one of which copies its first clip; one video is broken."""
    out = tmp_path_factory.mktemp("bench")
    store, metrics = Store(out), make(["look", "look_luma", "duplicate_share", "unique_share", "flicker", "psnr"])
    plans = []
    for method in ("honest <&>", "copies"):
        folder = out / "made" / method.split()[0]
        entries = []
        for seed in (1, 2):
            true = world_frames(64, seed)
            frames = true if method != "copies" else np.concatenate([true[:16]] * 4)
            truth = write_video(folder / f"t{seed}.mkv", true, codec="ffv1")
            name, codec = (f"{seed}.mp4", "libx264") if method != "copies" else (f"{seed}.mkv", "ffv1")
            video = write_video(folder / name, frames, codec=codec)
            entries.append(Entry(f"world {seed}", video, truth=truth, borders=(16, 32, 48)))
        broken = folder / "broken.mp4"
        broken.touch()
        write_manifest(folder / "manifest.jsonl", [*entries, Entry("broken", broken)])
        plans.append(
            plan(method, list_videos(folder), metrics, store, fooler=method == "copies", about="made by a test")
        )
    score(plans, metrics, store)
    return out


@pytest.fixture(scope="module")
def written(out: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    scored, board = read_board(out, title="Miniature <1>")
    paths = write_report(scored, board, tmp_path_factory.mktemp("report"), sheets=1)
    return {path.name: path for path in paths}


def test_the_page_stands_alone(written: dict[str, Path]):
    assert set(written) == FILES
    text = written["report.html"].read_text(encoding="utf-8")
    checked = Checked(text)
    assert not re.search(r"<script|@import|url\(", text)
    for tag in ("img", "link", "iframe", "audio", "video", "source"):
        for attributes in checked.all(tag):
            source = attributes.get("src") or attributes.get("href") or ""
            assert source.startswith("data:"), source
    policy = next(a["content"] for a in checked.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy


def test_the_page_can_be_read_by_everyone(written: dict[str, Path]):
    text = written["report.html"].read_text(encoding="utf-8")
    checked = Checked(text)
    assert checked.all("html")[0]["lang"] == "en"
    assert "width=device-width" in text
    assert all(attributes.get("alt") for attributes in checked.all("img"))
    assert all(attributes.get("role") == "img" for attributes in checked.all("svg"))
    assert len(checked.all("desc")) == len(checked.all("svg"))
    assert all(attributes.get("scope") for attributes in checked.all("th"))
    ids = {attributes.get("id") for _, attributes in checked.tags if attributes.get("id")}
    links = {str(attributes["href"]) for attributes in checked.all("a")}
    assert links == {f"#{name}" for name in ids}


def test_the_page_says_what_a_number_hides(written: dict[str, Path]):
    text = written["report.html"].read_text(encoding="utf-8")
    assert "honest &lt;&amp;&gt;" in text
    assert "Miniature &lt;1&gt;" in text
    assert re.search(r"copies</b>: 2 of 2 videos degenerate, so it is not ranked", text)
    assert "fooler" in text
    assert "the file is empty" in text
    assert "self-similarity" in text
    assert "worst by" in text
    assert "n=2" in text
    assert "svi" in text.partition("Where it comes from")[2]


def test_plots_are_well_formed(written: dict[str, Path]):
    text = written["report.html"].read_text(encoding="utf-8")
    plots = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(plots) > 8
    for plot in plots:
        ET.fromstring(plot)
        assert "nan" not in plot.lower().replace("financ", "")


def test_a_report_needs_no_videos(out: Path):
    """Scores without their files: the page is there, and says whose frames are not."""
    scored, board = read_board(out)
    row = Row("gone", "/nowhere/gone.mp4", "0", {"fps": 16.0, "num_frames": 8})
    assert "no such file" in make_sheet("m", row, {}, {}).fault
    Checked(page(scored, board))


def test_similarity_shows_repetition():
    noise = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (8, 18, 32))
    alike = similarity(np.concatenate([noise, noise]))
    assert np.allclose(np.diag(alike), 1)
    assert np.allclose(np.diag(alike, 8), 1)
    assert alike[0, 1] == 0


def test_worst_frames_follow_the_direction():
    def result(name: str, values: list[float]) -> Result:
        return Result(name, "1", "k", "ok", 1.0, {"frame": ([0, 8, 16, 24], values)})

    def note(name: str, better: str) -> MetricNote:
        return MetricNote(name, "1", "", better, "", "")

    results = {
        "imaging_quality": result("imaging_quality", [5, 4, 1, float("nan")]),
        "look_luma": result("look_luma", [50, 51, 49, 20]),
    }
    notes = {"imaging_quality": note("imaging_quality", "higher"), "look_luma": note("look_luma", "closer to zero")}
    assert worst_frames(results, notes) == {16: "worst by imaging quality", 24: "worst by look luma"}


def test_plots_survive_what_is_not_there():
    nothing = np.full(3, np.nan)
    line = Line("none", 0, np.arange(3.0), nothing, nothing, nothing)
    for plot in (
        whiskers("w", "", [Whisker("a", float("nan"), float("nan"), float("nan")), Whisker("b", 1.0, 1.0, 1.0)]),
        whiskers("w", "%", []),
        curves("c", "dB", [line], [1.0]),
        curves("c", "dB", [], []),
        scatter("s", "x", "y", [Dot("one", 1.0, 1.0, 0)]),
    ):
        assert "nan" not in ET.tostring(ET.fromstring(plot)).decode()


def test_ticks_are_round():
    assert ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(97.2, 98.9, 4) == [97.5, 98.0, 98.5]
    assert ticks(1, 1) == [1]
