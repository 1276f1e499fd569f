"""Makes Z-Image small enough to train on a CPU, while every script of Musubi Tuner runs as it is.

Python imports this file at start-up when its folder is on PYTHONPATH. It changes nothing by itself: it waits for the
three modules that fix the sizes of Z-Image's transformer, text encoder and VAE, and shrinks each as it is imported.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

# 128 dimensions a head is fixed by the rotary embedding's axes (32 + 48 + 48).
TRANSFORMER = {
    "DEFAULT_TRANSFORMER_DIM": 256,
    "DEFAULT_TRANSFORMER_N_HEADS": 2,
    "DEFAULT_TRANSFORMER_N_KV_HEADS": 2,
    "DEFAULT_TRANSFORMER_N_LAYERS": 2,
    "DEFAULT_TRANSFORMER_N_REFINER_LAYERS": 1,
    "DEFAULT_TRANSFORMER_CAP_FEAT_DIM": 64,
}
# `hidden_size` feeds the transformer's `CAP_FEAT_DIM`; Z-Image reads the last hidden state but one.
TEXT_ENCODER = {
    "hidden_size": TRANSFORMER["DEFAULT_TRANSFORMER_CAP_FEAT_DIM"],
    "intermediate_size": 128,
    "head_dim": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 3,
    "vocab_size": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
# As many channels as there are groups in its normalisation: the fewest that it takes.
VAE = {"block_out_channels": (32, 32, 32, 32)}


def shrink_transformer(zimage_config: Any) -> None:
    """Overwrite the constants that the transformer is built from."""
    vars(zimage_config).update(TRANSFORMER)


def shrink_text_encoder(zimage_utils: Any) -> None:
    """Let the configuration that is parsed from the module's own JSON be a small one."""
    full_size = zimage_utils.Qwen3Config
    zimage_utils.Qwen3Config = lambda **sizes: full_size(**(sizes | TEXT_ENCODER))


def shrink_vae(zimage_autoencoder: Any) -> None:
    """Build the same VAE with fewer channels."""
    full_size = zimage_autoencoder.AutoencoderKL.__init__
    zimage_autoencoder.AutoencoderKL.__init__ = lambda model, **sizes: full_size(model, **(sizes | VAE))


SHRINK = {
    "musubi_tuner.zimage.zimage_config": shrink_transformer,
    "musubi_tuner.zimage.zimage_utils": shrink_text_encoder,
    "musubi_tuner.zimage.zimage_autoencoder": shrink_vae,
}


class ShrinkingLoader(Loader):
    """Loads a module as ever, then shrinks what it holds."""

    def __init__(self, loader: Loader) -> None:
        """Wrap the loader that the module has."""
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave the module's making to its own loader."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's own code, then shrink."""
        self.loader.exec_module(module)
        SHRINK[module.__name__](module)


class ShrinkingFinder(MetaPathFinder):
    """Finds the three modules where Python would, and gives them the loader above."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Answer for the modules in `SHRINK` alone."""
        if fullname not in SHRINK:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = ShrinkingLoader(spec.loader)
        return spec


sys.meta_path.insert(0, ShrinkingFinder())
