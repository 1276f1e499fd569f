"""Runs the benches and writes BENCHMARKS.md; `make bench` calls it with what it has built.

Every figure is a ratio against the original, or against the floor, in the same run.
"""

import argparse
import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from measure import BUILT, HERE, Bench, Missing, Table

SECTIONS = ("imports", "dataset", "streaming", "conversion", "read_ahead", "training")
REPORT = HERE.parent / "BENCHMARKS.md"
HEAD = """\
# Benchmarks

Written by `make bench`; `make bench ONLY=imports,streaming` measures some anew and keeps the others. Contenders take
turns within a round; a ratio is that of two runs in the same round; told are the median of the rounds, the lowest and
the highest. Peak memory is the kernel's own: `ru_maxrss` of the process, or of the largest that it waited for.
"""
TOOLS = {
    "curl": ["curl", "--version"],
    "nginx": ["nginx", "-v"],
    "bsdtar": ["bsdtar", "--version"],
    "ripunzip": ["ripunzip", "--version"],
    "rustc": ["rustc", "--version"],
}


def conditions(bench: Bench) -> str:
    """The machine, and the versions of what was measured."""
    memory_kib = int(_first("/proc/meminfo", r"MemTotal:\s*(\d+)"))
    processor = _first("/proc/cpuinfo", r"model name\s*: (.*)") or platform.machine()
    said = [
        f"{time.strftime('%Y-%m-%d')}, commit {_commit()}",
        f"{len(os.sched_getaffinity(0))} cores ({processor})",
        f"{memory_kib / 2**20:.0f} GiB",
        f"Linux {platform.release()}",
        f"Python {platform.python_version()}",
        f"scratch on {_file_system(bench.work)}",
    ]
    for name, command in TOOLS.items():
        program = shutil.which(name) or shutil.which(name, path="/usr/sbin")
        if program:
            words = _output([program, *command[1:]])
            version = re.search(r"\d+(?:\.\d+)+", words)
            said.append(f"{name} {version[0] if version else words}")
    return "; ".join(said) + "."


def _commit() -> str:
    git = ["git", "-C", str(HERE)]
    changed = _output([*git, "status", "--porcelain", "--untracked-files=no"])
    changed = "\n".join(line for line in changed.splitlines() if not line.endswith(REPORT.name))
    return _output([*git, "rev-parse", "--short", "HEAD"]) + (" with changes" if changed else "")


def _output(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout.rstrip()


def _first(file: str, pattern: str) -> str:
    found = re.search(pattern, Path(file).read_text(encoding="utf-8"))
    return found[1].strip() if found else ""


def _file_system(folder: Path) -> str:
    return _output(["stat", "-f", "-c", "%T", str(folder)])


def sections(text: str) -> dict[str, str]:
    """The parts of an earlier BENCHMARKS.md by their names."""
    parts = re.split(r"^## (\w+)\n\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def measure(name: str, bench: Bench) -> Iterator[str | Table]:
    """The tables of one module; where something is missing, what."""
    try:
        yield from importlib.import_module(name).tables(bench)
    except Missing as missing:
        yield f"Left out: {missing}\n"


def main() -> int:
    """Measure and write; returns 1 where a bench failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ours", type=Path, required=True, help="python with the release build of this checkout")
    parser.add_argument("--original", type=Path, required=True, help="python with the original and requests")
    parser.add_argument("--wheel", type=Path, help="the wheel of this checkout")
    parser.add_argument("--musubi", type=Path, help="a clone of Musubi Tuner")
    parser.add_argument("--real", type=Path, help="python with torch")
    parser.add_argument("--work", type=Path, default=BUILT / "work", help="scratch on a real disk")
    parser.add_argument("--only", default="", help=f"some of {','.join(SECTIONS)}")
    given = parser.parse_args()
    names = [name for name in given.only.split(",") if name] or list(SECTIONS)
    if unknown := set(names) - set(SECTIONS):
        parser.error(f"no such bench: {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    given.work.mkdir(parents=True, exist_ok=True)
    # Not resolved: an environment's python is a link.
    python = {key: path and path.absolute() for key, path in vars(given).items() if key in ("ours", "original", "real")}
    bench = Bench(work=given.work.resolve(), musubi=given.musubi, wheel=given.wheel, **python)
    written = sections(REPORT.read_text(encoding="utf-8")) if REPORT.exists() else {}
    failed = False
    for name in names:
        print(f"# {name}", flush=True)
        parts = [f"{conditions(bench)}\n"]
        try:
            for part in measure(name, bench):
                print(part, flush=True)
                parts.append(str(part))
        except Exception as error:
            traceback.print_exc()
            failed = True
            parts.append(f"Failed: {type(error).__name__}\n")
        written[name] = "\n".join(parts)
        text = "\n".join(f"## {name}\n\n{written[name].rstrip()}\n" for name in SECTIONS if name in written)
        REPORT.write_text(f"{HEAD}\n{text}", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
