"""The doctor finds what is broken, names the remedy, and says so in its exit code; a sound machine passes."""

import argparse
import json
import shutil
import subprocess

import pytest
import torch

from svi import doctor, self_test
from svi.backends import attention, placement
from svi.backends.memory import GIB
from svi.cli import doctor as command
from svi.errors import UserError
from svi.files import read_json, write_json


def run(capsys, *words):
    parser = argparse.ArgumentParser()
    command.add_words(parser)
    code = command.run(parser.parse_args([*words]))
    return code, capsys.readouterr().out


@pytest.fixture(scope="module")
def outcome():
    return self_test.self_test()


def test_the_self_test_passes_and_is_recorded_for_these_weights(outcome):
    """If it fails because the pocket weights changed: python -m svi.self_test --record"""
    assert outcome.passed, outcome.line
    assert outcome.seconds > 0


@pytest.mark.parametrize(
    ("change", "passed", "said"),
    [
        (dict(frames_sha256="another"), True, "within rounding"),
        (dict(frames_sha256="another", tiles=3.0), False, "from what they should be"),
        (dict(weights="other"), None, "--record"),
    ],
)
def test_what_differs_is_told_apart(monkeypatch, tmp_path, change, passed, said):
    recorded = read_json(self_test._path())
    made = dict(recorded)
    if "tiles" in change:
        change = {**change, "tiles": [tile + change["tiles"] for tile in recorded["tiles"]]}
    write_json(tmp_path / "self_test.json", {**recorded, **change})
    monkeypatch.setattr(self_test, "_path", lambda: tmp_path / "self_test.json")
    monkeypatch.setattr(self_test, "_made", lambda device: made)
    outcome = self_test.self_test()
    assert outcome.passed is passed
    assert said in outcome.line


def test_a_sound_machine(capsys):
    code, out = run(capsys, "--no-self-test", "--device", "cpu")
    assert code == 0
    for topic in ("versions:", "machine:", "choices:", "attention:", "video:", "models", "self-test:", "problems:"):
        assert f"\n{topic}" in f"\n{out}"
    assert "native: runs" in out
    assert "8 frames written, 8 read" in out
    assert "pocket (built in)" in out
    assert "none found" in out


def test_json_holds_the_same(capsys):
    code, out = run(capsys, "--no-self-test", "--device", "cpu", "--json")
    found = json.loads(out)
    assert code == 0
    assert {"versions", "machine", "choices", "attention", "codecs", "models", "self_test", "problems"} == found.keys()
    assert found["problems"] == []
    assert {prospect["model"] for prospect in found["models"]} >= {"Wan2.1-I2V-14B", "Wan2.2-I2V-A14B"}


def broken_video(codec):
    raise OSError("no encoder")


def wrong_attention(name, device, dtype):
    return attention.Trial(name, True, 0.5, False, "error 0.5")


def another_version(name):
    return "0.1" if name == "diffusers" else TRUE_VERSION(name)


TRUE_VERSION = doctor.metadata.version


@pytest.mark.parametrize(
    ("where", "name", "value", "said"),
    [
        (doctor, "_round_trip", broken_video, "pip install --force-reinstall av"),
        (doctor, "_round_trip", lambda codec: 3, "of 8 frames"),
        (attention, "tried", wrong_attention, "reinstall torch"),
        (doctor.metadata, "version", another_version, "pip install 'diffusers"),
        (doctor, "_driver", lambda: "NVIDIA Something, 570.1", "there is an NVIDIA card"),
        (doctor.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1), "free some space"),
        (doctor, "self_test", lambda where: self_test.Outcome(False, "pictures are wrong", 1.0), "svi parity"),
    ],
)
def test_what_is_broken_is_named_with_its_remedy(monkeypatch, capsys, where, name, value, said):
    if name == "_driver" and torch.cuda.is_available():
        pytest.skip("torch sees the card")
    monkeypatch.setattr(where, name, value)
    words = ["--device", "cpu"] if name == "self_test" else ["--device", "cpu", "--no-self-test"]
    code, out = run(capsys, *words)
    assert code == 1
    assert said in out.partition("problems:")[2]


def test_a_self_test_that_cannot_run_is_a_problem(monkeypatch, capsys):
    def missing(where):
        raise UserError("the pocket model is missing: reinstall")

    monkeypatch.setattr(doctor, "self_test", missing)
    code, out = run(capsys, "--device", "cpu")
    assert code == 1
    assert "reinstall" in out


def test_drivers_are_asked_and_not_believed(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    for script, expected in (("echo 'NVIDIA H200, 580.1'", "NVIDIA H200, 580.1"), ("exit 9", None), ("true", None)):
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        assert doctor._driver() == expected
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: (_ for _ in ()).throw(subprocess.TimeoutExpired("x", 1)))
    assert doctor._driver() is None


def test_prospects_follow_the_machine(monkeypatch):
    """On a card nobody here has: what fits, in which profile, and that a faster preset is estimated as faster."""
    chosen = placement.Placement(torch.device("cuda"), torch.bfloat16)
    monkeypatch.setattr(placement, "_device", lambda asked: (torch.device("cuda"), "asked for"))
    monkeypatch.setattr(placement.Machine, "look", classmethod(lambda cls, device: cls(int(80e9), 200 * GIB)))
    pocket, wan21, wan22 = doctor._prospects(chosen, 790e12)
    assert (pocket.profile, wan21.profile, wan22.profile) == ("resident",) * 3
    assert {"shot", "film"} <= set(wan21.presets)
    assert set(wan22.presets) == {"svi2-wan22", "pro"}
    # 168.6 PFLOP at 371 TFLOP/s, as the published code reaches on that card
    assert wan21.seconds["reference"] == pytest.approx(454, rel=0.02)
    assert wan21.seconds["balanced"] < wan21.seconds["reference"]
    monkeypatch.setattr(placement.Machine, "look", classmethod(lambda cls, device: cls(int(5e9), 200 * GIB)))
    assert [prospect.profile for prospect in doctor._prospects(chosen, 790e12)] == ["resident", None, None]


def test_an_absent_device_is_bad_input():
    with pytest.raises(UserError, match="unknown device"):
        doctor.examine("gpu0x", run_self_test=False)
