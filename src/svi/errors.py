"""Errors meant for users: what is wrong, where, and the remedy, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. Shown as one line without a traceback; exit code 2."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """A hint for a mistyped ``word``: ``did you mean 'x'?``, or the list of choices where none is near."""
    options = sorted(choices)
    matches = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    if matches:
        return f"did you mean {matches[0]!r}?"
    return f"choose one of {', '.join(options)}" if options else "there are none"
