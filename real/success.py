"""Lets the real Musubi Tuner end well with nothing to show for it, and sees that the library says so.

usage: python success.py MUSUBI_TUNER_DIR WORK

with the folders of compare.py in WORK and the library on PYTHONPATH. Each case starts from the dataset, the caches and
the LoRA of a good run; the tuner ends with exit code 0 in all but the last, which is cancelled in its second step.
"""

import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from musubitraining import Cancelled
from musubitraining.main import Models, MusubiTraining
from safetensors import safe_open
from safetensors.torch import save_file

ADAPTER = "zimage_turbo_training_adapter_v2.safetensors"


class Place:
    """The folders of a run that went well, in the place where it was made, and what is logged of the next one."""

    def __init__(self, musubi: Path, work: Path) -> None:
        """Copy the good run."""
        self.run = work / "run"
        shutil.rmtree(self.run, ignore_errors=True)
        shutil.copytree(work / "ours", self.run)
        self.models = self.run / "models"
        shutil.copytree(work / "small/models", self.models)
        self.toml = self.run / "training/dataset.toml"
        self.trainer = MusubiTraining(self.models, Models(), self.run / "training", self.run / "output", musubi)

    def train(self) -> str:
        """Train for a few steps."""
        return self.trainer._launch_training(str(self.toml), output_name="output_lora_model", max_train_steps=4)


def no_captions(place: Place) -> object:
    """Look for captions under another ending than they have."""
    place.toml.write_text(place.toml.read_text(encoding="utf-8").replace('".txt"', '".caption"'), encoding="utf-8")
    return place.trainer._pre_cache(str(place.toml))


def nan_in_the_caches(place: Place) -> object:
    """Train on latents that are no numbers."""
    for cache in (place.run / "training/cache").glob("*_zi.safetensors"):
        with safe_open(cache, "pt") as file:
            tensors = {name: file.get_tensor(name) * float("nan") for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        save_file(tensors, cache, metadata)
    return place.train()


def adapter_of_another_model(place: Place) -> object:
    """Merge an adapter whose tensors have names that no module has."""
    adapter = place.models / ADAPTER
    with safe_open(adapter, "pt") as file:
        tensors = {name.replace("layers", "blocks"): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, adapter)
    return place.train()


def cancelled(place: Place) -> object:
    """Cancel as soon as a second step is done."""

    class Canceller(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "| 2/4 [" in record.getMessage():
                place.trainer.cancel()

    handler = Canceller()
    logging.getLogger("musubitraining").addHandler(handler)
    try:
        return place.train()
    except Cancelled as error:
        left = [pid for pid in os.listdir("/proc") if pid.isdigit() and trains(pid, place)]
        return f"{error}; processes left: {left}"
    finally:
        logging.getLogger("musubitraining").removeHandler(handler)


def trains(pid: str, place: Place) -> bool:
    """Whether this process is that of a training here."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"zimage_train_network" in words and os.fsencode(place.run) in words


CASES: list[tuple[Callable[[Place], object], str]] = [
    (no_captions, "RuntimeError: Musubi Tuner found 0 images"),
    (nan_in_the_caches, "RuntimeError: the loss was NaN from step 1 of 4 to the end"),
    (adapter_of_another_model, "WARNING [train] Musubi Tuner has merged 0 modules of the adapter"),
    (cancelled, "the training folder can be used again; processes left: []"),
]


class Said(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        """Start with nothing."""
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.lines.append(f"{record.levelname} {record.getMessage()}")


def main() -> None:
    """Run every case, and fail when one is not told."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    musubi, work = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    here = str(Path(__file__).resolve().parent / "small")
    environment = {
        "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), here, str(musubi / "src")]),
        "HF_HOME": str(work / "small/hf"),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "TQDM_MININTERVAL": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    os.environ.update(environment)
    logger = logging.getLogger("musubitraining")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    untold = 0
    for case, expected in CASES:
        said = Said()
        logger.addHandler(said)
        place = Place(musubi, work)
        try:
            outcome = str(case(place))
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        logger.removeHandler(said)
        found = [line for line in [outcome, *said.lines] if expected in line]
        untold += not found
        print(f"  {'told' if found else 'NOT TOLD':9}{case.__name__.replace('_', ' ')}: {(found or [outcome])[0]}")
    shutil.rmtree(work / "run", ignore_errors=True)
    sys.exit(untold > 0)


if __name__ == "__main__":
    main()
