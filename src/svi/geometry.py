"""Shapes: pixels, latents, and how frames map to latent frames.

Knows nothing about models, files or devices. A causal video VAE with temporal scale 4 turns ``4 n + 1``
frames into ``n + 1`` latent frames: the first latent covers one frame, each later one covers four.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """Scales of a model and the window it was trained on.

    Attributes:
        latent_channels: channels C of the latents.
        temporal_scale: frames per latent frame (after the first).
        spatial_scale: pixels per latent cell along height and width.
        patch: transformer patch along (frame, height, width), in latent cells.
        height, width, num_frames: the window the model was trained on, in pixels and frames.
        fps: frames per second the model was trained on.
    """

    latent_channels: int = 16
    temporal_scale: int = 4
    spatial_scale: int = 8
    patch: tuple[int, int, int] = (1, 2, 2)
    height: int = 480
    width: int = 832
    num_frames: int = 81
    fps: int = 16

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this many pixels."""
        return self.spatial_scale * max(self.patch[1], self.patch[2])

    def latent_frames(self, num_frames: int) -> int:
        """Latent frames of a clip of ``num_frames`` frames.

        Raises:
            ValueError: if ``num_frames`` is not ``temporal_scale * n + 1``.
        """
        self.check_num_frames(num_frames)
        return (num_frames - 1) // self.temporal_scale + 1

    def frames_of(self, latent_frames: int) -> int:
        """Frames that ``latent_frames`` latent frames decode to, when decoded from the start of a clip."""
        if latent_frames < 1:
            raise ValueError(f"latent_frames must be at least 1, not {latent_frames}")
        return (latent_frames - 1) * self.temporal_scale + 1

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """``(C, F, h, w)`` of a clip.

        Raises:
            ValueError: for a size or a length the model cannot take; the message names the nearest that it can.
        """
        self.check_size(height, width)
        return (
            self.latent_channels,
            self.latent_frames(num_frames),
            height // self.spatial_scale,
            width // self.spatial_scale,
        )

    def check_num_frames(self, num_frames: int) -> None:
        """Raise ValueError unless ``num_frames`` is ``temporal_scale * n + 1`` with n >= 1."""
        scale = self.temporal_scale
        if num_frames < scale + 1 or (num_frames - 1) % scale:
            nearest = max(1, round((num_frames - 1) / scale)) * scale + 1
            raise ValueError(f"a clip has {scale}n+1 frames, not {num_frames}: the nearest is {nearest}")

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError unless height and width are positive multiples of ``size_multiple``."""
        step = self.size_multiple
        if height < step or width < step or height % step or width % step:
            near = [max(step, round(side / step) * step) for side in (width, height)]
            raise ValueError(
                f"width and height must be multiples of {step}, not {width}x{height}: the nearest is {near[0]}x{near[1]}"
            )
