"""Turns a zip of photos into a Z-Image LoRA with Musubi Tuner, unattended."""

from musubitraining._native import DownloadError
from musubitraining.main import GPU, GPUMonitor, Models, MusubiTraining, logger

__all__ = ["GPU", "DownloadError", "GPUMonitor", "Models", "MusubiTraining", "logger"]
