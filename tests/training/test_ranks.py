"""Several processes: they agree, share the banks where they have to, share the base out, and go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_trainings import config, final, in_two_processes, same

from svi.errors import UserError
from svi.finetune import fine_tune


def test_two_processes_gather_errors_and_agree(model_folder: Path, cache: Path, tmp_path: Path) -> None:
    changes = (f"model.name={model_folder}", f"data.cache={cache}", "bank.warmup_steps=2")
    done = in_two_processes(tmp_path, *changes, "loop.steps=4")
    assert done.returncode == 0, done.stdout + done.stderr
    held = final(tmp_path)
    ranks = [held[name] for name in ("rank-000.pt", "rank-001.pt")]
    assert same(ranks[0]["loader"], ranks[1]["loader"])
    seen = [next(iter(rank["replay"]["banks"].values()))["video"]["meta"]["seen"] for rank in ranks]
    assert all(count > 0 for count in seen)
    with pytest.raises(UserError, match="written by 2 processes"):
        fine_tune(config(model_folder, *changes, "loop.steps=9"), tmp_path, device="cpu")


def test_banks_that_do_not_fit_one_process_are_shared_out(model_folder: Path, cache: Path, tmp_path: Path) -> None:
    """A budget that holds half of the banks: each rank owns every second bucket, and errors travel."""
    changes = (f"model.name={model_folder}", f"data.cache={cache}", "recycling.clean_prob=0.1", "bank.memory_gb=1e-4")
    done = in_two_processes(tmp_path, *changes, "loop.steps=5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "shared out over 2 ranks" in done.stdout
    for rank, name in enumerate(("rank-000.pt", "rank-001.pt")):
        (banks,) = final(tmp_path)[name]["replay"]["banks"].values()
        fill = banks["video"]["meta"]["fill"]
        assert sum(fill) > 0
        assert not any(fill[1 - rank :: 2])


def test_a_shared_out_base_learns_what_a_whole_one_does(model_folder: Path, cache: Path, tmp_path: Path) -> None:
    common = (f"model.name={model_folder}", f"data.cache={cache}", "model.dtype=float32", "optimizer.schedule=constant")
    for name, strategy, steps in (("ddp", "ddp", 4), ("fsdp2", "fsdp2", 2), ("fsdp2", "fsdp2", 4)):
        done = in_two_processes(tmp_path / name, *common, f"parallel.strategy={strategy}", f"loop.steps={steps}")
        assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "fsdp2/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    whole, shared = (load_file(tmp_path / name / "lora.safetensors") for name in ("ddp", "fsdp2"))
    assert whole.keys() == shared.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(shared[name], tensor, atol=2e-4, rtol=1e-3)
