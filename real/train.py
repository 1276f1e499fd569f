"""One run of `train()` by the `musubitraining` that is on PYTHONPATH, with its log written down.

usage: python train.py MUSUBI_TUNER_DIR MODELS ADAPTER URL RUN [OPTIONS]

OPTIONS are further arguments of `train()`, as JSON. RUN/training and RUN/output are the two folders of the run,
RUN/log.txt holds its log lines (level, then message), and the path that `train()` returns is printed.
"""

import json
import logging
import sys
from pathlib import Path

from musubitraining.main import Models, MusubiTraining

STEPS = 4
DATASET = """\
[general]
resolution = [96, 96]
caption_extension = ".txt"
batch_size = 1
enable_bucket = true
bucket_no_upscale = false

[[datasets]]
image_directory = "{training}/images"
cache_directory = "{training}/cache"
num_repeats = 1
"""


def main() -> None:
    """Train once, as a user of the library would."""
    if len(sys.argv) not in (6, 7):
        sys.exit(__doc__)
    musubi, models, adapter, url, run, *options = sys.argv[1:]
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s %(message)s", filename=Path(run) / "log.txt", encoding="utf-8"
    )
    training = f"{run}/training"
    trainer = MusubiTraining(models, Models(base_weights=adapter), training, f"{run}/output", musubi)
    given = {"max_train_steps": STEPS, "seed": 42} | json.loads(*options or ["{}"])
    print(trainer.train(DATASET.format(training=training), url, "a photo of sks", **given))


if __name__ == "__main__":
    main()
