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
    except UserError as error:
        print(f"svi: error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("svi: interrupted; finished clips are kept (svi resume RUN goes on)", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `svi show RUN | head`
        sys.stderr.close()
        return DONE


def _version() -> str:
    from svi import __version__

    return f"svi {__version__}"
