"""LoRA for Z-Image: the module that `--network_module networks.lora_zimage` names."""

from __future__ import annotations

from typing import Any

import numpy as np

from musubi_tuner.networks import lora
from musubi_tuner.safetensors_file import Tensors
from musubi_tuner.zimage.zimage_model import ZImageTransformer2DModel

TARGET = ZImageTransformer2DModel.__name__


def create_arch_network(
    transformer: ZImageTransformer2DModel,
    rank: int | None,
    alpha: float | None,
    dropout: float | None,
    options: dict[str, Any],
    rng: np.random.Generator,
) -> lora.LoRANetwork:
    """A new network beside the layers of Z-Image's transformer."""
    return lora.create_network(transformer, TARGET, rank, alpha, dropout, options, rng)


def merge_arch_weights(transformer: ZImageTransformer2DModel, tensors: Tensors, multiplier: float) -> None:
    """Merges a LoRA into Z-Image's transformer."""
    lora.merge_weights(transformer, TARGET, tensors, multiplier)
