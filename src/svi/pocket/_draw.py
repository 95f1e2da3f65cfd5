"""Drawing: signed distances, antialiased layers, landscapes and the camera's view of them.

Knows shapes and arrays, nothing about storyboards or captions. Canvases are float32 (T, 3, H, W) in
0..255; every operation is elementwise per frame, so a frame does not depend on the clip it is drawn in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

SHAPES = ("circle", "square", "triangle", "star", "diamond", "ring", "cross")
TEXTURES = ("plain", "striped", "dotted", "checked")
BACK_TEXTURES = ("gradient", "striped", "checked", "cloudy", "dotted")
Array = np.ndarray


@dataclass(frozen=True)
class Layer:
    """One paint: boxes of coverage alpha (T, h, w) whose corners are x0, y0 (T,); rgb (T, 3) or (T, 3, h, w)."""

    x0: Array
    y0: Array
    alpha: Array
    rgb: Array


def sdf(shape: str, x: Array, y: Array, r: float) -> Array:
    """Signed distance in pixels (negative inside) of a shape with half-extent r, at offsets x, y from its centre."""
    ax, ay = np.abs(x), np.abs(y)
    if shape == "circle":
        return np.sqrt(x * x + y * y) - r
    if shape == "ring":
        return np.abs(np.sqrt(x * x + y * y) - 0.72 * r) - 0.28 * r
    if shape == "square":
        return _rounded(ax - 0.9 * r, ay - 0.9 * r, 0.15 * r)
    if shape == "diamond":
        return (ax + ay - r) * np.float32(0.7071)
    if shape == "triangle":
        side = (ax * 2 - (y + r)) * np.float32(0.4472)
        return np.maximum(side, y - 0.9 * r)
    if shape == "cross":
        arm, long = 0.38 * r, 0.97 * r
        return np.minimum(np.maximum(ax - arm, ay - long), np.maximum(ax - long, ay - arm))
    return _star(ax, y, r)


def _rounded(qx: Array, qy: Array, round_: float) -> Array:
    qx, qy = qx + round_, qy + round_
    outside = np.sqrt(np.maximum(qx, 0) ** 2 + np.maximum(qy, 0) ** 2)
    return outside + np.minimum(np.maximum(qx, qy), 0) - round_


def _star(ax: Array, y: Array, r: float) -> Array:
    """A five-pointed star: the distance to the nearest edge after folding into one tenth of the plane."""
    angle = np.arctan2(ax, -y)
    step = np.float32(2 * np.pi / 5)
    angle = np.abs(angle - np.round(angle / step) * step)
    radius = np.sqrt(ax * ax + y * y)
    px, py = radius * np.cos(angle), radius * np.sin(angle)
    inner = 0.5 * r
    qx, qy = inner * np.cos(np.pi / 5), inner * np.sin(np.pi / 5)
    nx, ny = qy, r - qx
    norm = np.float32((nx * nx + ny * ny) ** 0.5)
    return ((px - np.float32(r)) * np.float32(nx) + py * np.float32(ny)) / norm


def capsule(x: Array, y: Array, dx: Array, dy: Array, r: float) -> Array:
    """Distance to a thick segment from (-dx, -dy) to (dx, dy); dx, dy broadcast over pixels."""
    h = np.clip((x * dx + y * dy) / np.maximum(dx * dx + dy * dy, 1e-6), -1.0, 1.0)
    return np.sqrt((x - h * dx) ** 2 + (y - h * dy) ** 2) - r


def coverage(distance: Array) -> Array:
    """Coverage of a signed distance, with an edge about 1.7 px soft."""
    return np.clip(0.5 - np.float32(0.6) * distance, 0.0, 1.0).astype(np.float32, copy=False)


def boxes(cx: Array, cy: Array, half_w: float, half_h: float) -> tuple[Array, Array, Array, Array]:
    """Integer corners x0, y0 (T,) of boxes round centres and the pixel offsets (T, 1, w), (T, h, 1), float32."""
    hw, hh = int(np.ceil(half_w)) + 1, int(np.ceil(half_h)) + 1
    x0 = np.floor(cx).astype(np.int64) - hw
    y0 = np.floor(cy).astype(np.int64) - hh
    x = x0[:, None] + np.arange(2 * hw + 1) + 0.5 - cx[:, None]
    y = y0[:, None] + np.arange(2 * hh + 1) + 0.5 - cy[:, None]
    return x0, y0, x.astype(np.float32)[:, None, :], y.astype(np.float32)[:, :, None]


def pattern(texture: str, x: Array, y: Array, period: float) -> Array | None:
    """Weight (T, h, w) in [0, 1] of an object's second tone, None when plain. Soft edges, about 2 px."""
    if texture == "plain":
        return None
    k, soft = np.float32(2 * np.pi / period), np.float32(period / (2 * np.pi * 2))
    if texture == "checked":
        k, soft = k * np.float32(0.8), soft * np.float32(1.25)
        wave = np.sin(x * k) * np.sin(y * k) * soft * 1.5
    elif texture == "striped":
        wave = np.sin((x + y) * np.float32(0.7071) * k) * soft
    else:
        wave = (np.cos(x * k) + np.cos(y * k) - 1.0) * soft
    return np.clip(0.5 + wave, 0.0, 1.0)


def solid(fn: Callable[[Array, Array], Array], cx: Array, cy: Array, hw: float, hh: float, rgb: Array) -> Layer:
    """A layer of one colour per frame; fn maps pixel offsets from (cx, cy) to a signed distance."""
    x0, y0, x, y = boxes(cx, cy, hw, hh)
    colour = np.broadcast_to(np.asarray(rgb, np.float32), (len(cx), 3))
    return Layer(x0, y0, coverage(fn(x, y)), colour)


def composite(canvas: Array, layer: Layer, *, mask: bool = False) -> None:
    """Paint a layer on a canvas (T, C, H, W) in place; mask=True paints coverage 1 instead of the colour."""
    height, width = canvas.shape[2:]
    h, w = layer.alpha.shape[1:]
    for t in range(len(canvas)):
        x, y = int(layer.x0[t]), int(layer.y0[t])
        a, b, c, d = max(y, 0), min(y + h, height), max(x, 0), min(x + w, width)
        if a >= b or c >= d:
            continue
        alpha = layer.alpha[t, a - y : b - y, c - x : d - x]
        part = canvas[t, :, a:b, c:d]
        if mask:
            colour: Array | float = 1.0
        elif layer.rgb.ndim == 4:
            colour = layer.rgb[t, :, a - y : b - y, c - x : d - x]
        else:
            colour = layer.rgb[t][:, None, None]
        part += alpha * (colour - part)


def _waves(rng: np.random.Generator, h: int, w: int, top: float, count: int) -> Array:
    """Tileable low-frequency noise (h, w) of about unit variance: cosines of up to `top` waves per 96 px (of 64 high)."""
    kx = np.round(rng.uniform(-1, 1, count) * (top * w / 96))
    ky = np.round(rng.uniform(-1, 1, count) * (top * w / 96 * 2 / 3))
    ky[(kx == 0) & (ky == 0)] = 1
    phase = rng.uniform(0, 2 * np.pi, count)
    fx = 2 * np.pi * np.outer((np.arange(w) + 0.5) / w, kx) + phase
    fy = 2 * np.pi * np.outer((np.arange(h) + 0.5) / h, ky)
    left = np.concatenate([np.cos(fy), np.sin(fy)], 1)
    right = np.concatenate([np.cos(fx), -np.sin(fx)], 1)
    return (left @ right.T * (2 / count) ** 0.5).astype(np.float32)


def _ground(rng: np.random.Generator, texture: str, h: int, w: int, scale: float) -> Array:
    """Weight (h, w) of the second background colour; tileable."""
    x = ((np.arange(w, dtype=np.float32) + 0.5) / w)[None, :]
    y = ((np.arange(h, dtype=np.float32) + 0.5) / h)[:, None]
    tau = np.float32(2 * np.pi)
    if texture == "gradient":
        turns = int(rng.integers(1, 3))
        wave = np.cos(tau * (x * turns + rng.uniform())) * np.float32(0.4) + np.cos(tau * (y + rng.uniform())) * 0.4
        return (0.5 + 0.62 * wave).clip(0, 1).astype(np.float32)
    if texture == "cloudy":
        return (0.5 + 0.42 * _waves(rng, h, w, 2.6 / scale, 14)).clip(0, 1)
    period = float(rng.uniform(18, 28) if texture == "dotted" else rng.uniform(14, 26)) * scale
    nx, ny = max(1, round(w / period)), max(1, round(h / period))
    soft = np.float32(period / (2 * np.pi * 2.5))
    if texture == "striped":
        kind = int(rng.integers(3))
        wave = np.sin(tau * (x * (nx if kind != 1 else 0) + y * (ny if kind != 0 else 0)))
        soft = soft * (0.7 if kind == 2 else 1.0)
    elif texture == "checked":
        wave = np.sin(tau * x * (nx // 2)) * np.sin(tau * y * (ny // 2)) * 2.0
    else:
        wave = np.cos(tau * x * nx) + np.cos(tau * y * ny) - np.float32(1.0)
    return np.broadcast_to((0.5 + wave * soft).clip(0, 1), (h, w)).astype(np.float32)


def landscape(rng: np.random.Generator, texture: str, colours: Array, size: tuple[int, int], blobs: bool) -> Array:
    """A tileable landscape (3, 2H, 3W), float32 0..255; colours (3, 3): ground, second, blobs."""
    h, w, scale = size[0] * 2, size[1] * 3, size[0] / 64
    c = colours.astype(np.float32)[:, :, None, None]
    weight = _ground(rng, texture, h, w, scale)
    out = c[0] + weight * (c[1] - c[0])
    if blobs:
        x, y = np.arange(w, dtype=np.float32) + 0.5, np.arange(h, dtype=np.float32) + 0.5
        count = 7
        cx = (np.arange(count) + rng.uniform(0, 1, count)) * (w / count)
        cy, r = rng.uniform(0, h, count), rng.uniform(12, 24, count) * scale
        for i in range(count):
            dx = np.abs(x - cx[i])
            dy = np.abs(y - cy[i])
            dx, dy = np.minimum(dx, w - dx) / r[i], np.minimum(dy, h - dy) / (0.75 * r[i])
            ix, iy = np.flatnonzero(dx < 1.3), np.flatnonzero(dy < 1.3)
            d = np.sqrt(dx[ix][None] ** 2 + dy[iy][:, None] ** 2)
            a = np.clip((1.0 - d) * r[i] / (4 * scale) + 0.5, 0, 1).astype(np.float32)
            cut = np.ix_(np.arange(3), iy, ix)
            out[cut] += a * (c[2] - out[cut])
    shade = 1 + 0.05 * _waves(rng, h, w, 1.2 / scale, 5)
    return np.clip(out * shade, 0, 255)


def padded(texture: Array) -> torch.Tensor:
    """A landscape with one wrapped texel round it, ready for `view`: (1, 3, h + 2, w + 2)."""
    return torch.from_numpy(np.pad(texture, ((0, 0), (1, 1), (1, 1)), mode="wrap").astype(np.float32))[None]


def view(texture: torch.Tensor, camera: Array, size: tuple[int, int]) -> Array:
    """What the camera (T, 3: centre x, y, zoom) sees of a padded landscape: (T, 3, H, W) float32."""
    if len(camera) > 1 and (camera == camera[0]).all():
        return np.repeat(view(texture, camera[:1], size), len(camera), axis=0)
    h, w = texture.shape[2] - 2, texture.shape[3] - 2
    x, y, zoom = (camera[:, i : i + 1] for i in range(3))
    px = np.mod(x + (np.arange(size[1]) + 0.5 - size[1] / 2) / zoom, w) + 1
    py = np.mod(y + (np.arange(size[0]) + 0.5 - size[0] / 2) / zoom, h) + 1
    grid = np.empty((len(camera), size[0], size[1], 2), np.float32)
    grid[..., 0] = (px * (2 / (w + 2)) - 1)[:, None, :]
    grid[..., 1] = (py * (2 / (h + 2)) - 1)[:, :, None]
    tex = texture.expand(len(camera), -1, -1, -1)
    out = torch.nn.functional.grid_sample(tex, torch.from_numpy(grid), mode="bilinear", align_corners=False)
    return out.numpy()
