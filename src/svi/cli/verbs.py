"""Commands with verbs (``svi lora info``): a parser for each, which reports its own mistakes. Knows no command."""

from __future__ import annotations

import argparse
from typing import Any


def verbs_of(parser: argparse.ArgumentParser) -> Any:
    """The place for the verbs of a command; each is a parser of the same kind as the command's."""
    base: Any = type(parser)

    class Verb(base):
        """Reports an unknown option itself: the parser above would know the wrong ones."""

        def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
            found, rest = super().parse_known_args(args, namespace)
            if rest:
                self.error(f"unrecognized arguments: {' '.join(rest)}")
            return found, rest

    return parser.add_subparsers(dest="verb", metavar="VERB", title="verbs", required=True, parser_class=Verb)
