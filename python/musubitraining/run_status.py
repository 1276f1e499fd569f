"""Where a run is at a moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from musubitraining.run_record import TrainingRun


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """Where the run of a trainer is, or was when it ended.

    Attributes:
        outcome: "running"; of the last run "done", "failed" or "cancelled"; "idle" where there was none.
        step: the name of the step that began last; of a run that has failed, the one that it failed in.
        done: how much of `total` the step has done: training steps of "train", photos of the caching steps.
        total: of how much, None where that is not known.
        average_loss: the mean of the last epoch's worth of training steps.
        seconds_left: until the step is done.
        seconds: since the run began, or how long it took.
    """

    outcome: Literal["idle", "running", "done", "failed", "cancelled"] = "idle"
    step: str | None = None
    done: int | None = None
    total: int | None = None
    average_loss: float | None = None
    seconds_left: float | None = None
    seconds: float | None = None

    @classmethod
    def _after(cls, run: object) -> RunStatus:
        """Where a run ended."""
        if not isinstance(run, TrainingRun):
            return cls()
        last = run.loss[-1] if run.loss else None
        step = run.error.step if run.error else run.steps[-1].step if run.steps else None
        return cls(
            outcome=run.outcome,
            step=step,
            done=last.step if last else None,
            average_loss=last.average_loss if last else None,
            seconds=run.seconds,
        )
