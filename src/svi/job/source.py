"""From a user's own video to the memory that the first clip continues, as any clip leaves one for the next.

The last frames as they are for hand-off by pixels; for hand-off by latents the last of those that the VAE makes of the
video's end. Knows nothing about files of runs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from svi.backends.base import Backend
from svi.conditioning.memory import ClipMemory
from svi.conditioning.policy import PRESETS, get_policy
from svi.conditioning.window import to_video
from svi.data.film import Film
from svi.errors import UserError
from svi.generation.manifest import RunSettings
from svi.generation.run import Run
from svi.generation.start import Start
from svi.prepare import Prepared

# As many as any preset carries over, so that a branch may take another one.
FRAMES = max(policy.motion_frames for policy in PRESETS.values())
LATENTS = max(policy.motion_latents for policy in PRESETS.values())


def first_memory(prepared: Prepared, backend: Backend) -> ClipMemory:
    """What the first clip starts from: the image, or the end of the user's video."""
    reference = prepared.reference.image
    if prepared.film is None:
        return ClipMemory.start(reference)
    settings = prepared.settings
    last = prepared.film.last(settings.num_frames, settings.fps, (settings.width, settings.height))
    end = torch.from_numpy(np.ascontiguousarray(last))
    return ClipMemory(
        reference=reference[None],
        frames=end[None, -FRAMES:].clone(),
        latents=_last_latents(end, backend),
        clip_index=1,  # the user's video counts as made: what overlaps it is dropped
    )


def start_of(prepared: Prepared, backend: Backend) -> Start | None:
    """What a run is given to start from; None = its reference image."""
    film = prepared.film
    if film is None:
        return None
    return Start(first_memory(prepared, backend), str(film.path), _pieces(film, prepared) if prepared.whole else ())


def check_start(run: Run, settings: RunSettings) -> None:
    """Refuse a preset that needs more of the user's video than ``run`` has kept.

    Raises:
        UserError: for such a preset.
    """
    if run.manifest.start is None:
        return
    policy, memory = get_policy(settings.preset), run.start_memory()
    latents = 0 if memory.latents is None else memory.latents.shape[2]
    if (
        policy.hand_off == "inverted"
        or memory.frames.shape[1] < policy.motion_frames
        or latents < policy.motion_latents
    ):
        raise UserError(f"preset {policy.name} cannot go on from the video of {run.path}: keep {run.settings.preset}")


def _pieces(film: Film, prepared: Prepared) -> Iterator[Tensor]:
    """The whole video, piece by piece; clips drop what they share with its end."""
    settings = prepared.settings
    for piece in film.pieces(settings.fps, (settings.width, settings.height), settings.num_frames):
        yield torch.from_numpy(np.ascontiguousarray(piece))


def _last_latents(frames: Tensor, backend: Backend) -> Tensor | None:
    """The last latents ``(1, C, k, h, w)`` of frames ``(T, H, W, 3)``, none of a single frame; None where there are too few."""
    scale = backend.geometry.temporal_scale
    if len(frames) < 1 + LATENTS * scale:
        return None
    whole = frames[(len(frames) - 1) % scale :]  # the VAE takes 4n + 1
    with torch.no_grad():
        latents = backend.encode_video(to_video(whole[None]))
    return latents[:, :, -LATENTS:].float().cpu().clone()
