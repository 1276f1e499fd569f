"""Photos and zips of photos, to the byte."""

import io
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass


def _segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def jpeg(width: int = 64, height: int = 48, comment: str = "", *, orientation: int | None = None) -> bytes:
    """A real baseline JPEG, all grey: every 8x8 block is "same as before" and "nothing more", two bits."""
    blocks = -(-width // 8) * -(-height // 8)
    bits = "00" * blocks
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")
    one_code_of_one_bit = bytes([1] + [0] * 15 + [0])
    exif = b""
    if orientation is not None:
        tiff = b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0) + b"\0" * 4
        exif = _segment(0xE1, b"Exif\0\0" + tiff)
    return b"".join(
        [
            b"\xff\xd8",
            exif or _segment(0xE0, b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0"),
            _segment(0xFE, comment.encode()) if comment else b"",
            _segment(0xDB, b"\0" + b"\x01" * 64),
            _segment(0xC0, struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\0"),
            _segment(0xC4, b"\x00" + one_code_of_one_bit),
            _segment(0xC4, b"\x10" + one_code_of_one_bit),
            _segment(0xDA, b"\x01\x01\0\0\x3f\0"),
            scan,
            b"\xff\xd9",
        ]
    )


def png(width: int, height: int) -> bytes:
    """A real PNG, all black."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + width) * height))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def webp(width: int, height: int) -> bytes:
    """A real lossless WebP, all of one colour: every code has one symbol and takes no bits."""
    bits, length = 0, 0
    # Sizes less one, no alpha, version 0; no transform, no colour cache, no meta codes; five codes of one symbol.
    for value, count in [(width - 1, 14), (height - 1, 14), (0, 4), (0, 3), *[(0b0001, 4)] * 5]:
        bits |= value << length
        length += count
    data = b"\x2f" + bits.to_bytes(-(-length // 8), "little")
    data = struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
    return b"RIFF" + struct.pack("<I", 8 + len(data)) + b"WEBPVP8L" + data


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64
"""The opening of a photo as an iPhone stores it."""

HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Please sign in.</body></html>\n"


@dataclass(frozen=True)
class Entry:
    """One member of a zip."""

    name: str
    data: bytes = b""
    link: bool = False
    stored: bool = False
    raw_name: bytes | None = None
    """The name's bytes as they stand in the zip, without the UTF-8 flag: what old Windows and macOS zippers write."""


def make_zip(*entries: Entry | tuple[str, bytes] | str) -> bytes:
    """A zip of exactly these entries in this order; a bare string is a folder or, without a slash, a photo."""
    buffer = io.BytesIO()
    patches: list[tuple[bytes, bytes]] = []
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Duplicate name")
        for number, given in enumerate(entries):
            entry = _entry(given)
            name = entry.name
            if entry.raw_name is not None:
                name = f"{number:0{len(entry.raw_name)}}"[: len(entry.raw_name)]
                patches.append((name.encode(), entry.raw_name))
            info = zipfile.ZipInfo(name, (2024, 1, 2, 3, 4, 6))
            info.create_system = 3
            kind = stat.S_IFDIR | 0o755 if name.endswith("/") else stat.S_IFREG | 0o644
            info.external_attr = (stat.S_IFLNK | 0o777 if entry.link else kind) << 16
            info.compress_type = zipfile.ZIP_STORED if entry.stored or entry.link else zipfile.ZIP_DEFLATED
            archive.writestr(info, entry.data)
    data = buffer.getvalue()
    for placeholder, raw_name in patches:
        data = data.replace(placeholder, raw_name)
    return data


def _entry(given: Entry | tuple[str, bytes] | str) -> Entry:
    match given:
        case Entry():
            return given
        case str() if given.endswith("/"):
            return Entry(given)
        case str():
            return Entry(given, jpeg(comment=given))
        case (name, data):
            return Entry(name, data)


def photo_zip(names: Iterable[str] = ("a.jpg", "b.jpeg", "c.jpg")) -> bytes:
    return make_zip(*names)
