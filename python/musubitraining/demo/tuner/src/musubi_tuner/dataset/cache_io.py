"""Cache files: one of latents and one of text embeddings for each photo."""

from __future__ import annotations

import logging
import os
import re

import numpy as np

from musubi_tuner.dataset.image_video_dataset import Item
from musubi_tuner.safetensors_file import Floats, StoredTensor, load_file, load_weights, save_file, store, write_file

logger = logging.getLogger(__name__)

_ARCHITECTURE = "z_image"
_FORMAT_VERSION = "1.0.1"
_TYPE_SUFFIX = re.compile(r"_(float8_e4m3fn|float8_e5m2|float16|bfloat16|float32)$")


def save_latents(item: Item, latents: Floats) -> None:
    """Writes a photo's latents (channels, height, width)."""
    _, height, width = latents.shape
    key = f"latents_1x{height}x{width}_float32"
    metadata = {
        "architecture": _ARCHITECTURE,
        "width": str(item.image_size[0]),
        "height": str(item.image_size[1]),
        "format_version": _FORMAT_VERSION,
    }
    tensors = {key: store(_without_nan(key, item, latents))}
    os.makedirs(os.path.dirname(item.latent_cache_path), exist_ok=True)
    save_file(tensors, item.latent_cache_path, metadata)


def save_text_embedding(item: Item, embedding: Floats) -> None:
    """Writes a caption's embedding (tokens, features) into its cache file, keeping what else the file holds."""
    key = "varlen_llm_embed_bfloat16"
    tensors = {key: store(_without_nan(key, item, embedding), "BF16")}
    metadata = {"architecture": _ARCHITECTURE, "caption1": item.caption, "format_version": _FORMAT_VERSION}
    path = item.text_cache_path
    if os.path.exists(path):
        old_tensors, old_metadata = load_weights(path)
        old_metadata = old_metadata or {}
        tensors |= {name: tensor for name, tensor in old_tensors.items() if _without_type(name) != _without_type(key)}
        assert old_metadata["architecture"] == metadata["architecture"], "architecture mismatch"
        if old_metadata["caption1"] != item.caption:
            logger.warning(f"caption mismatch: existing={old_metadata['caption1']}, new={item.caption}, overwrite")
        metadata = old_metadata | metadata
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    write_file(tensors, path, metadata)


def load_caches(latent_cache_path: str, text_cache_path: str) -> tuple[Floats, Floats]:
    """A photo's latents and its caption's embedding."""
    latents, _ = load_file(latent_cache_path)
    texts, _ = load_file(text_cache_path)
    return _first(latents, "latents_"), _first(texts, "varlen_llm_embed_")


def _first(tensors: dict[str, StoredTensor], prefix: str) -> Floats:
    return next(tensor for name, tensor in tensors.items() if name.startswith(prefix)).floats()


def _without_type(key: str) -> str:
    return _TYPE_SUFFIX.sub("", key)


def _without_nan(key: str, item: Item, values: Floats) -> Floats:
    if not np.isnan(values).any():
        return values
    logger.warning(f"{key} tensor has NaN: {item.path}, replace NaN with 0")
    return np.nan_to_num(values, nan=0.0, posinf=np.inf, neginf=-np.inf)
