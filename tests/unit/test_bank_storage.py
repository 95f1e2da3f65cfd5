"""How a bank keeps its entries: precision, chunks, files, a budget of bytes, and a state that resumes with the same bits."""

import io

import pytest
import torch

from svi import bank_bucket
from svi.bank_plan import StoragePlan, plan_storage
from svi.error_bank import ErrorBank, ErrorBanks
from svi.errors import UserError
from svi.schedule import SigmaBuckets

SHAPE = (4, 3, 12, 11)  # 1584 values: a block of 1024 and a piece of a second
REAL = (16, 21, 60, 104)
STORAGES = ("fp32", "bf16", "int8")
GB = 10**9


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


def noise(g):
    """Errors without anything in common: all distances are alike to a few percent."""
    return torch.randn(SHAPE, generator=g)


def low_rank(g):
    """As a model makes them: a few directions shared by all, and noise."""
    directions = torch.randn(6, *SHAPE, generator=generator(99))
    return torch.einsum("k,kcfhw->cfhw", torch.randn(6, generator=g), directions) * 0.3 + 0.2 * noise(g)


# --- storage --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("storage", STORAGES)
def test_entries_come_back_as_the_storage_rounds_them(storage):
    bank, g = small(storage=storage), generator()
    errors = [noise(g) * (slot + 1) for slot in range(10)]
    for error in errors:
        bank.add(error.double(), 2, g)
    for slot, error in enumerate(errors):
        entry = bank.entry(2, slot)
        assert entry.shape == SHAPE
        assert entry.dtype == torch.float32
        if storage == "int8":
            assert (entry - error).norm() < 0.009 * error.norm()
            assert (entry - error).abs().max() <= error.abs().max() / 254 * 1.001
        else:
            assert torch.equal(entry, error.bfloat16().float() if storage == "bf16" else error)


def test_an_entry_is_a_copy():
    bank, g = small(storage="fp32", capacity=1), generator()
    bank.add(torch.ones(SHAPE), 0, g)
    bank.entry(0, 0).zero_()
    assert (bank.entry(0, 0) == 1).all()


def test_int8_keeps_zeros_and_small_blocks_beside_large_ones():
    bank, error = small(storage="int8"), torch.zeros(SHAPE)
    flat = error.view(-1)
    flat[:1024], flat[1024:] = 1e5, 1e-7
    bank.add(error, 0, generator())
    assert torch.allclose(bank.entry(0, 0), error, rtol=1e-6, atol=0)


@pytest.mark.usefixtures("chunks")
def test_memory_is_allocated_as_a_bucket_fills():
    bank, g, sizes = small(), generator(), []
    for _ in range(bank.plan.capacity):
        sizes.append(bank.stats().allocated_bytes)
        bank.add(noise(g), 0, g)
    assert sizes[0] == 0
    assert sizes == sorted(sizes)
    assert bank.stats().allocated_bytes <= bank.plan.capacity * bank.plan.entry_bytes


def test_a_window_of_frames_is_kept_where_no_more_are_injected():
    plan = StoragePlan(SHAPE, frames=2, storage="fp32", capacity=40, buckets=SigmaBuckets(steps=1))
    bank, g, starts = ErrorBank(plan), generator(), set()
    error = torch.arange(3.0).view(1, 3, 1, 1).expand(SHAPE)
    for slot in range(40):
        bank.add(error, 0, g)
        entry = bank.entry(0, slot)
        assert entry.shape == (4, 2, 12, 11)
        first = float(entry[0, 0, 0, 0])
        assert torch.equal(entry, error[:, int(first) : int(first) + 2])
        starts.add(first)
    assert starts == {0.0, 1.0}


def test_spilled_entries_are_the_same_and_leave_no_files(tmp_path):
    plan = plan_storage(SHAPE, capacity=6, bank_memory=1, spill_memory=10**9, buckets=SigmaBuckets(steps=2))
    spilled, memory = ErrorBank(plan, folder=tmp_path), small(capacity=6, storage="int8", steps=2)
    assert plan.spilled
    for bank in (spilled, memory):
        g = generator()
        bank.slots = [bank.add(low_rank(g), k % 2, g).slot for k in range(30)]
    assert spilled.slots == memory.slots
    assert all(torch.equal(spilled.entry(b, s), memory.entry(b, s)) for b in range(2) for s in range(6))
    assert not list(tmp_path.iterdir())


def test_spilling_needs_a_folder_that_can_be_written_to(tmp_path):
    plan = plan_storage(SHAPE, bank_memory=1, spill_memory=10**9)
    with pytest.raises(UserError, match="needs a folder"):
        ErrorBank(plan)
    bank = ErrorBank(plan, folder=tmp_path / "missing")
    with pytest.raises(UserError, match="cannot spill.*name a folder"):
        bank.add(torch.zeros(SHAPE), 0, generator())


# --- resume -----------------------------------------------------------------------------------------------------------


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


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize(("storage", "policy"), [("fp32", "fifo"), ("bf16", "nearest"), ("int8", "nearest")])
def test_a_resumed_bank_goes_on_with_the_same_bits(storage, policy):
    straight, stopped = small(9, storage, policy), small(9, storage, policy)
    g, h = generator(5), generator(5)
    expected = run(straight, g, 60)
    before = run(stopped, h, 36)
    resumed = small(9, storage, policy)
    resumed.load_state_dict(saved(stopped))
    assert_same(resumed, stopped)
    given = before + run(resumed, h, 24)
    assert len(given) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True))
    assert_same(resumed, straight)
    assert torch.equal(g.get_state(), h.get_state())


def test_loading_replaces_what_was_there():
    full, g = small(), generator()
    run(full, g, 40)
    empty = small()
    full.load_state_dict(saved(empty))
    assert len(full) == 0
    assert_same(full, empty)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (dict(storage="int8"), "storage int8"),
        (dict(capacity=5), "capacity 5"),
        (dict(steps=4), "steps 4"),
        (dict(shape=(4, 3, 12, 10)), "shape"),
    ],
)
def test_a_state_of_another_bank_is_refused(other, message):
    bank, g = small(), generator()
    bank.add(noise(g), 0, g)
    target = small(**other)
    with pytest.raises(UserError, match=message):
        target.load_state_dict(saved(bank))
    assert len(target) == 0


@pytest.mark.parametrize("damage", ["no meta", "tensor missing", "tensor cut", "fill missing", "fill too large"])
def test_a_damaged_state_is_refused_and_nothing_lost(damage):
    bank, g = small(), generator()
    run(bank, g, 10)
    state, whole = saved(bank), saved(bank)
    tensors, name = state["tensors"], "1.0.values"
    if damage == "no meta":
        state = {"tensors": tensors}
    elif damage == "tensor missing":
        del tensors[name]
    elif damage == "tensor cut":
        tensors[name] = tensors[name][:, :-1]
    elif damage == "fill missing":
        del state["meta"]["fill"]
    else:
        state["meta"]["fill"][0] = 10**6
    with pytest.raises(UserError, match="earlier checkpoint"):
        bank.load_state_dict(state)
    intact = small()
    intact.load_state_dict(whole)
    assert_same(bank, intact)


def test_both_banks_are_saved_together():
    plan = plan_storage(SHAPE, capacity=4, buckets=SigmaBuckets(steps=2))
    banks, g = ErrorBanks.create(plan), generator()
    banks.video.add(noise(g), 0, g)
    banks.noise.add(noise(g), 1, g)
    again = ErrorBanks.create(plan)
    again.load_state_dict(saved(banks))
    assert again.fills == banks.fills == {"video": (1, 0), "noise": (0, 1)}
    assert_same(again.video, banks.video)
    with pytest.raises(UserError, match="probabilities"):
        ErrorBanks.create(plan, ["video"]).load_state_dict(saved(banks))


# --- budget ---------------------------------------------------------------------------------------------------------


def test_the_published_bank_is_105_gb_each():
    plan = plan_storage(REAL)
    assert (plan.storage, plan.frames, plan.shards, plan.spilled) == ("bf16", 21, 1, False)
    assert plan.bank_bytes == pytest.approx(104.8e9, rel=1e-3)
    assert plan.total_bytes == 2 * plan.bank_bytes
    assert "no limit" in str(plan)


@pytest.mark.parametrize(
    ("limits", "chosen"),
    [
        (dict(bank_memory=210 * GB), ("bf16", 21, 1, False)),
        (dict(bank_memory=209 * GB), ("int8", 21, 1, False)),
        (dict(bank_memory=32 * GB, banks=1, injected_frames=3), ("bf16", 3, 1, False)),
        (dict(bank_memory=12 * GB, banks=1, injected_frames=3), ("int8", 3, 1, False)),
        (dict(bank_memory=32 * GB, ranks=8), ("bf16", 21, 8, False)),
        (dict(bank_memory=16 * GB, ranks=8), ("int8", 21, 8, False)),
        (dict(bank_memory=64 * GB, spill_memory=110 * GB), ("int8", 21, 1, True)),
        (dict(bank_memory=210 * GB, storage="fp32", spill_memory=500 * GB), ("fp32", 21, 1, True)),
        (dict(bank_memory=210 * GB, storage="int8"), ("int8", 21, 1, False)),
        (dict(bank_memory=1, banks=0), ("bf16", 21, 1, False)),
    ],
)
def test_the_first_form_that_fits_is_chosen(limits, chosen):
    plan = plan_storage(REAL, **limits)
    assert (plan.storage, plan.frames, plan.shards, plan.spilled) == chosen
    assert plan.total_bytes <= (limits["spill_memory"] if plan.spilled else limits["bank_memory"])
    *rejected, accepted = plan.reasons[1:]
    assert "within" in accepted
    assert all("is over" in line for line in rejected)


def test_what_a_plan_promises_is_what_a_full_bank_takes():
    for storage in STORAGES:
        bank, g = small(capacity=5, storage=storage), generator()
        for _ in range(5):
            for bucket in range(3):
                bank.add(noise(g), bucket, g)
        books = sum(
            t.nbytes for n, t in bank.state_dict()["tensors"].items() if n in ("squared_norms", "born", "distances")
        )
        assert bank.stats().allocated_bytes + books == bank.plan.bank_bytes


def test_a_budget_that_nothing_fits_names_what_would():
    with pytest.raises(UserError) as caught:
        plan_storage(REAL, bank_memory=20 * GB)
    message = str(caught.value)
    ways = ("int8", "raise bank_memory to 105.3 GB", "lower the capacity to 94", "name a folder")
    assert all(way in message for way in ways)
    assert "\n" not in message
    assert plan_storage(REAL, bank_memory=20 * GB, capacity=94).storage == "int8"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(bank_memory=-1), "bank_memory must be a positive"),
        (dict(bank_memory=0), "bank_memory must be a positive"),
        (dict(spill_memory=-1), "spill_memory"),
        (dict(capacity=0), "capacity"),
        (dict(ranks=0), "ranks"),
        (dict(injected_frames=22), "injected_frames must lie in 1 to 21"),
        (dict(storage="bf61"), "did you mean 'bf16'"),
    ],
)
def test_plans_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        plan_storage(REAL, **options)


def test_shared_buckets_lie_with_one_rank_each():
    plan = StoragePlan(SHAPE, 3, capacity=2, buckets=SigmaBuckets(steps=5), shards=2)
    banks, g = [ErrorBank(plan, rank=rank) for rank in range(2)], generator()
    for bucket in range(5):
        owner = plan.owner(bucket)
        banks[owner].add(noise(g), bucket, g)
        with pytest.raises(ValueError, match=f"lies with rank {owner}"):
            banks[1 - owner].add(noise(g), bucket, g)
    assert [bank.fill for bank in banks] == [(1, 0, 1, 0, 1), (0, 1, 0, 1, 0)]
    with pytest.raises(ValueError, match="rank must lie in 0 to 1"):
        ErrorBank(plan, rank=2)
