"""Checkpoints are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from svi.errors import UserError
from svi.training import state


def written(root: Path, step: int, value: float = 0.0) -> state.Checkpoint:
    writer = state.Writer(root, step)
    writer.clear()
    writer.put(state.SHARED, {"weights": torch.full((64,), value), "numbers": [1, 2]})
    writer.put(state.rank_file(0), {"loader": {"position": step}})
    return writer.finish(ranks=1, settings={"lora.rank": 4})


def test_the_latest_is_found_and_read_back(tmp_path: Path) -> None:
    for step in (10, 20):
        written(tmp_path, step, float(step))
    found, complaints = state.latest(tmp_path)
    assert found is not None
    assert (found.step, found.ranks, found.settings, complaints) == (20, 1, {"lora.rank": 4}, [])
    assert torch.equal(state.load(found, state.SHARED)["weights"], torch.full((64,), 20.0))
    assert state.load(found, state.rank_file(0)) == {"loader": {"position": 20}}


@pytest.mark.parametrize("harm", ["cut", "flipped", "missing", "no manifest", "unfinished"])
def test_a_damaged_one_is_passed_over_with_a_reason(tmp_path: Path, harm: str) -> None:
    written(tmp_path, 10)
    file = written(tmp_path, 20).folder / state.SHARED
    content = bytearray(file.read_bytes())
    if harm == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif harm == "flipped":
        content[len(content) // 2] ^= 255
        file.write_bytes(content)
    elif harm == "missing":
        file.unlink()
    elif harm == "no manifest":
        (file.parent / state.MANIFEST).unlink()
    else:
        file.parent.rename(file.parent.with_suffix(".partial"))
    found, complaints = state.latest(tmp_path)
    assert found is not None
    assert found.step == 10
    assert len(complaints) == (harm != "unfinished")
    assert all("step-000020" in line for line in complaints)


def test_old_ones_and_leftovers_are_removed(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        written(tmp_path, step)
    state.Writer(tmp_path, 40).clear()
    state.prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000020", "step-000030"]


def test_no_checkpoint_is_none_and_garbage_is_refused(tmp_path: Path) -> None:
    assert state.latest(tmp_path) == (None, [])
    made = written(tmp_path, 1)
    (made.folder / state.SHARED).write_bytes(b"not tensors")
    with pytest.raises(UserError, match="cannot read"):
        state.load(made, state.SHARED)
