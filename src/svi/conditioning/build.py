"""What a clip is conditioned on, from a policy and what the last clip left: for training and generation alike.

The only place where a policy's fields become tensors. Knows nothing about networks, sampling or files.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from svi.condition import ClipCondition
from svi.conditioning.encodings import Encodings
from svi.conditioning.memory import ClipMemory
from svi.conditioning.policy import ConditioningPolicy
from svi.conditioning.window import known_mask
from svi.geometry import Geometry


def build(
    policy: ConditioningPolicy,
    memory: ClipMemory,
    text: Tensor,
    *,
    encodings: Encodings,
    num_frames: int,
    geometry: Geometry,
    drive: Mapping[str, Tensor] | None = None,
) -> ClipCondition:
    """Condition of the next clip, for each of the B clips in ``memory``.

    Args:
        policy: how clips hand over.
        memory: what came before; at ``clip_index`` 0 a single frame is enough for any policy, as published.
        text: ``(B, L, D)`` text embeddings, or ``(1, L, D)`` for all.
        encodings: encoders of the model, behind a cache.
        num_frames: length of the clip, motion frames included.
        geometry: scales of the model.
        drive: driving signals by name, ``(B, ...)`` each.

    Raises:
        ValueError: if the memory or the drive lacks what the policy needs, or it does not fit into the window.
    """
    signals = dict(drive or {})
    if policy.drive is not None and policy.drive not in signals:
        raise ValueError(f"{policy.name} is driven by {policy.drive}, and none was given")
    height, width = memory.reference.shape[1:3]
    _, latent_frames, *_ = geometry.latent_shape(num_frames, height, width)
    if policy.hand_off == "pixel":
        motion = motion_frames(policy, memory)
        values = encodings.window(motion, memory.reference, policy.reference_frames, num_frames)
        given = motion.shape[1]
    else:
        motion = memory.frames[:, -1:]
        values, given_latents = _latent_values(policy, memory, encodings, latent_frames)
        given = geometry.frames_of(given_latents)
    batch, _, *latent_size = values.shape
    if latent_size[0] != latent_frames:
        raise ValueError(f"the encoder made {latent_size[0]} latent frames of {num_frames} frames, not {latent_frames}")
    flagged = given if policy.known == "motion" else 1
    mask = known_mask(flagged, (batch, latent_size[0], latent_size[1], latent_size[2]), geometry.temporal_scale)
    return ClipCondition(
        values=values,
        known=mask.to(values.device),
        text=text.expand(batch, *text.shape[1:]),
        image=_image(policy, memory, motion, encodings),
        drive=signals,
    )


def motion_frames(policy: ConditioningPolicy, memory: ClipMemory) -> Tensor:
    """Frames ``(B, m, H, W, 3)`` uint8 that pixel hand-off carries over: the last ``motion_frames`` of the memory.

    Raises:
        ValueError: if an earlier clip left fewer (it was made with another policy).
    """
    carried = memory.frames.shape[1]
    if memory.clip_index > 0 and carried < policy.motion_frames:
        raise ValueError(
            f"{policy.name} continues from {policy.motion_frames} frames, but clip {memory.clip_index - 1} left {carried}: "
            "continue with the preset that it was made with"
        )
    return memory.frames[:, -policy.motion_frames :]


def _latent_values(
    policy: ConditioningPolicy, memory: ClipMemory, encodings: Encodings, latent_frames: int
) -> tuple[Tensor, int]:
    """Anchor, last latents of the previous clip, then zeros of the normalised latent space (SVI 2.0 Pro).

    Those zeros are not the encoding of grey frames. The first clip has the anchor alone.
    Returns the values ``(B, C, F, h, w)`` and how many latent frames of them are given.
    """
    anchor = encodings.anchor(memory.reference)
    parts = [anchor]
    if memory.clip_index > 0 and policy.motion_latents > 0:
        if memory.latents is None or memory.latents.shape[2] < policy.motion_latents:
            carried = 0 if memory.latents is None else memory.latents.shape[2]
            raise ValueError(
                f"{policy.name} continues from {policy.motion_latents} latent frames, but clip {memory.clip_index - 1} left "
                f"{carried}: continue with the preset that it was made with"
            )
        parts.append(memory.latents[:, :, -policy.motion_latents :].to(anchor))
    given = sum(part.shape[2] for part in parts)
    if given >= latent_frames:
        raise ValueError(f"anchor and motion fill all {latent_frames} latent frames: make the clip longer")
    batch, channels, _, height, width = anchor.shape
    parts.append(anchor.new_zeros(batch, channels, latent_frames - given, height, width))
    return torch.cat(parts, dim=2), given


def _image(policy: ConditioningPolicy, memory: ClipMemory, motion: Tensor, encodings: Encodings) -> Tensor | None:
    if policy.image_feature is None:
        return None
    return encodings.image(motion[:, 0] if policy.image_feature == "motion" else memory.reference)
