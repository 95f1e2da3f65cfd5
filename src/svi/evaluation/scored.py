"""Stored results of methods, as tables and plots want them: by sample and metric. Knows nothing about statistics."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from svi.errors import UserError, nearest
from svi.evaluation.metric import Score, SetMetric
from svi.evaluation.store import MethodIndex, Result, Row, Store

TRUTH = "truth"  # the method whose videos are the true ones


@dataclass(frozen=True)
class Scored:
    """A method's results as read: by sample and metric."""

    index: MethodIndex
    samples: Mapping[str, tuple[Row, Mapping[str, Result]]]

    def values(self, metric: str, name: str = "") -> dict[str, float]:
        """A metric's value, or one of its further numbers, by sample; only where there is one."""
        found = {}
        for sample, (_, results) in self.samples.items():
            result = results.get(metric)
            if result is None or result.status != "ok":
                continue
            value = result.extra.get(name) if name else result.value
            if value is not None and math.isfinite(value):
                found[sample] = float(value)
        return found

    def features(self, store: Store, metric: str) -> list[np.ndarray]:
        """Features ``(n, d)`` of each video that has some, in the order of samples' names."""
        results = (found.get(metric) for _, (_, found) in sorted(self.samples.items()))
        loaded = (store.features(result) for result in results if result is not None and result.status == "ok")
        return [features for features in loaded if features is not None]

    def left_out(self) -> tuple[tuple[str, str], ...]:
        """Samples without any score, and metrics without one for some samples, each with its reason."""
        lines = []
        for sample, (row, results) in self.samples.items():
            if row.excluded:
                lines.append((sample, row.excluded))
                continue
            reasons: dict[str, list[str]] = {}
            for metric in row.keys:
                result = results.get(metric)
                if result is None:
                    reasons.setdefault("not computed yet", []).append(metric)
                elif result.status != "ok":
                    reasons.setdefault(f"{result.status}: {result.reason}", []).append(metric)
            lines += [(sample, f"{', '.join(metrics)} {reason}") for reason, metrics in reasons.items()]
        return tuple(lines)


def read_scores(store: Store, methods: Sequence[str] = ()) -> list[Scored]:
    """All results of ``methods`` (none named: of all), in the order asked for.

    Raises:
        UserError: for a method that was never scored.
    """
    found = {index.method: index for index in store.methods()}
    for name in methods:
        if name not in found:
            raise UserError(f"{store.root} has no scores of {name!r}: {nearest(name, found)}")
    chosen = [found[name] for name in methods] if methods else list(found.values())
    return [Scored(index, {row.name: (row, results) for row, results in store.results(index)}) for index in chosen]


def compare_sets(store: Store, scored: Sequence[Scored], metrics: Sequence[SetMetric]) -> dict[str, dict[str, Score]]:
    """Scores of whole sets against the method ``truth``, by metric and method; none without it.

    A metric that cannot compare (too few videos) leaves its method out.
    """
    truth = next((one for one in scored if one.index.method == TRUTH), None)
    if truth is None:
        return {}
    found: dict[str, dict[str, Score]] = {}
    for metric in metrics:
        wanted = truth.features(store, metric.name)
        for one in scored:
            ours = one.features(store, metric.name)
            if one is truth or not ours or not wanted:
                continue
            with contextlib.suppress(UserError):
                found.setdefault(metric.name, {})[one.index.method] = metric.compare(ours, wanted)
    return found


def unequal(scored: Sequence[Scored]) -> list[str]:
    """Facts that scores depend on and in which methods differ, each in a line; lengths too, though those compare."""
    lines = []
    for fact, words in (("fps", "frame rates"), ("width", "widths"), ("height", "heights")):
        for sample in sorted({name for one in scored for name in one.samples}):
            values = {
                one.index.method: one.samples[sample][0].facts.get(fact) for one in scored if sample in one.samples
            }
            known = {value for value in values.values() if value is not None}
            if len(known) > 1:
                told = ", ".join(f"{name} {value:g}" for name, value in values.items() if value is not None)
                lines.append(f"{words} differ ({sample}: {told})")
                break
    return lines
