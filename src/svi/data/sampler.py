"""In which order windows are seen, and where in it a training stands: explicit, small, and the same for all ranks.

The order of an epoch is a pure function of (seed, epoch), and the place in it two numbers, so a resumed training goes on
with the very next batch. A global batch is shared out by rank; a training may go on with another number of ranks as long as the
global batch stays the same. Knows nothing about tensors.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from svi.data.dataset import Dataset, Key, batch_of
from svi.data.sample import TrainingBatch
from svi.data.windows import generator_for
from svi.errors import UserError


class Sampler:
    """Batches of keys for one rank, without end.

    Args:
        dataset: what is sampled; endless ones give windows 0, 1, 2 ..., each once, in epoch 0.
        batch_size: windows of a batch of one rank.
        seed: of the order.
        rank, world_size: of this process, and how many there are.
        indices: windows to use; None = all. Not for an endless dataset.

    Raises:
        UserError: for no windows.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        indices: Sequence[int] | None = None,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"batch_size {batch_size}, rank {rank} of {world_size}: not possible")
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.global_batch = batch_size * world_size
        self.indices: list[int] | None = None
        if dataset.size is not None:
            self.indices = list(range(dataset.size)) if indices is None else list(indices)
            if not self.indices:
                raise UserError("there are no windows to train on")
        self._buckets = {} if self.indices is None else {index: dataset.bucket_of(index) for index in self.indices}
        names = [] if self.indices is None else [dataset.window_id(index) for index in self.indices]
        self.content = hashlib.sha256("\0".join(names).encode()).hexdigest()[:16]
        self.epoch = self.position = 0
        self._order: tuple[int, list[list[int]]] | None = None

    @property
    def batches_per_epoch(self) -> int | None:
        """Global batches of an epoch; None = endless."""
        return None if self.indices is None else len(self._batches(0))

    def __iter__(self) -> Iterator[list[Key]]:
        return self

    def __next__(self) -> list[Key]:
        """Keys of this rank's next batch."""
        if self.indices is None:
            start = self.position * self.global_batch + self.rank * self.batch_size
            self.position += 1
            return [(index, 0) for index in range(start, start + self.batch_size)]
        batches = self._batches(self.epoch)
        batch, epoch = batches[self.position], self.epoch
        self.position += 1
        if self.position == len(batches):
            self.epoch, self.position = self.epoch + 1, 0
        mine = batch[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
        return [(index, epoch) for index in mine]

    def _batches(self, epoch: int) -> list[list[int]]:
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, epoch_batches(self._buckets, self.global_batch, self.seed, epoch)
        return self._order[1]

    def state_dict(self) -> dict[str, Any]:
        """The place, and what it is a place in: the same on all ranks. JSON-ready."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "seed": self.seed,
            "global_batch": self.global_batch,
            "content": self.content,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a place.

        Raises:
            UserError: for a place in another order: other windows, another seed or global batch.
        """
        remedies = {
            "content": "the windows are not those that training began with: give the same data",
            "seed": f"the order was drawn with seed {state['seed']}, not {self.seed}: give the same seed",
            "global_batch": (
                f"a step saw {state['global_batch']} windows, now {self.global_batch} ({self.world_size} ranks of "
                f"{self.batch_size}): choose ranks and batch size with the same product"
            ),
        }
        for name, message in remedies.items():
            if state[name] != getattr(self, name):
                raise UserError(f"cannot go on where training stopped: {message}")
        self.epoch, self.position = int(state["epoch"]), int(state["position"])


def epoch_batches(buckets: Mapping[int, object], size: int, seed: int, epoch: int) -> list[list[int]]:
    """Global batches of an epoch: windows of one bucket each, shuffled.

    Every window is seen; where a bucket's last batch is not full, it is filled up from the front of the bucket's order.
    """
    generator = generator_for(seed, "order", epoch)
    indices = list(buckets)
    order = [indices[k] for k in torch.randperm(len(indices), generator=generator).tolist()]
    groups: dict[object, list[int]] = {}
    for index in order:
        groups.setdefault(buckets[index], []).append(index)
    batches = []
    for group in groups.values():
        for start in range(0, len(group), size):
            batches.append([group[k % len(group)] for k in range(start, start + size)])
    return [batches[k] for k in torch.randperm(len(batches), generator=generator).tolist()]


class Loader:
    """Batches of a dataset in a sampler's order; may prepare some ahead. Its state is that of the batches given out.

    Args:
        dataset, sampler: what is read, in which order.
        ahead: batches that are prepared in the background; 0 = none. Use it with a cache; encoding on the fly would
            compete with training.
    """

    def __init__(self, dataset: Dataset, sampler: Sampler, *, ahead: int = 0) -> None:
        self.dataset, self.sampler, self.ahead = dataset, sampler, ahead
        self._pool = ThreadPoolExecutor(1) if ahead else None
        self._coming: deque[tuple[dict[str, Any], Future[TrainingBatch]]] = deque()

    def __iter__(self) -> Iterator[TrainingBatch]:
        return self

    def __next__(self) -> TrainingBatch:
        if self._pool is None:
            return batch_of(self.dataset, next(self.sampler))
        while len(self._coming) < self.ahead:
            state = self.sampler.state_dict()
            self._coming.append((state, self._pool.submit(batch_of, self.dataset, next(self.sampler))))
        return self._coming.popleft()[1].result()

    def state_dict(self) -> dict[str, Any]:
        """Where to go on so that the next batch is the one that would have come next."""
        return self._coming[0][0] if self._coming else self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; what was prepared is dropped."""
        self.sampler.load_state_dict(state)
        for _, future in self._coming:
            future.cancel()
        self._coming.clear()

    def close(self) -> None:
        """Stop preparing batches."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def held_out(dataset: Dataset, share: float) -> tuple[list[int], list[int]]:
    """Indices for training and for validation; all windows of a video go to the same side.

    Which side is a hash of the video's name, so that adding videos moves none. ``share``: of videos for validation, 0 to 1.

    Raises:
        ValueError: for an endless dataset; give its validation another start instead.
    """
    if dataset.size is None:
        raise ValueError("an endless dataset has no windows to hold out: make one with another start")
    sides: tuple[list[int], list[int]] = ([], [])
    for index in range(dataset.size):
        video = dataset.window_id(index).rpartition("#")[0]
        place = int.from_bytes(hashlib.sha256(video.encode()).digest()[:8], "big") / 2**64
        sides[place < share].append(index)
    return sides
