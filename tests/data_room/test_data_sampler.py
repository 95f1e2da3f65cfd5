"""The order in which windows are seen: complete, shared out by rank, exactly resumable."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

import pytest
import torch

from svi.data.sample import Sample
from svi.data.sampler import Loader, Sampler, held_out
from svi.data.windows import Bucket
from svi.errors import UserError

WIDE, TALL = Bucket(5, 16, 32), Bucket(5, 32, 16)


class Numbers:
    """A data set whose samples tell which window and epoch they are."""

    def __init__(self, size: int | None, tall: int = 0) -> None:
        self.size, self.tall = size, tall

    def bucket_of(self, index: int) -> Bucket:
        return TALL if index < self.tall else WIDE

    def window_id(self, index: int) -> str:
        return f"{index // 3}.mp4#{index % 3}"

    def sample(self, index: int, epoch: int) -> Sample:
        bucket = self.bucket_of(index)
        latents = torch.full((1, 2, bucket.height // 8, bucket.width // 8), float(index + 1000 * epoch))
        picture = torch.zeros(bucket.height, bucket.width, 3, dtype=torch.uint8)
        text = torch.ones(2, 4)
        return Sample(str(index), "x", latents, latents, latents, text, 8, latents[:, :1], picture, None, False)

    def empty_text(self) -> torch.Tensor:
        return torch.zeros(1, 8, 4)


def sampler(dataset: Numbers, **options: Any) -> Sampler:
    return Sampler(dataset, **{"batch_size": 2, **options})


def joined(ranks: list[Sampler]) -> list[tuple[int, int]]:
    """The next global batch, of the batches of all ranks."""
    return [key for rank in ranks for key in next(rank)]


def test_every_window_is_seen_in_every_epoch_in_batches_of_one_shape() -> None:
    data = Numbers(21, tall=8)
    order = sampler(data, batch_size=4)
    assert order.batches_per_epoch == 2 + 4
    for epoch in range(3):
        batches = list(islice(order, 6))
        assert {key[1] for batch in batches for key in batch} == {epoch}
        assert all(len({data.bucket_of(index) for index, _ in batch}) == 1 for batch in batches)
        seen = Counter(index for batch in batches for index, _ in batch)
        assert set(seen) == set(range(21))
        assert sum(seen.values()) == 24  # 13 wide windows fill 4 batches of 4 with 3 seen twice
    assert list(islice(sampler(data), 9)) == list(islice(sampler(data), 9))
    assert list(islice(sampler(data), 9)) != list(islice(sampler(data, seed=1), 9))


def test_ranks_share_a_batch() -> None:
    data = Numbers(20)
    alone = sampler(data, batch_size=6)
    ranks = [sampler(data, rank=rank, world_size=3) for rank in range(3)]
    for _ in range(9):
        assert joined(ranks) == next(alone)


@pytest.mark.parametrize("size", [20, None])
def test_going_on_gives_the_very_next_batch(size: int | None) -> None:
    data = Numbers(size)
    straight = list(islice(sampler(data), 40))
    first = sampler(data)
    list(islice(first, 17))
    state = first.state_dict()
    second = sampler(data)
    second.load_state_dict(state)
    assert list(islice(second, 23)) == straight[17:]
    other = [sampler(data, batch_size=1, rank=rank, world_size=2) for rank in range(2)]  # on two ranks now
    for rank in other:
        rank.load_state_dict(state)
    assert [joined(other) for _ in range(23)] == straight[17:]


def test_endless_windows_come_once_each() -> None:
    ranks = [sampler(Numbers(None), rank=rank, world_size=2) for rank in range(2)]
    seen = [index for _ in range(5) for rank in ranks for index, epoch in next(rank)]
    assert seen == list(range(20))
    assert ranks[0].batches_per_epoch is None


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: sampler(Numbers(21)), "windows are not those"),
        (lambda: sampler(Numbers(20), seed=3), "seed 0, not 3"),
        (lambda: sampler(Numbers(20), world_size=2), "a step saw 2 windows, now 4"),
    ],
)
def test_a_place_in_another_order_is_refused(other: Any, words: str) -> None:
    state = sampler(Numbers(20)).state_dict()
    with pytest.raises(UserError, match=words):
        other().load_state_dict(state)


@pytest.mark.parametrize("ahead", [0, 3])
def test_a_loader_goes_on_from_what_it_gave_out(ahead: int) -> None:
    data = Numbers(9)

    def numbers(loader: Loader, count: int) -> list[list[float]]:
        return [batch.clean[:, 0, 0, 0, 0].tolist() for batch in islice(loader, count)]

    plain = numbers(Loader(data, sampler(data)), 12)
    loader = Loader(data, sampler(data), ahead=ahead)
    assert numbers(loader, 5) == plain[:5]
    state = loader.state_dict()
    assert numbers(loader, 2) == plain[5:7]
    again = Loader(data, sampler(data), ahead=ahead)
    again.load_state_dict(state)
    assert numbers(again, 7) == plain[5:]
    loader.load_state_dict(state)  # also while batches are being prepared
    assert numbers(loader, 3) == plain[5:8]
    loader.close()
    again.close()


def test_windows_of_a_video_are_held_out_together() -> None:
    train, validation = held_out(Numbers(300), 0.2)
    assert sorted(train + validation) == list(range(300))
    assert not {index // 3 for index in train} & {index // 3 for index in validation}
    assert 30 < len(validation) < 100
    more, _ = held_out(Numbers(600), 0.2)
    assert set(train) <= set(more)
    only = sampler(Numbers(300), indices=validation)
    seen = {index for batch in islice(only, only.batches_per_epoch) for index, _ in batch}
    assert seen == set(validation)


def test_nothing_to_sample() -> None:
    with pytest.raises(UserError, match="no windows"):
        sampler(Numbers(5), indices=[])
    with pytest.raises(ValueError, match="not possible"):
        sampler(Numbers(5), rank=2, world_size=2)
    with pytest.raises(ValueError, match="endless"):
        held_out(Numbers(None), 0.1)
