"""Every command once or more, on a real model folder with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import SIZE
from PIL import Image

from svi.generation.run import Run


def frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


def test_generate(svi, home, model_folder):
    pass
