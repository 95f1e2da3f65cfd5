"""Speed presets, attention implementations and compiled blocks: what is exact stays exact, and nothing is mixed silently."""

import pytest
import torch

from svi.backends import attention
from svi.backends.compile import compile_blocks, is_compiled, obstacle
from svi.backends.memory import TransformerShape
from svi.backends.offload import stream_blocks
from svi.backends.placement import choose, prepare_transformer
from svi.backends.quantise import quantise
from svi.backends.random_weights import random_transformer
from svi.backends.step_cache import StepCache, around
from svi.errors import UserError
from svi.speed import SPEEDS, get_speed

CPU = torch.device("cpu")


def tiny(layers=2):
    shape = TransformerShape(2, 32, 36, 16, 24, 64, 96, layers, image_dim=20, added_kv_proj_dim=64)
    return random_transformer(shape, CPU, torch.float32, torch.Generator().manual_seed(3))


def inputs():
    generator = torch.Generator().manual_seed(4)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    return dict(
        hidden_states=draw(1, 36, 2, 4, 6),
        timestep=torch.tensor([700.0]),
        encoder_hidden_states=draw(1, 512, 24),
        encoder_hidden_states_image=draw(1, 257, 20),
    )


def forward(transformer):
    with torch.no_grad():
        return transformer(**inputs(), return_dict=False)[0]


def test_only_draft_approximates():
    assert [name for name, speed in SPEEDS.items() if not speed.exact] == ["draft"]
    assert not get_speed("balanced", attention="sage").exact


def test_a_changed_knob_shows_in_the_name():
    assert get_speed("balanced").name == "balanced"
    assert get_speed("balanced", compile=True, attention="best").name == "balanced"
    mixed = get_speed("reference", cache_threshold=0.05)
    assert mixed.name == "reference+cache_threshold=0.05"
    assert not mixed.exact


@pytest.mark.parametrize("knobs", [dict(cache=0.1), dict(cache_threshold=0), dict(cache_threshold=2)])
def test_knobs_that_do_not_exist_or_make_no_sense(knobs):
    with pytest.raises(UserError):
        get_speed("draft", **knobs)


def test_native_attention_runs_and_is_exact_everywhere():
    trial = attention.tried("native", CPU, torch.float32)
    assert trial.runs
    assert trial.exact
    assert trial.error < 1e-6
    assert attention.choose("best", CPU, torch.float32)[0] == "native"


def test_an_implementation_that_computes_something_else_is_found_out(monkeypatch):
    """As a kernel built for another card would: finite, plausible and wrong."""
    true = attention.attend
    monkeypatch.setattr(
        attention, "attend", lambda name, q, k, v: true("native", q, k, v) * (1 + (name == "_native_math") * 0.01)
    )
    attention.tried.cache_clear()
    try:
        trial = attention.tried("_native_math", CPU, torch.float32)
        assert trial.runs
        assert not trial.exact
        assert "rounding explains" in trial.why
    finally:
        attention.tried.cache_clear()


def test_what_is_not_installed_says_so():
    trial = attention.tried("_flash_3", CPU, torch.float32)
    assert not trial.runs
    assert trial.why
    assert not attention.tried("_flash_3_hub", CPU, torch.float32).runs


def test_every_card_is_offered_torchs_own():
    assert all(names[-1] == "native" for names in attention.PREFERENCE.values())
    assert {name for names in attention.PREFERENCE.values() for name in names} <= set(attention.known())


@pytest.mark.parametrize("hooks", ["none", "fp8", "waiting", "cached"])
def test_compiled_blocks_compute_the_same(hooks):
    """Without hooks a block is one graph; with them it still computes what they make of it."""
    plain, compiled = tiny(), tiny()
    for transformer in (plain, compiled):
        if hooks == "fp8":
            quantise(transformer, "fp8", torch.float32)
        elif hooks == "waiting":
            stream_blocks(transformer, CPU)
        elif hooks == "cached":
            StepCache(transformer, 0.5)
    compile_blocks(compiled, CPU, whole=hooks == "none", backend="aot_eager")
    assert is_compiled(compiled)
    condition = object()
    for level in (0.9, 0.85):
        results = []
        for transformer in (plain, compiled):
            with around(transformer, condition, level):
                results.append(forward(transformer))
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_compiling_has_its_needs(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "compiler" in obstacle(CPU)
    with pytest.raises(UserError, match="compiler"):
        compile_blocks(tiny(), CPU)
    with pytest.raises(UserError, match="leave compiling out"):
        choose("cpu", compile=True)


@pytest.mark.parametrize("speed", ["reference", "balanced"])
def test_on_a_cpu_the_exact_presets_change_no_byte(speed):
    transformer = tiny()
    before = forward(transformer)
    prepare_transformer(transformer, choose("cpu", speed=speed))
    assert torch.equal(forward(transformer), before)
