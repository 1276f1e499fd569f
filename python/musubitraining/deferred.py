"""The public names that need modules of Python which are slow to import: loaded when one of the names is first used."""

import logging
from typing import Literal

from musubitraining._native import DatasetLimits, Models
from musubitraining.errors import CalledProcessError

__all__ = ["GPU", "CalledProcessError", "DatasetLimits", "Models", "logger"]

GPU = Literal["RTX 4090", "RTX 5090", "RTX 6000 Ada", "A40", "H100", "A100", "B200", "H200", "Unknown GPU"]

logger = logging.getLogger("musubitraining")
