"""A picture, a finished run and a way to call the command line, for its tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from svi.cli import main


@dataclass
class Result:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def svi(capsys: pytest.CaptureFixture[str]) -> Command:
    """``svi("show", "run")`` runs a command in this process."""

    def call(*words: str | Path) -> Result:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return call


def picture(path: Path, size: tuple[int, int] = (48, 32)) -> Path:
    """A picture with a gradient and a square."""
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    image.paste((200, 40, 40), (8, 8, 24, 24))
    image.save(path)
    return path


@pytest.fixture(scope="session")
def finished_run(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three clips. Not to be changed: copy it (``run``)."""
    home = tmp_path_factory.mktemp("finished")
    image = picture(home / "cat.png")
    words = ["generate", image, "--prompt", "a cat walks", "the cat sits", "--clips", "3", "--out", home / "run"]
    assert main([*map(str, words), "--model", str(model_folder), "--quiet"]) == 0
    return home / "run"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with ``cat.png``."""
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "cat.png")
    return tmp_path


@pytest.fixture
def run(home: Path, finished_run: Path) -> Path:
    """A copy of the finished run that may be changed."""
    return Path(shutil.copytree(finished_run, home / "run"))
