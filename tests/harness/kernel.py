"""A real kernel, and what the cells show that it runs."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

PATIENCE = 40
_FIRST = "import os; from pathlib import Path; Path('kernel.pid').write_text(str(os.getpid()))"


class Cell:
    """A cell that has run."""

    def __init__(self, outputs: list[Any]) -> None:
        self.outputs = outputs

    def text(self, stream: str) -> str:
        return "".join(found.text for found in self.outputs if found.output_type == "stream" and found.name == stream)

    def html(self) -> list[str]:
        """The documents that it shows."""
        return [found.data["text/html"] for found in self.outputs if "text/html" in found.get("data", {})]

    def kinds(self) -> set[str]:
        return {kind for found in self.outputs for kind in found.get("data", {})}

    def error(self) -> str | None:
        return next((found.ename for found in self.outputs if found.output_type == "error"), None)


class Kernel:
    """Cells in the order in which they are run."""

    def __init__(self, client: NotebookClient, folder: Path) -> None:
        self._client = client
        self.folder = folder

    def run(self, code: str) -> Cell:
        cell = nbformat.v4.new_code_cell(code)
        self._client.nb.cells.append(cell)
        self._client.execute_cell(cell, len(self._client.nb.cells) - 1)
        return Cell(cell.outputs)

    def run_interrupted(self, code: str, when: Callable[[], bool]) -> Cell:
        """As Jupyter interrupts a cell: with a signal for all of the kernel's process group."""
        group = os.getpgid(int((self.folder / "kernel.pid").read_text()))
        is_over = threading.Event()

        def interrupt() -> None:
            while not when():
                if is_over.wait(0.02):
                    return
            os.killpg(group, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        try:
            return self.run(code)
        finally:
            is_over.set()
            thread.join()


@contextmanager
def kernel(folder: Path, env: dict[str, str]) -> Iterator[Kernel]:
    """One that begins in a folder."""
    client = NotebookClient(
        nbformat.v4.new_notebook(), kernel_name="python3", timeout=PATIENCE, allow_errors=True,
        resources={"metadata": {"path": str(folder)}},
    )  # fmt: skip
    with client.setup_kernel(env={**os.environ, **env}, cwd=str(folder)):
        running = Kernel(client, folder)
        running.run(_FIRST)
        yield running


def plain(html: str) -> str:
    return re.sub(r"<[^>]*>", "", html)
