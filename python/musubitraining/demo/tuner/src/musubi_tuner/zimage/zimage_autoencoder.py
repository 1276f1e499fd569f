"""The stand-in for the VAE: one linear map from each 8 by 8 patch of pixels to 16 latent channels."""

from __future__ import annotations

import logging

import numpy as np

from musubi_tuner.dataset.image_video_dataset import Pixels
from musubi_tuner.safetensors_file import Floats, load_weights
from musubi_tuner.state_dict import MATCHED, check_state_dict

logger = logging.getLogger(__name__)

LATENT_CHANNELS = 16
PATCH_PIXELS = 8
_WEIGHT, _BIAS = "encoder.conv_in.weight", "encoder.conv_in.bias"
_SHAPES: dict[str, tuple[int, ...] | None] = {
    _WEIGHT: (LATENT_CHANNELS, 3, PATCH_PIXELS, PATCH_PIXELS),
    _BIAS: (LATENT_CHANNELS,),
}


class AutoencoderKL:
    """Encodes pictures."""

    def __init__(self, path: str) -> None:
        """Loads the weights."""
        logger.info(f"Loading VAE from {path}")
        weights, _ = load_weights(path)
        check_state_dict("AutoencoderKL", weights, _SHAPES)
        self.weight, self.bias = weights[_WEIGHT].floats(), weights[_BIAS].floats()
        logger.info(f"Loaded VAE: {MATCHED}")

    def encode(self, pixels: Pixels) -> Floats:
        """Latents (16, height / 8, width / 8) of a picture (height, width, 3); what is no whole patch is left out."""
        rows, columns = pixels.shape[0] // PATCH_PIXELS, pixels.shape[1] // PATCH_PIXELS
        values = pixels[: rows * PATCH_PIXELS, : columns * PATCH_PIXELS].astype(np.float32) / 127.5 - 1.0
        patches = values.reshape(rows, PATCH_PIXELS, columns, PATCH_PIXELS, 3)
        latents: Floats = np.einsum("rycxk,okyx->orc", patches, self.weight) + self.bias[:, None, None]
        return latents
