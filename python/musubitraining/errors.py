"""Exceptions that are kinds of Python's own."""

import subprocess
from typing import Any


class CalledProcessError(subprocess.CalledProcessError):
    """A command of a step failed.

    Attributes:
        returncode: the exit code, negative for a signal.
        cmd: program and arguments.
        output: its last lines (at most 50; of a progress bar's redraws the last).
        reason: why it failed and what to do, in words; None where that is not known.
    """

    def __init__(
        self, returncode: int, cmd: Any, output: str | None = None, stderr: str | None = None, reason: str | None = None
    ) -> None:
        """As `subprocess` has it, and the reason."""
        super().__init__(returncode, cmd, output, stderr)
        self.reason = reason

    def __str__(self) -> str:
        """What `subprocess` says, then the reason."""
        said = super().__str__()
        return said if self.reason is None else f"{said} {self.reason}"
