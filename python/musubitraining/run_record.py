"""The record of a run: `run.json` and `events.jsonl` in its training folder, and what can be made of them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from musubitraining import run_events as events
from musubitraining import run_fields as fields

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "run.json"
REPORT = "report.html"
VERSION = 1


class LossPoint(NamedTuple):
    """What the training said of its loss.

    Attributes:
        step: the training step after which.
        average_loss: the mean of the last epoch's worth of steps; NaN where it was no number (null in JSON).
        seconds: since the run began.
    """

    step: int
    average_loss: float
    seconds: float | None = None


class GpuReading(NamedTuple):
    """What NVML said of the GPU in use.

    Attributes:
        seconds: since the run began.
        used_bytes: of its memory, by all processes.
        total_bytes: of its memory.
        utilisation_percent: how much of the last moment it was at work, 0 to 100.
    """

    seconds: float
    used_bytes: int
    total_bytes: int | None = None
    utilisation_percent: float | None = None


@dataclass(frozen=True, kw_only=True)
class Versions:
    """What took part; None where it is not known.

    Attributes:
        musubitraining: the version of this package.
        musubi_tuner: the version of Musubi Tuner.
        musubi_tuner_commit: the commit of its clone.
        python: the version of the interpreter that ran the steps.
        torch: the version of PyTorch, with its build.
        accelerate: the version of accelerate.
        driver: the version of the NVIDIA driver.
        gpu: the name of the GPU.
    """

    musubitraining: str | None = fields.one(fields.text)
    musubi_tuner: str | None = fields.one(fields.text)
    musubi_tuner_commit: str | None = fields.one(fields.text)
    python: str | None = fields.one(fields.text)
    torch: str | None = fields.one(fields.text)
    accelerate: str | None = fields.one(fields.text)
    driver: str | None = fields.one(fields.text)
    gpu: str | None = fields.one(fields.text)


@dataclass(frozen=True, kw_only=True)
class RunError:
    """The exception that ended a run.

    Attributes:
        type: its class.
        message: what it says.
        reason: why and what to do, where that is known.
        step: the name of the step it came from.
    """

    type: str | None = fields.one(fields.text)
    message: str | None = fields.one(fields.text)
    reason: str | None = fields.one(fields.text)
    step: str | None = fields.one(fields.text)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of the run.

    Attributes:
        step: its name: "dataset", "precache:latents", "precache:text_encoder", "train" or "convert:comfyui".
        started_at: when it began, in UTC.
        seconds: how long it took; None where its end is not recorded.
        exit_code: of its command, negative for a signal; None where it has none.
    """

    step: str = fields.needed(fields.text)
    started_at: datetime | None = fields.one(fields.time)
    seconds: float | None = fields.one(fields.number)
    exit_code: int | None = fields.one(fields.integer)


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A photo of the dataset.

    Attributes:
        file: its name in `images`.
        source: what it was called where it came from (`from` in JSON).
        width: in pixels, as it is trained on.
        height: in pixels, as it is trained on.
        bytes: its size.
        caption: what it is trained with.
        caption_from: "trigger", "file" or "default_caption".
        done: what was done to it, each in words.
        warnings: what looks wrong with it, each in words.
    """

    file: str = fields.needed(fields.text)
    source: str | None = fields.one(fields.text, key="from")
    width: int | None = fields.one(fields.count)
    height: int | None = fields.one(fields.count)
    bytes: int | None = fields.one(fields.count)
    caption: str | None = fields.one(fields.text)
    caption_from: str | None = fields.one(fields.text)
    done: tuple[str, ...] = fields.many(fields.text)
    warnings: tuple[str, ...] = fields.many(fields.text)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights that the training has saved.

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
class Sample:
    """An image that the training has made.

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
class Output:
    """What a run has made.

    Attributes:
        path: of the file.
        kind: "lora", as it was trained, or "comfyui", converted for ComfyUI.
        bytes: its size.
        sha256: of the file, in hexadecimal digits.
    """

    path: str = fields.needed(fields.text)
    kind: str | None = fields.one(fields.text)
    bytes: int | None = fields.one(fields.count)
    sha256: str | None = fields.one(fields.text)


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where a run was.

    Attributes:
        training: the training folder.
        output: the output folder.
    """

    training: str | None = fields.one(fields.text)
    output: str | None = fields.one(fields.text)


def _loss_point(found: Any) -> LossPoint | None:
    step, loss, seconds = (*found, None, None, None)[:3] if isinstance(found, list) else (None, None, None)
    number = fields.count(step)
    average = fields.number(loss)
    return (
        None if number is None else LossPoint(number, math.nan if average is None else average, fields.number(seconds))
    )


def _loss(found: Any) -> tuple[LossPoint, ...]:
    return tuple(sorted(fields.each(_loss_point)(found) or (), key=lambda point: point.step))


def _gpu_reading(found: Any) -> GpuReading | None:
    cells = (*found, None, None, None, None)[:4] if isinstance(found, list) else (None,) * 4
    seconds, used = fields.number(cells[0]), fields.count(cells[1])
    if seconds is None or used is None:
        return None
    return GpuReading(seconds, used, fields.count(cells[2]), fields.number(cells[3]))


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainingRun:
    """A run of `train`: what it was told, what it did, what came of it.

    `load` reads one that has ended, `attach` one that may still be going. It is the record as it was then; what happens
    later is in `events(follow=True)`, or in what is attached anew.

    Attributes:
        version: of the format, 1.
        outcome: "done", "failed", "cancelled"; "running" where no end is recorded: it goes on, or was killed.
        started_at: when it began, in UTC.
        ended_at: when it ended, in UTC; None while it is running.
        seconds: how long it took; while it is running, until the last event.
        error: the exception that ended it, None without one.
        versions: of what took part.
        arguments: what `train` was given, by parameter; of a URL without query, user and password.
        options: the training options by name, None without any.
        launch_options: the launch options by name, None without any.
        dataset_options: the dataset options by name, None without any.
        commands: each step's command, program first.
        steps: of the run, in the order in which they began; the two caching steps may overlap.
        loss: by training step, rising.
        seconds_per_step: of the training, mean; None where it is not known.
        learning_rate: the highest of the schedule, where it is known.
        gpu: every few seconds.
        photos: of the dataset.
        checkpoints: that the training saved.
        samples: that the training made.
        outputs: the files that the run has made.
        warnings: the WARNING lines of the log.
        folders: where it was.
        folder: where this record was read; not part of it.
    """

    version: int = fields.one(fields.count, default=VERSION)
    outcome: Literal["running", "done", "failed", "cancelled"] = fields.one(
        fields.word("running", "done", "failed", "cancelled"), default="running"
    )
    started_at: datetime | None = fields.one(fields.time)
    ended_at: datetime | None = fields.one(fields.time)
    seconds: float | None = fields.one(fields.number)
    error: RunError | None = fields.one(fields.a(RunError))
    versions: Versions = fields.one(fields.a(Versions), default=Versions())
    arguments: dict[str, Any] = fields.objects()
    options: dict[str, Any] | None = fields.one(fields.mapping)
    launch_options: dict[str, Any] | None = fields.one(fields.mapping)
    dataset_options: dict[str, Any] | None = fields.one(fields.mapping)
    commands: dict[str, tuple[str, ...]] = fields.objects(fields.each(fields.text))
    steps: tuple[Step, ...] = fields.many(fields.a(Step))
    loss: tuple[LossPoint, ...] = fields.one(_loss, default=())
    seconds_per_step: float | None = fields.one(fields.number)
    learning_rate: float | None = fields.one(fields.number)
    gpu: tuple[GpuReading, ...] = fields.many(_gpu_reading)
    photos: tuple[Photo, ...] = fields.many(fields.a(Photo))
    checkpoints: tuple[Checkpoint, ...] = fields.many(fields.a(Checkpoint))
    samples: tuple[Sample, ...] = fields.many(fields.a(Sample))
    outputs: tuple[Output, ...] = fields.many(fields.a(Output))
    warnings: tuple[str, ...] = fields.many(fields.text)
    folders: Folders = fields.one(fields.a(Folders), default=Folders())
    folder: Path | None = field(default=None, compare=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TrainingRun:
        """Read the record of a run.

        Args:
            path: a training folder, or a `run.json`.

        Raises:
            FileNotFoundError: there is none; a run that has not ended may have events: see `attach`.
            ValueError: the file is no record, is cut, or is of a newer format.
            OSError: it cannot be read.
        """
        place = Path(path)
        file = place / FILE if place.is_dir() else place
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{file} not found: expected a training folder with the record of a run, or that record. "
                "A run that has not ended has events only: TrainingRun.attach(folder)"
            ) from None
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{file} cannot be read: expected JSON, found {error}. If {events.FILE} is still beside it, "
                "TrainingRun.attach(folder) reads the run from there"
            ) from None
        version = found.get("version") if isinstance(found, dict) else None
        if not isinstance(version, int) or isinstance(version, bool):
            raise ValueError(f'{file} is no record of a run: expected a JSON object with "version": {VERSION}')
        if version > VERSION:
            raise ValueError(
                f"{file} is of version {version}, and this musubitraining reads up to {VERSION}: "
                "pip install --upgrade TechTrash_MusubiTraining"
            )
        run = fields.read(cls, found)
        assert run is not None  # no field is needed, and it is a JSON object
        return replace(run, folder=file.absolute().parent)

    @classmethod
    def attach(cls, folder: str | os.PathLike[str]) -> TrainingRun:
        """Read a run from its events alone: one that is still going, in this process or another, or was killed.

        Args:
            folder: its training folder.

        Raises:
            FileNotFoundError: the folder has no events.
            OSError: they cannot be read.
        """
        place = Path(folder)
        so_far = RunSoFar()
        for event in events.read(place / events.FILE):
            so_far.take(event)
        return replace(so_far.run(), folder=place.absolute())

    def events(self, *, follow: bool = False, timeout: float | None = None) -> Iterator[events.Event]:
        """Everything that happened, in order, from `events.jsonl`.

        Args:
            follow: wait for what comes, until the run has ended. One that was killed never says so.
            timeout: follow no longer than this many seconds without a new event.

        Raises:
            FileNotFoundError: the events are gone, and they are not followed.
            OSError: they cannot be read.
            ValueError: this run was not read from a folder.
        """
        return events.read(self._folder() / events.FILE, follow=follow, timeout=timeout)

    @property
    def trigger_word(self) -> str | None:
        """What the photos' captions say, or begin with."""
        return fields.text(self.arguments.get("trigger_word"))

    @property
    def output_name(self) -> str | None:
        """The LoRA's file name without its ending."""
        return fields.text(self.arguments.get("output_name"))

    def to_dict(self) -> dict[str, Any]:
        """The content of `run.json`."""
        found: dict[str, Any] = fields.written(self)
        return found

    def save(self, folder: str | os.PathLike[str] | None = None) -> Path:
        """Write `run.json`, whole or not at all.

        Args:
            folder: where to; by default where this run was read from.

        Returns:
            The path of the file.

        Raises:
            OSError: it cannot be written.
            ValueError: no folder was given and this run was not read from one.
        """
        from musubitraining import whole_file

        path = (self._folder() if folder is None else Path(folder)) / FILE
        # A member a line.
        members = (
            f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in self.to_dict().items()
        )
        whole_file.write(path, ("{\n" + ",\n".join(members) + "\n}\n").encode())
        return path

    def plot(self) -> Figure:
        """The loss over the training steps, raw and smoothed, with checkpoints and samples, as a matplotlib figure.

        It shows itself in a notebook, is in no state of pyplot, and is saved with `figure.savefig("loss.png")`.

        Raises:
            ImportError: matplotlib is missing.
        """
        from musubitraining import run_plot

        return run_plot.figure(self)

    def report(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write the run as one HTML file that needs no network and nothing beside it.

        Photos and samples are in it as thumbnails where Pillow is installed, otherwise as they are if they are small.

        Args:
            path: where to; by default `report.html` in the training folder.

        Returns:
            The absolute path of the file.

        Raises:
            OSError: it cannot be written. Photos that are missing or cannot be read are left out.
            ValueError: no path was given and this run was not read from a folder.
        """
        from musubitraining import report, whole_file

        place = (self._folder() / REPORT if path is None else Path(path)).absolute()
        whole_file.write(place, report.html(self).encode("utf-8", "replace"))
        return place

    def _folder(self) -> Path:
        if self.folder is None:
            raise ValueError("this run was not read from a folder: name one, or read it with TrainingRun.load(folder)")
        return self.folder

    def __repr__(self) -> str:
        """One line."""
        told = [repr(self.output_name)] if self.output_name else []
        told.append(self.outcome)
        if self.seconds is not None:
            told.append(f"{self.seconds:.1f} s")
        if self.loss:
            told.append(f"step {self.loss[-1].step}, loss {self.loss[-1].average_loss:.3g}")
        return f"<TrainingRun {', '.join(told)}>"

    def _repr_html_(self) -> str:
        """A card for notebooks."""
        from musubitraining.report import card

        return card.html(self)


def of_lines(lines: str, folder: str | None, versions: dict[str, Any]) -> TrainingRun:
    """The run that these lines of events tell of.

    Args:
        lines: as in `events.jsonl`.
        folder: its training folder.
        versions: that have become known since it began.
    """
    so_far = RunSoFar()
    for line in lines.split("\n"):
        event = events.parse(line)
        if event is not None:
            so_far.take(event)
    run = so_far.run()
    known = {name: version for name, version in versions.items() if version is not None}
    return replace(run, versions=replace(run.versions, **known), folder=None if folder is None else Path(folder))


class RunSoFar:
    """A run, put together from its events."""

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._begin(events.Started())

    def _begin(self, event: events.Started) -> None:
        self._started = event
        self._ended: events.Done | events.Failed | None = None
        self._seconds = event.seconds
        self._steps: list[Step] = []
        self._began: list[float | None] = []
        self._commands: dict[str, tuple[str, ...]] = {}
        self._loss: dict[int, LossPoint] = {}
        self._gpu: list[GpuReading] = []
        self._photos: tuple[dict[str, Any], ...] = ()
        self._checkpoints: dict[str, Checkpoint] = {}
        self._samples: list[Sample] = []
        self._warnings: list[str] = []

    def take(self, event: events.Event) -> None:
        """Take one event in. `Started` begins another run."""
        if isinstance(event, events.Started):
            self._begin(event)
        elif isinstance(event, events.StepStarted):
            self._steps.append(Step(step=event.step, started_at=event.at))
            self._began.append(event.seconds)
            if event.argv:
                self._commands[event.step] = event.argv
        elif isinstance(event, events.StepFinished):
            self._finish(event)
        elif isinstance(event, events.Progress):
            # The bar is drawn twice for each step: with the loss of the one before, then with its own.
            if event.average_loss is not None:
                self._loss[event.done] = LossPoint(event.done, event.average_loss, event.seconds)
        elif isinstance(event, events.CheckpointSaved):
            saved = Checkpoint(path=event.path, step=event.step, bytes=event.bytes, sha256=event.sha256)
            self._checkpoints[event.path] = saved
        elif isinstance(event, events.SampleWritten):
            self._samples.append(Sample(path=event.path, step=event.step, epoch=event.epoch, prompt=event.prompt))
        elif isinstance(event, events.Warned):
            self._warnings.append(event.message)
        elif isinstance(event, events.GpuRead) and event.seconds is not None:
            self._gpu.append(GpuReading(event.seconds, event.used_bytes, event.total_bytes, event.utilisation_percent))
        elif isinstance(event, events.Done | events.Failed):
            self._ended = event
        if event.seconds is not None:
            self._seconds = event.seconds

    def _finish(self, event: events.StepFinished) -> None:
        self._photos = event.photos or self._photos
        if event.argv:
            self._commands[event.step] = event.argv
        for number, step in enumerate(self._steps):
            if step.step == event.step and step.seconds is None:
                began = self._began[number]
                took = event.duration
                if took is None and event.seconds is not None and began is not None:
                    took = event.seconds - began
                self._steps[number] = replace(step, seconds=took, exit_code=event.exit_code)
                return

    def run(self) -> TrainingRun:
        """The run as far as it is known."""
        ended, started = self._ended, self._started
        loss = tuple(sorted(self._loss.values(), key=lambda point: point.step))
        return TrainingRun(
            outcome="running" if ended is None else "done" if isinstance(ended, events.Done) else ended.outcome,
            started_at=started.at,
            ended_at=None if ended is None else ended.at,
            seconds=self._seconds,
            error=RunError(type=ended.type, message=ended.message, reason=ended.reason, step=ended.step)
            if isinstance(ended, events.Failed)
            else None,
            versions=fields.read(Versions, started.versions) or Versions(),
            arguments=started.arguments,
            options=started.options,
            launch_options=started.launch_options,
            dataset_options=started.dataset_options,
            commands=dict(self._commands),
            steps=tuple(self._steps),
            loss=loss,
            seconds_per_step=_seconds_per_step(loss),
            learning_rate=started.learning_rate,
            gpu=tuple(self._gpu),
            photos=fields.each(fields.a(Photo))(self._photos),
            checkpoints=tuple(self._checkpoints.values()),
            samples=tuple(self._samples),
            outputs=fields.each(fields.a(Output))(ended.outputs) if isinstance(ended, events.Done) else (),
            warnings=tuple(self._warnings),
            folders=fields.read(Folders, started.folders) or Folders(),
        )


def _seconds_per_step(loss: tuple[LossPoint, ...]) -> float | None:
    """The mean between the first and the last step that told its loss."""
    timed = [(point.step, point.seconds) for point in loss if point.seconds is not None]
    if len(timed) < 2 or timed[-1][0] <= timed[0][0]:
        return None
    return (timed[-1][1] - timed[0][1]) / (timed[-1][0] - timed[0][0])
