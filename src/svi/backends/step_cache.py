"""Steps that hardly change anything run their first block only: first-block caching, for drafts.

Where the first block's residual is nearly that of the step before, the others' is taken from that step as well. What is
remembered belongs to one branch (with the prompt, without it) of one clip: it is kept apart per branch and dropped when a clip
ends, which libraries leave to the caller and forget silently. Knows the hooks of diffusers; nothing about clips or guidance.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from svi.errors import UserError

LEAST_BLOCKS = 2
_ON: WeakKeyDictionary[Any, StepCache] = WeakKeyDictionary()


def around(transformer: Any, condition: object, sigma: Tensor | float) -> AbstractContextManager[None]:
    """What a forward pass of ``transformer`` runs in: :meth:`StepCache.branch` where there is a cache on it, else nothing.

    Without a cache ``sigma`` is not looked at, so that nobody waits for a device to tell it.
    """
    cache = _ON.get(transformer)
    return nullcontext() if cache is None else cache.branch(condition, float(torch.as_tensor(sigma).max()))


class StepCache:
    """First-block caching on one transformer.

    Attributes:
        threshold: relative change of the first block's residual below which a step is skipped.
    """

    def __init__(self, transformer: Any, threshold: float) -> None:
        """Put it on.

        Raises:
            UserError: for a threshold that is no share, or a transformer too small to skip anything.
        """
        from diffusers import FirstBlockCacheConfig

        if not 0 < threshold < 1:
            raise UserError(
                f"the threshold of step caching is a share between 0 and 1, for instance 0.1, not {threshold}"
            )
        if len(transformer.blocks) < LEAST_BLOCKS:
            raise UserError("this transformer has one block only: there is nothing to skip; leave step caching out")
        self.threshold, self._transformer = threshold, transformer
        self._branches: list[object] = []
        self._level = float("-inf")
        transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
        _ON[transformer] = self

    def begin_clip(self) -> None:
        """Forget what the last clip left."""
        self._transformer._reset_stateful_cache()
        self._branches.clear()
        self._level = float("-inf")

    @contextlib.contextmanager
    def branch(self, condition: object, sigma: float) -> Iterator[None]:
        """Around a forward pass for ``condition`` at noise level ``sigma``.

        The branch is known by the identity of ``condition``, which a sampler keeps for the whole clip. Noise falls within a
        clip, so a level above the last one begins a new clip even if nobody said so.
        """
        if sigma > self._level:
            self.begin_clip()
        self._level = sigma
        number = next((n for n, known in enumerate(self._branches) if known is condition), None)
        if number is None:
            number = len(self._branches)
            self._branches.append(condition)  # kept, so that no other object gets its identity
        with self._transformer.cache_context(f"branch-{number}"):
            yield

    def close(self) -> None:
        """Take it off: the transformer is what it was."""
        self.begin_clip()
        self._transformer.disable_cache()
        _ON.pop(self._transformer, None)
