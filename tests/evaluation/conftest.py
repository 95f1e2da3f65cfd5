"""Shared by the tests of the benchmark: a finished run, small videos, and a way to call the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from svi.cli import main


@pytest.fixture(scope="session")
def finished_run(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three clips of nine frames. Not to be changed."""
    home = tmp_path_factory.mktemp("finished")
    Image.linear_gradient("L").resize((48, 32)).convert("RGB").save(home / "cat.png")
    words = ["generate", home / "cat.png", "--prompt", "a cat walks", "the cat sits", "--clips", "3"]
    assert main([*map(str, words), "--out", str(home / "run"), "--model", str(model_folder), "--quiet"]) == 0
    return home / "run"


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``bench("score", "runs")`` runs ``svi bench score runs`` in this process: exit code, stdout, stderr."""
    import argparse

    from svi.cli import bench as words
    from svi.errors import UserError

    def call(*given: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        parser = argparse.ArgumentParser("svi bench", allow_abbrev=False)
        words.add_words(parser)
        try:
            code = words.run(parser.parse_args([str(word) for word in given]))
        except UserError as error:
            code = 2
            print(error)
        out, err = capsys.readouterr()
        return code, out, err

    return call
