"""The parts of a model that a training step does not need, out of the way: VAE and encoders wait in main memory.

They work while clips are encoded and in validation. On a CPU there is nothing to move.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from svi.backends.wan import WanBackend

ENCODERS = ("vae", "text_encoder", "image_encoder")


def park_encoders(backend: WanBackend) -> None:
    """Move VAE and encoders to main memory."""
    _move(backend, torch.device("cpu"))


@contextmanager
def encoders_at_work(backend: WanBackend) -> Iterator[None]:
    """VAE and encoders on the device of the model, for the time of the block."""
    _move(backend, backend.device)
    try:
        yield
    finally:
        park_encoders(backend)


def _move(backend: WanBackend, device: torch.device) -> None:
    if backend.device.type == "cpu":
        return
    for name in ENCODERS:
        part = getattr(backend, name)
        if part is not None:
            part.to(device)
