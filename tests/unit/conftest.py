"""Fixtures of the unit tests: a model in closed form, and memories before and after a clip."""

from __future__ import annotations

import pytest
import torch
from closed_form import CHANNELS, HEIGHT, WIDTH, ClosedFormBackend, picture

from svi.conditioning.memory import ClipMemory


@pytest.fixture
def backend() -> ClosedFormBackend:
    return ClosedFormBackend()


@pytest.fixture
def first_memory() -> ClipMemory:
    """Memory before the first clip."""
    return ClipMemory.start(picture(1))


@pytest.fixture
def later_memory() -> ClipMemory:
    """Memory after a clip that left five frames and two latents."""
    latents = torch.randn(1, CHANNELS, 2, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(3))
    return ClipMemory(reference=picture(1, 1), frames=picture(2, 1, 5), latents=latents, clip_index=1)
