"""How a command ends that does not end well: its exit code, and what is said in one line."""

from __future__ import annotations

import re
from typing import Any

# The exit codes, which --help and the README name.
DONE = 0
OTHER = 1
USAGE = 2
BAD_INPUT = 3
FAILED_STEP = 4
CANCELLED = 130

EXIT_CODES = """\
exit codes:
  0    done
  1    anything that none of the others is, such as a full disk
  2    usage: a flag, a setting or a value that cannot be
  3    bad input: photos, weights, folders or a machine that a run cannot use; a plan with errors
  4    a step of the run has failed
  130  cancelled: Ctrl-C or SIGTERM
"""


class UsageError(Exception):
    """What was told cannot be."""


_ADDRESS = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*://)(?:[^\s/?#'\"]*@)?([^\s?#'\"]*)(?:[?#][^\s'\"]*)?")


def without_secrets(text: str) -> str:
    """The text, its URLs without user, password, query and fragment."""
    return _ADDRESS.sub(r"\1\2", text)


def exit_code(error: BaseException, step: str | None) -> int:
    """The exit code for an exception.

    Args:
        error: what was raised.
        step: the step of Musubi Tuner's that had begun, None where none had.
    """
    import subprocess
    import zipfile

    from musubitraining import Cancelled, DownloadError

    if isinstance(error, KeyboardInterrupt | Cancelled):
        return CANCELLED
    if isinstance(error, UsageError):
        return USAGE
    if step is not None or isinstance(error, subprocess.CalledProcessError):
        return FAILED_STEP
    paths = FileNotFoundError | NotADirectoryError | IsADirectoryError | PermissionError
    given = ValueError | TypeError | RuntimeError | ImportError | zipfile.BadZipFile | DownloadError
    if isinstance(error, paths | given):
        return BAD_INPUT
    return OTHER


def described(error: BaseException, step: str | None) -> dict[str, Any]:
    """The exception as `run.json` has it."""
    import subprocess

    if isinstance(error, subprocess.CalledProcessError):
        reason = getattr(error, "reason", None)
        message = f"{step or 'a step'} failed with exit code {error.returncode}"
        message += f": {reason}" if reason else ", the log says how"
    elif isinstance(error, KeyboardInterrupt):
        reason, message = None, "cancelled"
    else:
        reason, message = None, str(error)
        if not message or isinstance(error, KeyError):
            message = f"{type(error).__name__} {message}".strip()
    return {
        "type": type(error).__name__,
        "message": without_secrets(" ".join(message.split())),
        "reason": reason and without_secrets(reason),
        "step": step,
    }
