"""RAFT-large, optical flow, small and for inference only: a network that loads torchvision's weights.

Knows nothing about metrics. Written from the paper (Teed and Deng, ECCV 2020, arXiv:2003.12039); names and shapes of
its weights are those of ``raft_large`` in torchvision, which is no dependency: its wheels fit one build of torch each.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from svi.errors import UserError
from svi.evaluation.metrics.formulas import Mode

ITERATIONS = 20

HIDDEN = 128
RADIUS, LEVELS = 4, 4


def conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, norm: Callable[[int], nn.Module] | None = None
) -> nn.Sequential:
    """A convolution that keeps the size (at stride 1), and its norm."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)]
    return nn.Sequential(*layers, *([norm(outputs)] if norm else []))


class Residual(nn.Module):
    """Two convolutions and a shortcut, which is projected where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.convnormrelu1 = conv(inputs, outputs, 3, stride, norm)
        self.convnormrelu2 = conv(outputs, outputs, 3, 1, norm)
        self.downsample = nn.Identity() if stride == 1 else conv(inputs, outputs, 1, stride, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.convnormrelu2(self.convnormrelu1(x).relu()).relu()
        out = self.downsample(x) + out
        return out.relu()


class Features(nn.Module):
    """Frames ``(b, 3, H, W)`` to features ``(b, 256, H / 8, W / 8)``."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.convnormrelu = conv(3, 64, 7, 2, norm)
        self.layer1 = nn.Sequential(Residual(64, 64, 1, norm), Residual(64, 64, 1, norm))
        self.layer2 = nn.Sequential(Residual(64, 96, 2, norm), Residual(96, 96, 1, norm))
        self.layer3 = nn.Sequential(Residual(96, 128, 2, norm), Residual(128, 128, 1, norm))
        self.conv = nn.Conv2d(128, 2 * HIDDEN, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(self.layer3(self.layer2(self.layer1(self.convnormrelu(x).relu()))))
        return out


class MotionEncoder(nn.Module):
    """Correlations around the current flow, and the flow, to ``(b, 128, h, w)``."""

    def __init__(self) -> None:
        super().__init__()
        self.convcorr1, self.convcorr2 = conv(LEVELS * (2 * RADIUS + 1) ** 2, 256, 1), conv(256, 192, 3)
        self.convflow1, self.convflow2 = conv(2, 128, 7), conv(128, 64, 3)
        self.conv = conv(192 + 64, 128 - 2, 3)

    def forward(self, flow: torch.Tensor, correlations: torch.Tensor) -> torch.Tensor:
        seen = self.convcorr2(self.convcorr1(correlations).relu()).relu()
        moved = self.convflow2(self.convflow1(flow).relu()).relu()
        return torch.cat([self.conv(torch.cat([seen, moved], dim=1)).relu(), flow], dim=1)


class ConvGru(nn.Module):
    """A gated recurrent unit of convolutions along one direction."""

    def __init__(self, kernel: tuple[int, int]) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.convz, self.convr, self.convq = (nn.Conv2d(3 * HIDDEN, HIDDEN, kernel, padding=padding) for _ in range(3))

    def forward(self, state: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        both = torch.cat([state, x], dim=1)
        update, reset = self.convz(both).sigmoid(), self.convr(both).sigmoid()
        new = self.convq(torch.cat([reset * state, x], dim=1)).tanh()
        return torch.lerp(state, new, update)


class RecurrentBlock(nn.Module):
    """The unit along rows and the one along columns."""

    def __init__(self) -> None:
        super().__init__()
        self.convgru1, self.convgru2 = ConvGru((1, 5)), ConvGru((5, 1))


class FlowHead(nn.Module):
    """Hidden state to a change of flow; called by :class:`UpdateBlock`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(HIDDEN, 256, 3, padding=1), nn.Conv2d(256, 2, 3, padding=1)


class UpdateBlock(nn.Module):
    """One refinement: the new hidden state and what to add to the flow."""

    def __init__(self) -> None:
        super().__init__()
        self.motion_encoder, self.recurrent_block, self.flow_head = MotionEncoder(), RecurrentBlock(), FlowHead()

    def forward(
        self, state: torch.Tensor, context: torch.Tensor, correlations: torch.Tensor, flow: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.cat([context, self.motion_encoder(flow, correlations)], dim=1)
        state = self.recurrent_block.convgru2(self.recurrent_block.convgru1(state, x), x)
        return state, self.flow_head.conv2(self.flow_head.conv1(state).relu())


class MaskPredictor(nn.Module):
    """Hidden state to the shares of :func:`upsampled`."""

    def __init__(self) -> None:
        super().__init__()
        self.convrelu, self.conv = conv(HIDDEN, 256, 3), nn.Conv2d(256, 8 * 8 * 9, 1)


class Raft(nn.Module):
    """Flow from ``first`` to ``second``, both ``(b, 3, H, W)`` in [-1, 1], H and W multiples of 8 from 128 on.

    Returns:
        ``(b, 2, H, W)`` pixels, x before y.
    """

    def __init__(self) -> None:
        super().__init__()
        self.feature_encoder, self.context_encoder = Features(nn.InstanceNorm2d), Features(nn.BatchNorm2d)
        self.update_block, self.mask_predictor = UpdateBlock(), MaskPredictor()

    def forward(self, first: torch.Tensor, second: torch.Tensor, iterations: int = ITERATIONS) -> torch.Tensor:
        pyramid = correlation_pyramid(*self.feature_encoder(torch.cat([first, second])).chunk(2))
        state, context = self.context_encoder(first).split(HIDDEN, dim=1)
        state, context = state.tanh(), context.relu()
        batch, _, height, width = context.shape
        axes = (torch.arange(size, device=first.device, dtype=first.dtype) for size in (height, width))
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1])[None].expand(batch, -1, -1, -1)
        flow = torch.zeros_like(grid)
        for _ in range(iterations):
            state, change = self.update_block(state, context, look_up(pyramid, grid + flow), flow)
            flow = flow + change
        mask = 0.25 * self.mask_predictor.conv(self.mask_predictor.convrelu(state).relu())
        return upsampled(flow, mask)


def correlation_pyramid(first: torch.Tensor, second: torch.Tensor) -> list[torch.Tensor]:
    """Correlation of every pixel of ``first`` with all of ``second``: four levels ``(b h w, 1, h / 2^k, w / 2^k)``."""
    batch, channels, height, width = first.shape
    volume = torch.einsum("bcn,bcm->bnm", first.flatten(2), second.flatten(2)) / channels**0.5
    levels = [volume.reshape(batch * height * width, 1, height, width)]
    for _ in range(LEVELS - 1):
        levels.append(functional.avg_pool2d(levels[-1], 2))
    return levels


def look_up(pyramid: list[torch.Tensor], centres: torch.Tensor) -> torch.Tensor:
    """Correlations in a 9 x 9 neighbourhood of ``centres`` (``(b, 2, h, w)``, x before y) at all levels."""
    batch, _, height, width = centres.shape
    offsets = torch.arange(-RADIUS, RADIUS + 1, device=centres.device, dtype=centres.dtype)
    around = torch.stack(torch.meshgrid(offsets, offsets, indexing="ij"), dim=-1)  # the first axis moves in x
    points = centres.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
    seen = []
    for level, volume in enumerate(pyramid):
        last = torch.tensor([volume.shape[-1] - 1, volume.shape[-2] - 1], device=centres.device, dtype=centres.dtype)
        where = 2 * (points / 2**level + around) / last - 1
        values = functional.grid_sample(volume, where, align_corners=True)
        seen.append(values.view(batch, height, width, -1))
    return torch.cat(seen, dim=-1).permute(0, 3, 1, 2).contiguous()


def upsampled(flow: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Flow at 8 times the size: each pixel a convex mix of the nine around it, by ``mask`` ``(b, 576, h, w)``."""
    batch, _, height, width = flow.shape
    shares = mask.view(batch, 1, 9, 8, 8, height, width).softmax(dim=2)
    around = functional.unfold(8 * flow, 3, padding=1).view(batch, 2, 9, 1, 1, height, width)
    mixed = (shares * around).sum(dim=2)
    return mixed.permute(0, 1, 4, 2, 5, 3).reshape(batch, 2, 8 * height, 8 * width)


class RaftFlow:
    """Extractor of flow: pairs of frames ``(n, 2, H, W, 3)`` uint8 to ``(n, h, w, 2)`` float32 pixels.

    Frames are padded to multiples of 8 by repeating their edges, evenly on both sides. Mode ``"vbench"`` returns the
    flow of the padding too, as VBench counts it; ``"clean"`` cuts it off.
    """

    def __init__(self, model: Raft, mode: Mode, key: str = "") -> None:
        self.key = key
        self._model, self._mode = model.eval(), mode

    @torch.inference_mode()
    def __call__(self, pairs: np.ndarray) -> np.ndarray:
        parameter = next(self._model.parameters())
        images = torch.from_numpy(np.ascontiguousarray(pairs)).to(parameter.device)
        images = images.permute(1, 0, 4, 2, 3).to(parameter.dtype) / 127.5 - 1
        height, width = images.shape[-2:]
        down, right = -height % 8, -width % 8
        pads = [right // 2, right - right // 2, down // 2, down - down // 2]
        first, second = (functional.pad(image, pads, mode="replicate") for image in images)
        flow: torch.Tensor = self._model(first, second)
        if self._mode == "clean":
            flow = flow[..., pads[2] : pads[2] + height, pads[0] : pads[0] + width]
        return flow.permute(0, 2, 3, 1).float().cpu().numpy()


def load(path: Path, device: torch.device) -> Raft:
    """The network with torchvision's weights.

    Raises:
        UserError: the file holds other weights.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        model = Raft()
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    # Older files lack the counters of batch normalisation, which inference does not read.
    wrong = sorted(pair for pair in set(wanted.items()) ^ set(found.items()) if "num_batches" not in pair[0])[:3]
    if wrong:
        raise UserError(f"{path} is not torchvision's raft_large (see {wrong}): fetch it again")
    model = Raft()
    model.load_state_dict(state, strict=False)
    return model.to(device).eval()
