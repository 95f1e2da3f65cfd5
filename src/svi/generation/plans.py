"""From a storyboard and a run's settings to the plan of clip k. Pure: no files, no models, no history."""

from __future__ import annotations

from collections.abc import Iterator

from svi.conditioning.policy import get_policy
from svi.generation.clip import ClipPlan
from svi.generation.manifest import RunSettings
from svi.generation.storyboard import Storyboard

RETAKE_STRIDE = (
    1_000_003  # prime, and far above 42 * k for any k a person watches: retakes never meet another clip's noise
)


def clip_plan(storyboard: Storyboard, settings: RunSettings, clip: int, *, seed: int | None = None) -> ClipPlan:
    """The plan of clip ``clip`` (from 0).

    The noise of clip k is seeded ``seed + stride * k``, as published (stride 42). A beat with a seed of its own counts
    from its own first clip. ``seed`` overrides both, for retakes.
    """
    found = storyboard.at(clip)
    beat = found.beat
    stride = get_policy(settings.preset).seed_stride
    own = settings.seed + stride * clip if beat.seed is None else beat.seed + stride * found.offset
    negative = storyboard.negative_prompt
    return ClipPlan(
        index=clip,
        prompt=storyboard.prompt(clip),
        negative_prompt=settings.negative_prompt if negative is None else negative,
        seed=own if seed is None else seed,
        num_frames=settings.num_frames,
        height=settings.height,
        width=settings.width,
        steps=settings.steps if beat.steps is None else beat.steps,
        guidance=settings.guidance if beat.guidance is None else beat.guidance,
        shift=settings.shift,
        solver=settings.solver,
        loras={**settings.loras, **beat.loras},
        beat=found.number,
        scene=found.scene,
    )


def clip_plans(
    storyboard: Storyboard, settings: RunSettings, *, start: int = 0, stop: int | None = None
) -> Iterator[ClipPlan]:
    """Plans of clips ``start``, ``start + 1`` ... up to ``stop`` (None = for ever), from a storyboard that does not change."""
    clip = start
    while stop is None or clip < stop:
        yield clip_plan(storyboard, settings, clip)
        clip += 1


def fixed_fields(storyboard: Storyboard, settings: RunSettings) -> list[str]:
    """What a storyboard asks for that a run cannot change any more: ``steps is 20 in this run, not 30``."""
    asked = {name: getattr(storyboard, name) for name in ("preset", "seed", "steps", "guidance")}
    return [
        f"{name} is {getattr(settings, name)!r} in this run, not {value!r}"
        for name, value in asked.items()
        if value is not None and value != getattr(settings, name)
    ]


def changing_loras(storyboard: Storyboard, settings: RunSettings) -> list[str]:
    """Names of loaded LoRAs whose strength is another in some beat, so that it cannot be settled once for the run."""
    beats = [beat for scene in storyboard.scenes for beat in scene.beats]
    changed = {name for beat in beats for name, value in beat.loras.items() if value != settings.loras.get(name)}
    return sorted(changed & settings.loras.keys())


def unknown_loras(storyboard: Storyboard, settings: RunSettings) -> list[str]:
    """Names of LoRAs that beats give a strength to, but that the run has not loaded."""
    named = {name for scene in storyboard.scenes for beat in scene.beats for name in beat.loras}
    return sorted(named - settings.loras.keys())
