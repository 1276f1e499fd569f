"""A command as a whole process: wall, CPU and peak memory by the kernel's accounting; interleaved rounds; tables."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
BUILT = HERE.parent / "target/bench"


class Missing(Exception):
    """What a figure needs is not on this machine: it is left out, and why is written in its place."""


@dataclass(frozen=True)
class Contender:
    """A command that does the work that is measured."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] | None = None
    prepare: Callable[[], object] | None = None
    """Before each round, not measured."""
    check: Callable[[], object] | None = None
    """After each round; raises where the result is wrong."""


@dataclass(frozen=True)
class Sample:
    """What one run of a command took, as the kernel accounts for it.

    Attributes:
        seconds: wall, from fork to the end.
        cpu_seconds: of it and of every process that it waited for.
        peak_bytes: resident memory at its highest, of it or of a process that it waited for: of the largest one.
        output: stdout and stderr.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    output: str


@dataclass(frozen=True)
class Table:
    """A result; `str()` is Markdown."""

    title: str
    conditions: str
    header: list[str]
    rows: list[list[str]]

    def __str__(self) -> str:
        """Title, conditions and table."""
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"### {self.title}\n\n{self.conditions}\n\n{table}\n"


@dataclass(frozen=True)
class Bench:
    """What `main.py` hands to each module's `tables(bench)`.

    Attributes:
        ours: python with the release build of this checkout.
        original: python with the original and requests.
        work: scratch on a real disk.
        musubi: a clone of Musubi Tuner, if given.
        real: python with torch, if a clone is given.
        wheel: what was installed for `ours`, if it was built here.
    """

    ours: Path
    original: Path
    work: Path
    musubi: Path | None = None
    real: Path | None = None
    wheel: Path | None = None


def tool(name: str, package: str | None = None) -> str:
    """The path of a program.

    Raises:
        Missing: it is not installed.
    """
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")
    if path is None:
        raise Missing(f"{name} is missing (Debian, Ubuntu: apt install {package or name})")
    return path


def measured(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Sample:
    """Run a command to its end and measure it; it has no stdin.

    Raises:
        RuntimeError: it failed.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as told:
        # Files: a pipe's reader could hold the command up.
        launched = subprocess.run(
            [str(compiled("launch.c")), str(told.fileno()), *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[told.fileno()],
        )
        output.seek(0)
        said = output.read().decode(errors="replace")
        told.seek(0)
        numbers = [int(number) for number in told.read().split()]
    status = numbers[3] if len(numbers) == 4 else launched.returncode
    if status or len(numbers) != 4:
        raise RuntimeError(f"{' '.join(command)[:300]} failed ({status}):\n{said[-3000:]}")
    return Sample(numbers[0] / 1e9, numbers[1] / 1e9, numbers[2] * 1024, said)


def interleaved(contenders: Sequence[Contender], rounds: int = 5) -> dict[str, list[Sample]]:
    """Run all contenders in each round, each in turn first: what disturbs the machine disturbs them alike."""
    samples: dict[str, list[Sample]] = {contender.name: [] for contender in contenders}
    for number in range(rounds):
        turn = number % len(contenders)
        for contender in [*contenders[turn:], *contenders[:turn]]:
            if contender.prepare:
                contender.prepare()
            samples[contender.name].append(measured(contender.command, contender.environment))
            if contender.check:
                contender.check()
    return samples


def ratios(
    title: str, conditions: str, samples: Mapping[str, Sequence[Sample]], *, against: str, peak: bool = True
) -> Table:
    """One row a contender: its wall as a ratio to that of `against` in the same round, and its peak memory."""
    header = ["", f"wall, × {against}", "min–max", *(["peak memory, MB"] if peak else [])]
    rows = []
    for name, ours in samples.items():
        wall = spread([one.seconds / other.seconds for one, other in zip(ours, samples[against], strict=True)])
        memory = [f"{median(sample.peak_bytes for sample in ours) / 1e6:.1f}"] if peak else []
        rows.append([name, *wall, *memory])
    return Table(title, f"{conditions} Medians of {len(samples[against])} interleaved rounds.", header, rows)


def spread(values: Sequence[float]) -> list[str]:
    """Median, and lowest to highest, as two cells."""
    return [_number(median(values)), f"{_number(min(values))}–{_number(max(values))}"]


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


@cache
def compiled(name: str) -> Path:
    """The program that a C file of this folder is."""
    source, program = HERE / name, BUILT / Path(name).stem
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        BUILT.mkdir(parents=True, exist_ok=True)
        new = program.with_name(f"{program.name}.{os.getpid()}")
        subprocess.run([tool("cc", "gcc"), "-O2", "-pthread", "-o", str(new), str(source)], check=True)
        new.replace(program)
    return program
