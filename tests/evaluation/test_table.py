"""Leaderboards: paired by sample, n in every cell, nothing marked best without reason, and nothing left out unsaid."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from svi.errors import UserError
from svi.evaluation import export
from svi.evaluation.metric import Score
from svi.evaluation.scored import TRUTH, compare_sets, read_scores
from svi.evaluation.store import MethodIndex, MetricNote, Result, Row, Store
from svi.evaluation.table import Board, leaderboard

FACTS = {
    "fps": 16.0,
    "num_frames": 80,
    "width": 96,
    "height": 64,
    "codec": "h264",
    "notes": [],
    "borders": [],
    "prompts": [],
}
Values = Mapping[str, Mapping[str, float | str | None]]  # metric -> sample -> value, or why there is none


def note(name: str, *, unit: str = "", better: str = "higher", missing: str = "") -> MetricNote:
    return MetricNote(name, "1", unit, better, "a test", "", missing)


def put(
    store: Store,
    method: str,
    values: Values,
    *notes: MetricNote,
    facts: Mapping[str, object] = FACTS,
    extra: Mapping[str, Mapping[str, float]] | None = None,
    **index: object,
) -> None:
    """Store results as a runner would."""
    samples = sorted({sample for found in values.values() for sample in found})
    known = {n.name: n for n in (*notes, *(note(metric) for metric in values))}
    known.update({n.name: n for n in notes})
    rows = []
    for sample in samples:
        keys = {metric: f"{method}-{metric}-{sample}" for metric, found in values.items() if sample in found}
        for metric, key in keys.items():
            value = values[metric][sample]
            broken = isinstance(value, str)
            result = Result(
                metric,
                "1",
                key,
                "failed" if broken else "ok",
                None if broken else value,  # type: ignore[arg-type]
                reason=value if broken else "",  # type: ignore[arg-type]
                extra=(extra or {}).get(metric, {}),
                series={"frame": ([0, 40], [1.0, 2.0])},
            )
            store.write(result)
        rows.append(Row(sample, f"{method}/{sample}.mp4", "0" * 64, dict(facts), keys))
    store.write_index(MethodIndex(method, "somewhere", tuple(rows), known, **index))  # type: ignore[arg-type]


def board_of(store: Store, *methods: str, **options: object) -> Board:
    return leaderboard(read_scores(store, methods), **options)  # type: ignore[arg-type]


def cell(board: Board, method: str, column: str = "m") -> tuple[float, int]:
    estimate = next(row for row in board.rows if row.method == method).cells[column].estimate
    assert estimate is not None
    return estimate.mean, estimate.n


def best(board: Board, column: str = "m") -> list[str]:
    return [row.method for row in board.rows if row.cells[column].best]


def spread(centre: float, width: float = 1.0, n: int = 20) -> dict[str, float]:
    return {f"s{i:02d}": centre + width * math.sin(i) for i in range(n)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_means_are_over_shared_samples_only(store: Store):
    put(store, "a", {"m": {"s1": 1.0, "s2": 3.0, "s3": 100.0}})
    put(store, "b", {"m": {"s1": 5.0, "s2": 7.0, "s3": "broken"}})
    board = board_of(store)
    assert cell(board, "a") == (2.0, 2)
    assert cell(board, "b") == (6.0, 2)
    assert any("2 of 3 samples are shared by all methods (fewest: b)" in line for line in board.warnings)
    left_out = dict(next(row for row in board.rows if row.method == "b").left_out)
    assert left_out == {"s3": "m failed: broken"}


def test_a_failure_is_never_a_zero(store: Store):
    put(store, "a", {"m": {"s1": "broken", "s2": "broken"}, "k": {"s1": 1.0, "s2": 1.0}})
    board = board_of(store)
    assert [column.id for column in board.columns] == ["k"]


def test_best_only_where_intervals_are_clear(store: Store):
    put(store, "a", {"m": spread(10)})
    put(store, "b", {"m": spread(10.2)})
    assert best(board_of(store)) == []
    put(store, "b", {"m": spread(14)})
    assert best(board_of(store)) == ["b"]
    for method, centre in (("a", 10), ("b", 14)):
        put(store, method, {"m": spread(centre, n=4)})
    assert best(board_of(store)) == []  # too few to say


@pytest.mark.parametrize(("better", "winner"), [("lower", "a"), ("closer to zero", "a"), ("neither", None)])
def test_best_follows_the_direction(store: Store, better: str, winner: str | None):
    put(store, "a", {"m": spread(-2 if better == "closer to zero" else 2)}, note("m", better=better))
    put(store, "b", {"m": spread(9)}, note("m", better=better))
    assert best(board_of(store)) == ([winner] if winner else [])


def test_the_degenerate_is_never_best_and_named(store: Store):
    copies = {"duplicate_share": spread(1.0, 0), "m": spread(99)}
    put(store, "copies", copies, note("duplicate_share", better="lower"), fooler=True)
    put(store, "honest", {"m": spread(50), "duplicate_share": spread(0.0, 0)}, note("duplicate_share", better="lower"))
    put(store, "other", {"m": spread(20), "duplicate_share": spread(0.0, 0)}, note("duplicate_share", better="lower"))
    board = board_of(store)
    row = board.rows[0]
    assert not row.ranked
    assert len(row.degenerate) == 20
    assert "come again" in row.degenerate["s00"]
    assert best(board) == ["honest"]
    assert "copies (degenerate, fooler)" in export.markdown(board)


def test_what_the_truth_does_too_is_not_held_against_a_method(store: Store):
    for method in (TRUTH, "ours"):
        put(store, method, {"duplicate_share": {"s": 0.5}, "m": {"s": 1.0}})
    assert all(row.ranked for row in board_of(store).rows)


def test_yes_or_no_gets_wilson_and_mcnemar(store: Store):
    yes = {f"s{i}": 100.0 if i < 3 else 0.0 for i in range(14)}
    no = {f"s{i}": 100.0 if i < 2 else 0.0 for i in range(14)}
    put(store, "a", {"dynamic_degree": yes}, note("dynamic_degree", unit="%"))
    put(store, "b", {"dynamic_degree": no}, note("dynamic_degree", unit="%"))
    board = board_of(store)
    estimate = board.rows[0].cells["dynamic_degree"].estimate
    assert estimate is not None
    assert (estimate.mean, estimate.n) == (pytest.approx(100 * 3 / 14), 14)
    assert (estimate.low, estimate.high) == (pytest.approx(7.6, abs=0.1), pytest.approx(47.6, abs=0.1))
    (difference,) = board.differences
    assert (difference.p, difference.wins, difference.ties, difference.losses) == (1.0, 0, 13, 1)


def test_differences_are_paired_and_corrected(store: Store):
    """The spread over samples is large, the difference in each small and steady: only pairing sees it."""
    base = spread(0, 50)
    put(store, "a", {"m": base, "k": spread(1), "q": spread(1)})
    put(
        store, "b", {"m": {s: v + 1 + 0.1 * i for i, (s, v) in enumerate(base.items())}, "k": spread(1), "q": spread(1)}
    )
    board = board_of(store)
    found = {difference.column: difference for difference in board.differences}
    assert found["m"].estimate.mean == pytest.approx(1.95)
    assert found["m"].estimate.low > 0
    assert found["m"].p_holm == pytest.approx(3 * found["m"].p)
    assert found["m"].p_holm < 0.01
    assert found["k"].p_holm == 1
    assert (found["m"].wins, found["k"].ties) == (20, 20)
    assert 0 < found["m"].detectable < found["m"].estimate.mean
    assert {d.against for d in board_of(store, against="b").differences} == {"b"}


def test_unequal_videos_are_refused(store: Store):
    put(store, "a", {"m": {"s": 1.0}})
    put(store, "b", {"m": {"s": 2.0}}, facts={**FACTS, "fps": 24.0})
    with pytest.raises(UserError, match=r"frame rates differ \(s: a 16, b 24\); --force"):
        board_of(store)
    assert "frame rates differ" in board_of(store, force=True).warnings[0]


def test_other_lengths_are_said(store: Store):
    put(store, "a", {"m": {"s": 1.0}})
    put(store, "b", {"m": {"s": 2.0}}, facts={**FACTS, "num_frames": 60})
    assert "lengths differ (frames): a 80, b 60" in board_of(store).warnings


def test_no_shared_sample_shows_nothing(store: Store):
    put(store, "a", {"m": {"x": 1.0}})
    put(store, "b", {"m": {"y": 2.0}})
    board = board_of(store)
    assert board.rows[0].cells["m"].estimate is None
    assert "names map by manifest" in board.warnings[0]


def test_unknown_methods_are_named(store: Store):
    with pytest.raises(UserError, match="no scores: svi bench score"):
        read_scores(store)
    put(store, "shot", {"m": {"x": 1.0}})
    with pytest.raises(UserError, match="did you mean 'shot'"):
        read_scores(store, ["shott"])
    with pytest.raises(UserError, match="did you mean 'shot'"):
        board_of(store, against="sho")


def test_reported_rows_are_in_the_columns_unit(store: Store):
    put(store, "a", {"imaging_quality": {"x": 70.0, "y": 71.0}}, note("imaging_quality", unit="%"))
    board = board_of(store, suite="consistent-50s")
    rows = [export.reported_value(row, board.columns[0]) for row in board.reported]
    assert rows == [65.70, 66.41, 55.48, 66.72, 71.88]
    assert "*SVI-Shot, reported (Table 1, n=142)*" in export.markdown(board)


def test_sets_are_compared_with_the_truth(store: Store):
    class Distance:
        name = "fvd"

        def compare(self, features: list[np.ndarray], reference: list[np.ndarray]) -> Score:
            value = abs(float(np.mean(features)) - float(np.mean(reference)))
            return Score(value, extra={"low": 0.0, "high": 9.0, "videos": 2.0, "floor": 5.0, "value_at_floor": value})

    for method, level in ((TRUTH, 0.0), ("ours", 3.0)):
        put(store, method, {"fvd": {"x": None, "y": None}, "m": {"x": 1.0, "y": 2.0}}, note("fvd", better="lower"))
        for sample in "xy":
            store.write(Result("fvd", "1", f"{method}-fvd-{sample}", "ok"), np.full((2, 2), level))
    scored = read_scores(store)
    sets = compare_sets(store, scored, [Distance()])  # type: ignore[list-item]
    board = leaderboard(scored, sets=sets)
    assert cell(board, "ours", "fvd") == (3.0, 2)
    assert any("two halves of the truth have 5" in line for line in board.warnings)
    assert "fvd" in export.markdown(board)


def test_every_format_holds_every_value(store: Store):
    awkward = "a_b 100% | {x}"
    put(store, awkward, {"m": spread(3), "k": spread(0.001, 0.0001)}, extra={"m": {"late": 4.5}})
    put(store, "b", {"m": spread(9), "k": spread(0.001, 0.0001)}, extra={"m": {"late": 5.5}})
    scored = read_scores(store)
    board = leaderboard(scored)
    rows = list(csv.DictReader(io.StringIO(export.board_csv(board))))
    assert {(row["method"], row["metric"]) for row in rows} >= {(awkward, "m"), (awkward, "m.late"), ("b", "k")}
    lines = list(csv.DictReader(io.StringIO(export.samples_csv(scored, board))))
    assert len(lines) == 40
    assert float(lines[0]["m.late"]) == 4.5
    markdown = export.markdown(board)
    assert "a_b 100% \\| {x}" in markdown
    assert "n=20" in markdown
    table = [line for line in markdown.splitlines() if line.startswith("|")][:4]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    tex = export.latex(board)
    assert r"a\_b 100\% | \{x\}" in tex
    assert tex.count("{") == tex.count("}")
    assert r"\textbf{9.0" in tex or r"\textbf{9.1" in tex
    plain = json.loads(json.dumps(export.summary(board), allow_nan=False))
    assert plain["rows"][0]["cells"]["m"]["estimate"]["n"] == 20


@pytest.mark.parametrize(
    ("value", "text"),
    [(98.134, "98.13"), (0.00432, "0.004"), (337.04, "337.0"), (4099.2, "4099"), (-0.0, "0.00"), (3e-5, "3.0e-05")],
)
def test_numbers_have_digits_that_tell(value: float, text: str):
    assert export.number(value) == text


def test_one_video_has_no_interval(store: Store):
    put(store, "a", {"m": {"x": 1.0}})
    assert "1.00 (n=1)" in export.markdown(board_of(store))
