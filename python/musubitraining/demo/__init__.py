"""A miniature Musubi Tuner, and a demonstration that runs this library on it: `python -m musubitraining.demo`.

`trainer` and `PHOTOS` are for trying the library from Python, as `examples/quickstart.ipynb` does.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from musubitraining import MusubiTraining

PHOTOS = Path(__file__).parent / "photos"


def trainer(folder: str | os.PathLike[str]) -> MusubiTraining:
    """Make a trainer for the miniature tuner, with weights, training folder and output in a folder of its own.

    The environment of this process and of what it starts is changed for it: use another process for a real one.

    Args:
        folder: where everything goes; created where it is missing.

    Raises:
        ImportError: NumPy is missing, which the weights are made with.
        OSError: the weights cannot be written.
    """
    from musubitraining import Models, MusubiTraining
    from musubitraining.demo import __main__ as demonstration
    from musubitraining.demo.weights import write_weights

    place = Path(folder).absolute()
    demonstration._prepare_environment()
    write_weights(place / "models")
    return MusubiTraining(
        absolute_path_models=place / "models",
        models_for_training=Models(),
        absolute_path_training_folder=place / "training",
        absolute_path_output=place / "output",
        absolute_path_musubi_tuner=demonstration.TUNER,
    )
