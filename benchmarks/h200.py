"""All GPU figures of docs/benchmarks.md in one call of at most ten minutes, with random weights of the real 14B shapes.

Needs one card with 80 GB or more, and no downloads. Variants run one after another, the most important first; one that fails
says why and the rest go on; what the time left does not suffice for is named. Results go to a folder as JSON and as a Markdown
table; `--write` puts the table into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import table, write_section

from svi.backends import attention
from svi.backends.memory import GIB, KNOWN_MODELS
from svi.benchmark_speed import Report, measure, quantity, subject_of

MODEL = "wan2.1-i2v-14b"
# What the project promises for one H200: seconds per step with guidance, and times as fast as the stock pipeline.
PROMISED_STEP_S, PROMISED_GAIN = 5.5, 1.6


@dataclass(frozen=True)
class Variant:
    """One way to run the model.

    Attributes:
        name: in the table.
        choices: arguments of ``placement.choose``.
        budget_s: seconds it is expected to take at most, loading and compiling included.
        stock, vae: whether the stock pipeline and the VAE are measured along; once is enough.
    """

    name: str
    choices: dict[str, Any] = field(default_factory=dict)
    budget_s: float = 90.0
    stock: bool = False
    vae: bool = False


VARIANTS = (
    Variant("reference", {}, 160.0, stock=True, vae=True),
    Variant("balanced", dict(speed="balanced"), 120.0),
    Variant("balanced, 8-bit weights (fp8)", dict(speed="balanced", quantise="fp8"), 100.0),
    Variant("balanced, 8-bit products (fp8-fast)", dict(speed="balanced", quantise="fp8-fast"), 100.0),
    Variant("reference, best attention, not compiled", dict(attention="best"), 60.0),
    Variant("offload: blocks come one by one", dict(memory="offload"), 100.0),
    Variant("low: 8-bit blocks come one by one", dict(memory="low"), 90.0),
)
SMOKE = (Variant("reference", stock=True, vae=True), Variant("balanced", dict(speed="balanced")))


@dataclass
class Row:
    """A variant and what came of it: a report, or why there is none."""

    name: str
    report: Report | None
    why: str = ""


def measured(variants: tuple[Variant, ...], deadline: float, device: str | None) -> Iterator[Row]:
    """Measure variant by variant while there is time."""
    ceiling: float | None = None
    stock_s: float | None = None
    for variant in variants:
        left = deadline - time.monotonic()
        if left < variant.budget_s:
            yield Row(variant.name, None, f"not measured: {left:.0f} s were left, it may take {variant.budget_s:.0f}")
            continue
        say(f"== {variant.name}, {left:.0f} s left")
        try:
            subject, placement = subject_of(MODEL, random_weights=True, device=device, **variant.choices)
            report = measure(
                subject,
                placement,
                steps=3,
                repeats=3,
                stock=variant.stock,
                vae=variant.vae,
                ceiling=ceiling,
                stock_step_s=stock_s,
                say=say,
            )
            ceiling, stock_s = report.ceiling_flops, report.stock_step_s or stock_s
            report.stock_step_s = stock_s
            yield Row(variant.name, report)
        except Exception as error:  # one variant that a machine cannot run must not cost the others
            yield Row(variant.name, None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        subject = placement = None  # type: ignore[assignment]  # let go before the next one is built
        gc.collect()
        torch._dynamo.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def attention_rows(device: torch.device) -> list[tuple[str, str, str, str]]:
    """Every implementation that runs here: error, and speed on the self-attention of a clip."""
    sizes, window = KNOWN_MODELS[MODEL]
    tokens = sizes.transformer.tokens(sizes.latent_shape(window)) if device.type == "cuda" else 480
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    names = dict.fromkeys((*attention.candidates(device), *(attention.ASKED_FOR if device.type == "cuda" else ())))
    rows = []
    for name in names:
        trial = attention.tried(name, device, dtype)
        if not trial.runs:
            rows.append((name, "does not run", "", trial.why))
            continue
        try:
            taken = attention.seconds(name, device, dtype, tokens=tokens)
        except RuntimeError as error:
            rows.append((name, "fails at full size", "", str(error)[:100]))
            continue
        speed = f"{quantity(4 * tokens * tokens * 40 * attention.TRIAL_HEAD_DIM / taken)}FLOP/s"
        rows.append((name, f"{trial.error:.1e}", speed, "exact" if trial.exact else trial.why))
    return rows


def page(rows: list[Row], attentions: list[tuple[str, str, str, str]]) -> str:
    """Markdown of everything."""
    reports = [row.report for row in rows if row.report is not None]
    if not reports:
        return "Nothing could be measured.\n\n" + table(["variant", "why"], [(row.name, row.why) for row in rows])
    first = reports[0]
    head = (
        f"{first.title} on {first.device}, {first.dtype}: {quantity(first.forward_flops)}FLOP per forward pass; matrix products "
        f"reach {quantity(first.ceiling_flops)}FLOP/s. VAE: encoding {first.encode_s:.2f} s, decoding {first.decode_s:.2f} s per clip."
    )
    if first.stock_step_s is not None:
        head += f" A step of the stock pipeline takes {first.stock_step_s:.2f} s."
    lines = [_line(row, first) for row in rows]
    columns = ["variant", "s per forward", "s per step", "of stock", "share of ceiling", "clip of 50 steps", "peak GiB"]
    return "\n\n".join(
        (
            head,
            table(columns, lines),
            table(["attention", "error", "self-attention of a clip", ""], attentions),
        )
    )


def _line(row: Row, first: Report) -> tuple[str, ...]:
    report = row.report
    if report is None:
        return (row.name, row.why, "", "", "", "", "")
    gain = f"{report.stock_step_s / report.step_s:.2f}x" if report.stock_step_s else ""
    share = report.achieved_flops / report.ceiling_flops
    clip = first.encode_s + first.decode_s + report.steps * report.step_s
    peak = max(value for name, value in report.peak_bytes.items() if name != "stock step") / GIB
    estimated = "" if not report.estimated_peak_bytes else f" (estimated {report.estimated_peak_bytes / GIB:.1f})"
    return (
        row.name,
        f"{report.forward_s:.3f}",
        f"{report.step_s:.3f}",
        gain,
        f"{share:.0%}",
        f"{clip:.0f} s",
        f"{peak:.1f}{estimated}",
    )


def broken_promises(rows: list[Row]) -> list[str]:
    """What ``balanced`` owes on an H200 and does not give; nothing on other cards."""
    report = next((row.report for row in rows if row.name == "balanced"), None)
    if report is None or "H200" not in report.device:
        return []
    found = []
    if report.step_s > PROMISED_STEP_S:
        found.append(f"a step takes {report.step_s:.2f} s, promised are {PROMISED_STEP_S}")
    if report.stock_step_s is not None and report.stock_step_s / report.step_s < PROMISED_GAIN:
        found.append(f"{report.stock_step_s / report.step_s:.2f}x as fast as stock, promised are {PROMISED_GAIN}")
    return found


def say(line: str) -> None:
    """Progress, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def main() -> int:
    """Measure, print, store; 1 where a promise is broken or nothing could be measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bench-gpu"), help="folder of results (default: runs/bench-gpu)"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="at most so long (default: 9)")
    parser.add_argument("--device", help="default: the card; cpu for a small try of this script")
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    on_card = torch.cuda.is_available() and options.device != "cpu"
    attentions = attention_rows(torch.device("cuda" if on_card else "cpu"))
    rows = []
    options.out.mkdir(parents=True, exist_ok=True)
    for row in measured(VARIANTS if on_card else SMOKE, deadline, options.device):
        rows.append(row)
        # After every variant, so that a call that is cut short leaves what it has.
        stored = [{"name": r.name, "why": r.why, "report": r.report and r.report.to_dict()} for r in rows]
        (options.out / "gpu.json").write_text(json.dumps({"variants": stored, "attention": attentions}, indent=1))
        (options.out / "gpu.md").write_text(page(rows, attentions) + "\n")
        say(f"{row.name}: {row.why or 'done'}")
    print(page(rows, attentions))
    if options.write:
        write_section("gpu", page(rows, attentions))
    for promise in broken_promises(rows):
        print(f"PROMISE BROKEN: {promise}")
    return int(bool(broken_promises(rows)) or all(row.report is None for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
