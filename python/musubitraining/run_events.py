"""What happens in a run, one typed event after the other: the lines of `events.jsonl` in the training folder.

A line is a JSON object: `event` names the kind, the other members are the fields of its class. Events and fields that a
reader does not know are to be passed over; none of those below will change its meaning or its unit.

The step of a run (`step`, a name) is "dataset", "precache:latents", "precache:text_encoder", "train" or
"convert:comfyui", as in the log; "precache" where a subclass does both caching steps; or what a subclass calls a
command of its own.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from musubitraining import run_fields as fields

FILE = "events.jsonl"


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened.

    Attributes:
        at: when, in UTC.
        seconds: since the run began, by a clock that is never set back.
    """

    at: datetime | None = fields.one(fields.time)
    seconds: float | None = fields.one(fields.number)


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """`started`: a run begins; the first line of a file.

    Attributes:
        version: of this format, 1.
        versions: of what takes part, as in `run.json`.
        arguments: what `train` was given, as in `run.json`; with the trainer's models, their folder and the clone.
        options: the training options by name, None without any.
        launch_options: the launch options by name, None without any.
        dataset_options: the dataset options by name, None without any.
        learning_rate: the highest of the schedule, where it is known.
        folders: the training and the output folder, as in `run.json`.
    """

    version: int | None = fields.one(fields.count)
    versions: dict[str, Any] = fields.objects()
    arguments: dict[str, Any] = fields.objects()
    options: dict[str, Any] | None = fields.one(fields.mapping)
    launch_options: dict[str, Any] | None = fields.one(fields.mapping)
    dataset_options: dict[str, Any] | None = fields.one(fields.mapping)
    learning_rate: float | None = fields.one(fields.number)
    folders: dict[str, Any] = fields.objects()


@dataclass(frozen=True, kw_only=True)
class StepStarted(Event):
    """`step_started`: a step of the run begins.

    Attributes:
        step: its name.
        argv: its command, program first; empty where it has none.
    """

    step: str = fields.needed(fields.text)
    argv: tuple[str, ...] = fields.many(fields.text)


@dataclass(frozen=True, kw_only=True)
class StepFinished(Event):
    """`step_finished`: a step of the run has ended, well or not.

    Attributes:
        step: its name.
        duration: how long it took, in seconds.
        exit_code: of its command, negative for a signal; None where it has none.
        argv: its command, where that was not known when it began: an override has run it.
        photos: after the step "dataset", as in `run.json`.
    """

    step: str = fields.needed(fields.text)
    duration: float | None = fields.one(fields.number)
    exit_code: int | None = fields.one(fields.integer)
    argv: tuple[str, ...] = fields.many(fields.text)
    photos: tuple[dict[str, Any], ...] = fields.many(fields.mapping)


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """`progress`: how far a step is.

    Attributes:
        step: its name.
        done: how much of `total` is done: training steps of "train", photos of the caching steps, which count batches,
            each as a full one.
        total: of how much, None where that is not known.
        average_loss: the mean of the last epoch's worth of training steps; null in JSON where it is no number, and
            absent before there is one.
        rate: of `done`, per second; the mean since the first training step, without it.
        seconds_left: until the step is done.
    """

    step: str = fields.needed(fields.text)
    done: int = fields.needed(fields.count)
    total: int | None = fields.one(fields.count)
    average_loss: float | None = fields.one(lambda found: found if isinstance(found, float) else None)
    rate: float | None = fields.one(fields.number)
    seconds_left: float | None = fields.one(fields.number)


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """`checkpoint`: the training has written weights.

    Attributes:
        path: of the file.
        step: the training step after which.
        bytes: its size.
        sha256: of the file, in hexadecimal digits, where it was taken.
    """

    path: str = fields.needed(fields.text)
    step: int | None = fields.one(fields.count)
    bytes: int | None = fields.one(fields.count)
    sha256: str | None = fields.one(fields.text)


@dataclass(frozen=True, kw_only=True)
class SampleWritten(Event):
    """`sample`: the training has written a sample image.

    Attributes:
        path: of the file.
        step: the training step after which.
        epoch: the epoch after which.
        prompt: what it was made from.
    """

    path: str = fields.needed(fields.text)
    step: int | None = fields.one(fields.count)
    epoch: int | None = fields.one(fields.count)
    prompt: str | None = fields.one(fields.text)


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """`warning`: something looks wrong.

    Attributes:
        message: the line of the log.
    """

    message: str = fields.needed(fields.text)


@dataclass(frozen=True, kw_only=True)
class GpuRead(Event):
    """`gpu`: what NVML says of the GPU in use.

    Attributes:
        used_bytes: of its memory, by all processes.
        total_bytes: of its memory.
        utilisation_percent: how much of the last moment it was at work, 0 to 100.
    """

    used_bytes: int = fields.needed(fields.count)
    total_bytes: int | None = fields.one(fields.count)
    utilisation_percent: float | None = fields.one(fields.number)


@dataclass(frozen=True, kw_only=True)
class Retried(Event):
    """`retry`: something failed and is tried again.

    Attributes:
        what: "download".
        attempt: the number of the try that comes, from 2.
        wait: before it, in seconds.
        reason: why the last one failed.
    """

    what: str | None = fields.one(fields.text)
    attempt: int | None = fields.one(fields.count)
    wait: float | None = fields.one(fields.number)
    reason: str | None = fields.one(fields.text)


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """`error`: the run has ended with an exception; the last line of a file.

    Attributes:
        outcome: "failed", or "cancelled" after `cancel()` or Ctrl-C.
        type: the exception's class.
        message: what it says.
        reason: why and what to do, where that is known.
        step: the step it came from.
    """

    outcome: Literal["failed", "cancelled"] = fields.one(fields.word("failed", "cancelled"), default="failed")
    type: str | None = fields.one(fields.text)
    message: str | None = fields.one(fields.text)
    reason: str | None = fields.one(fields.text)
    step: str | None = fields.one(fields.text)


@dataclass(frozen=True, kw_only=True)
class Done(Event):
    """`done`: the run has ended well; the last line of a file.

    Attributes:
        outputs: what it has made, as in `run.json`.
    """

    outputs: tuple[dict[str, Any], ...] = fields.many(fields.mapping)


KINDS: dict[str, type[Event]] = {
    "started": Started,
    "step_started": StepStarted,
    "step_finished": StepFinished,
    "progress": Progress,
    "checkpoint": CheckpointSaved,
    "sample": SampleWritten,
    "warning": Warned,
    "gpu": GpuRead,
    "retry": Retried,
    "error": Failed,
    "done": Done,
}
NAMES = {kind: name for name, kind in KINDS.items()}


def parse(line: str | bytes) -> Event | None:
    """The event of a line; None for one that is torn, or of a kind that is not known."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    name = found.get("event") if isinstance(found, dict) else None
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is Progress and "average_loss" in found:
        loss = fields.number(found["average_loss"])
        found["average_loss"] = float("nan") if loss is None else loss
    return None if kind is None else fields.read(kind, found)


def line(event: Event) -> str:
    """The line of an event, which `parse` makes this event of; with its end."""
    members = {name: value for name, value in fields.written(event).items() if value not in (None, [])}
    if isinstance(event, Progress) and event.average_loss is not None:
        members["average_loss"] = fields.written(event.average_loss)
    return json.dumps({"event": NAMES[type(event)], **members}, ensure_ascii=False, allow_nan=False) + "\n"


def read(path: Path, *, follow: bool = False, timeout: float | None = None, poll: float = 0.25) -> Iterator[Event]:
    """The events in a file, in order.

    Args:
        path: the file.
        follow: wait for more at its end, until the run's end is read or another run has begun a new file. The file
            need not be there yet.
        timeout: follow no longer than this many seconds without a new line.
        poll: seconds between two looks at a file that does not grow.

    Yields:
        Event: each as its line is complete; lines that cannot be read and kinds that are not known are left out.

    Raises:
        FileNotFoundError: there is no such file, and it is not followed.
        OSError: it cannot be read.
    """
    heard = time.monotonic()
    while not path.exists():
        if not follow:
            raise FileNotFoundError(f"{path} not found: expected the events of a run, which its training folder has")
        if timeout is not None and time.monotonic() - heard > timeout:
            return
        time.sleep(poll)
    with path.open("rb") as file:
        torn = b""
        while True:
            piece = file.readline()
            torn += piece
            if piece and (torn.endswith(b"\n") or not follow):
                event = parse(torn)
                torn = b""
                if event is not None:
                    yield event
                    if follow and isinstance(event, Done | Failed):
                        return
                heard = time.monotonic()
            elif not piece:
                silent = timeout is not None and time.monotonic() - heard > timeout
                if not follow or silent or _is_another(file.fileno(), path, file.tell()):
                    return
                time.sleep(poll)


def _is_another(file: int, path: Path, read_so_far: int) -> bool:
    """Whether another run has put its own file in the place of the one that is open, or emptied it."""
    ours = os.fstat(file)
    try:
        there = path.stat()
    except FileNotFoundError:
        return True
    return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino) or ours.st_size < read_so_far
