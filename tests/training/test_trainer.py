"""Fine-tuning a tiny random model: resumed equals undisturbed, two processes agree, the LoRA loads back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from small_trainings import FAST, SMALL, config, final, same

from svi.backends.wan import load_backend
from svi.errors import UserError
from svi.finetune import fine_tune
from svi.training import state


@pytest.mark.parametrize("recipe", ["pocket-shot", "pocket-film", "pocket-pro"])
def test_stopped_and_gone_on_equals_undisturbed(recipe: str, model_folder: Path, tmp_path: Path) -> None:
    settings = config(model_folder, "loop.steps=6", f"data.cache={tmp_path / 'cache'}", recipe=recipe)
    fine_tune(settings, tmp_path / "whole", device="cpu")
    asked = iter([False, False, True])
    stopped = fine_tune(settings, tmp_path / "two", device="cpu", should_stop=lambda: next(asked))
    assert (stopped.step, stopped.complete) == (3, False)
    done = fine_tune(settings, tmp_path / "two", device="cpu")
    assert (done.step, done.complete) == (6, True)
    assert same(final(tmp_path / "whole"), final(tmp_path / "two"))
    assert same(load_file(tmp_path / "whole/lora.safetensors"), load_file(done.lora))


def test_killed_while_it_runs_and_gone_on(model_folder: Path, cache: Path, tmp_path: Path) -> None:
    changes = (*SMALL, *FAST, "loop.steps=12", "loop.save_every=2", f"data.cache={cache}", f"model.name={model_folder}")
    command = [sys.executable, "-m", "svi.cli", "train", "pocket-shot", *changes, "--device", "cpu", "--json", "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    child = subprocess.Popen(
        [*command, str(tmp_path / "killed")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert child.stdout is not None
    for line in child.stdout:
        if json.loads(line).get("step", 0) >= 5:
            break
    time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    found, _ = state.latest(tmp_path / "killed/checkpoints")
    assert found is not None
    assert 4 <= found.step < 12
    subprocess.run([*command, str(tmp_path / "killed")], check=True, capture_output=True)
    assert same(final(tmp_path / "whole"), final(tmp_path / "killed"))


def test_errors_are_banked_and_the_control_has_no_bank(model_folder: Path, cache: Path, tmp_path: Path) -> None:
    for name, clean in (("erft", 0.2), ("plain", 1)):
        fine_tune(
            config(model_folder, "loop.steps=4", f"recycling.clean_prob={clean}", f"data.cache={cache}"),
            tmp_path / name,
            device="cpu",
        )
    rows = [json.loads(line) for line in (tmp_path / "erft/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["video_bank"]["errors"] > 0
    assert all(row["loss"] > 0 for row in rows)
    assert "video_bank" not in json.loads((tmp_path / "plain/log.jsonl").read_text().splitlines()[-1])


def test_a_look_at_held_out_clips_changes_nothing(model_folder: Path, cache: Path, tmp_path: Path) -> None:
    common = ("loop.steps=4", f"data.cache={cache}", "loop.validation_items=1")
    fine_tune(config(model_folder, *common), tmp_path / "blind", device="cpu")
    done = fine_tune(config(model_folder, *common, "loop.validate_every=2"), tmp_path / "looking", device="cpu")
    assert same(load_file(tmp_path / "blind/lora.safetensors"), load_file(done.lora))
    rows = [json.loads(line) for line in (tmp_path / "looking/log.jsonl").read_text().splitlines()]
    looks = [row for row in rows if "validation" in row]
    assert [row["step"] for row in looks] == [2, 4]
    assert all(Path(row["sheet"]).is_file() for row in looks)
    assert all(
        row["validation"]["loss"] > 0 and np.isfinite(row["validation"]["colour_shift_per_clip"]) for row in looks
    )


def test_the_lora_loads_back_and_changes_the_model(model_folder: Path, cache: Path, tmp_path: Path) -> None:
    changes = ("loop.steps=3", "optimizer.lr=0.05", f"data.cache={cache}")
    done = fine_tune(config(model_folder, *changes), tmp_path / "run", device="cpu")
    backend = load_backend(str(model_folder), loras=[f"{done.lora}:1.0"], device="cpu")
    assert backend.info.loras
    state_dict = backend.transformer.state_dict()  # type: ignore[attr-defined]
    assert any(".lora_B." in name and value.abs().max() > 0 for name, value in state_dict.items())


def test_other_settings_are_refused(model_folder: Path, cache: Path, tmp_path: Path) -> None:
    fine_tune(config(model_folder, "loop.steps=1", f"data.cache={cache}"), tmp_path, device="cpu")
    with pytest.raises(UserError, match="trained with other settings"):
        fine_tune(config(model_folder, "loop.steps=2", "lora.rank=8", f"data.cache={cache}"), tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lora.targets=[to_x]", "no layer 'to_x'"),
        ("model.name=/nowhere", "nowhere"),
        ("data.source=/nowhere", "nowhere"),
        ("recycling.image_error_frames=9", "image errors reach"),
    ],
)
def test_bad_input_gets_one_line(change: str, message: str, model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        fine_tune(config(model_folder, "loop.steps=1", change), tmp_path, device="cpu")


def test_a_loss_that_is_not_finite_stops_and_the_checkpoint_stays(
    model_folder: Path, cache: Path, tmp_path: Path
) -> None:
    settings = config(model_folder, "loop.steps=9", "loop.save_every=1", "optimizer.lr=1e30", f"data.cache={cache}")
    with pytest.raises(FloatingPointError, match="not finite at step"):
        fine_tune(settings, tmp_path, device="cpu")
    assert state.latest(tmp_path / "checkpoints")[0] is not None
