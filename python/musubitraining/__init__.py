"""Turns a zip of photos into a Z-Image LoRA with Musubi Tuner, unattended."""

from musubitraining._native import Cancelled, DownloadError, convert_lora_to_comfyui, dataset_toml
from musubitraining.main import TYPE_CHECKING, GPUMonitor, MusubiTraining

__all__ = [
    "GPU",
    "CalledProcessError",
    "Cancelled",
    "Check",
    "DatasetLimits",
    "DatasetOptions",
    "DownloadError",
    "GPUMonitor",
    "LaunchOptions",
    "Models",
    "MusubiTraining",
    "Plan",
    "Preset",
    "RunStatus",
    "TrainingOptions",
    "TrainingRun",
    "convert_lora_to_comfyui",
    "dataset_toml",
    "logger",
    "watch",
]

if TYPE_CHECKING:
    from musubitraining.deferred import (
        GPU,
        CalledProcessError,
        Check,
        DatasetLimits,
        DatasetOptions,
        LaunchOptions,
        Models,
        Plan,
        Preset,
        RunStatus,
        TrainingOptions,
        TrainingRun,
        logger,
        watch,
    )
else:

    def __getattr__(name):
        """Return a name that is not needed before it is used."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from musubitraining import deferred

        return getattr(deferred, name)


def __dir__() -> list[str]:
    return __all__
