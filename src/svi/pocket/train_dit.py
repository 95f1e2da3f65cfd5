"""Stage 3 of the pocket model: the diffusion transformer, with its text and image encoders.

Plain image-to-video flow matching as Wan was trained: the first frame and grey frames as condition, captions
dropped now and then for classifier-free guidance, nothing that hides drift. Wan's encoders come pretrained; these two
learn together with the transformer and are frozen with it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from svi import flow
from svi.backends.wan import WanBackend
from svi.condition import ClipCondition
from svi.conditioning.window import to_video
from svi.pocket.encode import LatentSet
from svi.pocket.trainloop import Bfloat16, Stage

BATCH = 16
TEXT_DROPOUT = 0.12
SHIFT = 3.0  # density of the noise levels while training; generation uses the published shift of 5
SIGMA_BUCKETS = 4


def draw_sigma(batch: int, generator: torch.Generator) -> Tensor:
    """Stratified noise levels ``(B,)``, shifted towards noise."""
    uniform = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    return SHIFT * uniform / (1 + (SHIFT - 1) * uniform)


def dit_stage(backend: WanBackend, data: LatentSet, *, steps: int, batch: int = BATCH, lr: float = 1.5e-3) -> Stage:
    """The training stage of ``backend``'s transformer and encoders on ``data``; the backend computes in bf16."""
    modules = {
        "transformer": backend.transformer,
        "text_encoder": backend.text_encoder,
        "image_encoder": backend.image_encoder,
    }
    for module in modules.values():
        module.requires_grad_(True).train()
    low, device = Bfloat16(modules), backend.device

    def predict(values: Tensor, first: Tensor, prompts: list[str], noisy: Tensor, sigma: Tensor) -> Tensor:
        condition = ClipCondition(
            values=values,
            known=data.known.float().to(device).expand(len(values), *data.known.shape[1:]),
            text=backend.encode_text(prompts),
            image=backend.encode_image(to_video(first[:, None])[:, :, 0].to(device)),
        )
        return backend.velocity(noisy, sigma, condition)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = torch.randint(len(data.captions), (batch,), generator=generator)
        dropped = torch.rand(batch, generator=generator) < TEXT_DROPOUT
        prompts = ["" if drop else data.captions[i] for i, drop in zip(index.tolist(), dropped.tolist(), strict=True)]
        clean = data.clean[index].float().to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        sigma = draw_sigma(batch, generator).to(device)
        values, noisy = data.values[index].float().to(device), flow.interpolate(clean, noise, sigma)
        # On a CPU the fused kernel's backward pass takes three times as long in bf16.
        with sdpa_kernel(SDPBackend.MATH):
            predicted = low.run(lambda: predict(values, data.first[index], prompts, noisy, sigma))
        per_sample = F.mse_loss(predicted, flow.velocity(clean, noise), reduction="none").flatten(1).mean(1)
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
        decay_from=0.6,
        optimizer="muon",
        ema_decay=0.998,
    )
