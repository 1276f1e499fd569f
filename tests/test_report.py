"""The report of a run: one page that needs nothing else, whatever the record says, looked at in a real browser."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import io
import json
import math
import os
import random
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness import chromium, runs
from harness.runs import EVIL, everything, hostile
from musubitraining import TrainingRun, report
from musubitraining.report import charts, wording
from musubitraining.run_record import Checkpoint, Folders, GpuReading, LossPoint, Photo, Sample, Step

DEMO = Path(__file__).parent / "recorded/runs/demo"
Image = pytest.importorskip("PIL.Image")


class Read(html.parser.HTMLParser):
    """The elements of a page, and the text of each kind."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.styles: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in ("meta", "img", "wbr", "col"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], data)
        elif self.open and self.open[-1] == "style":
            self.styles.append(data)
        else:
            self.text += data

    def values(self, name: str) -> list[str | None]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def page(run: TrainingRun) -> Read:
    read = Read(report.html(run))
    assert read.open == []
    return read


def pictures(read: Read) -> list[bytes]:
    found = [value or "" for value in read.values("src")]
    return [base64.b64decode(value.partition("base64,")[2]) for value in found]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "training"


@pytest.fixture
def demo(tmp_path: Path) -> TrainingRun:
    """A real run of the demonstration, with its photos."""
    place = shutil.copytree(DEMO, tmp_path / "demo")
    shutil.copytree(runs.DEMO_PHOTOS, place / "images")
    return TrainingRun.load(place)


# --- The file


def test_the_report_of_a_real_run_is_written_beside_its_record(demo: TrainingRun) -> None:
    assert demo.folder
    place = demo.report()
    assert place == demo.folder / "report.html"
    read = Read(place.read_text("utf-8"))
    for word in (
        "zwxcat",
        "Done",
        "200",
        "Training",
        "Conversion",
        "output_lora_model_comfyui.safetensors",
        "6 photos",
    ):
        assert word in read.text
    assert len(pictures(read)) == 6
    assert sorted(os.listdir(demo.folder)) == ["events.jsonl", "images", "report.html", "run.json"]
    assert place.stat().st_mode & 0o777 == demo.folder.joinpath("run.json").stat().st_mode & 0o777


def test_the_report_goes_where_it_is_told_to(
    demo: TrainingRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo.report("other.html") == tmp_path / "other.html"
    with pytest.raises(ValueError, match="was not read from a folder"):
        replace(demo, folder=None).report()
    assert replace(demo, folder=None).report(tmp_path / "third.html").exists()


def test_a_report_that_cannot_be_written_leaves_the_old_one(demo: TrainingRun, tmp_path: Path) -> None:
    place = demo.report()
    before = place.read_bytes()
    with pytest.raises(OSError, match="nowhere"):
        demo.report(tmp_path / "nowhere" / "report.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        demo.report(tmp_path / "folder")
    assert os.listdir(tmp_path / "folder") == []
    assert sorted(os.listdir(tmp_path)) == ["demo", "folder"]
    assert place.read_bytes() == before


# --- What it may do


@pytest.mark.parametrize("kind", ["everything", "hostile", "nothing"])
def test_it_allows_itself_nothing_but_its_own(folder: Path, kind: str) -> None:
    read = page({"everything": everything(folder), "hostile": hostile(), "nothing": TrainingRun()}[kind])
    (policy,) = [value for value in read.values("content") if value and "default-src" in value]
    assert policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    hashes = {name: rules[name] for name in ("style-src", "script-src")}
    (style,) = read.styles
    (script,) = [text for attributes, text in read.scripts if not attributes]
    for name, text in (("style-src", style), ("script-src", script)):
        assert hashes[name] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    others = {name: rule for name, rule in rules.items() if name not in hashes}
    assert others == {"default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'"}
    # The policy would refuse a style attribute, and an address.
    assert not read.values("style")
    assert not read.values("href")
    assert all((value or "").startswith("data:image/") for value in read.values("src"))
    assert "url(" not in style
    assert "http" not in style + script
    assert not [name for _, name, _ in read.attributes if name.startswith("on")]


def test_every_word_of_the_record_is_only_a_word() -> None:
    harmless, evil = page(hostile("harmless")), page(hostile(EVIL))
    # No element and no attribute more or less than with a word that is one.
    assert evil.elements == harmless.elements
    assert Counter((tag, name) for tag, name, _ in evil.attributes) == Counter(
        (tag, name) for tag, name, _ in harmless.attributes
    )
    shown = EVIL.replace("\0", "\ufffd").replace("\x1b", "\ufffd").replace("\ud800", "\ufffd")
    assert evil.text.count(shown) >= 20
    assert "\0" not in evil.text
    for attributes, text in evil.scripts:
        if attributes:
            json.loads(text)


def test_a_hostile_record_is_written_as_utf8(tmp_path: Path) -> None:
    place = hostile().report(tmp_path / "r.html")
    assert "onerror" in place.read_bytes().decode("utf-8")


@pytest.mark.parametrize("member", ["steps", "loss", "gpu", "photos", "samples", "outputs", "checkpoints", "arguments"])
def test_missing_parts_are_left_out_or_said(folder: Path, member: str) -> None:
    run = everything(folder)
    without: Any = {} if member == "arguments" else ()
    text = page(replace(run, **{member: without})).text
    said = {"loss": "No loss recorded", "steps": "No step recorded"}.get(member)
    assert said is None or said in text


def test_an_empty_record_has_a_report() -> None:
    text = page(TrainingRun()).text
    for words in (
        "A training run",
        "No end is recorded",
        "No loss recorded",
        "No step recorded",
        "No setting recorded",
    ):
        assert words in text
    for section in ("Samples", "Photos", "GPU memory", "Commands", "Warnings"):
        assert section not in text


def test_a_run_that_has_not_ended_says_so() -> None:
    run = TrainingRun(seconds=62.0, steps=(Step(step="train", seconds=None),), arguments={"max_train_steps": 2000},
                      loss=(LossPoint(120, 0.5),))  # fmt: skip
    text = page(run).text
    assert "No end is recorded: it was still running when this was written, or it was killed." in text
    assert "The last word came after 1 min 02 s." in text
    assert "120 of 2,000" in text


def test_a_failed_run_says_why() -> None:
    read = page(hostile("harmless"))
    assert "Failed" in read.text
    assert "exit code 1" in read.text
    assert "9 values could not be drawn (NaN or infinite), the first at step 5." in read.text


# --- Numbers without end


def test_a_hundred_thousand_points_keep_their_peaks() -> None:
    chance = random.Random(1)
    loss = [LossPoint(step, chance.gauss(1, 0.05), step * 0.5) for step in range(100_000)]
    loss[54_321] = LossPoint(54_321, 17.25)
    loss[77_777] = LossPoint(77_777, math.nan)
    gpu = [GpuReading(float(at), 3 * runs.GIB + at, 8 * runs.GIB, 50.0) for at in range(100_000)]
    gpu[31_415] = GpuReading(31_415.0, 7 * runs.GIB, 8 * runs.GIB, 50.0)
    found = report.html(TrainingRun(loss=tuple(loss), gpu=tuple(gpu)))
    assert len(found) < 600_000
    rows = [json.loads(text) for attributes, text in Read(found).scripts if attributes]
    assert [len(chart) <= report.MOST_PLACES for chart in rows] == [True, True]
    assert ["step 54,321", "loss 17.250"] in [[row[1], row[2][1]] for row in rows[0]]
    assert [None, "loss not a number"] in [row[2] for row in rows[0]]
    assert "used 7.0 GiB" in [row[2][1] for row in rows[1]]


def test_long_lists_are_cut_and_counted(folder: Path) -> None:
    run = replace(
        everything(folder),
        photos=tuple(Photo(file=f"{number}.jpg") for number in range(5000)),
        warnings=tuple(f"warning {number}" for number in range(5000)),
        checkpoints=tuple(Checkpoint(path=f"/o/{number}", step=number) for number in range(5000)),
        samples=tuple(Sample(path=f"/o/{number}.png", step=number // 4) for number in range(5000)),
        options={f"option_{number}": number for number in range(5000)},
        steps=tuple(Step(step=f"step {number}", seconds=1.0) for number in range(5000)),
        arguments={"trigger_word": "x" * 10**6, "dataset_toml_content": "# y\n" * 10**6},
    )
    found = report.html(run)
    assert len(found) < 900_000
    text = Read(found).text
    for more in (
        "and 4,700 warnings more", "4,880 photos more, by name", "and 3,880 photos more", "and 4,702 files more",
        "and 4,700 settings more", "and 4,940 samples more", "(999,800 characters more)",
    ):  # fmt: skip
        assert more in text, more
    assert "Step 0" in text
    assert "Step 1,249" in text


ODD = [math.nan, math.inf, -math.inf, 1e300, 1e30, -1e30, 5e-324, 0.0, -3.0, 1e15]


@pytest.mark.parametrize("number", range(40))
def test_odd_numbers_have_a_report(number: int) -> None:
    chance = random.Random(number)
    whole = [0, 1, 2, 2**62, 2**63 - 1]
    finite = [value for value in ODD if abs(value) <= 1e30]

    def some(values: list[Any]) -> list[Any]:
        return [chance.choice(values) for _ in range(chance.choice([0, 1, 2, 9]))]

    run = TrainingRun(
        loss=tuple(LossPoint(step, chance.choice(ODD), chance.choice(finite)) for step in sorted(some(whole))),
        gpu=tuple(GpuReading(at, chance.choice(whole), chance.choice([None, *whole])) for at in some(finite)),
        steps=tuple(Step(step="train", seconds=seconds) for seconds in some([None, *finite])),
        seconds=chance.choice([None, *finite]),
        seconds_per_step=chance.choice([None, *finite]),
        checkpoints=tuple(Checkpoint(path="a", step=step) for step in some(whole)),
    )
    found = page(run)
    for _, name, value in found.attributes:
        if name in ("x", "y", "x1", "y1", "d", "width", "cx", "points"):
            assert not re.search("nan|inf", value or ""), (name, value)
    assert TrainingRun._repr_html_(run)


def test_ticks_are_round_and_cover() -> None:
    assert charts.ticks(0, 1, 4) == [0, 0.25, 0.5, 0.75, 1]
    assert charts.ticks(0.185, 0.9, 4) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert charts.ticks(5, 5, 4)[0] <= 5 <= charts.ticks(5, 5, 4)[-1]
    assert charts.ticks(0, 24, 4, [4, 8, 16]) == [0, 8, 16, 24]
    for least, most in ((0, 1e30), (-1e30, 1e30), (1e15, 1e15 + 1), (0, 5e-324), (-3, -2)):
        found = charts.ticks(least, most, 4)
        assert 2 <= len(found) <= 12


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(None, "–"), (-1.0, "0.0 s"), (0.0, "0.0 s"), (0.034, "34 ms"), (0.2, "0.2 s"), (9.96, "10.0 s"),
     (59.6, "1 min 00 s"), (123.0, "2 min 03 s"), (3599.7, "1 h 00 min"), (4801.0, "1 h 20 min")],
)  # fmt: skip
def test_durations_are_told(seconds: float | None, told: str) -> None:
    assert wording.duration(seconds) == told


def test_sizes_are_told() -> None:
    assert [wording.size(size) for size in (None, 0, 1023, 1024, 88_279, 414_640, 25_757_220_864, 2**50)] == [
        "–", "0 B", "1023 B", "1.0 KiB", "86.2 KiB", "405 KiB", "24.0 GiB", "1,024.0 TiB",
    ]  # fmt: skip


# --- Pictures


def shown(folder: Path, *names: str) -> Read:
    return page(TrainingRun(folder=folder, photos=tuple(Photo(file=name) for name in names)))


@pytest.fixture
def images(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    return folder / "images"


def test_photos_are_made_small(folder: Path, images: Path) -> None:
    noise = Image.frombytes("RGB", (2000, 1000), random.Random(0).randbytes(6_000_000))
    noise.save(images / "large.jpg", quality=95)
    noise.resize((60, 50)).convert("RGBA").save(images / "alpha.png")
    noise.resize((60, 50)).convert("CMYK").save(images / "cmyk.jpg")
    read = shown(folder, "large.jpg", "alpha.png", "cmyk.jpg")
    opened = [Image.open(io.BytesIO(picture)) for picture in pictures(read)]
    assert [(image.size, image.format, image.mode) for image in opened] == [
        ((320, 160), "JPEG", "RGB"), ((60, 50), "JPEG", "RGB"), ((60, 50), "JPEG", "RGB"),
    ]  # fmt: skip
    assert [value for tag, name, value in read.attributes if (tag, name) == ("img", "width")] == ["320", "60", "60"]


def test_transparency_is_shown_on_white(folder: Path, images: Path) -> None:
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(images / "clear.png")
    (picture,) = pictures(shown(folder, "clear.png"))
    assert min(Image.open(io.BytesIO(picture)).getpixel((10, 10))) > 250


def test_only_photos_of_the_dataset_are_taken_in(folder: Path, images: Path, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "private.png")
    Image.new("RGB", (9, 9)).save(images / "good.png")
    (images / "link.png").symlink_to(tmp_path / "private.png")
    (images / "inner.png").symlink_to(images / "good.png")
    (images / "folder.png").mkdir()
    os.mkfifo(images / "pipe.png")
    (images / "text.jpg").write_text("no photo")
    (images / "cut.png").write_bytes((images / "good.png").read_bytes()[:40])
    (images / "empty.png").write_bytes(b"")
    names = ("../../private.png", str(tmp_path / "private.png"), "link.png", "folder.png", "pipe.png", "text.jpg",
             "cut.png", "empty.png", "missing.png", "", ".", "..", "a\0b", "x" * 5000)  # fmt: skip
    read = shown(folder, *names)
    assert pictures(read) == []
    assert read.text.count("no picture") == len(names)
    assert len(pictures(shown(folder, "good.png", "inner.png"))) == 2


def test_samples_are_taken_from_the_output_folder_alone(tmp_path: Path) -> None:
    output = tmp_path / "output"
    (output / "sample").mkdir(parents=True)
    for path in (tmp_path / "private.png", output / "sample/a.png"):
        Image.new("RGB", (9, 9)).save(path)
    paths = [str(output / "sample/a.png"), "sample/a.png", str(tmp_path / "private.png"), "../private.png", "sample"]
    samples = tuple(Sample(path=path, step=1) for path in paths)
    read = page(TrainingRun(samples=samples, folders=Folders(output=str(output))))
    assert len(pictures(read)) == 2


def test_pictures_are_no_more_than_there_is_room_for(
    folder: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = Image.frombytes("RGB", (200, 200), random.Random(0).randbytes(120_000))
    for number in range(9):
        noise.save(images / f"{number}.png")
    names = [f"{number}.png" for number in range(9)]
    one = len(pictures(shown(folder, "0.png"))[0])
    monkeypatch.setattr(report, "MOST_PHOTO_BYTES", 5 * one)
    assert len(pictures(shown(folder, *names))) == 3
    monkeypatch.setattr(report, "MOST_PHOTO_BYTES", 2**30)
    monkeypatch.setattr(report, "MOST_PHOTOS", 2)
    read = shown(folder, *names)
    assert len(pictures(read)) == 2
    assert "7 photos more, by name" in read.text


def test_without_pillow_small_photos_are_taken_as_they_are(
    folder: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (30, 20)).save(images / "a.jpg")
    Image.new("RGB", (30, 20)).save(images / "b.png")
    Image.new("RGB", (30, 20)).save(images / "c.webp")
    Image.frombytes("RGB", (800, 800), random.Random(0).randbytes(1_920_000)).save(images / "large.png")
    (images / "page.jpg").write_text("<svg onload=alert(1)>")
    monkeypatch.setitem(sys.modules, "PIL", None)
    read = shown(folder, "a.jpg", "b.png", "c.webp", "large.png", "page.jpg")
    assert pictures(read) == [(images / name).read_bytes() for name in ("a.jpg", "b.png", "c.webp")]
    assert [(value or "").partition(";")[0] for value in read.values("src")] == [
        "data:image/jpeg", "data:image/png", "data:image/webp",
    ]  # fmt: skip
    assert "large.png" in read.text


# --- In a real browser


@pytest.fixture(scope="module")
def browser() -> Iterator[chromium.Page]:
    program = chromium.find()
    if program is None:
        pytest.skip("there is no Chromium (Debian: apt-get install chromium)")
    with chromium.page(program) as found:
        yield found


@pytest.fixture
def tab(browser: chromium.Page) -> chromium.Page:
    browser.console.clear()
    browser.requests.clear()
    return browser


KINDS = ["everything", "hostile", "nothing", "demo"]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of each kind of run."""
    place = tmp_path_factory.mktemp("reports")
    shutil.copytree(DEMO, place / "demo")
    shutil.copytree(runs.DEMO_PHOTOS, place / "demo/images")
    found = {
        "everything": everything(place / "everything"),
        "hostile": hostile(),
        "nothing": TrainingRun(),
        "demo": TrainingRun.load(place / "demo"),
    }
    return {kind: run.report(place / f"{kind}.html") for kind, run in found.items()}


def look_at(tab: chromium.Page, place: Path, width: int = 1280, dark: bool = False) -> None:
    tab.screen(width, dark=dark, mobile=width < 500)
    tab.open(place)


@pytest.mark.parametrize("kind", KINDS)
def test_the_browser_has_no_complaint_and_asks_for_nothing(
    tab: chromium.Page, reports: dict[str, Path], kind: str
) -> None:
    look_at(tab, reports[kind])
    tab.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert tab.console == []
    assert {url for url in tab.requests if not url.startswith("data:image/")} == {reports[kind].as_uri()}
    assert tab.value("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


@pytest.mark.parametrize("width", [320, 360, 1280])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_no_wider_than_a_phone(tab: chromium.Page, reports: dict[str, Path], kind: str, width: int) -> None:
    look_at(tab, reports[kind], width)
    tab.value("for (const one of document.querySelectorAll('details')) one.open = true")
    assert tab.value("document.documentElement.scrollWidth") <= width
    wide = "[...document.querySelectorAll('main *')].filter(one => one.getBoundingClientRect().right > innerWidth + 6)"
    assert tab.value(f"{wide}.map(one => one.outerHTML.slice(0, 200))") == []


CONTRASTS = """
(() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const over = (above, below) => {
    const [r, g, b, a = 1] = above;
    return [r, g, b].map((part, at) => part * a + below[at] * (1 - a));
  };
  const light = colour => {
    const [r, g, b] = colour.map(part => part / 255)
      .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = one => {
    const chain = [];
    for (let at = one; at; at = at.parentElement) chain.push(numbers(getComputedStyle(at).backgroundColor));
    return chain.reverse().reduce((below, above) => over(above, below), [255, 255, 255]);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const one = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !one.getClientRects().length || one.closest("script")) continue;
    const style = getComputedStyle(one);
    const below = ground(one.closest("svg")?.parentElement ?? one);
    const above = over(numbers(one.closest("svg") ? style.fill : style.color), below);
    const [high, low] = [light(above), light(below)].sort((a, b) => b - a);
    found.push([Math.round(100 * (high + 0.05) / (low + 0.05)) / 100, walker.currentNode.textContent.slice(0, 40)]);
  }
  return found.sort((a, b) => a[0] - b[0]);
})()
"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("kind", ["everything", "hostile"])
def test_it_can_be_read_by_day_and_by_night(
    tab: chromium.Page, reports: dict[str, Path], kind: str, dark: bool
) -> None:
    look_at(tab, reports[kind], dark=dark)
    ground = tab.value("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", ground)[:3]))
    assert brightness < 100 if dark else brightness > 700
    contrasts = tab.value(CONTRASTS)
    assert len(contrasts) > 100
    assert contrasts[0][0] >= 4.5, contrasts[:5]


def test_a_chart_tells_its_values_where_it_is_pointed_at(tab: chromium.Page, reports: dict[str, Path]) -> None:
    look_at(tab, reports["everything"])
    tab.value("document.querySelector('.plot').scrollIntoView({block: 'center'})")
    box = tab.value(
        "(box => [box.x, box.y, box.width, box.height])(document.querySelector('.plot').getBoundingClientRect())"
    )
    readout = "document.querySelector('#loss').parentElement.querySelector('.readout').textContent"
    assert tab.value(readout) == ""
    height = tab.value("document.body.scrollHeight")
    tab.point(box[0] + box[2] * 0.32, box[1] + box[3] / 2)
    told = re.fullmatch(r"step (\d+) · loss 0\.\d{3} · smoothed 0\.\d{3}", tab.value(readout))
    assert told
    assert int(told[1]) == pytest.approx(640, abs=8)
    # Nothing moves for it.
    assert tab.value("document.body.scrollHeight") == height
    assert tab.value("getComputedStyle(document.querySelector('.cursor')).visibility") == "visible"
    tab.point(5, 5)
    assert tab.value(readout) == ""
    assert tab.value("getComputedStyle(document.querySelector('.cursor')).visibility") == "hidden"


def test_a_chart_is_read_with_the_keys(tab: chromium.Page, reports: dict[str, Path]) -> None:
    look_at(tab, reports["everything"])
    readout = "document.querySelector('#loss').parentElement.querySelector('.readout').textContent"
    tab.key("Tab")
    assert tab.value("document.activeElement.className") == "plot"
    told = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "ArrowRight", "Home"):
        tab.key(key)
        told.append(tab.value(readout).partition(" · ")[0])
    assert [told[0], *told[2:]] == ["step 1", "step 1", "step 2,000", "step 2,000", "step 1"]
    assert told[1] in ("step 2", "step 3")
    assert tab.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.key("Tab")
    assert tab.value(readout) == ""
    assert tab.value("document.activeElement.localName") == "summary"


def test_a_screen_reader_is_told_what_is_to_be_seen(tab: chromium.Page, reports: dict[str, Path]) -> None:
    look_at(tab, reports["everything"])
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    found = [
        (node["role"]["value"], node["name"]["value"], node.get("description", {}).get("value", ""))
        for node in nodes
        if not node["ignored"] and "role" in node and "name" in node
    ]
    charted = {name for role, name, _ in found if role in ("image", "img", "graphics-document")}
    assert any(name.startswith("Loss by training step") for name in charted)
    assert any(name.startswith("GPU memory over time") for name in charted)
    assert all(name for role, name, _ in found if role in ("image", "heading", "region", "img"))
    regions = [name for role, name, _ in found if role == "region"]
    assert {"Loss", "Time", "GPU", "Samples", "Photos", "Files", "Settings"} <= set(regions)


def test_it_prints_with_what_is_folded(tab: chromium.Page, reports: dict[str, Path]) -> None:
    look_at(tab, reports["everything"], dark=True)
    assert tab.value("document.querySelectorAll('details[open]').length") == 0
    tab.value(
        "opened = [];"
        "addEventListener('beforeprint', () => opened.push(document.querySelectorAll('details[open]').length))"
    )
    assert tab.printed().startswith(b"%PDF")
    assert tab.value("opened") == [2]
    assert tab.value("document.querySelectorAll('details[open]').length") == 0
    tab.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    tab.call("Emulation.setEmulatedMedia", media="")


def test_screenshots_can_be_looked_at(tab: chromium.Page, reports: dict[str, Path], tmp_path: Path) -> None:
    """`SCREENSHOTS=folder pytest tests/test_report.py -k looked_at` leaves them there, of every kind of run."""
    wanted = os.environ.get("SCREENSHOTS")
    place = Path(wanted or tmp_path)
    for kind in KINDS if wanted else ["demo"]:
        for name, width, dark in (("desktop-light", 1280, False), ("phone-dark", 360, True)):
            look_at(tab, reports[kind], width, dark)
            tab.picture(place / f"{kind}-{name}.png")
            with Image.open(place / f"{kind}-{name}.png") as picture:
                assert picture.width in range(width - 20, width + 1)
                ground = sum(picture.convert("RGB").getpixel((2, 2)))
                assert ground < 100 if dark else ground > 700
                # Something is drawn.
                assert len(picture.convert("RGB").resize((100, 100)).getcolors(2**24) or []) > 20
