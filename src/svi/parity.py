"""Does this code compute what the published code computes? ``python -m svi.parity FOLDER`` says so, number by number.

FOLDER is a parity kit: a tiny Wan 2.1 in the official layout with the outputs of the published implementation
(``tests/data/parity``). Everything goes through the project's own loaders, condition builder, sampler and rollout; only
where the kit gives embeddings as inputs do they replace the encoders.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from svi.backends import official
from svi.backends.base import ModelInfo
from svi.backends.encoders import TEXT_TOKENS, TextEncoder, clip_features, clip_pixels
from svi.backends.lora import LoraSpec, load_loras
from svi.backends.placement import Placement
from svi.backends.wan import WanBackend
from svi.backends.weights import quiet_libraries, read_json, safetensors
from svi.condition import ClipCondition
from svi.conditioning.encodings import Encodings
from svi.conditioning.memory import ClipMemory
from svi.conditioning.policy import ConditioningPolicy, get_policy
from svi.conditioning.window import to_video
from svi.errors import UserError
from svi.generation.clip import Clip, ClipPlan
from svi.generation.rollout import rollout
from svi.schedule import TIMESTEPS

LORA_FILE = "lora-official-names.safetensors"
# The kit's variants that are not presets, as changes to one.
DERIVED: dict[str, tuple[str, dict[str, Any]]] = {"film-mask-all": ("film", {"known": "motion"})}

VELOCITY_BOUND, VAE_BOUND, CLIP_BOUND, TEXT_BOUND = 5e-5, 1e-5, 1e-5, 1e-4
CONDITION_BOUND, LATENT_BOUND = 1e-5, 1e-4
FRAME_BOUND, FRAME_SHARE = 1.0, 1e-3
# An unbroken rollout feeds its own frames back. Convolutions differ in the last bit between kinds of CPU, truncation to
# uint8 turns that into whole levels on some 1e-4 of the values, and each clip enlarges it: the published numbers come
# from one kind of CPU. Clip by clip, from the published frames, the strict bounds hold everywhere.
CHAIN_SHARE = 2e-2


@dataclass(frozen=True)
class Check:
    """One comparison: the largest difference found, and, for frames, the share of values that differ at all."""

    name: str
    largest: float
    bound: float
    share: float | None = None
    share_bound: float = FRAME_SHARE

    @property
    def passed(self) -> bool:
        """Within the bounds; NaN is not."""
        return self.largest <= self.bound and (self.share is None or self.share <= self.share_bound)


def compare(folder: Path) -> Iterator[Check]:
    """All comparisons that the kit in ``folder`` allows, in fp32 on the CPU.

    Raises:
        UserError: where ``folder`` is no kit.
    """
    if not (folder / "expected.safetensors").is_file():
        raise UserError(f"{folder} is no parity kit: it has no expected.safetensors")
    expected = dict(safetensors([folder / "expected.safetensors"]))
    backend = _load(folder)
    with torch.no_grad():
        yield from _vae(backend, expected)
        yield from _encoders(backend, expected)
        yield from _velocity(backend, expected)
        yield from _rollouts(backend, folder, expected)
        yield from _lora(backend, folder, expected)  # last: it attaches the LoRA


def _load(folder: Path) -> WanBackend:
    placement = Placement(torch.device("cpu"))
    with quiet_libraries():
        parts = official.load(folder, placement, need_tokenizer=False)
    return WanBackend(
        parts.transformer,
        parts.vae,
        parts.text_encoder,
        parts.tokenizer,
        parts.image_encoder,
        info=ModelInfo("parity kit", defaults=parts.defaults),
        placement=placement,
    )


def _difference(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape, f"{tuple(found.shape)} is not {tuple(wanted.shape)}"
    return (found.float() - wanted.float()).abs().max().item()


def _vae(backend: WanBackend, expected: dict[str, Tensor]) -> Iterator[Check]:
    latents = backend.encode_video(expected["vae.video"].float())
    yield Check("vae.latents", _difference(latents, expected["vae.latents"]), VAE_BOUND)
    decoded = backend.vae.decode(_unnormalised(backend, expected["vae.latents"])).sample
    yield Check("vae.decoded", _difference(decoded, expected["vae.decoded"]), VAE_BOUND)
    streamed = torch.cat(list(backend.decode(expected["vae.latents"])))
    frames = ((expected["vae.decoded"] + 1) * 127.5).clip(0, 255).to(torch.uint8)[0].permute(1, 2, 3, 0)
    yield _frames("vae.frames", streamed, frames)


def _unnormalised(backend: WanBackend, latents: Tensor) -> Tensor:
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1)
        for values in (backend.vae.config.latents_mean, backend.vae.config.latents_std)
    )
    return latents / (1.0 / std) + mean


def _encoders(backend: WanBackend, expected: dict[str, Tensor]) -> Iterator[Check]:
    video = to_video(expected["clip.image"][None, None])
    assert backend.image_encoder is not None
    pixels = clip_pixels(video[:, :, 0], backend.image_encoder.config.image_size)
    yield Check("clip.pixels", _difference(pixels, expected["clip.pixels"]), CLIP_BOUND)
    yield Check(
        "clip.feature", _difference(clip_features(backend.image_encoder, pixels), expected["clip.feature"]), CLIP_BOUND
    )
    text = TextEncoder(backend.text_encoder, None).encode_tokens(expected["t5.ids"], expected["t5.mask"])
    yield Check("t5.embedding", _difference(text, expected["t5.embedding"]), TEXT_BOUND)


def _condition(expected: dict[str, Tensor], scale: int) -> ClipCondition:
    given = expected["dit.condition"]
    return ClipCondition(given[:, scale:], given[:, :scale], expected["dit.text"], expected["dit.image"].float())


def _velocity(backend: WanBackend, expected: dict[str, Tensor]) -> Iterator[Check]:
    condition = _condition(expected, backend.geometry.temporal_scale)
    for name in sorted(expected):
        if name.startswith("dit.velocity.t"):
            sigma = torch.tensor([float(name.removeprefix("dit.velocity.t")) / TIMESTEPS])
            predicted = backend.velocity(expected["dit.noisy"], sigma, condition)
            yield Check(name, _difference(predicted, expected[name]), VELOCITY_BOUND)


def _lora(backend: WanBackend, folder: Path, expected: dict[str, Tensor]) -> Iterator[Check]:
    with quiet_libraries():
        backend.loras = load_loras(backend.transformer, [LoraSpec(str(folder / LORA_FILE))])
    condition = _condition(expected, backend.geometry.temporal_scale)
    for name in sorted(expected):
        if name.startswith("dit.velocity_lora"):
            strength, _, timestep = name.removeprefix("dit.velocity_lora").partition(".t")
            backend.set_lora_strengths({Path(LORA_FILE).stem: float(strength)})
            predicted = backend.velocity(expected["dit.noisy"], torch.tensor([float(timestep) / TIMESTEPS]), condition)
            yield Check(name, _difference(predicted, expected[name]), VELOCITY_BOUND)


# -- rollouts ----------------------------------------------------------------------------------------------------------


class _KitBackend:
    """The kit's model with its given text and image embeddings; notes what each clip was conditioned on."""

    def __init__(self, backend: WanBackend, story: _Story, variant: str) -> None:
        self.backend, self.story, self.expected, self.variant = backend, story, story.expected, variant
        self.geometry, self.info = backend.geometry, backend.info
        self.encode_video, self.decode = backend.encode_video, backend.decode
        self.set_lora_strengths = backend.set_lora_strengths
        self.clip = -1  # set when the clip's plan is drawn
        self.conditions: dict[int, ClipCondition] = {}
        self.images: dict[int, Tensor] = {}

    def rollout(self, clips: Iterable[int], memory: ClipMemory, policy: ConditioningPolicy) -> Iterator[Clip]:
        """The project's own rollout over the clips of these indices."""
        uncached = Encodings(self, capacity=0)  # the kit's embeddings belong to clips, not to contents
        return rollout(self._plans(clips, policy), memory, backend=self, policy=policy, encodings=uncached)

    def _plans(self, clips: Iterable[int], policy: ConditioningPolicy) -> Iterator[ClipPlan]:
        for index in clips:
            self.clip = index
            yield self.story.plan(index, policy)

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """The kit's embedding of each prompt, padded."""
        given = [self.expected[f"text.{self.story.texts.index(prompt)}"] for prompt in prompts]
        return torch.cat([F.pad(text.float(), (0, 0, 0, TEXT_TOKENS - text.shape[1])) for text in given])

    def encode_image(self, images: Tensor) -> Tensor:
        """The kit's feature for the clip under way, whatever the image; the image is noted."""
        self.images[self.clip] = images
        return self.expected[f"{self.variant}.{self.clip}.image_factor"] @ self.expected["image_basis"]

    def velocity(self, noisy: Tensor, sigma: Tensor, condition: ClipCondition) -> Tensor:
        """The model's; the first condition of each clip is noted."""
        self.conditions.setdefault(self.clip, condition)
        return self.backend.velocity(noisy, sigma, condition)


def policy_of(variant: str, facts: dict[str, Any]) -> ConditioningPolicy:
    """The preset that a variant of the kit stands for.

    Raises:
        UserError: where the preset and the kit's ``facts`` about it differ.
    """
    base, changes = DERIVED.get(variant, (variant, {}))
    policy = replace(get_policy(base), **changes)
    ours = {
        "motion_frames": policy.motion_frames,
        "ref_pad_num": policy.reference_frames,
        "mask_all_motion": policy.known == "motion",
    }
    if ours != facts:
        raise UserError(f"preset {policy.name} is {ours}, the published variant {variant} is {facts}")
    return policy


@dataclass(frozen=True)
class _Story:
    """What the kit's rollouts have in common."""

    expected: dict[str, Tensor]
    texts: list[str]  # prompts, then the negative prompt
    settings: dict[str, Any]
    reference: Tensor

    def plan(self, index: int, policy: ConditioningPolicy) -> ClipPlan:
        """The plan of clip ``index``."""
        return ClipPlan(
            index=index,
            prompt=self.texts[index],
            negative_prompt=self.texts[-1],
            seed=policy.seed_stride * index,
            num_frames=self.settings["num_frames"],
            height=self.settings["height"],
            width=self.settings["width"],
            steps=self.settings["num_inference_steps"],
            guidance=self.settings["guidance_scale"],
            shift=self.settings["flow_shift"],
        )


def _rollouts(backend: WanBackend, folder: Path, expected: dict[str, Tensor]) -> Iterator[Check]:
    listed = read_json(folder / "expected.json")
    story = _Story(
        expected,
        [*listed["prompts"], listed["negative_prompt"]],
        read_json(folder / "config.json"),
        _image(folder / "reference.png"),
    )
    for variant, facts in listed["variants"].items():
        policy = policy_of(variant, facts)
        yield from _rollout(backend, story, variant, policy)


def _rollout(backend: WanBackend, story: _Story, variant: str, policy: ConditioningPolicy) -> Iterator[Check]:
    """Each clip, continuing from the published clip before it; then the last clip of one unbroken rollout."""
    memory = own_memory = ClipMemory.start(story.reference)
    for index in range(story.settings["clips"]):
        name = f"{variant}.{index}"
        wanted = {key: story.expected[f"{name}.{key}"] for key in ("condition", "latents", "frames")}
        kit = _KitBackend(backend, story, variant)
        clip = next(kit.rollout([index], memory, policy))
        condition = kit.conditions[index]
        built = torch.cat([condition.known, condition.values], dim=1)
        yield Check(f"{name}.condition", _difference(built, wanted["condition"]), CONDITION_BOUND)
        # What the published code shows to CLIP: the first of the motion frames.
        seen = ((kit.images[index][0].permute(1, 2, 0) + 1) * 127.5).round()
        yield _frames(f"{name}.clip_image", seen, memory.frames[0, 0])
        yield Check(f"{name}.latents", _difference(clip.latents, wanted["latents"]), LATENT_BOUND)
        yield _frames(f"{name}.frames", clip.frames, wanted["frames"])
        memory = memory.update(wanted["frames"][None], wanted["latents"], policy)
        if index == 0:
            own_memory = clip.memory
    *_, last = _KitBackend(backend, story, variant).rollout(range(1, index + 1), own_memory, policy)
    yield _frames(f"{variant}.unbroken.frames", last.frames, wanted["frames"], CHAIN_SHARE)


def _frames(name: str, found: Tensor, wanted: Tensor, share_bound: float = FRAME_SHARE) -> Check:
    share = (found.float() != wanted.float()).float().mean().item()
    return Check(name, _difference(found, wanted), FRAME_BOUND, share, share_bound)


def _image(path: Path) -> Tensor:
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


# -- the command -------------------------------------------------------------------------------------------------------


def table(checks: Sequence[Check]) -> str:
    """Lines of text: what was compared, the largest difference, the bound, the verdict."""
    width = max(len(check.name) for check in checks)
    lines = [f"{'compared':{width}}  {'largest':>9}  {'bound':>7}  {'differ':>8}  verdict"]
    for check in checks:
        share = "" if check.share is None else f"{check.share:.4%}"
        verdict = "ok" if check.passed else "FAILED"
        lines.append(f"{check.name:{width}}  {check.largest:9.2e}  {check.bound:7.0e}  {share:>8}  {verdict}")
    failed = sum(not check.passed for check in checks)
    lines.append(f"{len(checks)} comparisons, {failed} failed")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and print; 0 = all within bounds, 1 = not, 2 = no kit."""
    parser = argparse.ArgumentParser(prog="python -m svi.parity", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of a parity kit")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(argv)
    try:
        checks = list(compare(options.folder))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    rows = [{**vars(check), "passed": check.passed} for check in checks]
    sys.stdout.write((json.dumps(rows, indent=1) if options.json else table(checks)) + "\n")
    return 0 if all(check.passed for check in checks) else 1


if __name__ == "__main__":
    raise SystemExit(main())
