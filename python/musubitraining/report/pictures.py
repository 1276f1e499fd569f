"""Photos as they can stand in a document: small, and in it."""

from __future__ import annotations

import base64
import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What is read of a photo that Pillow makes small, and what is taken as it is where there is no Pillow.
LARGEST_READ = 64 * 2**20
LARGEST_AS_IT_IS = 256 * 2**10
MOST_PIXELS = 120_000_000
KINDS = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "AVIF"]


@dataclass(frozen=True)
class Picture:
    """What stands in the document.

    Attributes:
        address: the whole file, as a `data:` URL.
        width: in pixels, None where it is not known.
        height: in pixels, None where it is not known.
    """

    address: str
    width: int | None = None
    height: int | None = None


class Pictures:
    """Takes photos in until there are enough."""

    def __init__(self, *, most: int, most_bytes: int, edge: int) -> None:
        """Begin with none.

        Args:
            most: how many.
            most_bytes: of all together, as they stand in the document.
            edge: the longest edge of one, in pixels.
        """
        self._left = most
        self._bytes_left = most_bytes
        self._edge = edge
        self._image = _pillow()

    def take(self, path: Path, inside: Path) -> Picture | None:
        """The photo at `path`; None where it is not in `inside`, missing, damaged, no photo, or one too many."""
        if self._left <= 0:
            return None
        content = _content(path, inside)
        if content is None:
            return None
        picture = _as_it_is(content) if self._image is None else _thumbnail(self._image, content, self._edge)
        if picture is None or len(picture.address) > self._bytes_left:
            return None
        self._left -= 1
        self._bytes_left -= len(picture.address)
        return picture


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        return None
    return Image


def _content(path: Path, inside: Path) -> bytes | None:
    """The bytes of a regular file that lies, with all links followed, in a folder. A record may name any path."""
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(inside.resolve(strict=True)):
            return None
        # A pipe in its place would wait for a writer.
        with os.fdopen(os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST_READ:
                return None
            return file.read(LARGEST_READ)
    except (OSError, ValueError, RuntimeError):
        return None


def _thumbnail(pillow: Any, content: bytes, edge: int) -> Picture | None:
    """A small JPEG of what the tuner sees: it does not turn a photo upright either."""
    try:
        with pillow.open(io.BytesIO(content), formats=[kind for kind in KINDS if kind in _openable(pillow)]) as image:
            if image.width * image.height > MOST_PIXELS:
                return None
            image.draft("RGB", (edge, edge))
            image.thumbnail((edge, edge))
            small = image.convert("RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB")
            if small.mode == "RGBA":
                white = pillow.new("RGBA", small.size, "white")
                small = pillow.alpha_composite(white, small).convert("RGB")
            packed = io.BytesIO()
            small.save(packed, format="JPEG", quality=82, optimize=True)
    except Exception:  # a damaged photo may raise anything, and the report goes on without it
        return None
    return Picture(_address("jpeg", packed.getvalue()), *small.size)


def _openable(pillow: Any) -> set[str]:
    pillow.init()
    return set(pillow.OPEN)


def _as_it_is(content: bytes) -> Picture | None:
    if len(content) > LARGEST_AS_IT_IS:
        return None
    if content.startswith(b"\xff\xd8\xff"):
        return Picture(_address("jpeg", content))
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return Picture(_address("png", content))
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return Picture(_address("webp", content))
    return None


def _address(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
