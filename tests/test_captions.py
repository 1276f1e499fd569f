"""Captions beside their photos, and other kinds of photos: what is kept, what is made of it, what is said."""

import io
import json
import random
from dataclasses import FrozenInstanceError, dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
from harness.library import Workspace
from harness.photos import HEIC, Entry, jpeg, make_zip, png, webp
from harness.scenario import Work
from musubitraining import DatasetOptions, MusubiTraining
from PIL import Image

WORD = "sks"
FILES = DatasetOptions(captions="files")


@dataclass
class Made:
    """The dataset, and what was said of it."""

    files: dict[str, bytes]
    log: list[tuple[str, str]]

    @property
    def captions(self) -> dict[str, str]:
        return {name[:-4]: data.decode() for name, data in self.files.items() if name.endswith(".txt")}

    @property
    def photos(self) -> set[str]:
        return {name for name in self.files if not name.endswith(".txt")}

    def said(self, part: str, level: str = "INFO") -> list[str]:
        return [line for name, line in self.log if name == level and part in line]


def trainer(workspace: Workspace, **more: Any) -> MusubiTraining:
    return MusubiTraining(**Work(str(workspace.root), workspace.url, workspace.toml, {}).arguments(), **more)


def make(
    workspace: Workspace, log: list[tuple[str, str]], *entries: Any, word: str = WORD, options: Any = FILES
) -> Made:
    log.clear()
    workspace.serve(make_zip(*entries))
    trainer(workspace, dataset_options=options)._prepare_dataset(workspace.toml, workspace.url, word)
    return Made({path.name: path.read_bytes() for path in workspace.images.iterdir()}, list(log))


# ---- what a caption becomes -------------------------------------------------------------------------------------

CAPTIONS = [
    ("a photo of a dog", "sks, a photo of a dog"),
    ("a photo of sks", "a photo of sks"),
    ("sks", "sks"),
    ("(sks), outdoors", "(sks), outdoors"),
    ("sks's dog", "sks's dog"),
    ("sks-like", "sks-like"),
    ("Sks in a hat", "sks, Sks in a hat"),
    ("sksy things", "sks, sksy things"),
    ("asks a question", "sks, asks a question"),
    ("sks_2", "sks, sks_2"),
    ("sks2", "sks, sks2"),
    ("sksé", "sks, sksé"),
    ("sks\u0301 with an accent", "sks, sks\u0301 with an accent"),
    ("日sks本", "sks, 日sks本"),
    ("日、sks。", "日、sks。"),
    ("asks sks", "asks sks"),
    ("[trigger] in the snow", "sks in the snow"),
    ("[trigger] and [trigger]", "sks and sks"),
    ("a[trigger]b", "sks, asksb"),
    ("[Trigger]", "sks, [Trigger]"),
    ("  \t a dog \r\n", "sks, a dog"),
    ("two\nlines", "sks, two\nlines"),
    ("日本 ñ 😀", "sks, 日本 ñ 😀"),
    ("a\x0bdog\x1f", "sks, a dog"),
]


def test_a_caption_has_the_word_once(workspace: Workspace, log: list[tuple[str, str]]) -> None:
    entries = [(f"{n}.{end}", data) for n, (text, _) in enumerate(CAPTIONS) for end, data in _pair(text)]
    made = make(workspace, log, *entries)
    assert made.captions == {str(number): caption for number, (_, caption) in enumerate(CAPTIONS)}
    assert made.said(f"captions: {len(CAPTIONS)} from files, 0 of the trigger word")
    assert made.said(f"images kept={len(CAPTIONS)} removed=0")
    assert made.said("caption", "WARNING") == []


def _pair(text: str) -> list[tuple[str, bytes]]:
    return [("jpg", jpeg()), ("txt", text.encode())]


@pytest.mark.parametrize(
    ("word", "text", "caption"),
    [
        ("日本", "日本の", "日本, 日本の"),
        ("日本", "これは 日本、", "これは 日本、"),
        ("caf\u00e9", "a cafe\u0301 at night", "a cafe\u0301 at night"),
        ("cafe\u0301", "a caf\u00e9 at night", "a caf\u00e9 at night"),
        ("cafe", "a cafe\u0301 at night", "cafe, a cafe\u0301 at night"),
        ("<sks>", "x<sks>y", "x<sks>y"),
        (" sks woman ", "a sks woman", "a sks woman"),
        (" sks woman ", "a dog", "sks woman, a dog"),
        ("", "a [trigger] dog", "a  dog"),
        ("a.b*c", "axbxc", "a.b*c, axbxc"),
        ("$1 \\g<0>", "[trigger]!", "$1 \\g<0>!"),
    ],
)
def test_words_of_all_sorts(
    workspace: Workspace, log: list[tuple[str, str]], word: str, text: str, caption: str
) -> None:
    made = make(workspace, log, ("a.jpg", jpeg()), ("a.txt", text.encode()), word=word)
    assert made.captions == {"a": caption}


# ---- what a text may be -----------------------------------------------------------------------------------------

ENCODED = {
    "utf-8": "é日😀".encode(),
    "utf-8-sig": "é日😀".encode("utf-8-sig"),
    "utf-16-le": b"\xff\xfe" + "é日😀".encode("utf-16-le"),
    "utf-16-be": b"\xfe\xff" + "é日😀".encode("utf-16-be"),
}


def test_every_encoding_is_read(workspace: Workspace, log: list[tuple[str, str]]) -> None:
    letters = bytes(byte for byte in range(0x21, 0x100) if byte not in (0x7F, 0x81, 0x8D, 0x8F, 0x90, 0x9D))
    entries = [entry for name, data in ENCODED.items() for entry in ((f"{name}.jpg", jpeg()), (f"{name}.txt", data))]
    made = make(workspace, log, *entries, ("old.jpg", jpeg()), ("old.txt", letters))
    expected = {name: "sks, é日😀" for name in ENCODED} | {"old": f"sks, {letters.decode('cp1252').strip()}"}
    assert made.captions == expected
    [warning] = made.said("caption", "WARNING")
    assert "Windows-1252" in warning
    assert "old.txt" in warning
    assert "utf" not in warning


REFUSED = {
    "empty": (b"", "it is empty"),
    "blank": (b"\xef\xbb\xbf \r\n\t", "it is empty"),
    "nul": (b"a\0dog", "NUL"),
    "utf-16 unmarked": ("a dog".encode("utf-16-le"), "NUL"),
    "utf-16 cut": (b"\xff\xfea\0d", "UTF-16 that is cut short"),
    "utf-16 half": (b"\xff\xfe\x00\xd8a\0", "UTF-16 that is cut short"),
    "shift-jis": ("ソ連の写真".encode("shift-jis"), "neither UTF-8 nor Windows-1252"),
    "huge": (b"a" * (64 * 1024 + 1), "longer than 64 KiB"),
}


def test_what_is_no_text_is_named_and_not_used(workspace: Workspace, log: list[tuple[str, str]]) -> None:
    entries = [
        entry for name, (data, _) in REFUSED.items() for entry in ((f"{name}.jpg", jpeg()), (f"{name}.txt", data))
    ]
    made = make(workspace, log, *entries, options=replace(FILES, default_caption="of [trigger]"))
    assert made.captions == dict.fromkeys(REFUSED, "of sks")
    [warning] = made.said("captions are not used", "WARNING")
    for name, (_, reason) in REFUSED.items():
        assert f"{name}.txt ({reason}" in warning or reason in warning.partition(f"{name}.txt (")[2].partition(")")[0]
    assert made.said(f"captions: 0 from files, {len(REFUSED)} of default_caption")
    assert made.said(f"removed={len(REFUSED)}")


def test_the_largest_text_is_used_and_warned_of(workspace: Workspace, log: list[tuple[str, str]]) -> None:
    made = make(
        workspace, log, ("a.jpg", jpeg()), ("a.txt", b"a" * 64 * 1024), ("b.jpg", jpeg()), ("b.txt", b"w " * 513)
    )
    assert len(made.captions["a"]) == 64 * 1024 + len("sks, ")
    [warning] = made.said("captions are too long", "WARNING")
    assert "a.txt is probably longer than the 512 tokens" in warning
    assert "b.txt is longer than the 512 tokens" in warning


def test_random_bytes_are_captions_or_named(workspace: Workspace, log: list[tuple[str, str]]) -> None:
    chance = random.Random(5)
    texts = {str(number): chance.randbytes(chance.randrange(40)) for number in range(200)}
    entries = [entry for name, data in texts.items() for entry in ((f"{name}.jpg", jpeg()), (f"{name}.txt", data))]
    made = make(workspace, log, *entries)
    assert set(made.captions) == set(texts)
    for name, caption in made.captions.items():
        assert "\0" not in caption
        assert caption == caption.strip(), (texts[name], caption)
        assert "sks" in caption


# ---- which text is whose ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [False, True])
def test_a_text_belongs_to_the_photo_beside_it(workspace: Workspace, log: list[tuple[str, str]], stored: bool) -> None:
    noise = random.Random(1).randbytes(200_000)
    made = make(
        workspace,
        log,
        ("1/a.txt", b"first"),
        Entry("1/a.jpg", jpeg(comment="1") + noise, stored=stored),
        Entry("2/a.jpeg", jpeg(comment="2"), stored=stored),
        Entry("2/a.TXT", b"second", stored=stored),
        ("3/b.JPG", jpeg(comment="3")),
        ("b.txt", b"in another folder"),
        ("c.jpg", jpeg(comment="4")),
        ("c.jpg.txt", b"of another stem"),
        ("d.my.jpg", jpeg(comment="5")),
        ("d.my.txt", b"dotted"),
        ("e.jpg", jpeg(comment="6")),
        ("e.TXT", b"upper"),
        ("e.txt", b"lower"),
        Entry("f.jpg", jpeg(comment="7")),
        Entry("f.txt", b"/etc/passwd", link=True),
        ("__MACOSX/1/._a.txt", b"junk"),
        ("readme.txt", b"of no photo"),
    )
    assert made.captions == {
        "a": "sks, first",
        "a_2": "sks, second",
        "b": "sks",
        "c": "sks",
        "d.my": "sks, dotted",
        "e": "sks, lower",
        "f": "sks",
    }
    assert made.said("captions: 4 from files, 3 of the trigger word")
    assert made.said("images kept=7 removed=6")


def test_photos_that_change_their_names_at_the_end_keep_their_captions(
    workspace: Workspace, log: list[tuple[str, str]]
) -> None:
    made = make(
        workspace,
        log,
        *[("z/a.jpg", jpeg(comment="1")), ("z/a.txt", b"one")],
        *[("a_2.jpg", jpeg(comment="2")), ("a_2.txt", b"two")],
        *[("a.jpeg", jpeg(comment="3")), ("a.txt", b"three")],
    )
    assert made.captions == {"a": "sks, three", "a_2": "sks, two", "a_3": "sks, one"}
    assert (b"1" in made.files["a_3.jpg"], b"3" in made.files["a.jpeg"]) == (True, True)


def test_a_photo_without_a_text(workspace: Workspace, log: list[tuple[str, str]]) -> None:
    for default, word, caption in [
        (None, WORD, "sks"),
        ("a dog", WORD, "sks, a dog"),
        ("of [trigger]", WORD, "of sks"),
        ("a dog", "", "a dog"),
        (None, " sks ", " sks "),
    ]:
        options = replace(FILES, default_caption=default)
        made = make(
            workspace,
            log,
            ("a.jpg", jpeg()),
            ("b.jpg", jpeg(comment="b")),
            ("b.txt", b"own"),
            word=word,
            options=options,
        )
        assert made.captions["a"] == caption
        assert made.captions["b"] == ("own" if not word else "sks, own")
    make(workspace, log, ("a.jpg", jpeg()), options=replace(FILES, default_caption="w " * 513))
    assert [line for name, line in log if name == "WARNING" and "default_caption is longer than the 512" in line]
    made = make(workspace, log, ("a.jpg", jpeg()), word="")
    assert made.captions == {"a": ""}
    assert made.said("photos that train without a caption", "WARNING")


def test_captions_that_are_thrown_away_are_named_with_the_way_to_keep_them(
    workspace: Workspace, log: list[tuple[str, str]]
) -> None:
    made = make(
        workspace, log, ("in/a.jpg", jpeg()), ("in/a.txt", b"a dog"), ("readme.txt", b"of no photo"), options=None
    )
    assert made.captions == {"a": "sks"}
    [warning] = made.said("", "WARNING")
    assert "in/a.txt (1 in all" in warning
    assert 'dataset_options=DatasetOptions(captions="files")' in warning
    assert make(workspace, log, ("a.jpg", jpeg()), ("b.txt", b"x"), options=None).said("", "WARNING") == []


# ---- kinds of photos --------------------------------------------------------------------------------------------


def pillow(kind: str, size: tuple[int, int] = (64, 48)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (90, 120, 30)).save(buffer, kind)
    return buffer.getvalue()


KINDS = {
    "a.jpg": jpeg(comment="1"),
    "b.JPEG": jpeg(comment="2"),
    "c.Png": png(64, 48),
    "d.WEBP": webp(64, 48),
    "e.bmp": pillow("BMP"),
    "f.avif": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(64),
}


def test_all_that_the_tuner_reads_is_taken(workspace: Workspace, log: list[tuple[str, str]]) -> None:
    options = DatasetOptions(image_extensions="all")
    made = make(workspace, log, *KINDS.items(), ("g.heic", HEIC), ("g.gif", b"GIF89a"), options=options)
    assert made.photos == {"a.jpg", "b.JPEG", "c.png", "d.WEBP", "e.bmp", "f.avif"}
    assert made.captions == dict.fromkeys("abcdef", "sks")
    assert {made.files[name] for name in made.photos} == set(KINDS.values())
    assert made.said("renamed c.Png to c.png")
    [warning] = made.said("left out", "WARNING")
    assert "g.heic, g.gif" in warning
    assert "as JPEG" in warning
    assert "image_extensions" not in warning


def test_what_is_left_out_is_one_warning_with_the_way_to_take_it(
    workspace: Workspace, log: list[tuple[str, str]]
) -> None:
    made = make(workspace, log, *KINDS.items(), ("g.heic", HEIC), ("readme.md", b""), options=None)
    assert made.photos == {"a.jpg", "b.JPEG"}
    [warning] = made.said("", "WARNING")
    for part in (
        "left out c.Png, d.WEBP, e.bmp, f.avif, g.heic (5 in all): only .jpg and .jpeg are taken",
        "to take .png, .webp, .bmp and .avif as well",
        'dataset_options=DatasetOptions(image_extensions="all")',
        "g.heic: convert it to JPEG",
    ):
        assert part in warning


def test_one_kind_alone(workspace: Workspace, log: list[tuple[str, str]]) -> None:
    options = DatasetOptions(image_extensions=[".PNG"], captions="files")
    made = make(workspace, log, *KINDS.items(), ("c.txt", b"own"), options=options)
    assert made.captions == {"c": "sks, own"}
    assert made.said("only .png are taken", "WARNING")
    with pytest.raises(ValueError, match=r"\.png are\. Other files: a\.jpg"):
        make(workspace, log, "a.jpg", options=options)


def test_twins_in_two_kinds_share_their_text(workspace: Workspace, log: list[tuple[str, str]]) -> None:
    options = DatasetOptions(image_extensions="all", captions="files")
    made = make(workspace, log, ("a.jpg", jpeg()), ("a.png", png(64, 48)), ("a.txt", b"both"), options=options)
    assert made.photos == {"a.jpg", "a_2.png"}
    assert made.captions == {"a": "sks, both", "a_2": "sks, both"}
    assert made.said("images kept=2 removed=0")


# ---- the options ------------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_original() -> None:
    options = DatasetOptions()
    found = (options.captions, options.default_caption, tuple(options.image_extensions), options.upright)
    assert found == ("trigger", None, ("jpg", "jpeg"), True)
    with pytest.raises(FrozenInstanceError):
        options.captions = "files"  # type: ignore[misc]
    with pytest.raises(TypeError):
        DatasetOptions("files")  # type: ignore[call-arg,arg-type]
    assert DatasetOptions(image_extensions={".JPG", "png", "PNG"}).image_extensions == ("jpg", "png")


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("captions", "file", ValueError),
        ("captions", None, TypeError),
        ("captions", True, TypeError),
        ("default_caption", "", ValueError),
        ("default_caption", "a\0b", ValueError),
        ("default_caption", b"a", TypeError),
        ("image_extensions", "png", TypeError),
        ("image_extensions", (), ValueError),
        ("image_extensions", ("txt",), ValueError),
        ("image_extensions", ("jpg", ""), ValueError),
        ("image_extensions", ("jpg", "heic"), ValueError),
        ("image_extensions", ("jpg", 1), TypeError),
        ("image_extensions", None, TypeError),
        ("image_extensions", 5, TypeError),
        ("upright", 1, TypeError),
        ("upright", None, TypeError),
    ],
)
def test_a_value_that_cannot_be_is_refused_at_once(field: str, value: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind) as raised:
        DatasetOptions(**{"captions": "files", field: value} if field == "default_caption" else {field: value})
    assert f"DatasetOptions.{field}={value!r}: expected" in str(raised.value)


def test_a_default_caption_needs_captions_from_files() -> None:
    with pytest.raises(ValueError, match="default_caption='a dog' with captions='trigger'"):
        DatasetOptions(default_caption="a dog")


def test_any_object_with_the_attributes_will_do(workspace: Workspace, log: list[tuple[str, str]]) -> None:
    given = {"captions": "files", "default_caption": None, "image_extensions": ["jpg"], "upright": False}
    made = make(workspace, log, ("a.jpg", jpeg()), ("a.txt", b"own"), options=SimpleNamespace(**given))
    assert made.captions == {"a": "sks, own"}
    for change, kind in [
        ({"captions": "other"}, ValueError),
        ({"captions": 1}, TypeError),
        ({"image_extensions": ["txt"]}, ValueError),
        ({"image_extensions": "jpg"}, TypeError),
        ({"upright": None}, TypeError),
        ({"default_caption": 5}, TypeError),
    ]:
        with pytest.raises(kind):
            make(workspace, log, "b.jpg", options=SimpleNamespace(**(given | change)))
        assert made.captions == {"a": "sks, own"}
    with pytest.raises(AttributeError):
        make(workspace, log, "b.jpg", options=SimpleNamespace(captions="files"))


def test_those_of_the_call_go_before_those_of_the_trainer(workspace: Workspace, log: list[tuple[str, str]]) -> None:
    workspace.serve(make_zip(("a.jpg", jpeg()), ("a.txt", b"own")))
    one = trainer(workspace, dataset_options=FILES)
    for options, caption in [(DatasetOptions(), "sks"), (None, "sks, own")]:
        one.train(workspace.toml, workspace.url, WORD, dataset_options=options)
        assert (workspace.images / "a.txt").read_text() == caption


def test_the_record_says_what_each_caption_is_made_of(workspace: Workspace, log: list[tuple[str, str]]) -> None:
    entries = (Entry("a.jpg", jpeg()), Entry("a.txt", b"a cat"), Entry("b.jpg", jpeg(comment="2")))
    for options, origins in (
        (None, ["trigger", "trigger"]),
        (FILES, ["file", "trigger"]),
        (replace(FILES, default_caption="a dog"), ["file", "default_caption"]),
    ):
        make(workspace, log, *entries, options=options)
        record = json.loads((workspace.training / "photos.json").read_text())
        assert [photo["caption_from"] for photo in record["photos"]] == origins
