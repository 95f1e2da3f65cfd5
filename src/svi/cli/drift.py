"""``svi drift``: its words, and what they do. Imports nothing heavy until it runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from svi.cli import DONE, INTERRUPTED, values

if TYPE_CHECKING:
    from types import TracebackType

    from svi.evaluation.runner import Tick

SUMMARY = "measure drift against exact ground truth"
HELP = """\
How much does a video decay, clip after clip? Here that is a number: the pocket world knows the true frame at any time.
An experiment has arms (a model with its LoRAs and preset, or a control such as the truth itself) which all continue the
same held-out worlds with the same noise, so that they compare world by world.

  quick   the bundled base with and without an anchor, between truth and three fakes: minutes
  base    the bundled base alone, standing and panning camera, 16 worlds x 50 clips: half an hour
  main    base, conditioning alone, control without recycling and ERFT, for four presets; standing camera 64 worlds x
          50 clips, panning 16 x 50, error gain: days of CPU time in all, so take --arms and --jobs
  long    base and ERFT over 500 clips
  mechanisms   what other methods do against drift, each alone on the plain base, 32 worlds x 50 clips
  FILE    your own: save one with --print, edit it, run it

Each finished world of an arm is a file in OUT: stop it whenever you like, run the same command again and it goes on.
More --worlds or new arms keep what is there. At the end OUT has results.md, results.json, a plot and contact sheets.

examples:
  svi drift quick
  svi drift main --print > mine.yaml        then: svi drift mine.yaml
  svi drift main --arms base shot shot-control --worlds 8 --clips 20 --jobs 2
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser of ``svi drift`` its options."""
    parser.add_argument(
        "experiment", nargs="?", default="quick", metavar="quick|base|main|long|mechanisms|FILE", help="default: quick"
    )
    parser.add_argument("--out", metavar="DIR", help="where cells and results go (default: runs/drift-NAME)")
    parser.add_argument("--worlds", type=values.whole(), metavar="N", help="held-out worlds per scene")
    parser.add_argument("--clips", type=values.whole(), metavar="N", help="clips of each video")
    parser.add_argument("--arms", nargs="+", action="extend", metavar="ARM", help="only these")
    parser.add_argument("--model", metavar="MODEL", help="the base (default: the experiment's)")
    jobs = "processes, each with its share of the cores (default: 1)"
    parser.add_argument("--jobs", type=values.whole(), default=1, metavar="N", help=jobs)
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, ... (default: the best there is)")
    parser.add_argument("--print", action="store_true", help="print the experiment as YAML and stop")


def run(args: argparse.Namespace) -> int:
    """``svi drift``: progress on stderr, the tables on stdout."""
    from svi.pocket.drift.experiment import load_experiment

    experiment = load_experiment(args.experiment).cut(
        worlds=args.worlds, clips=args.clips, arms=tuple(args.arms or ()), model=args.model
    )
    if args.print:
        sys.stdout.write(experiment.to_yaml())
        return DONE
    from svi.pocket.drift.results import write_results
    from svi.pocket.drift.runner import run as run_cells

    out = Path(args.out or f"runs/drift-{experiment.name}")
    try:
        with _Show() as show:
            run_cells(experiment, out, jobs=args.jobs, device=args.device, watch=show)
    except KeyboardInterrupt:
        if out.is_dir():
            write_results(experiment, out)
        print(f"svi: stopped; {out}/results.md tells of what is finished; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    sys.stdout.write(write_results(experiment, out))
    print(f"written: {out}/results.md, results.json, plots and contact sheets", file=sys.stderr)
    return DONE


class _Show:
    """A line per finished cell with the time left; on a terminal a bar below them."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        columns = (
            BarColumn(),
            TextColumn("{task.percentage:.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self.bar = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("cells", total=1.0, left="")

    def __enter__(self) -> _Show:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def __call__(self, tick: Tick) -> None:
        from svi.words import human_time

        left = "" if tick.left_s is None or tick.done >= 1 else f"{human_time(tick.left_s)} left"
        self.bar.update(self.task, completed=tick.done, left=left)
        if tick.line is not None:
            self.console.print(f"{tick.line}{', ' + left if left else ''}", markup=False)
