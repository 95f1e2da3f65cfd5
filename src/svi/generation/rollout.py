"""Clip after clip, for ever: the loop that the whole project hangs on.

State is explicit: a clip depends on its plan and on the memory of the clip before it, and carries the memory for the
next. Knows nothing about storyboards, files or how frames are shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import torch

from svi.backends.base import Backend
from svi.conditioning.build import build
from svi.conditioning.encodings import Encodings
from svi.conditioning.memory import ClipMemory
from svi.conditioning.policy import ConditioningPolicy
from svi.generation.clip import Clip, ClipPlan
from svi.generation.sampler import OnStep, clip_noise, denoise
from svi.guidance import Guidance
from svi.schedule import shifted_sigmas

ShouldStop = Callable[[], bool]


class Stopped(Exception):
    """The rollout was asked to end, between two steps or two clips. The clip under way is lost, nothing else."""


def rollout(
    plans: Iterable[ClipPlan],
    memory: ClipMemory,
    *,
    backend: Backend,
    policy: ConditioningPolicy,
    encodings: Encodings | None = None,
    on_step: OnStep | None = None,
    should_stop: ShouldStop | None = None,
) -> Iterator[Clip]:
    """Make the clips of ``plans``, each continuing the one before.

    A plan is pulled only when the clip before it has been taken, so ``plans`` may be endless and may change while
    the rollout runs. The bytes of a clip depend on its plan, ``memory`` and the model only: a rollout that starts
    from a saved memory goes on as if it had never stopped.

    Args:
        plans: one per clip.
        memory: ``ClipMemory.start(image)``, or the memory of an earlier clip; batch 1.
        backend: the model.
        policy: how clips hand over.
        encodings: cache to share with other rollouts of the same backend; made when absent.
        on_step: called as ``(step, steps)`` after each denoising step.
        should_stop: asked before each clip and between steps.

    Yields:
        Clips with the memory after them.

    Raises:
        Stopped: when ``should_stop`` says so. A clip whose last step is done is still decoded and yielded.
        ValueError: for a plan that does not fit the memory, the policy or the model.
    """
    cache = Encodings(backend) if encodings is None else encodings
    strengths: dict[str, float] | None = None
    pending = iter(plans)
    while True:
        _check_stop(should_stop)
        try:
            plan = next(pending)
        except StopIteration:
            return
        if strengths != plan.loras:
            backend.set_lora_strengths(plan.loras)
            strengths = dict(plan.loras)
        clip = make_clip(
            plan, memory, backend=backend, policy=policy, encodings=cache, on_step=_stoppable(on_step, should_stop)
        )
        memory = clip.memory
        yield clip


def make_clip(
    plan: ClipPlan,
    memory: ClipMemory,
    *,
    backend: Backend,
    policy: ConditioningPolicy,
    encodings: Encodings,
    on_step: OnStep | None = None,
) -> Clip:
    """One clip, given what came before it. Arguments as in :func:`rollout`."""
    overlap = policy.overlap if memory.clip_index else 0
    _check(plan, memory, overlap)
    begun = time.perf_counter()
    text = encodings.text([plan.prompt])
    guidance = Guidance(text=plan.guidance, drive=policy.drive_guidance, boundary=policy.expert_boundary)
    negative = encodings.text([plan.negative_prompt]) if guidance.needs_negative else None
    condition = build(
        policy,
        memory,
        text,
        encodings=encodings,
        num_frames=plan.num_frames,
        geometry=backend.geometry,
    )
    conditioned = time.perf_counter()
    latents = denoise(
        backend.velocity,
        condition,
        negative,
        noise=clip_noise(plan.seed, condition.latent_shape),
        sigmas=shifted_sigmas(plan.steps, plan.shift),
        guidance=guidance,
        solver=plan.solver,
        on_step=on_step,
    )
    denoised = time.perf_counter()
    with torch.inference_mode():
        parts = [part.cpu() for part in backend.decode(latents)]
    frames = torch.cat(parts)
    decoded = time.perf_counter()
    latents = latents.cpu()
    return Clip(
        plan=plan,
        latents=latents,
        frames=frames,
        overlap=overlap,
        memory=memory.update(frames[None], latents, policy),
        timing={
            "condition_s": conditioned - begun,
            "denoise_s": denoised - conditioned,
            "decode_s": decoded - denoised,
        },
    )


def _check(plan: ClipPlan, memory: ClipMemory, overlap: int) -> None:
    batch, height, width, _ = memory.reference.shape
    if batch != 1:
        raise ValueError(f"a rollout makes one video: the memory holds {batch}")
    if (plan.height, plan.width) != (height, width):
        raise ValueError(
            f"clip {plan.index} is planned at {plan.width}x{plan.height}, but the reference image is {width}x{height}"
        )
    if overlap >= plan.num_frames:
        raise ValueError(f"clip {plan.index} has {plan.num_frames} frames, and all of them overlap the clip before it")


def _check_stop(should_stop: ShouldStop | None) -> None:
    if should_stop is not None and should_stop():
        raise Stopped


def _stoppable(on_step: OnStep | None, should_stop: ShouldStop | None) -> OnStep:
    """``on_step``, then a look at ``should_stop``, except after the last step: that clip is as good as made."""

    def report(step: int, steps: int) -> None:
        if on_step is not None:
            on_step(step, steps)
        if step < steps:
            _check_stop(should_stop)

    return report
