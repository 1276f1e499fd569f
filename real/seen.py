"""Trains with the real Musubi Tuner, checkpoints and samples on the way, and sees that its events tell all of it.

usage: python seen.py MUSUBI_TUNER_DIR WORK

with the folders of compare.py in WORK and the library on PYTHONPATH. What each step has said is kept in WORK/output,
with the run at /workspace and the clone at /musubi; tests/recorded/output was made so.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from pathlib import Path

import train as real
from musubitraining import TrainingOptions, TrainingRun
from musubitraining import run_events as events
from musubitraining.main import Models, MusubiTraining

STEPS = 6
PROMPTS = ["a photo of sks", "two dogs"]
STEP_NAMES = ("precache:latents", "precache:text_encoder", "train")


class Said(logging.Handler):
    """Keeps the lines of each step's command."""

    def __init__(self) -> None:
        """Start with nothing."""
        super().__init__()
        self.lines: dict[str, list[str]] = {step: [] for step in STEP_NAMES}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        step, _, line = record.getMessage().removeprefix("[").partition("] ")
        ours = line == "starting" or line.startswith(("cwd=", "cmd=", "done (duration="))
        if step in self.lines and record.levelname == "INFO" and not ours:
            self.lines[step].append(line + "\n")


def main() -> None:
    """Train once, keep what was said, and fail where an event is missing."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    musubi, work = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    os.environ.update(
        {
            "PYTHONPATH": os.pathsep.join(
                [os.environ.get("PYTHONPATH", ""), str(Path(__file__).resolve().parent / "small"), str(musubi / "src")]
            ),
            "HF_HOME": str(work / "small/hf"),
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
    )
    run = work / "seen"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    prompts = run / "prompts.txt"
    prompts.write_text("".join(f"{prompt} --w 64 --h 64 --s 2\n" for prompt in PROMPTS), encoding="utf-8")
    said = Said()
    logger = logging.getLogger("musubitraining")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(said)
    options = TrainingOptions(save_every_n_steps=2, sample_every_n_steps=2, sample_prompts=str(prompts))
    models = Models(base_weights="zimage_turbo_training_adapter_v2.safetensors")
    trainer = MusubiTraining(work / "small/models", models, run / "training", run / "output", musubi, options=options)
    toml = real.DATASET.format(training=run / "training").replace("batch_size = 1", "batch_size = 2")
    trainer.train(toml, work / "small/photos.zip", "a photo of sks", max_train_steps=STEPS, seed=42, progress=False)
    record = TrainingRun.load(run / "training")
    keep(said, {str(run): "/workspace", str(work / "small"): "/workspace", str(musubi): "/musubi"}, work / "output")
    wrong = [text for text, is_so in what_should_be(record, run).items() if not is_so]
    print("\n".join(f"seen: {text}: not so" for text in wrong) or f"seen: all is told of {record}")
    sys.exit(bool(wrong))


def what_should_be(record: TrainingRun, run: Path) -> dict[str, bool]:
    """What the record of this run has where nothing is missed."""
    told = list(record.events())
    # By step 2, 4 and 6, and at the end of the last epoch.
    samples = sorted((run / "output/sample").iterdir())
    caching = [event for event in told if isinstance(event, events.Progress) and event.step != "train"]
    ends = {event.step: event for event in caching}.values()
    return {
        "the events are the record": TrainingRun.attach(run / "training") == record,
        "every step has its loss": [point.step for point in record.loss] == list(range(1, STEPS + 1)),
        "every sample is told": sorted(sample.path for sample in record.samples) == [str(path) for path in samples],
        "samples have their prompts": {sample.prompt for sample in record.samples} == set(PROMPTS),
        "every checkpoint is told": [saved.step for saved in record.checkpoints] == [2, 4, 6, 6],
        "every photo is cached": [event.done == event.total == len(record.photos) for event in ends] == [True, True],
        "steps end well": [step.exit_code for step in record.steps] == [None, 0, 0, 0, 0],
        "versions are known": None not in (record.versions.torch, record.versions.accelerate),
    }


def keep(said: Said, names: dict[str, str], folder: Path) -> None:
    """Write down what the steps said, with these names in the place of others."""
    folder.mkdir(exist_ok=True)
    for step, lines in said.lines.items():
        text = "".join(lines)
        for ours, theirs in names.items():
            text = text.replace(ours, theirs)
        (folder / f"{step.replace(':', '_')}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
