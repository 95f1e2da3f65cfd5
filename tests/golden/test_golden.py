"""Golden frames: the hash of what every preset, solver and guidance makes of a model whose arithmetic every machine does alike.

The model below is only sums, products and copies of single numbers: IEEE 754 fixes each result, whatever the processor, the
threads or the libraries, so the frames are pinned to the bit. Real layers sum in an order of their own; what they
compute is pinned with tolerances by the parity kit (``tests/parity``).

``python tests/golden/test_golden.py`` writes ``frames.json`` again, for a change that is meant to change frames.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from svi.backends.base import ModelInfo
from svi.condition import ClipCondition
from svi.conditioning.memory import ClipMemory
from svi.conditioning.policy import MECHANISMS, POLICIES, PRESETS
from svi.generation.clip import ClipPlan
from svi.generation.rollout import as_seen
from svi.geometry import Geometry
from svi.solvers import SOLVERS

PINS = Path(__file__).with_name("frames.json")
HEIGHT, WIDTH, NUM_FRAMES, CLIPS = 16, 32, 17, 3
TEXT_ONLY = [name for name, policy in PRESETS.items() if policy.drive is None]
CASES = [
    *[(preset, "euler", 2.0) for preset in TEXT_ONLY],
    *[("film", solver, 2.0) for solver in SOLVERS if solver not in ("euler", "dpm")],  # dpm takes logarithms
    ("pro", "euler", 1.0),
    *[(mechanism, "euler", 2.0) for mechanism in MECHANISMS],
]


# Loud enough for 32 levels; and the model mixes no frames, so that the noise is seen in those alone that clips share.
LOUD = {"noisy-history": replace(MECHANISMS["noisy-history"], history_noise=0.5, overlap=0)}


class ExactBackend:
    """Encodes by picking pixels, decodes by repeating them; its velocity bends, so that steps and solvers show."""

    geometry = Geometry(latent_channels=4, height=HEIGHT, width=WIDTH, num_frames=NUM_FRAMES)
    info = ModelInfo("exact")

    def encode_video(self, video: Tensor) -> Tensor:
        picked = video[:, :, ::4, 3::8, 5::8]
        return torch.cat([picked, picked[:, :1] - picked[:, 1:2]], dim=1)

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        for index in range(latents.shape[2]):
            frame = latents[0, :3, index].repeat_interleave(8, 1).repeat_interleave(8, 2).permute(1, 2, 0)
            # To 32 levels: should a processor draw noise with other last bits, no level changes.
            pixels = (((frame.clamp(-1, 1) + 1) * 16 + 0.25).to(torch.int64) * 7).to(torch.uint8)
            yield torch.stack([pixels + step for step in range(1 if index == 0 else 4)])

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        digests = [hashlib.sha256(prompt.encode()).digest() for prompt in prompts]
        return torch.tensor([[[byte / 256 for byte in digest[:8]]] for digest in digests])

    def encode_image(self, images: Tensor) -> Tensor | None:
        return images[:, None, :, 3, 5]

    def velocity(self, noisy: Tensor, sigma: Tensor, condition: ClipCondition) -> Tensor:
        clean = 0.5 * condition.values + 0.25 * condition.text[:, 0, 0] - 0.125 + 0.125 * condition.known[:, :1]
        if condition.image is not None:
            clean = clean + 0.125 * condition.image[:, 0, 0]
        return 0.75 * (noisy - clean) / sigma + 0.25 * condition.values * sigma

    def set_lora_strengths(self, strengths: Mapping[str, float]) -> None:
        pass


def reference() -> Tensor:
    """A picture in closed form, ``(H, W, 3)`` uint8."""
    y, x = torch.arange(HEIGHT)[:, None], torch.arange(WIDTH)[None]
    return torch.stack([(7 * x + 3 * y) % 256, (5 * x * y + 40) % 256, (255 - 6 * x + y) % 256], dim=-1).to(torch.uint8)


def frames(preset: str, solver: str, guidance: float) -> Tensor:
    """All frames of a video of three clips, joined."""
    plans = [
        [ClipPlan(k, f"beat {k}", "blur", 7 + 42 * k, NUM_FRAMES, HEIGHT, WIDTH, 6, guidance, solver=solver)]
        for k in range(CLIPS)
    ]
    seen = as_seen(plans, ClipMemory.start(reference()), backend=ExactBackend(), policy={**POLICIES, **LOUD}[preset])
    return torch.cat([frames for (frames,) in seen])


def pin(case: tuple[str, str, float]) -> tuple[str, str]:
    """Name and SHA-256 of a case."""
    video = frames(*case).contiguous()
    return " ".join(map(str, case)), hashlib.sha256(video.numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_frames_are_golden(case: tuple[str, str, float]) -> None:
    name, digest = pin(case)
    assert digest == json.loads(PINS.read_text())[name], "frames changed: see the numerics rule in CONTRIBUTING.md"


def test_pins_tell_presets_solvers_and_guidance_apart() -> None:
    pins = json.loads(PINS.read_text())
    assert set(pins) == {" ".join(map(str, case)) for case in CASES}
    alike = {("film", "film-opt", "film-transitions"), ("shot", "svi2-wan22"), ("wan", "tom")}
    for group in alike:
        assert len({pins[f"{name} euler 2.0"] for name in group}) == 1
    distinct = {pins[f"{name} euler 2.0"] for name in (*TEXT_ONLY, *MECHANISMS)}
    assert len(distinct) == len(TEXT_ONLY) + len(MECHANISMS) - sum(len(group) - 1 for group in alike)
    assert pins["pro euler 1.0"] != pins["pro euler 2.0"]
    solvers = [digest for name, digest in pins.items() if name.startswith("film ")]
    assert len(set(solvers)) == len(solvers)


if __name__ == "__main__":
    PINS.write_text(json.dumps(dict(map(pin, CASES)), indent=2) + "\n")
    sys.stdout.write(f"wrote {PINS.name}\n")
