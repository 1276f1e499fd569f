"""Makes the record in tests/recorded/runs/demo from the log of a real run of the demonstration.

    python -m harness.recorded_run        (in tests/; needs NumPy and Pillow)

What the log says becomes events, with the times that it was said at. Paths are brought to /workspace.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory

import musubitraining
from musubitraining import run_events as events
from musubitraining.run_record import TrainingRun
from PIL import Image

RUNS = Path(__file__).parents[1] / "recorded" / "runs"
LINE = re.compile(r"([\d-]+ [\d:]+,\d+) \| (\w+) \| musubitraining \| (?:\[([\w:]+)\] )?(.*)")
BAR = re.compile(r"steps: .*\| (\d+)/(\d+) \[\d+:\d+<(\d+:\d+|\?), +([\d.]+|\?)it/s(?:, avr_loss=([^],]+))?\]")
CAPTION = "zwxcat"


def run_the_demonstration(folder: Path) -> list[str]:
    package = Path(musubitraining.__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": str(package), "PYTHONUTF8": "1", "TZ": "UTC"}
    command = [sys.executable, "-m", "musubitraining.demo", "--folder", str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return [line for line in (done.stdout + done.stderr).splitlines() if LINE.match(line)]


def file_facts(path: Path) -> dict[str, object]:
    content = path.read_bytes()
    return {"path": str(path), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def photo_facts(path: Path) -> dict[str, object]:
    with Image.open(path) as image:
        width, height = image.size
    return {
        "file": path.name,
        "from": path.name,
        "width": width,
        "height": height,
        "bytes": path.stat().st_size,
        "caption": path.with_suffix(".txt").read_text("utf-8"),
        "caption_from": "trigger",
        "done": [],
        "warnings": [],
    }


def clock(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S,%f").replace(tzinfo=timezone.utc)


def left(text: str) -> float | None:
    minutes, _, seconds = text.partition(":")
    return 60.0 * int(minutes) + int(seconds) if seconds else None


def events_of(lines: list[str], folder: Path) -> list[events.Event]:
    found: list[events.Event] = []
    began = clock(LINE.match(lines[0])[1])  # type: ignore[index]
    start = events.Started(
        at=began,
        seconds=0.0,
        version=1,
        versions={"musubitraining": "1.0.0", "musubi_tuner": "0.3.4", "python": platform.python_version()},
        arguments={
            "images_zip_url": "http://127.0.0.1/photos.zip",
            "trigger_word": CAPTION,
            "dataset_toml_content": (folder / "training/dataset.toml").read_text("utf-8"),
            "use_pre_cache": True,
            "convert_for_comfyui": True,
            "output_name": "output_lora_model",
            "max_train_steps": 200,
            "seed": 42,
        },
        learning_rate=2e-4,
        folders={"training": str(folder / "training"), "output": str(folder / "output")},
    )
    found.append(start)
    for line in lines:
        when, level, step, message = LINE.match(line).groups()  # type: ignore[union-attr]
        at = clock(when)
        now = {"at": at, "seconds": round((at - began).total_seconds(), 3)}
        if level == "WARNING":
            found.append(events.Warned(**now, message=line.split(" | ", 3)[3]))
        if message.startswith("preparing dataset"):
            found.append(events.StepStarted(**now, step="dataset"))
        elif message.startswith("images kept="):
            photos = tuple(photo_facts(photo) for photo in sorted((folder / "training/images").glob("*.jpg")))
            took = found[-1].seconds or 0.0
            found.append(events.StepFinished(**now, step="dataset", duration=now["seconds"] - took, photos=photos))
        elif message.startswith("cmd="):
            found.append(events.StepStarted(**now, step=step, argv=tuple(shlex.split(message[4:]))))
        elif done := re.match(r"done \(duration=([\d.]+)s\)", message):
            found.append(events.StepFinished(**now, step=step, duration=float(done[1]), exit_code=0))
        elif bar := BAR.search(message):
            found.append(
                events.Progress(
                    **now,
                    step=step,
                    done=int(bar[1]),
                    total=int(bar[2]),
                    seconds_left=left(bar[3]),
                    rate=None if bar[4] == "?" else float(bar[4]),
                    average_loss=None if bar[5] is None else float(bar[5]),
                )
            )
        elif message.startswith("saving checkpoint: "):
            facts = file_facts(Path(message.partition(": ")[2]))
            found.append(events.CheckpointSaved(**now, step=200, **facts))  # type: ignore[arg-type]
        elif message.startswith("done final_model="):
            outputs = tuple(
                {"kind": kind, **file_facts(folder / "output" / f"output_lora_model{end}.safetensors")}
                for kind, end in (("lora", ""), ("comfyui", "_comfyui"))
            )
            found.append(events.Done(**now, outputs=outputs))
    return found


def main() -> None:
    place = RUNS / "demo"
    place.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        lines = run_the_demonstration(folder)
        text = "".join(map(events.line, events_of(lines, folder)))
    package = str(Path(musubitraining.__file__).parent)
    for ours, theirs in ((str(folder), "/workspace"), (package, "/musubitraining"), (sys.executable, "python")):
        text = text.replace(ours, theirs)
    (place / events.FILE).write_text(text, encoding="utf-8")
    TrainingRun.attach(place).save()


if __name__ == "__main__":
    main()
