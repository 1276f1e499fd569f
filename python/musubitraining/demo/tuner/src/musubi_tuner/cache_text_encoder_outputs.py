"""What caching text embeddings has in common for every model of Musubi Tuner: the loop."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable

from musubi_tuner.cache_latents import encode_in_parts, remove_foreign
from musubi_tuner.dataset.image_video_dataset import ImageDataset, Item
from musubi_tuner.progress_bar import progress

logger = logging.getLogger(__name__)


def existing_caches(datasets: list[ImageDataset]) -> list[set[str]]:
    """Each dataset's text caches from before this run."""
    return [{os.path.normpath(file) for file in dataset.text_cache_files()} for dataset in datasets]


def encode_datasets(
    datasets: list[ImageDataset],
    existing: list[set[str]],
    encode: Callable[[list[Item]], None],
    args: argparse.Namespace,
) -> None:
    """Encodes every dataset's captions, then removes the old caches that belong to none of them."""
    wanted_by_dataset = []
    for number, dataset in enumerate(datasets):
        logger.info(f"Encoding dataset [{number}]")
        wanted: set[str] = set()
        for batch in progress(dataset.text_batches()):
            wanted |= {os.path.normpath(item.text_cache_path) for item in batch}
            missing = batch
            if args.skip_existing:
                missing = [item for item in batch if os.path.normpath(item.text_cache_path) not in existing[number]]
            if missing:
                encode_in_parts(missing, args.batch_size, encode)
        wanted_by_dataset.append(wanted)
    for files, wanted in zip(existing, wanted_by_dataset, strict=True):
        remove_foreign(logger, sorted(files), wanted, keep=args.keep_cache)
