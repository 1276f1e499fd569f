"""Runs to make reports of: one with everything in it, and one whose every word is hostile."""

from __future__ import annotations

import math
import random
import shutil
from dataclasses import fields
from datetime import datetime, timedelta, timezone
from pathlib import Path

from musubitraining import TrainingRun
from musubitraining.run_record import (
    Checkpoint,
    Folders,
    GpuReading,
    LossPoint,
    Output,
    Photo,
    RunError,
    Sample,
    Step,
    Versions,
)

DEMO_PHOTOS = Path(__file__).parents[2] / "python/musubitraining/demo/photos"
BEGAN = datetime(2026, 11, 23, 14, 2, 11, tzinfo=timezone.utc)
GIB = 2**30

EVIL = (
    "<img src=x onerror=alert(1)></script></title></style><script>alert(1)</script>\"'`&amp;--><!--\0\x1b\ud800\u202e"
)


def after(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def everything(folder: Path) -> TrainingRun:
    """As a run on a GPU would leave it, in a folder that has its photos and samples."""
    chance = random.Random(6)
    images, output = folder / "images", folder / "output"
    images.mkdir(parents=True)
    (output / "sample").mkdir(parents=True)
    photos, samples = [], []
    for number, photo in enumerate(sorted(DEMO_PHOTOS.glob("*.jpg")) * 2):
        name = f"{photo.stem}_{number}.jpg"
        shutil.copy(photo, images / name)
        photos.append(
            Photo(
                file=name, source=f"album/{photo.name}", width=300, height=240, bytes=photo.stat().st_size,
                caption=f"zwxcat, a tabby cat, photo {number}", caption_from="file",
                done=("turned upright (EXIF orientation 6)", "renamed from a.JPG") if number % 4 == 0 else (),
                warnings=("small: enlarged 4.1 times",) if number == 2 else (),
            )
        )  # fmt: skip
        step = 500 * (number // 3)
        path = output / "sample" / f"zwxcat_{step:06}_{number % 3:02}.jpg"
        shutil.copy(photo, path)
        samples.append(Sample(path=str(path), step=step, prompt=f"zwxcat on a windowsill, prompt {number % 3}"))
    loss = [
        LossPoint(step, 0.28 + 0.32 * math.exp(-step / 420) + chance.gauss(0, 0.03), 95 + 0.62 * step)
        for step in range(1, 2001)
    ]
    loss[639] = LossPoint(640, 0.9, loss[639].seconds)
    lora = "/workspace/outputs/zwxcat"
    return TrainingRun(
        outcome="done", started_at=BEGAN, ended_at=after(1345), seconds=1345.0, folder=folder,
        versions=Versions(
            musubitraining="1.0.0", musubi_tuner="0.3.4", musubi_tuner_commit="0123456789abcdef", python="3.11.7",
            torch="2.9.1+cu128", accelerate="1.12.0", driver="570.86.15", gpu="NVIDIA GeForce RTX 4090",
        ),
        arguments={
            "images_zip_url": "https://example.com/photos.zip", "trigger_word": "zwxcat", "output_name": "zwxcat",
            "max_train_steps": 2000, "seed": 42, "use_pre_cache": True,
            "dataset_toml_content": '[general]\nresolution = [1024, 1024]\n\n[[datasets]]\nimage_directory = "/t"\n',
        },
        options={"optimizer_args": ["weight_decay=0.0001"], "network_dim": 16, "blocks_to_swap": None, "fp8": False},
        launch_options={"num_processes": 1, "num_cpu_threads_per_process": 1},
        dataset_options={"captions": "files", "image_extensions": ["jpg", "jpeg"], "upright": True},
        commands={"train": ("python", "-m", "accelerate.commands.launch", "train.py", "--dit", "/my models/dit")},
        steps=(
            Step(step="dataset", started_at=BEGAN, seconds=18.4),
            Step(step="precache:latents", started_at=after(19), seconds=41.0, exit_code=0),
            Step(step="precache:text_encoder", started_at=after(19), seconds=58.0, exit_code=0),
            Step(step="train", started_at=after(78), seconds=1263.0, exit_code=0),
            Step(step="convert:comfyui", started_at=after(1342), seconds=2.1, exit_code=0),
        ),
        loss=tuple(loss), seconds_per_step=0.62, learning_rate=2e-4,
        gpu=tuple(
            GpuReading(float(at), int((3 if at < 40 else 9.6 if at < 92 else 17.6) * GIB), 24 * GIB, 97.0)
            for at in range(0, 1345, 5)
        ),
        photos=tuple(photos), samples=tuple(samples),
        checkpoints=tuple(Checkpoint(path=f"{lora}-{step}", step=step, bytes=85_000_000) for step in (500, 1000, 1500)),
        outputs=(
            Output(path=f"{lora}.safetensors", kind="lora", bytes=85_000_000, sha256="0a" * 32),
            Output(path=f"{lora}_comfyui.safetensors", kind="comfyui", bytes=98_000_000, sha256="1b" * 32),
        ),
        warnings=("[dataset] left out: IMG_2031.HEIC",),
        folders=Folders(training="/workspace/training", output=str(output)),
    )  # fmt: skip


def hostile(word: str = EVIL) -> TrainingRun:
    """Every string of the record is `word`."""
    return TrainingRun(
        outcome="failed", started_at=BEGAN, seconds=170.0, learning_rate=2e-4,
        error=RunError(type=word, message=word, reason=word, step=word),
        versions=Versions(**dict.fromkeys((one.name for one in fields(Versions)), word)),
        arguments={word: word, "trigger_word": word, "list": [word, {word: word}], "lines": f"a\n{word}"},
        options={word: word}, launch_options={word: [word]}, dataset_options={word: {word: word}},
        commands={word: (word, f"--{word}"), "train": ("python", word)},
        steps=(Step(step=word, seconds=3.0, exit_code=1), Step(step="train", seconds=None)),
        loss=tuple(LossPoint(step, math.nan if step % 5 == 0 else 1.0 / step, float(step)) for step in range(1, 50)),
        gpu=(GpuReading(0.0, 5, 7, 3.0), GpuReading(9.0, 6)),
        photos=(Photo(file=word, source=word, caption=word, caption_from=word, done=(word,), warnings=(word,)),
                Photo(file="b", caption_from="trigger")),
        checkpoints=(Checkpoint(path=word, step=10, sha256=word),),
        samples=(Sample(path=word, step=10, epoch=2, prompt=word), Sample(path=word)),
        outputs=(Output(path=word, kind=word, bytes=3, sha256=word),),
        warnings=(word,),
        folders=Folders(training=word, output=word),
    )  # fmt: skip
