"""Encodes a dataset's captions and caches the embeddings."""

from __future__ import annotations

import argparse
import logging

from musubi_tuner import cache_text_encoder_outputs
from musubi_tuner.cache_latents import add_cache_flags, check_device
from musubi_tuner.dataset.cache_io import save_text_embedding
from musubi_tuner.dataset.config_utils import load_datasets
from musubi_tuner.dataset.image_video_dataset import Item
from musubi_tuner.zimage.zimage_utils import TextEncoder

logger = logging.getLogger(__name__)
logging.basicConfig(level=logging.INFO)


def setup_parser() -> argparse.ArgumentParser:
    """The script's parser."""
    parser = argparse.ArgumentParser()
    add_cache_flags(parser)
    parser.add_argument("--text_encoder", required=True, help="text encoder weights")
    parser.add_argument("--fp8_llm", action="store_true", help="not in the miniature")
    return parser


def main() -> None:
    """Runs the script."""
    args = setup_parser().parse_args()
    check_device(args.device)
    logger.info(f"Load dataset config from {args.dataset_config}")
    datasets = load_datasets(args.dataset_config)
    existing = cache_text_encoder_outputs.existing_caches(datasets)
    if args.fp8_llm:
        raise NotImplementedError("the miniature tuner has no fp8 text encoder: leave out --fp8_llm")
    logger.info("Using bfloat16 for Qwen3 text encoder")
    logger.info(f"Loading Qwen3 text encoder from {args.text_encoder}")
    encoder = TextEncoder(args.text_encoder)
    logger.info("Encoding prompts with Qwen3 text encoder")

    def encode(batch: list[Item]) -> None:
        for item in batch:
            save_text_embedding(item, encoder.encode(item.caption))

    cache_text_encoder_outputs.encode_datasets(datasets, existing, encode, args)
    logger.info("Done!")


if __name__ == "__main__":
    main()
