"""``svi data check | split | encode``: arguments to calls. The words are in ``data_parser``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svi.cli import DONE, INTERRUPTED
from svi.errors import UserError

if TYPE_CHECKING:
    from svi.backends.base import Backend
    from svi.data.check import Report
    from svi.data.encode import EncodeConfig, Progress
    from svi.data.ingest import VideoSource
    from svi.geometry import Geometry

SHOWN = 20  # reasons that a table lists; --json lists all
EVERY_S = 10.0  # between two lines of progress


def run(args: argparse.Namespace) -> int:
    """``svi data ...``."""
    verbs: dict[str, Callable[[argparse.Namespace], int]] = {"check": check, "split": split, "encode": encode}
    if args.verb is None:
        print(args.usage())
        return DONE
    return verbs[args.verb](args)


# -- check -------------------------------------------------------------------------------------------------------------


def check(args: argparse.Namespace) -> int:
    """``svi data check``."""
    from svi.data.check import report

    found = report(_source(args, _geometry(args)))
    if args.json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
    else:
        print_report(found)
    if not found.windows:
        raise UserError(f"nothing in {args.data} is usable: {_first_reason(found)}")
    return DONE


def print_report(found: Report) -> None:
    """The report as tables."""
    from rich.table import Table

    console = _console()
    console.print(
        f"{found.usable} of {found.videos} videos usable: {found.windows} windows, {found.shown_hours:.2f} of "
        f"{found.hours:.2f} hours shown in an epoch",
        highlight=False,
    )
    if found.buckets:
        table = Table("bucket (frames x height x width)", "videos", "windows", "hours", box=None, pad_edge=False)
        for row in found.buckets:
            table.add_row(row.bucket, str(row.videos), str(row.windows), f"{row.hours:.2f}")
        console.print(table)
        sizes = [f"{size} ({count})" for size, count in list(found.sizes.items())[:8]]
        console.print(f"sizes: {', '.join(sizes)}{', ...' * (len(found.sizes) > 8)}", highlight=False, soft_wrap=True)
    if found.skipped:
        table = Table("left out", "why", "what to do", box=None, pad_edge=False)
        for entry in found.skipped[:SHOWN]:
            table.add_row(*(_plain(text) for text in (entry.name, entry.reason, entry.remedy)))
        console.print(table)
        if len(found.skipped) > SHOWN:
            console.print(f"... and {len(found.skipped) - SHOWN} more: --json lists all", highlight=False)
    for note in found.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text, overflow="fold")


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160)


def _first_reason(found: Report) -> str:
    if not found.skipped:
        return "there are no videos"
    first = found.skipped[0]
    more = f" (and {len(found.skipped) - 1} more)" if len(found.skipped) > 1 else ""
    return f"{first.name}: {first.reason}; {first.remedy}{more}"


# -- split -------------------------------------------------------------------------------------------------------------


def split(args: argparse.Namespace) -> int:
    """``svi data split``."""
    from svi.data.manifest import load_manifest, skipped_lines
    from svi.data.scenes import load_detector, split_scenes, write_manifest

    detect = load_detector(args.detector)
    manifest = load_manifest(args.data, caption=args.caption)
    found = split_scenes(manifest, detect, shortest_s=args.shortest)
    for line in skipped_lines(found.skipped[:SHOWN]):
        print(f"left out: {line}", file=sys.stderr)
    if not found.items:
        raise UserError(f"no scene was found in {args.data}")
    write_manifest(found, Path(args.out))
    print(f"{len(found.items)} scenes of {len(manifest.items)} videos", file=sys.stderr)
    print(args.out)
    return DONE


# -- encode ------------------------------------------------------------------------------------------------------------


def encode(args: argparse.Namespace) -> int:
    """``svi data encode``."""
    from svi.data.check import report
    from svi.data.encode import EncodeConfig
    from svi.data.sizes import estimate

    config = EncodeConfig(args.store, args.variants, args.batch)
    source = _source(args, _geometry(args))
    found = report(source)
    say = _said(args)
    for entry in found.skipped[:SHOWN]:
        say(f"left out: {entry.name}: {entry.reason}; {entry.remedy}")
    if not found.windows:
        raise UserError(f"nothing in {args.data} is usable: {_first_reason(found)}")
    windows, place = found.windows * config.variants, {"allow_download": args.download}
    size = estimate(source, args.model, dtype=config.dtype, variants=config.variants, **place)
    summary = {"kind": "plan", "windows": windows, "bytes": size, "skipped": len(found.skipped), "out": args.out}
    _tell(args, summary, f"{windows} windows, about {_bytes(size)}, in {args.out}")
    if args.dry_run:
        return DONE
    try:
        return _encode(args, source, config)
    except KeyboardInterrupt:
        say("svi: interrupted; finished shards are kept: the same command goes on")
        return INTERRUPTED


def _encode(args: argparse.Namespace, source: VideoSource, config: EncodeConfig) -> int:
    from svi.data.encode import encode as write
    from svi.data.encode import encoder_files

    backend = _backend(args)
    with _Shown(args) as show:
        cache = write(
            source,
            backend,
            Path(args.out),
            config,
            files=encoder_files(backend.info),
            replace=args.replace,
            on_progress=show,
        )
    for entry in cache.lost[:SHOWN]:
        _said(args)(f"left out: {entry.name}: {entry.reason}; {entry.remedy}")
    done = {"kind": "finished", "windows": len(cache.windows), "lost": len(cache.lost), "out": args.out}
    _tell(args, done, f"done: {len(cache.windows)} windows, {len(cache.lost)} left out")
    if not args.json:
        print(args.out)
    return DONE


def _backend(args: argparse.Namespace) -> Backend:
    import torch

    from svi.backends.wan import load_backend

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    _said(args)(f"loading {args.model}")
    return load_backend(args.model, device=args.device, dtype=args.dtype, allow_download=args.download)


def _geometry(args: argparse.Namespace) -> Geometry:
    from svi.backends.peek import peek

    return peek(args.model, allow_download=args.download)[0]


def _source(args: argparse.Namespace, geometry: Geometry) -> VideoSource:
    from svi.conditioning.policy import get_policy
    from svi.data.ingest import VideoSource
    from svi.data.manifest import load_manifest
    from svi.data.windows import Bucket, published_rule

    policy = get_policy(args.preset)
    given = {
        "hop": args.hop,
        "windows_per_video": args.per_video,
        "reference": args.reference,
        "first_clip_prob": args.first_clips,
        "crop_min": args.crop_min,
        "degraded_prob": args.degraded,
    }
    rule = replace(published_rule(policy, seed=args.seed), **{k: v for k, v in given.items() if v is not None})
    buckets = [Bucket.parse(text) for text in args.bucket or ()]
    return VideoSource(load_manifest(args.data, caption=args.caption), geometry, policy, rule, buckets)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _said(args: argparse.Namespace) -> Callable[[str], None]:
    """Writes a line of progress, where lines are wanted."""
    if args.json or args.quiet:
        return lambda text: None
    return lambda text: print(text, file=sys.stderr)


def _tell(args: argparse.Namespace, values_: dict[str, Any], text: str) -> None:
    if args.json:
        print(json.dumps(values_, ensure_ascii=False), flush=True)
    else:
        _said(args)(text)


class _Shown:
    """Progress of encoding: a bar on a terminal, a line now and then elsewhere, or JSON lines."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.last = args, -EVERY_S
        self.bar = sys.stderr.isatty() and not (args.json or args.quiet)

    def __enter__(self) -> _Shown:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = TextColumn("encode"), BarColumn(), TextColumn("{task.fields[count]}")
        self.bars = Progress(*columns, console=Console(file=sys.stderr, highlight=False), disable=not self.bar)
        self.bars.start()
        self.task = self.bars.add_task("encode", total=None, count="")
        return self

    def __exit__(self, *exc: object) -> None:
        self.bars.stop()

    def __call__(self, progress: Progress) -> None:
        if self.args.json:
            print(json.dumps({"kind": "progress", **asdict(progress)}), flush=True)
        elif self.bar:
            self.bars.update(self.task, completed=progress.done, total=progress.total, count=_count(progress))
        elif progress.done == progress.total or progress.seconds - self.last >= EVERY_S:
            self.last = progress.seconds
            _said(self.args)(_count(progress))


def _count(progress: Progress) -> str:
    from svi.words import human_time

    left = "" if not progress.left_s else f", {human_time(progress.left_s)} left"
    kept = f" ({progress.reused} from before)" if progress.reused else ""
    return f"{progress.done}/{progress.total} windows{kept}{left}"
