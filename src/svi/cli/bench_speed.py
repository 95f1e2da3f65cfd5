"""``svi bench speed``: its words, and what it prints. Heavy imports wait until it runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from svi.cli import DONE, values

SUMMARY = "how fast a model runs on this machine, beside the stock pipeline"
TEXT = """\
Seconds per forward pass, per step with guidance and per clip, of the VAE, and the memory they take; how many floating-point
operations that is, and which share of what matrix products reach on this machine. A step of the stock pipeline of
diffusers is measured in the same run, on the same weights.

  svi bench speed --model wan2.1-i2v-14b --random-weights                     no download: real shapes, random numbers
  svi bench speed --model wan2.1-i2v-14b --random-weights --speed balanced    compiled, fastest exact attention
  svi bench speed --model pocket                                              a model that is here
  svi bench speed --model FOLDER --memory offload --json                      for scripts

On a CPU the known models are measured at a reduced size, since a forward pass of the 14B model takes hours there.
"""


def add_words(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``svi bench speed``."""
    parser.add_argument("--model", default="wan2.1-i2v-14b", metavar="MODEL", help="a known shape, pocket, or a folder")
    parser.add_argument("--random-weights", action="store_true", help="no files: real shapes, random numbers")
    parser.add_argument("--size", type=values.size, metavar="WxH", help="picture size (default: the model's)")
    parser.add_argument(
        "--frames", type=values.whole(), metavar="N", help="frames per clip, 4n+1 (default: the model's)"
    )
    parser.add_argument("--steps", type=values.whole(), default=3, metavar="N", help="steps to time (default: 3)")
    parser.add_argument("--repeats", type=values.whole(), default=3, metavar="N", help="of the rest (default: 3)")
    parser.add_argument("--no-stock", action="store_true", help="leave the stock pipeline out")
    parser.add_argument("--no-vae", action="store_true", help="leave the VAE out")
    add_placement_words(parser)
    parser.add_argument("--json", action="store_true", help="as one JSON object")


def add_placement_words(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Where and how a model runs: words that other commands share, as a group that they may add to."""
    group = parser.add_argument_group("machine (defaults: what this machine has; svi doctor tells)")
    group.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps ...")
    group.add_argument("--dtype", metavar="TYPE", help="bf16 or fp32")
    group.add_argument("--memory", metavar="M", help="auto, resident, offload or low (default on a GPU: auto)")
    group.add_argument("--speed", metavar="S", help="reference, balanced or draft (default: reference)")
    group.add_argument("--attention", metavar="NAME", help="native, best, or an implementation by name")
    group.add_argument("--quantise", metavar="HOW", help="fp8, int8, fp8-fast, nf4 or none")
    group.add_argument("--text-encoder", metavar="WHERE", help="device, visit or cpu")
    group.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None, help="compile the blocks")
    threshold = "skip steps that change less than this share: approximate (draft: 0.1)"
    group.add_argument("--cache-threshold", type=values.number(above=True), metavar="X", help=threshold)
    group.add_argument("--disk", type=Path, metavar="FOLDER", help="where blocks wait instead of in RAM")
    return group


def placement_options(args: argparse.Namespace) -> dict[str, Any]:
    """Those words that were given, as arguments of ``svi.backends.placement.choose``."""
    words = ("device", "dtype", "memory", "speed", "attention", "quantise", "compile", "cache_threshold", "disk")
    asked = {**{name: getattr(args, name) for name in words}, "text": args.text_encoder}
    return {name: value for name, value in asked.items() if value is not None}


def run(args: argparse.Namespace) -> int:
    """``svi bench speed``: what is being done on stderr, the page on stdout."""
    from svi.benchmark_speed import measure, subject_of

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    subject, placement = subject_of(
        args.model,
        random_weights=args.random_weights,
        size=args.size,
        num_frames=args.frames,
        **placement_options(args),
    )
    for line in placement.lines():
        say(line)
    report = measure(
        subject,
        placement,
        steps=args.steps,
        repeats=args.repeats,
        stock=not args.no_stock,
        vae=not args.no_vae,
        say=say,
    )
    print(json.dumps(report.to_dict()) if args.json else "\n".join(report.lines()))
    return DONE
