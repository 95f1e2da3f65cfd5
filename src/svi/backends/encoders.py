"""Text and image encoders of Wan as functions of prompts and pixels.

Knows UMT5 and CLIP as transformers has them, and the preprocessing that Wan was trained with, which differs from the
libraries' defaults. Knows nothing about clips or the transformer.
"""

from __future__ import annotations

import html
import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from svi.errors import UserError

# The attention of the transformer takes the last 512 tokens for text and whatever precedes them for image, without
# a check: a text of another length runs and gives wrong pictures.
TEXT_TOKENS = 512
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def clean_prompt(prompt: str) -> str:
    """What Wan does to a prompt first: repair mojibake, HTML entities, runs of white space."""
    import ftfy

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(prompt)))).strip()


class TextEncoder:
    """Prompts -> embeddings of exactly 512 tokens, zero after the last token of each prompt."""

    def __init__(self, model: Any, tokenizer: Any | None) -> None:
        self.model, self.tokenizer = model, tokenizer

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """``(B, 512, D)`` fp32. In the last bit a prompt's embedding depends on longer neighbours: encode it alone where bytes count."""
        if isinstance(prompts, str):
            raise TypeError("prompts is a sequence of strings, not one string")
        tokens = [self.tokens(prompt) for prompt in prompts]
        longest = max(len(ids) for ids in tokens)
        # The value of padding does not matter, it is masked in the encoder and zeroed after it.
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in tokens])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in tokens])
        return self.encode_tokens(ids, mask)

    def tokens(self, prompt: str) -> list[int]:
        """Token ids of a prompt with its end token, at most 512; warns when that cuts it."""
        if self.tokenizer is None:
            raise UserError(
                "this model folder has no tokenizer: add the folder google/umt5-xxl of the official download"
            )
        ids = list(self.tokenizer(clean_prompt(prompt), add_special_tokens=True, verbose=False)["input_ids"])
        if len(ids) <= TEXT_TOKENS:
            return ids
        warnings.warn(
            f"prompt of {len(ids)} tokens cut to the {TEXT_TOKENS} that the model reads: {prompt[:60]!r} ...",
            stacklevel=3,
        )
        return [*ids[: TEXT_TOKENS - 1], ids[-1]]  # the end token stays, as the tokenizer's own truncation has it

    def encode_tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and their mask ``(B, L)``, L <= 512 -> ``(B, 512, D)`` fp32, zero after each prompt's last token."""
        device = self.model.device
        mask = mask.to(device)
        hidden = self.model(input_ids=ids.to(device), attention_mask=mask).last_hidden_state.float()
        return F.pad(hidden * mask[..., None], (0, 0, 0, TEXT_TOKENS - hidden.shape[1]))


def clip_pixels(images: Tensor, size: int) -> Tensor:
    """``(B, 3, H, W)`` in [-1, 1] -> ``(B, 3, size, size)`` normalised for CLIP.

    Squashed to a square by torch's bicubic without antialiasing, as Wan does. The processor of transformers crops the
    centre and antialiases: other features.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (B, 3, H, W), not {tuple(images.shape)}")
    squashed = F.interpolate(images.float(), size=(size, size), mode="bicubic", align_corners=False) * 0.5 + 0.5
    mean, std = (torch.tensor(values).view(1, 3, 1, 1).to(squashed) for values in (CLIP_MEAN, CLIP_STD))
    return (squashed - mean) / std


def clip_features(model: Any, pixels: Tensor) -> Tensor:
    """``(B, 3, size, size)`` from :func:`clip_pixels` -> ``(B, N, D)`` fp32, output of the last layer but one."""
    return model(pixel_values=pixels.to(model.device), output_hidden_states=True).hidden_states[-2]
