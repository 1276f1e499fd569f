"""One run of `train()` by the library on PYTHONPATH; prints what its steps took, and a checksum of the LoRA.

usage: python train_once.py MUSUBI_TUNER_DIR MODELS URL RUN OPTIONS

OPTIONS are further arguments of `train()`, as JSON.
"""

import hashlib
import json
import logging
import re
import shutil
import sys
from pathlib import Path

from musubitraining.main import Models, MusubiTraining, logger

DATASET = """\
[general]
resolution = [96, 96]
caption_extension = ".txt"
batch_size = 1
enable_bucket = true

[[datasets]]
image_directory = "{training}/images"
cache_directory = "{training}/cache"
"""
STEP = re.compile(r"\[train\] steps: +\d+%.*? (\d+)/(\d+) ")


class Steps(logging.Handler):
    """Notes when the first step begins and the last one ends."""

    def __init__(self) -> None:
        """With none yet."""
        super().__init__()
        self.first = self.last = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Look for the bar of the steps."""
        if STEP.match(record.getMessage()):
            self.first = self.first or record.created
            self.last = record.created


def main() -> None:
    """Train once, in an empty folder."""
    musubi, models, url, run, options = sys.argv[1:]
    shutil.rmtree(run, ignore_errors=True)
    Path(run).mkdir()
    logging.basicConfig(level=logging.INFO, filename=f"{run}/log.txt", encoding="utf-8")
    steps = Steps()
    logger.addHandler(steps)
    training = f"{run}/training"
    trainer = MusubiTraining(models, Models(), training, f"{run}/output", musubi)
    trainer.train(DATASET.format(training=training), url, "a photo of sks", max_train_steps=4, **json.loads(options))
    lora = Path(run, "output/output_lora_model.safetensors").read_bytes()
    data = lora[8 + int.from_bytes(lora[:8], "little") :]
    print(json.dumps({"steps_seconds": steps.last - steps.first, "lora": hashlib.sha256(data).hexdigest()}))


if __name__ == "__main__":
    main()
