"""Memory and seconds per clip over a long run: neither may grow with its length.

Runs as `svi generate` does (rollout, run folder, journal, video) and reads resident memory after each clip. Writes its section of
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field

import psutil
from common import new_run, table, write_section

from svi.backends.wan import WanBackend, load_backend

EARLY = 20
MEMORY_BOUND, TIME_BOUND = 1.05, 1.1


@dataclass
class Series:
    """Resident bytes after each clip, and seconds each took."""

    rss_bytes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def memory_ratio(self) -> float:
        """Most memory during the last 20 clips, over the most up to clip 20 (clip 0 left out).

        Peak against peak: after a single clip the allocator keeps now more, now less.
        """
        return max(self.rss_bytes[-EARLY:]) / max(self.rss_bytes[1 : EARLY + 1])

    @property
    def growth_bytes(self) -> float:
        """Slope of a straight line through memory from clip 20 on, in bytes per clip: a leak shows here first."""
        return statistics.linear_regression(range(len(self.rss_bytes) - EARLY), self.rss_bytes[EARLY:]).slope

    @property
    def time_ratio(self) -> float:
        """Mean seconds of the last 20 clips over those of the first 20, clip 0 left out."""
        return statistics.mean(self.seconds[-EARLY:]) / statistics.mean(self.seconds[1 : EARLY + 1])


def measure(backend: WanBackend, clips: int, steps: int | None) -> Series:
    """Make ``clips`` clips and watch."""
    process, series = psutil.Process(), Series()
    with new_run(backend, clips, steps) as run:
        began = time.perf_counter()
        for clip in run.stream(backend):
            series.seconds.append(time.perf_counter() - began)
            series.rss_bytes.append(process.memory_info().rss)
            if clip.plan.index % 10 == 0:
                print(f"clip {clip.plan.index}: {series.rss_bytes[-1] / 1e6:.0f} MB, {series.seconds[-1]:.2f} s")
            began = time.perf_counter()
    return series


def section(series: Series) -> str:
    """The measurement as Markdown."""
    count = len(series.seconds)
    marks = sorted({0, EARLY, *range(0, count, max(1, count // 8)), count - 1})
    rows = [
        (
            k,
            f"{series.rss_bytes[k] / 1e6:.0f}",
            f"{statistics.mean(series.seconds[max(1, k - 9) : k + 1] or [series.seconds[0]]):.2f}",
        )
        for k in marks
    ]
    early, late = statistics.mean(series.seconds[1 : EARLY + 1]), statistics.mean(series.seconds[-EARLY:])
    return "\n".join(
        [
            f"{count} clips. Most memory during the last {EARLY} clips / during clips 1 to {EARLY}: "
            f"**{series.memory_ratio:.3f}** (wanted: at most {MEMORY_BOUND}); slope from clip {EARLY} on: "
            f"{series.growth_bytes / 1e4:+.2f} MB per 100 clips.",
            "",
            f"Mean of the last {EARLY} clips / of clips 1 to {EARLY}: {late:.2f} s / {early:.2f} s = "
            f"**{series.time_ratio:.3f}** (wanted: at most {TIME_BOUND}).",
            "",
            table(["clip", "resident memory, MB", "seconds per clip, mean of 10"], rows),
        ]
    )


def main() -> int:
    """Measure, print, write the section; 1 if a ratio is over its bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pocket", help="pocket or a folder (default: pocket)")
    parser.add_argument("--clips", type=int, default=200, help="clips to make (default: 200)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: what the model recommends)")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    if options.clips < 2 * EARLY + 1:
        parser.error(f"--clips must be at least {2 * EARLY + 1}: the first {EARLY} are compared with the last {EARLY}")
    backend = load_backend(options.model, device="cpu", dtype="float32")
    assert isinstance(backend, WanBackend)
    series = measure(backend, options.clips, options.steps)
    body = section(series)
    print(body)
    if not options.no_write:
        write_section("endless", body)
    return int(series.memory_ratio > MEMORY_BOUND or series.time_ratio > TIME_BOUND)


if __name__ == "__main__":
    raise SystemExit(main())
