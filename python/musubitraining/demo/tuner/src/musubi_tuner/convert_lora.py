"""Renames a LoRA between this tuner's naming and the diffusers one."""

from __future__ import annotations

import argparse
import logging

import numpy as np

from musubi_tuner.safetensors_file import StoredTensor, Tensors, load_file, save_file, store

logger = logging.getLogger(__name__)
logging.basicConfig(level=logging.INFO)

_PREFIX = "lora_unet_"
_DIFFUSERS_PREFIXES = ("diffusion_model", "transformer")
# Underscores that are no dots in disguise.
_WORDS = {
    "to.q": "to_q",
    "to.k": "to_k",
    "to.v": "to_v",
    "to.out": "to_out",
    "feed.forward": "feed_forward",
}


def to_default(tensors: Tensors) -> Tensors:
    """From diffusers naming; a LoRA without alpha gets its rank for one."""
    renamed: Tensors = {}
    ranks: dict[str, int] = {}
    for name, tensor in tensors.items():
        prefix, body = name.split(".", 1)
        if prefix not in _DIFFUSERS_PREFIXES:
            logger.warning(f"unexpected key: {name} in diffusers format")
            continue
        new_name = f"{_PREFIX}{body}".replace(".", "_")
        for old, new in (("A", "down"), ("B", "up"), ("down", "down"), ("up", "up")):
            new_name = new_name.replace(f"_lora_{old}_", f".lora_{new}.")
        if new_name.endswith("_alpha"):
            new_name = new_name.removesuffix("_alpha") + ".alpha"
        renamed[new_name] = tensor
        if "lora_down" in new_name:
            ranks.setdefault(new_name.split(".")[0], len(tensor.array))
    for lora, rank in ranks.items():
        renamed.setdefault(f"{lora}.alpha", StoredTensor("I64", np.array(rank, dtype=np.int64)))
    return renamed


def to_other(tensors: Tensors, diffusers_prefix: str) -> Tensors:
    """To diffusers naming, which has no alpha: both matrices take the square root of alpha / rank."""
    renamed = {}
    for name, tensor in tensors.items():
        if not name.startswith(_PREFIX) or "alpha" in name:
            continue
        lora, kind = name.split(".", 1)
        module = lora.removeprefix(_PREFIX).replace("_", ".")
        for dotted, word in _WORDS.items():
            module = module.replace(dotted, word)
        if kind not in {"lora_down.weight", "lora_up.weight"}:
            logger.warning(f"unexpected key: {name} in default LoRA format")
            continue
        is_down = kind == "lora_down.weight"
        alpha = tensors.get(f"{lora}.alpha")
        if alpha is None:
            logger.warning(f"missing alpha for {lora}")
            factor = 1.0
        else:
            factor = _half_scale(alpha, rank=tensor.shape[0] if is_down else tensor.shape[1])
        renamed[f"{diffusers_prefix}.{module}.lora_{'A' if is_down else 'B'}.weight"] = tensor.scaled(factor)
    logger.info(f"estimated type: {'LoRA' if renamed else None}")
    return renamed


def _half_scale(alpha: StoredTensor, rank: int) -> float:
    """The square root of alpha / rank, rounded on the way as torch rounds alpha's type."""
    dtype = "F32" if alpha.dtype == "I64" else alpha.dtype
    scale = store(alpha.floats() / np.float32(rank), dtype).floats()
    return float(store(np.sqrt(scale), dtype).floats())


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description="LoRA between this tuner's naming and the diffusers one")
    parser.add_argument("--input", required=True, help="LoRA file to read")
    parser.add_argument("--output", required=True, help="LoRA file to write")
    parser.add_argument("--target", required=True, choices=["other", "default"], help="naming to write")
    parser.add_argument("--diffusers_prefix", help="first word of every name, diffusion_model if not given")
    args = parser.parse_args()
    logger.info(f"loading {args.input}")
    tensors, metadata = load_file(args.input)
    logger.info(f"converting to {args.target}")
    if args.target == "default":
        tensors, metadata = to_default(tensors), metadata or {}
    else:
        tensors = to_other(tensors, args.diffusers_prefix or _DIFFUSERS_PREFIXES[0])
    logger.info(f"saving to {args.output}")
    save_file(tensors, args.output, metadata)
    logger.info("done")


if __name__ == "__main__":
    main()
