"""What each command does."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from musubitraining.cli import failure
from musubitraining.cli.arguments import PROGRAM


def run(arguments: argparse.Namespace) -> int:
    """Run the command; whatever ends it is one line, and an exit code."""
    with _steps() as steps:
        try:
            return int(_COMMANDS[arguments.command](arguments))
        except BrokenPipeError:
            raise
        except (Exception, KeyboardInterrupt) as error:
            step = steps.of_the_tuner
            return _tell(error, step, arguments)


def _tell(error: BaseException, step: str | None, arguments: argparse.Namespace) -> int:
    described = failure.described(error, step)
    if arguments.traceback:
        import traceback

        lines = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        print(failure.without_secrets(lines), end="", file=sys.stderr)
    print(f"{PROGRAM}: {arguments.command}: {described['message']}", file=sys.stderr)
    # Of `train` and `watch` the last event says it.
    if getattr(arguments, "json", False) and arguments.command not in ("train", "watch"):
        _print_json({"error": described})
    return failure.exit_code(error, step)


class _Steps(logging.Handler):
    """Hears from the log which step of the tuner's has begun."""

    of_the_tuner: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of a line."""
        said = re.match(r"\[((?:precache|train|convert)[\w:]*)\] (?:starting$|failed \()", record.getMessage())
        if said:
            self.of_the_tuner = said[1]


@contextlib.contextmanager
def _steps() -> Iterator[_Steps]:
    logger = logging.getLogger("musubitraining")
    steps = _Steps()
    logger.addHandler(steps)
    try:
        yield steps
    finally:
        logger.removeHandler(steps)


def _settings(arguments: argparse.Namespace) -> Any:
    from musubitraining.cli.settings import Settings, groups, of_flags

    known = [setting for group in groups() for setting in group.settings]
    settings = Settings()
    if arguments.record is not None:
        settings.take_record(arguments.record)
    if arguments.config is not None:
        settings.take_file(arguments.config, known)
    settings.take_flags(of_flags(arguments), known)
    return settings


def _train(arguments: argparse.Namespace) -> int:
    from musubitraining.cli.settings import FOLDERS, MATERIAL

    settings = _settings(arguments)
    settings.need(*FOLDERS, *MATERIAL)
    keywords = settings.call()
    if arguments.progress is not None:
        keywords["progress"] = arguments.progress
    if arguments.json:
        keywords["on_event"] = _event_printer()
    model = settings.trainer().train(**keywords)
    if not arguments.json:
        print(model)
    return failure.DONE


def _event_printer() -> Callable[[Any], None]:
    """Prints events; when nobody reads them any more, the run goes on."""
    from musubitraining import run_events

    readers = True

    def show(event: run_events.Event) -> None:
        nonlocal readers
        if readers:
            try:
                sys.stdout.write(run_events.line(event))
                sys.stdout.flush()
            except BrokenPipeError:
                readers = False
                print(f"{PROGRAM}: nobody reads the events any more; the run goes on", file=sys.stderr)

    return show


def _plan(arguments: argparse.Namespace) -> int:
    from musubitraining.cli.settings import FOLDERS

    settings = _settings(arguments)
    settings.need(*FOLDERS)
    keywords = settings.call()
    plan = settings.trainer().plan(**keywords)
    if arguments.json:
        _print_json(plan.to_dict())
    else:
        print(plan)
    return failure.DONE if plan.ok else failure.BAD_INPUT


def _demo(arguments: argparse.Namespace) -> int:
    from musubitraining.demo import __main__ as demo

    folder = Path(arguments.folder).resolve()
    report, model = demo.train(folder, arguments.steps)
    if arguments.json:
        _print_json({"model": model, "training_folder": str(folder / "training")})
    else:
        demo.print_report(report, model)
    return failure.DONE


def _convert(arguments: argparse.Namespace) -> int:
    from musubitraining import convert_lora_to_comfyui

    source: str = arguments.source
    end = {"merged": "_comfyui.safetensors", "separate": "_separate.safetensors"}[arguments.form]
    destination = arguments.destination or source.removesuffix(".safetensors") + end
    written = convert_lora_to_comfyui(source, destination, form=arguments.form)
    if arguments.json:
        _print_json({"model": written, "form": arguments.form})
    else:
        print(written)
    return failure.DONE


def _report(arguments: argparse.Namespace) -> int:
    path = _latest_run(Path(arguments.folder)).report(arguments.to)
    if arguments.json:
        _print_json({"report": str(path)})
    else:
        print(path)
    if arguments.open:
        import webbrowser

        webbrowser.open(path.as_uri())
    return failure.DONE


def _latest_run(place: Path) -> Any:
    """The run that is under way in a folder, or else the last one that has ended there."""
    from musubitraining import TrainingRun

    if place.is_dir():
        with contextlib.suppress(FileNotFoundError):
            # Events are of the latest run, the record of the latest that has ended.
            run = TrainingRun.attach(place)
            if run.outcome == "running" or not (place / "run.json").exists():
                return run
    return TrainingRun.load(place)


def _watch(arguments: argparse.Namespace) -> int:
    from musubitraining import progress_bars, run_events

    folder = Path(arguments.folder).absolute()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} not found: expected the training folder of a run")
    bars = None if arguments.json else progress_bars.of(arguments.progress)
    show = bars or (_event_printer() if arguments.json else _lines())
    last_step = None
    code: int | None = None
    try:
        if not (folder / run_events.FILE).exists():
            print(f"{PROGRAM}: waiting for a run in {folder}", file=sys.stderr)
        while not (folder / run_events.FILE).exists():
            time.sleep(_BETWEEN_LOOKS)
        for event in progress_bars.follow(folder):
            if event is not None:
                show(event)
            elif bars is not None:
                bars.show()
            if isinstance(event, run_events.StepStarted):
                last_step = event.step
            elif isinstance(event, run_events.Done):
                code = failure.DONE
            elif isinstance(event, run_events.Failed):
                code = _code_of(event, last_step)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: no longer watching, the run is left alone", file=sys.stderr)
        return failure.CANCELLED
    finally:
        if bars is not None:
            bars.close()
    if code is None:
        print(f"{PROGRAM}: watch: the run was killed: nothing comes, and nobody has its folder", file=sys.stderr)
        return failure.OTHER
    return code


def _code_of(event: Any, last_step: str | None) -> int:
    """The exit code of a run, from the event that ended it."""
    if event.outcome == "cancelled":
        return failure.CANCELLED
    step = event.step or last_step
    return failure.BAD_INPUT if step in (None, "dataset") else failure.FAILED_STEP


# Between two looks whether a run has begun, in seconds.
_BETWEEN_LOOKS = 0.25
# Between two lines that say how far a step is.
_BETWEEN_LINES = 10.0


def _lines() -> Callable[[Any], None]:
    """Says events in words."""
    from musubitraining import run_events as events
    from musubitraining.report import wording

    said_at = -_BETWEEN_LINES
    # By step, what has not been said yet: of many at once only the last counts.
    unsaid: dict[str, events.Progress] = {}

    def show(event: events.Event) -> None:
        nonlocal said_at
        if isinstance(event, events.Progress):
            unsaid[event.step] = event
            now = event.seconds or 0.0
            if 0 <= now - said_at < _BETWEEN_LINES:
                return
            said_at = now
        for step in list(unsaid):
            if isinstance(event, events.Done | events.Failed) or getattr(event, "step", None) == step:
                say(unsaid.pop(step))
        if not isinstance(event, events.Progress):
            say(event)

    def say(event: events.Event) -> None:
        said = words(event)
        if said is not None:
            print(f"{'' if event.at is None else f'{event.at.astimezone():%H:%M:%S} '}{said}", flush=True)

    def words(event: events.Event) -> str | None:
        match event:
            case events.Started():
                return f"a run in {event.folders.get('training', '?')}"
            case events.StepStarted():
                return f"[{event.step}] started"
            case events.StepFinished(exit_code=None | 0):
                return f"[{event.step}] done ({wording.duration(event.duration)})"
            case events.StepFinished():
                return f"[{event.step}] failed (exit code {event.exit_code})"
            case events.Progress():
                told = [f"{event.done:,}" + (f"/{event.total:,}" if event.total else "")]
                if event.average_loss is not None:
                    told.append(f"loss {wording.loss(event.average_loss)}")
                if event.seconds_left is not None and event.done != event.total:
                    told.append(f"{wording.duration(event.seconds_left)} left")
                return f"[{event.step}] {', '.join(told)}"
            case events.CheckpointSaved():
                return f"checkpoint {event.path}"
            case events.SampleWritten():
                return f"sample {event.path}"
            case events.Warned():
                return f"WARNING {event.message}"
            case events.Retried():
                return f"{event.what} again, try {event.attempt}: {event.reason}"
            case events.Failed():
                return f"{event.outcome}: {event.reason or event.message or event.type}"
            case events.Done():
                return "\n".join(["done", *(str(made.get("path")) for made in event.outputs)])
        return None

    return show


def _gpu(arguments: argparse.Namespace) -> int:
    from musubitraining import _native
    from musubitraining.report.wording import size

    said = _native._gpus()
    if arguments.json:
        _print_json(said)
        return failure.DONE
    print(f"driver {said['driver'] or 'of unknown version'}, GPUs: {len(said['gpus'])}")
    for gpu in said["gpus"]:
        print(f"{gpu['index']}: {gpu['name']}, {size(gpu['free_bytes'])} of {size(gpu['total_bytes'])} free")
        for process in gpu["processes"]:
            print(f"   process {process['pid']}: {size(process['used_bytes'])}")
    return failure.DONE


def _completion(arguments: argparse.Namespace) -> int:
    from musubitraining.cli import completion

    print(completion.script(arguments.shell), end="")
    return failure.DONE


def _print_json(found: Any) -> None:
    print(json.dumps(found))


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "train": _train,
    "plan": _plan,
    "demo": _demo,
    "convert": _convert,
    "report": _report,
    "watch": _watch,
    "gpu": _gpu,
    "completion": _completion,
}
