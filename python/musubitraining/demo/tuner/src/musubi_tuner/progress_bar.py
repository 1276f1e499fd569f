"""A progress bar that writes what tqdm writes: on stderr, redrawn with a carriage return, ended when it closes."""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

_BLOCKS = " ▏▎▍▌▋▊▉█"
_BAR_WIDTH = 10  # tqdm's width where the terminal's is unknown, as in a pipe

T = TypeVar("T")


class ProgressBar:
    """Counts steps. Without a total it shows only the count, as tqdm does for a generator."""

    def __init__(self, total: int | None = None, description: str = "") -> None:
        """Draws the bar at 0."""
        self.total = total
        self.prefix = f"{description}: " if description else ""
        self.count = 0
        self.postfix = ""
        self._started = time.monotonic()
        self._drawn_width = 0
        self._closed = False
        self.draw()
        # A run that fails is redrawn after its traceback: that is when tqdm's bar is closed too.
        atexit.register(self.close)

    def reset(self) -> None:
        """Starts the count and the clock again."""
        self.count = 0
        self._started = time.monotonic()
        self.draw()

    def update(self) -> None:
        """Counts one step and redraws."""
        self.count += 1
        self.draw()

    def set_postfix(self, **values: float) -> None:
        """Shows values behind the rate and redraws."""
        self.postfix = "".join(f", {name}={format_number(value)}" for name, value in sorted(values.items()))
        self.draw()

    def draw(self) -> None:
        """Writes the bar over the one drawn before."""
        line = self._line()
        sys.stderr.write("\r" + line + " " * (self._drawn_width - len(line)))
        sys.stderr.flush()
        self._drawn_width = len(line)

    def close(self) -> None:
        """Draws the bar a last time and ends its line."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        self.draw()
        sys.stderr.write("\n")
        sys.stderr.flush()

    def _line(self) -> str:
        elapsed_s = time.monotonic() - self._started
        rate = self.count / elapsed_s if self.count and elapsed_s else None
        speed = "?it/s" if rate is None else f"{rate:5.2f}it/s" if rate >= 1 else f"{1 / rate:5.2f}s/it"
        if not self.total:
            return f"{self.prefix}{self.count}it [{format_duration(elapsed_s)}, {speed}{self.postfix}]"
        share = self.count / self.total
        whole, part = divmod(int(share * _BAR_WIDTH * (len(_BLOCKS) - 1)), len(_BLOCKS) - 1)
        bar = _BLOCKS[-1] * whole
        if whole < _BAR_WIDTH:
            bar += _BLOCKS[part] + " " * (_BAR_WIDTH - whole - 1)
        left = "?" if rate is None else format_duration((self.total - self.count) / rate)
        times = f"{format_duration(elapsed_s)}<{left}"
        return f"{self.prefix}{share * 100:3.0f}%|{bar}| {self.count}/{self.total} [{times}, {speed}{self.postfix}]"


def progress(items: Iterable[T]) -> Iterator[T]:
    """Yields the items and counts them on a bar without a total."""
    bar = ProgressBar()
    try:
        for item in items:
            yield item
            bar.update()
    finally:
        bar.close()


def format_duration(seconds: float) -> str:
    """`MM:SS`, or `H:MM:SS` from an hour on."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute:02d}:{second:02d}"


def format_number(value: float) -> str:
    """Three significant digits, or the plain number where that is shorter."""
    rounded = f"{value:.3g}".replace("e+0", "e+").replace("e-0", "e-")
    plain = str(value)
    return rounded if len(rounded) < len(plain) else plain
