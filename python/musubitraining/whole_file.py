"""Files that are there whole or not at all."""

import contextlib
import os
import secrets
from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Write beside `path`, then rename: a reader finds the old file or the new one, also where this is killed.

    Raises:
        OSError: the folder is missing, not writable, or full. What was at `path` is still there.
    """
    beside = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}")
    try:
        with beside.open("xb") as file:
            file.write(content)
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
