"""The command line: `musubitraining`, or `python -m musubitraining`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from musubitraining.cli.arguments import PROGRAM, parse
from musubitraining.cli.failure import CANCELLED, DONE, OTHER


def main(words: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        words: of the command line, by default those of this process.

    Returns:
        The exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        # A name that this terminal cannot write is no reason to fail; in JSON it stays one.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    code = DONE
    try:
        arguments = parse(sys.argv[1:] if words is None else words)
        # Whoever stops this process ends its run as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        # Only now: the help needs none of it.
        from musubitraining.cli import commands

        code = commands.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return CANCELLED
    except OSError as error:
        # Nobody reads any more, or the disk is full; the interpreter would say so again as it ends.
        if code == DONE and not isinstance(error, BrokenPipeError):
            print(f"{PROGRAM}: error: stdout cannot be written: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OTHER
    return code
