"""Weights of a slow disk, read when they are needed, with and without the time before being used to read them ahead."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

from measure import HERE, Bench, Contender, Missing, Table, interleaved, ratios, tool

SIZE = 400 << 20
DISK_BYTES_A_SECOND = 100 << 20
SECONDS = SIZE / DISK_BYTES_A_SECOND
THROTTLE = Path("/sys/fs/cgroup/blkio/blkio.throttle.read_bps_device")


def tables(bench: Bench) -> Iterator[Table]:
    """Time to read them afterwards, and how soon reading ahead is given up."""
    folder = bench.work / "read_ahead"
    folder.mkdir(exist_ok=True)
    stops: list[float] = []
    with _slow_disk(folder) as disk:
        weights = disk / "weights.safetensors"
        with weights.open("wb") as file:
            for _ in range(SIZE >> 20):
                file.write(os.urandom(1 << 20))
            os.fsync(file.fileno())
        cat = _quietly(["cat", str(weights)])

        def half() -> None:
            _drop(weights)
            stops.append(_read_ahead(weights, SECONDS / 2)[0])

        def whole() -> None:
            _drop(weights)
            _read_ahead(weights, SECONDS * 1.3)

        contenders = [
            Contender("cold", cat, prepare=partial(_drop, weights)),
            Contender("read ahead for half of that time", cat, prepare=half),
            Contender("read ahead for longer", cat, prepare=whole),
            Contender("in memory (floor)", cat, prepare=partial(subprocess.run, cat, check=True)),
        ]
        samples = interleaved(contenders, rounds=3)
        twice = _read_ahead(weights, SECONDS)[1]
    yield ratios(
        "Reading the weights when the step begins",
        f"{SIZE >> 20} MiB, dropped from the page cache, on a disk throttled to {DISK_BYTES_A_SECOND >> 20} MiB/s.",
        samples,
        against="cold",
        peak=False,
    )
    rows = [
        ["given up in the middle, after", f"{median(stops) * 1e3:.0f} ms, at worst {max(stops) * 1e3:.0f}"],
        ["files that are in memory", twice],
    ]
    if Path("/dev/shm").is_dir():
        in_memory = Path("/dev/shm/musubitraining-read-ahead")
        in_memory.write_bytes(bytes(1 << 20))
        rows.append(["files on tmpfs", _read_ahead(in_memory, 0.5)[1]])
        in_memory.unlink()
    yield Table("Where it stops, and where it does nothing", "As it says itself.", ["", ""], rows)


def _quietly(command: list[str]) -> list[str]:
    return ["sh", "-c", 'exec "$@" > /dev/null', "sh", *command]


def _drop(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def _read_ahead(file: Path, seconds: float) -> tuple[float, str]:
    """How long it took to give up, and what it says."""
    cargo = [tool("cargo"), "run", "--quiet", "--release", "--example", "read_ahead", "--", str(seconds), str(file)]
    done = subprocess.run(cargo, cwd=HERE.parent, stdout=subprocess.PIPE, text=True, check=True)
    stopping, said = done.stdout.rstrip().split("\t")
    return float(stopping), said


@contextmanager
def _slow_disk(folder: Path) -> Iterator[Path]:
    if os.geteuid() or not THROTTLE.exists():
        raise Missing("a throttled disk needs root and the blkio controller of cgroup version 1")
    image, mounted = folder / "disk.img", folder / "disk"
    mounted.mkdir(exist_ok=True)
    with image.open("wb") as file:
        file.truncate(SIZE * 2)
    _run([tool("mkfs.ext4", "e2fsprogs"), "-q", "-F", str(image)])
    # Past the page cache of the file that it is in.
    device = _run([tool("losetup", "mount"), "--find", "--show", "--direct-io=on", str(image)])
    status = os.stat(device)
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    try:
        _run([tool("mount"), device, str(mounted)])
        THROTTLE.write_text(f"{number} {DISK_BYTES_A_SECOND}")
        yield mounted
    finally:
        THROTTLE.write_text(f"{number} 0")
        subprocess.run([tool("umount", "mount"), str(mounted)])
        _run([tool("losetup", "mount"), "--detach", device])
        image.unlink()


def _run(command: list[str]) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
