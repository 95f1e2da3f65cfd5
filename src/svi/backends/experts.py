"""The two transformers of Wan 2.2 A14B: one for high noise, one for low, and only the one in use where there is no room for both.

A clip changes experts once, so that even reading one from disk again costs little beside its steps. Knows nothing about
files, clips or presets: who loads an expert and who sets the boundary is told.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from svi.errors import UserError, nearest
from svi.schedule import is_high

Side = Literal["high", "low"]
Keep = Literal["both", "swap", "reload"]
SIDES: tuple[Side, Side] = ("high", "low")
WAN_BOUNDARY = 0.9  # as Wan's own configuration of I2V-A14B has it; SVI changes at 0.875
HEADROOM = 1.25  # room left beside the weights, for activations and what else runs


@runtime_checkable
class HasExperts(Protocol):
    """A backend whose model may have two experts."""

    def set_expert_boundary(self, boundary: float | None) -> None:
        """Noise level at and above which the high-noise expert works; None = as the model's authors have it."""
        ...


def choose_keep(device: torch.device, expert_bytes: int) -> tuple[Keep, str]:
    """What to do with the expert that is not in use, and why. The first is loaded already, the second takes ``expert_bytes``."""
    needed, free = round(HEADROOM * expert_bytes), _free_bytes(device)
    if free is None or free >= needed:
        return "both", f"both experts fit on {device}"
    if device.type != "cpu":
        ram = _free_bytes(torch.device("cpu"))
        if ram is None or ram >= needed:
            return "swap", f"{device} has room for one expert: the other waits in main memory"
    return "reload", "there is room for one expert: the other is read from disk when its turn comes, twice per clip"


def _free_bytes(device: torch.device) -> int | None:
    """Memory that can be had now; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            found = {name: rest.split()[0] for name, _, rest in (line.partition(":") for line in lines)}
        return 1024 * int(found["MemAvailable"])
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


@dataclass
class Expert:
    """A loaded transformer and what was attached to it."""

    module: Any
    loras: Any | None = None


class Experts:
    """The pair, of which one is in use.

    Args:
        load: reads a transformer with all that belongs on it, by side; its weights go where it computes.
        boundary: noise level at which the model's authors change experts.
        device: where the one in use lives.
        keep: ``both`` stay there; the other waits in main memory (``swap``), or is dropped (``reload``).
        loras: names of the LoRAs on either.
        say: told when the boundary changes, in one line.

    Attributes:
        keep: as given.
    """

    def __init__(
        self,
        load: Callable[[Side], Expert],
        boundary: float,
        device: torch.device,
        keep: Keep,
        loras: Sequence[str] = (),
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._load, self._device, self.keep, self._say = load, device, keep, say
        self._loras = tuple(loras)
        self._own, self._boundary = boundary, boundary
        self._held: dict[Side, Expert] = {}
        self._active: Side | None = None
        self._strengths: dict[str, float] = {}

    @property
    def boundary(self) -> float:
        """Noise level at and above which the high-noise expert works."""
        return self._boundary

    def set_boundary(self, boundary: float | None) -> None:
        """Set it for what follows; None = as the model's authors have it.

        Raises:
            UserError: for a level outside 0 to 1.
        """
        wanted = self._own if boundary is None else boundary
        if not 0 <= wanted <= 1:
            raise UserError(f"experts change at a noise level between 0 and 1, not {wanted}")
        if wanted != self._boundary:
            self._boundary = wanted
            self._say(self.line())

    def line(self) -> str:
        """What happens, in words."""
        whose = (
            "as the model's authors"
            if self._boundary == self._own
            else f"by the preset; the model's authors: {self._own:g}"
        )
        return f"experts: high noise down to sigma {self._boundary:g}, then low ({whose})"

    def adopt(self, side: Side, expert: Expert) -> None:
        """Take an expert that is loaded already as the one in use."""
        self._held[side], self._active = expert, side

    @property
    def current(self) -> Any:
        """The transformer in use; the high-noise one before any was asked for."""
        return self.take(self._active or "high")

    def take(self, side: Side) -> Any:
        """The transformer of that side, where it computes."""
        if side != self._active:
            self._leave()
            if side not in self._held:
                expert = self._load(side)
                self._apply(expert)
                self._held[side] = expert
            self._held[side].module.to(self._device)
            self._active = side
        return self._held[side].module

    def _leave(self) -> None:
        if self._active is None or self.keep == "both":
            return
        if self.keep == "swap":
            self._held[self._active].module.to("cpu")
        else:
            del self._held[self._active]
        self._active = None

    def set_strengths(self, strengths: Mapping[str, float]) -> None:
        """Strengths of LoRAs for what follows, also on an expert that is loaded later; those not named are as loaded.

        Raises:
            UserError: for a LoRA that is on neither.
        """
        for name in strengths:
            if name not in self._loras:
                raise UserError(f"LoRA {name!r} is not loaded: {nearest(name, self._loras)}")
        self._strengths = dict(strengths)
        for expert in self._held.values():
            self._apply(expert)

    def _apply(self, expert: Expert) -> None:
        if expert.loras is not None:
            known = {name: value for name, value in self._strengths.items() if name in expert.loras.loaded}
            expert.loras.set_strengths(known)

    def predict(self, sigma: Tensor, call: Callable[[Any, Tensor | slice], Tensor]) -> Tensor:
        """Predictions for a batch whose noise levels may belong to different experts.

        Args:
            sigma: ``(B,)``.
            call: ``(transformer, which of the batch) -> prediction``.
        """
        high = is_high(sigma, self._boundary)
        if bool(high.all()) or not bool(high.any()):
            return call(self.take("high" if bool(high.all()) else "low"), slice(None))
        parts = [(mask.nonzero()[:, 0], side) for mask, side in ((high, SIDES[0]), (~high, SIDES[1]))]
        predictions = [call(self.take(side), where) for where, side in parts]
        order = torch.cat([where for where, _ in parts]).argsort()
        return torch.cat(predictions)[order]


def pair(
    load: Mapping[Side, Callable[[], Expert]],
    first: Expert,
    boundary: float | None,
    device: torch.device,
    keep: Keep | None,
    loras: Sequence[str],
    say: Callable[[str], None],
) -> Experts:
    """The pair, of which the high-noise expert is loaded already; the other is loaded now where it is going to stay.

    Args:
        load, boundary, device, loras, say: as :class:`Experts` has them.
        keep: left out, by the memory that is free.
    """
    size = sum(value.numel() * value.element_size() for value in first.module.parameters())
    chosen, why = (keep, "asked for") if keep is not None else choose_keep(device, size)
    experts = Experts(
        lambda side: load[side](), WAN_BOUNDARY if boundary is None else boundary, device, chosen, loras, say
    )
    experts.adopt("high", first)
    say(f"experts {chosen}: {why}")
    del first
    if chosen != "reload":  # there the caller still holds the first: both would be in memory at once
        for side in ("low", "high"):
            experts.take(side)
    return experts
