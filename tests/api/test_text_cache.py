"""Embeddings on disk, from the user's side: a prompt that was met before needs no text encoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import svi
from svi.generation.events import Event

LOADED = "loading text encoder"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SVI_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache" / "text"


class Run:
    """What making a clip showed: its frames, and whether the text encoder was loaded."""

    def __init__(self, model: Path, name: str, prompt: str = "a cat walks", *, text_cache: bool | None = True) -> None:
        said: list[str] = []

        def hear(event: Event) -> None:
            said.append(str(getattr(event, "message", "")))

        picture = np.full((32, 48, 3), 120, np.uint8)
        options = {"clips": 1, "steps": 1, "device": "cpu", "guidance": 2.0, "on_event": hear, "text_cache": text_cache}
        made = svi.generate(picture, prompt, model=model, out=name, **options)
        self.frames = [clip.frames_sha256 for clip in made.clips()]
        self.loaded = LOADED in said


def test_the_second_run_loads_no_text_encoder(model_folder: Path, cache: Path):
    plain, first, second = (
        Run(model_folder, "plain", text_cache=False),
        Run(model_folder, "first"),
        Run(model_folder, "second"),
    )
    assert (first.loaded, second.loaded) == (True, False)
    assert plain.frames == first.frames == second.frames
    assert len(list(cache.iterdir())) == 2  # the prompt, and the negative one
    assert Run(model_folder, "third", "a dog sleeps").loaded
    assert not Run(model_folder, "fourth", "a dog sleeps").loaded


def test_other_weights_of_the_text_encoder_are_other_embeddings(model_folder: Path, tmp_path: Path):
    assert Run(model_folder, "first").loaded
    copy = Path(shutil.copytree(model_folder, tmp_path / "copy"))
    assert not Run(copy, "second").loaded  # the same files elsewhere
    (file,) = (copy / "text_encoder").glob("*.safetensors")
    state = {name: value + 0.5 for name, value in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})
    assert Run(copy, "third").loaded
    settings = json.loads((copy / "tokenizer" / "tokenizer_config.json").read_text())
    (copy / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({**settings, "note": "another"}))
    assert Run(copy, "fourth").loaded


def test_a_small_encoder_is_loaded_at_once_and_leaves_nothing_behind(model_folder: Path, cache: Path):
    assert Run(model_folder, "run", text_cache=None).loaded
    assert not cache.exists()


def test_a_damaged_text_encoder_is_found_before_it_is_needed(model_folder: Path, tmp_path: Path):
    assert Run(model_folder, "first").loaded
    copy = Path(shutil.copytree(model_folder, tmp_path / "copy"))
    (file,) = (copy / "text_encoder").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(svi.UserError, match="damaged, cut short"):
        Run(copy, "second")
