"""Cross-attention that reads the padding of a text once instead of some 400 times, for CPUs.

Wan pads every prompt to 512 tokens without a mask, so padding takes part in the attention. All of it is one and the
same token, and attention over ``n`` equal tokens is attention over one of them with ``log n`` added to its score:
the same result from a tenth of the keys and values.
Knows the attention modules of diffusers. A GPU keeps the stock processor: it hardly notices the padding, but would
have to wait for the count.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import Tensor

from svi.backends.encoders import TEXT_TOKENS


def fold_padding(text: Tensor) -> tuple[Tensor, Tensor | None]:
    """Fold the equal tokens at the end of each text into one.

    Args:
        text: ``(B, T, D)``.

    Returns:
        The first ``L`` tokens ``(B, L, D)``, where ``L`` holds every text with at least one token of its padding, and what
        to add to the attention scores ``(B, 1, 1, L)``: the log of how many tokens each stands for. None where nothing folds.
    """
    same = (text == text[:, -1:]).all(dim=-1)
    padding = same.flip(1).long().cumprod(1).sum(1)  # equal tokens at the end, the last one itself included
    length = int(text.shape[1] - padding.min() + 1)
    if length == text.shape[1]:
        return text, None
    # The last kept token is padding in every text; it stands for itself and for all that were cut.
    bias = torch.zeros(len(text), 1, 1, length, dtype=text.dtype, device=text.device)
    bias[..., -1] = torch.tensor(text.shape[1] - length + 1.0).log()
    return text[:, :length], bias


class FoldedTextProcessor:
    """The attention processor of Wan's cross-attention with :func:`fold_padding`; image tokens come first, as in Wan."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        images, text = encoder_hidden_states[:, :-TEXT_TOKENS], encoder_hidden_states[:, -TEXT_TOKENS:]
        text, bias = fold_padding(text)

        def heads(tensor: Tensor) -> Tensor:
            return tensor.unflatten(2, (attn.heads, -1)).transpose(1, 2)

        query = heads(attn.norm_q(attn.to_q(hidden_states)))
        key, value = heads(attn.norm_k(attn.to_k(text))), heads(attn.to_v(text))
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        if attn.add_k_proj is not None:
            key, value = heads(attn.norm_added_k(attn.add_k_proj(images))), heads(attn.add_v_proj(images))
            out = out + F.scaled_dot_product_attention(query, key, value)
        out = out.transpose(1, 2).flatten(2).type_as(hidden_states)
        return attn.to_out[1](attn.to_out[0](out))


def fold_text_padding(transformer: WanTransformer3DModel) -> None:
    """Let the cross-attention of ``transformer`` read its text through :class:`FoldedTextProcessor`."""
    for block in transformer.blocks:
        block.attn2.set_processor(FoldedTextProcessor())
