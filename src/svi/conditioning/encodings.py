"""Encodings computed once: a bounded, content-keyed cache in front of a model's encoders.

In an endless run the negative prompt, the anchor and its features never change, and a prompt often lasts several
clips; the published code encodes all of them again for every clip. Knows nothing about policies or memory.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from svi.conditioning.window import padded_video, to_video


class Encoder(Protocol):
    """The encoders of a video model; every ``Backend`` is one."""

    def encode_video(self, video: Tensor) -> Tensor:
        """``(B, 3, T, H, W)`` in [-1, 1] -> ``(B, C, F, h, w)`` normalised latents."""
        ...

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> ``(B, L, D)``."""
        ...

    def encode_image(self, images: Tensor) -> Tensor | None:
        """``(B, 3, H, W)`` in [-1, 1] -> ``(B, N, D)``, or None without an image branch."""
        ...


class Encodings:
    """A least-recently-used cache of encodings.

    The tensors that it returns are shared: do not change them in place.

    Args:
        encoder: model whose encoders are asked on a miss.
        capacity: entries kept, of all kinds together (at 832x480 an entry is about 8 MB); 0 = compute always.

    Attributes:
        calls: encoder calls so far, by name (``encode_text``, ``encode_image``, ``encode_video``).
    """

    def __init__(self, encoder: Encoder, capacity: int = 16) -> None:
        if capacity < 0:
            raise ValueError(f"capacity must not be negative, not {capacity}")
        self.encoder = encoder
        self.capacity = capacity
        self.calls: Counter[str] = Counter()
        self._entries: OrderedDict[Hashable, Tensor | None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def text(self, prompts: Sequence[str]) -> Tensor:
        """``(B, L, D)`` embeddings. Each prompt is encoded alone, so its numbers do not depend on its company."""
        if isinstance(prompts, str) or not prompts:
            raise ValueError("prompts must be a non-empty sequence of strings")
        return torch.cat([self._text(prompt) for prompt in prompts])

    def _text(self, prompt: str) -> Tensor:
        found = self._cached(lambda: ("text", prompt), "encode_text", lambda: self.encoder.encode_text([prompt]))
        assert found is not None
        return found

    def image(self, frames: Tensor) -> Tensor | None:
        """CLIP feature ``(B, N, D)`` of ``frames`` ``(B, H, W, 3)`` uint8; None if the model has no image branch."""
        return self._cached(
            lambda: ("image", _digest(frames)),
            "encode_image",
            lambda: self.encoder.encode_image(to_video(frames[:, None])[:, :, 0]),
        )

    def anchor(self, frames: Tensor) -> Tensor:
        """Latents ``(B, C, 1, h, w)`` of single frames ``(B, H, W, 3)`` uint8."""
        found = self._cached(
            lambda: ("anchor", _digest(frames)),
            "encode_video",
            lambda: self.encoder.encode_video(to_video(frames[:, None])),
        )
        assert found is not None
        return found

    def window(self, motion: Tensor, reference: Tensor, reference_frames: int, num_frames: int) -> Tensor:
        """Latents ``(B, C, F, h, w)`` of the given frames of a window; arguments as in ``window.padded_video``."""
        found = self._cached(
            lambda: ("window", _digest(motion), reference_frames and _digest(reference), reference_frames, num_frames),
            "encode_video",
            lambda: self.encoder.encode_video(padded_video(motion, reference, reference_frames, num_frames)),
        )
        assert found is not None
        return found

    def _cached(self, key_of: Callable[[], Hashable], call: str, compute: Callable[[], Tensor | None]) -> Tensor | None:
        key = key_of() if self.capacity else None
        if key is not None and key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        self.calls[call] += 1
        # Not in inference mode: what is cached here may later meet a training step, which refuses such tensors.
        with torch.inference_mode(False), torch.no_grad():
            value = compute()
        if key is not None:
            self._entries[key] = value
            while len(self._entries) > self.capacity:
                self._entries.popitem(last=False)
        return value


def _digest(tensor: Tensor) -> tuple[tuple[int, ...], bytes]:
    """Shape and content of a uint8 tensor as a key."""
    content = tensor.detach().cpu().contiguous().numpy()
    return tuple(tensor.shape), hashlib.blake2b(content.data, digest_size=16).digest()
