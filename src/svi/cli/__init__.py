"""The command line ``svi``: words in, API calls, exit codes out. Imports nothing heavy until a command runs."""

from __future__ import annotations

from collections.abc import Sequence

DONE, BAD_INPUT, INTERRUPTED = 0, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0 (done), 2 (bad input) or 130 (interrupted)."""
    import sys

    from svi.cli.parser import build_parser, parse
    from svi.errors import UserError

    try:
        args = parse(argv)
        if getattr(args, "version", False):
            print(_version())
            return DONE
        if args.command is None:
            build_parser().print_help()
            return DONE
        from svi.cli import commands

        return commands.run(args)
    except (UserError, MemoryError, FloatingPointError, RuntimeError) as error:
        line = explained(error)
        if line is None:
            raise
        print(f"svi: error: {line}", file=sys.stderr)
        return BAD_INPUT
    except SystemExit as end:  # --help
        return end.code if isinstance(end.code, int) else DONE
    except KeyboardInterrupt:
        print("svi: interrupted; finished clips are kept (svi resume RUN goes on)", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `svi show RUN | head`
        sys.stderr.close()
        return DONE


def explained(error: Exception) -> str | None:
    """One line for an error that a user can do something about; None for a fault of this program."""
    from svi.errors import UserError

    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        remedy = "take a smaller --size or fewer --frames, or another --device; finished clips are kept"
        return f"the memory is full: {remedy}"
    if isinstance(error, UserError | FloatingPointError):
        return " ".join(str(error).split())
    return None


def _version() -> str:
    from svi import __version__

    return f"svi {__version__}"
