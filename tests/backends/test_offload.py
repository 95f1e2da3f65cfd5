"""Weights that wait elsewhere: they come back as they were, and compute the same bytes. From CPU to CPU, so that it can run anywhere."""

import pytest
import torch
from torch import nn

from svi.backends.memory import TransformerShape
from svi.backends.offload import stream_blocks, visit
from svi.backends.placement import Placement, prepare_encoders, prepare_transformer
from svi.backends.quantise import quantise
from svi.backends.random_weights import random_transformer
from svi.errors import UserError
from svi.speed import get_speed

CPU = torch.device("cpu")
SHAPE = TransformerShape(2, 32, 36, 16, 24, 64, 96, 3, image_dim=20, added_kv_proj_dim=64)


def tiny(dtype=torch.float32):
    return random_transformer(SHAPE, CPU, dtype, torch.Generator().manual_seed(3))


def forward(transformer, level=700.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(4)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    with torch.no_grad():
        return transformer(
            hidden_states=draw(1, 36, 2, 4, 6),
            timestep=torch.tensor([level]),
            encoder_hidden_states=draw(1, 512, 24),
            encoder_hidden_states_image=draw(1, 257, 20),
            return_dict=False,
        )[0]


def attach_lora(transformer):
    from peft import LoraConfig

    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "ffn.net.2"]), adapter_name="first")
    generator = torch.Generator().manual_seed(5)
    for name, parameter in transformer.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)


@pytest.mark.parametrize("on_disk", [False, True])
def test_blocks_that_wait_compute_the_same_bytes(tmp_path, on_disk):
    transformer = tiny()
    before = [forward(transformer, level) for level in (900.0, 30.0)]
    stream_blocks(transformer, CPU, disk=tmp_path / "weights" if on_disk else None)
    for _ in range(2):
        assert all(torch.equal(forward(transformer, n), b) for n, b in zip((900.0, 30.0), before, strict=True))


def test_blocks_on_disk_leave_ram(tmp_path):
    """What lies in RAM after a pass is not what computes: scribbled over, it does no harm."""
    transformer = tiny()
    before = forward(transformer)
    stream_blocks(transformer, CPU, disk=tmp_path)
    forward(transformer)
    for parameter in transformer.blocks.parameters():
        parameter.data.fill_(float("nan"))
    assert torch.equal(forward(transformer), before)
    stored = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert stored > SHAPE.num_layers * SHAPE.block_parameters * 4


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="name another folder"):
        stream_blocks(tiny(), CPU, disk=tmp_path / "file" / "weights")


def test_lora_strengths_change_while_blocks_wait():
    plain, waiting = tiny(), tiny()
    for transformer in (plain, waiting):
        attach_lora(transformer)
    stream_blocks(waiting, CPU)
    results = []
    for strength in (1.0, 0.3, 0.0):
        for transformer in (plain, waiting):
            transformer.set_adapters(["first"], [strength])
            results.append(forward(transformer))
        assert torch.equal(results[-1], results[-2])
    assert not torch.equal(results[0], results[2])


def test_8_bit_weights_wait_as_well(tmp_path):
    plain, waiting = tiny(torch.bfloat16), tiny(torch.bfloat16)
    for transformer in (plain, waiting):
        quantise(transformer, "fp8", torch.bfloat16)
    stream_blocks(waiting, CPU)
    expected = forward(plain, dtype=torch.bfloat16)
    assert torch.equal(forward(waiting, dtype=torch.bfloat16), expected)
    assert torch.equal(forward(waiting, dtype=torch.bfloat16), expected)


def test_step_caching_and_waiting_blocks_go_together(tmp_path):
    from svi.backends.step_cache import around

    plain, waiting = tiny(), tiny()
    condition = object()
    speed = get_speed("reference", cache_threshold=0.9)
    prepare_transformer(plain, Placement(CPU, speed=speed))
    prepare_transformer(waiting, Placement(CPU, speed=speed, disk=tmp_path))
    for level in (0.9, 0.8, 0.7):
        results = []
        for transformer in (plain, waiting):
            with around(transformer, condition, level):
                results.append(forward(transformer, 1000 * level))
        assert torch.equal(*results)


class Double(nn.Module):
    """Says where it was asked to be."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.been = []

    def to(self, *args, **kwargs):
        self.been.append(str(args[0]))
        return super().to(*args, **kwargs)

    def forward(self, numbers):
        return {"twice": 2 * self.linear(numbers)}


def test_a_visitor_goes_there_and_comes_back():
    module, numbers = Double(), torch.ones(2, 4)
    before = module(numbers)["twice"]
    visit(module, torch.device("cpu", 0))
    assert torch.equal(module(numbers)["twice"], before)
    assert module.been == ["cpu:0", "cpu"]


def test_a_visitor_comes_back_from_another_device():
    """The meta device computes nothing, but it is another one: outputs come back to where the inputs were."""
    module = Double()
    visit(module, torch.device("meta"))
    with pytest.raises((NotImplementedError, RuntimeError)):  # nothing can be copied out of it
        module(torch.ones(2, 4))
    assert module.been[0] == "meta"


def test_encoders_stay_where_they_are_on_a_cpu():
    module, numbers = Double(), torch.ones(2, 4)
    before = module(numbers)["twice"]
    prepare_encoders(Placement(CPU), text_encoder=module, image_encoder=None)
    assert torch.equal(module(numbers)["twice"], before)
    assert module.been == []


def test_visiting_encoders_of_a_model_encode_the_same(diffusers_folder):
    """As transformers has them: keyword arguments in, output objects out."""
    from svi.backends.wan import load_backend

    backend = load_backend(str(diffusers_folder), device="cpu", dtype="fp32")
    pictures = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    before = backend.encode_text(["a red ball"]), backend.encode_image(pictures)
    for encoder in (backend.text_encoder, backend.image_encoder):
        visit(encoder, torch.device("cpu", 0))
    assert torch.equal(backend.encode_text(["a red ball"]), before[0])
    assert torch.equal(backend.encode_image(pictures), before[1])
