"""The stand-in for the text encoder: bytes for tokens, each mixed with the mean of those before it."""

from __future__ import annotations

import logging

import numpy as np

from musubi_tuner.safetensors_file import Floats, load_weights, store
from musubi_tuner.state_dict import MATCHED, check_state_dict

logger = logging.getLogger(__name__)

# Where Musubi Tuner takes the tokenizer from. The stand-in needs none.
ZIMAGE_ID = "Tongyi-MAI/Z-Image"
MAX_TOKENS = 512
EMBEDDING_FEATURES = 2560
# 256 bytes and the two marks around a message.
_START, _END = 256, 257
VOCABULARY = 258

_EMBEDDINGS, _NORM = "model.embed_tokens.weight", "model.norm.weight"


class TextEncoder:
    """Encodes captions."""

    def __init__(self, path: str) -> None:
        """Loads the weights."""
        logger.info(f"Loading state dict from {path}")
        weights, _ = load_weights(path)
        # The original ties the output layer to this tensor before it looks at anything else.
        self.embeddings = weights[_EMBEDDINGS].floats()
        shapes = {_EMBEDDINGS: (VOCABULARY, EMBEDDING_FEATURES), _NORM: (EMBEDDING_FEATURES,)}
        check_state_dict("Qwen3ForCausalLM", weights, {**shapes})
        self.norm = weights[_NORM].floats()
        logger.info(f"Loaded Qwen3: {MATCHED}")
        logger.info("Setting Qwen3 to dtype: torch.bfloat16")
        logger.info(f"Loading tokenizer from {ZIMAGE_ID}")

    def encode(self, caption: str) -> Floats:
        """An embedding (tokens, 2560) of a caption in its chat template."""
        tokens = [_START, *b"user\n", *caption.encode(), _END, *b"\n", _START, *b"assistant\n"][:MAX_TOKENS]
        embedded = self.embeddings[tokens]
        before = np.cumsum(embedded, axis=0) / np.arange(1, len(tokens) + 1, dtype=np.float32)[:, None]
        mixed = embedded + before
        normed = mixed / np.sqrt(np.mean(mixed**2, axis=1, keepdims=True) + 1e-6) * self.norm
        return store(normed, "BF16").floats()
