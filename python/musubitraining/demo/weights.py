"""Small weights for the miniature tuner, under the file names and tensor names of the real ones.

None of them was trained. The VAE is a cosine transform, the text encoder a table of random vectors, and the transformer
is random but for its ends, which pass its input on, so that it starts where a LoRA has something to improve.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

TUNER = Path(__file__).parent / "tuner"

_SEED = 1337
_WIDTH = 128
_LAYERS = 2
_ADAPTER_RANK = 4


def write_weights(folder: Path) -> None:
    """Writes the four files that `Models()` names by default."""
    source = str(TUNER / "src")
    sys.path.insert(0, source)
    try:
        from musubi_tuner import safetensors_file
    finally:
        sys.path.remove(source)

    def save(name: str, tensors: dict[str, Any], dtype: str) -> None:
        stored = {key: safetensors_file.store(value, dtype) for key, value in tensors.items()}
        safetensors_file.save_file(stored, folder / name, {"format": "pt"})

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(_SEED)
    save("ae.safetensors", _autoencoder(), "F32")
    save("qwen_3_4b.safetensors", _text_encoder(rng), "BF16")
    save("z_image_de_turbo_v1_bf16.safetensors", _transformer(rng), "BF16")
    save("zimage_turbo_training_adapter_v2.safetensors", _adapter(rng), "BF16")


def _autoencoder() -> dict[str, Any]:
    """The ten coarsest cosine waves of an 8 by 8 patch for brightness, the three coarsest for either colour."""
    place = np.arange(8)
    waves = np.array([np.cos(np.pi * (2 * place + 1) * frequency / 16) / 2 for frequency in range(8)])
    waves[0] /= np.sqrt(2)
    coarsest = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (0, 3), (3, 0)]
    brightness, blue, red = (np.array(axis) / np.linalg.norm(axis) for axis in ([1, 1, 1], [-1, 0, 1], [1, -2, 1]))
    channels = [(brightness, wave) for wave in coarsest]
    channels += [(colour, wave) for colour in (blue, red) for wave in coarsest[:3]]
    kernels = [np.einsum("k,y,x->kyx", colour, waves[down], waves[across]) for colour, (down, across) in channels]
    return {
        "encoder.conv_in.weight": np.array(kernels),
        "encoder.conv_in.bias": np.zeros(len(kernels)),
    }


def _text_encoder(rng: np.random.Generator) -> dict[str, Any]:
    from musubi_tuner.zimage import zimage_utils

    features = zimage_utils.EMBEDDING_FEATURES
    return {
        "model.embed_tokens.weight": rng.standard_normal((zimage_utils.VOCABULARY, features)),
        "model.norm.weight": np.ones(features),
    }


def _transformer(rng: np.random.Generator) -> dict[str, Any]:
    from musubi_tuner.zimage.zimage_model import HEAD_FEATURES, PATCH_FEATURES, TIME_FEATURES
    from musubi_tuner.zimage.zimage_utils import EMBEDDING_FEATURES

    def random(outputs: int, inputs: int, gain: float = 1.0) -> Any:
        return rng.standard_normal((outputs, inputs)) * gain / np.sqrt(inputs)

    time, hidden = min(_WIDTH, TIME_FEATURES), int(_WIDTH / 3 * 8)
    # What the first layer puts into the stream, the last takes out again with the sign turned: noise is to be undone.
    through, _ = np.linalg.qr(rng.standard_normal((_WIDTH, PATCH_FEATURES)))
    tensors = {
        "x_embedder.weight": through * np.sqrt(_WIDTH / PATCH_FEATURES),
        "x_embedder.bias": np.zeros(_WIDTH),
        "cap_embedder.0.weight": np.ones(EMBEDDING_FEATURES),
        "cap_embedder.1.weight": random(_WIDTH, EMBEDDING_FEATURES),
        "cap_embedder.1.bias": np.zeros(_WIDTH),
        "t_embedder.mlp.0.weight": random(time, TIME_FEATURES, 1.4),
        "t_embedder.mlp.0.bias": np.zeros(time),
        "t_embedder.mlp.2.weight": random(time, time, 2.0),
        "t_embedder.mlp.2.bias": np.zeros(time),
        "final_layer.adaLN_modulation.1.weight": random(_WIDTH, time, 0.1),
        "final_layer.adaLN_modulation.1.bias": np.zeros(_WIDTH),
        "final_layer.linear.weight": -through.T,
        "final_layer.linear.bias": np.zeros(PATCH_FEATURES),
    }
    # Scale and gate of the attention, then of the feed-forward layer: the gates stand open.
    open_gates = np.repeat([0.0, 1.0, 0.0, 1.0], _WIDTH)
    for index in range(_LAYERS):
        layer = f"layers.{index}."
        for norm in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"):
            tensors[f"{layer}{norm}.weight"] = np.ones(_WIDTH)
        tensors |= {
            f"{layer}attention.qkv.weight": random(3 * _WIDTH, _WIDTH),
            f"{layer}attention.out.weight": random(_WIDTH, _WIDTH),
            f"{layer}attention.q_norm.weight": np.ones(HEAD_FEATURES),
            f"{layer}attention.k_norm.weight": np.ones(HEAD_FEATURES),
            f"{layer}feed_forward.w1.weight": random(hidden, _WIDTH),
            f"{layer}feed_forward.w2.weight": random(_WIDTH, hidden),
            f"{layer}feed_forward.w3.weight": random(hidden, _WIDTH),
            f"{layer}adaLN_modulation.0.weight": random(4 * _WIDTH, time, 0.3),
            f"{layer}adaLN_modulation.0.bias": open_gates,
        }
    return tensors


def _adapter(rng: np.random.Generator) -> dict[str, Any]:
    """A LoRA that changes next to nothing, in Musubi Tuner's naming."""
    hidden = int(_WIDTH / 3 * 8)
    tensors: dict[str, Any] = {}
    for index in range(_LAYERS):
        for name, outputs, inputs in (
            ("attention_to_q", _WIDTH, _WIDTH),
            ("attention_to_k", _WIDTH, _WIDTH),
            ("attention_to_v", _WIDTH, _WIDTH),
            ("attention_to_out_0", _WIDTH, _WIDTH),
            ("feed_forward_w1", hidden, _WIDTH),
            ("feed_forward_w2", _WIDTH, hidden),
            ("feed_forward_w3", hidden, _WIDTH),
        ):
            lora = f"lora_unet_layers_{index}_{name}"
            tensors[f"{lora}.alpha"] = float(_ADAPTER_RANK)
            tensors[f"{lora}.lora_down.weight"] = rng.standard_normal((_ADAPTER_RANK, inputs)) * 0.01
            tensors[f"{lora}.lora_up.weight"] = rng.standard_normal((outputs, _ADAPTER_RANK)) * 0.01
    return tensors
