"""The import path of TechTrash_MusubiTraining: every public name lives here."""

import logging
from typing import Literal

from musubitraining._native import GPUMonitor, Models, MusubiTraining

__all__ = ["GPU", "GPUMonitor", "Models", "MusubiTraining", "logger"]

GPU = Literal["RTX 4090", "RTX 5090", "RTX 6000 Ada", "A40", "H100", "A100", "B200", "H200", "Unknown GPU"]

logger = logging.getLogger("musubitraining")
