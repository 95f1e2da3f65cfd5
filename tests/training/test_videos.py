"""Training on videos: some are held out and looked at, and clips that were encoded before are taken as they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from data_videos import captioned, world_frames, write_video
from PIL import Image
from small_trainings import config

from svi.cli import main
from svi.errors import UserError
from svi.finetune import fine_tune


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos") / "clips"
    for number in range(4):
        captioned(write_video(folder / f"{number}.mp4", world_frames(20, seed=number, size=(48, 64))))
    return folder


def test_held_out_videos_are_looked_at(videos: Path, model_folder: Path, tmp_path: Path) -> None:
    looking = ("loop.steps=2", "loop.validate_every=2", "data.held_out=0.5", "loop.validation_items=2")
    fine_tune(config(model_folder, *looking, f"data.source={videos}"), tmp_path, device="cpu")
    (look,) = [
        row for line in (tmp_path / "log.jsonl").read_text().splitlines() if "validation" in (row := json.loads(line))
    ]
    numbers = look["validation"]
    assert sum(name.startswith("loss_at_") for name in numbers) == 5
    assert all(np.isfinite(value) for value in numbers.values())
    assert Image.open(look["sheet"]).height % 32 == 0
    everything = config(model_folder, "loop.steps=1", "data.held_out=0.999", f"data.source={videos}")
    with pytest.raises(UserError, match=r"data\.held_out"):
        fine_tune(everything, tmp_path / "none", device="cpu")


def test_an_encoded_folder_is_a_source(videos: Path, model_folder: Path, tmp_path: Path) -> None:
    words = [
        "data",
        "encode",
        str(videos),
        "--model",
        str(model_folder),
        "--preset",
        "shot",
        "--out",
        str(tmp_path / "e"),
    ]
    assert main(words) == 0
    done = fine_tune(
        config(model_folder, "loop.steps=1", "data.held_out=0", f"data.source={tmp_path / 'e'}"),
        tmp_path / "run",
        device="cpu",
    )
    assert done.lora.is_file()
    assert not (tmp_path / "run/cache").exists()
    other = ("loop.steps=1", "data.preset=film", f"data.source={tmp_path / 'e'}")
    with pytest.raises(UserError, match="made with other settings"):
        fine_tune(config(model_folder, *other), tmp_path / "other", device="cpu")
