"""Turns a LoRA of this tuner into one that ComfyUI loads, where q, k and v of a layer are one tensor; or back."""

from __future__ import annotations

import argparse
import logging

import numpy as np

from musubi_tuner.safetensors_file import StoredTensor, Tensors, hashes, load_file, save_file

logger = logging.getLogger(__name__)
logging.basicConfig(level=logging.INFO)

_RENAMED = {
    "attention_to_out_0": "attention_out",
    "attention_norm_k": "attention_k_norm",
    "attention_norm_q": "attention_q_norm",
}
_PARTS = ("to_q", "to_k", "to_v")
_DOWN, _UP, _ALPHA = "lora_down.weight", "lora_up.weight", "alpha"


def rename(tensors: Tensors, names: dict[str, str]) -> tuple[Tensors, int]:
    """The tensors under their new names, and how many were renamed. Refiner layers keep theirs."""
    renamed: Tensors = {}
    count = 0
    for name, tensor in tensors.items():
        new_name = name
        if "layers" in name:
            for old, new in names.items():
                new_name = new_name.replace(old, new)
        count += new_name != name
        renamed[new_name] = tensor
    return renamed, count


def merge_attention(tensors: Tensors) -> int:
    """Merges each layer's q, k and v in place and returns how many layers there were.

    The downs are stacked; the ups stand on the diagonal of an otherwise empty matrix. The rank is three times as large,
    and so is alpha.
    """
    queries = [name for name in tensors if "attention" in name and "to_q" in name and "lora_up" in name]
    for query in queries:
        base = query.split(".", 1)[0].replace("to_q", "")
        downs = [tensors.pop(f"{base}{part}.{_DOWN}") for part in _PARTS]
        ups = [tensors.pop(f"{base}{part}.{_UP}") for part in _PARTS]
        alpha, _, _ = (tensors.pop(f"{base}{part}.{_ALPHA}") for part in _PARTS)
        down = np.concatenate([tensor.array for tensor in downs])
        rows, rank = ups[0].shape
        up = np.zeros((len(_PARTS) * rows, len(down)), dtype=down.dtype)
        for index, tensor in enumerate(ups):
            up[index * rows : (index + 1) * rows, index * rank : (index + 1) * rank] = tensor.array
        tensors[f"{base}qkv.{_DOWN}"] = StoredTensor(downs[0].dtype, down)
        tensors[f"{base}qkv.{_UP}"] = StoredTensor(downs[0].dtype, up)
        tensors[f"{base}qkv.{_ALPHA}"] = alpha.scaled(len(_PARTS))
    return len(queries)


def split_attention(tensors: Tensors) -> int:
    """Splits what `merge_attention` merged, in place, and returns how many layers there were."""
    merged = [name for name in tensors if "attention_qkv" in name and "lora_down" in name]
    for name in merged:
        lora = name.split(".", 1)[0]
        base = lora.replace("qkv", "")
        down, up, alpha = (tensors.pop(f"{lora}.{kind}") for kind in (_DOWN, _UP, _ALPHA))
        rank, rows = len(down.array) // len(_PARTS), len(up.array) // len(_PARTS)
        for index, part in enumerate(_PARTS):
            ranks, outs = slice(index * rank, (index + 1) * rank), slice(index * rows, (index + 1) * rows)
            tensors[f"{base}{part}.{_DOWN}"] = StoredTensor(down.dtype, down.array[ranks])
            tensors[f"{base}{part}.{_UP}"] = StoredTensor(up.dtype, up.array[outs, ranks])
            tensors[f"{base}{part}.{_ALPHA}"] = alpha.divided(len(_PARTS))
    return len(merged)


def convert(source: str, destination: str, *, reverse: bool = False) -> None:
    """Converts a file."""
    logger.info(f"Loading source file {source}")
    tensors, metadata = load_file(source)
    logger.info("Converting...")
    kinds = {name.split(".", 1)[-1].split("_")[0] for name in tensors}
    if kinds & {"hada", "lokr"}:
        raise NotImplementedError(f"the miniature tuner converts plain LoRA only, {source} holds LoHa or LoKr")
    names = {new: old for old, new in _RENAMED.items()} if reverse else _RENAMED
    tensors, renamed = rename(tensors, names)
    layers = split_attention(tensors) if reverse else merge_attention(tensors)
    logger.info(f"Direct key renames applied: {renamed}")
    logger.info(f"QKV layers processed: {layers}")
    if metadata is not None:
        logger.info("Calculating hashes and creating metadata...")
        metadata |= hashes(tensors, metadata)
    logger.info(f"Saving destination file {destination}")
    save_file(tensors, destination, metadata)


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description="Z-Image LoRA to ComfyUI's naming, or back")
    parser.add_argument("src_path", help="LoRA file to read")
    parser.add_argument("dst_path", help="LoRA file to write")
    parser.add_argument("--reverse", action="store_true", help="from ComfyUI's naming")
    parser.add_argument("--lokr_rank", type=int, help="for LoKr files, which the miniature does not convert")
    args = parser.parse_args()
    convert(args.src_path, args.dst_path, reverse=args.reverse)


if __name__ == "__main__":
    main()
