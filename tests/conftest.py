"""Fixtures: workspaces with a stand-in tuner and a loopback server, and the original to compare with."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from harness.library import OURS, Bench, Library, Workspace, original
from harness.server import Server, serving


@pytest.fixture(scope="session")
def the_original(request: pytest.FixtureRequest) -> Library:
    return original(Path(request.config.cache.mkdir("original")))


@pytest.fixture
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(tmp_path, cache(lambda: request.getfixturevalue("the_original")))
    with bench.stack:
        yield bench


@pytest.fixture
def ours() -> Library:
    return OURS


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback is asked directly, whatever this machine is set to."""
    for name in os.environ:
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def workspace(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """For tests in this process: the stand-in accelerate is importable here and in children."""
    workspace = Workspace.make(tmp_path / "work", server)
    site = str(tmp_path / "work/site")
    # Not first: the first entry is this program's script's folder, which children do not have.
    monkeypatch.setattr(sys, "path", [sys.path[0], site, *sys.path[1:]])
    monkeypatch.setenv("PYTHONPATH", site)
    for name in [name for name in sys.modules if name.partition(".")[0] == "accelerate"]:
        monkeypatch.delitem(sys.modules, name)
    return workspace


@pytest.fixture
def log() -> Iterator[list[tuple[str, str]]]:
    """Level and message of what the library has logged."""
    said: list[tuple[str, str]] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append((record.levelname, record.getMessage()))  # type: ignore[method-assign]
    logger = logging.getLogger("musubitraining")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)


class Reacts(logging.Handler):
    """Does something when a certain line is logged."""

    def __init__(self, line: str, reaction: Callable[[], object]) -> None:
        super().__init__()
        self.line = line
        self.reaction = reaction

    def emit(self, record: logging.LogRecord) -> None:
        if self.line in record.getMessage():
            self.reaction()


@pytest.fixture
def reacts() -> Iterator[Callable[[str, Callable[[], object]], None]]:
    handlers: list[logging.Handler] = []
    logger = logging.getLogger("musubitraining")

    def add(line: str, reaction: Callable[[], object]) -> None:
        handlers.append(Reacts(line, reaction))
        logger.addHandler(handlers[-1])

    yield add
    for handler in handlers:
        logger.removeHandler(handler)
