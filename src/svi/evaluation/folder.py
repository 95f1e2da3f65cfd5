"""A folder of a benchmark: which suite it is of, whose videos are in it, and the leaderboard of what is scored there.

OUT/bench.json                      suite and length, where it was generated
OUT/videos/METHOD/manifest.jsonl    videos
OUT/scores, OUT/methods             results (:mod:`svi.evaluation.store`)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from svi.errors import UserError
from svi.evaluation.fakes import FAKES
from svi.evaluation.metric import SetMetric
from svi.evaluation.registry import SETS, make
from svi.evaluation.scored import Scored, compare_sets, read_scores
from svi.evaluation.sources import MANIFEST, Listing, list_videos
from svi.evaluation.store import Store
from svi.evaluation.suites import get_suite
from svi.evaluation.table import Board, leaderboard
from svi.files import read_json

BENCH = "bench.json"


def suite_of(out: Path) -> str | None:
    """The suite that ``out`` was made for, None for a folder of others' videos."""
    file = out / BENCH
    return str(read_json(file).get("suite")) if file.is_file() else None


def method_videos(out: Path, more: Mapping[str, Path], *, limit: int | None = None) -> dict[str, Listing]:
    """Videos by method: those in ``out/videos``, and ``more`` folders or manifests by name; at most ``limit`` each.

    Raises:
        UserError: where there are none, or a name is taken.
    """
    made = sorted(path.parent for path in (out / "videos").glob(f"*/{MANIFEST}"))
    found = {folder.name: list_videos(folder) for folder in made}
    for name, path in more.items():
        if name in found:
            raise UserError(f"{out} has videos of {name!r} already: give {path} another name")
        found[name] = list_videos(path)
    if not found:
        raise UserError(f"{out} has no videos: svi bench generate SUITE --out {out}, or --videos NAME=FOLDER")
    return {name: replace(listing, entries=listing.entries[:limit]) for name, listing in found.items()}


def read_board(
    out: Path,
    methods: Sequence[str] = (),
    *,
    suite: str | None = None,
    against: str | None = None,
    force: bool = False,
    title: str | None = None,
) -> tuple[list[Scored], Board]:
    """All scores in ``out`` and their leaderboard.

    Raises:
        UserError: where there are none, or they do not compare.
    """
    store = Store(out)
    scored = read_scores(store, methods)
    known = {name for one in scored for name in one.index.metrics}
    sets = compare_sets(store, scored, [cast(SetMetric, metric) for metric in make(sorted(known & set(SETS)))])
    name = get_suite(suite).name if suite else suite_of(out) or ""
    titled = title or (f"Benchmark {name}" if name else "Benchmark")
    return scored, leaderboard(scored, title=titled, suite=name, against=against, force=force, sets=sets)


def about_method(out: Path, name: str) -> tuple[str, bool]:
    """What a method of ``out`` is, in a line, and whether it is a fooler by name."""
    manifest = out / "videos" / name / MANIFEST
    if not manifest.is_file():
        return "", False
    entries = list_videos(manifest).entries
    return str(entries[0].about.get("method", "")) if entries else "", name in FAKES and FAKES[name].role == "fooler"
