"""The 37 archives that the tests of uv call `malo`, each put together from what it is, to the byte.

`accept` ones are sound, `iffy` ones odd, and those of `malicious` and `reject` lie.
"""

import struct
from typing import Any

from harness import zips
from harness.zips import DEFLATED, DESCRIPTOR, IN_ZIP64, Member, field, member, unicode_field, zip64_field, zip_of


def _letters(name: str = "foo", content: bytes = b"abcdefgh", **more: Any) -> Member:
    """As one of the set's two writers has it."""
    return member(name, content, **{"attributes": 0o600 << 16} | more)


def _hello(name: str | bytes = "fixme", content: bytes = b"hello", **more: Any) -> Member:
    """As the other one has it."""
    given = {"method": DEFLATED, "data": _DEFLATED[content], "date": 0, "system": 0, "attributes": 0}
    return member(name, content, **given | more)


_DEFLATED = {b"hello": bytes.fromhex("cb48cdc9c90700"), b"BOOM!": bytes.fromhex("73f2f7f7550400")}
"""Not every zlib makes the same of it."""


CRC, COMPRESSED, SIZE = 0x3610A686, 7, 5
"""Of `hello`."""


def _described(crc: int = CRC, compressed: int = COMPRESSED, size: int = SIZE, **shape: bool) -> bytes:
    """Its numbers follow the data."""
    not_yet: dict[str, Any] = {"flags": DESCRIPTOR, "crc": 0, "compressed": 0, "size": 0}
    if shape.get("wide"):
        not_yet["extra"] = field(1, b"")
    return zip_of(_hello(local=not_yet, after=zips.descriptor(crc, compressed, size, **shape)))


def _renamed(*fields: bytes) -> bytes:
    return zip_of(_letters("original", b"anything\n", extra=b"".join(fields)))


def _in_zip64(*numbers: int, **sizes: int) -> bytes:
    return zip_of(_hello(extra=zip64_field(*numbers), **sizes))


SMUGGLED = b"# benign\nprint('malicious')\n# 12323013111123311000\n"
"""Its first nine bytes have the checksum of the whole."""

SMUGGLED_DEFLATED = bytes.fromhex(
    "5356484acdcb4ccfe32a28cacc2bd150cf4dccc94ccecc2f2d56d7e452563034323632363034360402236320656060c00500"
)


def _short_size(**more: Any) -> Member:
    return _letters("file", SMUGGLED, crc=0xD60C088C, size=9, **more)


def _confused() -> bytes:
    """By its own records one zip; by those in its comment, whose offsets count from elsewhere, another."""
    inner = zip_of(_hello("secon", b"BOOM!"), zip64=True)
    filling = b"X" * 24_485
    length = 24_720
    return zip_of(_hello(), zip64=True, length=length, comment=filling + inner)


def _listed_twice() -> bytes:
    data, directory = zips.body([_hello()])
    return data + directory * 2 + zips.end_record(2, 2 * len(directory), len(data))


def _ended_twice() -> bytes:
    data, directory = zips.body([_hello(central={"version": 0})])
    first = zips.end_record(1, len(directory), len(data))
    return data + directory + first + zips.end_record(1, len(directory + first), len(data))


def _extra_field_past_its_end() -> bytes:
    extra = unicode_field(b"fixme", "étc", length=9)
    data, directory = zips.body([_hello(central={"extra": extra[:-1]})])
    directory += extra[-1:]
    return data + directory + zips.end_record(1, len(directory), len(data))


def _checksum_of_zero() -> bytes:
    not_yet = {"flags": DESCRIPTOR, "crc": 0, "compressed": 0, "size": 0}
    data = bytes.fromhex("4b4a4c0100")
    after = bytes(4) + zips.descriptor(0, len(data), SIZE, signed=False)
    return zip_of(_hello(data=data, crc=0, local=not_yet, after=after))


MALO = {
    "accept/comment": zip_of(_letters(), comment=b"hello"),
    "accept/data_descriptor": _described(),
    "accept/data_descriptor_zip64": _described(wide=True),
    "accept/deflate": zip_of(_letters(method=DEFLATED, data=bytes.fromhex("4b4c4a4e494d4bcf0000"))),
    "accept/normal_deflate": zip_of(_hello()),
    "accept/normal_deflate_zip64_extra": _in_zip64(COMPRESSED, compressed=IN_ZIP64),
    "accept/store": zip_of(_letters()),
    "accept/subdir": zip_of(_letters("foo/", b"", attributes=0o40777 << 16 | 0x10), _letters("foo/bar")),
    "accept/zip64_eocd": zip_of(_hello(), zip64=True, counted=1),
    "iffy/8bitcomment": zip_of(_letters(), comment=b"PK\5\6" + bytes(3) + b"\xff\xff" + bytes(100)),
    "iffy/extra3byte": zip_of(_letters(extra=b"   ")),
    "iffy/non_ascii_original_name": zip_of(_hello(b"\x82", central={"extra": unicode_field(b"\x82", "é")})),
    "iffy/nosubdir": zip_of(_letters("foo/bar")),
    "iffy/prefix": zip_of(_hello(), prefix=b"XXXX"),
    "iffy/suffix_not_comment": zip_of(_letters(), suffix=b"    "),
    "iffy/zip64_eocd_extensible_data": zip_of(_hello(), zip64=True, more=struct.pack("<HH", 0, 16) + b"z" * 16),
    "iffy/zip64_extra_too_long": _in_zip64(SIZE, 0, size=IN_ZIP64),
    "iffy/zip64_extra_too_short": _in_zip64(SIZE, compressed=IN_ZIP64, size=IN_ZIP64),
    "malicious/second_unicode_extra": _renamed(
        unicode_field(b"original", "first-unicode-extra"), unicode_field(b"original", "second-unicode-extra")
    ),
    "malicious/short_usize": zip_of(_short_size(method=DEFLATED, data=SMUGGLED_DEFLATED)),
    "malicious/short_usize_zip64": zip_of(_short_size(version=45, extra=zip64_field(len(SMUGGLED), len(SMUGGLED)))),
    "malicious/unicode_extra_chain": _renamed(
        unicode_field(b"original", "first-unicode-extra"),
        field(0x7075, struct.pack("<BI", 1, 4) + b"ignoreme"),
        unicode_field(b"original", "reset-unicode-extra"),
    ),
    "malicious/zip64_eocd_confusion": _confused(),
    "malicious/zipinzip": zip_of(_letters("fileb", b"B"), comment=zip_of(_letters("filea", b"A"))),
    "reject/cd_extra_entry": _listed_twice(),
    "reject/cd_missing_entry": zip_of(_hello(), _hello("two", listed=False)),
    "reject/data_descriptor_bad_crc": _described(crc=1),
    "reject/data_descriptor_bad_crc_0": _checksum_of_zero(),
    "reject/data_descriptor_bad_csize": _described(compressed=8),
    "reject/data_descriptor_bad_usize": _described(size=6),
    "reject/data_descriptor_bad_usize_no_sig": _described(size=6, signed=False),
    "reject/data_descriptor_zip64_csize": _described(compressed=8, wide=True),
    "reject/data_descriptor_zip64_usize": _described(size=6, wide=True),
    "reject/dupe_eocd": _ended_twice(),
    "reject/shortextra": _extra_field_past_its_end(),
    "reject/zip64_extra_csize": _in_zip64(8, compressed=IN_ZIP64),
    "reject/zip64_extra_usize": _in_zip64(6, size=IN_ZIP64),
}

DIGESTS = {
    "accept/comment": "0a6e281dd84aa267",
    "accept/data_descriptor": "1cacf5c7b49dff7a",
    "accept/data_descriptor_zip64": "326647f0e696b9ab",
    "accept/deflate": "c26690559a6fd64c",
    "accept/normal_deflate": "5bbe39f4c4a87aaf",
    "accept/normal_deflate_zip64_extra": "ebf21d6d7d1e11d2",
    "accept/store": "e0b5f3cf14b25ab5",
    "accept/subdir": "d6c1611b9c10fdaa",
    "accept/zip64_eocd": "1e137e5f6c5bedf3",
    "iffy/8bitcomment": "fd7258ff9f21cbe8",
    "iffy/extra3byte": "24bbb87d6ac34ed7",
    "iffy/non_ascii_original_name": "2b4c78a65b2a23f3",
    "iffy/nosubdir": "391cb83659cd74c1",
    "iffy/prefix": "98891d1c24e7bbf3",
    "iffy/suffix_not_comment": "4c45ba0db5c7d7bb",
    "iffy/zip64_eocd_extensible_data": "ab60184707360489",
    "iffy/zip64_extra_too_long": "3d8688e55b57314e",
    "iffy/zip64_extra_too_short": "db04bbd613eccca4",
    "malicious/second_unicode_extra": "21c90d0c5735f503",
    "malicious/short_usize": "c00ae65159c21ea2",
    "malicious/short_usize_zip64": "f978c9324e63feb8",
    "malicious/unicode_extra_chain": "587d403ffa79d2c4",
    "malicious/zip64_eocd_confusion": "91d1d64d64fbef93",
    "malicious/zipinzip": "24f48764ec948c39",
    "reject/cd_extra_entry": "5319e1274cbe2452",
    "reject/cd_missing_entry": "6a4ab314c0023f44",
    "reject/data_descriptor_bad_crc": "eb2cf5151b8aada8",
    "reject/data_descriptor_bad_crc_0": "e7ff2bc65fe17d2e",
    "reject/data_descriptor_bad_csize": "abe378124f8248a3",
    "reject/data_descriptor_bad_usize": "e11c2cc4bd262198",
    "reject/data_descriptor_bad_usize_no_sig": "9c874501e24d3ab4",
    "reject/data_descriptor_zip64_csize": "6a98e02c3d76c2cc",
    "reject/data_descriptor_zip64_usize": "0126aaa491c88e95",
    "reject/dupe_eocd": "cd86ec5aa44a8d10",
    "reject/shortextra": "97fa514c6afc4397",
    "reject/zip64_extra_csize": "4942a12ceb63c23c",
    "reject/zip64_extra_usize": "09ede4953f6eb8db",
}
"""How the SHA-256 of each published one begins."""

ADDRESS = "https://pub-c6f28d316acd406eae43501e51ad30fa.r2.dev/0723f54ceb33a4fdc7f2eddc19635cd704d61c84"
"""Where the tests of uv have them from."""
