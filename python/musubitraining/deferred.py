"""The public names that need modules of Python which are slow to import: loaded when one of the names is first used."""

import importlib
import logging
from typing import TYPE_CHECKING, Any, Literal

from musubitraining._native import DatasetLimits, Models
from musubitraining.dataset_options import DatasetOptions
from musubitraining.errors import CalledProcessError
from musubitraining.plan import Check, Plan

if TYPE_CHECKING:
    from musubitraining.progress_bars import watch
    from musubitraining.run_record import TrainingRun
    from musubitraining.run_status import RunStatus
    from musubitraining.training_options import LaunchOptions, Preset, TrainingOptions

__all__ = [
    "GPU",
    "CalledProcessError",
    "Check",
    "DatasetLimits",
    "DatasetOptions",
    "LaunchOptions",
    "Models",
    "Plan",
    "Preset",
    "RunStatus",
    "TrainingOptions",
    "TrainingRun",
    "logger",
    "watch",
]

GPU = Literal["RTX 4090", "RTX 5090", "RTX 6000 Ada", "A40", "H100", "A100", "B200", "H200", "Unknown GPU"]

logger = logging.getLogger("musubitraining")

# Those whose modules not every program needs that needs the others.
_MODULES = {
    "LaunchOptions": "training_options",
    "Preset": "training_options",
    "RunStatus": "run_status",
    "TrainingOptions": "training_options",
    "TrainingRun": "run_record",
    "watch": "progress_bars",
}


def __getattr__(name: str) -> Any:
    """Return a name that is not needed with the others."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"musubitraining.{_MODULES[name]}"), name)
