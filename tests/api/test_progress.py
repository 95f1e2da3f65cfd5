"""What reporters print for a run's events."""

from __future__ import annotations

import io
import json

import pytest

from svi.generation.events import ClipFinished, ClipStarted, Finished, Notice, RunStarted, Step, Stopped
from svi.progress import Loading, Mode, Overview, Pace, headline, reporter
from svi.words import human_time, shortened


def overview(target: int | None) -> Overview:
    seconds = None if target is None else 8.0
    return Overview("runs/a", "pocket", "wan", 96, 64, 17, 16, 20, 0, target, seconds, "runs/a/video.m3u8")


def events(target: int | None = 2) -> list:
    return [
        Loading("pocket", "loading transformer"),
        Loading("pocket", "loading VAE"),
        overview(target),
        RunStarted("runs/a", 0, target, 20),
        ClipStarted(0, target, "a cat\nwalks", 0, 0, 0, 0, 20),
        Step(0, 10, 20),
        ClipFinished(0, target, 3.0, 17, "runs/a/clips/0000/take-0"),
        Notice("the last prompt repeats"),
        Finished(2, 33, 2.06, "runs/a/video.mp4"),
    ]


def shown(mode: Mode, told: list, terminal: bool = False) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    err.isatty = lambda: terminal  # type: ignore[method-assign]
    with reporter(mode, out, err) as show:
        for event in told:
            show(event)
    return out.getvalue(), err.getvalue()


@pytest.mark.parametrize(("mode", "terminal"), [("auto", False), ("plain", True), ("bars", True), ("auto", True)])
def test_people_read_what_runs_and_where(mode: Mode, terminal: bool):
    out, err = shown(mode, events(), terminal)
    assert out == "runs/a/video.mp4\n"
    for text in (
        "pocket, preset wan, 96x64 at 16 fps, 20 steps: 2 clips",
        "writing runs/a",
        "clip 0 (1/2) 3.0 s, 3.0 s left: a cat walks",
    ):
        assert text in err
    assert "the last prompt repeats" in err
    assert err.count("loading") >= 1


def test_plain_lines_hold_no_control_codes():
    assert "\x1b" not in shown("plain", events(), True)[1]


def test_scripts_read_json():
    out, err = shown("json", events())
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) == len(events())
    assert lines[-1] == {"kind": "finished", "count": 2, "frames": 33, "seconds": 2.06, "video": "runs/a/video.mp4"}
    assert not err


def test_quiet_prints_the_path_and_how_to_go_on():
    assert shown("quiet", events()) == ("runs/a/video.mp4\n", "")
    assert shown("quiet", [Stopped(3, "go on with: svi resume runs/a")]) == (
        "",
        "stopped; go on with: svi resume runs/a\n",
    )


def test_endless_has_no_end():
    assert ": endless" in headline(overview(None))[0]
    assert "left" not in shown("plain", events(None))[1]


def test_pace_follows_the_clips():
    pace = Pace()
    assert pace.left(0, 5) is None
    pace.add(2.0)
    assert pace.left(1, 5) == 8.0
    pace.add(4.0)
    assert 2.0 < (pace.left(2, 3) or 0) < 4.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (4.2, "4.2 s"), (9.97, "10 s"), (59.4, "59 s"), (75, "1:15"), (7300, "2:01:40")],
)
def test_times_are_short(seconds: float, text: str):
    assert human_time(seconds) == text


def test_prompts_are_cut_to_one_line():
    assert shortened("a\ncat " * 40, 20) == "a cat a cat a cat..."
