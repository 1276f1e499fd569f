"""Trains a LoRA from six photos with nothing but this package: `python -m musubitraining.demo`.

The library runs as it runs for everybody, from the download to the conversion. What is small is the tuner it drives.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
TUNER = HERE / "tuner"
PHOTOS = HERE / "photos"
LAUNCHER = HERE / "launcher"

TRIGGER_WORD = "zwxcat"
DATASET = """\
[general]
resolution = [256, 256]
caption_extension = ".txt"
batch_size = 1
enable_bucket = true

[[datasets]]
image_directory = {images}
cache_directory = {cache}
num_repeats = 1
"""


class Report(logging.Handler):
    """Reads from the library's log how long the steps took and where the loss went."""

    def __init__(self) -> None:
        """Starts with nothing read."""
        super().__init__()
        self.durations: dict[str, str] = {}
        self.losses: dict[int, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Takes note of a line."""
        line = record.getMessage()
        if done := re.search(r"\[([\w:]+)\] done \(duration=([\d.]+s)\)", line):
            self.durations[done[1]] = done[2]
        for step, loss in re.findall(r"steps: .*? (\d+)/\d+ \[.*?avr_loss=([^],]+)", line):
            self.losses[int(step)] = float(loss)

    def losses_at_the_ends(self) -> tuple[float, float]:
        """The mean of the reported losses over the first and over the last tenth of the steps."""
        losses = [loss for _, loss in sorted(self.losses.items())]
        tenth = max(1, len(losses) // 10)
        return sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth


def main() -> int:
    """Runs the demonstration and returns the exit code."""
    arguments = _parse_arguments()
    try:
        print_report(*train(arguments.folder.resolve(), arguments.steps))
    except ImportError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted")
    except subprocess.CalledProcessError as error:
        return _fail(f"a step failed with exit code {error.returncode}, the log above says why")
    except Exception as error:  # whatever it is, the reader gets one line
        return _fail(f"{type(error).__name__}: {' '.join(str(error).split())}")
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m musubitraining.demo", description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--folder", type=Path, default=Path("musubitraining-demo"), help="where everything goes (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=200, help="training steps (%(default)s)")
    return parser.parse_args()


def _requirements() -> list[str]:
    return ["numpy", "PIL"] + (["tomli"] if sys.version_info < (3, 11) else [])


def _fail(message: str) -> int:
    print(f"demo: {message}", file=sys.stderr)
    return 1


def train(folder: Path, steps: int) -> tuple[Report, str]:
    """Train on the photos, and return what the log said and the path of the LoRA.

    Raises:
        ImportError: something that the miniature tuner needs is missing.
        Exception: what `MusubiTraining.train` raises.
    """
    missing = [name for name in _requirements() if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{', '.join(missing)} not found: pip install 'TechTrash_MusubiTraining[demo]'")
    folder.mkdir(parents=True, exist_ok=True)
    _prepare_environment()
    # Only now: the first needs numpy, and the second may say why it cannot be loaded in the demo's one line.
    from musubitraining import Models, MusubiTraining
    from musubitraining.demo.weights import write_weights

    report = Report()
    logging.getLogger("musubitraining").addHandler(report)
    write_weights(folder / "models")
    training = MusubiTraining(
        absolute_path_models=str(folder / "models"),
        models_for_training=Models(),
        absolute_path_training_folder=str(folder / "training"),
        absolute_path_output=str(folder / "output"),
        absolute_path_musubi_tuner=str(TUNER),
    )
    dataset = DATASET.format(
        images=_toml_string(folder / "training" / "images"), cache=_toml_string(folder / "training" / "cache")
    )
    with _served_photos() as url:
        return report, training.train(dataset, url, TRIGGER_WORD, max_train_steps=steps)


def _toml_string(path: Path) -> str:
    """A path between quotes. What JSON escapes, TOML escapes the same way."""
    return json.dumps(str(path), ensure_ascii=False)


def _prepare_environment() -> None:
    """Lets the scripts find the miniature tuner and, where accelerate is absent, the launcher."""
    paths = [str(TUNER / "src")]
    if importlib.util.find_spec("accelerate") is None:
        paths.append(str(LAUNCHER))
        sys.path.append(str(LAUNCHER))
    _extend("PYTHONPATH", paths, os.pathsep)
    # The photos come from this machine, whatever proxy the rest of the world is behind.
    for name in ("NO_PROXY", "no_proxy"):
        _extend(name, ["127.0.0.1"], ",")


def _extend(variable: str, values: list[str], separator: str) -> None:
    inherited = os.environ.get(variable)
    os.environ[variable] = separator.join(values + ([inherited] if inherited else []))


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: the library logs the download."""


@contextlib.contextmanager
def _served_photos() -> Iterator[str]:
    """A zip of the photos at a URL of this machine."""
    with TemporaryDirectory() as folder:
        Path(folder, "photos.zip").write_bytes(_zipped_photos())
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=folder))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/photos.zip"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def _zipped_photos() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for photo in sorted(PHOTOS.glob("*.jpg")):
            archive.write(photo, photo.name)
    return packed.getvalue()


def print_report(report: Report, path: str) -> None:
    """Print how long the steps took, where the loss went, and where the LoRA is."""
    print()
    for step, duration in report.durations.items():
        print(f"{step:24}{duration:>8}")
    if report.losses:
        first, last = report.losses_at_the_ends()
        went = "fell" if last < first else "has not fallen yet: it went"
        print(f"The loss {went} from {first:.3f} to {last:.3f} (means over the first and the last tenth of the steps).")
    print("This LoRA is for trying the pipeline. It was fitted to a small random model and makes no pictures.")
    print(path)


if __name__ == "__main__":
    sys.exit(main())
