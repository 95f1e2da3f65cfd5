"""``svi doctor``: its words, and its page. Heavy imports wait until it runs."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from svi.cli import DONE

if TYPE_CHECKING:
    from svi.doctor import Examination, Prospect

BROKEN = 1
SUMMARY = "what this machine can run and how, and what is broken, with the remedy"
TEXT = """\
One page: versions, machine, which attention implementations really run, whether video can be written and read, which models
would fit in which memory profile and about how long a clip would take; then two clips of the built-in model, compared with what
they should be (ten seconds).

  svi doctor                  everything
  svi doctor --no-self-test   without the clips
  svi doctor --json           for scripts

exit codes: 0 nothing is broken, 1 something is (each with its remedy), 2 bad input
"""


def add_words(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``svi doctor``."""
    parser.add_argument("--device", metavar="DEVICE", help="ask about this device (default: the best there is)")
    parser.add_argument("--no-self-test", action="store_true", help="make no clips")
    parser.add_argument("--json", action="store_true", help="as one JSON object")


def run(args: argparse.Namespace) -> int:
    """``svi doctor``: the page on stdout; 1 where something is broken."""
    from svi.doctor import examine

    talk = sys.stderr.isatty() and not args.json
    found = examine(
        args.device,
        run_self_test=not args.no_self_test,
        say=lambda line: print(f"{line} ...", file=sys.stderr) if talk else None,
    )
    print(json.dumps(found.to_dict(), ensure_ascii=False) if args.json else "\n".join(page(found)))
    return BROKEN if found.problems else DONE


def page(found: Examination) -> list[str]:
    """The examination as lines."""
    topics = {
        "versions": [", ".join(f"{name} {version}" for name, version in found.versions.items())],
        "machine": [f"{name}: {value}" for name, value in found.machine.items()],
        "choices": found.choices,
        "attention": found.attention,
        "video": found.codecs,
        "models (estimates; svi bench speed measures)": [_prospect(prospect) for prospect in found.models],
        "self-test": found.self_test or ["not run"],
        "problems": [str(problem) for problem in found.problems] or ["none found"],
    }
    return [line for topic, lines in topics.items() for line in (f"{topic}:", *(f"  {text}" for text in lines))]


def _prospect(prospect: Prospect) -> str:
    from svi.words import human_time

    head = f"{prospect.model} ({', '.join(prospect.presets)})"
    if prospect.profile is None:
        return f"{head}: does not fit: {prospect.peak}"
    times = ", ".join(f"{name} {human_time(seconds)}" for name, seconds in prospect.seconds.items())
    return f"{head}: {prospect.profile}, {prospect.peak}; a clip takes about {times}"
