"""Cross-attention with folded padding is Wan's cross-attention."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import WanTransformer3DModel

from svi.backends.text_attention import fold_padding, fold_text_padding
from svi.pocket.components import IMAGE_DIM, TEXT_DIM, TRANSFORMER


def transformers(**changes: object) -> tuple[WanTransformer3DModel, WanTransformer3DModel]:
    torch.manual_seed(0)
    stock = WanTransformer3DModel(**{**TRANSFORMER, "num_layers": 2, **changes}).eval()
    torch.nn.init.normal_(stock.proj_out.weight)
    folded = copy.deepcopy(stock)
    fold_text_padding(folded)
    return stock, folded


def run(model: WanTransformer3DModel, text: torch.Tensor, image: torch.Tensor | None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(len(text), 36, 3, 4, 6, generator=generator)
    times = torch.full((len(text),), 500.0)
    return model(
        noisy, timestep=times, encoder_hidden_states=text, encoder_hidden_states_image=image, return_dict=False
    )[0]


def padded(*lengths: int) -> torch.Tensor:
    text = torch.randn(len(lengths), 512, TEXT_DIM, generator=torch.Generator().manual_seed(2))
    for row, length in zip(text, lengths, strict=True):
        row[length:] = 0
    return text


@pytest.mark.parametrize("lengths", [(7, 30), (1, 1), (0, 5), (512, 3), (511, 512), (512, 512)])
def test_any_lengths_give_what_the_stock_processor_gives(lengths: tuple[int, int]) -> None:
    stock, folded = transformers()
    text, image = padded(*lengths), torch.randn(2, 17, IMAGE_DIM)
    with torch.no_grad():
        expected, got = run(stock, text, image), run(folded, text, image)
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_a_model_without_image_branch_too() -> None:
    stock, folded = transformers(image_dim=None, added_kv_proj_dim=None)
    with torch.no_grad():
        expected, got = run(stock, padded(9, 40), None), run(folded, padded(9, 40), None)
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_weights_and_text_get_the_same_gradients() -> None:
    stock, folded = transformers()
    image, gradients = torch.randn(2, 17, IMAGE_DIM), []
    for model in (stock, folded):
        text = padded(9, 40).requires_grad_(True)
        run(model, text, image).square().mean().backward()
        real = torch.cat([text.grad[0, :9], text.grad[1, :40]])
        gradients.append([real, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(gradients[0]) > 20
    for expected, got in zip(*gradients, strict=True):
        assert torch.allclose(got, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_what_is_kept_holds_every_text_and_one_token_of_padding() -> None:
    text, bias = fold_padding(padded(7, 30))
    assert text.shape == (2, 31, TEXT_DIM)
    assert bias is not None
    assert bias.shape == (2, 1, 1, 31)
    assert bias[..., :-1].abs().max() == 0
    assert torch.allclose(bias[..., -1].exp(), torch.tensor(482.0))


def test_a_text_that_fills_all_tokens_is_left_alone() -> None:
    text, bias = fold_padding(padded(512, 7))
    assert text.shape[1] == 512
    assert bias is None
