"""SIGKILL at random moments and at every single file operation: what comes out is what an undisturbed run gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from runs import left_over, outputs
from tiny import TinyBackend, new_run

from svi.generation.run import Run


def program(*arguments: object) -> str:
    command = [sys.executable, tiny.__file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def undisturbed(path: Path, **options: object) -> Run:
    run = new_run(path, **options)  # type: ignore[arg-type]
    run.generate(TinyBackend())
    return run


def test_twenty_kills_at_random_moments(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", clips=12, preset="film")
    survived = int(program("kill", run.path, 1, 20).split()[2])
    assert 3 <= survived <= 11  # the kills were spread over the run
    assert outputs(run) == outputs(undisturbed(tmp_path / "whole", clips=12, preset="film"))
    assert run.verify().ok
    assert not left_over(run.path)


def test_a_kill_at_every_file_operation(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", clips=3, preset="pro")
    points = int(program("crash", run.path).split()[0])
    assert points > 12  # each time the next operation: clips get done in between
    assert outputs(run) == outputs(undisturbed(tmp_path / "whole", clips=3, preset="pro"))
    assert run.verify().ok


@pytest.mark.parametrize("keep_rest", [True, False])
def test_a_retake_killed_at_every_file_operation(tmp_path: Path, keep_rest: bool) -> None:
    runs = [undisturbed(tmp_path / name, clips=4) for name in ("run", "whole")]
    for run in runs:
        run.retake(1, keep_rest=keep_rest)
    program("crash", runs[0].path)
    runs[1].generate(TinyBackend())
    assert outputs(runs[0]) == outputs(runs[1])
    assert runs[0].status().finished
    assert [info.take for info in runs[0].clips()] == ([0, 1, 0, 0] if keep_rest else [0, 1, 1, 1])
