"""Photos that are here already: a zip, a file:// URL, a folder; and the dataset's TOML for who gives none."""

import os
import random
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zipfile import BadZipFile

import pytest
import toml
from harness.library import OURS, Bench, Workspace
from harness.photos import Entry, jpeg, make_zip, png
from harness.scenario import Work
from harness.tuner import TRAIN
from musubitraining import Cancelled, DatasetLimits, DatasetOptions, MusubiTraining, dataset_toml

Log = list[tuple[str, str]]

OLD = {"old.jpg", "old.txt"}

PHOTOS = {
    "a.jpg": jpeg(comment="1"),
    "in/a.jpeg": jpeg(comment="2") + random.Random(1).randbytes(300_000),
    "in/a.txt": b"own",
    "in/deep/er/\u65e5 'q\".JPG": jpeg(comment="3"),
    "in/cut.jpg": jpeg()[:-2],
    ".hidden.jpg": jpeg(),
    "__MACOSX/._a.jpg": b"\0",
    "b.png": png(8, 8),
    "readme.md": b"",
}


def trainer(workspace: Workspace, kind: type[MusubiTraining] = MusubiTraining, **more: Any) -> Any:
    return kind(**Work(str(workspace.root), workspace.url, workspace.toml, {}).arguments(), **more)


def prepare(workspace: Workspace, photos: Any, **options: Any) -> dict[str, bytes]:
    given = DatasetOptions(**options) if options else None
    trainer(workspace, dataset_options=given)._prepare_dataset(workspace.toml, photos, "sks")
    return dataset(workspace)


def dataset(workspace: Workspace) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in workspace.images.iterdir()}


def folder_of(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def state(root: Path) -> dict[str, Any]:
    """Everything about a folder that a reader could have changed."""

    def about(path: Path) -> Any:
        found = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        return found.st_mode, found.st_ino, found.st_mtime_ns, found.st_nlink, content

    return {str(path.relative_to(root)): about(path) for path in [root, *root.rglob("*")]}


def said(log: Log, part: str, level: str = "INFO") -> list[str]:
    return [line for name, line in log if name == level and part in line]


# ---- one dataset, whatever it comes from ------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"captions": "files", "image_extensions": "all"}], ids=["usual", "all"])
def test_every_source_makes_the_same_dataset(
    workspace: Workspace, tmp_path: Path, log: Log, options: dict[str, Any]
) -> None:
    here = tmp_path / "the user's 100% #1 ?é"
    folder = folder_of(here / "photos", PHOTOS)
    zipped = here / "photos.zip"
    zipped.write_bytes(make_zip(*PHOTOS.items()))
    workspace.serve(zipped.read_bytes())
    expected = prepare(workspace, workspace.url, **options)
    assert "a_2.txt" in expected
    said_of_url = [line for line in log if "zip" not in line[1] or "left out" in line[1]]
    before = state(here)
    workspace.server.requests.clear()
    for given in (
        str(zipped),
        zipped,
        f"file://{quote(str(zipped))}",
        f"FILE://localhost{quote(str(zipped))}",
        os.path.relpath(zipped),
        str(folder),
        folder,
        f"{folder}/",
        f"file://{quote(str(folder))}",
    ):
        log.clear()
        assert prepare(workspace, given, **options) == expected, given
        assert len(said(log, "[dataset] reading photos from ")) == 1
        assert [line for line in log if "reading photos" not in line[1]] == said_of_url
        assert state(here) == before, given
    assert workspace.server.requests == []
    assert sorted(path.name for path in workspace.training.iterdir()) == [
        "cache",
        "dataset.toml",
        "images",
        "photos.json",
    ]


def test_a_folder_is_trained_on(workspace: Workspace, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "photos", PHOTOS)
    before = state(folder)
    assert trainer(workspace).train(None, folder, "sks") == f"{workspace.output}/output_lora_model_comfyui.safetensors"
    assert len(dataset(workspace)) == 6
    assert state(folder) == before
    assert workspace.server.requests == []


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_in_any_method(workspace: Workspace, tmp_path: Path, method: int) -> None:
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in PHOTOS.items():
            archive.writestr(name, content)
    before = path.read_bytes()
    made = prepare(workspace, path, captions="files")
    assert {made["a.jpg"], made["a_2.jpeg"]} == {PHOTOS["a.jpg"], PHOTOS["in/a.jpeg"]}
    assert made["a_2.txt"] == b"sks, own"
    assert path.read_bytes() == before


def test_read_only_sources_and_links_to_them(workspace: Workspace, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "photos", {"a.jpg": jpeg()})
    zipped = tmp_path / "photos.zip"
    zipped.write_bytes(make_zip("a.jpg"))
    zipped.chmod(0o400)
    folder.chmod(0o500)
    for target in (folder, zipped):
        link = tmp_path / f"link to {target.name}"
        link.symlink_to(target)
        assert set(prepare(workspace, link)) == {"a.jpg", "a.txt"}
        assert link.is_symlink()
    folder.chmod(0o700)


def prepare_and_measure(work: Work) -> float:
    import re

    def peak_mb():
        with open("/proc/self/status") as status:
            return int(re.search(r"VmHWM:\s+(\d+)", status.read()).group(1)) / 1024

    trainer = work.trainer()
    before = peak_mb()
    trainer._prepare_dataset(work.toml, work.url, "word")
    return peak_mb() - before


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory of a process is read from /proc")
def test_memory_is_flat(bench: Bench, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "photos", {f"{number}.jpg": jpeg() for number in range(10)})
    for photo in folder.iterdir():
        os.truncate(photo, 10 << 20)
    zipped = tmp_path / "photos.zip"
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED, compresslevel=0) as archive:
        for photo in folder.iterdir():
            archive.write(photo, photo.name)
    for source in (folder, zipped):
        workspace = bench.workspace()
        workspace.url = str(source)
        assert workspace.run(OURS, prepare_and_measure).ok().result < 16


# ---- what is no source ------------------------------------------------------------------------------------------


def test_text_that_is_neither_address_nor_path_says_both(workspace: Workspace, tmp_path: Path) -> None:
    workspace.old_dataset()
    for text in ("photos.zip", f"{tmp_path}/nowhere", f"file://{tmp_path}/nowhere", f"{tmp_path}/a\0b", "x" * 5000):
        with pytest.raises(ValueError, match=r"http://.*https://.*path or file://.*nothing is at"):
            prepare(workspace, text)
    for text in (f"file://example.com{tmp_path}", "file://", "file:///%00"):
        with pytest.raises(ValueError, match="images_zip_url"):
            prepare(workspace, text)
    with pytest.raises(FileNotFoundError, match=rf"No zip and no folder of photos is here: {tmp_path}/nowhere"):
        prepare(workspace, tmp_path / "nowhere")
    assert set(dataset(workspace)) == OLD


class Fspath:
    def __init__(self, path: Any) -> None:
        self.path = path

    def __fspath__(self) -> Any:
        return self.path


def test_paths_of_other_types(workspace: Workspace, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "photos", {"a.jpg": jpeg()})
    assert set(prepare(workspace, Fspath(str(folder)))) == {"a.jpg", "a.txt"}
    for given in (Fspath(bytes(folder)), Fspath(5), bytes(folder), 5, None):
        with pytest.raises(TypeError):
            prepare(workspace, given)


def test_pipes_sockets_and_devices_are_never_opened(workspace: Workspace, tmp_path: Path, log: Log) -> None:
    pipe = tmp_path / "photos.zip"
    os.mkfifo(pipe)
    for given in (pipe, str(pipe), f"file://{pipe}", "/dev/zero", Path("/dev/null")):
        with pytest.raises(RuntimeError, match="is a pipe, a socket or a device"):
            prepare(workspace, given)
    folder = folder_of(tmp_path / "photos", {"a.jpg": jpeg()})
    os.mkfifo(folder / "b.jpg")
    os.mkfifo(folder / "b.txt")
    os.mkfifo(folder / "a.txt")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(folder / "c.jpg"))
        made = prepare(workspace, folder, captions="files")
    assert made == {"a.jpg": jpeg(), "a.txt": b"sks"}
    for name in ("b.jpg", "c.jpg"):
        assert said(log, f"left out {name}: it is not a regular file", "WARNING")


def test_links_in_a_folder_are_named_and_not_followed(workspace: Workspace, tmp_path: Path, log: Log) -> None:
    folder = folder_of(tmp_path / "photos", {"a.jpg": jpeg(), "in/b.jpg": jpeg(comment="b")})
    elsewhere = folder_of(tmp_path / "elsewhere", {"c.jpg": jpeg(comment="c"), "secret": b"s3cr3t"})
    links = {
        "c.jpg": elsewhere / "c.jpg",
        "a.txt": elsewhere / "secret",
        "more": elsewhere,
        "d.jpg": elsewhere,
        "in/loop": folder,
        "gone.jpg": elsewhere / "gone",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    made = prepare(workspace, folder, captions="files")
    assert set(made) == {"a.jpg", "a.txt", "b.jpg", "b.txt"}
    assert made["a.txt"] == b"sks"
    for name in ("c.jpg", "gone.jpg"):
        assert said(log, f"left out {name}: it is a symbolic link", "WARNING")
    for name in ("more", "d.jpg", "in/loop"):
        assert said(log, f"left out {name}: it is a link to a folder, and links are not followed", "WARNING")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_named(workspace: Workspace, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "photos", {"a.jpg": jpeg(), "in/b.jpg": jpeg()})
    for path in (folder / "a.jpg", folder / "in"):
        path.chmod(0)
        with pytest.raises(PermissionError) as raised:
            prepare(workspace, folder)
        assert str(raised.value.filename) == str(path)
        path.chmod(0o700)


NOT_ZIPS = [
    (b"", "an empty file"),
    (jpeg(), "a single JPEG photo where a zip was expected"),
    (make_zip("a.jpg")[:-30], "a zip that is cut short or damaged"),
    (b"Rar!\x1a\7\1\0", "a RAR archive"),
    (b"<!DOCTYPE html><html>", "a web page"),
]


@pytest.mark.parametrize(("content", "words"), NOT_ZIPS, ids=[words for _, words in NOT_ZIPS])
def test_a_file_that_is_no_zip(workspace: Workspace, tmp_path: Path, content: bytes, words: str) -> None:
    workspace.old_dataset()
    path = tmp_path / "photos.zip"
    path.write_bytes(content)
    with pytest.raises(BadZipFile, match=f"File is not a zip file: {path} is {words}"):
        prepare(workspace, path)
    assert set(dataset(workspace)) == OLD
    assert path.read_bytes() == content


def test_a_zip_that_lies_is_refused_where_it_lies(workspace: Workspace, tmp_path: Path) -> None:
    workspace.old_dataset()
    path = tmp_path / "photos.zip"
    damaged = bytearray(make_zip(Entry("a.jpg", jpeg(), stored=True)))
    damaged[60] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(BadZipFile, match=r"a\.jpg in the zip is damaged"):
        prepare(workspace, path)
    assert set(dataset(workspace)) == OLD
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "The folder holds no files: put .jpg and .jpeg photos into it"),
        ({"a.png": png(1, 1)}, "No file in the folder is taken for a photo"),
    ],
)
def test_a_folder_without_photos(workspace: Workspace, tmp_path: Path, files: dict[str, bytes], words: str) -> None:
    workspace.old_dataset()
    folder = folder_of(tmp_path / "photos", files)
    folder.mkdir(exist_ok=True)
    with pytest.raises(ValueError, match="Dataset is empty") as raised:
        prepare(workspace, folder)
    assert words in str(raised.value)
    assert set(dataset(workspace)) == OLD


@pytest.mark.parametrize(
    ("limits", "kind", "words"),
    [
        ({"zip_bytes": 100}, "zip", r"photos.zip has \d+ bytes, 100 are allowed.*zip_bytes"),
        ({"extracted_bytes": 100}, "zip", r"take \d+ bytes, 100 are allowed.*extracted_bytes"),
        ({"extracted_bytes": 100}, "folder", r"take \d+ bytes, 100 are allowed.*extracted_bytes"),
        ({"entries": 1}, "zip", "more entries than the 1 that are allowed.*entries"),
        ({"entries": 1}, "folder", "more files and folders in it than the 1 that are allowed.*entries"),
    ],
)
def test_the_limits_are_the_same(
    workspace: Workspace, tmp_path: Path, limits: dict[str, int], kind: str, words: str
) -> None:
    workspace.old_dataset()
    source = tmp_path / "photos.zip"
    source.write_bytes(make_zip("a.jpg", "b.jpg"))
    if kind == "folder":
        source = folder_of(tmp_path / "photos", {"a.jpg": jpeg(), "b.jpg": jpeg()})
    one = trainer(workspace)
    one.dataset_limits = DatasetLimits(**limits)
    with pytest.raises((BadZipFile, RuntimeError), match=words):
        one._prepare_dataset(workspace.toml, source, "sks")
    assert set(dataset(workspace)) == OLD


CHANGE = """
import itertools, os, sys
for moment in itertools.count():
    os.utime(sys.argv[1], ns=(moment, moment))
    if moment == 0:
        print(flush=True)
"""


def test_a_zip_that_changes_while_it_is_read_is_named(workspace: Workspace, tmp_path: Path) -> None:
    """Its many files take far longer than two changes."""
    workspace.old_dataset()
    path = tmp_path / "photos.zip"
    path.write_bytes(make_zip(*(f"{number}.jpg" for number in range(1500))))
    with subprocess.Popen([sys.executable, "-c", CHANGE, str(path)], stdout=subprocess.PIPE) as changing:
        assert changing.stdout is not None
        changing.stdout.readline()
        try:
            with pytest.raises(RuntimeError, match=f"{path} changed while it was read"):
                prepare(workspace, path)
        finally:
            changing.kill()
    assert set(dataset(workspace)) == OLD


# ---- in the way -------------------------------------------------------------------------------------------------


def test_a_source_that_would_be_replaced_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    workspace.old_dataset()
    training = workspace.training
    (training / "images.zip").write_bytes(make_zip("a.jpg"))
    folder_of(training / "cache", {"in/a.jpg": jpeg()})
    (tmp_path / "link").symlink_to(training)
    before = state(training)
    for given, words in [
        (training, "holds the training folder"),
        (workspace.root, "holds the training folder"),
        ("/", "holds the training folder"),
        (tmp_path / "link", "holds the training folder"),
        (training / "images", "is replaced with the dataset"),
        (training / "cache/in", "is replaced with the dataset"),
        (training / "images.zip", "is replaced with the dataset"),
        (f"file://{training}/x/../images.zip", "is replaced with the dataset"),
        (tmp_path / "link/images.zip", "is replaced with the dataset"),
    ]:
        with pytest.raises(ValueError, match=words):
            prepare(workspace, given)
        assert state(training) == before, given


def test_a_source_beside_the_dataset_stays(workspace: Workspace) -> None:
    folder = folder_of(workspace.training / "photos", {"a.jpg": jpeg()})
    zipped = workspace.training / "images-of-mine.zip"
    zipped.write_bytes(make_zip("b.jpg"))
    for given, name in [(folder, "a"), (zipped, "b"), (folder, "a")]:
        assert set(prepare(workspace, given)) == {f"{name}.jpg", f"{name}.txt"}
    assert (folder / "a.jpg").read_bytes() == jpeg()


def test_cancelling_leaves_the_old_dataset(
    workspace: Workspace, tmp_path: Path, reacts: Callable[[str, Callable[[], object]], None]
) -> None:
    workspace.old_dataset()
    folder = folder_of(tmp_path / "photos", {f"{number}.jpg": jpeg() for number in range(300)})
    one = trainer(workspace)
    reacts("reading photos from", one.cancel)
    with pytest.raises(Cancelled):
        one._prepare_dataset(workspace.toml, folder, "sks")
    assert set(dataset(workspace)) == OLD


# ---- the dataset's TOML -----------------------------------------------------------------------------------------


def test_none_stands_for_the_usual_toml(workspace: Workspace, tmp_path: Path) -> None:
    given: list[Any] = []

    class Mine(MusubiTraining):
        def _prepare_dataset(self, dataset_toml_content: str, images_zip_url: str, trigger_word: str) -> str:
            given.append(dataset_toml_content)
            return super()._prepare_dataset(dataset_toml_content, images_zip_url, trigger_word)

    trainer(workspace, Mine).train(None, workspace.url, "sks")
    usual = dataset_toml(workspace.training)
    assert given == [usual]
    assert (workspace.training / "dataset.toml").read_text() == usual
    assert len([call for call in workspace.tuner.calls() if call["step"] == TRAIN]) == 1
    (workspace.training / "dataset.toml").unlink()
    trainer(workspace)._prepare_dataset(None, workspace.url, "sks")
    assert (workspace.training / "dataset.toml").read_text() == usual


def test_the_usual_toml_says_what_the_originals_example_says() -> None:
    assert toml.loads(dataset_toml("/app/training")) == {
        "general": {
            "resolution": [1024, 1024],
            "caption_extension": ".txt",
            "batch_size": 1,
            "num_repeats": 1,
            "enable_bucket": True,
            "bucket_no_upscale": False,
        },
        "datasets": [{"image_directory": "/app/training/images", "cache_directory": "/app/training/cache"}],
    }


def test_musubi_tuners_old_parser_reads_any_path() -> None:
    chance = random.Random(7)
    parts = [*"ab \"'\\#=,.{}()]nutx0é日😀~$%&", "\\u", "\\x", "\\\\", '\\"', '"""', "'''", "\u2028", "\xa0", "\u202e"]
    for _ in range(3000):
        folder = "/" + "".join(chance.choices(parts, k=chance.randrange(1, 12)))
        said = toml.loads(dataset_toml(folder))["datasets"][0]
        assert said == {"image_directory": f"{folder}/images", "cache_directory": f"{folder}/cache"}


def test_the_values_are_those_that_are_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    text = dataset_toml(
        Path("here"),
        resolution=(832, 1216),
        batch_size=2,
        num_repeats=3,
        enable_bucket=True,
        bucket_no_upscale=True,
        caption_extension=".caption",
    )
    said = toml.loads(text)
    assert said["general"] == {
        "resolution": [832, 1216],
        "caption_extension": ".caption",
        "batch_size": 2,
        "num_repeats": 3,
        "enable_bucket": True,
        "bucket_no_upscale": True,
    }
    assert said["datasets"][0]["image_directory"] == f"{tmp_path}/here/images"
    assert toml.loads(dataset_toml("/t", resolution=512))["general"]["resolution"] == [512, 512]
    assert toml.loads(dataset_toml("/t", resolution=[512, 768]))["general"]["resolution"] == [512, 768]


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        ({"resolution": 31}, ValueError, "resolution=31: expected 32 to 8192"),
        ({"resolution": (1024, 9000)}, ValueError, "resolution=9000: expected 32 to 8192"),
        ({"resolution": (1, 2, 3)}, TypeError, "resolution: expected an int"),
        ({"resolution": "1024"}, TypeError, "resolution: expected an int"),
        ({"resolution": "ab"}, TypeError, "resolution: expected an int"),
        ({"resolution": (1024.0, 1024)}, TypeError, "resolution: expected an int"),
        ({"resolution": True}, TypeError, "resolution: expected an int"),
        ({"resolution": 10**30}, ValueError, "expected 32 to 8192"),
        ({"resolution": 1000, "enable_bucket": False}, ValueError, "multiples of 16"),
        ({"bucket_no_upscale": True, "enable_bucket": False}, ValueError, "bucket_no_upscale=True with enable_bucket"),
        ({"batch_size": 0}, ValueError, "batch_size=0: expected 1 to 1024"),
        ({"batch_size": -(10**30)}, ValueError, "batch_size"),
        ({"num_repeats": 0}, ValueError, "num_repeats=0: expected 1 to 100000"),
        ({"num_repeats": 1.5}, TypeError, "num_repeats: expected an int"),
        ({"enable_bucket": 1}, TypeError, "enable_bucket"),
        ({"caption_extension": "txt"}, ValueError, "with its dot"),
        ({"caption_extension": None}, TypeError, "caption_extension"),
        ({"training_folder": "/a[b"}, ValueError, "glob"),
        ({"training_folder": "/a*"}, ValueError, "glob"),
        ({"training_folder": "/a?"}, ValueError, "glob"),
        ({"training_folder": "/a\nb"}, ValueError, "control characters"),
        ({"training_folder": os.fsdecode(b"/\xff")}, ValueError, "no UTF-8"),
        ({"training_folder": 5}, TypeError, "int"),
    ],
)
def test_what_cannot_train_is_refused(values: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        dataset_toml(**{"training_folder": "/t"} | values)
