"""How the LoRA learns: rates and averages in closed form, where it starts from, and what saves memory changes nothing."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_trainings import config, final, same
from torch import nn

from svi.backends.lora_read import read
from svi.errors import UserError
from svi.finetune import fine_tune
from svi.training.config import Optimizer
from svi.training.optim import Average, learning_rate


@pytest.mark.parametrize(
    ("schedule", "middle", "end"), [("constant", 1.0, 1.0), ("linear", 0.5, 0.0), ("cosine", 0.5, 0.0)]
)
def test_rates_rise_then_follow_their_schedule(schedule: str, middle: float, end: float) -> None:
    settings = Optimizer.model_validate({"lr": 2.0, "warmup_steps": 10, "schedule": schedule})
    rates = [learning_rate(settings, step, 110) for step in range(111)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert (rates[10], rates[60], rates[110]) == pytest.approx((2.0, 2 * middle, 2 * end))
    assert rates[10:] == sorted(rates[10:], reverse=True)
    if schedule == "cosine":
        assert rates[35] == pytest.approx(2 * 0.5 * (1 + math.cos(math.pi / 4)))


def test_the_average_follows_quickly_while_it_is_young_and_slowly_later() -> None:
    parameter = {"a": nn.Parameter(torch.zeros(3))}
    average = Average(0.9, parameter)
    expected = 0.0
    for step in range(40):
        parameter["a"].data.fill_(float(step))
        average.update(parameter, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.values["a"] == pytest.approx([expected] * 3, rel=1e-5)
    average.swap(parameter)
    assert parameter["a"].detach() == pytest.approx([expected] * 3, rel=1e-5)
    average.swap(parameter)
    assert parameter["a"].detach().tolist() == [39.0] * 3


def test_a_training_begins_with_the_weights_of_another(model_folder: Path, cache: Path, tmp_path: Path) -> None:
    common = ("loop.steps=2", f"data.cache={cache}")
    first = fine_tune(config(model_folder, *common, "optimizer.lr=0.01"), tmp_path / "first", device="cpu").lora
    still = ("optimizer.lr=1e-30", "optimizer.weight_decay=0", f"lora.start={first}", "lora.alpha=8.0")
    second = fine_tune(config(model_folder, *common, *still), tmp_path / "second", device="cpu").lora
    before, after = read(first).pairs, read(second).pairs
    assert before.keys() == after.keys()
    assert any(pair.b.abs().max() > 0 for pair in before.values())
    for name, pair in before.items():
        other = after[name]
        torch.testing.assert_close(other.scale * other.b @ other.a, pair.scale * pair.b @ pair.a)
    with pytest.raises(UserError, match=r"set lora\.rank=4"):
        fine_tune(config(model_folder, *common, f"lora.start={first}", "lora.rank=2"), tmp_path / "x", device="cpu")
    narrow = config(model_folder, *common, f"lora.start={first}", "lora.targets=[to_q]")
    with pytest.raises(UserError, match=r"also has the layer"):
        fine_tune(narrow, tmp_path / "y", device="cpu")


def test_what_saves_memory_changes_no_bit(model_folder: Path, cache: Path, tmp_path: Path) -> None:
    common = ("loop.steps=3", f"data.cache={cache}", "optimizer.accumulation=2")
    fine_tune(config(model_folder, *common), tmp_path / "plain", device="cpu")
    sparing = ("model.gradient_checkpointing=true", "model.offload_activations=true")
    fine_tune(config(model_folder, *common, *sparing), tmp_path / "sparing", device="cpu")
    assert same(final(tmp_path / "plain"), final(tmp_path / "sparing"))


def test_a_base_in_8_bits_is_learnt_on(model_folder: Path, cache: Path, tmp_path: Path) -> None:
    changes = ("loop.steps=3", f"data.cache={cache}", "model.quantisation=fp8", "optimizer.ema_decay=null")
    done = fine_tune(config(model_folder, *changes), tmp_path, device="cpu")
    learnt = load_file(done.lora)
    assert all(torch.isfinite(tensor).all() for tensor in learnt.values())
    assert all(tensor.abs().max() > 0 for name, tensor in learnt.items() if ".lora_B." in name)


@pytest.mark.skipif(find_spec("trackio") is not None, reason="trackio is installed here")
def test_a_tracker_that_is_missing_is_named(model_folder: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pip install trackio"):
        fine_tune(
            config(model_folder, "loop.steps=1", f"data.cache={cache}", "loop.trackers=[trackio]"),
            tmp_path,
            device="cpu",
        )
