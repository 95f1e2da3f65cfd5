"""New storyboards from old ones: other prompts from a clip on, or at one clip. Pure functions."""

from __future__ import annotations

from typing import Any

from svi.errors import UserError
from svi.generation.storyboard import Beat, Storyboard, validated


def until(storyboard: Storyboard, clips: int) -> list[dict[str, Any]]:
    """The scenes, as data, that drive exactly the first ``clips`` clips; a last beat that is too short is lengthened."""
    scenes: list[dict[str, Any]] = []
    left = clips
    for scene in storyboard.scenes:
        beats: list[dict[str, Any]] = []
        for beat in scene.beats:
            taken = min(beat.repeat, left)
            if taken:
                beats.append(_data(beat, repeat=taken))
            left -= taken
        if beats:
            scenes.append({"name": scene.name, "beats": beats})
    if left and scenes:
        scenes[-1]["beats"][-1]["repeat"] += left
    return scenes


def followed_by(storyboard: Storyboard, clip: int, more: Storyboard) -> Storyboard:
    """The same up to ``clip`` (not including it), then the scenes of ``more``.

    Raises:
        UserError: if ``more`` has a prefix of its own, which would not reach the prompts before it.
    """
    if more.prefix and more.prefix != storyboard.prefix:
        raise UserError("the new prompts have another prefix than the run: write it into the prompts instead")
    scenes = [scene.model_dump() for scene in more.scenes]
    return _with_scenes(storyboard.model_copy(update={"clips": None}), [*until(storyboard, clip), *scenes])


def with_prompt(storyboard: Storyboard, clip: int, prompt: str, *, clips: int | None) -> Storyboard:
    """The same, but for the prompt of one clip; the beat around it is split. Seeds and settings stay as they were.

    ``clips`` is the length of the run (None = endless): clips after the last beat repeat it, and go on to do so.
    """
    found = storyboard.at(clip)
    last = found.number == sum(len(scene.beats) for scene in storyboard.scenes) - 1
    repeats = last and (clips is None or clip + 1 < clips)
    scenes: list[dict[str, Any]] = []
    number = 0
    for scene in storyboard.scenes:
        beats: list[dict[str, Any]] = []
        for beat in scene.beats:
            beats += _split(beat, found.offset, prompt, repeats) if number == found.number else [_data(beat)]
            number += 1
        scenes.append({"name": scene.name, "beats": beats})
    return _with_scenes(storyboard, scenes)


def _split(beat: Beat, offset: int, prompt: str, repeats: bool) -> list[dict[str, Any]]:
    """``beat`` in up to three, with another prompt for its clip ``offset``; without a seed of its own, seeds stay."""
    rest = max(beat.repeat - offset - 1, int(repeats))
    if beat.seed is not None and (offset or rest):
        raise UserError(
            "this clip's beat sets its own seed for several clips: edit storyboard.yaml by hand to change one of them"
        )
    parts = []
    if offset:
        parts.append(_data(beat, repeat=offset))
    parts.append(_data(beat, repeat=1, prompt=prompt))
    if rest:
        parts.append(_data(beat, repeat=rest))
    return parts


def _data(beat: Beat, **changes: Any) -> dict[str, Any]:
    return {**beat.model_dump(), **changes}


def _with_scenes(storyboard: Storyboard, scenes: list[dict[str, Any]]) -> Storyboard:
    return validated({**storyboard.model_dump(), "scenes": scenes}, "storyboard")
