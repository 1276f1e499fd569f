"""Turns a zip of photos into a Z-Image LoRA with Musubi Tuner, unattended."""

from musubitraining._native import Cancelled, DatasetLimits, DownloadError, convert_lora_to_comfyui
from musubitraining.errors import CalledProcessError
from musubitraining.main import GPU, GPUMonitor, Models, MusubiTraining, logger

__all__ = [
    "GPU",
    "CalledProcessError",
    "Cancelled",
    "DatasetLimits",
    "DownloadError",
    "GPUMonitor",
    "Models",
    "MusubiTraining",
    "convert_lora_to_comfyui",
    "logger",
]
