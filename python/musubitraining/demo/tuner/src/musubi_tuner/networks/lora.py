"""LoRA: two small matrices beside each chosen layer of the frozen model."""

from __future__ import annotations

import ast
import logging
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from musubi_tuner.safetensors_file import Floats, Metadata, Tensors, hashes, load_file, save_file, store
from musubi_tuner.state_dict import MATCHED
from musubi_tuner.zimage.zimage_model import Backward, Linear, ZImageTransformer2DModel

logger = logging.getLogger(__name__)
logging.basicConfig(level=logging.INFO)

_PREFIX = "lora_unet_"
_DOWN, _UP, _ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
_DEFAULT_RANK = 4


class LoRAModule:
    """A layer's LoRA: it adds `up @ down`, times alpha / rank, to what the layer does."""

    def __init__(
        self, linear: Linear, rank: int, alpha: float, dropout: float | None, rng: np.random.Generator
    ) -> None:
        """Draws the first matrix at random; the second is zero, so that nothing is added yet."""
        outputs, inputs = linear.weight.shape
        bound = 1 / math.sqrt(inputs)
        self.down: Floats = rng.uniform(-bound, bound, (rank, inputs)).astype(np.float32)
        self.up: Floats = np.zeros((outputs, rank), dtype=np.float32)
        self.alpha = alpha
        self.scale: Floats = np.full(1, alpha / rank, dtype=np.float32)
        self.dropout = dropout
        self.rng = rng
        self.clear_gradients()

    def __call__(self, inputs: Floats) -> tuple[Floats, Backward]:
        """What the LoRA adds."""
        kept: Floats = np.ones(1, dtype=np.float32)
        low: Floats = inputs @ self.down.T
        if self.dropout:
            passed = self.rng.random(low.shape, dtype=np.float32) >= self.dropout
            kept = np.divide(passed, 1 - self.dropout, dtype=np.float32)
            low = low * kept

        def backward(gradient: Floats) -> Floats:
            scaled: Floats = gradient * self.scale
            to_low: Floats = (scaled @ self.up) * kept
            self.up_gradient += scaled.T @ low
            self.down_gradient += to_low.T @ inputs
            return to_low @ self.down

        added: Floats = low @ self.up.T
        return added * self.scale, backward

    def clear_gradients(self) -> None:
        """Starts the sums of gradients anew."""
        self.down_gradient = np.zeros_like(self.down)
        self.up_gradient = np.zeros_like(self.up)


class LoRANetwork:
    """The LoRA modules of a model, by the names they have in a file."""

    def __init__(self, modules: dict[str, LoRAModule]) -> None:
        """Holds the modules."""
        self.modules = modules

    def pairs(self) -> list[tuple[Floats, Floats]]:
        """Every matrix that learns, with its gradient; an optimizer changes both in place."""
        return [
            pair
            for module in self.modules.values()
            for pair in ((module.down, module.down_gradient), (module.up, module.up_gradient))
        ]

    def clear_gradients(self) -> None:
        """Starts all sums of gradients anew."""
        for _, gradient in self.pairs():
            gradient[...] = 0

    def load_weights(self, path: str) -> str:
        """Takes over the matrices of a LoRA file, and says which names did not match."""
        tensors, _ = load_file(path)
        missing = []
        for name, module in self.modules.items():
            for kind, target in ((_DOWN, module.down), (_UP, module.up)):
                tensor = tensors.pop(f"{name}.{kind}", None)
                if tensor is None:
                    missing.append(f"{name}.{kind}")
                else:
                    target[...] = tensor.floats()
            tensors.pop(f"{name}.{_ALPHA}", None)
        if not missing and not tensors:
            return MATCHED
        return f"_IncompatibleKeys(missing_keys={missing}, unexpected_keys={list(tensors)})"

    def save_weights(self, path: str, dtype: str, metadata: Metadata) -> None:
        """Writes the LoRA file, its hashes among the metadata."""
        tensors: Tensors = {}
        for name, module in self.modules.items():
            tensors[f"{name}.{_ALPHA}"] = store(module.alpha, dtype)
            tensors[f"{name}.{_DOWN}"] = store(module.down, dtype)
            tensors[f"{name}.{_UP}"] = store(module.up, dtype)
        save_file(tensors, path, metadata | hashes(tensors, metadata))


def create_network(
    transformer: ZImageTransformer2DModel,
    target: str | None,
    rank: int | None,
    alpha: float | None,
    dropout: float | None,
    options: dict[str, Any],
    rng: np.random.Generator,
) -> LoRANetwork:
    """A LoRA beside every layer whose name matches `target` and the options' patterns."""
    rank = _DEFAULT_RANK if rank is None else rank
    alpha = 1.0 if alpha is None else alpha
    logger.info(f"create LoRA network. base dim (rank): {rank}, alpha: {alpha}")
    logger.info(f"neuron dropout: p={dropout}, rank dropout: p=None, module dropout: p=None")
    exclude, include = (_patterns(options.get(f"{name}_patterns")) for name in ("exclude", "include"))
    modules = {}
    for name, linear in _targets(transformer, target).items():
        if any(re.fullmatch(pattern, name) for pattern in exclude) and not any(
            re.fullmatch(pattern, name) for pattern in include
        ):
            continue
        modules[lora_name(name)] = linear.lora = LoRAModule(linear, rank, alpha, dropout, rng)
    logger.info(f"create LoRA for U-Net/DiT: {len(modules)} modules.")
    logger.info(f"enable LoRA for U-Net: {len(modules)} modules")
    if not modules:
        logger.error("No LoRA modules. Please check `--network_module` and `--network_args`")
        raise RuntimeError("No LoRA modules found")
    return LoRANetwork(modules)


def merge_weights(
    transformer: ZImageTransformer2DModel, target: str | None, tensors: Tensors, multiplier: float
) -> None:
    """Adds a LoRA file's matrices to the frozen layers of the same names; other names are passed over in silence."""
    logger.info("create LoRA network from weights")
    chosen = {
        lora_name(name): linear
        for name, linear in _targets(transformer, target).items()
        if f"{lora_name(name)}.{_DOWN}" in tensors
    }
    logger.info(f"create LoRA for U-Net/DiT: {len(chosen)} modules.")
    for name, linear in chosen.items():
        down, up = tensors[f"{name}.{_DOWN}"].floats(), tensors[f"{name}.{_UP}"].floats()
        rank = len(down)
        alpha = tensors.get(f"{name}.{_ALPHA}")
        factor = multiplier * (float(alpha.floats()) / rank if alpha else 1.0)
        if (len(up), down.shape[1]) != linear.weight.shape:
            raise RuntimeError(
                f"Error(s) in loading state_dict for LoRAInfModule:\n\tsize mismatch for {name}: copying a param with "
                f"shape torch.Size([{len(up)}, {down.shape[1]}]) from checkpoint, the shape in current model is "
                f"torch.Size({list(linear.weight.shape)})."
            )
        linear.weight = store(linear.weight + np.float32(factor) * (up @ down), "BF16").floats()
    logger.info("weights are merged")


def lora_name(layer: str) -> str:
    """The name of a layer's LoRA in a file."""
    return _PREFIX + layer.replace(".", "_")


def _targets(transformer: ZImageTransformer2DModel, target: str | None) -> dict[str, Linear]:
    """The layers of the model, if it is the model that the network module is for."""
    return transformer.linears() if target == type(transformer).__name__ else {}


def _patterns(text: str | None) -> Sequence[str]:
    return () if text is None else ast.literal_eval(text)


# The interface of a network module; this one is for HunyuanVideo, so it finds nothing in Z-Image.
TARGET: str | None = None


def create_arch_network(
    transformer: ZImageTransformer2DModel,
    rank: int | None,
    alpha: float | None,
    dropout: float | None,
    options: dict[str, Any],
    rng: np.random.Generator,
) -> LoRANetwork:
    """A new network for this module's model."""
    return create_network(transformer, TARGET, rank, alpha, dropout, options, rng)


def merge_arch_weights(transformer: ZImageTransformer2DModel, tensors: Tensors, multiplier: float) -> None:
    """Merges a LoRA into this module's model."""
    merge_weights(transformer, TARGET, tensors, multiplier)
