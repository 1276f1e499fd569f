"""Runs a step with the library that this Python has, and prints what was measured in it, as JSON.

usage: python step.py FOLDER burst|latency|idle HANDLER COUNT
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from musubitraining.main import Models, MusubiTraining, logger

LINE = "INFO:musubi_tuner.dataset.image_video_dataset:bucket: (960, 544), count: 123, batch index 45 of 678"
FORMAT = "%(asctime)s | %(levelname)s | %(name)s | %(message)s"
COMMANDS = {
    "burst": f"import sys; sys.stdout.writelines({LINE + chr(10)!r} * 100 for _ in range({{}} // 100))",
    "latency": "import time\nfor _ in range({}): time.sleep(0.01); print('at', time.monotonic(), flush=True)",
    "idle": "import os, time\nfor _ in range({}): print('of', os.getpid(), flush=True); time.sleep(1)",
}


class Latencies(logging.Handler):
    """Notes how old each line is."""

    def __init__(self) -> None:
        """With none yet."""
        super().__init__()
        self.seconds: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Read the time that the command printed."""
        now = time.monotonic()
        words = record.getMessage().split()
        if words[1] == "at":
            self.seconds.append(now - float(words[2]))


class Overhead(logging.Handler):
    """Notes at the second and the last line what host and supervisor have used: all but the command itself."""

    def __init__(self, count: int) -> None:
        """With the number of lines to come."""
        super().__init__()
        self.count = count
        self.heard = 0
        self.at: list[tuple[float, float, float]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Look at every process below this one."""
        words = record.getMessage().split()
        self.heard += words[1] == "of"
        # At others it would be itself what is measured.
        if words[1] == "of" and self.heard in (2, self.count):
            ours = [process for process in processes(os.getpid()) if process != int(words[2])]
            cpu = sum(map(cpu_seconds, ours))
            self.at.append((time.monotonic(), cpu, sum(map(resident_bytes, ours))))


def processes(pid: int) -> Iterator[int]:
    """A process and all that it has started."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from processes(int(child))


def cpu_seconds(pid: int) -> float:
    """What the kernel has accounted to all threads of a process."""
    return sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def resident_bytes(pid: int) -> int:
    """What a process holds, pages shared with others in proportion."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def main() -> None:
    """Run the step."""
    folder, kind, name, count = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    handlers: dict[str, Callable[[], logging.Handler]] = {
        "file": lambda: logging.FileHandler(folder / "log.txt", "w"),
        "dated file": lambda: logging.FileHandler(folder / "log.txt", "w"),
        "null": logging.NullHandler,
        "latency": Latencies,
        "idle": lambda: Overhead(count),
    }
    handler = handlers[name]()
    if name == "dated file":
        handler.setFormatter(logging.Formatter(FORMAT))
    # So that none is added to the root.
    logging.basicConfig(handlers=[logging.NullHandler()])
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    trainer = MusubiTraining(str(folder), Models(), str(folder), str(folder), str(folder))
    command = [sys.executable, "-c", COMMANDS[kind].format(count)]
    start, cpu_start = time.perf_counter(), time.process_time()
    trainer._run_cmd("train", command, cwd=str(folder))
    told: dict[str, object] = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
    if isinstance(handler, Latencies):
        told["latencies"] = handler.seconds
    if isinstance(handler, Overhead):
        (began, cpu_before, _), (ended, cpu, resident) = handler.at
        told |= {"cpu_share": (cpu - cpu_before) / (ended - began), "resident": resident}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
