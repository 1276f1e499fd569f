"""The diffusion transformer: Z-Image's single-stream block at a small size, forward and backward in numpy.

A block is built as in Z-Image: normalised and scaled by the time, attention with normalised queries and keys, a gated
feed-forward layer, gates and norms on what both add to the stream. What differs is small too: fixed sine positions
instead of rotary ones, and no refiner layers before the stream. The weights carry ComfyUI's or diffusers' names.

Every function returns its result and the function that takes the gradient back through it. Only LoRA modules learn, so
only they collect gradients.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from musubi_tuner.safetensors_file import Floats, StoredTensor, Tensors, load_weights, store
from musubi_tuner.state_dict import MATCHED, check_state_dict
from musubi_tuner.zimage.zimage_autoencoder import LATENT_CHANNELS
from musubi_tuner.zimage.zimage_utils import EMBEDDING_FEATURES

if TYPE_CHECKING:
    from musubi_tuner.networks.lora import LoRAModule

logger = logging.getLogger(__name__)
loading_logger = logging.getLogger("musubi_tuner.utils.lora_utils")

Backward = Callable[[Floats], Floats]

PATCH = 2
PATCH_FEATURES = LATENT_CHANNELS * PATCH * PATCH
TIME_FEATURES = 256
HEAD_FEATURES = 32
_NORM_EPSILON = 1e-5

# The linear layers that a LoRA attaches to, in the order of Musubi Tuner's files.
LORA_TARGETS = (
    "attention.to_q",
    "attention.to_k",
    "attention.to_v",
    "attention.to_out.0",
    "feed_forward.w1",
    "feed_forward.w2",
    "feed_forward.w3",
)

_FROM_DIFFUSERS = {
    "all_final_layer.2-1.": "final_layer.",
    "all_x_embedder.2-1.": "x_embedder.",
}
_FROM_COMFYUI = {
    ".attention.out.": ".attention.to_out.0.",
    ".attention.k_norm.": ".attention.norm_k.",
    ".attention.q_norm.": ".attention.norm_q.",
}


class Linear:
    """A frozen linear layer, with a LoRA beside it where one is attached."""

    def __init__(self, weight: Floats, bias: Floats | None = None) -> None:
        """Takes the frozen weights."""
        self.weight = weight
        self.bias = bias
        self.lora: LoRAModule | None = None

    def __call__(self, inputs: Floats) -> tuple[Floats, Backward]:
        """Applies the layer."""
        outputs = inputs @ self.weight.T
        if self.bias is not None:
            outputs = outputs + self.bias
        if self.lora is None:
            return outputs, lambda gradient: gradient @ self.weight
        added, lora_backward = self.lora(inputs)
        return outputs + added, lambda gradient: gradient @ self.weight + lora_backward(gradient)


def rms_norm(inputs: Floats, weight: Floats) -> tuple[Floats, Backward]:
    """Scales the last axis to a root mean square of 1, times a weight for each feature."""
    scale: Floats = 1 / np.sqrt(np.mean(inputs**2, axis=-1, keepdims=True) + _NORM_EPSILON)

    def backward(gradient: Floats) -> Floats:
        weighted = gradient * weight
        along: Floats = np.mean(weighted * inputs, axis=-1, keepdims=True)
        return scale * (weighted - inputs * scale**2 * along)

    return inputs * scale * weight, backward


def layer_norm(inputs: Floats) -> tuple[Floats, Backward]:
    """Brings the last axis to mean 0 and variance 1."""
    scale: Floats = 1 / np.sqrt(np.var(inputs, axis=-1, keepdims=True) + _NORM_EPSILON)
    normed: Floats = (inputs - np.mean(inputs, axis=-1, keepdims=True)) * scale

    def backward(gradient: Floats) -> Floats:
        mean: Floats = np.mean(gradient, axis=-1, keepdims=True)
        along: Floats = np.mean(gradient * normed, axis=-1, keepdims=True)
        return scale * (gradient - mean - normed * along)

    return normed, backward


def silu(inputs: Floats) -> tuple[Floats, Backward]:
    """The activation x * sigmoid(x)."""
    gate = sigmoid(inputs)
    return inputs * gate, lambda gradient: gradient * gate * (1 + inputs * (1 - gate))


def sigmoid(inputs: Floats) -> Floats:
    """1 / (1 + exp(-x)), without an overflow."""
    gate: Floats = 0.5 * (1 + np.tanh(0.5 * inputs))
    return gate


def attend(
    queries: Floats, keys: Floats, values: Floats
) -> tuple[Floats, Callable[[Floats], tuple[Floats, Floats, Floats]]]:
    """Attention of every token to every token, all (heads, tokens, features)."""
    scale = np.float32(1 / math.sqrt(queries.shape[-1]))
    scores = queries @ keys.swapaxes(1, 2) * scale
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)

    def backward(gradient: Floats) -> tuple[Floats, Floats, Floats]:
        to_weights = gradient @ values.swapaxes(1, 2)
        to_scores = weights * (to_weights - np.sum(to_weights * weights, axis=-1, keepdims=True)) * scale
        return to_scores @ keys, to_scores.swapaxes(1, 2) @ queries, weights.swapaxes(1, 2) @ gradient

    return weights @ values, backward


def _split_heads(tokens: Floats) -> Floats:
    return tokens.reshape(len(tokens), -1, HEAD_FEATURES).swapaxes(0, 1)


def _join_heads(heads: Floats) -> Floats:
    return heads.swapaxes(0, 1).reshape(heads.shape[1], -1)


class Block:
    """One layer of the stream."""

    def __init__(self, weights: dict[str, Floats], prefix: str) -> None:
        """Takes its layers out of the model's weights."""
        self.linears = {name: Linear(weights[f"{prefix}{name}.weight"]) for name in LORA_TARGETS}
        self.norms = {
            name: weights[f"{prefix}{name}.weight"]
            for name in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2")
        }
        self.query_norm = weights[f"{prefix}attention.norm_q.weight"]
        self.key_norm = weights[f"{prefix}attention.norm_k.weight"]
        modulation = f"{prefix}adaLN_modulation.0"
        self.modulation = Linear(weights[f"{modulation}.weight"], weights[f"{modulation}.bias"])

    def __call__(self, stream: Floats, time: Floats) -> tuple[Floats, Backward]:
        """Adds attention, then the feed-forward layer, to the stream (tokens, features)."""
        attention_scale, attention_gate, forward_scale, forward_gate = np.split(self.modulation(time)[0], 4)
        middle, attention_backward = self._branch(
            stream, self._attention, "attention_norm", 1 + attention_scale, np.tanh(attention_gate)
        )
        result, forward_backward = self._branch(
            middle, self._feed_forward, "ffn_norm", 1 + forward_scale, np.tanh(forward_gate)
        )
        return result, lambda gradient: attention_backward(forward_backward(gradient))

    def _branch(
        self,
        stream: Floats,
        layer: Callable[[Floats], tuple[Floats, Backward]],
        norm: str,
        scale: Floats,
        gate: Floats,
    ) -> tuple[Floats, Backward]:
        before, before_backward = rms_norm(stream, self.norms[f"{norm}1"])
        inner, inner_backward = layer(before * scale)
        after, after_backward = rms_norm(inner, self.norms[f"{norm}2"])

        def backward(gradient: Floats) -> Floats:
            return gradient + before_backward(inner_backward(after_backward(gradient * gate)) * scale)

        return stream + gate * after, backward

    def _attention(self, tokens: Floats) -> tuple[Floats, Backward]:
        queries, queries_backward = self.linears["attention.to_q"](tokens)
        keys, keys_backward = self.linears["attention.to_k"](tokens)
        values, values_backward = self.linears["attention.to_v"](tokens)
        normed_queries, query_norm_backward = rms_norm(_split_heads(queries), self.query_norm)
        normed_keys, key_norm_backward = rms_norm(_split_heads(keys), self.key_norm)
        mixed, attend_backward = attend(normed_queries, normed_keys, _split_heads(values))
        outputs, outputs_backward = self.linears["attention.to_out.0"](_join_heads(mixed))

        def backward(gradient: Floats) -> Floats:
            to_queries, to_keys, to_values = attend_backward(_split_heads(outputs_backward(gradient)))
            return (
                queries_backward(_join_heads(query_norm_backward(to_queries)))
                + keys_backward(_join_heads(key_norm_backward(to_keys)))
                + values_backward(_join_heads(to_values))
            )

        return outputs, backward

    def _feed_forward(self, tokens: Floats) -> tuple[Floats, Backward]:
        opened, opened_backward = self.linears["feed_forward.w1"](tokens)
        active, active_backward = silu(opened)
        gates, gates_backward = self.linears["feed_forward.w3"](tokens)
        outputs, outputs_backward = self.linears["feed_forward.w2"](active * gates)

        def backward(gradient: Floats) -> Floats:
            inner = outputs_backward(gradient)
            return opened_backward(active_backward(inner * gates)) + gates_backward(inner * active)

        return outputs, backward


class ZImageTransformer2DModel:
    """Predicts from noisy latents, the time and a caption where the latents lie."""

    def __init__(self, weights: dict[str, Floats]) -> None:
        """Takes the weights under Musubi Tuner's names."""
        self.blocks = [Block(weights, f"layers.{index}.") for index in range(count_layers(weights))]

        def linear(name: str) -> Linear:
            return Linear(weights[f"{name}.weight"], weights[f"{name}.bias"])

        self.patch_embedder = linear("x_embedder")
        self.caption_norm = weights["cap_embedder.0.weight"]
        self.caption_embedder = linear("cap_embedder.1")
        self.time_embedders = linear("t_embedder.mlp.0"), linear("t_embedder.mlp.2")
        self.final_modulation = linear("final_layer.adaLN_modulation.1")
        self.final = linear("final_layer.linear")

    def linears(self) -> dict[str, Linear]:
        """The layers that a LoRA attaches to, by name."""
        return {
            f"layers.{index}.{name}": linear
            for index, block in enumerate(self.blocks)
            for name, linear in block.linears.items()
        }

    def __call__(self, latents: Floats, time: float, caption: Floats) -> tuple[Floats, Backward]:
        """A prediction as large as the latents (channels, height, width); `time` runs from 0, noise, to 1."""
        _, height, width = latents.shape
        patches = _to_patches(latents)
        image = self.patch_embedder(patches)[0] + _positions(height // PATCH, width // PATCH, len(self.final.weight[0]))
        text = self.caption_embedder(rms_norm(caption, self.caption_norm)[0])[0]
        embedded_time = self._embed_time(time)
        stream = np.concatenate([image, text])
        backwards = []
        for block in self.blocks:
            stream, block_backward = block(stream, embedded_time)
            backwards.append(block_backward)
        normed, norm_backward = layer_norm(stream[: len(image)])
        scale = 1 + self.final_modulation(silu(embedded_time)[0])[0]
        outputs, final_backward = self.final(normed * scale)

        def backward(gradient: Floats) -> Floats:
            to_image = norm_backward(final_backward(_to_patches(gradient)) * scale)
            to_stream = np.concatenate([to_image, np.zeros_like(text)])
            for block_backward in reversed(backwards):
                to_stream = block_backward(to_stream)
            return to_stream

        return _from_patches(outputs, height, width), backward

    def _embed_time(self, time: float) -> Floats:
        half = TIME_FEATURES // 2
        angles = 1000 * time * np.exp(-math.log(10000) * np.arange(half, dtype=np.float32) / half)
        waves = np.concatenate([np.cos(angles), np.sin(angles)]).astype(np.float32)
        first, second = self.time_embedders
        return second(silu(first(waves)[0])[0])[0]


def _to_patches(latents: Floats) -> Floats:
    channels, height, width = latents.shape
    rows, columns = height // PATCH, width // PATCH
    if height % PATCH or width % PATCH:
        shape = [channels, 1, 1, rows, PATCH, columns, PATCH]
        raise RuntimeError(f"shape '{shape}' is invalid for input of size {latents.size}")
    parts = latents.reshape(channels, rows, PATCH, columns, PATCH).transpose(1, 3, 2, 4, 0)
    return parts.reshape(rows * columns, PATCH_FEATURES)


def _from_patches(patches: Floats, height: int, width: int) -> Floats:
    parts = patches.reshape(height // PATCH, width // PATCH, PATCH, PATCH, LATENT_CHANNELS)
    return parts.transpose(4, 0, 2, 1, 3).reshape(LATENT_CHANNELS, height, width)


def _positions(rows: int, columns: int, features: int) -> Floats:
    """Sines and cosines of each patch's place in the picture, from coarse to fine."""
    octaves = np.pi * 2.0 ** np.arange(features // 4)
    waves = []
    for count in (rows, columns):
        angles = (np.arange(count) + 0.5)[:, None] / count * octaves % (2 * np.pi)
        waves.append(np.concatenate([np.cos(angles), np.sin(angles)], axis=1))
    down, across = waves
    both = np.concatenate([np.repeat(down, columns, axis=0), np.tile(across, (rows, 1))], axis=1)
    return both.astype(np.float32)


def count_layers(weights: dict[str, Floats] | Tensors) -> int:
    """How many layers the names of a weights file speak of."""
    numbers = [int(found[1]) for name in weights if (found := re.match(r"layers\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1


def load_transformer(path: str) -> ZImageTransformer2DModel:
    """The model from a weights file in ComfyUI's or diffusers' naming."""
    logger.info("Creating ZImageTransformer2DModel")
    logger.info(f"Loading DiT model from {path}, device=cpu")
    loading_logger.info(f"Loading model files: {[path]}")
    loading_logger.info(
        "Loading state dict without FP8 optimization. Dtype of weight: torch.bfloat16, hook enabled: False"
    )
    stored, _ = load_weights(path)
    _draw_loading_bar(os.path.basename(path), len(stored))
    named = _musubi_names(stored)
    check_state_dict("ZImageTransformer2DModel", named, expected_shapes(named))
    logger.info(f"Loaded DiT model from {path}, info={MATCHED}")
    # bfloat16, whatever the file holds.
    return ZImageTransformer2DModel({name: store(tensor.floats(), "BF16").floats() for name, tensor in named.items()})


def expected_shapes(found: Tensors) -> dict[str, tuple[int, ...] | None]:
    """Names and shapes of a model as wide as the patch embedder and as deep as the layers in `found`."""
    embedder = found.get("x_embedder.weight")
    width = HEAD_FEATURES if embedder is None else embedder.shape[0]
    time, hidden = min(width, TIME_FEATURES), int(width / 3 * 8)
    shapes: dict[str, tuple[int, ...] | None] = {
        "x_embedder.weight": (width, PATCH_FEATURES),
        "x_embedder.bias": (width,),
        "cap_embedder.0.weight": (EMBEDDING_FEATURES,),
        "cap_embedder.1.weight": (width, EMBEDDING_FEATURES),
        "cap_embedder.1.bias": (width,),
        "t_embedder.mlp.0.weight": (time, TIME_FEATURES),
        "t_embedder.mlp.0.bias": (time,),
        "t_embedder.mlp.2.weight": (time, time),
        "t_embedder.mlp.2.bias": (time,),
        "final_layer.adaLN_modulation.1.weight": (width, time),
        "final_layer.adaLN_modulation.1.bias": (width,),
        "final_layer.linear.weight": (PATCH_FEATURES, width),
        "final_layer.linear.bias": (PATCH_FEATURES,),
    }
    for index in range(max(count_layers(found), 1)):
        layer = f"layers.{index}."
        for name in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"):
            shapes[f"{layer}{name}.weight"] = (width,)
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            shapes[f"{layer}attention.{name}.weight"] = (width, width)
        for name in ("norm_q", "norm_k"):
            shapes[f"{layer}attention.{name}.weight"] = (HEAD_FEATURES,)
        shapes[f"{layer}feed_forward.w1.weight"] = (hidden, width)
        shapes[f"{layer}feed_forward.w2.weight"] = (width, hidden)
        shapes[f"{layer}feed_forward.w3.weight"] = (hidden, width)
        shapes[f"{layer}adaLN_modulation.0.weight"] = (4 * width, time)
        shapes[f"{layer}adaLN_modulation.0.bias"] = (4 * width,)
    return shapes


def _musubi_names(stored: Tensors) -> Tensors:
    named: Tensors = {}
    for name, tensor in stored.items():
        new_name = name
        for old, new in (_FROM_DIFFUSERS | _FROM_COMFYUI).items():
            new_name = new_name.replace(old, new)
        if new_name.endswith("attention.qkv.weight"):
            for part, third in zip(("to_q", "to_k", "to_v"), np.split(tensor.array, 3), strict=True):
                named[new_name.replace("qkv", part)] = StoredTensor(tensor.dtype, third)
        else:
            named[new_name] = tensor
    return named


def _draw_loading_bar(name: str, total: int) -> None:
    """Draws tqdm's bar for a file: once, for small files load at once, and wiped when done."""
    line = f"Loading {name}:   0%|          | 0/{total} [00:00<?, ?it/s]"
    sys.stderr.write(f"\r{line}\r{' ' * len(line)}\r")
    sys.stderr.flush()
