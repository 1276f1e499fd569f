"""Progress bars: whether there are any, and how a run of another process gets them."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from musubitraining import run_events as events
    from musubitraining.run_bars import Bars
    from musubitraining.run_record import TrainingRun

logger = logging.getLogger("musubitraining")

# Seconds without an event after which `watch` looks whether the run is still there.
SILENCE = 10.0

_missing_is_said = False


def of(progress: bool | None) -> Bars | None:
    """The bars of a run that begins.

    Args:
        progress: True draws them on stderr whatever that is, False draws none, None draws them in a notebook, and in a
            terminal outside of CI.

    Returns:
        What is to be called with each event of the run, and closed at its end; None without bars.
    """
    if not (is_notebook() or is_terminal() if progress is None else progress):
        return None
    try:
        from musubitraining import progress_screen
    except ImportError:
        global _missing_is_said
        if not _missing_is_said:
            _missing_is_said = True
            level = logging.WARNING if progress else logging.INFO
            logger.log(level, '[progress] no bars without tqdm: pip install "TechTrash_MusubiTraining[progress]"')
        return None
    from musubitraining.run_bars import Bars

    return Bars(progress_screen.Notebook() if is_notebook() else progress_screen.Terminal())


def is_notebook() -> bool:
    """Whether what is shown lands in a cell."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return hasattr(shell, "kernel")


def is_terminal() -> bool:
    """Whether somebody looks at stderr, and it can draw."""
    is_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return not is_ci and os.environ.get("TERM") != "dumb" and sys.stderr is not None and sys.stderr.isatty()


def watch(folder: str | os.PathLike[str], *, progress: bool | None = None) -> TrainingRun:
    """Follow a run, of this process or another, with progress bars until it ends.

    Ctrl-C ends the watching and nothing else. So does a run that was killed: nothing has come for ten seconds, and
    nobody has its training folder.

    Args:
        folder: the training folder.
        progress: as for `train`.

    Returns:
        The run as far as it has come; its `outcome` is "running" where it goes on, or was killed.

    Raises:
        FileNotFoundError: the folder has no events.
        OSError: they cannot be read.
    """
    from dataclasses import replace

    from musubitraining import run_events as events
    from musubitraining.run_record import RunSoFar

    place = Path(folder).absolute()
    path = place / events.FILE
    so_far = RunSoFar()
    if _inode(path) is None:
        raise FileNotFoundError(f"{path} not found: expected the events of a run, which its training folder has")
    bars = of(progress)
    try:
        for event in follow(place):
            if event is not None:
                so_far.take(event)
            if bars is not None and event is None:
                bars.show()
            elif bars is not None and event is not None:
                bars(event)
                if isinstance(event, events.Warned):
                    bars.write(event.message)
    except KeyboardInterrupt:
        pass
    finally:
        if bars is not None:
            bars.close()
    return replace(so_far.run(), folder=place)


def follow(folder: Path) -> Iterator[events.Event | None]:
    """Read what happens in a run, of this process or another, until it has ended or is found dead.

    It is dead when nothing has come for ten seconds, and nobody has its training folder. Where another run begins in
    the folder, that one is followed.

    Args:
        folder: the training folder.

    Yields:
        Event | None: each event as it comes; None where there are no more for now: after those that were there at
            first, at each silence, at the end.

    Raises:
        FileNotFoundError: the folder has no events.
        OSError: they cannot be read.
    """
    from musubitraining import run_events as events

    path = folder / events.FILE
    first: events.Event | None = None
    taken = 0
    file = _inode(path)
    waits = False
    while True:
        for number, event in enumerate(events.read(path, follow=waits, timeout=SILENCE)):
            if number == 0 and event != first:
                # Of this run, or of another one that has begun in the same folder.
                first, taken = event, 0
            if number < taken:
                continue
            taken += 1
            yield event
            if isinstance(event, events.Done | events.Failed):
                yield None
                return
        yield None
        before, file = file, _inode(path)
        if file is None or (waits and file == before and not _is_held(folder)):
            return
        waits = True


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _is_held(folder: Path) -> bool:
    """Whether a run has this training folder; also where that cannot be found out."""
    import fcntl

    try:
        place = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(place)
    return False
