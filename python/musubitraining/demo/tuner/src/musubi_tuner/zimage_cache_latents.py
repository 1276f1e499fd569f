"""Encodes a dataset's photos and caches the latents."""

from __future__ import annotations

import logging

from musubi_tuner import cache_latents
from musubi_tuner.dataset.cache_io import save_latents
from musubi_tuner.dataset.config_utils import load_datasets
from musubi_tuner.dataset.image_video_dataset import Item
from musubi_tuner.zimage.zimage_autoencoder import AutoencoderKL

logger = logging.getLogger(__name__)
logging.basicConfig(level=logging.INFO)

_SMALLEST_SIDE_PIXELS = 16


def main() -> None:
    """Runs the script."""
    args = cache_latents.setup_parser_common().parse_args()
    if args.disable_cudnn_backend:
        logger.info("Disabling cuDNN PyTorch backend.")
    if args.vae_dtype is not None:
        logger.warning("VAE dtype is specified but Z-Image VAE always uses float32 for better precision.")
    logger.info(f"Load dataset config from {args.dataset_config}")
    datasets = load_datasets(args.dataset_config)
    if args.debug_mode is not None:
        raise NotImplementedError("the miniature tuner shows no images: leave out --debug_mode")
    assert args.vae is not None, "VAE checkpoint is required (--vae)"
    cache_latents.check_device(args.device)
    logger.info(f"Loading Z-Image VAE from {args.vae}")
    vae = AutoencoderKL(args.vae)
    logger.info("Loaded Z-Image VAE, dtype: torch.float32")

    def encode(batch: list[Item]) -> None:
        first = batch[0]
        if min(first.bucket) < _SMALLEST_SIDE_PIXELS:
            others = len(batch) - 1
            raise ValueError(f"Image size too small: {first.path} and {others} more, size: {first.image_size}")
        for item in batch:
            assert item.pixels is not None
            save_latents(item, vae.encode(item.pixels))

    cache_latents.encode_datasets(datasets, encode, args)
    logger.info("Done!")


if __name__ == "__main__":
    main()
