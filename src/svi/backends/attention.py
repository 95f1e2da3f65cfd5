"""Attention implementations: which really run here, how far each is from exact, and which one to take.

An installed package proves nothing: kernels are missing for a card, were built for another torch, or compute something else.
So each candidate is run on the shapes that Wan has and compared with softmax attention in fp32. Knows diffusers' names for
implementations; nothing about models.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from svi.errors import UserError, nearest
from svi.speed import APPROXIMATE

NATIVE = "native"
# By compute capability (the newest that a card reaches counts), fastest first, as published kernels compare:
# FlashAttention 3 and cuDNN reach about 650 TFLOP/s in bf16 on Hopper, FlashAttention 2 about 380.
PREFERENCE: dict[tuple[int, int], tuple[str, ...]] = {
    (10, 0): ("_native_cudnn", "flash", "_native_flash", NATIVE),
    (9, 0): ("_flash_3", "_native_cudnn", "flash", "_native_flash", NATIVE),
    (8, 0): ("flash", "_native_flash", "_native_cudnn", NATIVE),
    (0, 0): ("_native_efficient", NATIVE),
}
ON_CPU = (NATIVE,)
# Worth a look in a report, taken only by name.
ASKED_FOR = ("sage", "xformers", "flex")
# From a hub, code that runs on the card: fetched only when asked for by name together with a download.
HUB = "_hub"
# Queries, keys and heads of what is tried: self-attention, text and image cross-attention of Wan, cut short.
TRIAL = ((1024, 1024), (1024, 512), (1024, 257))
TRIAL_HEADS, TRIAL_HEAD_DIM = 4, 128
# An exact implementation is at most this many times as far from fp32 as torch's own in the same type.
MARGIN = 1.5


@dataclass(frozen=True)
class Trial:
    """What came of trying one implementation.

    Attributes:
        name: as diffusers calls it.
        runs: whether it computed something finite.
        error: its largest relative error against fp32, over the shapes tried; NaN where it does not run.
        exact: whether that error is what rounding explains.
        why: why it does not run, or why it counts as approximate.
    """

    name: str
    runs: bool
    error: float = float("nan")
    exact: bool = False
    why: str = ""


def candidates(device: torch.device) -> tuple[str, ...]:
    """Exact implementations worth trying on a device, fastest first."""
    if device.type != "cuda":
        return ON_CPU
    capability = torch.cuda.get_device_capability(device)
    return next(names for least, names in PREFERENCE.items() if capability >= least)


def known() -> list[str]:
    """Every name that diffusers knows."""
    from diffusers.models.attention_dispatch import AttentionBackendName

    return [member.value for member in AttentionBackendName]


def check_name(name: str) -> None:
    """Raise UserError for a name that nobody knows."""
    if name not in known():
        raise UserError(f"unknown attention {name!r}: {nearest(name, [*known(), 'best'])}")


@lru_cache(maxsize=64)
def tried(name: str, device: torch.device, dtype: torch.dtype) -> Trial:
    """Run ``name`` on Wan's shapes on ``device``, once per process. Fetches nothing."""
    if name.endswith(HUB):
        return Trial(name, False, why="its kernel comes from a hub: ask for it by name, with --download")
    try:
        error, allowed = _errors(name, device, dtype)
    except Exception as reason:  # every package fails in its own way, and all mean: not here
        return Trial(name, False, why=" ".join(str(reason).split())[:160] or type(reason).__name__)
    if name.startswith(APPROXIMATE):
        return Trial(name, True, error, why="computes in 8 bits")
    exact = error <= allowed
    return Trial(name, True, error, exact, "" if exact else f"error {error:.1e}, rounding explains {allowed:.1e}")


def choose(asked: str, device: torch.device, dtype: torch.dtype, *, download: bool = False) -> tuple[str, str]:
    """The implementation to take, and why.

    Args:
        asked: ``native``, ``best``, or a name.
        download: whether a kernel may be fetched from a hub, where ``asked`` is one of those.

    Raises:
        UserError: for a name that is unknown or does not run here; what a user asks for is taken or refused.
    """
    if asked == NATIVE:
        return NATIVE, "torch's scaled_dot_product_attention: no extra package, same result on every machine of a kind"
    if asked != "best":
        check_name(asked)
        if asked.endswith(HUB) and download:
            return asked, "asked for; its kernel is fetched from a hub"
        trial = tried(asked, device, dtype)
        if not trial.runs:
            raise UserError(f"attention {asked} does not run on {device}: {trial.why}; take best or native")
        return asked, "asked for" if trial.exact else f"asked for; {trial.why or 'not exact'}"
    passed_over: list[str] = []
    for name in candidates(device):
        trial = tried(name, device, dtype)
        if trial.exact:
            reason = f"fastest exact one here, error {trial.error:.1e}"
            return name, f"{reason}; passed over: {', '.join(passed_over)}" if passed_over else reason
        passed_over.append(name)
    return NATIVE, "none of the faster ones runs here"


def attend(name: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention by implementation ``name``; all tensors ``(B, tokens, heads, width)``."""
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    result: Tensor = dispatch_attention_fn(query, key, value, backend=AttentionBackendName(name))
    return result


def relative_error(name: str, query: Tensor, key: Tensor, value: Tensor) -> float:
    """``|out - exact| / |exact|`` of ``name`` against fp32 softmax attention of the same numbers.

    Raises:
        FloatingPointError: where the output is not finite or has another shape.
    """
    exact = _exact(query, key, value)
    out = attend(name, query, key, value).float()
    if out.shape != exact.shape or not torch.isfinite(out).all():
        raise FloatingPointError("what it returns is not finite, or has another shape")
    return float((out - exact).norm() / exact.norm())


def install(transformer: Any, name: str) -> None:
    """Let the attention of ``transformer`` use ``name``.

    To be called even for the default, since an environment variable of diffusers would change it unseen.
    """
    with _quiet():
        transformer.set_attention_backend(name)


def seconds(name: str, device: torch.device, dtype: torch.dtype, *, tokens: int, heads: int = 40) -> float:
    """Median seconds of one self-attention of ``tokens`` tokens, of five after two to warm up."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, tokens, heads, TRIAL_HEAD_DIM)
    query, key, value = (torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(3))
    times = []
    for turn in range(7):
        _wait(device)
        began = time.perf_counter()
        attend(name, query, key, value)
        _wait(device)
        if turn >= 2:
            times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _errors(name: str, device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Largest error of ``name`` over the trial shapes, and what counts as rounding."""
    from diffusers.models.attention_dispatch import AttentionBackendName, _check_attention_backend_requirements

    _check_attention_backend_requirements(AttentionBackendName(name))
    found, native = [], []
    with torch.inference_mode(), _quiet():
        for tensors in _trial_tensors(TRIAL, device, dtype):
            found.append(relative_error(name, *tensors))
            native.append(found[-1] if name == NATIVE else relative_error(NATIVE, *tensors))
    floor = torch.finfo(dtype).eps  # torch's own may happen to be exact to the last bit
    return max(found), MARGIN * max(*native, floor)


def _trial_tensors(
    shapes: Sequence[tuple[int, int]], device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Queries, keys and values; drawn anew for each shape, on the CPU, so that every device gets the same."""
    generator = torch.Generator().manual_seed(0)
    for queries, keys in shapes:
        drawn = (
            torch.randn(1, length, TRIAL_HEADS, TRIAL_HEAD_DIM, generator=generator).to(device, dtype)
            for length in (queries, keys, keys)
        )
        query, key, value = drawn
        yield query, key, value


def _exact(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, key, value = (tensor.float().transpose(1, 2) for tensor in (query, key, value))
    scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    return (scores.softmax(-1) @ value).transpose(1, 2)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' remark that attention implementations are experimental."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
