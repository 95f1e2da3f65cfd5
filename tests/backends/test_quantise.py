"""Weights in fewer bits: smaller by as much as is said, close to what they were, and only where they may be."""

import pytest
import torch

from svi.backends.memory import TransformerShape
from svi.backends.quantise import WAYS, matrices, quantise
from svi.backends.random_weights import random_transformer
from svi.errors import UserError

CPU = torch.device("cpu")
SHAPE = TransformerShape(2, 64, 36, 16, 24, 64, 256, 2, image_dim=20, added_kv_proj_dim=128)
HERE = [name for name, way in WAYS.items() if not way.needs_cuda]


def tiny():
    return random_transformer(SHAPE, CPU, torch.bfloat16, torch.Generator().manual_seed(3))


def forward(transformer):
    generator = torch.Generator().manual_seed(4)

    def draw(*shape):
        return torch.randn(shape, generator=generator).bfloat16()

    with torch.no_grad():
        return transformer(
            hidden_states=draw(1, 36, 2, 4, 6),
            timestep=torch.tensor([700.0]),
            encoder_hidden_states=draw(1, 512, 24),
            encoder_hidden_states_image=draw(1, 257, 20),
            return_dict=False,
        )[0].float()


def done(transformer, how):
    """Quantise, or skip where the extra is not installed."""
    if WAYS[how].package is not None:
        pytest.importorskip(WAYS[how].package)
    return quantise(transformer, how, torch.bfloat16)


def stored_bytes(tensor):
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(stored_bytes(getattr(tensor, name)) for name in names)
    return tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("how", HERE)
def test_outputs_move_as_little_as_is_said(how):
    transformer = tiny()
    before = forward(transformer)
    assert done(transformer, how) == 12 * SHAPE.num_layers
    moved = float((forward(transformer) - before).norm() / before.norm())
    assert 0 < moved < WAYS[how].error


@pytest.mark.parametrize("how", HERE)
def test_blocks_take_as_little_as_is_said(how):
    transformer = tiny()
    names = {name for name, _ in matrices(transformer)}
    done(transformer, how)
    weights = [transformer.blocks.get_submodule(name).weight for name in names]
    assert sum(map(stored_bytes, weights)) <= 1.1 * WAYS[how].bytes * sum(weight.numel() for weight in weights)


@pytest.mark.parametrize("how", HERE)
def test_the_rest_stays_exact(how):
    transformer = tiny()
    before = {name: value.clone() for name, value in transformer.state_dict().items()}
    changed = {f"blocks.{name}.weight" for name, _ in matrices(transformer)}
    done(transformer, how)
    for name, value in transformer.state_dict().items():
        # Biases of 8-bit layers are stored with them.
        if not any(name.startswith(other.removesuffix("weight")) for other in changed):
            assert torch.equal(value, before[name]), name
    assert {parameter.requires_grad for parameter in transformer.parameters()} == {False}


@pytest.mark.parametrize("how", HERE)
def test_loras_attached_before_still_count(how):
    from peft import LoraConfig

    transformer = tiny()
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "ffn.net.2"]), adapter_name="first")
    for name, parameter in transformer.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.2)
    strong = forward(transformer)
    transformer.set_adapters(["first"], [0.0])
    weak = forward(transformer)
    done(transformer, how)
    for strength, expected in ((1.0, strong), (0.0, weak)):
        transformer.set_adapters(["first"], [strength])
        moved = float((forward(transformer) - expected).norm() / expected.norm())
        assert moved < WAYS[how].error < float((strong - weak).norm() / weak.norm())


def test_a_second_pass_sees_the_same_weights():
    transformer = tiny()
    done(transformer, "fp8")
    assert torch.equal(forward(transformer), forward(transformer))


@pytest.mark.parametrize(("how", "said"), [("int9", "did you mean 'int8'"), ("nf4", "nf4"), ("fp8-fast", "fp8-fast")])
def test_what_cannot_be_had_here_is_refused_before_anything_changes(how, said):
    transformer = tiny()
    before = forward(transformer)
    with pytest.raises(UserError, match=said):
        quantise(transformer, how, torch.bfloat16)
    assert torch.equal(forward(transformer), before)


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    with pytest.raises(UserError, match=r"needs torchao.*pip install"):
        quantise(tiny(), "int8", torch.bfloat16)
