"""Photos put right, held against what Pillow makes of them, which opens them for Musubi Tuner; and what is told."""

import io
import json
import logging
import struct
import zlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import musubitraining
import numpy as np
import pytest
from harness.library import Workspace
from harness.photos import HEIC, Entry, jpeg, make_zip
from musubitraining.main import Models, MusubiTraining
from PIL import Image, ImageCms, ImageFilter, ImageOps

Pixels = Any

SAVED_ANEW = 1.5
"""Of 255, on average, in photos of much texture: Pillow's own JPEG of quality 98 is 1.0 off."""


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "musubitraining")


# ---- photos -----------------------------------------------------------------------------------------------------


def picture(width: int = 120, height: int = 80, seed: int = 0) -> Image.Image:
    """Shapes, gradients and texture, another one for each seed; no two corners are alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    phase, period = rng.uniform(0, 6, 3), rng.uniform(9, 25, 3)
    bands = [128 + 70 * np.sin((x * (n + 1) + y * (3 - n)) / period[n] + phase[n]) for n in range(3)]
    texture = rng.normal(0, 14, (height // 2 + 1, width // 2 + 1, 3)).repeat(2, 0).repeat(2, 1)[:height, :width]
    pixels = np.stack(bands, -1) + texture
    pixels[: height // 4, : width // 3] = [220, 40, 30]
    pixels[-height // 5 :, -width // 6 :] = rng.integers(0, 255, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.copy()
    ramp = np.linspace(0, 255, image.width).astype(np.uint8)
    image.putalpha(Image.fromarray(np.tile(ramp, (image.height, 1))))
    return image


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    lossless = {"JPEG": {"quality": 92}, "PNG": {}, "WEBP": {"lossless": True, "exact": True}}[kind]
    buffer = io.BytesIO()
    image.save(buffer, kind, **{**lossless, **options})
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    data = Image.Exif()
    data[0x010F] = "A maker of phones"
    data[0x0112] = orientation
    return data.tobytes()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of_16_bits(samples: Pixels) -> bytes:
    """Of one (grey), two (with alpha), three or four channels."""
    height, width, channels = samples.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def upright(data: bytes) -> Image.Image:
    return ImageOps.exif_transpose(opened(data))


def on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def differ(one: Image.Image, other: Image.Image) -> tuple[float, int]:
    """On average, and at most."""
    assert one.size == other.size
    distance = np.abs(np.asarray(one.convert("RGB"), int) - np.asarray(other.convert("RGB"), int))
    return float(distance.mean()), int(distance.max())


# ---- runs -------------------------------------------------------------------------------------------------------


def dataset_options(**options: Any) -> Any:
    return getattr(musubitraining, "DatasetOptions", SimpleNamespace)(**options)


def trainer(workspace: Workspace, options: Any = None) -> MusubiTraining:
    folders = (workspace.training, workspace.output, workspace.root / "musubi")
    return MusubiTraining(workspace.models, Models(), *folders, dataset_options=options)


class Prepared:
    """The dataset made from these photos."""

    def __init__(self, workspace: Workspace, *photos: Entry | tuple[str, bytes], options: Any = None) -> None:
        workspace.serve(make_zip(*photos))
        trainer(workspace, options)._prepare_dataset(workspace.toml, workspace.url, "word")
        self.workspace = workspace
        self.names = sorted(path.name for path in workspace.images.iterdir() if path.suffix != ".txt")
        captions = {path.stem for path in workspace.images.iterdir() if path.suffix == ".txt"}
        assert captions == {name.rpartition(".")[0] for name in self.names}
        records = json.loads((workspace.training / "photos.json").read_bytes())["photos"]
        assert sorted(record["file"] for record in records) == self.names
        self.records = {record["file"]: record for record in records}

    def __getitem__(self, name: str) -> bytes:
        return (self.workspace.images / name).read_bytes()

    def done(self, name: str) -> list[str]:
        """What was done, with the size that the record and the photo have held against each other."""
        record = self.records[name]
        assert (record["width"], record["height"]) == opened(self[name]).size
        return record["done"]


def said(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def said_of(caplog: pytest.LogCaptureFixture, name: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if name in record.getMessage()]


# ---- upright ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [False, True], ids=["deflated", "stored"])
def test_photos_are_turned_as_pillow_turns_them(
    workspace: Workspace, caplog: pytest.LogCaptureFixture, stored: bool
) -> None:
    kinds = {"JPEG": "jpg", "PNG": "png", "WEBP": "png"}
    photos = {
        f"{kind}{number}.jpg": encoded(picture(121, 83), kind, exif=exif(number))
        for kind in kinds
        for number in range(9)
    }
    dataset = Prepared(workspace, *(Entry(name, data, stored=stored) for name, data in photos.items()))
    for name, data in photos.items():
        kind, number = name[:-5], int(name[-5])
        if number < 2:
            assert dataset[name] == data
            assert dataset.done(name) == []
            assert said_of(caplog, name) == []
            continue
        now = f"{kind}{number}.{kinds[kind]}"
        assert dataset.done(now) == [f"turned upright (EXIF orientation {number})"]
        assert dataset.records[now]["from"] == name
        line = f"[dataset] turned upright {name} (EXIF orientation {number})"
        assert said_of(caplog, name) == [line if now == name else f"{line}, now {now}"]
        photo = opened(dataset[now])
        assert photo.format == ("JPEG" if kind == "JPEG" else "PNG")
        assert photo.getexif() == {}
        mean, most = differ(photo, upright(data))
        assert (mean, most) == (0, 0) or (kind == "JPEG" and mean < SAVED_ANEW), name


def test_large_photos_that_arrive_in_pieces_are_turned(workspace: Workspace) -> None:
    image = picture(1500, 1000).filter(ImageFilter.GaussianBlur(1))
    thumbnail = b"\xff\xd8" + b"\x55" * 60_000 + b"\xff\xd9"
    maker = b"MM\0*" + struct.pack(">IHHHII", 8, 2, 0x010F, 2, 20_000, 100)
    large = b"Exif\0\0" + maker + struct.pack(">HHIHHI", 0x0112, 3, 1, 8, 0, 0) + thumbnail
    photo = encoded(image, exif=large)
    png = encoded(image, "PNG")
    behind = png[:-12] + chunk(b"eXIf", exif(3).removeprefix(b"Exif\0\0")) + png[-12:]
    dataset = Prepared(workspace, ("a.jpg", photo), Entry("b.jpg", photo, stored=True), ("c.jpg", behind))
    for name, data in (("a.jpg", photo), ("b.jpg", photo), ("c.png", behind)):
        assert dataset.done(name) == [f"turned upright (EXIF orientation {3 if name == 'c.png' else 8})"]
        assert differ(opened(dataset[name]), upright(data))[0] < SAVED_ANEW


def test_a_turned_jpeg_loses_next_to_nothing(workspace: Workspace) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo = encoded(picture(), exif=exif(6), icc_profile=profile, quality=95)
    grey = encoded(picture().convert("L"), exif=exif(6), icc_profile=profile)
    dataset = Prepared(workspace, ("a.jpg", photo), ("grey.jpeg", grey))
    turned = opened(dataset["a.jpg"])
    assert max(max(table) for table in turned.quantization.values()) <= 6, "quality 97 or better"
    assert [layer[1:3] for layer in turned.layer] == [(1, 1)] * 3, "4:4:4"
    assert turned.info["icc_profile"] == profile
    turned = opened(dataset["grey.jpeg"])
    assert turned.mode == "L"
    assert "icc_profile" not in turned.info, "it is not of the photo's colours"
    assert differ(turned, upright(grey))[0] < SAVED_ANEW


def test_photos_stay_as_they_lie_where_that_is_wanted(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    lying = encoded(picture(), exif=exif(6))
    transparent = encoded(with_alpha(picture()), "PNG", exif=exif(6))
    options = dataset_options(upright=False)
    dataset = Prepared(workspace, ("a.jpg", lying), ("b.jpg", transparent), options=options)
    assert dataset["a.jpg"] == lying
    assert dataset.done("b.png") == ["laid on white (transparency)"]
    assert differ(opened(dataset["b.png"]), on_white(opened(transparent))) == (0, 0)
    assert not [line for line in said(caplog) if "upright" in line]


def hostile_exif() -> Iterator[tuple[str, bytes]]:
    def directory(*entries: bytes, at: int = 8, count: int | None = None) -> bytes:
        count = len(entries) if count is None else count
        return b"II*\0" + struct.pack("<IH", at, count) + b"".join(entries)

    def entry(value: int, kind: int = 3) -> bytes:
        return struct.pack("<HHII", 0x0112, kind, 1, value)

    yield "no orientation that there is", directory(entry(9))
    yield "0", directory(entry(0))
    yield "in words", directory(entry(6, kind=2))
    yield "a directory behind the end", directory(entry(6), at=2**32 - 1)
    yield "a directory of itself", directory(entry(6), at=0)
    yield "more entries than there are", directory(struct.pack("<HHII", 1, 3, 1, 0), count=65535)
    yield "half an entry", directory(entry(6)[:7], count=1)
    yield "cut", b"II*\0\x08"
    yield "of no order", b"XX*\0" + directory(entry(6))[4:]
    yield "empty", b""


def test_exif_data_that_lie_turn_nothing(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    plain = encoded(picture())
    photos = {}
    for name, data in hostile_exif():
        segment = b"Exif\0\0" + data
        photos[f"{name}.jpg"] = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + plain[2:]
        png = encoded(picture(), "PNG")
        photos[f"{name} (PNG).jpg"] = png[:33] + chunk(b"eXIf", data) + png[33:]
    dataset = Prepared(workspace, *photos.items())
    assert {name: dataset[name] for name in dataset.names} == photos
    assert said(caplog, logging.WARNING) == []


# ---- opaque, RGB, 8 bits ----------------------------------------------------------------------------------------


def test_transparency_is_laid_on_white(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    image = picture()
    clear = with_alpha(image)
    palette = image.quantize(16)
    photos = {
        "RGBA.jpg": encoded(clear, "PNG"),
        "LA.jpg": encoded(clear.convert("LA"), "PNG"),
        "P.jpg": encoded(palette, "PNG", transparency=palette.getpixel((1, 1))),
        "RGB with one.jpg": encoded(image, "PNG", transparency=(220, 40, 30)),
        "L with one.jpg": encoded(image.convert("L"), "PNG", transparency=image.convert("L").getpixel((1, 1))),
        "WebP.jpg": encoded(clear, "WEBP"),
        "lossy WebP.jpg": encoded(clear, "WEBP", lossless=False, quality=90),
        "RGBA of 16 bits.jpg": png_of_16_bits(np.asarray(clear, int) * 257),
        "LA of 16 bits.jpg": png_of_16_bits(np.asarray(clear.convert("LA"), int) * 257),
        "and lying.jpg": encoded(clear, "PNG", exif=exif(5)),
    }
    dataset = Prepared(workspace, *photos.items())
    for name, data in photos.items():
        now = name.replace(".jpg", ".png")
        photo = opened(dataset[now])
        assert (photo.format, photo.mode) == ("PNG", "RGB")
        assert "laid on white (transparency)" in dataset.done(now)
        assert said_of(caplog, name)[0].endswith(f", now {now}")
        assert differ(photo, on_white(upright(data)))[1] <= 1, name
    assert dataset.done("and lying.png") == ["turned upright (EXIF orientation 5)", "laid on white (transparency)"]
    line = (
        "[dataset] turned upright and laid on white and lying.jpg (EXIF orientation 5, transparency), now and lying.png"
    )
    assert line in said(caplog)


def test_cmyk_becomes_rgb(workspace: Workspace) -> None:
    cmyk = encoded(picture().convert("CMYK"), icc_profile=b"\0" * 16 + b"CMYK" + b"\0" * 108)
    adobe = cmyk.index(b"Adobe")
    ycck = cmyk[: adobe + 11] + b"\2" + cmyk[adobe + 12 :]
    lying = encoded(picture().convert("CMYK"), exif=exif(6))
    dataset = Prepared(workspace, ("a.jpg", cmyk), ("b.jpg", ycck), ("c.jpg", lying))
    for name, data in (("a.jpg", cmyk), ("b.jpg", ycck), ("c.jpg", lying)):
        photo = opened(dataset[name])
        assert (photo.format, photo.mode) == ("JPEG", "RGB")
        assert "icc_profile" not in photo.info
        assert dataset.done(name)[-1] == "converted to RGB (CMYK)"
        assert differ(photo, upright(data).convert("RGB"))[0] < SAVED_ANEW, name


def test_16_bits_become_8(workspace: Workspace) -> None:
    image = np.asarray(picture(), int)
    grey = np.add.outer(np.arange(80) * 13, np.arange(120) * 500)[..., None]
    dataset = Prepared(workspace, ("grey.jpg", png_of_16_bits(grey)), ("RGB.jpg", png_of_16_bits(image * 257)))
    assert dataset.done("grey.png") == dataset.done("RGB.png") == ["converted to 8 bits (16 bits)"]
    assert differ(opened(dataset["grey.png"]), Image.fromarray((grey[..., 0] / 257).astype(np.uint8)))[1] <= 1
    assert differ(opened(dataset["RGB.png"]), Image.fromarray(image.astype(np.uint8))) == (0, 0)


def undecodable(orientation: int | None = None) -> bytes:
    """A whole JPEG by its markers, whose coded data cannot be read."""
    photo = jpeg(orientation=orientation)
    table = photo.index(b"\xff\xc4")
    return photo[:table] + photo[photo.index(b"\xff\xda") :]


def test_photos_that_need_nothing_keep_their_bytes(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    image = picture()
    opaque = image.copy()
    opaque.putalpha(255)
    photos = {
        "a.jpg": encoded(image, exif=exif(1)),
        "b.JPG": encoded(image, progressive=True, comment=b"mine"),
        "grey.jpeg": encoded(image.convert("L")),
        "png.jpg": encoded(image, "PNG"),
        "palette.jpg": encoded(image.quantize(16), "PNG"),
        "webp.jpg": encoded(image, "WEBP", lossless=False),
        "opaque.jpg": encoded(opaque, "PNG"),
        "gif.jpg": encoded_gif(image),
        "not decoded.jpg": undecodable(),
    }
    dataset = Prepared(workspace, *photos.items())
    assert {name: dataset[name] for name in dataset.names} == photos
    assert [record["done"] for record in dataset.records.values()] == [[]] * len(photos)
    assert [line for name in photos for line in said_of(caplog, name)] == []
    assert said(caplog, logging.WARNING) == []


def encoded_gif(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "GIF")
    return buffer.getvalue()


def test_a_photo_that_cannot_be_decoded_is_left_as_it_is(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    broken, good = undecodable(orientation=6), encoded(picture(), exif=exif(6))
    torn = bytearray(encoded(with_alpha(picture()), "PNG"))
    torn[torn.index(b"IDAT") + 40] ^= 0xFF
    dataset = Prepared(workspace, ("a.jpg", broken), ("b.jpg", good), ("c.jpg", bytes(torn)))
    assert dataset.names == ["a.jpg", "b.jpg", "c.jpg"]
    assert (dataset["a.jpg"], dataset["c.jpg"]) == (broken, bytes(torn))
    assert dataset["b.jpg"] != good
    warnings = said(caplog, logging.WARNING)
    assert len(warnings) == 2
    start = "[dataset] left a.jpg as it is, which was to be turned upright (EXIF orientation 6): it cannot be decoded: "
    assert warnings[0].startswith(start)
    assert warnings[1].startswith("[dataset] left c.jpg as it is, which was to be laid on white (transparency)")
    assert dataset.records["a.jpg"]["warnings"] == [warnings[0][warnings[0].index("it cannot") :]]
    assert (workspace.training / "images" / "a.txt").read_text() == "word"


def test_stand_ins_for_photos_pass(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    dataset = Prepared(workspace, ("a.jpg", b"fake"), ("b.jpg", b""), options=dataset_options(upright=True))
    assert (dataset["a.jpg"], dataset["b.jpg"]) == (b"fake", b"")
    assert len(said(caplog, logging.WARNING)) == 1


# ---- what is said and recorded ----------------------------------------------------------------------------------


def test_of_many_photos_there_are_some_lines_and_a_count(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    photo = encoded(picture(16, 8), exif=exif(6))
    dataset = Prepared(workspace, *((f"{number:03}.jpg", photo) for number in range(105)))
    assert all(dataset.done(name) == ["turned upright (EXIF orientation 6)"] for name in dataset.names)
    lines = [line for line in said(caplog) if "upright" in line]
    assert lines == [f"[dataset] turned upright {number:03}.jpg (EXIF orientation 6)" for number in range(30)]
    assert "[dataset] decoding 105 of 105 photos" in said(caplog)
    assert "[dataset] put 75 more photos right: photos.json in the training folder says which" in said(caplog)


def test_the_record_is_of_the_dataset_that_is_there(workspace: Workspace) -> None:
    first = Prepared(workspace, ("in/Lying.Jpg", encoded(picture(), exif=exif(6))))
    record = {
        "file": "Lying.jpg",
        "from": "in/Lying.Jpg",
        "width": 80,
        "height": 120,
        "caption_from": "trigger",
        "done": ["renamed from Lying.Jpg", "turned upright (EXIF orientation 6)"],
        "warnings": [],
    }
    assert first.records == {"Lying.jpg": record}
    before = (workspace.training / "photos.json").read_bytes()
    workspace.serve(make_zip("read.me"))
    with pytest.raises(ValueError, match="Dataset is empty"):
        trainer(workspace)._prepare_dataset(workspace.toml, workspace.url, "word")
    assert (workspace.training / "photos.json").read_bytes() == before
    assert list(Prepared(workspace, ("b.jpg", jpeg())).records) == ["b.jpg"]


def test_heic_pictures_are_told_how_to_convert(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    Prepared(workspace, ("a.jpg", jpeg()), ("b.jpg", HEIC), ("IMG_1.HEIC", HEIC))
    for name in ("b.jpg", "IMG_1.HEIC"):
        assert [line for line in said(caplog, logging.WARNING) if name in line and "heif-convert" in line]


def test_cancelling_ends_it_at_once_and_leaves_the_old_dataset(
    workspace: Workspace, reacts: Callable[[str, Callable[[], object]], None], caplog: pytest.LogCaptureFixture
) -> None:
    old = workspace.old_dataset()
    photo = encoded(picture(900, 600), exif=exif(6))
    workspace.serve(make_zip(*(Entry(f"{number:03}.jpg", photo, stored=True) for number in range(120))))
    cancelled = trainer(workspace)
    reacts("turned upright 000.jpg", cancelled.cancel)
    with pytest.raises(musubitraining.Cancelled):
        cancelled._prepare_dataset(workspace.toml, workspace.url, "word")
    found = {
        path.relative_to(workspace.training).as_posix() for path in workspace.training.rglob("*") if path.is_file()
    }
    assert found == set(old)
    assert said_of(caplog, "more photos right") == [], "all were"


# ---- too small --------------------------------------------------------------------------------------------------


def with_resolution(workspace: Workspace, *settings: str) -> None:
    lines = ["[[datasets]]", f"image_directory = {json.dumps(str(workspace.images))}", 'caption_extension = ".txt"']
    workspace.toml = "\n".join([*lines, *settings]) + "\n"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["resolution = 1024", "enable_bucket = true"], "64x48 is enlarged 18.5 times to 1184x880"),
        (["resolution = [96, 64]"], None),
        (["resolution = [128, 64]"], "64x48 is enlarged 2.0 times to 128x64"),
        ([], "64x48 is enlarged 15.0 times to 960x544"),
        (["resolution = 1024", "enable_bucket = true", "bucket_no_upscale = true"], None),
        (["resolution = 0", "enable_bucket = true"], None),
    ],
)
def test_photos_that_are_too_small_are_told_and_kept(
    workspace: Workspace, caplog: pytest.LogCaptureFixture, settings: list[str], words: str | None
) -> None:
    with_resolution(workspace, *settings)
    large = encoded(Image.new("L", (1100, 1000)))
    dataset = Prepared(workspace, ("a.jpg", jpeg(64, 48)), ("b.jpg", jpeg(64, 48)), ("large.jpg", large))
    assert dataset.names == ["a.jpg", "b.jpg", "large.jpg"]
    found = [line for line in said(caplog, logging.WARNING) if "too small for the resolution" in line]
    if words is None:
        assert found == []
    else:
        assert len(found) == 1
        assert f"a.jpg ({words}), b.jpg ({words})." in found[0]
        assert "large.jpg" not in found[0]
    assert dataset.records["b.jpg"]["warnings"] == ([words] if words else [])


def test_photos_that_musubi_tuner_stops_on_are_told_and_kept(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    with_resolution(workspace, "resolution = 512", "enable_bucket = true", "bucket_no_upscale = true")
    slim = jpeg(400, 12, orientation=6)
    dataset = Prepared(workspace, ("a.jpg", slim), ("b.jpg", jpeg(100, 100)))
    assert dataset.names == ["a.jpg", "b.jpg"]
    told = [line for line in said(caplog, logging.WARNING) if "Musubi Tuner will stop on" in line]
    assert len(told) == 1
    assert "a.jpg (12x400, 16 is the least side where it is not enlarged)" in told[0]
    assert "b.jpg" not in told[0]


def test_photos_of_another_folder_are_not_held_against_the_resolution(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    with_resolution(workspace, "resolution = 1024")
    workspace.toml = workspace.toml.replace(str(workspace.images), "/elsewhere")
    Prepared(workspace, ("a.jpg", jpeg()))
    assert said_of(caplog, "too small") == []


# ---- looked at --------------------------------------------------------------------------------------------------


def looked_at() -> dict[str, bytes]:
    image = picture(600, 400, 1)
    return {
        "good.jpg": encoded(image),
        "blurred.jpg": encoded(picture(600, 400, 2).filter(ImageFilter.GaussianBlur(6))),
        "black.jpg": encoded(picture(600, 400, 3).point(lambda value: value // 12)),
        "white.jpg": encoded(Image.new("RGB", (600, 400), (250, 252, 249))),
        "even.jpg": jpeg(600, 400),
        "other.jpg": encoded(picture(600, 400, 4)),
        "smaller.jpg": encoded(image.resize((300, 200), Image.Resampling.LANCZOS), quality=60),
        "brighter.jpg": encoded(image.point(lambda value: min(255, value * 5 // 4))),
        "lying.jpg": encoded(image.rotate(90, expand=True), exif=exif(6)),
        "dark but not black.jpg": encoded(picture(600, 400, 5).point(lambda value: value // 3)),
    }


def test_photos_are_looked_at_where_there_are_options(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    photos = looked_at()
    dataset = Prepared(workspace, *photos.items(), options=dataset_options(upright=True))
    assert dataset.names == sorted(photos)
    warnings = said(caplog, logging.WARNING)
    for line in (
        "[dataset] very blurred: blurred.jpg",
        "[dataset] nearly all black: black.jpg",
        "[dataset] nearly all white: white.jpg",
        "[dataset] nearly all of one brightness: even.jpg",
        "[dataset] nearly the same photo several times, which counts more than the others: "
        "brighter.jpg = good.jpg = lying.jpg = smaller.jpg",
    ):
        assert line in warnings
    assert len(warnings) == 5
    assert dataset.records["blurred.jpg"]["warnings"] == ["it is very blurred"]
    alike = "it is nearly the same as brighter.jpg, lying.jpg, smaller.jpg"
    assert dataset.records["good.jpg"]["warnings"] == [alike]
    assert dataset["good.jpg"] == photos["good.jpg"]
    assert dataset.done("lying.jpg") == ["turned upright (EXIF orientation 6)"]
    assert dataset.records["other.jpg"]["warnings"] == []


def test_photos_are_not_looked_at_where_there_are_none(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    Prepared(workspace, *looked_at().items())
    assert said(caplog, logging.WARNING) == []


def test_a_photo_that_cannot_be_looked_at_is_told_and_kept(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    broken = undecodable()
    dataset = Prepared(workspace, ("a.jpg", broken), ("b.jpg", jpeg()), options=dataset_options(upright=True))
    assert dataset["a.jpg"] == broken
    assert said_of(caplog, "a.jpg")[0].startswith("[dataset] did not look at a.jpg: it cannot be decoded: ")
