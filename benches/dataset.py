"""Download, extraction and captions: wall and peak memory against the original, curl, bsdtar and ripunzip."""

import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from measure import Bench, Contender, Missing, Sample, Table, compiled, interleaved, measured, ratios, spread, tool

ROUNDS = 5
SIZES = ((40, 4_000_000), (1_000, 1_000_000), (20_000, 20_000))
METHODS = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}
FLAT = (1, 10, 100, 1_000, 20_000)
FLAT_ROUNDS = 15
CURL = "curl > /dev/null"

# As a user calls it. Told are the seconds that it took, and the memory before.
PREPARE = """
import os, resource, sys, time
from musubitraining.main import Models, MusubiTraining
root, url, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
folders = {name: os.path.join(root, name) for name in ("models", "musubi", "output", "training")}
for name in ("models", "musubi"):
    os.makedirs(folders[name], exist_ok=True)
trainer = MusubiTraining(
    folders["models"], Models(), folders["training"], folders["output"], folders["musubi"]
)
toml = '[[datasets]]\\nimage_directory = "%s/images"\\ncache_directory = "%s/cache"\\n' % ((folders["training"],) * 2)
idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
trainer._prepare_dataset(toml, url, "word")
seconds = time.perf_counter() - start
found = len(os.listdir(os.path.join(folders["training"], "images")))
assert found == 2 * count, found
print("\\nTOLD", seconds, idle)
"""

SERVER = """
daemon off;
worker_processes 1;
pid {root}/nginx.pid;
error_log {root}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    client_body_temp_path {root}/body;
    proxy_temp_path {root}/proxy;
    fastcgi_temp_path {root}/fastcgi;
    uwsgi_temp_path {root}/uwsgi;
    scgi_temp_path {root}/scgi;
    server {{ listen 127.0.0.1:{port}; root {files}; }}
}}
"""


def photo(size: int) -> bytes:
    """A JPEG by its markers, of a size in bytes; what it shows is noise, which no compression makes smaller."""
    head = b"\xff\xd8\xff\xe0\x00\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0"
    head += b"\xff\xc0\x00\x0b\x08\x01\xe0\x02\x80\x01\x01\x11\x00\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
    return head + os.urandom(size - len(head) - 2).replace(b"\xff", b"\xfe") + b"\xff\xd9"


def make_zip(path: Path, count: int, size: int, method: int) -> None:
    """Photos at its top level, since the original cannot read folders."""
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive:
        for number in range(count):
            archive.writestr(f"{number:05}.jpg", photo(size))


@contextmanager
def serving(files: Path) -> Iterator[str]:
    """The files on loopback, by nginx with sendfile."""
    with socket.create_server(("127.0.0.1", 0)) as free, tempfile.TemporaryDirectory() as root:
        port = free.getsockname()[1]
        free.close()
        settings = Path(root, "nginx.conf")
        settings.write_text(SERVER.format(root=root, port=port, files=files))
        # Its worker is another user's, where root starts it.
        os.chmod(root, 0o755)
        server = subprocess.Popen([tool("nginx"), "-p", root, "-c", str(settings)])
        try:
            for _ in range(100):
                with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()


@dataclass(frozen=True)
class Case:
    """A zip on the server, and a folder for what becomes of it."""

    url: str
    count: int
    size: int
    """Of a photo, in bytes."""
    folder: Path
    memory: int
    """What the largest contender writes, about."""

    def prepare(self) -> None:
        """A fresh folder; and memory that a hypervisor has lent already, or the first to touch it would wait for it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        warm = self.folder / "warm"
        with warm.open("wb") as file:
            zeros = bytes(1 << 20)
            for _ in range(self.memory >> 20):
                file.write(zeros)
        warm.unlink()

    def has_photos(self) -> None:
        """Check what was extracted."""
        found = sum(1 for _ in self.folder.rglob("*.jpg"))
        if found != self.count:
            raise RuntimeError(f"{found} of {self.count} photos are there")

    def libraries(self, bench: Bench, prepare: Callable[[], object] | None = None) -> list[Contender]:
        """The original, and ours."""
        return [
            Contender(
                name,
                [str(python), "-c", PREPARE, str(self.folder), self.url, str(self.count)],
                environment=os.environ | {"no_proxy": "127.0.0.1"},
                prepare=prepare or self.prepare,
            )
            for name, python in (("original", bench.original), ("this library", bench.ours))
        ]

    def files_alone(self) -> Contender:
        """The other floor: what the kernel takes to write the photos and the captions, with nothing to wait for."""
        command = [str(compiled("files.c")), str(self.folder), str(self.count), str(self.size)]
        return Contender("the files, from memory", command, prepare=self.prepare, check=self.has_photos)

    def peers(self) -> list[Contender]:
        """The floor, and what else is quick; without what is not installed."""

        def shell(name: str, command: str, *programs: str, check: bool = False) -> list[Contender]:
            try:
                paths = {program: tool(program, PACKAGES.get(program)) for program in ("curl", *programs)}
            except Missing:
                return []
            paths |= {"url": self.url, "folder": str(self.folder)}
            run = ["/bin/sh", "-ec", "cd '{folder}'; ".format(**paths) + command.format(**paths)]
            checks = self.has_photos if check else None
            return [Contender(name, run, prepare=self.prepare, check=checks)]

        curl = "'{curl}' -s --noproxy '*' '{url}'"
        return [
            *shell(CURL, curl + " > /dev/null"),
            self.files_alone(),
            *shell("curl to disk", curl + " > a.zip"),
            *shell("curl to disk, cp", curl + " > a.zip; cp a.zip b.zip"),
            *shell("curl, bsdtar", curl + " | '{bsdtar}' -xf -", "bsdtar", check=True),
            *shell("curl, ripunzip", curl + " > a.zip; '{ripunzip}' unzip-file a.zip -q", "ripunzip", check=True),
        ]


PACKAGES = {"bsdtar": "libarchive-tools", "ripunzip": "cargo: cargo install ripunzip"}


def of_the_call(samples: Mapping[str, Sequence[Sample]]) -> dict[str, list[Sample]]:
    """With what the libraries tell in the place of the whole process: the call alone, and its memory over idle."""

    def told(sample: Sample) -> Sample:
        words = next((line.split() for line in sample.output.splitlines() if line.startswith("TOLD ")), None)
        if words is None:
            return sample
        return replace(sample, seconds=float(words[1]), peak_bytes=sample.peak_bytes - int(words[2]) * 1024)

    return {name: [told(sample) for sample in each] for name, each in samples.items()}


def missing() -> str:
    """Which peers are left out."""
    absent = []
    for name in ("curl", "bsdtar", "ripunzip"):
        try:
            tool(name, PACKAGES.get(name))
        except Missing as error:
            absent.append(str(error))
    return "".join(f" Left out: {reason}." for reason in absent)


def tables(bench: Bench) -> Iterator[Table]:
    """On tmpfs for each size and method, on a fresh ext4, and the cost of a photo by their number."""
    tool("nginx")
    tool("curl")
    with ExitStack() as stack:
        files = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=bench.work)))
        files.chmod(0o755)
        memory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        server = stack.enter_context(serving(files))

        def case(count: int, size: int, method: str, folder: Path) -> Case:
            name = f"{count}-{size}-{method}.zip"
            if not (files / name).exists():
                make_zip(files / name, count, size, METHODS[method])
            return Case(f"{server}/{name}", count, size, folder, 2 * count * size + (64 << 20))

        def table(title: str, conditions: str, contenders: Sequence[Contender]) -> Table:
            samples = of_the_call(interleaved(contenders, ROUNDS))
            shown = ratios(title, conditions, samples, against=CURL)
            by_original = ratios(title, conditions, samples, against="original", peak=False)
            rows = [[*row, *other[1:]] for row, other in zip(shown.rows, by_original.rows, strict=True)]
            return replace(shown, header=[*shown.header, *by_original.header[1:]], rows=rows)

        for count, size in SIZES:
            for method in METHODS:
                on_tmpfs = case(count, size, method, memory / "work")
                yield table(
                    f"Dataset: {count:,} × {size / 1000:,.0f} kB, {method}, tmpfs",
                    "nginx with sendfile over loopback. The libraries: `_prepare_dataset` (download, extraction, "
                    "captions) in a fresh process, memory over that after the import; the others: the whole command, "
                    "without captions. The files, from memory: photos and captions written by two threads, without a "
                    f"download.{missing()}",
                    [*on_tmpfs.libraries(bench), *on_tmpfs.peers()],
                )
            shutil.rmtree(memory / "work")
        yield flatness([case(count, 20_000, "stored", memory / "flat") for count in FLAT], bench)
        yield from on_ext4(bench, lambda folder: case(*SIZES[-1], "stored", folder), table)


def flatness(cases: Sequence[Case], bench: Bench) -> Table:
    """What a photo more costs."""
    contenders = [replace(case.libraries(bench)[1], name=str(case.count), prepare=case.prepare) for case in cases]
    samples = of_the_call(interleaved(contenders, FLAT_ROUNDS))
    fixed = samples[str(FLAT[0])]
    costs = {
        count: [
            (one.seconds - none.seconds) / (count - FLAT[0])
            for one, none in zip(samples[str(count)], fixed, strict=True)
        ]
        for count in FLAT[1:]
    }
    most = median(costs[FLAT[-1]])
    rows = [
        [f"{count:,} photos", *spread([cost / most for cost in each]), f"{median(each) * 1e6:.0f}"]
        for count, each in costs.items()
    ]
    return Table(
        "Dataset: the cost of a photo",
        "20 kB each, stored, tmpfs: the wall of the call over that of one photo, by the photos. Medians of "
        f"{FLAT_ROUNDS} interleaved rounds.",
        ["", f"a photo, × of {FLAT[-1]:,}", "min–max", "µs"],
        rows,
    )


def on_ext4(
    bench: Bench, case: Callable[[Path], Case], table: Callable[[str, str, Sequence[Contender]], Table]
) -> Iterator[Table]:
    """On a file system that was made for each round; the dataset as the first in its folder, and in another's place."""
    if os.geteuid() != 0:
        yield Table("Dataset: ext4", "Left out: to make and mount a fresh file system needs root.", [""], [])
        return
    with tempfile.TemporaryDirectory(dir=bench.work) as scratch:
        mount = Path(scratch, "mount")
        mount.mkdir()
        numbers = itertools.count()
        one = case(mount / "work")

        def fresh() -> None:
            subprocess.run(["umount", str(mount)], stderr=subprocess.DEVNULL)
            for used in Path(scratch).glob("image*"):
                used.unlink()
            image = Path(scratch, f"image{next(numbers)}")
            with image.open("wb") as file:
                file.truncate(6 << 30)
            subprocess.run([tool("mkfs.ext4", "e2fsprogs"), "-qF", str(image)], check=True)
            subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True)
            (mount / "work").mkdir()

        try:
            first = one.libraries(bench, fresh)
            peers = [replace(peer, prepare=fresh) for peer in one.peers()]
            conditions = "nginx with sendfile over loopback; a file system of its own, on a loop device, for each run."
            yield table("Dataset: 20,000 × 20 kB, stored, ext4", conditions, [*first, *peers])

            def over(contender: Contender) -> Callable[[], None]:
                def prepare() -> None:
                    fresh()
                    measured(contender.command, contender.environment)

                return prepare

            again = [replace(contender, prepare=over(contender)) for contender in first]
            yield table("Dataset: 20,000 × 20 kB, stored, ext4, over the same", conditions, [*again, peers[0]])
        finally:
            subprocess.run(["umount", str(mount)], stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit("run benches/main.py")
