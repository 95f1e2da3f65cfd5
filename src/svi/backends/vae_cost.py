"""What Wan's causal video VAE costs, from its configuration alone: parameters, FLOPs, and memory while it streams.

The layers are listed once, in order, and everything else is a sum over that list. Knows the architecture of
`AutoencoderKLWan` as data; nothing about torch, files or devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

CHUNK = 4  # frames per latent frame, after the first: the VAE works through a video in such pieces
REMEMBERED = 2  # frames of its input that a causal convolution keeps from the piece before


class Layer(NamedTuple):
    """A convolution or an attention, with where it stands.

    Attributes:
        kind: ``conv`` (causal, in time and space), ``time`` (causal, in time), ``plane`` (frame by frame), ``point``
            (1x1, no memory), ``attention`` (within a frame; ``out`` is its width).
        channels, out: in and out.
        taps: kernel size, all dimensions multiplied.
        space: pixels per cell along height and width where its output lies.
        time: times that frames were halved where its output lies.
        skips_first: whether the first piece of a video passes it by.
    """

    kind: Literal["conv", "time", "plane", "point", "attention"]
    channels: int
    out: int
    taps: int
    space: int
    time: int
    skips_first: bool = False


@dataclass(frozen=True)
class VaeShape:
    """Sizes of a VAE, named as in its diffusers configuration."""

    base_dim: int = 96
    decoder_base_dim: int | None = None
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    in_channels: int = 3
    out_channels: int = 3
    is_residual: bool = False
    patch_size: int | None = None
    scale_factor_temporal: int = 4
    scale_factor_spatial: int = 8

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> VaeShape:
        """From a configuration; what it does not say is as in Wan 2.1."""
        known = {name: config[name] for name in cls.__dataclass_fields__ if name in config}
        for name in ("dim_mult", "temperal_downsample"):
            if name in known:
                known[name] = tuple(known[name])
        return cls(**known)

    @property
    def pixel(self) -> int:
        """Pixels along each side of what the first convolution sees as one."""
        return self.patch_size or 1

    # -- layers --------------------------------------------------------------------------------------------------------

    def encoder(self) -> Iterator[Layer]:
        """Layers of the encoder, the convolution to mean and variance included."""
        widths = [self.base_dim * factor for factor in (1, *self.dim_mult)]
        space, time = self.pixel, 0
        yield Layer("conv", self.in_channels, widths[0], 27, space, time)
        for level, (width, out) in enumerate(pairwise(widths)):
            for number in range(self.num_res_blocks):
                yield from _residual(width if number == 0 else out, out, space, time)
            if level < len(self.dim_mult) - 1:
                space *= 2
                yield Layer("plane", out, out, 9, space, time)
                if self.temperal_downsample[level]:
                    time += 1
                    yield Layer("time", out, out, 3, space, time, skips_first=True)
        yield from _middle(widths[-1], space, time)
        yield Layer("conv", widths[-1], 2 * self.z_dim, 27, space, time)
        yield Layer("point", 2 * self.z_dim, 2 * self.z_dim, 1, space, time)

    def decoder(self) -> Iterator[Layer]:
        """Layers of the decoder, the convolution before it included."""
        base = self.decoder_base_dim or self.base_dim
        widths = [base * factor for factor in (self.dim_mult[-1], *reversed(self.dim_mult))]
        space = self.pixel * 2 ** (len(self.dim_mult) - 1)
        time = sum(self.temperal_downsample)
        yield Layer("point", self.z_dim, self.z_dim, 1, space, time)
        yield Layer("conv", self.z_dim, widths[0], 27, space, time)
        yield from _middle(widths[0], space, time)
        upsample = tuple(reversed(self.temperal_downsample))
        for level, (above, out) in enumerate(pairwise(widths)):
            width = above // 2 if level and not self.is_residual else above
            for number in range(self.num_res_blocks + 1):
                yield from _residual(width if number == 0 else out, out, space, time)
            if level < len(self.dim_mult) - 1:
                if upsample[level]:
                    yield Layer("time", out, 2 * out, 3, space, time, skips_first=True)
                    time -= 1
                space //= 2
                yield Layer("plane", out, out if self.is_residual else out // 2, 9, space, time)
        yield Layer("conv", widths[-1], self.out_channels, 27, space, time)

    # -- sums ----------------------------------------------------------------------------------------------------------

    @property
    def parameters(self) -> int:
        """All parameters."""
        return sum(_parameters(layer) for half in (self.encoder(), self.decoder()) for layer in half) + self._norms()

    def _norms(self) -> int:
        """One gain per channel before each of the two convolutions of a residual block, before an attention, and at the end."""
        total = 0
        for half in (tuple(self.encoder()), tuple(self.decoder())):
            large = [layer for layer in half if layer.kind == "conv"]
            total += sum(layer.channels for layer in large[1:])
            total += sum(layer.out for layer in half if layer.kind == "attention")
        return total

    def encode_flops(self, num_frames: int, height: int, width: int) -> int:
        """Of encoding a video; a multiply-add counts two."""
        return sum(_flops(layer, num_frames, height, width) for layer in self.encoder())

    def decode_flops(self, num_frames: int, height: int, width: int) -> int:
        """Of decoding one."""
        return sum(_flops(layer, num_frames, height, width) for layer in self.decoder())

    def memory_bytes(self, height: int, width: int) -> int:
        """What the decoder remembers between two pieces, in fp32."""
        cells = (_remembered(layer) * (height // layer.space) * (width // layer.space) for layer in self.decoder())
        return 4 * sum(cells)

    def working_bytes(self, height: int, width: int) -> int:
        """Most that decoding holds beside the weights: its memory, and five pieces at full size at its narrowest width.

        Five: upsampling holds its input (a half), the enlarged copy of twice the width (two), and its result (one);
        the rest is the workspace of the convolution library.
        """
        narrow = (self.decoder_base_dim or self.base_dim) * self.dim_mult[0]
        piece = 4 * CHUNK * narrow * (height // self.pixel) * (width // self.pixel)
        return self.memory_bytes(height, width) + 5 * piece


def _residual(width: int, out: int, space: int, time: int) -> Iterator[Layer]:
    yield Layer("conv", width, out, 27, space, time)
    yield Layer("conv", out, out, 27, space, time)
    if width != out:
        yield Layer("point", width, out, 1, space, time)


def _middle(width: int, space: int, time: int) -> Iterator[Layer]:
    yield from _residual(width, width, space, time)
    yield Layer("attention", width, width, 1, space, time)
    yield from _residual(width, width, space, time)


def _parameters(layer: Layer) -> int:
    if layer.kind == "attention":
        return 4 * layer.channels * layer.out + 4 * layer.out
    return layer.channels * layer.out * layer.taps + layer.out


def _flops(layer: Layer, num_frames: int, height: int, width: int) -> int:
    frames = (num_frames - 1) // 2**layer.time + (not layer.skips_first)
    cells = (height // layer.space) * (width // layer.space)
    if layer.kind == "attention":
        return frames * (2 * 4 * cells * layer.out**2 + 4 * cells * cells * layer.out)
    return 2 * layer.channels * layer.out * layer.taps * frames * cells


def _remembered(layer: Layer) -> int:
    """Channels times frames that a layer keeps per cell of its input."""
    return REMEMBERED * layer.channels if layer.kind in ("conv", "time") else 0


WAN21_VAE = VaeShape()
WAN22_VAE = VaeShape(
    base_dim=160,
    decoder_base_dim=256,
    z_dim=48,
    in_channels=12,
    out_channels=12,
    is_residual=True,
    patch_size=2,
    scale_factor_spatial=16,
)
