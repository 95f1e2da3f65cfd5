"""The stock image-to-video pipeline of diffusers around parts that are loaded, to be measured beside ours.

It is used as it comes, with its own scheduler and loop; only text and image features are handed in, since its encoders are
no part of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from svi.backends.weights import quiet_libraries
from svi.condition import ClipCondition


def run_steps(
    transformer: Any,
    vae: Any,
    condition: ClipCondition,
    negative: Tensor,
    *,
    size: tuple[int, int, int],
    steps: int,
    guidance: float,
    shift: float,
    after_step: Callable[[], None],
) -> Tensor:
    """Latents after ``steps`` steps of ``WanImageToVideoPipeline``.

    Args:
        condition: its text and image features are used.
        negative: features of the negative prompt.
        size: ``(num_frames, height, width)``.
        guidance, shift: sampling settings.
        after_step: called after each step.
    """
    from PIL import Image

    with quiet_libraries():
        from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline

    pipe = WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        image_processor=None,
        image_encoder=None,
        transformer=transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.encode_image = lambda image, device: condition.image

    def stepped(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        after_step()
        return given

    num_frames, height, width = size
    result: Tensor = pipe(
        image=Image.new("RGB", (width, height), (90, 120, 150)),
        prompt_embeds=condition.text.to(transformer.dtype),
        negative_prompt_embeds=negative.to(transformer.dtype),
        height=height,
        width=width,
        num_frames=num_frames,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        callback_on_step_end=stepped,
    ).frames
    return result
