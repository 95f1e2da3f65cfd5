"""Speed presets as data: what each lets the machine do to go faster, and whether that changes pictures.

`reference` and `balanced` compute the same function; they differ in rounding, within what bf16 has anyway. `draft` approximates.
Nobody mixes them silently: a knob that departs from its preset changes the preset's name, and the name stands in what is
printed and recorded. Data and no behaviour; knows nothing about models or devices.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from svi.errors import UserError, nearest

Attention = Literal["native", "best"]


@dataclass(frozen=True)
class Speed:
    """What may be done to make a clip faster.

    Attributes:
        name: key in ``SPEEDS``; with what was changed by hand behind a plus sign.
        summary: one line for users.
        attention: ``native`` (torch's own choice), ``best`` (the first exact one of a fixed list that runs here and passes its
            parity check), or the name of an implementation.
        compile: whether the blocks are compiled; on a GPU only, unless asked for by hand.
        merge_loras: whether LoRAs become part of the weights, where their strengths stay the same throughout.
        cache_threshold: relative change of the first block's residual below which the other blocks' is taken from the step
            before; None = every block runs at every step.
        exact: whether pictures differ by rounding only.
    """

    name: str
    summary: str
    attention: str = "native"
    compile: bool = False
    merge_loras: bool = False
    cache_threshold: float | None = None

    @property
    def exact(self) -> bool:
        """Whether pictures differ from the reference's by rounding only."""
        return self.cache_threshold is None and not self.attention.startswith(APPROXIMATE)

    def with_knobs(self, **knobs: Any) -> Speed:
        """With the ``knobs`` that are not None; what differs from the preset shows in the name."""
        changed = {k: v for k, v in knobs.items() if v is not None and v != getattr(self, k)}
        if not changed:
            return self
        return replace(self, **changed, name="+".join([self.name, *(f"{k}={v}" for k, v in sorted(changed.items()))]))


# Attention in 8 bits (SageAttention). Users report flashes between SVI clips with it that go away without
# (wanx-troopers, svi.md), so that no preset takes it.
APPROXIMATE = ("sage", "_sage")

# Steps saved by first-block caching are bought with detail and motion: at 0.1 about half of the steps of a clip run their
# first block only.
DRAFT_THRESHOLD = 0.1

SPEEDS: dict[str, Speed] = {
    speed.name: speed
    for speed in (
        Speed("reference", "as published: every operation in its published precision and order"),
        Speed(
            "balanced",
            "nothing approximated: fastest exact attention, compiled blocks, LoRAs merged",
            attention="best",
            compile=True,
            merge_loras=True,
        ),
        Speed(
            "draft",
            "for looking, not for keeping: as balanced, and steps that change little are skipped",
            attention="best",
            compile=True,
            merge_loras=True,
            cache_threshold=DRAFT_THRESHOLD,
        ),
    )
}
KNOBS = tuple(field.name for field in fields(Speed) if field.name not in ("name", "summary"))


def get_speed(name: str | Speed = "reference", **knobs: Any) -> Speed:
    """A preset by name, with single knobs changed; None leaves a knob alone.

    Raises:
        UserError: for an unknown preset or knob, or a threshold that is no share.
    """
    if isinstance(name, str) and name not in SPEEDS:
        raise UserError(f"unknown speed preset {name!r}: {nearest(name, SPEEDS)}")
    for knob in knobs:
        if knob not in KNOBS:
            raise UserError(f"unknown speed knob {knob!r}: {nearest(knob, KNOBS)}")
    threshold = knobs.get("cache_threshold")
    if threshold is not None and not 0 < threshold < 1:
        raise UserError(f"the threshold of step caching is a share between 0 and 1, for instance 0.1, not {threshold}")
    speed = SPEEDS[name] if isinstance(name, str) else name
    return speed.with_knobs(**knobs)
