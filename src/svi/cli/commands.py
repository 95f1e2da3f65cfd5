"""What each command does: arguments to API calls. Imported once the words are understood."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svi.cli import DONE, INTERRUPTED
from svi.cli.interrupt import Interrupt
from svi.errors import UserError
from svi.generation.events import Event
from svi.progress import Mode, Overview, Reporter, reporter

if TYPE_CHECKING:
    from svi.generation.run import Run
    from svi.prepare import Prompts

Work = Callable[[dict[str, Any]], "Run"]


def run(args: argparse.Namespace) -> int:
    """Run the command that ``args`` names; returns the exit code."""
    from svi.cli import about, bench, data, doctor, drift, lora, models, train

    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "generate": generate,
        "resume": resume,
        "extend": extend,
        "branch": branch,
        "retake": retake,
        "show": about.show,
        "export": about.export,
        "presets": about.presets,
        "schema": about.schema,
        "doctor": doctor.run,
        "models": models.run,
        "parity": about.parity,
        "pocket": about.pocket,
        "train": train.run,
        "lora": lora.run,
        "data": data.run,
        "drift": drift.run,
        "bench": bench.run,
    }
    return commands[args.command](args)


def generate(args: argparse.Namespace) -> int:
    """``svi generate``."""
    story = prompts_of(args)
    pictures = {**_pictures(args), "num_frames": args.frames, "size": args.size, "anchor": args.anchor}

    def work(machine: dict[str, Any]) -> Run:
        from svi import api

        return api.generate(
            args.image,
            story,
            model=args.model or "pocket",
            loras=args.lora or (),
            out=args.out,
            new_only=args.new_only,
            **_length(args),
            **pictures,
            **machine,
        )

    return perform(args, work)


def resume(args: argparse.Namespace) -> int:
    """``svi resume``."""

    def work(machine: dict[str, Any]) -> Run:
        from svi import api

        return api.resume(args.run, **machine)

    return perform(args, work)


def extend(args: argparse.Namespace) -> int:
    """``svi extend``."""
    story = prompts_of(args)

    def work(machine: dict[str, Any]) -> Run:
        from svi import api

        return api.extend(args.run, story, **_length(args), **machine)

    return perform(args, work)


def branch(args: argparse.Namespace) -> int:
    """``svi branch``."""
    story = prompts_of(args)

    def work(machine: dict[str, Any]) -> Run:
        from svi import api

        return api.branch(
            args.run,
            args.at,
            story,
            out=args.out,
            model=args.model,
            loras=args.lora,
            **_length(args),
            **_pictures(args),
            **machine,
        )

    return perform(args, work)


def retake(args: argparse.Namespace) -> int:
    """``svi retake``."""

    def work(machine: dict[str, Any]) -> Run:
        from svi import api

        return api.retake(args.run, args.clip, keep_rest=args.keep_rest, seed=args.seed, prompt=args.prompt, **machine)

    return perform(args, work)


def perform(args: argparse.Namespace, work: Work) -> int:
    """Do the work of a command that makes clips: shows progress, stops on Ctrl-C, tells the exit code."""
    from svi.cli.bench_speed import placement_options

    _threads(args.threads)
    show: Reporter = reporter(_mode(args))
    interrupt = Interrupt()

    def on_event(event: Event) -> None:
        if isinstance(event, Overview):
            interrupt.arm()
        show(event)

    machine = {
        **placement_options(args),
        "download": args.download,
        "merge_loras": args.merge_loras,
        "text_cache": args.text_cache,
        "on_event": on_event,
        "should_stop": interrupt.asked,
    }
    if _follows():  # a signal is for the process that leads
        interrupt.arm()
    with interrupt, show:
        done = work(machine)
    return DONE if done.status().finished or not interrupt.asked() else INTERRUPTED


def prompts_of(args: argparse.Namespace) -> Prompts | None:
    """The story: --prompt texts, or the file of --prompts or --storyboard."""
    given = [name for name in ("prompt", "prompts", "storyboard") if getattr(args, name) is not None]
    if len(given) > 1:
        raise UserError(f"give only one of {', '.join(f'--{name}' for name in given)}")
    if args.prompt is not None:
        return list(args.prompt)
    if args.prompts is not None:
        return Path(args.prompts)
    if args.storyboard is not None:
        from svi.generation.storyboard import load_storyboard

        story = load_storyboard(args.storyboard)
        if story.image is not None:  # relative to the storyboard's own folder
            story = story.with_overrides(image=str(Path(args.storyboard).parent / story.image))
        return story
    return None


def _length(args: argparse.Namespace) -> dict[str, Any]:
    return {"clips": args.clips, "seconds": args.seconds, "endless": args.endless}


def _pictures(args: argparse.Namespace) -> dict[str, Any]:
    names = ("preset", "seed", "steps", "guidance", "solver", "negative_prompt")
    return {name: getattr(args, name) for name in names}


def _mode(args: argparse.Namespace) -> Mode:
    if _follows():
        return "quiet"
    return "json" if args.json else "quiet" if args.quiet else "plain" if args.plain else "auto"


def _follows() -> bool:
    """Whether torchrun started this process beside one that leads, and speaks."""
    return int(os.environ.get("RANK", "0")) > 0


def _threads(count: int | None) -> None:
    if count is not None:
        import torch

        torch.set_num_threads(count)
