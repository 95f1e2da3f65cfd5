"""A run on a real model of the Wan classes (random weights): image file and prompt file in, the same bytes twice out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import Listener, outputs

from svi.backends.wan import load_backend
from svi.generation.images import load_reference
from svi.generation.manifest import resolve_settings
from svi.generation.prompts import load_prompts
from svi.generation.run import Run
from svi.generation.writer import read_frames


@pytest.mark.parametrize("preset", ["film", "pro"])
def test_a_run_on_a_model_folder_resumes_to_the_same_bytes(tmp_path: Path, model_folder: Path, preset: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    (tmp_path / "prompts.txt").write_text('prompts = ["a red ball rolls", "it stops"]')
    backend = load_backend(str(model_folder))
    story = load_prompts(tmp_path / "prompts.txt")
    reference = load_reference(tmp_path / "image.png", None, backend.geometry)
    settings = resolve_settings(
        backend.geometry, backend.info, story, width=reference.width, height=reference.height, preset=preset, seed=3
    )
    runs = [
        Run.create(
            tmp_path / name, settings=settings, storyboard=story, reference=reference, model=backend.info, clips=3
        )
        for name in ("whole", "stopped")
    ]
    runs[0].generate(backend)
    told = Listener()
    stop_after = settings.steps + 1  # in the middle of clip 1
    runs[1].generate(
        backend, on_event=told, should_stop=lambda: sum(event.kind == "step" for event in told.events) >= stop_after
    )
    assert runs[1].count == 1
    runs[1].generate(load_backend(str(model_folder)))
    assert outputs(runs[1]) == outputs(runs[0])
    assert len(list(read_frames(runs[1].path / "video.mp4"))) == runs[1].status().frames == 9 + 4 + 4
