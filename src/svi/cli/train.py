"""``svi train``: its words, and what it prints while it runs. Heavy imports wait until it does."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svi.cli import DONE, INTERRUPTED, values
from svi.cli.interrupt import Interrupt
from svi.errors import UserError

if TYPE_CHECKING:
    from svi.data.encode import Progress
    from svi.generation.events import Event

SUMMARY = "fine-tune a LoRA that corrects the model's own errors"
TEXT = """\
Error-recycling fine-tuning (ERFT): the model's own errors are banked and put into its inputs, and a LoRA learns to
lead back to the clean video. One recipe per member of the SVI family; every value of it can be changed.

  svi train --list                                        the recipes, and where their values come from
  svi train pocket-shot --out runs/shot                   two CPU cores will do
  svi train shot --out runs/shot data.source=clips/       Wan 2.1, a folder of videos (svi data check clips/)
  svi train pocket-shot --out runs/control recycling.clean_prob=1    the control: the same training without errors
  svi train my.yaml --out runs/mine loop.steps=5000       a file: `recipe: NAME` and what differs
  svi train shot --dry-run optimizer.lr=2e-5              print all settings and the memory it will take, do nothing
  torchrun --nproc-per-node 8 -m svi.cli train shot --out runs/shot     several GPUs

Clips are encoded once, into RUN/cache. Stop it at any time (Ctrl-C once saves first) and give the same command again: it goes
on, to the same bits on a CPU. RUN/lora.safetensors is the LoRA so far: svi generate --lora RUN/lora.safetensors --preset P

exit codes: 0 done, 2 bad input (one line says what and how to mend it), 130 interrupted (everything is saved).
"""


def add_words(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``svi train``."""
    parser.add_argument(
        "recipe", nargs="?", metavar="RECIPE|FILE|RUN", help="a recipe, a YAML file, or a run to go on with"
    )
    parser.add_argument("changes", nargs="*", metavar="a.b=value", help="what differs from it")
    parser.add_argument("--out", metavar="RUN", help="run folder (default: runs/RECIPE)")
    parser.add_argument("--list", action="store_true", help="show the recipes")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the complete configuration, estimate the memory, and stop"
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda ... (default: the best there is)")
    parser.add_argument("--threads", type=values.whole(), metavar="N", help="CPU threads (default: all)")
    parser.add_argument("--download", action="store_true", help="allow fetching a hub model that is not here yet")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="one JSON event per line on stdout, for scripts")
    how.add_argument("--quiet", action="store_true", help="nothing but the path of the LoRA")

    _let_words_stand_anywhere(parser)


def _let_words_stand_anywhere(parser: argparse.ArgumentParser) -> None:
    """Let ``a.b=value`` also follow options, which argparse has for whole command lines only, not for those of a verb."""
    plain = parser.parse_known_args

    def parse(args: Any = None, namespace: Any = None) -> Any:
        vars(parser)["parse_known_args"] = plain  # which parse_known_intermixed_args calls
        try:
            return parser.parse_known_intermixed_args(args, namespace)
        finally:
            vars(parser)["parse_known_args"] = parse

    vars(parser)["parse_known_args"] = parse


def run(args: argparse.Namespace) -> int:
    """``svi train``."""
    from svi.finetune import ALL_RECIPES, CONFIG_FILE, find_config, fine_tune, memory_needs

    if args.list:
        for name, recipe in ALL_RECIPES.items():
            print(f"{name:18} {(recipe.__doc__ or '').splitlines()[0]}")
            print("".join(f"{'':20}{source}\n" for source in recipe().sources), end="")
        return DONE
    if args.recipe is None:
        raise UserError("name a recipe (svi train --list), a YAML file, or a run to go on with")
    given = Path(args.recipe)
    known = given / CONFIG_FILE
    config = find_config(str(known) if given.is_dir() and known.is_file() else args.recipe, args.changes)
    if args.dry_run:
        print(config.to_yaml(), end="")
        for need in memory_needs(config, ranks=int(os.environ.get("WORLD_SIZE", "1"))):
            print(f"# memory: {need}")
        return DONE
    folder = Path(args.out or (given if given.is_dir() else Path("runs") / config.recipe))
    if args.threads is not None:
        import torch

        torch.set_num_threads(args.threads)
    interrupt = Interrupt()

    def should_stop() -> bool:
        interrupt.arm()  # asked after a step, in every process: there is something to save now
        return interrupt.asked()

    with interrupt, _Shown(args) as shown:
        done = fine_tune(
            config,
            folder,
            device=args.device,
            allow_download=args.download,
            listener=shown,
            on_encode=shown.encoding,
            should_stop=should_stop,
        )
    print(done.lora, file=sys.stderr if args.json else sys.stdout)
    return DONE if done.complete else INTERRUPTED


class _Shown:
    """Bars on a terminal, lines elsewhere, or JSON lines."""

    def __init__(self, args: argparse.Namespace) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.args = args
        self.console = Console(file=sys.stderr, highlight=False, quiet=args.quiet or args.json, soft_wrap=True)
        self.live = self.console.is_terminal and not (args.quiet or args.json)
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}")
        self.bars = Progress(*columns, console=self.console, disable=not self.live)
        self.tasks: dict[str, Any] = {}
        self.shown_at = -1.0

    def __enter__(self) -> _Shown:
        self.bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bars.stop()

    def encoding(self, progress: Progress) -> None:
        """Progress of encoding."""
        from svi.words import human_time

        if self.args.json:
            print(json.dumps({"kind": "encoding", "done": progress.done, "total": progress.total}), flush=True)
            return
        left = "" if not progress.left_s else f", {human_time(progress.left_s)} left"
        said = f"{progress.done}/{progress.total} clips{left}"
        if self.live:
            self._bar("encode", progress.done, progress.total, said)
        elif progress.done == progress.total or progress.seconds - self.shown_at >= 10:
            self.shown_at = progress.seconds
            self.console.print(f"encode {said}")

    def __call__(self, event: Event) -> None:
        from svi.training.events import Note, Saved, Stepped, Validated
        from svi.words import human_time

        if self.args.json:
            print(json.dumps(event.to_dict()), flush=True)
        elif isinstance(event, Note):
            self.console.print(event.message)
        elif isinstance(event, Stepped):
            numbers = "  ".join(f"{name} {value:.4g}" for name, value in event.numbers.items())
            said = f"{event.step}/{event.steps}  {numbers}  {human_time(event.left_s)} left"
            if self.live:
                self._bar("train", event.step, event.steps, said)
            else:
                self.console.print(f"train {said}")
        elif isinstance(event, Saved) and not self.live:
            self.console.print(f"saved {event.folder}")
        elif isinstance(event, Validated):
            numbers = "  ".join(f"{name} {value:.3g}" for name, value in event.numbers.items())
            self.console.print(f"looked at step {event.step}: {numbers}  {event.sheet}")

    def _bar(self, name: str, done: int, total: int, said: str) -> None:
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(name, total=total, said=said)
        self.bars.update(self.tasks[name], completed=done, total=total, said=said)
