"""A model in closed form, for tests of logic: it encodes by averaging, and its velocity is known exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from svi.backends.base import ModelInfo
from svi.condition import ClipCondition
from svi.geometry import Geometry

HEIGHT, WIDTH, NUM_FRAMES = 16, 32, 17
CHANNELS, TEXT_LENGTH, TEXT_DIM = 4, 6, 8


class ClosedFormBackend:
    """Averages 8x8 pixels and 4 frames; the flow from noise to the clean latents is a straight line."""

    def __init__(self) -> None:
        self.geometry = Geometry(latent_channels=CHANNELS, height=HEIGHT, width=WIDTH, num_frames=NUM_FRAMES)
        self.info = ModelInfo("closed form")
        self.strengths: list[dict[str, float]] = []
        self.forward_passes = 0

    def encode_video(self, video: Tensor) -> Tensor:
        batch, _, frames, height, width = video.shape
        pooled = F.avg_pool3d(video, (1, 8, 8))
        first, rest = pooled[:, :, :1], pooled[:, :, 1:]
        rest = rest.reshape(batch, 3, (frames - 1) // 4, 4, height // 8, width // 8).mean(3)
        colours = torch.cat([first, rest], dim=2)
        return torch.cat([colours, colours.mean(1, keepdim=True)], dim=1)

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        for index in range(latents.shape[2]):
            frame = F.interpolate(latents[0, :3, index][None], scale_factor=8)[0].permute(1, 2, 0)
            pixels = ((frame + 1) * 127.5).clamp(0, 255).to(torch.uint8)
            # Frames of one latent differ a little, so that tests notice which of them was carried over.
            yield torch.stack([pixels + step for step in range(1 if index == 0 else 4)])

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        def embed(prompt: str) -> Tensor:
            seed = int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=4).digest(), "big")
            return torch.randn(TEXT_LENGTH, TEXT_DIM, generator=torch.Generator().manual_seed(seed))

        return torch.stack([embed(prompt) for prompt in prompts])

    def encode_image(self, images: Tensor) -> Tensor | None:
        return images.mean((2, 3))[:, None]

    def clean(self, condition: ClipCondition) -> Tensor:
        """Latents that the model aims at."""
        text = condition.text.mean((1, 2)).reshape(-1, 1, 1, 1, 1)
        image = 0 if condition.image is None else condition.image.mean((1, 2)).reshape(-1, 1, 1, 1, 1)
        drive = sum(signal.mean() for signal in condition.drive.values())
        return 0.5 * condition.values + 0.1 * condition.known.mean(1, keepdim=True) + text + 0.1 * image + drive

    def velocity(self, noisy: Tensor, sigma: Tensor, condition: ClipCondition) -> Tensor:
        assert sigma.shape == (noisy.shape[0],)
        assert sigma.dtype == noisy.dtype == torch.float32
        self.forward_passes += 1
        return (noisy - self.clean(condition)) / sigma.reshape(-1, 1, 1, 1, 1)

    def set_lora_strengths(self, strengths: Mapping[str, float]) -> None:
        self.strengths.append(dict(strengths))


def picture(seed: int, *shape: int) -> Tensor:
    """Random uint8 pixels of shape ``(*shape, HEIGHT, WIDTH, 3)``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 200, (*shape, HEIGHT, WIDTH, 3), generator=generator, dtype=torch.uint8)
