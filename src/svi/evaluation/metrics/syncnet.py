"""SyncNet: lips and sound in one space; a network that loads ``syncnet_v2.model``.

Knows nothing about videos or scores. Written from Chung and Zisserman, *Out of time: automated lip sync in the wild*;
names and shapes of its weights are those of the published file.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from svi.errors import UserError

WIDTH = 512
EMBEDDING = 1024


class SyncNet(nn.Module):
    """Embeddings of windows of 5 faces and of 0.2 s of sound, ``(n, 1024)`` each."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_flat(1, 64, 3, 1), nn.MaxPool2d(1, 1),
            *_flat(64, 192, 3, 1), nn.MaxPool2d(3, (1, 2)),
            *_flat(192, 384, 3, 1), *_flat(384, 256, 3, 1), *_flat(256, 256, 3, 1), nn.MaxPool2d(3, 2),
            *_flat(256, WIDTH, (5, 4), 0),
        )  # fmt: skip
        self.netcnnlip = nn.Sequential(
            *_deep(3, 96, (5, 7, 7), (1, 2, 2), 0), nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_deep(96, 256, (1, 5, 5), (1, 2, 2), (0, 1, 1)), nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            *_deep(256, 256, (1, 3, 3), 1, (0, 1, 1)), *_deep(256, 256, (1, 3, 3), 1, (0, 1, 1)),
            *_deep(256, 256, (1, 3, 3), 1, (0, 1, 1)), nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_deep(256, WIDTH, (1, 6, 6), 1, 0),
        )  # fmt: skip
        self.netfcaud, self.netfclip = _head(), _head()

    def faces(self, windows: torch.Tensor) -> torch.Tensor:
        """``(n, 3, 5, 224, 224)`` BGR in 0..255 to ``(n, 1024)``."""
        out: torch.Tensor = self.netfclip(self.netcnnlip(windows).flatten(1))
        return out

    def sounds(self, windows: torch.Tensor) -> torch.Tensor:
        """``(n, 1, 13, 20)`` MFCC to ``(n, 1024)``."""
        out: torch.Tensor = self.netfcaud(self.netcnnaud(windows).flatten(1))
        return out


def load(path: Path, device: torch.device) -> SyncNet:
    """The network with the weights of a file.

    Raises:
        UserError: the file holds other weights.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    network = SyncNet()
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    # The file is older than the counters of batch normalisation, which inference does not read.
    wrong = sorted(pair for pair in set(wanted.items()) ^ set(found.items()) if "num_batches" not in pair[0])[:3]
    if wrong:
        raise UserError(f"{path} is not syncnet_v2 (see {wrong}): fetch it again")
    network.load_state_dict(state, strict=False)
    return network.to(device).eval()


def _flat(inputs: int, outputs: int, kernel: int | tuple[int, int], padding: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, kernel, padding=padding), nn.BatchNorm2d(outputs), nn.ReLU()


def _deep(
    inputs: int,
    outputs: int,
    kernel: tuple[int, int, int],
    stride: int | tuple[int, int, int],
    padding: int | tuple[int, int, int],
) -> tuple[nn.Module, ...]:
    return nn.Conv3d(inputs, outputs, kernel, stride, padding), nn.BatchNorm3d(outputs), nn.ReLU()


def _head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, EMBEDDING))
