"""Shared by the tests of the trainer."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cache(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoded clips of the tiny model, for preset ``shot``."""
    from small_trainings import config

    from svi.finetune import fine_tune

    folder = tmp_path_factory.mktemp("cache") / "cache"
    fine_tune(config(model_folder, "loop.steps=1", f"data.cache={folder}"), folder.parent / "run", device="cpu")
    return folder
