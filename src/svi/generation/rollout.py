"""Clip after clip, for ever: the loop that the whole project hangs on.

State is explicit: a clip depends on its plan and on the memory of the clip made before it, and carries the memory for the
next. That order is the order of the video; only inverted hand-off begins at its end. Knows nothing about storyboards, files
or how frames are shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from svi.backends.base import Backend
from svi.backends.experts import HasExperts
from svi.condition import ClipCondition
from svi.conditioning.build import build, ending
from svi.conditioning.encodings import Encodings
from svi.conditioning.memory import ClipMemory
from svi.conditioning.policy import ConditioningPolicy
from svi.errors import UserError
from svi.generation.clip import Clip, ClipPlan
from svi.generation.sampler import EvaluatesBranches, OnStep, clip_noise, denoise
from svi.geometry import Geometry
from svi.guidance import Guidance
from svi.schedule import shifted_sigmas

ShouldStop = Callable[[], bool]
ItemT = TypeVar("ItemT")
PER_VIDEO = 16  # encodings that are remembered
HISTORY_SEED = 2**60  # far above any clip's seed: noise on what is carried over is not the noise that a clip is made of


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
        UserError: for a policy that begins at the end of the video.
        ValueError: for a plan that does not fit the memory, the policy or the model.
    """
    if policy.hand_off == "inverted":
        raise UserError(
            f"preset {policy.name} makes a video from its end, whose place must be known: svi bench generate and svi drift can"
        )
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
        plans: for each clip one plan per video; they may differ in prompt and seed only. With inverted hand-off the last clip of
            the video first (:func:`as_made`), down to index 0.
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


def as_made(clips: Sequence[ItemT], policy: ConditioningPolicy) -> Sequence[ItemT]:
    """Clips, or what stands for them, in the order in which they are made, from their order in the video; and back."""
    return clips[::-1] if policy.hand_off == "inverted" else clips


def as_seen(
    plans: Sequence[Sequence[ClipPlan]], memory: ClipMemory, *, backend: Backend, policy: ConditioningPolicy
) -> Iterator[list[Tensor]]:
    """The new frames ``(t, H, W, 3)`` uint8 of each clip of each video, in their order in the video.

    Streams where clips are made in that order; with inverted hand-off all frames are held until the first clip is made.
    Arguments as in :func:`rollout_batch`, the plans in the order of the video.
    """
    made = rollout_batch(as_made(plans, policy), memory, backend=backend, policy=policy)
    frames = ([clip.new_frames for clip in clips] for clips in made)
    yield from as_made(list(frames), policy) if policy.hand_off == "inverted" else frames


def shared_frames(policy: ConditioningPolicy, index: int, *, begun: bool, geometry: Geometry) -> tuple[int, int]:
    """How many frames at the front and at the back of a clip are not its own.

    Args:
        index: place of the clip in the video.
        begun: whether another clip was made before it.
    """
    if policy.hand_off != "inverted":
        return (policy.overlap if begun else 0), 0
    back = policy.motion_latents * geometry.temporal_scale
    return (policy.overlap - back if index else 0), (back if begun else 0)


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
    plan, geometry = plans[0], backend.geometry
    front, back = shared_frames(policy, plan.index, begun=memory.clip_index > 0, geometry=geometry)
    _check(plans, memory, front + back)
    begun = time.perf_counter()
    guidance = Guidance(
        text=plan.guidance,
        drive=policy.drive_guidance,
        boundary=policy.expert_boundary,
        history=policy.history_guidance,
    )
    condition, without_history = _conditions(plans, memory, policy, guidance, encodings, geometry)
    negative = encodings.text([each.negative_prompt for each in plans]) if guidance.needs_negative else None
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
        evaluate=backend.evaluate if isinstance(backend, EvaluatesBranches) else None,
        without_history=without_history,
        ending=ending(policy, memory),
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
            overlap=front,
            memory=before.update(video[None], end, policy),
            timing=timing,
            overlap_end=back,
        )
        for each, end, video, before in made
    ]


def _conditions(
    plans: Sequence[ClipPlan],
    memory: ClipMemory,
    policy: ConditioningPolicy,
    guidance: Guidance,
    encodings: Encodings,
    geometry: Geometry,
) -> tuple[ClipCondition, ClipCondition | None]:
    """What the clips are conditioned on, and the same without history where guidance needs it."""
    plan, text = plans[0], encodings.text([each.prompt for each in plans])
    noise = None
    if policy.history_noise:
        shape = (1, *geometry.latent_shape(plan.num_frames, plan.height, plan.width))
        noise = torch.cat([clip_noise(HISTORY_SEED + each.seed, shape) for each in plans])
    built = partial(
        build, policy, memory, text, encodings=encodings, num_frames=plan.num_frames, geometry=geometry, noise=noise
    )
    return built(), built(history=False) if guidance.needs("without_history") else None


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
