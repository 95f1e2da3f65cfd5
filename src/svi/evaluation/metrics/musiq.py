"""MUSIQ, the multi-scale image quality transformer, small: a network that loads the SPAQ checkpoint of IQA-PyTorch.

Knows nothing about videos. Written from the paper (Ke et al., ICCV 2021, arXiv:2108.05997); names and shapes of its
weights are those of the checkpoint. An image of any size becomes 32 x 32 patches at three scales (longer side 224, 384
and as it is); each patch is told its scale and its place on a 10 x 10 grid.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from svi.errors import UserError

PATCH = 32
GRID = 10
LONGER_SIDES = (224, 384)
STEM = 64


def pad_same(images: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """Zeros around ``(n, c, h, w)`` as TensorFlow's ``SAME`` puts them: the odd one below and to the right."""
    pads: list[int] = []
    for length in (images.shape[-1], images.shape[-2]):
        total = max(0, (math.ceil(length / stride) - 1) * stride + kernel - length)
        pads += [total // 2, total - total // 2]
    return functional.pad(images, pads)


class StandardisedConv(nn.Conv2d):
    """A convolution without bias whose filters have zero mean and unit deviation, padded like ``SAME``."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return functional.conv2d(pad_same(x, self.kernel_size[0], self.stride[0]), weight, stride=self.stride)


class Bottleneck(nn.Module):
    """A residual block of the stem; ``outputs`` differs from ``inputs``, so its shortcut is projected."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.gn1 = StandardisedConv(inputs, inputs, 1), nn.GroupNorm(32, inputs, eps=1e-4)
        self.conv2, self.gn2 = StandardisedConv(inputs, inputs, 3), nn.GroupNorm(32, inputs, eps=1e-4)
        self.conv3, self.gn3 = StandardisedConv(inputs, outputs, 1), nn.GroupNorm(32, outputs, eps=1e-4)
        self.conv_proj, self.gn_proj = StandardisedConv(inputs, outputs, 1), nn.GroupNorm(32, outputs, eps=1e-4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.gn1(self.conv1(x)).relu()
        out = self.gn2(self.conv2(out)).relu()
        out = self.gn3(self.conv3(out)) + self.gn_proj(self.conv_proj(x))
        return out.relu()


class Attention(nn.Module):
    """Self-attention over all patches of all scales."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        out: torch.Tensor = self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """Two layers on each token by itself."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Attention, then an MLP, each after a norm and beside a shortcut."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width, eps=1e-6), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=1e-6), Mlp(width, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        out: torch.Tensor = x + self.mlp(self.norm2(x))
        return out


class PositionEmbedding(nn.Module):
    """What a patch is told of its place; a module only for the name of its weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.position_emb = nn.Parameter(torch.zeros(1, GRID * GRID, width))


class ScaleEmbedding(nn.Module):
    """What a patch is told of its scale; likewise."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_emb = nn.Parameter(torch.zeros(len(LONGER_SIDES) + 1, width))


class Encoder(nn.Module):
    """The transformer: ``(b, n, d)`` tokens with their places and scales to the class token, ``(b, d)``."""

    def __init__(self, width: int, hidden: int, heads: int, layers: int) -> None:
        super().__init__()
        self.posembed_input, self.scaleembed_input = PositionEmbedding(width), ScaleEmbedding(width)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.encoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.transformer = nn.ModuleDict({f"encoderblock_{k}": Block(width, hidden, heads) for k in range(layers)})

    def forward(self, tokens: torch.Tensor, places: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        x = tokens + self.posembed_input.position_emb[0, places] + self.scaleembed_input.scale_emb[scales]
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1)
        for block in self.transformer.values():
            x = block(x)
        out: torch.Tensor = self.encoder_norm(x)[:, 0]
        return out


class Musiq(nn.Module):
    """Images ``(b, 3, h, w)`` in [0, 1] to quality ``(b,)``, about 0 to 100 for SPAQ.

    The published code pads the two smaller scales to a fixed number of patches and masks those out; here they are left
    out, which gives the same numbers.
    """

    def __init__(self, width: int = 384, hidden: int = 1152, heads: int = 6, layers: int = 14) -> None:
        super().__init__()
        self.conv_root = StandardisedConv(3, STEM, 7, 2)
        self.gn_root = nn.GroupNorm(32, STEM, eps=1e-6)
        self.block1 = Bottleneck(STEM, STEM * 4)
        self.embedding = nn.Linear(STEM * 4 * (PATCH // 4) ** 2, width)
        self.transformer_encoder = Encoder(width, hidden, heads, layers)
        self.head = nn.Linear(width, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches, places, scales = multiscale_patches((images - 0.5) * 2)
        batch, count = patches.shape[:2]
        x = self.gn_root(self.conv_root(patches.flatten(0, 1))).relu()
        x = functional.max_pool2d(pad_same(x, 3, 2), 3, 2)
        x = self.block1(x).permute(0, 2, 3, 1)  # channels last, as in the network's first home
        tokens = self.embedding(x.reshape(batch, count, -1))
        out: torch.Tensor = self.head(self.transformer_encoder(tokens, places, scales))[:, 0]
        return out


def multiscale_patches(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Patches at all scales with their places and scales.

    Args:
        images: ``(b, 3, h, w)`` in [-1, 1].

    Returns:
        Patches ``(b, n, 3, 32, 32)``; index ``(n,)`` into the 10 x 10 grid of places; index ``(n,)`` of the scale, the
        native one last.
    """
    height, width = images.shape[-2:]
    pyramid = []
    for side in LONGER_SIDES:
        ratio = side / max(height, width)
        size = (max(1, round(height * ratio)), max(1, round(width * ratio)))
        pyramid.append(functional.interpolate(images, size, mode="bicubic"))
    pyramid.append(images)
    cut = [_patches(level) for level in pyramid]
    places = torch.cat([grid_places(-(-level.shape[-2] // PATCH), -(-level.shape[-1] // PATCH)) for level in pyramid])
    scales = torch.cat([torch.full((part.shape[1],), scale) for scale, part in enumerate(cut)])
    return torch.cat(cut, dim=1), places.to(images.device), scales.to(images.device)


def grid_places(rows: int, columns: int) -> torch.Tensor:
    """For ``rows x columns`` patches, row by row, the cell of the 10 x 10 grid that each falls into, ``(n,)``."""

    def stretched(count: int) -> torch.Tensor:
        return functional.interpolate(torch.arange(float(GRID))[None, None], count, mode="nearest")[0, 0].long()

    return (stretched(rows)[:, None] * GRID + stretched(columns)).flatten()


def load(path: Path, device: torch.device) -> Musiq:
    """The network with the weights of a checkpoint.

    Raises:
        UserError: the file holds other weights; says which.
    """
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("params", state)
    with torch.device("meta"):
        model = Musiq()
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if wanted != found:
        wrong = sorted(set(wanted.items()) ^ set(found.items()))[:3]
        raise UserError(
            f"{path} is not a MUSIQ checkpoint of IQA-PyTorch with one output (see {wrong}): fetch it again"
        )
    model.load_state_dict(state, assign=True)
    return model.float().to(device).eval()


def _patches(images: torch.Tensor) -> torch.Tensor:
    padded = pad_same(images, PATCH, PATCH)
    flat = functional.unfold(padded, PATCH, stride=PATCH).transpose(1, 2)
    return flat.reshape(*flat.shape[:2], 3, PATCH, PATCH)
