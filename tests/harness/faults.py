"""Runs that are killed, or refused what they ask of the disk, at the step that the test says."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

from harness import faults_host
from harness.library import Library, Workspace
from harness.server import Server

KILL, CUT, FAIL, FAIL_FROM_HERE_ON, FAIL_TO_LOOK = range(5)

T = TypeVar("T")


class Fault(NamedTuple):
    """What happens at the step of this number, counted from 1: see `faults_arm`."""

    kind: int
    step: int
    error: int = 0


NO_FAULT = Fault(KILL, 0)


@dataclass(frozen=True)
class Job:
    """A run of `_prepare_dataset`, or without a URL one of `_launch_training` up to its command.

    `place` is the folder in which steps count; the training folder lies in it.
    """

    place: str
    training: str
    url: str = ""
    toml: str = ""


@dataclass
class Outcome:
    was_killed: bool
    steps: list[str]
    log: list[list[str]] = field(default_factory=list)
    error: dict[str, Any] | None = None
    adapter: str | None = None
    """What the training was to be given, in hexadecimal."""

    def ok(self) -> "Outcome":
        assert not self.was_killed
        assert self.error is None, self.error
        return self

    def warnings(self) -> list[str]:
        return [message for level, message in self.log if level == "WARNING"]


def build(folder: Path) -> Path:
    """Compiles `faults.c`."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler, "a C compiler is needed to build the fault injector"
    library = folder / "faults.so"
    source = Path(__file__).with_suffix(".c")
    command = [compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return library


class Host:
    """`faults_host.py`, with a workspace for what is the same in all its runs."""

    def __init__(self, shim: Path, library: Library, workspace: Workspace) -> None:
        self.workspace = workspace
        self.steps, self.report = workspace.root / "steps", workspace.root / "report"
        env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        self.process = subprocess.Popen(
            [library.python, faults_host.__file__, str(workspace.root)],
            env=env | workspace.env | {"LD_PRELOAD": str(shim)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, job: Job, fault: Fault) -> Outcome:
        assert self.process.stdin
        assert self.process.stdout
        for path in (self.steps, self.report):
            path.unlink(missing_ok=True)
        print(json.dumps([vars(job), *fault]), file=self.process.stdin, flush=True)
        code = self.process.stdout.readline().strip()
        assert code in ("0", str(-signal.SIGKILL)), f"{job} with {fault} ended with {code!r}"
        report = json.loads(self.report.read_text()) if code == "0" else {}
        return Outcome(was_killed=code != "0", steps=self.steps.read_text().splitlines(), **report)

    def close(self) -> None:
        self.process.communicate()


class Hosts:
    """As many as there are processors, and two at least; each does one run at a time."""

    def __init__(self, all_hosts: list[Host]) -> None:
        self.all = all_hosts
        self.idle: SimpleQueue[Host] = SimpleQueue()
        for host in all_hosts:
            self.idle.put(host)

    def run(self, job: Job, fault: Fault = NO_FAULT) -> Outcome:
        host = self.idle.get()
        try:
            return host.run(job, fault)
        finally:
            self.idle.put(host)

    def each(self, work: Callable[[T], Any], items: Iterable[T]) -> None:
        """As many at a time as there are hosts."""
        with ThreadPoolExecutor(len(self.all)) as pool:
            for _ in pool.map(work, items):
                pass


@contextmanager
def hosts(shim: Path, library: Library, root: Path, server: Server) -> Iterator[Hosts]:
    count = max(2, os.cpu_count() or 1)
    started = [Host(shim, library, Workspace.make(root / str(number), server)) for number in range(count)]
    try:
        yield Hosts(started)
    finally:
        for host in started:
            host.close()
