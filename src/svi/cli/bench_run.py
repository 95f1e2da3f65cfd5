"""What the verbs of ``svi bench`` do: arguments to calls, progress on stderr, results on stdout."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from svi.cli import DONE, INTERRUPTED
from svi.errors import UserError

if TYPE_CHECKING:
    from svi.benchmark import Bench, Method
    from svi.evaluation.metric import Metric
    from svi.evaluation.runner import Tick
    from svi.evaluation.sources import Listing

BROKEN = 1  # exit code of a self-test that does not hold


def plan(args: argparse.Namespace) -> int:
    """``svi bench plan``."""
    from svi.evaluation.planning import make_plan, told
    from svi.evaluation.suites import get_suite, read_cases

    suite = get_suite(args.suite)
    metrics = _metrics(args, args.suite)
    cases = args.samples or suite.samples
    if args.data is not None:
        cases = len(read_cases(Path(args.data), suite, names=args.only, limit=args.samples))
    found = make_plan(suite, metrics, cases, model=args.model, methods=args.methods, clips=args.clips)
    print(json.dumps(found, indent=2, ensure_ascii=False) if args.json else told(found))
    return DONE


def generate(args: argparse.Namespace) -> int:
    """``svi bench generate``."""
    from svi import benchmark

    methods = [benchmark.parse_method(text) for text in args.method]
    out = Path(args.out)
    bench = benchmark.open_bench(
        out,
        args.suite,
        data=_path(args.data),
        samples=args.samples,
        names=args.only,
        clips=args.clips,
        model=args.model,
    )
    if not _made(args, bench, methods):
        return INTERRUPTED
    print(f"next: svi bench score {out}", file=sys.stderr)
    return DONE


def _made(args: argparse.Namespace, bench: Bench, methods: Sequence[Method]) -> bool:
    """Make what is lacking; False: stopped, and said so."""
    from svi import benchmark
    from svi.cli.interrupt import Interrupt
    from svi.options import Place

    if args.threads is not None:
        import torch

        torch.set_num_threads(args.threads)
    interrupt = Interrupt()
    try:
        with interrupt, _Show("clips") as show:
            if args.jobs == 1:  # several processes cannot be asked between steps: Ctrl-C ends them
                interrupt.arm()
            place = Place(args.device, args.dtype, args.download, should_stop=interrupt.asked)
            whole = benchmark.generate(
                bench, methods, model=args.model, place=place, watch=show, together=args.batch, jobs=args.jobs
            )
    except KeyboardInterrupt:
        whole = False
    if not whole:
        print("svi: stopped; the same command goes on", file=sys.stderr)
    return whole


def score(args: argparse.Namespace) -> int:
    """``svi bench score``: progress on stderr, a count at the end."""
    from svi.evaluation import folder

    out = Path(args.out)
    listings = folder.method_videos(out, _named(args.videos), limit=args.limit)
    told = _scored(args, out, listings, _metrics(args, folder.suite_of(out)))
    if told is None:
        return INTERRUPTED
    print(told if args.dry_run else f"{told}; next: svi bench report {out}")
    return DONE


def _scored(
    args: argparse.Namespace, out: Path, listings: Mapping[str, Listing], metrics: Sequence[Metric]
) -> str | None:
    """Compute what is lacking, or say what that is; a line for people, None: stopped, and said so."""
    from svi import benchmark
    from svi.evaluation import folder, runner
    from svi.evaluation.store import Store

    metrics = [*metrics, *benchmark.pocket_metric(out)]
    store = Store(out)
    plans = []
    for name, listing in listings.items():
        about, fooler = folder.about_method(out, name)
        fooler = fooler or name in args.foolers
        plans.append(
            runner.plan(name, listing, metrics, store, retry_failed=args.retry_failed, about=about, fooler=fooler)
        )
    for name, reason in {
        note.name: note.missing for p in plans for note in p.index.metrics.values() if note.missing
    }.items():
        print(f"svi: {name} is left out: {reason}", file=sys.stderr)
    if args.dry_run:
        return "\n".join(
            f"{made.index.method}: {sum(len(task.keys) for task in made.tasks)} scores of {len(made.tasks)} videos "
            f"to compute, {made.there} there"
            for made in plans
        )
    try:
        with _Show("videos") as show:
            tally = runner.score(plans, metrics, store, jobs=args.jobs, shard=args.shard, watch=show)
    except KeyboardInterrupt:
        print("svi: stopped; what is finished is kept, and the same command goes on", file=sys.stderr)
        return None
    excluded = [f"{p.index.method}/{row.name}: {row.excluded}" for p in plans for row in p.index.rows if row.excluded]
    for line in (*excluded, *tally.failures):
        print(f"svi: left out: {line}", file=sys.stderr)
    counts = ", ".join(f"{count} {status}" for status, count in tally.counts.items())
    return f"{counts}, {len(excluded)} videos that cannot be read"


def miniature(args: argparse.Namespace) -> int:
    """``svi bench miniature``: the table on stdout, and the paths of the report on stderr."""
    from svi import benchmark
    from svi.benchmark import miniature as small
    from svi.evaluation import folder
    from svi.evaluation.report import write_report
    from svi.files import write_atomic

    out = Path(args.out)
    files = {
        name: str(path) for name, path in _named(args.lora, "--lora", "FILE", "a LoRA's name and its file").items()
    }
    methods, left_out = small.methods_of(small.lines_of(args.methods), args.model, files, download=args.download)
    for line in left_out:
        print(f"svi: left out: {line}", file=sys.stderr)
    bench = benchmark.open_bench(out, "pocket", samples=args.samples, clips=args.clips, model=args.model)
    if not _made(args, bench, methods):
        return INTERRUPTED
    names = [method.name for method in methods]
    listings = {name: each for name, each in folder.method_videos(out, {}).items() if name in names}
    told = _scored(args, out, listings, _metrics(args, "pocket"))
    if told is None:
        return INTERRUPTED
    print(told, file=sys.stderr)
    against = small.AGAINST if small.AGAINST in names else None
    scored, board = folder.read_board(out, names, against=against, title=small.TITLE)
    with _Show("videos") as show:
        written = write_report(scored, board, out, sheets=args.sheets, watch=show)
    text = small.table(board)
    write_atomic(out / "miniature.md", text.encode())
    for path in (*written, out / "miniature.md"):
        print(path, file=sys.stderr)
    print(text, end="")
    return DONE


def compare(args: argparse.Namespace) -> int:
    """``svi bench compare``: tables on stdout."""
    from svi.evaluation import export, folder

    _, board = folder.read_board(Path(args.out), args.methods, suite=args.suite, against=args.against, force=args.force)
    if args.format == "json":
        print(json.dumps(export.summary(board), indent=2, ensure_ascii=False))
    else:
        sys.stdout.write(export.FORMATS[args.format](board))
    return DONE


def report(args: argparse.Namespace) -> int:
    """``svi bench report``: the paths of what was written."""
    from svi.evaluation import folder
    from svi.evaluation.report import write_report

    scored, board = folder.read_board(
        Path(args.out), args.methods, suite=args.suite, against=args.against, force=args.force, title=args.title
    )
    with _Show("videos") as show:
        written = write_report(scored, board, Path(args.to or args.out), sheets=args.sheets, watch=show)
    for path in written:
        print(path)
    return DONE


def selftest(args: argparse.Namespace) -> int:
    """``svi bench selftest``: one line per rule; exit code 1 where one does not hold."""
    from svi.pocket.bench import self_test

    with _Show("videos") as show:
        findings = self_test(args.worlds, show)
    words = {True: "holds", False: "BROKEN", None: "not judged"}
    for finding in findings:
        figure = "" if finding.figure is None else f" (is {finding.figure:.3g}, {finding.about})"
        why = f": {finding.about}" if finding.figure is None else ""
        print(f"{words[finding.passed]:10} {finding.rule}{figure}{why}")
    counts = {word: sum(finding.passed is state for finding in findings) for state, word in words.items()}
    print(", ".join(f"{count} {word}" for word, count in counts.items()))
    return BROKEN if counts[words[False]] else DONE


def cache(args: argparse.Namespace) -> int:
    """``svi bench cache``."""
    from svi.evaluation.store import Store

    store = Store(Path(args.out))
    for index in store.methods():
        there = sum(len(results) for _, results in store.results(index))
        asked = sum(len(row.keys) for row in index.rows)
        print(f"{index.method}: {len(index.rows)} videos, {there} of {asked} scores")
    if args.prune:
        count, freed = store.prune()
        print(f"{count} files deleted, {freed / 1e6:.1f} MB")
    return DONE


def _metrics(args: argparse.Namespace, suite: str | None) -> list[Metric]:
    from svi.evaluation.registry import Options, of_profile
    from svi.evaluation.suites import get_suite

    profile = args.profile or (get_suite(suite).profile if suite else "fast-cpu")
    options = Options(
        mode=args.parity or "vbench",
        device=args.device,
        weights=_path(args.weights),
        hashes={
            name: str(value)
            for name, value in _named(args.sha256, "--sha256", "HASH", "a weight's name and its hash").items()
        },
        interpolator=args.interpolator,
    )
    return of_profile(profile, options, more=args.metrics)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _named(
    texts: Sequence[str],
    option: str = "--videos",
    form: str = "PATH",
    what: str = "the method's name and its folder or manifest",
) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise UserError(f"{option} {text}: write NAME={form}, {what}")
        if name in found:
            raise UserError(f"{option} names {name!r} twice")
        found[name] = Path(path)
    return found


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "plan": plan,
    "generate": generate,
    "miniature": miniature,
    "score": score,
    "compare": compare,
    "report": report,
    "selftest": selftest,
    "cache": cache,
}


class _Show:
    """A line per finished video with the time left; on a terminal a bar below them."""

    def __init__(self, what: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        percent, left = TextColumn("{task.percentage:.0f} %"), TextColumn("{task.fields[left]}")
        columns = (TextColumn(what), BarColumn(), percent, TimeElapsedColumn(), left)
        self.bar = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self.task = self.bar.add_task(what, total=1.0, left="")

    def __enter__(self) -> _Show:
        self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.stop()

    def __call__(self, tick: Tick) -> None:
        from svi.words import human_time

        left = "" if tick.left_s is None or tick.done >= 1 else f"{human_time(tick.left_s)} left"
        self.bar.update(self.task, completed=tick.done, left=left)
        if tick.line is not None:
            self.console.print(f"{tick.line}{', ' + left if left else ''}", markup=False)
