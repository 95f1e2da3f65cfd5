"""The things of a known world, found in frames by their colours: are they there, whole, in colour and shape, do they move.

Truth is looked at with the same eyes and is the measuring rule, so that a true clip scores 1 everywhere. Knows worlds
and frames ``(T, H, W, 3)``; nothing about how the frames were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from svi.pocket import palette as pal
from svi.pocket._draw import coverage, sdf
from svi.pocket.drift.measures import LAG, rms
from svi.pocket.world import ObjectState, World

PRESENT = 1 / 3  # of the true area, as in `control.judge_control`
WHOLE = (0.6, 1.6)  # of the true area
SHAPE = 0.7  # of the overlap with its silhouette that the true thing reaches
STRAY = 0.4  # of the true area, in pieces that lie apart
FOREGROUND = 110  # sum of absolute differences over channels, as in `control.observe`
LOOKS = 5  # frames of a clip whose areas and shapes are compared


@dataclass(frozen=True)
class Blob:
    """A thing in each frame: centre ``(T, 2)`` px (NaN = not there), area and stray ``(T,)`` px, rgb ``(T, 3)``, mask."""

    centre: np.ndarray
    area: np.ndarray
    stray: np.ndarray
    rgb: np.ndarray
    mask: np.ndarray


def visible(thing: ObjectState) -> bool:
    """Whether a thing is wholly there."""
    return thing.visible > 0.99


def tint(light: float) -> np.ndarray:
    """What light in [0, 1] multiplies colours with, ``(3,)``."""
    night = np.array(pal.NIGHT)
    return night + light * (1 - night)


def thing_colours(thing: ObjectState, light: float) -> np.ndarray:
    """Colours ``(P, 3)`` in grey levels that a thing shows: its own, and the way to its second tone if it has one."""
    first = np.array(thing.rgb, dtype=np.float32)
    if thing.texture == "plain":
        return (first * tint(light))[None].astype(np.float32)
    second = np.array(pal.second_tone(thing.colour_name), dtype=np.float32)
    mixes = np.linspace(0, 1, 5, dtype=np.float32)[:, None]
    return ((first + mixes * (second - first)) * tint(light)).astype(np.float32)


def ground_colours(world: World, light: float) -> np.ndarray:
    """Colours ``(P, 3)`` in grey levels that a world's landscape can show anywhere: mixtures of its three, shaded."""
    a, b, c = (np.array(pal.BACKGROUNDS[name], dtype=np.float32) for name in world.scene.colours)
    ground = a + np.linspace(0, 1, 5, dtype=np.float32)[:, None] * (b - a)
    parts = [ground]
    if world.scene.blobs:
        parts += [ground + mix * (c - ground) for mix in (0.33, 0.67, 1.0)]
    mixed = np.concatenate(parts)
    return np.concatenate([mixed * shade * tint(light) for shade in (0.92, 1.0, 1.08)]).astype(np.float32)


def nearest_square(pixels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Squared distance ``(...)`` of float pixels ``(..., 3)`` to the nearest of ``colours``: one each, or ``(P, 3)`` for all."""
    if colours.shape == pixels.shape:
        return np.square(pixels - colours).sum(-1)
    flat = pixels.reshape(-1, 3)
    square = (flat**2).sum(1)[:, None] + (colours**2).sum(1) - 2 * flat @ colours.T
    return np.maximum(square.min(1), 0).reshape(pixels.shape[:-1])


def find(frames: np.ndarray, ground: np.ndarray, colours: Sequence[np.ndarray], reach: Sequence[float]) -> list[Blob]:
    """Find each thing: pixels nearer to its colours than to any other thing's and to the ground's, in one heap.

    Args:
        frames: float32 ``(T, H, W, 3)`` in grey levels.
        ground: the background behind each pixel, same shape; or colours ``(P, 3)`` that it may have anywhere.
        colours: ``(P, 3)`` per thing.
        reach: farthest that a pixel of the thing lies from its middle, in px.
    """
    apart = np.stack([nearest_square(frames, each) for each in (ground, *colours)])
    owner = apart.argmin(0)
    return [_heap(frames, owner == index + 1, radius) for index, radius in enumerate(reach)]


def _heap(frames: np.ndarray, owned: np.ndarray, reach: float) -> Blob:
    """The largest heap of owned pixels: around their median, anew without those out of reach (``control.observe``)."""
    count = len(frames)
    centre, rgb = np.full((count, 2), np.nan), np.full((count, 3), np.nan)
    area, stray, mask = np.zeros(count), np.zeros(count), np.zeros(owned.shape, dtype=bool)
    for t in range(count):
        y, x = np.nonzero(owned[t])
        total = len(x)
        for _ in range(3):
            if len(x):
                near = np.hypot(x - np.median(x), y - np.median(y)) <= reach
                x, y = x[near], y[near]
        if len(x):
            centre[t], area[t], rgb[t] = (x.mean(), y.mean()), len(x), frames[t, y, x].mean(0)
            mask[t, y, x] = True
        stray[t] = total - len(x)
    return Blob(centre, area, stray, rgb, mask)


def silhouette_overlap(mask: np.ndarray, centre: np.ndarray, shape: str, radius: float) -> float:
    """Intersection over union in [0, 1] of a mask ``(H, W)`` with the true shape, laid with its middle on ``centre``."""
    if np.isnan(centre).any():
        return 0.0
    y, x = (np.arange(side, dtype=np.float32) for side in mask.shape)
    fine = np.arange(-2 * radius, 2 * radius, 0.5, dtype=np.float32)
    inside = coverage(sdf(shape, fine[None, :], fine[:, None], radius)) > 0.5
    own = np.array([(inside * fine[None, :]).sum(), (inside * fine[:, None]).sum()]) / inside.sum()
    at = (centre - own).astype(np.float32)
    true = coverage(sdf(shape, x[None, :] - at[0], y[:, None] - at[1], radius)) > 0.5
    return float((mask & true).sum() / max((mask | true).sum(), 1))


def find_things(frames: np.ndarray, ground: np.ndarray, things: Sequence[ObjectState], light: float) -> list[Blob]:
    """:func:`find` for things of a world by light in [0, 1]."""
    colours = [thing_colours(thing, light) for thing in things]
    return find(frames, ground, colours, [1.5 * thing.radius + 1 for thing in things])


def compare_things(
    things: Sequence[ObjectState], seen: Sequence[Blob], right: Sequence[Blob], paths: Sequence[np.ndarray]
) -> dict[str, float]:
    """How things fared in a clip, averaged over them; all NaN of none.

    Args:
        things: as they truly are.
        seen, right: each found in the clip and in truth.
        paths: true centres ``(T, 2)`` of each.

    Returns:
        ``area`` as a multiple of the true one; ``present`` and ``whole``, shares in [0, 1] of the things; ``shape``, overlap
        with the silhouette relative to truth's; ``thing_colour``, RMS error of the mean colour, 1 = 255 grey levels;
        ``travel``, way gone as a multiple of the true way (NaN where nothing moves). Thresholds: the constants above.
    """
    rows = [_one_thing(*both) for both in zip(things, seen, right, strict=True)]
    names = ("area", "present", "whole", "shape", "thing_colour")
    result = {name: _mean([row[name] for row in rows]) for name in names}
    return {**result, "travel": _travel(seen, paths)}


def _one_thing(thing: ObjectState, seen: Blob, right: Blob) -> dict[str, float]:
    looks = np.unique(np.linspace(len(seen.area) // 2, len(seen.area) - 1, LOOKS).round().astype(int))
    wanted = max(float(np.median(right.area[looks])), 1.0)
    area = float(np.median(seen.area[looks])) / wanted
    shapes = [
        float(np.median([silhouette_overlap(blob.mask[t], blob.centre[t], thing.shape, thing.radius) for t in looks]))
        for blob in (seen, right)
    ]
    shape = min(1.0, shapes[0] / max(shapes[1], 0.1))
    stray = float(np.median(seen.stray[looks]) - np.median(right.stray[looks])) / wanted
    there = area >= PRESENT
    error = np.nanmean(seen.rgb[looks], 0) - np.nanmean(right.rgb[looks], 0) if there else np.array([np.nan])
    return {
        "area": area,
        "present": float(there),
        "whole": float(WHOLE[0] <= area <= WHOLE[1] and shape >= SHAPE and stray <= STRAY),
        "shape": shape,
        "thing_colour": rms(error) / 255,
    }


def true_paths(world: World, times: np.ndarray, last: Sequence[ObjectState]) -> list[np.ndarray]:
    """Centres ``(T, 2)`` px at ``times`` of those of the things ``last`` (as they are at the end) that are visible."""
    states = [world.state(float(time)).objects for time in times]
    return [
        np.array([(objects[index].x, objects[index].y) for objects in states])
        for index, thing in enumerate(last)
        if visible(thing)
    ]


def _travel(seen: Sequence[Blob], paths: Sequence[np.ndarray]) -> float:
    """Way gone in steps of a quarter of a second; a step at whose ends a thing is not there counts nothing."""
    gone = sum(float(np.nansum(_way(blob.centre))) for blob in seen)
    wanted = sum(float(_way(path).sum()) for path in paths)
    return gone / wanted if wanted >= 1 else float("nan")


def _way(path: np.ndarray) -> np.ndarray:
    return np.hypot(*np.diff(path[:: min(LAG, len(path) - 1)], axis=0).T)


def compare_person(
    frames: np.ndarray, truth: np.ndarray, background: np.ndarray, person: np.ndarray
) -> dict[str, float]:
    """Whether a face or a dancer is there.

    ``area``: of what differs from the background where the person truly is (``person`` ``(T, H, W)`` bool), as a
    multiple of truth's; ``present`` and ``thing_colour`` as for things.
    """
    seen, right = ((np.abs(each - background).sum(-1) > FOREGROUND) & person for each in (frames, truth))
    area = float(seen.sum() / max(right.sum(), 1))
    there = area >= PRESENT
    error = frames[seen].mean(0) - truth[right].mean(0) if there else np.array([np.nan])
    return {"area": area, "present": float(there), "thing_colour": rms(error) / 255}


def thing_mask(blobs: Sequence[Blob]) -> np.ndarray:
    """``(T, H, W)`` bool: where any thing was found, with 2 px around it, as in ``World.background_mask``."""
    mask = np.any([blob.mask for blob in blobs], axis=0)
    for axis in (1, 2):
        mask = np.any([_shifted(mask, step, axis) for step in range(-2, 3)], axis=0)
    return mask


def _shifted(mask: np.ndarray, step: int, axis: int) -> np.ndarray:
    out = np.zeros_like(mask)
    source, target = [slice(None)] * 3, [slice(None)] * 3
    source[axis] = slice(max(0, -step), mask.shape[axis] - max(0, step))
    target[axis] = slice(max(0, step), mask.shape[axis] - max(0, -step))
    out[tuple(target)] = mask[tuple(source)]
    return out


def _mean(values: Sequence[float]) -> float:
    good = [value for value in values if not np.isnan(value)]
    return sum(good) / len(good) if good else float("nan")
