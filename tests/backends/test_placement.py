"""Choices: what a machine gets, what a user fixes, and what is refused."""

from pathlib import Path

import pytest
import torch

from svi.backends.memory import GIB, KNOWN_MODELS
from svi.backends.placement import Machine, Placement, choose, lay_out, rungs
from svi.errors import UserError

I2V, WINDOW = KNOWN_MODELS["wan2.1-i2v-14b"]
A14B, _ = KNOWN_MODELS["wan2.2-i2v-a14b"]
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def laid_out(gigabytes, ram=128, sizes=I2V, memory="auto", **options):
    """On a card with so many GB free; cards are sold in GB, and a screen takes some."""
    machine = Machine(int(gigabytes * 1e9), ram * GIB)
    return lay_out(CUDA, torch.bfloat16, memory, sizes=sizes, window=WINDOW, machine=machine, **options)


@pytest.mark.parametrize(
    ("gigabytes", "ram", "profile", "text"),
    [
        (141, 128, "resident", "device"),
        (80, 128, "resident", "device"),
        (58, 128, "resident", "visit"),
        (48, 128, "resident", "cpu"),
        (24, 128, "offload", "visit"),
        (16, 64, "offload", "visit"),
        (11.5, 64, "offload", "cpu"),
        (11.5, 40, "low", "cpu"),
    ],
)
def test_profiles_down_to_12_gb(gigabytes, ram, profile, text):
    rung, needed, _ = laid_out(gigabytes, ram)
    assert (rung.memory, rung.layout.text) == (profile, text)
    assert needed.peak <= gigabytes * 1e9
    assert needed.ram <= ram * GIB
    assert (rung.quantise is None) == (profile != "low")


def test_two_experts_take_turns_where_one_fits():
    assert not laid_out(141, sizes=A14B)[0].layout.in_turn
    assert laid_out(60, sizes=A14B)[0].layout.in_turn
    assert not any(rung.layout.in_turn for rung in rungs(CUDA, torch.bfloat16, experts=1))


def test_what_does_not_fit_is_refused_with_the_remedy():
    with pytest.raises(UserError, match=r"does not fit.*GiB are free on the device.*--size") as refusal:
        laid_out(6)
    assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match="GiB of RAM are free"):
        laid_out(16, ram=16)


def test_disk_makes_up_for_ram():
    rung, needed, _ = laid_out(24, ram=24, disk=Path("weights"))
    assert rung.layout.transformer == "visit"
    assert needed.ram < 24 * GIB


@pytest.mark.parametrize("memory", ["resident", "offload", "low"])
def test_a_profile_that_is_asked_for_is_taken(memory):
    assert laid_out(141, memory=memory)[0].memory == memory


def test_a_profile_that_is_asked_for_and_looks_too_large_is_taken_with_a_warning():
    rung, _, why = laid_out(12, memory="resident")
    assert rung.memory == "resident"
    assert "too much" in why


def test_single_wishes():
    assert laid_out(141, memory="low", quantise="none")[0].quantise is None
    assert laid_out(141, quantise="int8")[0].quantise == "int8"
    assert laid_out(141, text="cpu")[0].layout.text == "cpu"
    stored = laid_out(24, quantise="nf4")
    assert stored[0].memory == "resident"  # 4 bits bring it onto a card that 16 do not


def test_a_cpu_is_as_ever():
    placement = choose("cpu")
    assert placement == Placement(CPU, reasons=placement.reasons, layout=placement.layout)
    assert (placement.dtype, placement.attention, placement.quantise) == (torch.float32, "native", None)
    assert {placement.home(part) for part in ("transformer", "vae", "text_encoder")} == {CPU}
    assert len(placement.lines()) == 3


def test_a_cpu_stores_less_only_when_asked():
    machine = Machine(0, 20 * GIB)
    small = choose("cpu", sizes=I2V, window=WINDOW, machine=machine)
    assert (small.memory, small.quantise) == ("resident", None)
    assert "too much" in small.reasons["memory"]
    low = choose("cpu", memory="low", sizes=I2V, window=WINDOW, machine=machine)
    assert low.quantise == "fp8"
    assert low.estimate.ram < small.estimate.ram


def test_everything_chosen_is_said_with_its_reason():
    placement = choose("cpu", memory="low", speed="balanced", sizes=I2V, window=WINDOW)
    lines = {line.split()[0]: line for line in placement.lines()}
    assert lines.keys() == {"device", "dtype", "attention", "quantisation", "speed", "memory"}
    assert "GiB of RAM" in lines["memory"]
    assert "gains nothing on cpu" in lines["speed"]
    assert not any(line.endswith("default") for line in lines.values())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(memory="residnt"), "did you mean 'resident'"),
        (dict(memory="offload"), "not for cpu"),
        (dict(quantise="fp9"), "did you mean 'fp8'"),
        (dict(quantise="nf4"), "nf4"),
        (dict(text="gpu"), "stays on the cpu"),
        (dict(speed="balancd"), "did you mean 'balanced'"),
        (dict(attention="flsh"), "did you mean 'flash'"),
        (dict(attention="_flash_3"), "does not run on cpu"),
        (dict(attention="sage_hub"), "--download"),
        (dict(cache_threshold=1.5), "between 0 and 1"),
        (dict(device="cuda"), "not there"),
    ],
)
def test_wishes_that_cannot_be_met(options, said):
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a card")
    with pytest.raises(UserError, match=said):
        choose(**{"device": "cpu", **options})


def test_homes_follow_the_layout():
    rung, _, _ = laid_out(24)
    placement = Placement(CUDA, torch.bfloat16, layout=rung.layout)
    assert placement.home("transformer") == CPU
    assert placement.home("vae") == CUDA
    both = Placement(CUDA, torch.bfloat16, layout=laid_out(60, sizes=A14B)[0].layout)
    assert (both.home("transformer"), both.home("transformer_2")) == (CUDA, CPU)
