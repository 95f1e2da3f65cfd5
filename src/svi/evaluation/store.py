"""Scores on disk: one file per video, metric and setting, found again by what it was computed from.

A result's key is the hash of everything that it depends on: the video's bytes, the metric's name, version and settings,
and what else the metric was told. So nothing is computed twice, nothing stale is read, and stopping loses only what is
under way. Files are written whole or not at all. Knows nothing about how scores are computed or shown.

    scores/<metric>@<version>/<key>.json (and .npy for features)
    methods/<method>.json     which results belong to which sample, written before the first score
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from svi.errors import UserError
from svi.evaluation.metric import Score
from svi.files import explained, read_json, remove_leftovers, replacing, sha256, sync_file, write_json

SCHEMA = 1
Status = Literal["ok", "skipped", "failed"]
Series = Mapping[str, tuple[Sequence[int], Sequence[float]]]


@dataclass(frozen=True)
class Result:
    """One metric of one video.

    Attributes:
        status: ``ok``; ``skipped``: the metric does not apply, with ``reason``; ``failed``: it or the video broke.
        value, series, extra, weight: as in :class:`~svi.evaluation.metric.Score`; None and NaN where undefined.
        reason: why there is no score, in one line; ``trace``: where the program broke.
        seconds: that it took.
    """

    metric: str
    version: str
    key: str
    status: Status
    value: float | None = None
    series: Series = field(default_factory=dict)
    extra: Mapping[str, float] = field(default_factory=dict)
    weight: float = 1.0
    reason: str = ""
    trace: str = ""
    seconds: float = 0.0
    sample: str = ""
    made: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A sample of a method: what its video is, and where its results are.

    Attributes:
        video: as it was given; ``sha256``: of its content.
        facts: frame rate, frames, size, codec, notes, clip borders, prompts.
        keys: of its result by metric.
        excluded: why the video cannot be scored at all; empty = it can.
    """

    name: str
    video: str
    sha256: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    excluded: str = ""


@dataclass(frozen=True)
class MetricNote:
    """What a table has to know of a metric, stored beside its results so that reading them needs no metric."""

    name: str
    version: str
    unit: str
    better: str
    source: str
    key: str
    missing: str = ""


@dataclass(frozen=True)
class MethodIndex:
    """All samples of a method. ``about``: what made them, in words; ``fooler``: it is known to cheat."""

    method: str
    source: str
    rows: tuple[Row, ...]
    metrics: Mapping[str, MetricNote]
    about: str = ""
    fooler: bool = False
    made: Mapping[str, str] = field(default_factory=dict)


class Store:
    """A folder of results."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, metric: str, version: str, key: str) -> Path:
        """Where a result is, or will be."""
        return self.root / "scores" / f"{metric}@{version}" / f"{key}.json"

    def read(self, metric: str, version: str, key: str) -> Result | None:
        """A result; None where there is none, or what is there is damaged and so is computed again."""
        path = self.path(metric, version, key)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data.pop("schema", None) != SCHEMA:
                return None
            series = {name: (frames, [_nan(v) for v in values]) for name, (frames, values) in data["series"].items()}
            extra = {name: _nan(value) for name, value in data["extra"].items()}
            value = math.nan if data.get("value") == "nan" else data.get("value")
            return Result(**{**data, "series": series, "extra": extra, "value": value})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(self, result: Result, features: np.ndarray | None = None) -> None:
        """Store a result, and its features first: where there is a result, they are whole.

        Raises:
            UserError: for a full disk.
        """
        path = self.path(result.metric, result.version, result.key)
        with explained(path.parent, "create"):
            path.parent.mkdir(parents=True, exist_ok=True)
        if features is not None:
            with replacing(path.with_suffix(".npy")) as temporary:
                with temporary.open("wb") as stream:
                    np.save(stream, np.asarray(features), allow_pickle=False)
                sync_file(temporary)
        series = {name: (list(frames), [_plain(v) for v in values]) for name, (frames, values) in result.series.items()}
        extra = {name: _plain(value) for name, value in result.extra.items()}
        value = "nan" if result.value is not None and math.isnan(result.value) else result.value
        write_json(path, {"schema": SCHEMA, **asdict(replace(result, series={}, extra={})), "value": value,
                          "series": series, "extra": extra})  # fmt: skip

    def features(self, result: Result) -> np.ndarray | None:
        """Features ``(n, d)`` of a result, where it has some."""
        try:
            path = self.path(result.metric, result.version, result.key).with_suffix(".npy")
            loaded: np.ndarray = np.load(path, allow_pickle=False)
            return loaded
        except (OSError, ValueError):
            return None

    def write_index(self, index: MethodIndex) -> None:
        """Store which results belong to a method; metrics of earlier calls are kept where the videos are the same."""
        path = self._index_path(index.method)
        with explained(path.parent, "create"):
            path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        write_json(path, {"schema": SCHEMA, **asdict(_with_old(index, self.index(index.method)))})

    def index(self, method: str) -> MethodIndex | None:
        """What is known of a method; None where it was never scored."""
        path = self._index_path(method)
        return _read_index(path) if path.is_file() else None

    def methods(self) -> list[MethodIndex]:
        """All methods, by name.

        Raises:
            UserError: where there are none, or an index is damaged.
        """
        found = sorted((self.root / "methods").glob("*.json")) if self.root.is_dir() else []
        if not found:
            raise UserError(f"{self.root} holds no scores: svi bench score --videos NAME=FOLDER --out {self.root}")
        return [_read_index(path) for path in found]

    def results(self, index: MethodIndex) -> Iterator[tuple[Row, dict[str, Result]]]:
        """Results of each sample that are there, by metric."""
        for row in index.rows:
            found = {}
            for metric, key in row.keys.items():
                note = index.metrics.get(metric)
                result = None if note is None else self.read(metric, note.version, key)
                if result is not None:
                    found[metric] = result
            yield row, found

    def prune(self) -> tuple[int, int]:
        """Delete results that no method refers to. How many files, and bytes."""
        wanted = set()
        for index in self.methods():
            for row in index.rows:
                wanted |= {self.path(m, index.metrics[m].version, k).with_suffix("") for m, k in row.keys.items()}
        count = freed = 0
        for path in (self.root / "scores").glob("*/*"):
            if path.with_suffix("") not in wanted:
                count, freed = count + 1, freed + path.stat().st_size
                path.unlink()
        return count, freed

    def _index_path(self, method: str) -> Path:
        return self.root / "methods" / f"{file_name(method)}.json"


def file_name(method: str) -> str:
    """A file name that stands for a method alone, whatever signs its name has."""
    plain = re.sub(r"[^A-Za-z0-9._+-]", "-", method).lstrip(".") or "method"
    return plain if plain == method else f"{plain}-{sha256(method.encode())[:8]}"


def result_key(video: str, metric: str, version: str, settings: str, told: Mapping[str, Any]) -> str:
    """The key of a result: a hash of all that it depends on."""
    parts = {"video": video, "metric": metric, "version": version, "settings": settings, "told": told}
    return sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode())[:32]


def result_of(score: Score, **fields: Any) -> Result:
    """A result with what a score holds."""
    return Result(
        status="ok",
        value=None if score.value is None else float(score.value),
        series={
            name: ([int(f) for f in at], [float(v) for v in values]) for name, (at, values) in score.series.items()
        },
        extra={name: float(value) for name, value in score.extra.items()},
        weight=float(score.weight),
        **fields,
    )


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def _with_old(new: MethodIndex, old: MethodIndex | None) -> MethodIndex:
    if old is None:
        return new
    before = {(row.name, row.sha256): row for row in old.rows}
    rows = []
    for row in new.rows:
        same = before.get((row.name, row.sha256))
        rows.append(row if same is None else replace(row, keys={**same.keys, **row.keys}))
    return replace(new, rows=tuple(rows), metrics={**old.metrics, **new.metrics})


def _read_index(path: Path) -> MethodIndex:
    data = read_json(path)
    try:
        if data.pop("schema", None) != SCHEMA:
            raise UserError(f"{path} is of another version of this program: score again into a new --out")
        rows = tuple(Row(**row) for row in data.pop("rows"))
        metrics = {name: MetricNote(**note) for name, note in data.pop("metrics").items()}
        return MethodIndex(rows=rows, metrics=metrics, **data)
    except (TypeError, KeyError, AttributeError):
        raise UserError(f"{path} is damaged: svi bench score writes it again") from None
