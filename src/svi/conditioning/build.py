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

GREY = 128  # uint8; what is not given is 0 in [-1, 1], which lies between 127 and 128


def build(
    policy: ConditioningPolicy,
    memory: ClipMemory,
    text: Tensor,
    *,
    encodings: Encodings,
    num_frames: int,
    geometry: Geometry,
    drive: Mapping[str, Tensor] | None = None,
    noise: Tensor | None = None,
    history: bool = True,
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
        noise: ``(B, C, F, h, w)`` standard normal, for a policy with ``history_noise``.
        history: False = what is carried over is not given: as a frame to be made it is grey and not flagged, and its image
            feature is that of grey; an anchor stays. No image-to-video model was trained on that (history guidance).

    Raises:
        ValueError: if the memory, the drive or the noise lacks what the policy needs, or it does not fit into the window.
    """
    signals = dict(drive or {})
    if policy.drive is not None and policy.drive not in signals:
        raise ValueError(f"{policy.name} is driven by {policy.drive}, and none was given")
    height, width = memory.reference.shape[1:3]
    _, latent_frames, *_ = geometry.latent_shape(num_frames, height, width)
    if policy.hand_off == "latent":
        motion = memory.frames[:, -1:]
        values, given_latents = _latent_values(policy, memory, encodings, latent_frames, history)
        given, carried = geometry.frames_of(given_latents), slice(1, given_latents)  # the anchor is not carried over
    else:
        motion = motion_frames(policy, memory)[:, : None if history else 0]
        values = encodings.window(motion, memory.reference, policy.reference_frames, num_frames)
        given, carried = motion.shape[1], slice(0, -(-(motion.shape[1] - 1) // geometry.temporal_scale) + 1)
    batch, _, *latent_size = values.shape
    if latent_size[0] != latent_frames:
        raise ValueError(f"the encoder made {latent_size[0]} latent frames of {num_frames} frames, not {latent_frames}")
    if policy.history_noise and memory.clip_index and history:
        values = _noised(policy, values, noise, carried)
    flagged = given if policy.known == "motion" else min(given, 1)
    mask = known_mask(flagged, (batch, latent_size[0], latent_size[1], latent_size[2]), geometry.temporal_scale)
    return ClipCondition(
        values=values,
        known=mask.to(values.device),
        text=text.expand(batch, *text.shape[1:]),
        image=_image(policy, memory, motion, encodings, history),
        drive=signals,
    )


def motion_frames(policy: ConditioningPolicy, memory: ClipMemory) -> Tensor:
    """Frames ``(B, m, H, W, 3)`` uint8 that a clip begins with: the last ``motion_frames`` of the memory.

    With inverted hand-off the reference, alone.

    Raises:
        ValueError: if an earlier clip left fewer (it was made with another policy).
    """
    if policy.hand_off == "inverted":
        return memory.reference[:, None]
    carried = memory.frames.shape[1]
    if memory.clip_index > 0 and carried < policy.motion_frames:
        raise ValueError(
            f"{policy.name} continues from {policy.motion_frames} frames, but clip {memory.clip_index - 1} left {carried}: "
            "continue with the preset that it was made with"
        )
    return memory.frames[:, -policy.motion_frames :]


def ending(policy: ConditioningPolicy, memory: ClipMemory) -> Tensor | None:
    """Latents ``(B, C, k, h, w)`` that the next clip has to end in (inverted hand-off); None where its end is open."""
    if policy.hand_off != "inverted" or memory.clip_index == 0:
        return None
    if memory.latents is None or memory.latents.shape[2] < policy.motion_latents:
        raise ValueError(f"{policy.name} leads to the clip made before, which left no latents: it had another preset")
    return memory.latents[:, :, : policy.motion_latents]


def _noised(policy: ConditioningPolicy, values: Tensor, noise: Tensor | None, carried: slice) -> Tensor:
    """``values`` with noise on the latents that are carried over, at the signal-to-noise ratio of level ``history_noise``.

    Not ``flow.interpolate``: it scales the latents down as well, which a model undoes that is told the level. This one is not, and
    would hand on a paler picture with every clip.
    """
    if noise is None or noise.shape != values.shape:
        raise ValueError(f"{policy.name} adds noise to what is carried over: give noise of shape {tuple(values.shape)}")
    noisy = values.clone()
    noisy[:, :, carried] += policy.history_noise / (1 - policy.history_noise) * noise[:, :, carried].to(values)
    return noisy


def _latent_values(
    policy: ConditioningPolicy, memory: ClipMemory, encodings: Encodings, latent_frames: int, history: bool
) -> tuple[Tensor, int]:
    """Anchor, last latents of the previous clip, then zeros of the normalised latent space (SVI 2.0 Pro).

    Those zeros are not the encoding of grey frames. The first clip has the anchor alone.
    Returns the values ``(B, C, F, h, w)`` and how many latent frames of them are given.
    """
    anchor = encodings.anchor(memory.reference)
    parts = [anchor]
    if history and memory.clip_index > 0 and policy.motion_latents > 0:
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


def _image(
    policy: ConditioningPolicy, memory: ClipMemory, motion: Tensor, encodings: Encodings, history: bool
) -> Tensor | None:
    if policy.image_feature is None:
        return None
    if policy.image_feature == "reference":
        return encodings.image(memory.reference)
    return encodings.image(motion[:, 0] if history else torch.full_like(memory.reference, GREY))
