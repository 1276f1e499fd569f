"""What caching latents has in common for every model of Musubi Tuner: the flags and the loop."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable

from musubi_tuner.dataset.image_video_dataset import ImageDataset, Item
from musubi_tuner.progress_bar import progress

logger = logging.getLogger(__name__)


def setup_parser_common() -> argparse.ArgumentParser:
    """The parser of `zimage_cache_latents.py`."""
    parser = argparse.ArgumentParser()
    add_cache_flags(parser)
    parser.add_argument("--vae", help="VAE weights")
    parser.add_argument("--vae_dtype", help="ignored: the VAE computes in float32")
    parser.add_argument("--debug_mode", choices=["image", "console", "video"], help="not in the miniature")
    parser.add_argument("--console_width", type=int, default=80, help="not in the miniature")
    parser.add_argument("--console_back", help="not in the miniature")
    parser.add_argument("--console_num_images", type=int, help="not in the miniature")
    parser.add_argument("--disable_cudnn_backend", action="store_true", help="nothing to disable on a CPU")
    return parser


def add_cache_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of both caching scripts."""
    parser.add_argument("--dataset_config", required=True, help="dataset file, .toml or .json")
    parser.add_argument("--device", help="only cpu")
    parser.add_argument("--batch_size", type=int, help="splits the dataset's own batches")
    parser.add_argument("--num_workers", type=int, help="the miniature works one by one")
    parser.add_argument("--skip_existing", action="store_true", help="keep caches of that name as they are")
    parser.add_argument("--keep_cache", action="store_true", help="keep caches that are not of this dataset")


def check_device(device: str | None) -> None:
    """Raises for a device that the miniature has not, as torch does where there is no GPU."""
    if device is not None and device.split(":")[0] != "cpu":
        raise RuntimeError(f"No CUDA GPUs are available: the miniature tuner computes on cpu, --device says {device}")


def encode_datasets(
    datasets: list[ImageDataset], encode: Callable[[list[Item]], None], args: argparse.Namespace
) -> None:
    """Encodes every dataset's photos and clears its cache folder of latents that belong to none of them."""
    for number, dataset in enumerate(datasets):
        logger.info(f"Encoding dataset [{number}]")
        wanted = set()
        for batch in progress(dataset.latent_batches()):
            wanted |= {os.path.normpath(item.latent_cache_path) for item in batch}
            if args.skip_existing:
                missing = [item for item in batch if not os.path.exists(item.latent_cache_path)]
                if not missing:
                    continue
            else:
                missing = batch
            encode_in_parts(missing, args.batch_size, encode)
        remove_foreign(logger, dataset.latent_cache_files(), wanted, keep=args.keep_cache)


def encode_in_parts(batch: list[Item], part_size: int | None, encode: Callable[[list[Item]], None]) -> None:
    """Hands a batch to `encode` in parts of at most `part_size`."""
    size = len(batch) if part_size is None else part_size
    for start in range(0, len(batch), size):
        encode(batch[start : start + size])


def remove_foreign(log: logging.Logger, files: list[str], wanted: set[str], *, keep: bool) -> None:
    """Removes cache files that this run did not want, or says that they stay."""
    for file in files:
        if os.path.normpath(file) in wanted:
            continue
        if keep:
            log.info(f"Keep cache file not in the dataset: {file}")
        else:
            os.remove(file)
            log.info(f"Removed old cache file: {file}")
