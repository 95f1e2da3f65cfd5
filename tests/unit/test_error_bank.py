"""The error bank: what it replaces, what it gives out, and what it refuses."""

import io
import math

import pytest
import torch

from svi import bank_bucket
from svi.bank_plan import plan_storage
from svi.error_bank import ErrorBank
from svi.errors import UserError
from svi.schedule import SigmaBuckets

SHAPE = (4, 3, 12, 11)  # 1584 values: a block of 1024 and a piece of a second
STORAGES = ("fp32", "bf16", "int8")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small(capacity=24, storage="bf16", policy="nearest", steps=3, shape=SHAPE):
    plan = plan_storage(shape, capacity=capacity, storage=storage, buckets=SigmaBuckets(steps=steps))
    return ErrorBank(plan, policy=policy)


@pytest.fixture(params=["one chunk", "several chunks", "chunks of one"])
def chunks(request, monkeypatch):
    """Buckets of one chunk, of several (the last one shorter), and of chunks of one entry."""
    size = {"one chunk": 10**9, "several chunks": 25_000, "chunks of one": 1}[request.param]
    monkeypatch.setattr(bank_bucket, "CHUNK_BYTES", size)


# --- what `nearest` replaces ----------------------------------------------------------------------------------------


def noise(g):
    """Errors without anything in common: all distances are alike to a few percent."""
    return torch.randn(SHAPE, generator=g)


def low_rank(g):
    """As a model makes them: a few directions shared by all, and noise."""
    directions = torch.randn(6, *SHAPE, generator=generator(99))
    return torch.einsum("k,kcfhw->cfhw", torch.randn(6, generator=g), directions) * 0.3 + 0.2 * noise(g)


def near_ties(g):
    """A large part that all share: distances are differences of much larger numbers."""
    return 40 * torch.randn(SHAPE, generator=generator(98)) + 0.05 * noise(g)


def duplicates(g):
    """Few different errors, so that exact ties happen and the lowest slot must win."""
    return torch.full(SHAPE, float(torch.randint(0, 5, (), generator=g)) / 4)


def tiny(g):
    """So small that products are lost to underflow."""
    return 1e-24 * noise(g)


def named_by_fp64(bank, bucket, error):
    """Slot of the entry nearest to an error, both as they are sampled: the definition, without any shortcut."""
    single = ErrorBank(bank.plan)
    single.add(error, bucket, generator())
    new = single.entry(bucket, 0).double()
    entries = [bank.entry(bucket, slot).double() for slot in range(bank.fill[bucket])]
    distances = torch.stack([(entry - new).square().sum().sqrt() for entry in entries])
    return int(distances.argmin()), float(distances.min())


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("errors", [noise, low_rank, near_ties, duplicates, tiny])
def test_nearest_replaces_what_fp64_names(errors, storage):
    bank, g = small(storage=storage), generator(1)
    for _ in range(bank.plan.capacity):
        bank.add(errors(g), 1, g)
    for _ in range(25):
        error = errors(g)
        slot, distance = named_by_fp64(bank, 1, error)
        added = bank.add(error, 1, g)
        assert added.slot == slot
        assert added.distance == pytest.approx(distance, rel=1e-9, abs=1e-300)


def test_fp32_arithmetic_alone_would_misname_near_ties():
    """The case above is hard: norms and products in fp32 name another entry most of the time."""
    g = generator(1)
    entries, misnamed = torch.stack([near_ties(g) for _ in range(24)]).flatten(1), 0
    for _ in range(25):
        new = near_ties(g).flatten()
        fast = entries.square().sum(1) - 2 * entries @ new
        misnamed += int(fast.argmin() != (entries.double() - new.double()).norm(dim=1).argmin())
    assert misnamed > 5


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("storage", STORAGES)
def test_chunks_do_not_change_what_is_replaced(storage):
    bank, g = small(storage=storage), generator(2)
    for _ in range(bank.plan.capacity):
        bank.add(low_rank(g), 0, g)
    for _ in range(6):
        error = low_rank(g)
        slot, _ = named_by_fp64(bank, 0, error)
        assert bank.add(error, 0, g).slot == slot


@pytest.mark.parametrize("setting", ["slow bf16", "autocast", "reduced precision", "gradients"])
def test_settings_of_torch_do_not_change_what_is_replaced(setting, monkeypatch):
    def run(storage):
        bank, g = small(storage=storage), generator(3)
        return [bank.add(near_ties(g).requires_grad_(setting == "gradients"), 0, g) for _ in range(60)]

    expected = [run(storage) for storage in STORAGES]
    if setting == "slow bf16":
        monkeypatch.setattr(bank_bucket, "_bf16_sums_in_fp32", lambda: False)
    precision = torch.get_float32_matmul_precision()
    try:
        if setting == "reduced precision":
            torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16, enabled=setting == "autocast"):
            assert [run(storage) for storage in STORAGES] == expected
    finally:
        torch.set_float32_matmul_precision(precision)


# --- the other policies ---------------------------------------------------------------------------------------------


def test_fifo_replaces_the_oldest():
    bank, g = small(capacity=3, policy="fifo"), generator()
    slots = [bank.add(noise(g), 0, g).slot for _ in range(8)]
    assert slots == [0, 1, 2, 0, 1, 2, 0, 1]


def test_random_replaces_each_entry_alike():
    bank, g = small(capacity=4, policy="random"), generator()
    slots = [bank.add(noise(g), 0, g).slot for _ in range(404)][4:]
    counts = torch.bincount(torch.tensor(slots), minlength=4)
    assert counts.min() > 70  # mean 100, standard deviation 9
    assert counts.max() < 130


@pytest.mark.parametrize("policy", ["nearest", "random", "fifo"])
def test_distance_to_the_replaced_entry_is_said(policy):
    bank, g = small(capacity=5, policy=policy, storage="fp32"), generator()
    assert [bank.add(noise(g), 0, g).distance for _ in range(5)] == [None] * 5
    before = [bank.entry(0, slot) for slot in range(5)]
    error = noise(g)
    added = bank.add(error, 0, g)
    assert added.distance == pytest.approx(float((before[added.slot].double() - error.double()).norm()))


@pytest.mark.parametrize("policy", ["nearest", "random", "fifo"])
def test_draws_do_not_depend_on_the_policy_or_the_fill(policy):
    bank, g = small(capacity=2, policy=policy), generator()
    for _ in range(5):
        bank.add(torch.zeros(SHAPE), 0, g)
    expected = generator()
    torch.rand(10, generator=expected, dtype=torch.float64)
    assert torch.equal(g.get_state(), expected.get_state())


# --- sampling -------------------------------------------------------------------------------------------------------


def test_samples_are_uniform_over_entries():
    bank, g = small(storage="fp32", shape=(1, 1, 1, 1)), generator()
    for value, bucket in enumerate((0, 0, 0, 2)):
        bank.add(torch.full((1, 1, 1, 1), float(value)), bucket, g)
    everywhere = torch.tensor([int(bank.sample_any(g)) for _ in range(800)])
    assert (torch.bincount(everywhere, minlength=4) - 200).abs().max() < 50  # standard deviation 12
    first = torch.tensor([int(bank.sample(0, g)) for _ in range(600)])
    assert (torch.bincount(first, minlength=3) - 200).abs().max() < 50
    assert bank.sample(1, g) is None


def test_an_empty_bank_has_nothing_to_sample_and_takes_the_same_draws():
    bank, g, expected = small(), generator(), generator()
    assert bank.sample(0, g) is None
    assert bank.sample_any(g) is None
    torch.rand(2, generator=expected, dtype=torch.float64)
    assert torch.equal(g.get_state(), expected.get_state())


def run(bank, g, steps):
    """Use a bank as training does; what it gave out."""
    given = []
    for step in range(steps):
        given += [bank.sample(step % 3, g), bank.sample_any(g)]
        bank.add(low_rank(g), step % 3, g)
    return [error for error in given if error is not None]


def saved(bank):
    buffer = io.BytesIO()
    torch.save(bank.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_same(one, other):
    first, second = one.state_dict(), other.state_dict()
    assert first["meta"] == second["meta"]
    assert first["tensors"].keys() == second["tensors"].keys()
    assert all(torch.equal(first["tensors"][name], second["tensors"][name]) for name in first["tensors"])


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "bucket", "message"),
    [
        (torch.zeros(4, 3, 12, 12), 0, "bank of their own"),
        (torch.zeros(1, *SHAPE), 0, "bank of their own"),
        (torch.full(SHAPE, math.nan), 0, "diverged"),
        (torch.zeros(SHAPE).index_fill(1, torch.tensor(2), math.inf), 0, "diverged"),
        (torch.full(SHAPE, -1e7), 0, "diverged"),
        (torch.zeros(SHAPE), 3, "0 to 2, not 3"),
        (torch.zeros(SHAPE), -1, "0 to 2, not -1"),
    ],
)
def test_what_is_no_error_is_refused_and_nothing_changes(error, bucket, message):
    bank, g = small(capacity=2), generator()
    run(bank, g, 12)
    before = saved(bank)
    with pytest.raises(ValueError, match=message):
        bank.add(error, bucket, g)
    intact = small(capacity=2)
    intact.load_state_dict(before)
    assert_same(bank, intact)


def test_an_unknown_policy_names_its_nearest():
    with pytest.raises(UserError, match="did you mean 'nearest'"):
        small(policy="nearst")


# --- statistics -----------------------------------------------------------------------------------------------------


def test_statistics_in_closed_form():
    bank, g = small(capacity=2, storage="fp32", policy="fifo"), generator()
    for value in (1.0, 3.0, 4.0):
        bank.add(torch.full(SHAPE, value), 0, g)  # 4 replaces 1
    bank.add(torch.full(SHAPE, 2.0), 1, g)
    stats = bank.stats()
    assert stats.fill == (2, 1, 0)
    assert stats.rms == (pytest.approx(math.sqrt((16 + 9) / 2)), pytest.approx(2.0), None)
    assert stats.age == (1.5, 0.0, None)  # taken 2nd and 3rd of 4; taken last
    assert stats.replacement == (pytest.approx(3 / 4), None, None)
    assert stats.seen == 4
