"""Turning words of the command line into values, each error naming the remedy. Knows nothing about commands."""

from __future__ import annotations

import math
import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

from svi.errors import nearest

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})


def whole(low: int = 1) -> Callable[[str], int]:
    """Parser of whole numbers that are at least ``low``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ArgumentTypeError(f"must be a whole number, not {text!r}") from None
        if value < low:
            raise ArgumentTypeError(f"must be at least {low}, not {value}")
        return value

    return parse


def number(low: float = 0.0, *, above: bool = False) -> Callable[[str], float]:
    """Parser of finite numbers that are at least (``above``: more than) ``low``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ArgumentTypeError(f"must be a number, not {text!r}") from None
        if not math.isfinite(value) or value < low or (above and value == low):
            raise ArgumentTypeError(f"must be {'more than' if above else 'at least'} {low:g}, not {text}")
        return value

    return parse


def size(text: str) -> tuple[int, int]:
    """``832x480`` -> ``(832, 480)``, width first. Which sizes a model takes is checked once the model is known."""
    match = re.fullmatch(r"(\d{1,5})\s*[xX*×]\s*(\d{1,5})", text.strip())
    if not match:
        raise ArgumentTypeError(f"must be WIDTHxHEIGHT in pixels, for instance 832x480, not {text!r}")
    width, height = int(match[1]), int(match[2])
    if not width or not height:
        raise ArgumentTypeError(f"must be WIDTHxHEIGHT with both above 0, not {text!r}")
    return width, height


def one_of(what: str, choices: Callable[[], list[str]]) -> Callable[[str], str]:
    """Parser of a name out of ``choices()``; a wrong one names its nearest neighbour."""

    def parse(text: str) -> str:
        known = choices()
        if text not in known:
            raise ArgumentTypeError(f"unknown {what} {text!r}: {nearest(text, known)}")
        return text

    return parse


def looks_like_image(text: str) -> bool:
    """Whether a word that another option swallowed was meant as the IMAGE argument."""
    return "\n" not in text and Path(text).suffix.lower() in IMAGE_SUFFIXES
