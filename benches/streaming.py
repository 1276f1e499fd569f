"""Lines through reader, parser and Python's logger; how soon one is seen; what host and supervisor use meanwhile."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from measure import HERE, Bench, Contender, Sample, Table, interleaved, spread, tool

LINES = 300_000
HANDLERS = {"null": "NullHandler", "file": "FileHandler", "dated file": "FileHandler, each line with its time"}


def tables(bench: Bench) -> Iterator[Table]:
    """Rate, parser alone, latency, CPU and memory."""
    folder = bench.work / "streaming"
    folder.mkdir(exist_ok=True)
    yield _rates(bench, folder)
    yield _parser()
    yield _latencies(bench, folder)
    yield _idle(bench, folder)


def _contenders(bench: Bench, folder: Path, kind: str, handler: str, count: int) -> list[Contender]:
    libraries = {"original": bench.original, "this library": bench.ours}
    words = [str(HERE / "step.py"), str(folder), kind, handler, str(count)]
    return [Contender(name, [str(python), *words]) for name, python in libraries.items()]


def _told(sample: Sample) -> Any:
    return json.loads(sample.output.splitlines()[-1])


def _rates(bench: Bench, folder: Path) -> Table:
    rows = []
    for handler, title in HANDLERS.items():
        contenders = _contenders(bench, folder, "burst", handler, LINES)
        if "file" in handler:
            contenders = [replace(one, check=lambda: _is_whole(folder / "log.txt")) for one in contenders]
        samples = interleaved(contenders)
        told = {name: [_told(sample) for sample in those] for name, those in samples.items()}
        for name, those in told.items():
            row = [f"{name}, {title}"]
            for what in ("seconds", "cpu_seconds"):
                pairs = zip(those, told["original"], strict=True)
                row += spread([theirs[what] / ours[what] for ours, theirs in pairs])
            rows.append([*row, f"{LINES / median(one['seconds'] for one in those):,.0f}"])
    return Table(
        "A command that prints as fast as it can",
        f"{LINES:,} lines of 100 bytes through `_run_cmd` and its logger; interleaved rounds. By CPU time: of the "
        "host with all its threads, which is what other programs on the machine disturb least.",
        ["", "lines/s, × original", "min–max", "lines per CPU second, × original", "min–max", "lines/s"],
        rows,
    )


def _is_whole(log: Path) -> None:
    with log.open("rb") as lines:
        count = sum(1 for _ in lines)
    if count != LINES + 4:
        raise RuntimeError(f"{log} has {count} lines, not {LINES + 4}")


def _parser() -> Table:
    cargo = [tool("cargo"), "run", "--quiet", "--release", "--example", "lines"]
    done = subprocess.run(cargo, cwd=HERE.parent, stdout=subprocess.PIPE, text=True, check=True)
    rows = []
    for line in done.stdout.splitlines():
        name, reader, heard = line.split("\t")
        rows.append([name, f"{float(reader) / 1e6:.1f}", f"{float(heard) / 1e6:.1f}"])
    return Table(
        "Reader and parser alone",
        "Million lines a second, on one core: the best of seven rounds.",
        ["", "reader", "reader and parser"],
        rows,
    )


def _latencies(bench: Bench, folder: Path) -> Table:
    samples = interleaved(_contenders(bench, folder, "latency", "latency", 200), rounds=3)
    rows = []
    for name, those in samples.items():
        ages = sorted(age * 1e3 for sample in those for age in _told(sample)["latencies"])
        rows.append([name, f"{median(ages):.2f}", f"{ages[len(ages) * 99 // 100]:.2f}", f"{ages[-1]:.2f}"])
    return Table(
        "How old a line is when a log handler has it",
        "One each 10 ms; all of three interleaved rounds of 200.",
        ["", "median, ms", "99 of 100, ms", "worst, ms"],
        rows,
    )


def _idle(bench: Bench, folder: Path) -> Table:
    samples = interleaved(_contenders(bench, folder, "idle", "idle", 22), rounds=3)
    rows = []
    for name, those in samples.items():
        cpu = [_told(sample)["cpu_share"] * 100 for sample in those]
        memory = [_told(sample)["resident"] / 1e6 for sample in those]
        rows.append([name, *spread(cpu), *spread(memory)])
    return Table(
        "While a command prints once a second",
        "Host and supervisor together, without the command: CPU time as the scheduler accounts for it over 20 s, of "
        "one core; proportional resident memory (PSS). Three interleaved rounds.",
        ["", "CPU, %", "min–max", "memory, MB", "min–max"],
        rows,
    )
