"""What experience says against settings: said once, before and after loading, and kept in the journal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import svi
from svi.generation.events import Event
from svi.generation.manifest import RunSettings
from svi.geometry import Geometry
from svi.job.advice import MANY_CLIPS, RULES, Facts, advice

LONG = "a small grey cat walks slowly over a wooden table, the camera follows it, morning light from the left"


def settings(**changes: Any) -> RunSettings:
    base = dict(preset="shot", height=480, width=832, num_frames=81, fps=16, seed=0, steps=50, guidance=5.0, shift=5.0)
    return RunSettings(**{**base, **changes})


def facts(clips: int | None = 10, **changes: Any) -> Facts:
    names = ("prompts", "seeds", "stored", "vae_dtype", "vae_tiled", "merged")
    fields = {name: changes.pop(name) for name in names if name in changes}
    changes.setdefault("loras", {"svi-shot": 1.0})
    usual = {"prompts": (LONG,), "seeds": tuple(42 * clip for clip in range(clips or 3)), "vae_dtype": "float32"}
    return Facts(settings(**changes), Geometry(), clips, **{**usual, **fields})


def test_published_settings_are_not_talked_about():
    assert advice(facts()) == ()
    assert advice(facts(None, preset="pro", guidance=4.0)) == ()
    assert advice(facts(preset="wan", loras={})) == ()
    assert advice(facts(loras={}, merged=True)) == ()


CASES: list[tuple[dict[str, Any], str]] = [
    ({"loras": {}}, "preset shot without its LoRA"),
    ({"num_frames": 121}, "121 frames per clip: the model was trained on 81"),
    ({"width": 1280, "height": 720}, "1280x720 has 2.3 times the area the model was trained on (832x480)"),
    ({"width": 480, "height": 832}, "480x832 is far from the shape"),
    ({"seeds": (7, 49, 7)}, "clips 0 and 2 start from the same noise"),
    ({"quantise": "fp8"}, "weights in fp8 over many clips"),
    ({"stored": "GGUF"}, "weights in GGUF over many clips"),
    ({"vae_dtype": "bfloat16"}, "VAE that works in bfloat16"),
    ({"vae_tiled": True}, "in tiles: True"),
    ({"attention": "sage"}, "flashes between clips"),
    (
        {"loras": {"svi-shot": 1.0, "lightx2v_I2V_14B": 1.0}, "steps": 8, "guidance": 1.0},
        "step-distilled LoRA beside SVI",
    ),
    ({"loras": {"Wan2.2-Lightning": 1.0}, "preset": "wan"}, "made for 4 to 8 steps"),
    ({"prompts": (LONG, "a cat")}, "prompt 'a cat' says little"),
]


@pytest.mark.parametrize(("changes", "said"), CASES, ids=[said[:30] for _, said in CASES])
def test_each_rule_speaks_alone(changes: dict[str, Any], said: str):
    (line,) = advice(facts(**changes))
    assert said in line
    assert "\n" not in line


def test_every_rule_is_met_and_has_a_source():
    met = {rule.name for rule in RULES for changes, _ in CASES if rule.applies(facts(**changes))}
    assert met == {rule.name for rule in RULES}
    assert all(rule.source for rule in RULES)


def test_what_adds_up_needs_clips_to_do_so():
    assert not advice(facts(MANY_CLIPS - 1, quantise="fp8"))
    assert advice(facts(None, quantise="fp8"))
    assert not advice(facts(preset="pro", vae_dtype="bfloat16"))  # no clip goes through the VAE into the next


def test_words_are_counted_in_scripts_without_spaces():
    assert not advice(facts(prompts=("一只小灰猫慢慢走过木桌镜头跟随它",)))
    assert advice(facts(prompts=("一只猫",)))


def test_a_model_of_small_pictures_was_taught_with_few_words():
    small = replace(facts(prompts=("a cat",)), geometry=Geometry(height=480, width=400))
    assert not any("says little" in line for line in advice(small))


def test_advice_is_told_once_and_kept(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    said: list[str] = []

    def hear(event: Event) -> None:
        said.append(str(getattr(event, "message", "")))

    picture = np.full((32, 48, 3), 120, np.uint8)
    machine = {"device": "cpu", "quantise": "fp8", "on_event": hear}
    run = svi.generate(picture, "a", model=model_folder, clips=MANY_CLIPS, steps=1, num_frames=5, out="run", **machine)
    spoken = [line for line in said if line.startswith("note: ")]
    assert ["trained on 9" in line for line in spoken] == [True, False]
    assert "fp8 over many clips" in spoken[1]
    (kept,) = (event["notes"] for event in run.journal() if event["event"] == "advice")
    assert [f"note: {line}" for line in kept] == spoken
    said.clear()
    svi.resume(run, device="cpu", on_event=hear)
    assert not any(line.startswith("note: ") for line in said)
