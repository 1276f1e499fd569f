"""Zips put together record by record, so that they can say what no zip program would have them say."""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

STORED, DEFLATED, DEFLATE64, BZIP2, LZMA, PPMD, AES = 0, 8, 9, 12, 14, 98, 99
ENCRYPTED, DESCRIPTOR, UTF8 = 1, 8, 1 << 11
UNIX, DOS = 3, 0
IN_ZIP64 = 0xFFFFFFFF
REGULAR, LINK, FIFO, FOLDER = (kind << 16 for kind in (0o100644, 0o120777, 0o010644, 0o040755))


def deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(data) + compressor.flush()


def field(kind: int, content: bytes, length: int | None = None) -> bytes:
    """An extra field, which may lie about its length."""
    return struct.pack("<HH", kind, len(content) if length is None else length) + content


def zip64_field(*numbers: int) -> bytes:
    return field(1, struct.pack(f"<{len(numbers)}Q", *numbers))


def unicode_field(raw_name: bytes, name: str, length: int | None = None) -> bytes:
    return field(0x7075, struct.pack("<BI", 1, zlib.crc32(raw_name)) + name.encode(), length)


@dataclass(frozen=True)
class Header:
    """What a header says of an entry; the local one and the directory's are the same unless told apart."""

    name: bytes
    crc: int
    compressed: int
    size: int
    method: int
    flags: int = 0
    extra: bytes = b""
    version: int = 20
    date: int = 0x21
    system: int = UNIX
    attributes: int = REGULAR
    comment: bytes = b""
    offset: int = 0

    def _shared(self) -> bytes:
        numbers = (self.version, self.flags, self.method, 0, self.date, self.crc, self.compressed, self.size)
        return struct.pack("<HHHHHIIIHH", *numbers, len(self.name), len(self.extra))

    def local(self) -> bytes:
        return b"PK\3\4" + self._shared() + self.name + self.extra

    def central(self) -> bytes:
        made_by = struct.pack("<BB", self.version, self.system)
        rest = struct.pack("<HHHII", len(self.comment), 0, 0, self.attributes, self.offset)
        return b"PK\1\2" + made_by + self._shared() + rest + self.name + self.extra + self.comment


@dataclass(frozen=True)
class Member:
    """An entry: its header, what the header in the directory and the one before the data say otherwise, its data."""

    header: Header
    data: bytes
    local: dict[str, Any]
    central: dict[str, Any]
    after: bytes = b""
    """Behind its data: a descriptor, or a gap."""
    before: bytes = b""
    listed: bool = True


def member(
    name: str | bytes,
    content: bytes = b"",
    *,
    method: int = STORED,
    data: bytes | None = None,
    after: bytes = b"",
    before: bytes = b"",
    listed: bool = True,
    local: dict[str, Any] | None = None,
    central: dict[str, Any] | None = None,
    **both: Any,
) -> Member:
    raw_name = name if isinstance(name, bytes) else name.encode()
    if data is None:
        data = deflated(content) if method == DEFLATED else content
    flags = 0 if raw_name.isascii() or isinstance(name, bytes) else UTF8
    header = Header(raw_name, zlib.crc32(content), len(data), len(content), method, flags)
    return Member(replace(header, **both), data, local or {}, central or {}, after, before, listed)


def descriptor(crc: int, compressed: int, size: int, *, signed: bool = True, wide: bool = False) -> bytes:
    return b"PK\7\10" * signed + struct.pack("<IQQ" if wide else "<III", crc, compressed, size)


def end_record(
    count: int, size: int, offset: int, comment: bytes = b"", *, comment_length: int | None = None, disk: int = 0
) -> bytes:
    length = len(comment) if comment_length is None else comment_length
    return b"PK\5\6" + struct.pack("<HHHHIIH", disk, disk, count, count, size, offset, length) + comment


def end_records_64(
    count: int,
    size: int,
    offset: int,
    *,
    at: int,
    more: bytes = b"",
    version: int = 20,
    counted: int = 0xFFFF,
    length: int | None = None,
    comment: bytes = b"",
) -> bytes:
    """The end of a zip64: the record, its locator, and an end record that refers to them."""
    length = 44 + len(more) if length is None else length
    record = struct.pack("<QHHIIQQQQ", length, version, version, 0, 0, count, count, size, offset) + more
    locator = struct.pack("<IQI", 0, at, 1)
    end = end_record(counted, IN_ZIP64, IN_ZIP64, comment)
    return b"PK\6\6" + record + b"PK\6\7" + locator + end


def body(members: Sequence[Member], start: int = 0) -> tuple[bytes, bytes]:
    """All that precedes the directory, and the directory."""
    data, directory = b"", b""
    for one in members:
        data += one.before
        offset = start + len(data)
        data += replace(one.header, **one.local).local() + one.data + one.after
        if one.listed:
            directory += replace(one.header, **{"offset": offset} | one.central).central()
    return data, directory


def zip_of(
    *members: Member,
    prefix: bytes = b"",
    shifted: bool = False,
    gap: bytes = b"",
    comment: bytes = b"",
    suffix: bytes = b"",
    zip64: bool = False,
    **end: Any,
) -> bytes:
    """`shifted`: offsets count from the beginning of the file, not of the zip in it."""
    start = len(prefix) if shifted else 0
    data, directory = body(members, start)
    data += gap
    count = sum(one.listed for one in members)
    at = start + len(data)
    if zip64:
        records = end_records_64(count, len(directory), at, at=at + len(directory), comment=comment, **end)
    else:
        numbers = {"count": count, "size": len(directory), "offset": at} | end
        records = end_record(**numbers, comment=comment)
    return prefix + data + directory + records + suffix
