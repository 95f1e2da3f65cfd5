"""The window of one clip before encoding: its given frames as pixels, and its mask.

Pure tensors; knows nothing about models, policies or memory.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_video(frames: Tensor) -> Tensor:
    """uint8 frames ``(B, T, H, W, 3)`` -> float video ``(B, 3, T, H, W)`` in [-1, 1], contiguous fp32.

    ``x * (2 / 255) - 1``, the published form: bit-equal, which ``x / 255 * 2 - 1`` is not.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be uint8 (B, T, H, W, 3), not {frames.dtype} {tuple(frames.shape)}")
    return frames.permute(0, 4, 1, 2, 3).contiguous().float() * (2 / 255) - 1


def padded_video(motion: Tensor, reference: Tensor, reference_frames: int, num_frames: int) -> Tensor:
    """The given frames of a window as video ``(B, 3, num_frames, H, W)``: motion frames, then padding.

    Args:
        motion: ``(B, m, H, W, 3)`` uint8.
        reference: ``(B, H, W, 3)`` uint8.
        reference_frames: frames of padding that show the reference; -1 = all. The rest is 0 (mid-grey) in [-1, 1].
        num_frames: length of the window.

    Raises:
        ValueError: if nothing would be left to generate, or the frames asked for do not fit.
    """
    batch, given, height, width, _ = motion.shape
    if given >= num_frames:
        raise ValueError(f"{given} motion frames leave nothing to generate in a window of {num_frames} frames")
    room = num_frames - given
    if reference_frames > room:
        raise ValueError(f"{given} motion and {reference_frames} reference frames do not fit in {num_frames} frames")
    if reference.shape != (batch, height, width, 3):
        raise ValueError(f"reference {tuple(reference.shape)} does not fit motion frames {tuple(motion.shape)}")
    video = torch.zeros(batch, 3, num_frames, height, width, device=motion.device)
    video[:, :, :given] = to_video(motion)
    shown = room if reference_frames < 0 else reference_frames
    if shown:
        video[:, :, given : given + shown] = to_video(reference[:, None])
    return video


def known_mask(known_frames: int, latent_size: tuple[int, int, int, int], temporal_scale: int) -> Tensor:
    """Wan's mask of trusted frames, ``(B, S, F, h, w)`` fp32 in {0, 1}; S = ``temporal_scale``.

    Each latent frame has S slots, one per frame it covers; the first latent covers one frame, repeated S times.

    Args:
        known_frames: how many frames at the front are trusted.
        latent_size: ``(B, F, h, w)``.
    """
    batch, latent_frames, height, width = latent_size
    slots = torch.arange(latent_frames * temporal_scale)
    frame_of_slot = (slots - (temporal_scale - 1)).clamp_min(0)
    flags = (frame_of_slot < known_frames).float().reshape(latent_frames, temporal_scale).T
    return flags[None, :, :, None, None].expand(batch, -1, -1, height, width).contiguous()
