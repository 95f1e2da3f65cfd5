"""Clip after clip, for ever: the loop that the whole project hangs on.

State is explicit: a clip depends on its plan and on the memory of the clip before it, and carries the memory for the
next. Knows nothing about storyboards, files or how frames are shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from svi.backends.base import Backend
from svi.backends.experts import HasExperts
from svi.conditioning.build import build
from svi.conditioning.encodings import Encodings
from svi.conditioning.memory import ClipMemory
from svi.conditioning.policy import ConditioningPolicy
from svi.generation.clip import Clip, ClipPlan
from svi.generation.sampler import OnStep, clip_noise, denoise
from svi.guidance import Guidance
from svi.schedule import shifted_sigmas

ShouldStop = Callable[[], bool]
PER_VIDEO = 16  # encodings that are remembered


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
    groups = ((plan,) for plan in plans)
    for (clip,) in rollout_batch(
        groups,
        memory,
        backend=backend,
        policy=policy,
        encodings=encodings,
        on_step=on_step,
        should_stop=should_stop,
    ):
        yield clip


def rollout_batch(
    plans: Iterable[Sequence[ClipPlan]],
    memory: ClipMemory,
    *,
    backend: Backend,
    policy: ConditioningPolicy,
    encodings: Encodings | None = None,
    on_step: OnStep | None = None,
    should_stop: ShouldStop | None = None,
) -> Iterator[list[Clip]]:
    """Several videos side by side, as :func:`rollout` makes one: what validation and experiments need many of.

    Args:
        plans: for each clip one plan per video; they may differ in prompt and seed only.
        memory: of all videos, ``(B, ...)``.

    Yields:
        The next clip of every video. Their bytes are those of lone rollouts up to the rounding of larger matrix products.
    """
    cache = Encodings(backend, PER_VIDEO * memory.reference.shape[0]) if encodings is None else encodings
    if isinstance(backend, HasExperts):
        backend.set_expert_boundary(policy.expert_boundary)
    strengths: dict[str, float] | None = None
    pending = iter(plans)
    while True:
        _check_stop(should_stop)
        try:
            group = next(pending)
        except StopIteration:
            return
        if strengths != group[0].loras:
            backend.set_lora_strengths(group[0].loras)
            strengths = dict(group[0].loras)
        clips = make_clips(
            group, memory, backend=backend, policy=policy, encodings=cache, on_step=_stoppable(on_step, should_stop)
        )
        memory = ClipMemory.together([clip.memory for clip in clips])
        yield clips


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
    (clip,) = make_clips([plan], memory, backend=backend, policy=policy, encodings=encodings, on_step=on_step)
    return clip


def make_clips(
    plans: Sequence[ClipPlan],
    memory: ClipMemory,
    *,
    backend: Backend,
    policy: ConditioningPolicy,
    encodings: Encodings,
    on_step: OnStep | None = None,
) -> list[Clip]:
    """The next clip of each video in ``memory``. Arguments as in :func:`rollout_batch`; ``timing`` is a clip's share."""
    overlap = policy.overlap if memory.clip_index else 0
    _check(plans, memory, overlap)
    plan = plans[0]
    begun = time.perf_counter()
    guidance = Guidance(text=plan.guidance, drive=policy.drive_guidance, boundary=policy.expert_boundary)
    text = encodings.text([each.prompt for each in plans])
    negative = encodings.text([each.negative_prompt for each in plans]) if guidance.needs_negative else None
    condition = build(
        policy,
        memory,
        text,
        encodings=encodings,
        num_frames=plan.num_frames,
        geometry=backend.geometry,
    )
    shape = (1, *condition.latent_shape[1:])
    conditioned = time.perf_counter()
    latents = denoise(
        backend.velocity,
        condition,
        negative,
        noise=torch.cat([clip_noise(each.seed, shape) for each in plans]),
        sigmas=shifted_sigmas(plan.steps, plan.shift),
        guidance=guidance,
        solver=plan.solver,
        on_step=on_step,
        evaluate=getattr(backend, "evaluate", None),
    )
    denoised = time.perf_counter()
    with torch.inference_mode():
        parts = [[part.cpu() for part in backend.decode(video)] for video in latents.split(1)]
    frames = [torch.cat(each) for each in parts]  # outside inference mode: ordinary tensors
    decoded = time.perf_counter()
    spent = {"condition_s": conditioned - begun, "denoise_s": denoised - conditioned, "decode_s": decoded - denoised}
    timing = {stage: seconds / len(plans) for stage, seconds in spent.items()}
    made = zip(plans, latents.cpu().split(1), frames, memory.apart(), strict=True)
    return [
        Clip(
            plan=each,
            latents=end,
            frames=video,
            overlap=overlap,
            memory=before.update(video[None], end, policy),
            timing=timing,
        )
        for each, end, video, before in made
    ]


def _check(plans: Sequence[ClipPlan], memory: ClipMemory, overlap: int) -> None:
    batch, height, width, _ = memory.reference.shape
    if batch != len(plans):
        raise ValueError(f"{len(plans)} clip(s) are planned, but the memory holds {batch} video(s)")
    for plan in plans:
        if (plan.height, plan.width) != (height, width):
            raise ValueError(
                f"clip {plan.index} is planned at {plan.width}x{plan.height}, but the reference image is {width}x{height}"
            )
        if overlap >= plan.num_frames:
            raise ValueError(
                f"clip {plan.index} has {plan.num_frames} frames, and all of them overlap the clip before it"
            )
        if replace(plan, prompt="", negative_prompt="", seed=0) != replace(
            plans[0], prompt="", negative_prompt="", seed=0
        ):
            raise ValueError("clips that are made together may differ in prompt and seed only")


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
