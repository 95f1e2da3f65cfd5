"""Bad input: exit code 2, one line that names what is wrong, no traceback, nothing written, no weights loaded in vain."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from bad_inputs import CASES, Case

from svi.cli import main
from svi.generation.lock import exclusive
from svi.job import together


def tree(folder: Path) -> dict[str, str]:
    """Every folder and file with a hash of what it holds; but lock, journal and playlist, made anew, may tell of the attempt."""
    ours = (".lock", "journal.jsonl", "video.m3u8")
    found = [path for path in folder.rglob("*") if path.name not in ours]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "" for path in found}


def check_error_line(err: str, keywords: tuple[str, ...]) -> None:
    lines = [line for line in err.splitlines() if line.startswith("svi: error: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    for keyword in keywords:
        assert keyword in lines[0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(
    case: Case,
    home: Path,
    model_folder: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if case.needs_run:
        shutil.copytree(request.getfixturevalue("finished_run"), home / "run")
    if case.setup:
        case.setup(home)
    if not case.loads:
        monkeypatch.setattr(
            together, "load_choice", lambda *_: pytest.fail("weights were loaded before the input was checked")
        )
    before = tree(home)
    capsys.readouterr()
    code = main([word.replace("{model}", str(model_folder)) for word in case.words])
    out, err = capsys.readouterr()
    assert code == 2
    assert not out
    check_error_line(err, case.keywords)
    assert tree(home) == before


def test_there_are_many_cases() -> None:
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize(
    "words", [["resume"], ["extend", "--clips", "1"], ["retake", "--clip", "0"]], ids=lambda w: w[0]
)
def test_a_run_in_use_is_refused(words: list[str], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(run)
    with exclusive(run / ".lock"):
        assert main([words[0], str(run), *words[1:]]) == 2
    check_error_line(capsys.readouterr().err, ("in use",))
    assert tree(run) == before


def test_a_damaged_run_still_shows_and_exports(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "run.json").write_text("{")
    assert main(["export", str(run), "--out", str(run.parent / "saved.mp4")]) == 0
    assert "run.json" in capsys.readouterr().err
    assert (run.parent / "saved.mp4").stat().st_size > 0
