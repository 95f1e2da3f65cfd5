"""Shared by all tests: a model folder of the pocket model's layout with random weights, small enough to load in a moment."""

from __future__ import annotations

from pathlib import Path

import pytest

SIZE = (48, 32)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder: the pocket model's parts with one transformer block and few channels, never trained."""
    from svi.pocket import components

    folder = tmp_path_factory.mktemp("models") / "random"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(components.TRANSFORMER, "num_layers", 1)
        patch.setitem(components.VAE, "base_dim", 4)
        patch.setitem(components.VAE, "num_res_blocks", 1)
        patch.setitem(components.SETTINGS, "height", SIZE[1])
        patch.setitem(components.SETTINGS, "width", SIZE[0])
        patch.setitem(components.SETTINGS, "num_frames", 9)
        patch.setitem(components.SETTINGS, "steps", 2)
        components.save_components(components.new_components(0, caption_count=40), folder)
    return folder
