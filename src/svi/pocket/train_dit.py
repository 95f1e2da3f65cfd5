"""Stage 3 of the pocket model: the diffusion transformer, with its text and image encoders.

Plain image-to-video flow matching as Wan was trained: the first frame and grey frames as condition, captions
dropped now and then for classifier-free guidance, nothing that hides drift. The text encoder is frozen, as Wan's is
(``train_text``); the image encoder learns together with the transformer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from svi import flow
from svi.backends.encoders import TEXT_TOKENS
from svi.backends.wan import WanBackend
from svi.condition import ClipCondition
from svi.conditioning.window import to_video
from svi.pocket.encode import LatentSet
from svi.pocket.trainloop import Bfloat16, Stage
from svi.training.learner import trainable_attention

BATCH = 16
TEXT_DROPOUT = 0.12
SHIFT = 5.0  # density of the noise levels: that of generation
# Share of the loss that follows what changes: while the learning rate is constant, and while it falls.
ACTIVE, CALM, FALLING_FROM = 0.6, 0.2, 0.6
MOST = 5.0  # how much more one latent cell may count than another
SIGMA_BUCKETS = 4


def draw_sigma(batch: int, generator: torch.Generator) -> Tensor:
    """Stratified noise levels ``(B,)``, shifted towards noise."""
    uniform = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    return SHIFT * uniform / (1 + (SHIFT - 1) * uniform)


def activity(clean: Tensor, part: float = ACTIVE) -> Tensor:
    """Weights ``(B, 1, F, h, w)`` of mean about 1 for latents ``(B, C, F, h, w)``: more where something changes over time.

    Most of a clip is a background that stays as the first frame has it. What a caption decides moves in a few cells, and
    in a plain mean their error hardly counts.
    """
    later = clean[:, :, 1:]  # the first latent frame covers one frame, not four, and differs from the others by that
    change = (later - later.mean(2, keepdim=True)).abs().mean(1, keepdim=True)
    share = (change / change.mean((2, 3, 4), keepdim=True).clamp_min(1e-6)).clamp_max(MOST)
    return 1 - part + part * torch.cat([torch.ones_like(share[:, :, :1]), share], dim=2)


def encoded(backend: WanBackend, captions: Sequence[str]) -> Tensor:
    """Embeddings ``(N, L, D)`` bf16 of captions, cut after the longest; the rest of the 512 tokens is zero."""
    with torch.no_grad():
        parts = [backend.encode_text(captions[i : i + 64]).bfloat16() for i in range(0, len(captions), 64)]
    longest = max(int((part != 0).any(2).any(0).nonzero().max()) + 1 for part in parts)
    return torch.cat([part[:, :longest] for part in parts])


def dit_stage(backend: WanBackend, data: LatentSet, *, steps: int, batch: int = BATCH, lr: float = 1.5e-3) -> Stage:
    """The training stage of ``backend``'s transformer and image encoder on ``data``; the backend computes in bf16."""
    modules = {"transformer": backend.transformer, "image_encoder": backend.image_encoder}
    for module in modules.values():
        module.requires_grad_(True).train()
    low, device = Bfloat16(modules), backend.device
    texts = encoded(backend, [*data.captions, ""])

    def predict(values: Tensor, first: Tensor, text: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
        condition = ClipCondition(
            values=values,
            known=data.known.float().to(device).expand(len(values), *data.known.shape[1:]),
            text=F.pad(text, (0, 0, 0, TEXT_TOKENS - text.shape[1])),
            image=backend.encode_image(to_video(first[:, None])[:, :, 0].to(device)),
        )
        return backend.velocity(noisy, sigma, condition)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = torch.randint(len(data.captions), (batch,), generator=generator)
        dropped = torch.rand(batch, generator=generator) < TEXT_DROPOUT
        text = texts[torch.where(dropped, len(data.captions), index)].to(device)
        clean = data.clean[index].float().to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        sigma = draw_sigma(batch, generator).to(device)
        values, noisy = data.values[index].float().to(device), flow.interpolate(clean, noise, sigma)
        with trainable_attention(device):
            predicted = low.run(lambda: predict(values, data.first[index], text, noisy, sigma))
        errors = F.mse_loss(predicted, flow.velocity(clean, noise), reduction="none")
        part = ACTIVE if step < FALLING_FROM * steps else CALM
        per_sample = (errors * activity(clean, part)).flatten(1).mean(1)
        parts = per_sample.detach().chunk(SIGMA_BUCKETS)  # sigma is stratified, hence sorted
        return per_sample.mean(), {f"sigma_{i}": part.mean().item() for i, part in enumerate(parts)}

    return Stage(
        "dit",
        modules,
        steps,
        loss,
        lr=lr,
        warmup=100,
        weight_decay=0.02,
        final_lr_ratio=0.02,
        decay_from=FALLING_FROM,
        optimizer="muon",
        ema_decay=0.998,
    )
