"""Where photos and captions come from: a folder, or a file with one JSON object a line."""

from __future__ import annotations

import glob
import json
import logging
import os
import re
from dataclasses import dataclass

logger = logging.getLogger(__name__)

# A mixed-case extension such as `.Jpg` is not looked for.
_EXTENSIONS = [
    spelling
    for extension in (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif")
    for spelling in (extension, extension.upper())
]


@dataclass(frozen=True)
class Entry:
    """A photo and how its caption is found."""

    path: str
    caption_text: str | None = None
    caption_path: str = ""

    def caption(self) -> str:
        """The caption, without blanks around it."""
        if self.caption_text is not None:
            return self.caption_text
        with open(self.caption_path, encoding="utf-8") as file:
            return file.read().strip()


def read_image_directory(directory: str, caption_extension: str | None, control_directory: str | None) -> list[Entry]:
    """The photos at the top of a folder, sorted; with a caption extension, only those that have a caption file."""
    logger.info(f"glob images in {directory}")
    paths = sorted({path for extension in _EXTENSIONS for path in _files(directory, extension)})
    if caption_extension is not None:
        captioned = {_stem(path) for path in _files(directory, caption_extension)}
        paths = [path for path in paths if _stem(path) in captioned]
    logger.info(f"found {len(paths)} images")
    if control_directory is not None:
        _check_controls(paths, control_directory)
    return [
        Entry(path, caption_path=os.path.splitext(path)[0] + caption_extension if caption_extension else "")
        for path in paths
    ]


def read_image_jsonl(path: str) -> list[Entry]:
    """The photos named by a jsonl file."""
    logger.info(f"load image jsonl from {path}")
    entries = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                logger.error(f"failed to load json: {line} @ {path}")
                raise
            image = record["image_path_0"] if "image_path_0" in record else record["image_path"]
            entries.append(Entry(image, caption_text=record["caption"]))
    logger.info(f"loaded {len(entries)} images")
    return entries


def _files(directory: str, ending: str) -> list[str]:
    return glob.glob(os.path.join(glob.escape(directory), "*" + ending))


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _check_controls(paths: list[str], directory: str) -> None:
    """Z-Image uses no control images, but a folder of them that matches nothing is refused all the same."""
    logger.info(f"glob control images in {directory}")
    controls = {re.sub(r"_\d+$", "", _stem(path)) for extension in _EXTENSIONS for path in _files(directory, extension)}
    controls |= {_stem(path) for extension in _EXTENSIONS for path in _files(directory, extension)}
    missing = [path for path in paths if _stem(path) not in controls]
    if missing:
        logger.error(f"Could not find matching control images for {len(missing)} images: {missing}")
        raise ValueError(f"Could not find matching control images for {len(missing)} images")
