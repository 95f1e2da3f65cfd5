"""Commands that make no clips: show, export, presets, schema, parity, pocket."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from svi.cli import DONE
from svi.errors import UserError
from svi.words import human_time, shortened

if TYPE_CHECKING:
    from rich.console import Console

    from svi.generation.show import RunReport


def show(args: argparse.Namespace) -> int:
    """``svi show``."""
    from svi.generation.run import Run
    from svi.generation.show import report, save_sheet

    run = Run.open(args.run)
    sheet = None
    if args.sheet is not None or args.beside:
        beside = [Run.open(path) for path in args.beside]
        target = Path(args.sheet or run.path / "sheet.png")
        sheet = save_sheet(run, target, beside=beside, rows=args.rows, columns=args.columns)
    found = report(run)
    if args.json:
        print(json.dumps({**found.to_dict(), "sheet": sheet and str(sheet)}, ensure_ascii=False))
        return DONE
    print_report(found)
    if sheet is not None:
        print(f"contact sheet: {sheet}")
    return DONE


def print_report(found: RunReport) -> None:
    """The report as a table."""
    from rich.table import Table

    console = _console()
    clips = f"{found.clips} of {'endless' if found.target is None else found.target}"
    console.print(f"[bold]{found.run}[/bold]: {found.state}", highlight=False, soft_wrap=True)
    console.print(
        f"{clips} clips, {human_time(found.seconds)} of video at {found.fps:g} fps, {found.width}x{found.height}, "
        f"{found.disk_bytes / 2**20:.1f} MiB\n"
        f"model {found.model}, preset {found.preset}, {found.steps} steps, guidance {found.guidance:g}, seed {found.seed}",
        highlight=False,
        soft_wrap=True,
    )
    if found.rows:
        table = Table("clip", "seconds", "take", "seed", "took", "prompt", box=None, pad_edge=False)
        for row in found.rows:
            take = str(row.take) if row.takes == 1 else f"{row.take} ({row.takes} in all)"
            times = f"{row.start_s:.1f}-{row.end_s:.1f}"
            table.add_row(str(row.clip), times, take, str(row.seed), human_time(row.took_s), shortened(row.prompt, 72))
        console.print(table)
    for line in found.damage:
        console.print(f"damaged: {line}", style="red", markup=False, highlight=False, soft_wrap=True)
    for line in found.advice:
        console.print(f"remedy: {line}", markup=False, highlight=False, soft_wrap=True)
    if found.video:
        console.print(f"video: {found.video}", markup=False, highlight=False, soft_wrap=True)


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140)


def export(args: argparse.Namespace) -> int:
    """``svi export``; a run whose ``run.json`` is damaged still gives what clips it has, as mp4."""
    from svi.generation.export import export as write
    from svi.generation.run import Run

    try:
        run = Run.open(args.run)
    except UserError as error:
        print(_salvaged(args, error))
        return DONE
    decoder = None
    if args.stream:
        from svi.backends.decoder import load_decoder

        decoder = load_decoder(run.manifest.model.name, device=args.device, files=run.manifest.model.files)
    print(write(run, args.out, format=args.format, range=args.range, scale=args.scale, decoder=decoder))
    return DONE


def _salvaged(args: argparse.Namespace, error: UserError) -> Path:
    from svi.generation.export import save_what_is_left

    if args.format not in (None, "mp4") or args.range or args.scale != 1:
        raise error
    saved = save_what_is_left(Path(args.run), Path(args.out) if args.out else None)
    if saved is None:
        raise error
    print(f"{error}; what could be read of its clips was saved", file=sys.stderr)
    return saved


def presets(args: argparse.Namespace) -> int:
    """``svi presets``."""
    from rich.table import Table

    from svi.conditioning.policy import POLICIES

    if args.json:
        print(json.dumps({name: asdict(policy) for name, policy in POLICIES.items()}, ensure_ascii=False))
        return DONE
    table = Table("preset", "carries over", "overlap", "steps", "guidance", "trained on", "what it is for", box=None)
    for name, policy in POLICIES.items():
        carried = f"{policy.motion_frames} frames" if policy.hand_off == "pixel" else f"{policy.motion_latents} latents"
        base = policy.base if policy.drive is None else f"{policy.base} (needs {policy.drive})"
        row = (name, carried, str(policy.overlap), str(policy.steps), f"{policy.guidance:g}", base, policy.summary)
        table.add_row(*row)
    _console().print(table)
    return DONE


def schema(args: argparse.Namespace) -> int:
    """``svi schema``."""
    from svi.files import write_atomic
    from svi.generation.storyboard import schema_text

    if args.out is None:
        sys.stdout.write(schema_text())
        return DONE
    path = Path(args.out)
    if path.exists():
        raise UserError(f"{path} exists already and is not replaced: give another --out")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: the folder {path.parent} does not exist")
    write_atomic(path, schema_text().encode())
    print(path)
    return DONE


def parity(args: argparse.Namespace) -> int:
    """``svi parity``."""
    from svi.parity import compare, table

    checks = list(compare(Path(args.folder)))
    print(table(checks))
    if not all(check.passed for check in checks):
        raise UserError("some numbers differ from the published code's: do not trust the videos of this installation")
    return DONE


def pocket(args: argparse.Namespace) -> int:
    """``svi pocket build ...`` and ``svi pocket measure ...``."""
    verb, *rest = args.rest or [""]
    if verb == "build":
        from svi.pocket.build import main

        return main(rest)
    if verb == "measure":
        from svi.pocket.measure import main as measure

        return measure(rest)
    raise UserError("say what to do with the pocket model: svi pocket build --help, or svi pocket measure --help")
