"""The memory estimate: counted exactly where it can be, and near what a real backward pass keeps."""

from __future__ import annotations

import pytest
import torch

from svi.backends.base_memory import block_bytes, lora_parameters
from svi.backends.lora_train import attach_lora
from svi.backends.memory import KNOWN_MODELS, TransformerShape
from svi.cli import main
from svi.finetune import find_config, memory_needs

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
GB = 10**9


def test_the_published_lora_is_counted() -> None:
    sizes, _ = KNOWN_MODELS["wan2.1-i2v-14b"]
    assert lora_parameters(sizes.transformer, TARGETS, 128) == 613_416_960


@pytest.mark.parametrize(("image", "targets"), [(False, TARGETS), (True, TARGETS), (False, ("to_q", "to_v"))])
def test_what_a_block_keeps_is_near_what_autograd_keeps(image: bool, targets: tuple[str, ...]) -> None:
    frames, rank = 7, 8
    kept = [saved_bytes(layers, frames, image, targets, rank) for layers in (1, 2)]
    shape = TransformerShape(2, 32, text_dim=32, ffn_dim=320, added_kv_proj_dim=64 if image else None)
    expected = block_bytes(shape, frames * 8 * 12, targets, rank, dtype_bytes=2)
    assert expected == pytest.approx(kept[1] - kept[0], rel=0.1)


def saved_bytes(layers: int, frames: int, image: bool, targets: tuple[str, ...], rank: int) -> int:
    """Bytes that autograd keeps of a forward pass of a transformer that computes in bf16."""
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=32,
        in_channels=36,
        out_channels=16,
        text_dim=32,
        ffn_dim=320,
        num_layers=layers,
        image_dim=32 if image else None,
        added_kv_proj_dim=64 if image else None,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
    ).bfloat16()
    for name, parameter in model.named_parameters():
        if any(part in name for part in model._keep_in_fp32_modules):
            parameter.data = parameter.data.float()
    attach_lora(model, rank=rank, alpha=8.0, targets=targets, init="kaiming", seed=0)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(
            hidden_states=noise(1, 36, frames, 16, 24),
            timestep=torch.tensor([500.0]),
            encoder_hidden_states=noise(1, 512, 32),
            encoder_hidden_states_image=noise(1, 257, 32) if image else None,
            return_dict=False,
        )
        return sum(storage.nbytes() for storage in kept.values())


def test_a_published_recipe_fits_its_card_and_says_what_takes_how_much() -> None:
    changes = ["bank.memory_gb=220"]
    needs = {need.what: need for need in memory_needs(find_config("shot", changes))}
    assert needs["base"].device == pytest.approx(32.8 * GB, rel=0.01)
    assert needs["error banks"].ram == pytest.approx(210 * GB, rel=0.01)
    assert 50 * GB < needs["together"].device < 80 * GB
    assert needs["together"].ram == sum(need.ram for name, need in needs.items() if name != "together")
    smaller = memory_needs(find_config("shot", [*changes, "model.quantisation=nf4"]))[0]
    assert smaller.device < 0.35 * needs["base"].device
    shared = memory_needs(find_config("shot", [*changes, "parallel.strategy=fsdp2"]), ranks=8)[0]
    assert shared.device < 0.2 * needs["base"].device


def test_a_dry_run_prints_it_below_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "pocket-shot", "--dry-run", "lora.rank=8", "--device", "cpu", "optimizer.lr=2e-5"]) == 0
    printed = capsys.readouterr().out
    assert "rank: 8" in printed
    assert "lr: 2.0e-05" in printed
    assert "# memory: together" in printed
