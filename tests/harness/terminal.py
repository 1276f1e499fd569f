"""A program in a terminal, and what stands on the screen."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE = 30
ROWS = 24


class Screen:
    """What a terminal shows that knows what bars need: returns, line feeds, up, and no wrapping of short lines."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.lines: list[str] = [""]
        self.row = self.column = 0
        self.overlong: list[str] = []
        self._torn = ""

    def feed(self, text: str) -> None:
        text = self._torn + text
        end = re.search(r"\x1b\[?$", text)
        self._torn = end[0] if end else ""
        for part in re.findall(r"\x1b\[[^A-Za-z]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text.removesuffix(self._torn)):
            if part == "\r":
                self.column = 0
            elif part == "\n":
                self.row += 1
                if self.row == len(self.lines):
                    self.lines.append("")
            elif part == "\x1b[A":
                self.row = max(0, self.row - 1)
            elif part.startswith("\x1b"):
                raise AssertionError(f"unknown to this screen: {part!r}")
            else:
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + part + line[self.column + len(part) :]
                self.column += len(part)
                if self.column > self.columns and part.strip():
                    self.overlong.append(self.lines[self.row])

    def shown(self) -> list[str]:
        """All lines from the first on, without blanks at their ends, nor blank lines at the end."""
        lines = [line.rstrip() for line in self.lines]
        while lines and not lines[-1]:
            lines.pop()
        return lines


class Terminal:
    """A program under way in it."""

    def __init__(self, program: subprocess.Popen[bytes], master: int, columns: int) -> None:
        self.program = program
        self.screen = Screen(columns)
        self._master = master
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def read_until(self, is_there: Callable[[Screen], bool]) -> Screen:
        end = time.monotonic() + PATIENCE
        while not is_there(self.screen):
            assert self._read(end), "\n".join(self.screen.shown())
        return self.screen

    def finish(self) -> Screen:
        """The screen after the program's end, which must be a good one."""
        end = time.monotonic() + PATIENCE
        while self._read(end):
            pass
        assert self.program.wait(PATIENCE) == 0, "\n".join(self.screen.shown())
        return self.screen

    def press_ctrl_c(self) -> None:
        os.write(self._master, b"\x03")

    def _read(self, end: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, end - time.monotonic()))
        try:
            data = os.read(self._master, 65536) if ready else b""
        except OSError:  # nobody has the other end any more
            data = b""
        self.screen.feed(self._decoder.decode(data))
        return bool(data)


@contextmanager
def terminal(command: list[str], env: dict[str, str], cwd: Path, columns: int = 100) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
    # Its "^C" would come at any place.
    modes = termios.tcgetattr(slave)
    modes[3] &= ~termios.ECHO
    termios.tcsetattr(slave, termios.TCSANOW, modes)

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    program = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, cwd=cwd, preexec_fn=own_terminal,
        env={"PATH": os.environ["PATH"], "TERM": "xterm-256color", "PYTHONUTF8": "1", **env},
    )  # fmt: skip
    os.close(slave)
    try:
        yield Terminal(program, master, columns)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()
        os.close(master)
