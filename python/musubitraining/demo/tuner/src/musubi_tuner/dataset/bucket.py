"""Which size a photo is brought to, and which photos share a batch."""

from __future__ import annotations

import logging
import math
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from musubi_tuner.dataset.image_video_dataset import CachedItem

logger = logging.getLogger(__name__)

Size = tuple[int, int]
_STEP_PIXELS = 16  # 8 for the VAE, times 2 for the transformer's patches


class BucketSelector:
    """Chooses the bucket (width, height) for an image size."""

    def __init__(self, resolution: Size, *, enable_bucket: bool, no_upscale: bool) -> None:
        """Lays out the buckets around a resolution."""
        width, height = resolution
        self.area = width * height
        self.no_upscale = enable_bucket and no_upscale
        self.resolutions = _bucket_resolutions(self.area) if enable_bucket else [resolution]
        self.ratios = [bucket_width / bucket_height for bucket_width, bucket_height in self.resolutions]

    def select(self, image_size: Size) -> Size:
        """The bucket whose width to height ratio is nearest; the image's own size if it may not be enlarged."""
        width, height = image_size
        if self.no_upscale and width * height <= self.area:
            return _round_down(width), _round_down(height)
        ratio = width / height
        nearest = min(range(len(self.ratios)), key=lambda index: abs(self.ratios[index] - ratio))
        return self.resolutions[nearest]


def _bucket_resolutions(area: int) -> list[Size]:
    side = int(math.sqrt(area))
    resolutions = set()
    for width in range(_round_down(side // 2), side + _STEP_PIXELS, _STEP_PIXELS):
        height = _round_down(area // width)
        resolutions |= {(width, height), (height, width)}
    return sorted(resolutions)


def _round_down(pixels: int) -> int:
    return pixels - pixels % _STEP_PIXELS


class BucketBatches:
    """The batches of one dataset: each from one bucket, their order shuffled anew every epoch."""

    def __init__(self, buckets: dict[Size, list[CachedItem]], batch_size: int) -> None:
        """Cuts each bucket into batches."""
        self.batch_size = batch_size
        self.buckets = {size: buckets[size] for size in sorted(buckets)}
        self.order = [
            (size, index) for size, items in self.buckets.items() for index in range(math.ceil(len(items) / batch_size))
        ]
        for size, items in self.buckets.items():
            logger.info(f"bucket: {size}, count: {len(items)}")
        logger.info(f"total batches: {len(self.order)}")

    def __len__(self) -> int:
        """How many batches an epoch has."""
        return len(self.order)

    def __getitem__(self, position: int) -> list[CachedItem]:
        """The batch at a position of the present order."""
        size, index = self.order[position]
        return self.buckets[size][index * self.batch_size : (index + 1) * self.batch_size]

    def shuffle(self, seed: int) -> None:
        """Shuffles the items within the buckets, then the batches."""
        shuffler = random.Random(seed)
        for items in self.buckets.values():
            shuffler.shuffle(items)
        shuffler.shuffle(self.order)
