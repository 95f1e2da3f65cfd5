"""Shared by the tests of storyboards, images and runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `tiny` is also a program, so it is no conftest

from tiny import TinyBackend, new_run

from svi.generation.run import Run


@pytest.fixture
def backend() -> TinyBackend:
    return TinyBackend()


@pytest.fixture
def made(tmp_path: Path, backend: TinyBackend) -> Run:
    """A finished run of four clips."""
    run = new_run(tmp_path / "run")
    run.generate(backend)
    return run
