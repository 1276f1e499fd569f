"""A dataset: for caching it yields photos and captions in batches, for training it collects their caches."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from musubi_tuner.dataset.bucket import BucketBatches, BucketSelector, Size
from musubi_tuner.dataset.datasources import Entry, read_image_directory, read_image_jsonl

logger = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]
ARCHITECTURE = "zi"


@dataclass(frozen=True)
class Item:
    """A photo on its way into the caches. Only latents need `image_size`, `bucket` and `pixels`."""

    path: str
    caption: str
    text_cache_path: str
    latent_cache_path: str = ""
    image_size: Size = (0, 0)
    bucket: Size = (0, 0)
    pixels: Pixels | None = None


@dataclass(frozen=True)
class CachedItem:
    """A photo that can be trained on: its two cache files."""

    latent_cache_path: str
    text_cache_path: str


class ImageDataset:
    """One `[[datasets]]` table, with the defaults filled in."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Finds the photos that the settings name."""
        self.settings = settings
        self.resolution: Size = settings["resolution"]
        self.batch_size: int = settings["batch_size"]
        self.num_repeats: int = settings["num_repeats"]
        if not settings["enable_bucket"]:
            settings["bucket_no_upscale"] = False
        directory, jsonl = settings["image_directory"], settings["image_jsonl_file"]
        if directory is None and jsonl is None:
            # Such a table is taken for a video dataset, and Z-Image has no videos.
            raise ValueError(f"Unsupported architecture: {ARCHITECTURE}")
        if directory is not None:
            self.entries = read_image_directory(directory, settings["caption_extension"], settings["control_directory"])
        else:
            self.entries = read_image_jsonl(jsonl)
        if settings["cache_directory"] is None:
            settings["cache_directory"] = directory
        self.cache_directory: str | None = settings["cache_directory"]
        self.batches: BucketBatches | None = None

    def latent_batches(self) -> Iterator[list[Item]]:
        """Photos brought to their buckets, in batches of one bucket each."""
        selector = self._bucket_selector()
        waiting: dict[Size, list[Item]] = {}
        for entry in self.entries:
            item = self._load(entry, selector)
            batch = waiting.setdefault(item.bucket, [])
            batch.append(item)
            if len(batch) >= self.batch_size:
                yield waiting.pop(item.bucket)[: self.batch_size]
        yield from waiting.values()

    def text_batches(self) -> Iterator[list[Item]]:
        """Captions in batches."""
        for start in range(0, len(self.entries), self.batch_size):
            yield [
                Item(entry.path, entry.caption(), self.text_cache_path(entry.path))
                for entry in self.entries[start : start + self.batch_size]
            ]

    def latent_cache_files(self) -> list[str]:
        """Every latent cache in the folder, this dataset's or not."""
        return glob.glob(os.path.join(self._caches(), f"*_{ARCHITECTURE}.safetensors"))

    def text_cache_files(self) -> list[str]:
        """Every text cache in the folder, this dataset's or not."""
        return glob.glob(os.path.join(self._caches(), f"*_{ARCHITECTURE}_te.safetensors"))

    def text_cache_path(self, image_path: str) -> str:
        """Where the text cache of a photo belongs."""
        return os.path.join(self._caches(), f"{_stem(image_path)}_{ARCHITECTURE}_te.safetensors")

    def prepare_for_training(self) -> None:
        """Collects the caches. The photos themselves are not looked at."""
        selector = self._bucket_selector()
        buckets: dict[Size, list[CachedItem]] = {}
        for path in sorted(self.latent_cache_files()):
            *stem, size, _ = os.path.basename(path).split("_")
            width, height = map(int, size.split("x"))
            text_cache_path = os.path.join(self._caches(), f"{'_'.join(stem)}_{ARCHITECTURE}_te.safetensors")
            if not os.path.exists(text_cache_path):
                logger.warning(f"Text encoder output cache file not found: {text_cache_path}")
                continue
            items = buckets.setdefault(selector.select((width, height)), [])
            items.extend([CachedItem(path, text_cache_path)] * self.num_repeats)
        self.batches = BucketBatches(buckets, self.batch_size)

    @property
    def num_train_items(self) -> int:
        """Photos times repeats."""
        return sum(len(items) for items in self.batches.buckets.values()) if self.batches else 0

    def describe(self) -> str:
        """The settings as the scripts log them."""
        lines = [
            f"is_image_dataset: {True}",
            *(f"{name}: {self.settings[name]}" for name in ("resolution", "batch_size", "num_repeats")),
            f'caption_extension: "{self.settings["caption_extension"]}"',
            *(f"{name}: {self.settings[name]}" for name in ("enable_bucket", "bucket_no_upscale")),
            f'cache_directory: "{self.cache_directory}"',
            f"debug_dataset: {False}",
        ]
        image_lines = [
            *(
                f'{name}: "{self.settings[name]}"'
                for name in ("image_directory", "image_jsonl_file", "control_directory")
            ),
            *(f"{name}: {self.settings[name]}" for name in _IMAGE_ONLY),
        ]
        return "".join(f"  {line}\n" for line in lines) + "".join(f"    {line}\n" for line in image_lines) + "\n"

    def metadata(self) -> dict[str, Any]:
        """What the LoRA file records of this dataset: settings, and names of folders without their paths."""
        recorded = {
            "resolution": self.resolution,
            "caption_extension": self.settings["caption_extension"],
            "batch_size_per_device": self.batch_size,
            "num_repeats": self.num_repeats,
            "enable_bucket": bool(self.settings["enable_bucket"]),
            "bucket_no_upscale": bool(self.settings["bucket_no_upscale"]),
        }
        for name in _SOURCES:
            if self.settings[name] is not None:
                recorded[name] = os.path.basename(self.settings[name])
        return recorded | {"has_control": self.settings["control_directory"] is not None}

    def _bucket_selector(self) -> BucketSelector:
        enable_bucket, no_upscale = self.settings["enable_bucket"], self.settings["bucket_no_upscale"]
        return BucketSelector(self.resolution, enable_bucket=enable_bucket, no_upscale=no_upscale)

    def _caches(self) -> str:
        assert self.cache_directory is not None, "cache_directory is required / cache_directoryは必須です"
        return self.cache_directory

    def _load(self, entry: Entry, selector: BucketSelector) -> Item:
        # The orientation a camera notes in EXIF is ignored, as it is by Musubi Tuner.
        with Image.open(entry.path) as file:
            image = file.convert("RGB") if file.mode not in {"RGB", "RGBA"} else file.copy()
        bucket = selector.select(image.size)
        pixels = resize_to_cover(image, bucket)[..., :3]
        width, height = image.size
        name = f"{_stem(entry.path)}_{width:04d}x{height:04d}_{ARCHITECTURE}.safetensors"
        return Item(
            path=entry.path,
            caption=entry.caption(),
            text_cache_path=self.text_cache_path(entry.path),
            latent_cache_path=os.path.join(self._caches(), name),
            image_size=image.size,
            bucket=bucket,
            pixels=pixels,
        )


_SOURCES = ("image_directory", "image_jsonl_file", "control_directory")
_IMAGE_ONLY = (
    "multiple_target",
    "fp_latent_window_size",
    "fp_1f_clean_indices",
    "fp_1f_target_index",
    "fp_1f_no_post",
    "no_resize_control",
    "control_resolution",
)


def resize_to_cover(image: Image.Image, bucket: Size) -> Pixels:
    """The image scaled until it covers the bucket, the rest cut off evenly on both sides."""
    width, height = bucket
    if image.size != bucket:
        scale = max(width / image.width, height / image.height)
        size = (int(image.width * scale + 0.5), int(image.height * scale + 0.5))
        image = image.resize(size, Image.Resampling.LANCZOS if scale > 1 else Image.Resampling.BOX)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image)[top : top + height, left : left + width]


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]
