"""The same rollout over real classes: a Wan model with random weights, in a folder of the diffusers layout."""

import itertools

import pytest
import torch

from svi.backends.wan import load_backend
from svi.conditioning.encodings import Encodings
from svi.conditioning.memory import ClipMemory
from svi.conditioning.policy import PRESETS
from svi.generation.clip import ClipPlan
from svi.generation.rollout import rollout
from svi.pocket.build import main as build_pocket


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random-pocket")
    assert build_pocket(["--random", str(folder)]) == 0
    return load_backend(str(folder), device="cpu")


# Smaller than the window the model is made for: the point is the path, not the picture.
NUM_FRAMES, HEIGHT, WIDTH = 9, 32, 48


def plans():
    for index in itertools.count():
        yield ClipPlan(
            index=index,
            prompt=f"a ball, part {index}",
            negative_prompt="",
            seed=42 * index,
            num_frames=NUM_FRAMES,
            height=HEIGHT,
            width=WIDTH,
            steps=2,
            guidance=3.0,
        )


@pytest.mark.parametrize("name", ["film", "svi2-wan21", "pro"])
def test_resumed_clips_are_bit_identical(backend, name):
    policy = PRESETS[name]
    pixels = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (HEIGHT, WIDTH, 3), generator=pixels, dtype=torch.uint8)
    cache = Encodings(backend)
    begun = rollout(plans(), ClipMemory.start(image), backend=backend, policy=policy, encodings=cache)
    first, second = itertools.islice(begun, 2)
    assert first.frames.shape == second.frames.shape == (NUM_FRAMES, HEIGHT, WIDTH, 3)
    assert not torch.equal(first.frames, second.frames)
    assert torch.isfinite(second.latents).all()
    assert cache.calls["encode_video"] == (1 if name == "pro" else 2)

    saved = ClipMemory.from_tensors(first.memory.tensors())
    resumed = next(rollout(itertools.islice(plans(), 1, None), saved, backend=backend, policy=policy))
    assert torch.equal(resumed.latents, second.latents)
    assert torch.equal(resumed.frames, second.frames)
    assert (resumed.overlap, resumed.memory.clip_index) == (5, 2)
