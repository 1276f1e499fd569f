"""Where progress bars are drawn, and how the log keeps out of their way: a terminal, or a cell of a notebook."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import secrets
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator
from html import escape
from pathlib import Path
from threading import RLock
from typing import Any, TextIO, TypeGuard

with warnings.catch_warnings():
    # In a notebook without ipywidgets tqdm recommends them; `Notebook` does without.
    warnings.simplefilter("ignore")
    from tqdm.auto import tqdm

LOG_FILE = "run.log"
LOG_LINES = 20
# Seconds between two updates of the last lines in a notebook.
EVERY = 0.5

logger = logging.getLogger("musubitraining")


class Bar(tqdm):  # type: ignore[misc]
    """A bar that needs no thread of its own, nor a lock that processes share."""

    monitor_interval = 0
    _lock = RLock()

    def refresh(self, nolock: bool = False, lock_args: Any = None) -> Any:
        """Draw it. The lock is given back also where Ctrl-C comes while it is drawn."""
        with contextlib.nullcontext() if nolock else self._lock:
            return super().refresh(nolock=True)


class Terminal:
    """Bars at the bottom of a terminal; the lines of the log come above them."""

    def __init__(self) -> None:
        """Take nothing yet."""
        self._routed: list[tuple[logging.StreamHandler[Any], Any, _AboveBars]] = []

    def open(self, folder: Path | None) -> None:
        """Lead the log past the bars."""
        for handler in _handlers():
            if _is_on_screen(handler):
                stream = handler.stream
                above = _AboveBars(stream)
                handler.setStream(above)
                self._routed.append((handler, stream, above))

    def bar(self, **settings: Any) -> Bar:
        """Begin a bar under those that there are."""
        return Bar(dynamic_ncols=True, file=sys.stderr, **settings)

    def show(self, bars: list[Bar]) -> None:
        """Draw them as they are."""
        for bar in bars:
            bar.refresh()

    def write(self, line: str) -> None:
        """Write a line above the bars."""
        Bar.write(line, file=sys.stderr)

    def close(self) -> None:
        """Give the log its streams back; the bars are closed."""
        while self._routed:
            handler, stream, above = self._routed.pop()
            if handler.stream is above:
                handler.setStream(stream)


class _AboveBars:
    """A stream of the terminal on which bars stand: they make room for what is written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with Bar.external_write_mode(file=self._stream):
            return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Notebook:
    """Bars in a cell; the lines of the log go to a file, and the last of them fold under the bars."""

    def __init__(self) -> None:
        """Take nothing yet."""
        # Without ipywidgets tqdm has text for terminals alone, which is shown as a document here.
        self._has_widgets = any(part.__module__ == "tqdm.notebook" for part in tqdm.__mro__)
        self._log: _FoldedLog | None = None
        self._quiet: list[tuple[logging.Handler, _FromLevel]] = []
        self._level = logging.NOTSET
        self._drawn: _Drawing | None = None

    def open(self, folder: Path | None) -> None:
        """Lead the log to its file."""
        if not self._has_widgets:
            self._drawn = _Drawing()
        self._level, before = logger.level, logger.getEffectiveLevel()
        for handler in _handlers():
            only = _FromLevel(max(before, logging.WARNING) if _is_on_screen(handler) else before)
            handler.addFilter(only)
            self._quiet.append((handler, only))
        if before > logging.INFO:
            # Where the host has no ear for the lines of the log, they are still wanted here.
            logger.setLevel(logging.INFO)
        self._log = _FoldedLog(folder)
        logger.addHandler(self._log)

    def bar(self, **settings: Any) -> Bar:
        """Begin a bar under those that there are."""
        if self._has_widgets:
            return Bar(**settings)
        return Bar(file=io.StringIO(), ncols=90, ascii=False, **settings)

    def show(self, bars: list[Bar]) -> None:
        """Draw them as they are."""
        if self._drawn is None:
            for bar in bars:
                bar.refresh()
        else:
            lines = "\n".join(escape(str(bar)) for bar in bars)
            self._drawn.draw(f'<pre style="margin:0;line-height:1.4">{lines}</pre>')
        if self._log is not None:
            self._log.show_in_time()

    def write(self, line: str) -> None:
        """Add a line to the last ones."""
        if self._log is not None:
            self._log.lines.append(line)

    def close(self) -> None:
        """Give the log its ways back; the bars are closed."""
        while self._quiet:
            handler, only = self._quiet.pop()
            handler.removeFilter(only)
        if self._log is not None:
            logger.removeHandler(self._log)
            if logger.level == logging.INFO:
                logger.setLevel(self._level)
            self._log.show()
            self._log.close()
            self._log = None


class _FoldedLog(logging.Handler):
    """The log in a file of the training folder, and its last lines folded in the cell."""

    def __init__(self, folder: Path | None) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s | %(levelname)s | %(message)s"))
        self.lines: deque[str] = deque(maxlen=LOG_LINES)
        self._path = None if folder is None else folder / LOG_FILE
        self._file: TextIO | None = None
        # The training folder may not be there before the photos are.
        self._waiting: deque[str] = deque(maxlen=10_000)
        self._drawn = _Drawing()
        self._drawn_at = float("-inf")
        self._mark = f"musubitraining-{secrets.token_hex(4)}"

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.lines.append(record.getMessage())
            self._keep(self.format(record))
            self.show_in_time()
        except Exception:
            self.handleError(record)

    def _keep(self, line: str) -> None:
        if self._path is None:
            return
        self._waiting.append(line + "\n")
        try:
            if self._file is None and self._path.parent.is_dir():
                self._file = self._path.open("w", encoding="utf-8", errors="replace", buffering=1)
            if self._file is not None:
                self._file.write("".join(self._waiting))
                self._waiting.clear()
        except OSError as error:
            # A full disk is no reason to end a run.
            self._path, self._file = None, None
            self.lines.append(f"{LOG_FILE} ends here: {error}")

    def show_in_time(self) -> None:
        if time.monotonic() - self._drawn_at >= EVERY:
            self.show()

    def show(self) -> None:
        self._drawn_at = time.monotonic()
        where = "" if self._file is None else f" · all of them: <code>{escape(str(self._path))}</code>"
        lines = escape("\n".join(self.lines))
        # The document is another one with each update: what was opened stays open.
        self._drawn.draw(
            f'<details id="{self._mark}" ontoggle="window[`${{this.id}}-is-open`] = this.open">'
            f"<summary>the last lines of the log{where}</summary>"
            f'<pre style="margin:0;white-space:pre-wrap;overflow-wrap:anywhere;font-size:85%">{lines}</pre></details>'
            f'<script>document.getElementById("{self._mark}").open = window["{self._mark}-is-open"] || false</script>'
        )

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
        super().close()


class _Drawing:
    """A place in the cell whose content changes."""

    def __init__(self) -> None:
        self._place: Any = None

    def draw(self, html: str) -> None:
        ipython: Any = importlib.import_module("IPython.display")
        document = ipython.HTML(html)
        if self._place is None:
            self._place = ipython.display(document, display_id=True)
        else:
            self._place.update(document)


class _FromLevel(logging.Filter):
    """Passes this library's records from a level on, and everybody else's."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self._level = level

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= self._level or record.name != logger.name


def _handlers() -> Iterator[logging.Handler]:
    """Those that the log goes to."""
    at: logging.Logger | None = logger
    while at is not None:
        yield from list(at.handlers)
        at = at.parent if at.propagate else None


def _is_on_screen(handler: logging.Handler) -> TypeGuard[logging.StreamHandler[Any]]:
    return isinstance(handler, logging.StreamHandler) and (handler.stream is sys.stderr or handler.stream is sys.stdout)
