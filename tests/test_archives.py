"""Zips from strangers: what is taken, what is refused and with which words, and which photos are left out.

One process prepares a dataset from each of the zips, over an old one that must stay where the zip is refused.
"""

import hashlib
import json
import os
import random
import subprocess
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from harness import zips
from harness.library import OURS, Library, Workspace
from harness.malo import ADDRESS, DIGESTS, MALO
from harness.photos import HEIC, HTML, jpeg, png, webp
from harness.scenario import Work
from harness.server import serving
from harness.zips import (
    AES,
    BZIP2,
    DEFLATE64,
    DEFLATED,
    DESCRIPTOR,
    DOS,
    ENCRYPTED,
    FIFO,
    FOLDER,
    IN_ZIP64,
    LINK,
    LZMA,
    PPMD,
    UTF8,
    Member,
    member,
    unicode_field,
    zip64_field,
    zip_of,
)

REPOSITORY = Path(__file__).resolve().parent.parent


def photo(name: str | bytes = "a.jpg", **more: Any) -> Member:
    comment = name if isinstance(name, str) else name.hex()
    return member(name, jpeg(comment=comment), **{"method": DEFLATED} | more)


@dataclass(frozen=True)
class Kept:
    """The photos that are there in the end, and what the log says."""

    name: str
    data: bytes
    images: tuple[str, ...]
    says: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refused:
    name: str
    data: bytes
    says: tuple[str, ...]
    kind: str = "BadZipFile"


def kept(name: str, data: bytes, *images: str, says: tuple[str, ...] = ()) -> Kept:
    return Kept(name, data, images or ("a.jpg", "b.jpg"), says)


def refused(name: str, data: bytes, *says: str, kind: str = "BadZipFile") -> Refused:
    return Refused(name, data, says, kind)


TWO = (photo("a.jpg"), photo("b.jpg"))
SIZES = {name: getattr(TWO[0].header, name) for name in ("crc", "compressed", "size")}
NOT_YET: dict[str, Any] = {"flags": DESCRIPTOR, "crc": 0, "compressed": 0, "size": 0}


def described(signed: bool = True, wide: bool = False, gap: bytes = b"", **lie: int) -> bytes:
    """Its numbers follow its data."""
    after = zips.descriptor(**SIZES | lie, signed=signed, wide=wide) + gap
    return zip_of(photo(flags=DESCRIPTOR, local=NOT_YET, after=after), photo("b.jpg"))


def doubled_directory() -> bytes:
    data, directory = zips.body(TWO)
    _, other = zips.body([photo("c.jpg")])
    return data + other + directory + zips.end_record(2, len(directory), len(data + other))


def without_directory() -> bytes:
    data, directory = zips.body(TWO)
    return data + zips.end_record(2, len(directory), len(data))


def two_entries_at_one_place() -> bytes:
    data, directory = zips.body([photo()])
    twice = directory + zips.body([photo()])[1].replace(b"a.jpg", b"a.jpg")
    return data + twice + zips.end_record(2, len(twice), len(data))


def quoting(files: int = 3) -> bytes:
    """A kilobyte that is many files: the data of each begins with a stored block that quotes the header of the next."""
    kernel = zips.deflated(jpeg() + bytes(5000))
    members: list[tuple[bytes, int]] = []
    data, content = kernel, jpeg() + bytes(5000)
    for number in reversed(range(files)):
        one = member(f"{number}.jpg", content, method=DEFLATED, data=data)
        local = one.header.local()
        members.insert(0, (one.header.central(), len(local + data)))
        quote = b"\0" + len(local).to_bytes(2, "little") + (0xFFFF - len(local)).to_bytes(2, "little")
        data, content = quote + local + data, local + content
    whole = data[5:]
    directory = b""
    for header, length in members:
        directory += header[:42] + (len(whole) - length).to_bytes(4, "little") + header[46:]
    return whole + directory + zips.end_record(files, len(directory), len(whole))


def appended_to_by_python() -> bytes:
    import io

    buffer = io.BytesIO(zip_of(TWO[0]))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("b.jpg", jpeg(comment="b"))
    return buffer.getvalue()


def streamed_by_python() -> bytes:
    """To a pipe: descriptors, as `zip -` writes them too."""
    read, write = os.pipe()
    with os.fdopen(write, "wb") as pipe, zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", jpeg(comment="a"))
        with archive.open("b.jpg", "w", force_zip64=True) as file:
            file.write(jpeg(comment="b"))
    with os.fdopen(read, "rb") as pipe:
        return pipe.read()


def in_method(method: int) -> bytes:
    import io

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("a.jpg", jpeg(comment="a"))
        archive.writestr("b.jpg", jpeg(comment="b"))
    return buffer.getvalue()


def two_ends_of_zip64() -> bytes:
    """The one that old readers go by says another size of the directory."""
    return zip_of(photo(), zip64=True)[: -len(zips.end_record(0, 0, 0))] + zips.end_record(1, 7, IN_ZIP64)


LONG = "l" * 300
BIDI = "photo\u202egpj.exe.jpg"
IN_FIELD = zip64_field(SIZES["size"], SIZES["compressed"])
ALL_IN_ZIP64: dict[str, Any] = {"extra": IN_FIELD, "size": IN_ZIP64, "compressed": IN_ZIP64}
A_LINK: dict[str, Any] = {"content": b"/etc/passwd", "attributes": LINK}
EMPTY = [member(f"{method}.txt", method=method, data=b"") for method in (DEFLATED, DEFLATE64, BZIP2, LZMA)]
AROUND = photo("c.jpg", compressed=300, size=300).header.local()
CAFE = unicode_field(b"caf_.jpg", "café.jpg")

NAMES = [
    kept("absolute paths", zip_of(photo("/a.jpg"), photo("//etc/b.jpg"))),
    kept("parent paths", zip_of(photo("../../a.jpg"), photo("in/../../b.jpg"))),
    kept("drive letters", zip_of(photo("C:\\in\\a.jpg"), photo("c:b.jpg"))),
    kept("UNC names", zip_of(photo("\\\\host\\share\\a.jpg"), photo("//?/C:/b.jpg"))),
    kept("backslashes", zip_of(photo("..\\..\\a.jpg"), photo("in\\b.jpg", system=DOS))),
    kept("device names", zip_of(photo("CON.jpg"), photo("aux.JPG"), photo("NUL")), "CON.jpg", "aux.JPG"),
    kept("NUL", zip_of(photo(b"a.jpg\0.exe"), photo(b"b.jpg\0"))),
    kept(
        "300 characters",
        zip_of(photo(f"{LONG}1.jpg"), photo(f"{LONG}2.jpg")),
        f"{LONG[:228]}.jpg",
        f"{LONG[:226]}_2.jpg",
    ),
    kept("bidirectional", zip_of(photo(BIDI)), "photo_gpj.exe.jpg", says=("renamed photo\ufffdgpj.exe.jpg",)),
    kept("control characters", zip_of(photo("a\n[x] b\x1b[2J.jpg")), "a_[x] b_[2J.jpg"),
    kept(
        "not UTF-8", zip_of(photo(b"caf\x82.jpg"), photo(b"\xff\xfe.jpg", flags=UTF8)), "café.jpg", "\ufffd\ufffd.jpg"
    ),
    kept("a Unicode name beside it", zip_of(photo(b"caf_.jpg", extra=CAFE)), "café.jpg"),
    kept("any depth", zip_of(photo("a.jpg"), photo("1/2/3/4/5/b.jpg"))),
    kept("hidden", zip_of(photo(), photo(".b.jpg")), "a.jpg", says=("left out .b.jpg: its name begins with a dot",)),
    kept("without regard to case", zip_of(photo(), photo("A.JPG"), photo("in/a.jpeg")), "A.JPG", "a_2.jpg", "a_3.jpeg"),
    kept("in two forms", zip_of(photo("\u00e9.jpg"), photo("e\u0301.jpg")), "e\u0301.jpg", "\u00e9_2.jpg"),
    kept("one name twice", zip_of(photo(), photo("b.jpg"), photo())),
]

KINDS = [
    kept(
        "a link",
        zip_of(photo(), member("b.jpg", **A_LINK)),
        "a.jpg",
        says=("b.jpg: it is a symbolic",),
    ),
    kept("a link, and a file through it", zip_of(member("in", b"..", attributes=LINK), photo("in/a.jpg")), "a.jpg"),
    kept("a link, and a file in its place", zip_of(member("a.jpg", **A_LINK), photo()), "a.jpg"),
    kept("what came through a pipe", zip_of(photo(), photo("b.jpg", attributes=FIFO))),
    kept(
        "a pipe", zip_of(photo(), member("b.jpg", attributes=FIFO)), "a.jpg", says=("b.jpg: it is not a regular file",)
    ),
    kept("a folder named like a photo", zip_of(member("x.jpg/", attributes=FOLDER), photo("x.jpg/a.jpg")), "a.jpg"),
    kept(
        "a zip in the zip",
        zip_of(photo(), member("more.zip", zip_of(photo("b.jpg")))),
        "a.jpg",
        says=("did not look into more.zip",),
    ),
    kept(
        "files of all sorts",
        zip_of(photo(), member("readme.txt", b"hello"), member("in/"), photo("b.png")),
        "a.jpg",
        says=("left out b.png",),
    ),
]

WRITERS = [
    kept("a program before it", zip_of(*TWO, prefix=b"#!/bin/sh\nexec unzip $0\n")),
    kept("a program before it, counted in", zip_of(*TWO, prefix=b"MZ" + bytes(5000), shifted=True)),
    kept("bytes behind it", zip_of(*TWO, suffix=b"\r\n" + bytes(1000))),
    kept("a comment", zip_of(*TWO, comment=b"made by hand")),
    kept("an end in the comment that is none", zip_of(*TWO, comment=b"PK\5\6 is how an end begins, is it not?")),
    kept(
        "gaps",
        zip_of(photo(after=bytes(64)), photo("b.jpg", before=b"junk"), gap=b"PK\3\4 is how a file begins" + bytes(40)),
    ),
    kept("the beginning of a header", zip_of(*TWO, prefix=AROUND[:32])),
    kept("the wrong count", zip_of(*TWO, count=1)),
    kept("a descriptor", described()),
    kept("a descriptor without signature", described(signed=False)),
    kept("a descriptor of zip64", described(wide=True)),
    kept("a descriptor of zip64 without signature", described(signed=False, wide=True)),
    kept("a descriptor and a gap", described(gap=bytes(9))),
    kept("a descriptor that is announced, and none", zip_of(photo(flags=DESCRIPTOR), photo("b.jpg"))),
    kept("a descriptor that only one header announces", zip_of(photo(central={"flags": DESCRIPTOR}), photo("b.jpg"))),
    kept("a pipe's", streamed_by_python()),
    kept("appended to", appended_to_by_python()),
    kept("an extra field of three bytes", zip_of(photo(extra=b"abc"), photo("b.jpg"))),
    kept(
        "other extra fields here and there",
        zip_of(photo(local={"extra": zips.field(0x5855, bytes(12))}), photo("b.jpg")),
    ),
    kept("zip64 at the end", zip_of(*TWO, zip64=True)),
    kept("zip64 at the end, behind a program", zip_of(*TWO, zip64=True, prefix=b"MZ" + bytes(99))),
    kept("zip64 at the end, with more data in it", zip_of(*TWO, zip64=True, more=b"more data")),
    kept("zip64 everywhere", zip_of(photo(**ALL_IN_ZIP64), photo("b.jpg"), zip64=True)),
    kept("zip64 where it is not needed", zip_of(photo(extra=IN_FIELD), photo("b.jpg"))),
    kept("an empty file by every method", zip_of(*TWO, *EMPTY)),
    kept("stored", in_method(zipfile.ZIP_STORED)),
    kept("bzip2", in_method(zipfile.ZIP_BZIP2)),
    kept("LZMA", in_method(zipfile.ZIP_LZMA)),
    kept("Deflate64", zip_of(photo(method=DEFLATE64, data=zips.deflated(jpeg(comment="a.jpg"))), photo("b.jpg"))),
]

ZEROS = 3 << 20

LIES = [
    refused("files that quote each other", quoting(), "0.jpg", "overlaps 1.jpg"),
    refused("two entries at one place", two_entries_at_one_place(), "overlaps a.jpg, which begins at byte 0"),
    refused(
        "inflates past its size",
        zip_of(photo(size=9)),
        "a.jpg",
        "larger than its declared uncompressed size (it declares 9 bytes",
    ),
    refused("stored past its size", zip_of(photo(method=0, size=9)), "(it declares 9 bytes"),
    refused("less than its size", zip_of(photo(size=9999)), f"{len(jpeg(comment='a.jpg'))} of 9999 bytes are there"),
    refused(
        "a bomb", zip_of(member("a.jpg", bytes(ZEROS), method=DEFLATED)), f"to {ZEROS} bytes, 100 times is allowed"
    ),
    refused("a bomb that is no photo", zip_of(photo(), member("0.bin", bytes(ZEROS), method=DEFLATED)), "0.bin", "100"),
    refused(
        "more than a dataset may be",
        zip_of(photo(extra=zip64_field(65 << 30), size=IN_ZIP64, data=b"", compressed=1 << 30)),
        f"take {65 << 30} bytes, {64 << 30} are allowed",
        "DatasetLimits(extracted_bytes=...)",
    ),
    refused("a wrong checksum", zip_of(photo(crc=0xDEADBEEF)), "a.jpg", "deadbeef is declared"),
    refused(
        "a wrong checksum of a text", zip_of(photo(), member("b.txt", b"x", crc=1)), "b.txt", "00000001 is declared"
    ),
    refused("data cut off", zip_of(photo(data=photo().data[:20])), "a.jpg", "is damaged"),
    refused("data that do not inflate", zip_of(photo(data=b"\xff" * 60)), "a.jpg", "is damaged"),
    refused("data with a tail", zip_of(photo(data=photo().data + b"tail")), "something follows its compressed data"),
    refused("cut off in the directory", zip_of(*TWO)[:-30], "cut short", "no record of its directory ends it"),
    refused("cut off in a photo", zip_of(*TWO)[:90], "cut short", "90 bytes: no record of its directory ends it"),
    refused("no directory", without_directory(), "and none does"),
    refused("a second directory", doubled_directory(), "another directory, with c.jpg"),
    refused("a file that is not listed", zip_of(photo(), photo("b.jpg", listed=False)), "the file b.jpg at byte"),
    refused("a first file that is not listed", zip_of(photo(listed=False), photo("b.jpg")), "the file a.jpg at byte 0"),
    refused("an unlisted file around the others", zip_of(*TWO, prefix=AROUND), "the file c.jpg at byte 0"),
    refused("two zips in a row", zip_of(photo()) + zip_of(photo("b.jpg")), "the file a.jpg at byte 0"),
    refused("an end twice", zip_of(photo()) + zip_of()[-22:], "the file a.jpg"),
    refused("ends without end", zip_of(*TWO, comment=(b"PK\5\6" + b"\xff" * 18) * 65), "it ends more than 64 times"),
    refused("a zip in the comment", zip_of(photo(), comment=zip_of(photo("b.jpg"))), "it ends twice"),
    refused("another name before the data", zip_of(photo(local={"name": b"b.jpg"})), "calls it b.jpg"),
    refused("another size before the data", zip_of(photo(local={"size": 77})), "says size 77, the directory"),
    refused("another checksum before the data", zip_of(photo(local={"crc": 5})), "says checksum 5, the directory"),
    refused("no size before the data", zip_of(photo(local={"compressed": 0, "size": 0})), "says compressed size 0"),
    refused("another method before the data", zip_of(photo(local={"method": 0})), "method 0, the directory 8"),
    refused("encrypted before the data alone", zip_of(photo(local={"flags": ENCRYPTED})), "says that it is encrypted"),
    refused("a descriptor's checksum", described(crc=7), "descriptor behind its data says checksum 7"),
    refused("a descriptor's size", described(size=7), "and size 7"),
    refused("a descriptor's size, unsigned", described(signed=False, size=7), "and size 7"),
    refused("a descriptor's size, in zip64", described(wide=True, compressed=7), "compressed size 7"),
    refused("an offset past the directory", zip_of(photo(central={"offset": 1 << 20})), "at byte 1048576"),
    refused("an offset into the data", zip_of(photo(central={"offset": 4})), "where no header of a file begins"),
    refused("a zip64 field that lacks a number", zip_of(photo(extra=zip64_field(), size=IN_ZIP64)), "zip64 field"),
    refused("two ends of zip64 that differ", two_ends_of_zip64(), "directory's size is 7"),
    refused("two Unicode names", MALO["malicious/second_unicode_extra"], "two other names"),
    refused("encrypted", zip_of(photo(flags=ENCRYPTED)), "a.jpg in the zip is encrypted", kind="RuntimeError"),
    refused("encrypted by AES", zip_of(photo(flags=ENCRYPTED, method=AES)), "is encrypted", kind="RuntimeError"),
    refused(
        "an encrypted text",
        zip_of(photo(), member("b.txt", flags=1)),
        "b.txt in the zip is encrypted",
        kind="RuntimeError",
    ),
    refused("PPMd", zip_of(photo(method=PPMD)), "a.jpg", "PPMd", kind="RuntimeError"),
    refused("Zstandard", zip_of(photo(method=93)), "Zstandard", kind="RuntimeError"),
    refused("a method without a name", zip_of(photo(method=77)), "number 77", kind="RuntimeError"),
    refused("a text in PPMd", zip_of(photo(), member("b.txt", method=PPMD)), "b.txt", "PPMd", kind="RuntimeError"),
    refused("the last of several parts", zip_of(photo(), disk=1, size=0, offset=0), "in several parts"),
]


def large(name: str, method: int = 0, **more: Any) -> Member:
    """More than is kept of a zip to look for its end."""
    return member(name, jpeg(comment=name) + random.Random(name).randbytes(200_000), **{"method": method} | more)


def hiding_another() -> bytes:
    """The stream has two photos; the directory has one more, in the data of the first."""
    hidden = large("c.jpg")
    inside = hidden.header.local() + hidden.data
    data, directory = zips.body([member("a.jpg", jpeg() + inside), large("b.jpg")])
    at = data.index(inside)
    directory += replace(hidden.header, offset=at).central()
    return data + directory + zips.end_record(3, len(directory), len(data))


def seems_fine(name: str, method: int) -> list[Refused]:
    """What the stream does not show and the directory, behind it, does."""
    a, b = large("a.jpg", method), large("b.jpg", method)
    named = f"{name}, behind a fine stream: "
    return [
        refused(
            named + "another name", zip_of(a, large("b.jpg", method, central={"name": b"c.jpg"})), "calls it b.jpg"
        ),
        refused(named + "another size", zip_of(a, large("b.jpg", method, central={"size": 77})), "says size 200"),
        refused(named + "another checksum", zip_of(large("a.jpg", method, central={"crc": 5}), b), "the directory 5"),
        refused(
            named + "another method", zip_of(a, large("b.jpg", method, central={"method": 12})), "the directory 12"
        ),
        refused(named + "another length", zip_of(large("a.jpg", method, central={"compressed": 9}), b), "directory 9"),
        refused(named + "one too long", zip_of(large("a.jpg", method, central={"compressed": 300_000}), b), "overlaps"),
        refused(named + "one unlisted", zip_of(large("a.jpg", method, listed=False), b), "the file a.jpg at byte 0"),
        refused(named + "the last unlisted", zip_of(a, large("b.jpg", method, listed=False)), "the file b.jpg at byte"),
        refused(named + "a wrong checksum", zip_of(large("a.jpg", method, crc=5), b), "00000005 is declared"),
        refused(named + "one place twice", one_place_twice(a, b), "overlaps"),
    ]


def one_place_twice(*members: Member) -> bytes:
    data, directory = zips.body(members)
    directory += members[0].header.central().replace(b"a.jpg", b"c.jpg")
    return data + directory + zips.end_record(3, len(directory), len(data))


STREAMED = [
    *seems_fine("stored", 0),
    *seems_fine("deflated", DEFLATED),
    refused("stored, behind a fine stream: another in the data", hiding_another(), "overlaps c.jpg"),
    kept("a large photo twice", zip_of(large("a.jpg"), large("b.jpg"), large("a.jpg")), "a.jpg", "b.jpg"),
    kept("large photos, stored and deflated", zip_of(large("a.jpg"), large("b.jpg", DEFLATED))),
]

CUT = jpeg(640, 480)[:-300]

PHOTOS = [
    kept("a PNG and a WebP named .jpg", zip_of(member("a.jpg", png(64, 48)), member("b.jpg", webp(64, 48)))),
    *(
        kept(
            f"beside a photo: {name}",
            zip_of(photo(), member("b.jpg", data)),
            "a.jpg",
            says=(f"left out b.jpg: {reason}",),
        )
        for name, data, reason in [
            ("empty", b"", "it is empty"),
            ("text", b"hello", "it is no picture (5 bytes of text)"),
            ("a web page", HTML, f"it is no picture ({len(HTML)} bytes of HTML or XML)"),
            ("cut", CUT, f"it is a JPEG that is cut short at {len(CUT)} bytes"),
            ("a cut PNG", png(64, 48)[:50], "it is a PNG that is cut short at 50 bytes"),
            ("a cut WebP", webp(64, 48)[:-4], "it is a WebP that is cut short"),
            ("HEIC", HEIC, "it is a HEIC picture, which Musubi Tuner does not open"),
        ]
    ),
    kept(
        "none opens",
        zip_of(member("a.jpg", b"fake"), member("b.jpg", CUT)),
        says=("none of the 2 photos looks like one that opens",),
    ),
    kept("one photo twice", zip_of(member("a.jpg", jpeg()), member("in/b.jpg", jpeg())), says=("a.jpg = in/b.jpg",)),
    refused(
        "nothing left",
        zip_of(member("a.jpg", b"b", attributes=LINK), photo(".b.jpg"), photo("c.png")),
        "Dataset is empty after extraction/filtering. images_dir=",
        "a.jpg (it is a symbolic link)",
        ".b.jpg (its name begins",
        "c.png",
        kind="ValueError",
    ),
    refused("nothing in it", zip_of(), "Dataset is empty", "The zip holds no files", kind="ValueError"),
    refused("no zip", HTML, f"the server sent a web page, {len(HTML)} bytes: "),
]

MALO_REFUSED = {
    "iffy/8bitcomment": "it ends twice, by a record at byte 90 and by one at byte 112",
    "iffy/zip64_extra_too_short": "its compressed size is said to be in its zip64 field, whose 8 bytes do not hold it",
    "malicious/second_unicode_extra": "two other names, in two extra fields 7075",
    "malicious/short_usize": "larger than its declared uncompressed size (it declares 9 bytes",
    "malicious/short_usize_zip64": "larger than its declared uncompressed size (it declares 9 bytes",
    "malicious/unicode_extra_chain": "two other names, in two extra fields 7075",
    "malicious/zip64_eocd_confusion": "two zip64 records, at byte 93 and at byte 24769",
    "malicious/zipinzip": "it ends twice, by a record at byte 87 and by one at byte 196",
    "reject/cd_extra_entry": "it ends at byte 42 and overlaps fixme, which begins at byte 0",
    "reject/cd_missing_entry": "the zip holds the file two at byte 42, which its directory does not account for",
    "reject/data_descriptor_bad_crc": "says checksum 1, compressed size 7 and size 5, the directory 907060870, 7 and 5",
    "reject/data_descriptor_bad_crc_0": "says checksum 0, compressed size 0 and size 5, the directory 0, 5 and 5",
    "reject/data_descriptor_bad_csize": "compressed size 8 and size 5, the directory 907060870, 7 and 5",
    "reject/data_descriptor_bad_usize": "compressed size 7 and size 6, the directory 907060870, 7 and 5",
    "reject/data_descriptor_bad_usize_no_sig": "compressed size 7 and size 6, the directory 907060870, 7 and 5",
    "reject/data_descriptor_zip64_csize": "compressed size 8 and size 5, the directory 907060870, 7 and 5",
    "reject/data_descriptor_zip64_usize": "compressed size 7 and size 6, the directory 907060870, 7 and 5",
    "reject/dupe_eocd": "it ends twice, by a record at byte 93 and by one at byte 115",
    "reject/shortextra": "a directory of 64 bytes ends at byte 106, and none does",
    "reject/zip64_extra_csize": "it ends at byte 55 and overlaps the central directory, which begins at byte 54",
    "reject/zip64_extra_usize": "5 of 6 bytes are there",
}
"""The others are read; there is no photo in them."""

MALO_CASES = [
    refused(f"malo/{name}", data, MALO_REFUSED[name])
    if name in MALO_REFUSED
    else refused(f"malo/{name}", data, "Dataset is empty", "Other files: ", kind="ValueError")
    for name, data in MALO.items()
]

CASES: list[Kept | Refused] = [*NAMES, *KINDS, *WRITERS, *LIES, *STREAMED, *PHOTOS, *MALO_CASES]


def prepare_all(work: Work):
    import functools
    import logging
    import os

    class Lines(logging.Handler):
        def emit(self, record):
            lines.append([record.levelname, record.getMessage()])

    logging.getLogger("musubitraining").addHandler(Lines())
    outcomes = {}
    for name, url in work.extra["urls"].items():
        lines: list = []
        root = work.path("cases", str(len(outcomes)))
        training = os.path.join(root, "in", "training")
        for folder, file in (("images", "old.jpg"), ("cache", "old_zi.safetensors")):
            os.makedirs(os.path.join(training, folder))
            with open(os.path.join(training, folder, file), "w") as old:
                old.write("old")
        trainer = work.trainer(absolute_path_training_folder=training)
        toml = work.toml.replace(work.path("training"), training)
        prepare = functools.partial(trainer._prepare_dataset, toml, url, "word")
        error = work.attempt(prepare).get("error")
        files = {}
        for folder, folders, names in os.walk(root):
            for path in (os.path.join(folder, name) for name in names + folders):
                inside = os.path.relpath(path, root)
                if os.path.islink(path):
                    files[inside] = "link"
                elif os.path.isfile(path):
                    with open(path, "rb") as file:
                        files[inside] = file.read().hex()
        outcomes[name] = {"error": error, "files": files, "log": lines}
    return outcomes


def outcomes(library: Library, root: Path, archives: dict[str, bytes]) -> dict[str, Any]:
    with serving() as server:
        workspace = Workspace.make(root / library.name, server)
        workspace.python = library.python
        workspace.extra["urls"] = {
            name: server.on(f"/{number}.zip", data) for number, (name, data) in enumerate(archives.items())
        }
        result: dict[str, Any] = workspace.run(library, prepare_all).ok().result
    return result


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    archives = {case.name: case.data for case in CASES}
    assert len(archives) == len(CASES)
    return outcomes(OURS, tmp_path_factory.mktemp("archives"), archives)


OLD = {f"in/training/{name}": b"old".hex() for name in ("images/old.jpg", "cache/old_zi.safetensors")}


def holds(case: Kept | Refused, outcome: dict[str, Any]) -> None:
    files, error = outcome["files"], outcome["error"]
    if isinstance(case, Refused):
        assert error is not None, f"not refused: {sorted(files)}"
        assert error["type"] == case.kind, error
        for words in case.says:
            assert words in error["message"]
        assert files == OLD
        return
    assert error is None, error["traceback"]
    stems = {os.path.splitext(name)[0]: name for name in case.images}
    inside = {name for name in files if name.startswith("in/training/images/")}
    assert {name.rpartition("/")[2] for name in inside} == {*stems.values(), *(stem + ".txt" for stem in stems)}
    assert set(files) == inside | {"in/training/dataset.toml", "in/training/photos.json"}
    assert "link" not in files.values()
    said = [line for _, line in outcome["log"]]
    for words in case.says:
        assert any(words in line for line in said), said


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_archive(ours: dict[str, Any], case: Kept | Refused) -> None:
    holds(case, ours[case.name])


def test_what_is_left_out_is_a_warning(ours: dict[str, Any]) -> None:
    warned = {name: [line for level, line in one["log"] if level == "WARNING"] for name, one in ours.items()}
    for case in CASES:
        for words in case.says if isinstance(case, Kept) else ():
            if words.startswith("left out"):
                assert any(words in line for line in warned[case.name]), case.name
    assert len(warned["none opens"]) == 1


# ---- the public collections -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MALO)
def test_the_malo_set_is_the_published_one(name: str) -> None:
    assert hashlib.sha256(MALO[name]).hexdigest().startswith(DIGESTS[name])


@pytest.fixture(scope="module")
def is_online() -> None:
    try:
        urllib.request.urlopen(f"{ADDRESS}/accept/store.zip", timeout=5).close()
    except (urllib.error.URLError, OSError) as error:
        pytest.skip(f"the published archives are not to be had here ({error}); their digests are")


@pytest.mark.usefixtures("is_online")
@pytest.mark.parametrize("name", MALO)
def test_the_malo_set_as_it_is_published_today(name: str) -> None:
    with urllib.request.urlopen(f"{ADDRESS}/{name}.zip", timeout=30) as answer:
        assert answer.read() == MALO[name]


def carried() -> dict[str, bytes]:
    """The zips that two crates carry for their tests: `zip` and uv's `async_zip`."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1"]
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True)
    except FileNotFoundError:
        return {}
    crates = {("zip", "0.6.6"), ("astral_async_zip", "0.0.22")}
    found = {}
    for package in json.loads(done.stdout)["packages"]:
        if (package["name"], package["version"]) in crates:
            folder = Path(package["manifest_path"]).parent
            found |= {
                f"{package['name']}/{file.relative_to(folder)}": file.read_bytes() for file in folder.rglob("*.zip")
            }
    return found


CARRIED = carried()


@pytest.fixture(scope="module")
def of_crates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return outcomes(OURS, tmp_path_factory.mktemp("crates"), CARRIED)


def test_the_zips_of_crates_are_there() -> None:
    if not CARRIED:
        pytest.skip("no cargo to find the crates with the zips")
    assert len(CARRIED) == 39
    malo = {name.partition("malo/")[2].removesuffix(".zip"): data for name, data in CARRIED.items() if "/malo/" in name}
    assert len(malo) == 8
    assert malo == {name: MALO[name] for name in malo}


HIDES_A_FILE = "astral_async_zip/src/tests/read/cd/zero-central-directory-size.zip"


@pytest.mark.parametrize("name", CARRIED)
def test_a_zip_of_a_crate_is_read_whole_or_refused(of_crates: dict[str, Any], name: str, tmp_path: Path) -> None:
    """None has a photo in it: what is read ends as an empty dataset, with the names of what it held."""
    error, files = of_crates[name]["error"], of_crates[name]["files"]
    assert error["type"] in ("BadZipFile", "RuntimeError", "ValueError")
    assert files == OLD
    if name == HIDES_A_FILE or "/malo/" in name:
        return
    path = tmp_path / "a.zip"
    path.write_bytes(CARRIED[name])
    try:
        with zipfile.ZipFile(path) as archive:
            whole = archive.testzip() is None
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, RuntimeError):
        whole, names = False, []
    if whole:
        assert error["type"] == "ValueError"
        assert "Other files" in error["message"] or not names
    elif names:
        assert error["type"] != "ValueError"
