"""The clips of a run decoded again as one stream: the VAE's memory goes from clip to clip instead of beginning anew at each.

Only where clips hand over latents: there frames feed nothing, so that decoding them otherwise changes no other clip. By default every
clip is decoded by itself, as published; in a stream the frames behind a joint know what lies before it. What is carried
is too large to be kept on disk, so a run is decoded from its beginning. Knows nothing about files of video.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Protocol

from torch import Tensor

from svi.conditioning.policy import get_policy
from svi.errors import UserError
from svi.generation.run import Run


class StreamDecoder(Protocol):
    """What decodes latents that come in pieces; :class:`svi.backends.decoder.Decoder` is one."""

    @property
    def temporal_scale(self) -> int:
        """Frames per latent frame after the first."""
        ...

    def decode_stream(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """Latents ``(1, C, F, h, w)`` that follow one another in time -> uint8 frames ``(t, H, W, 3)``."""
        ...


def streamed_frames(run: Run, decoder: StreamDecoder) -> Iterator[Tensor]:
    """The frames ``(H, W, 3)`` uint8 that the clips of ``run`` add to its video, one at a time.

    Raises:
        UserError: for clips that hand over pixels, or were made under several presets; damaged ones are named.
    """
    policy = get_policy(run.settings.preset)
    given = 1 + policy.motion_latents  # of each window: the anchor, and what is carried over
    if policy.hand_off != "latent" or policy.overlap != 1 + policy.motion_latents * decoder.temporal_scale:
        raise UserError(
            f"preset {policy.name} decodes every clip into the next: there is no stream of latents to be decoded; leave --stream out"
        )
    clips = list(run.clips())
    for clip in clips:
        if clip.preset != policy.name:
            raise UserError(f"clip {clip.index} was made with preset {clip.preset}: leave --stream out")
    pieces = (
        run.store.latents(clip.index)[
            :, :, given if clip.index else 0 :
        ]  # what is given was decoded with the clip before
        for clip in clips
    )
    frames = itertools.chain.from_iterable(part.unbind(0) for part in decoder.decode_stream(pieces))
    return itertools.islice(frames, clips[0].overlap if clips else 0, None)
