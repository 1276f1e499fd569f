"""The whole of `train()` with the real Musubi Tuner and small weights: what is not an optimisation step is overhead."""

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from measure import HERE, Bench, Contender, Missing, Sample, Table, interleaved, ratios

REAL = HERE.parent / "real"
ORIGINAL = "TechTrash-MusubiTraining==0.0.11"
ROUNDS = 3
# About as long as the imports that it can hide.
SLOW_DOWNLOAD_SECONDS = 6
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "original": ("original", {}),
    "ours": ("ours", {}),
    "ours, native_convert": ("ours", {"native_convert": True}),
    "ours, warm_start": ("ours", {"warm_start": True}),
}


class Slow(SimpleHTTPRequestHandler):
    """A file server whose line is as slow as it says."""

    def __init__(self, *given: Any, seconds: float, directory: str) -> None:
        """Take so long for a file."""
        self.seconds = seconds
        super().__init__(*given, directory=directory)

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """Send a twentieth at a time."""
        content = source.read()
        piece = len(content) // 20 + 1
        for start in range(0, len(content), piece):
            time.sleep(self.seconds / 20)
            outputfile.write(content[start : start + piece])

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path, seconds: float) -> Iterator[str]:
    """Serve a folder on loopback."""
    handler = partial(Slow, seconds=seconds, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/photos.zip"
        server.shutdown()


def tables(bench: Bench) -> Iterator[Table]:
    """The overhead of each way of training, with a fast download and a slow one."""
    if not (bench.musubi and bench.real and bench.wheel):
        raise Missing("it needs a clone of Musubi Tuner: make bench MUSUBI_TUNER_DIR=/path/to/clone")
    work = bench.work / "training"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    libraries = {"ours": str(bench.wheel), "original": ORIGINAL}
    for name, requirement in libraries.items():
        pip = [str(bench.real), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", str(work / name), requirement], check=True)
    weights = [str(bench.real), str(REAL / "weights.py"), str(work / "small")]
    subprocess.run(weights, env=environment(bench, work, "ours"), check=True, stderr=subprocess.DEVNULL)
    for what, seconds in (("at once", 0.0), (f"in {SLOW_DOWNLOAD_SECONDS} s", SLOW_DOWNLOAD_SECONDS)):
        with served(work / "small", seconds) as url:
            samples = interleaved([contender(bench, work, url, way) for way in WAYS], ROUNDS)
        loras = {told(sample)["lora"] for taken in samples.values() for sample in taken}
        if len(loras) != 1:
            raise RuntimeError(f"{len(loras)} different LoRAs")
        overheads = {way: list(map(without_steps, taken)) for way, taken in samples.items()}
        yield ratios(
            f"Overhead of train(), photos downloaded {what}",
            "Wall of the host's process less its 4 optimisation steps; small random weights on CPUs, the same LoRA bit "
            "by bit in every run.",
            overheads,
            against="original",
        )


def contender(bench: Bench, work: Path, url: str, way: str) -> Contender:
    """A way of training."""
    library, options = WAYS[way]
    command = [bench.real, HERE / "train_once.py", bench.musubi, work / "small/models", url, work / "run"]
    return Contender(way, [*map(str, command), json.dumps(options)], environment(bench, work, library))


def environment(bench: Bench, work: Path, library: str) -> dict[str, str]:
    """That of a host with the small model, and the library importable."""
    path = [work / library, REAL / "small", Path(str(bench.musubi)) / "src"]
    return {
        "HOME": os.environ.get("HOME", "/"),
        # The original finds accelerate on PATH.
        "PATH": os.pathsep.join([str(Path(str(bench.real)).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "HF_HOME": str(work / "small/hf"),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def told(sample: Sample) -> dict[str, Any]:
    """What `train_once.py` has printed."""
    answer: dict[str, Any] = json.loads(sample.output.strip().splitlines()[-1])
    return answer


def without_steps(sample: Sample) -> Sample:
    """The sample with its overhead as its time."""
    return replace(sample, seconds=sample.seconds - told(sample)["steps_seconds"])
