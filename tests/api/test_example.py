"""The bundled example is what its code makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from svi import examples
from svi.generation.storyboard import load_storyboard


def test_the_example_is_made_by_its_code(tmp_path: Path):
    examples.write_example(tmp_path)
    for made, bundled in ((tmp_path / path.name, path) for path in (examples.STORYBOARD, examples.IMAGE)):
        if made.suffix == ".png":  # compression may differ, pixels may not
            assert (np.asarray(Image.open(made)) == np.asarray(Image.open(bundled))).all(), "run python -m svi.examples"
        else:
            assert made.read_text() == bundled.read_text(), "run python -m svi.examples"


def test_the_example_is_long_enough_to_show_something():
    story = load_storyboard(examples.STORYBOARD)
    assert story.planned_clips == sum(clips for *_, clips in examples.SCRIPT) >= 20
    assert story.prompt(0) == examples.example_world().caption(0)
