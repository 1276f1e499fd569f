"""The bars of a run: one for all of it, one for its training."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from musubitraining import run_events as events
from musubitraining import run_fields as fields
from musubitraining.report import wording

if TYPE_CHECKING:
    from musubitraining.progress_screen import Bar, Notebook, Terminal

logger = logging.getLogger("musubitraining")

# What a step counts in the bar of the run: the training takes nearly all of its time.
SHARES = {"dataset": 1, "precache:latents": 1, "precache:text_encoder": 1, "train": 16, "convert:comfyui": 1}
# How much of the time goes into drawing progress, at most: steps may be short, and a tuner waits to be read.
MOST = 0.02


class Bars:
    """The bars of a run: called with each of its events, they show how far it is.

    They are there from `Started` to `Done` or `Failed`, or to `close`. What goes wrong with them never ends a run.
    """

    def __init__(self, screen: Terminal | Notebook) -> None:
        """Draw nothing yet."""
        self._screen = screen
        self._run: Bar | None = None
        self._train: Bar | None = None
        self._is_broken = False
        # How far each step has told to be; those that have ended; what is said behind the bar; how the run has ended.
        self._parts: dict[str, float] = {}
        self._finished: set[str] = set()
        self._said: dict[str, str] = {}
        self._outcome = self._loss = ""
        self._expected: list[str] = []
        # Seconds that it took to draw; when that began.
        self._spent = self._opened = 0.0

    def __call__(self, event: events.Event) -> None:
        """Show what has happened."""
        if self._is_broken:
            return
        try:
            self._take(event)
        except Exception as error:
            self._is_broken = True
            with contextlib.suppress(Exception):
                self.close()
            logger.warning("[progress] the progress bars have ended: %s: %s", type(error).__name__, error)

    def close(self) -> None:
        """Leave the bar of the run as it is, and the log as it was before; once more does nothing."""
        run, train = self._run, self._train
        self._run = self._train = None
        with contextlib.ExitStack() as ends:
            ends.callback(self._screen.close)
            if run is not None:
                ends.callback(run.close)
                ends.callback(self._screen.show, [run])
            if train is not None:
                ends.callback(train.close)

    def __del__(self) -> None:
        """Whoever has forgotten to close them gets the log back."""
        if self._run is not None:
            self.close()

    def show(self) -> None:
        """Draw them as they are now: of much that happens at once not all is drawn."""
        if self._run is None:
            return
        began = time.monotonic()
        self._screen.show([bar for bar in (self._run, self._train) if bar is not None])
        self._spent += time.monotonic() - began

    def write(self, line: str) -> None:
        """Write a line beside the bars."""
        self._screen.write(line)

    def _take(self, event: events.Event) -> None:
        run = self._begin(event) if isinstance(event, events.Started) else self._run
        if run is None:
            # Before the first event, or behind the last one.
            return
        if event.seconds is not None:
            # By the run's own clock: whoever watches it may have come later. A bar that was last drawn before its start
            # would end without a line feed.
            run.start_t = run.last_print_t = time.time() - event.seconds
        match event:
            case events.StepStarted():
                self._parts[event.step] = 0.0
            case events.Progress():
                self._advance(event)
            case events.StepFinished():
                self._finished.add(event.step)
                self._said.pop("retry", None)
            case events.GpuRead():
                self._said["gpu"] = _gpu(event)
            case events.Retried():
                self._said["retry"] = f"{event.what or 'something'} failed, tried again"
            case events.Done():
                self._outcome = "done"
            case events.Failed():
                self._outcome = f"{event.outcome} in {event.step}" if event.step else event.outcome
                # It has ended, and not been done.
                self._finished.discard(event.step or "")
        under_way = [step for step in self._parts if step not in self._finished]
        done = sum(_share(step) * (1 if step in self._finished else part) for step, part in self._parts.items())
        run.n = run.total if isinstance(event, events.Done) else min(done, run.total)
        # Between two steps the name of the one that has ended stays.
        run.set_description_str(self._outcome or ", ".join(under_way) or run.desc, refresh=False)
        if self._outcome:
            # The bar of the training goes.
            self._said = {"loss": self._loss} if self._loss else {}
        run.set_postfix_str(", ".join([self._number(), *self._said.values()]), refresh=False)
        if self._outcome:
            self.close()
        elif not isinstance(event, events.Progress) or self._spent <= MOST * (time.monotonic() - self._opened):
            self.show()

    def _begin(self, started: events.Started) -> Bar:
        self.close()
        self._parts, self._finished, self._said = {}, set(), {}
        self._outcome = self._loss = ""
        self._spent, self._opened = 0.0, time.monotonic()
        left_out = [] if started.arguments.get("use_pre_cache", True) else ["precache:latents", "precache:text_encoder"]
        left_out += [] if started.arguments.get("convert_for_comfyui", True) else ["convert:comfyui"]
        self._expected = [step for step in SHARES if step not in left_out]
        folder = started.folders.get("training")
        self._screen.open(Path(folder) if isinstance(folder, str) else None)
        self._run = self._screen.bar(
            desc="starting",
            total=sum(map(_share, self._expected)),
            bar_format="{desc:14} {percentage:3.0f}%|{bar}| {elapsed}{postfix}",
        )
        self._train = self._screen.bar(
            total=fields.count(started.arguments.get("max_train_steps")),
            leave=False,
            bar_format="training steps {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
        )
        return self._run

    def _advance(self, event: events.Progress) -> None:
        if event.total:
            self._parts[event.step] = min(1.0, event.done / event.total)
        train = self._train
        if event.step != "train" or train is None:
            return
        if event.total and event.total != train.total:
            train.reset(event.total)
        train.n = event.done
        said = []
        if event.average_loss is not None:
            self._loss = f"loss {wording.loss(event.average_loss)}"
            said.append(self._loss)
        if event.rate:
            said.append(wording.rate(1 / event.rate))
        if event.seconds_left is not None:
            said.append(f"{wording.clock(event.seconds_left)} left")
        train.set_postfix_str(", ".join(said), refresh=False)

    def _number(self) -> str:
        """Which of the steps this is."""
        number = len(self._parts)
        return f"step {number} of {max(number, len(self._expected))}"


def _share(step: str) -> int:
    return SHARES.get(step, 1)


def _gpu(event: events.GpuRead) -> str:
    used = wording.size(event.used_bytes)
    said = f"GPU {used}" if event.total_bytes is None else f"GPU {used} of {wording.size(event.total_bytes)}"
    return said if event.utilisation_percent is None else f"{said}, {event.utilisation_percent:.0f} % busy"
