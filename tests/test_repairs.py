"""Every row of "Repaired on purpose": what must hold, does with ours and does not with the original.

The row of GPU names is in test_gpu.py.
"""

import json
import os
import signal
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness import server
from harness.library import OURS, Bench, Library, Run, Running, Workspace
from harness.photos import HEIC, HTML, Entry, jpeg, make_zip, photo_zip
from harness.scenario import Work
from harness.tuner import (
    CONVERT,
    LATENTS,
    TEXT,
    TRAIN,
    end,
    install_accelerate_program,
    is_running,
    wait_until,
)

# ---- scenarios --------------------------------------------------------------------------------------------------


def prepare(work: Work):
    return work.trainer()._prepare_dataset(work.toml, work.url, "word")


def train(work: Work):
    return work.train(**work.extra)


# ---- arrangements -----------------------------------------------------------------------------------------------


def accelerate_on_path(workspace: Workspace) -> None:
    """For rows about something else: the original finds no other way that works."""
    install_accelerate_program(workspace.root / "bin", workspace.python, workspace.root / "accelerate-of-path-ran")
    workspace.env["PATH"] = f"{workspace.root}/bin:/usr/bin:/bin"


def zipped(*entries: Any) -> Callable[[Workspace], None]:
    return lambda workspace: workspace.serve(make_zip(*entries))


def served(*replies: server.Reply) -> Callable[[Workspace], None]:
    def arrange(workspace: Workspace) -> None:
        workspace.url = workspace.server.on("/photos.zip", *replies)

    return arrange


def training_with(*arrangements: Callable[[Workspace], Any], **extra: Any) -> Callable[[Workspace], None]:
    def arrange(workspace: Workspace) -> None:
        accelerate_on_path(workspace)
        workspace.extra |= extra
        for more in arrangements:
            more(workspace)

    return arrange


def does(script: str, *actions: list[Any]) -> Callable[[Workspace], None]:
    return lambda workspace: workspace.tuner.does(script, *actions)


def writes(name: str, data: bytes) -> Callable[[Workspace], None]:
    def arrange(workspace: Workspace) -> None:
        path = workspace.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return arrange


def over_an_old_dataset(arrange: Callable[[Workspace], Any]) -> Callable[[Workspace], None]:
    return training_with(lambda workspace: workspace.old_dataset(), arrange)


def header(tensors: dict[str, tuple[str, list[int], int]], metadata: dict[str, str] | None = None) -> bytes:
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end_of_last = 0
    for name, (dtype, shape, size) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end_of_last, end_of_last + size]}
        end_of_last += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def tensors(data: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    length = struct.unpack("<Q", data[:8])[0]
    body = data[8 + length :]
    entries = json.loads(data[8 : 8 + length])
    entries.pop("__metadata__", None)
    return {
        name: (entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])]) for name, entry in entries.items()
    }


CUT_WEIGHTS = header({"a.weight": ("F32", [1024], 4096)}) + b"\0" * 100
GIT_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 8044982048\n"

# ---- what must hold ---------------------------------------------------------------------------------------------


def images(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.workspace.images.iterdir() if path.suffix != ".txt"}


def captions(run: Run) -> dict[str, str]:
    return {path.name: path.read_text() for path in run.workspace.images.iterdir() if path.suffix == ".txt"}


def every_image_has_its_own_caption(run: Run, *names: str) -> None:
    run.ok()
    assert set(images(run)) == set(names)
    assert captions(run) == {os.path.splitext(name)[0] + ".txt": "word" for name in names}


def has_images(*names: str) -> Callable[[Run], None]:
    return lambda run: every_image_has_its_own_caption(run, *names)


def upper_case_photo_is_whole(run: Run) -> None:
    every_image_has_its_own_caption(run, "IMG.JPG", "B.JPEG")
    assert images(run)["IMG.JPG"] == jpeg(comment="IMG.JPG")


def every_caption_is_of_one_photo(run: Run) -> None:
    run.ok()
    assert len(images(run)) == len(captions(run)) == 3
    assert len({name.lower() for name in captions(run)}) == 3


def every_photo_has_a_stem_of_its_own(run: Run) -> None:
    run.ok()
    stems = [os.path.splitext(name)[0].lower() for name in images(run)]
    assert len(stems) == 5
    assert len(set(stems)) == 5
    assert set(captions(run).values()) == {"word"}
    assert len(captions(run)) == 5
    assert {comment for data in images(run).values() for comment in COMMENTS if comment.encode() in data} == COMMENTS
    renamed = set(images(run)) - {"a.jpg", "a.jpeg", "A.JPG", "b.jpg"}
    assert len(renamed) == 3
    assert all(run.logged(name) for name in renamed)


COMMENTS = {"one", "two", "three", "four", "five"}
TWINS = (
    ("a.jpg", jpeg(comment="one")),
    ("a.jpeg", jpeg(comment="two")),
    ("A.JPG", jpeg(comment="three")),
    ("b.jpg", jpeg(comment="four")),
    ("more/b.jpg", jpeg(comment="five")),
)


def old_dataset_is_whole(run: Run) -> None:
    assert run.error is not None
    for name, data in {"images/old.jpg": b"old photo", "images/old.txt": b"old"}.items():
        assert (run.workspace.training / name).read_bytes() == data
    assert (run.workspace.training / "cache/old_zi.safetensors").read_bytes() == b"latents"


def nothing_was_done(run: Run) -> None:
    old_dataset_is_whole(run)
    assert run.requests == []
    assert run.calls == []


def resumed(run: Run) -> None:
    every_image_has_its_own_caption(run, "a.jpg", "b.jpeg", "c.jpg")
    assert [headers.get("range") for headers in run.headers] == [None, "bytes=200-"]


def came_at_last(run: Run) -> None:
    every_image_has_its_own_caption(run, "a.jpg", "b.jpeg", "c.jpg")
    assert len(run.requests) == 3


def launched_by_the_hosts_python(run: Run) -> None:
    run.ok()
    assert not (run.workspace.root / "accelerate-of-path-ran").exists()
    (command,) = run.logged("[train] cmd=")
    expected = "[train] cmd=<python> -m accelerate.commands.launch --num_cpu_threads_per_process 1 "
    assert command.startswith(expected)


def works_without_accelerate_on_path(run: Run) -> None:
    run.ok()
    assert run.argv(TRAIN)


def is_not_imported_here(run: Run) -> None:
    run.ok()
    importers = run.workspace.accelerate_imports.read_text().split()
    assert importers
    assert str(run.result["pid"]) not in importers
    assert not run.result["accelerate in sys.modules"]


def converter_is_called_once(run: Run) -> None:
    run.ok()
    source, target = (
        "<work>/output/output_lora_model.safetensors",
        "<work>/output/output_lora_model_comfyui.safetensors",
    )
    assert run.argv(CONVERT) == [[f"<work>/musubi/{CONVERT}", source, target]]
    assert run.result == target
    assert run.logged("", "ERROR") == []


def suffix_is_replaced_at_the_end(run: Run) -> None:
    run.ok()
    assert run.result == "<work>/run.safetensors.d/a_comfyui.safetensors"


def missing_model(message: str) -> Callable[[Run], None]:
    def holds(run: Run) -> None:
        assert run.error is not None
        assert run.error["type"] == "FileNotFoundError"
        assert run.error["message"] == message

    return holds


def no_such_photo_without_a_warning(*kept: str) -> Callable[[Run], None]:
    def holds(run: Run) -> None:
        every_image_has_its_own_caption(run, *kept)
        assert all(run.workspace.images.joinpath(name).is_file() for name in kept)
        assert not any(path.is_symlink() for path in run.workspace.images.iterdir())

    return holds


def warned(holds: Callable[[Run], None], *names: str) -> Callable[[Run], None]:
    def also(run: Run) -> None:
        holds(run)
        assert all(run.logged(name, "WARNING") for name in names)

    return also


def refused_before_any_work(run: Run) -> None:
    assert run.error is not None
    assert run.error["type"] == "ValueError"
    assert "output_name" in run.error["message"]
    assert run.requests == []
    assert run.calls == []
    assert run.files == {"output/": "folder"} or run.files == {}


SECRETS = ("secret-query", "secret-password", "secret-user", "secret-fragment")


def nothing_secret_is_said(run: Run) -> None:
    said = [message for _, message in run.log] + [run.output, json.dumps(run.error)]
    assert [secret for secret in SECRETS if any(secret in text for text in said)] == []
    assert run.logged("[dataset] downloading images zip (url=")


def fails_as_requests_would(run: Run) -> None:
    assert run.error is not None
    assert run.error["type"] == "ConnectionError"
    assert run.error["is_request_exception"]
    assert "OSError" in run.error["bases"]
    assert "127.0.0.1" in run.error["message"]


def adapter_is_renamed(run: Run) -> None:
    run.ok()
    (argv,) = run.argv(TRAIN)
    passed = argv[argv.index("--base_weights") + 1].replace("<work>", str(run.workspace.root))
    assert Path(passed).parent == run.workspace.training
    found = tensors(Path(passed).read_bytes())
    given = tensors(ADAPTER)
    down = "lora_unet_layers_0_attention_to_q.lora_down.weight"
    up = "lora_unet_layers_0_attention_to_q.lora_up.weight"
    alpha = "lora_unet_layers_0_attention_to_q.alpha"
    assert set(found) == {down, up, alpha}
    assert found[down] == given["diffusion_model.layers.0.attention.to_q.lora_A.weight"]
    assert found[up] == given["diffusion_model.layers.0.attention.to_q.lora_B.weight"]
    dtype, _, data = found[alpha]
    number = struct.unpack({"I64": "<q", "F32": "<f"}[dtype], data)[0]
    assert number == 2  # its rank
    assert run.logged(Path(passed).name)
    original_file = run.workspace.models / "zimage_turbo_training_adapter_v2.safetensors"
    assert original_file.read_bytes() == ADAPTER


ADAPTER = header(
    {
        "diffusion_model.layers.0.attention.to_q.lora_A.weight": ("BF16", [2, 3], 12),
        "diffusion_model.layers.0.attention.to_q.lora_B.weight": ("BF16", [4, 2], 16),
    },
    {"format": "pt"},
) + bytes(range(28))


def adapter_of_a_clone(converts: bool) -> Callable[[Workspace], None]:
    def arrange(workspace: Workspace) -> None:
        package = workspace.root / "musubi/src/musubi_tuner"
        (package / "training").mkdir()
        conversion = 'def convert_weight_keys(weights):\n    return weights if "diffusion_model." else None\n'
        base = "class NetworkTrainer:\n    pass\n" + (conversion if converts else "")
        (package / "training/trainer_base.py").write_text(base)
        (package / "hv_train_network.py").write_text("from musubi_tuner.training import trainer_base\n")
        (package / "zimage_train_network.py").write_text("class ZImageNetworkTrainer:\n    pass\n")
        (workspace.models / "zimage_turbo_training_adapter_v2.safetensors").write_bytes(ADAPTER)

    return arrange


def decoded_with_replacement(run: Run) -> None:
    run.ok()
    assert run.logged("[precache:latents] caf\N{REPLACEMENT CHARACTER} \N{REPLACEMENT CHARACTER}")
    assert run.logged("[precache:latents] after")


def succeeded(run: Run) -> None:
    run.ok()


# ---- scenarios of one row ---------------------------------------------------------------------------------------


def train_and_tell_of_imports(work: Work):
    import os
    import sys

    work.train()
    return {"pid": os.getpid(), "accelerate in sys.modules": "accelerate" in sys.modules}


def convert_in_a_folder_with_the_suffix(work: Work):
    import os

    os.mkdir(work.path("run.safetensors.d"))
    with open(work.path("run.safetensors.d", "a.safetensors"), "w"):
        return work.trainer()._convert_for_comfyui(work.path("run.safetensors.d", "a.safetensors"))


def train_with_path_objects(work: Work):
    from pathlib import Path

    from musubitraining.main import Models

    folders = {name: Path(value) for name, value in work.arguments().items() if isinstance(value, str)}
    trainer = work.trainer(**folders, models_for_training=Models(ae=Path("ae.safetensors")))
    trainer._pre_cache(Path(trainer._prepare_dataset(work.toml, work.url, "word")))
    trainer._launch_training(Path(work.path("training", "dataset.toml")))
    trainer._convert_for_comfyui(Path(work.path("output", "output_lora_model.safetensors")))
    trainer._run_cmd("s", [Path("/bin/echo"), Path("x")], cwd=Path(work.root))
    return work.train(trainer)


def requirements(work: Work):
    from importlib.metadata import requires

    return requires("TechTrash_MusubiTraining") or []


def requirements_are_loose(run: Run) -> None:
    run.ok()
    needed = [line for line in run.result if "extra ==" not in line]
    assert [line for line in needed if "==" in line.partition(";")[0]] == []


# ---- the rows ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    name: str
    arrange: Callable[[Workspace], Any]
    holds: Callable[[Run], None]
    run: Callable[[Work], Any] = prepare


PAIRS_FROM_THE_ZIP = [
    entry
    for number in range(20)
    for entry in sorted([f"{number}.jpg", (f"{number}.txt", b"from the zip")], key=str, reverse=number % 2 == 0)
]

ROWS = [
    Row("IMG.JPG is not overwritten", zipped("IMG.JPG", "B.JPEG"), upper_case_photo_is_whole),
    Row(
        "captions in the zip do not take those of the photos with them",
        zipped(*PAIRS_FROM_THE_ZIP),
        has_images(*(f"{number}.jpg" for number in range(20))),
    ),
    Row(
        "a folder in the zip", zipped("photos/", "photos/a.jpg", "photos/deep/er/b.jpeg"), has_images("a.jpg", "b.jpeg")
    ),
    Row(
        "what macOS and Windows add",
        zipped(
            "a.jpg",
            "__MACOSX/",
            ("__MACOSX/._a.jpg", b"\0\5\x16\7"),
            ("__MACOSX/b.jpg", b"\0\5\x16\7"),
            (".DS_Store", b"\0\0\0\1Bud1"),
            ("sub/Thumbs.db", b"\xd0\xcf\x11\xe0"),
        ),
        has_images("a.jpg"),
    ),
    Row("stems are unique", zipped("a.jpg", "a.jpeg", "A.JPG"), every_caption_is_of_one_photo),
    Row("stems are unique across folders", zipped(*TWINS), every_photo_has_a_stem_of_its_own),
    Row("old dataset kept: HTTP 404", over_an_old_dataset(served(server.status(404))), old_dataset_is_whole, train),
    Row("old dataset kept: not a zip", over_an_old_dataset(served(server.content(HTML))), old_dataset_is_whole, train),
    Row("old dataset kept: no photo in it", over_an_old_dataset(zipped(("a.png", b"x"))), old_dataset_is_whole, train),
    *(
        Row(
            f"known first: {name} missing",
            over_an_old_dataset(lambda w, n=name: (w.root / n).unlink()),
            nothing_was_done,
            train,
        )
        for name in ("models/ae.safetensors", f"musubi/{TRAIN}", f"musubi/{CONVERT}", f"musubi/{TEXT}")
    ),
    *(
        Row(
            f"known first: {name}",
            over_an_old_dataset(writes("models/z_image_de_turbo_v1_bf16.safetensors", data)),
            nothing_was_done,
            train,
        )
        for name, data in {"cut weights": CUT_WEIGHTS, "a web page": HTML, "a git-lfs pointer": GIT_LFS_POINTER}.items()
    ),
    Row(
        "known first: no accelerate",
        over_an_old_dataset(lambda workspace: workspace.env.pop("PYTHONPATH")),
        nothing_was_done,
        train,
    ),
    Row(
        "a cut connection is resumed",
        served(server.cut(photo_zip(), 200, etag='"1"'), server.content(photo_zip(), etag='"1"')),
        resumed,
    ),
    Row(
        "a busy server is asked again",
        served(server.status(503, Retry_After="0"), server.status(502), server.content(photo_zip())),
        came_at_last,
    ),
    Row("the accelerate of PATH is not run", training_with(), launched_by_the_hosts_python, train),
    Row("no accelerate on PATH", lambda w: w.env.update(PATH="/usr/bin:/bin"), works_without_accelerate_on_path, train),
    Row("accelerate is not imported", training_with(), is_not_imported_here, train_and_tell_of_imports),
    Row(
        "the converter is called as it takes its arguments",
        training_with(lambda w: w.tuner.add_converter(by_flags=False)),
        converter_is_called_once,
        train,
    ),
    Row(
        ".safetensors in a folder's name",
        lambda w: None,
        suffix_is_replaced_at_the_end,
        convert_in_a_folder_with_the_suffix,
    ),
    Row(
        "training wrote nothing",
        training_with(does(TRAIN), convert_for_comfyui=False),
        missing_model("Trained model not found: <work>/output/output_lora_model.safetensors"),
        train,
    ),
    Row(
        "training wrote nothing, an old model is there",
        training_with(does(TRAIN), writes("output/output_lora_model.safetensors", b"old"), convert_for_comfyui=False),
        missing_model("Trained model not found: <work>/output/output_lora_model.safetensors"),
        train,
    ),
    Row(
        "the converter wrote nothing, an old model is there",
        training_with(does(CONVERT), writes("output/output_lora_model_comfyui.safetensors", b"old")),
        missing_model("ComfyUI model was not created: <work>/output/output_lora_model_comfyui.safetensors"),
        train,
    ),
    Row(".jpg within a name", zipped("my.jpg.photo.jpg", "x.jpeg.jpeg"), has_images("my.jpg.photo.jpg", "x.jpeg.jpeg")),
    Row(
        "a link is no photo",
        zipped("a.jpg", Entry("b.jpg", b"/etc/passwd", link=True)),
        warned(no_such_photo_without_a_warning("a.jpg"), "b.jpg"),
    ),
    Row(
        "a folder named x.jpg",
        zipped("a.jpg", "x.jpg/", "x.jpg/b.jpg"),
        no_such_photo_without_a_warning("a.jpg", "b.jpg"),
    ),
    Row(
        "._a.jpg is no photo",
        zipped("a.jpg", ("._a.jpg", b"\0\5\x16\7\0\2\0\0")),
        no_such_photo_without_a_warning("a.jpg"),
    ),
    Row(
        "what is plainly something else is no photo",
        zipped("a.jpg", ("b.jpg", HEIC), ("c.jpg", HTML)),
        warned(no_such_photo_without_a_warning("a.jpg"), "b.jpg", "c.jpg"),
    ),
    *(
        Row(f"output_name {name!r}", training_with(output_name=name), refused_before_any_work, train)
        for name in ("../x", "/no/such/x", "a/b", "..", "")
    ),
    Row(
        "a signed URL stays secret",
        lambda w: setattr(
            w, "url", w.url.replace("//", "//secret-user:secret-password@") + "?sig=secret-query#secret-fragment"
        ),
        lambda run: (nothing_secret_is_said(run), run.ok()),
    ),
    Row(
        "a signed URL stays secret in an error",
        lambda w: setattr(
            w,
            "url",
            w.server.on("/gone.zip", server.status(403)).replace("//", "//secret-user:secret-password@")
            + "?sig=secret-query",
        ),
        nothing_secret_is_said,
    ),
    Row(
        "a signed URL stays secret when nobody answers",
        lambda w: setattr(w, "url", "http://secret-user:secret-password@127.0.0.1:9/x.zip?sig=secret-query"),
        lambda run: (nothing_secret_is_said(run), fails_as_requests_would(run)),
    ),
    Row(
        "a signed URL stays secret when it is redirected",
        lambda w: setattr(w, "url", w.server.on("/r.zip", server.redirect("/gone.zip?sig=secret-query", 302))),
        nothing_secret_is_said,
    ),
    Row("an adapter in diffusers naming", training_with(adapter_of_a_clone(converts=False)), adapter_is_renamed, train),
    Row(
        "a byte that is not UTF-8",
        training_with(does(LATENTS, ["say", "caf\xe9 \xff\nafter\n"])),
        decoded_with_replacement,
        train,
    ),
    Row("path objects", training_with(), succeeded, train_with_path_objects),
    Row("loose requirements", lambda w: None, requirements_are_loose, requirements),
]


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_repair(bench: Bench, row: Row) -> None:
    theirs, ours = bench.both(row.run, row.arrange)
    row.holds(ours)
    with pytest.raises((AssertionError, OSError)):
        row.holds(theirs)


def test_unique_stems_do_not_depend_on_the_run(bench: Bench) -> None:
    found = []
    for _ in range(2):
        workspace = bench.workspace()
        workspace.serve(make_zip(*TWINS))
        found.append(images(workspace.run(OURS, prepare).ok()))
    assert found[0] == found[1]


def test_an_old_dataset_is_replaced_whole(bench: Bench) -> None:
    workspace = bench.workspace()
    workspace.old_dataset()
    run = workspace.run(OURS, prepare)
    every_image_has_its_own_caption(run, "a.jpg", "b.jpeg", "c.jpg")
    assert {name for name in run.files if "images" not in name} == {
        "training/cache/",
        "training/dataset.toml",
        "training/photos.json",
    }


@pytest.mark.parametrize("converts", [True, False])
def test_an_adapter_that_merges_as_it_is_is_passed_as_it_is(bench: Bench, converts: bool) -> None:
    """By a clone that converts it, or named as Musubi Tuner names it."""
    workspace = bench.workspace()
    adapter_of_a_clone(converts)(workspace)
    adapter = workspace.models / "zimage_turbo_training_adapter_v2.safetensors"
    if not converts:
        named = {"lora_unet_layers_0_attention_to_q.lora_down.weight": ("BF16", [2, 3], 12)}
        adapter.write_bytes(header(named) + bytes(12))
    run = workspace.run(OURS, train).ok()
    (argv,) = run.argv(TRAIN)
    assert argv[argv.index("--base_weights") + 1] == f"<work>/models/{adapter.name}"
    assert [name for name in run.files if name.endswith(".safetensors") and name.startswith("training")] == []


# ---- memory -----------------------------------------------------------------------------------------------------

ZIP_MB = 64


def prepare_and_measure(work: Work):
    import re

    def peak_kb():
        with open("/proc/self/status") as status:
            return int(re.search(r"VmHWM:\s+(\d+)", status.read()).group(1))

    trainer = work.trainer()
    before = peak_kb()
    trainer._prepare_dataset(work.toml, work.url, "word")
    return peak_kb() - before


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory of a process is read from /proc")
def test_memory_does_not_grow_with_the_zip(bench: Bench) -> None:
    photos = [Entry(f"{number}.jpg", jpeg() + bytes(1 << 20) * 8, stored=True) for number in range(ZIP_MB // 8)]
    data = make_zip(*photos)
    theirs, ours = bench.both(prepare_and_measure, lambda workspace: workspace.serve(data))
    assert ours.ok().result * 1024 < len(data) / 3
    assert theirs.ok().result * 1024 > len(data)


# ---- the process tree -------------------------------------------------------------------------------------------

STUBBORN = {"ignore": ["SIGINT", "SIGTERM", "SIGHUP"]}
FAMILIES: dict[str, list[list[Any]]] = {
    "a child": [["hang"]],
    "children that ignore signals": [["spawn", STUBBORN], ["spawn", STUBBORN], ["hang"]],
}
# Elsewhere only a step's process group can be found.
ON_LINUX_ALONE = pytest.mark.skipif(sys.platform != "linux", reason="needs the subreaper of Linux")
if sys.platform == "linux":
    FAMILIES["a grandchild in a session of its own"] = [
        ["spawn", {**STUBBORN, "setsid": True, "daemon": True}],
        ["hang"],
    ]


def pre_cache(work: Work):
    with open(work.path("any.toml"), "w"):
        work.trainer()._pre_cache(work.path("any.toml"))


def launch(work: Work):
    with open(work.path("any.toml"), "w"):
        work.trainer()._launch_training(work.path("any.toml"))


@dataclass
class Host:
    """A library in the middle of a step, and the processes that the step has started."""

    running: Running
    pids: list[int]

    @classmethod
    def start(cls, workspace: Workspace, library: Library, run: Any, count: int) -> "Host":
        running = workspace.start(library, run)
        try:
            return cls(running, workspace.tuner.wait_for_pids(count))
        except AssertionError:
            cls(running, workspace.tuner.pids()).end()
            raise

    def survivors(self, patience_s: float) -> list[int]:
        wait_until(lambda: not any(is_running(pid) for pid in self.pids), patience_s)
        return [pid for pid in self.pids if is_running(pid)]

    def end(self) -> None:
        self.running.process.kill()
        self.running.process.wait()
        end(self.pids)


# To the host alone unless "to all": a terminal signals the whole group in front of it.
ENDS: dict[str, list[tuple[Callable[[int, int], None], int]]] = {
    "SIGINT": [(os.kill, signal.SIGINT)],
    "SIGTERM": [(os.kill, signal.SIGTERM)],
    "SIGKILL": [(os.kill, signal.SIGKILL)],
    "SIGINT twice": [(os.kill, signal.SIGINT), (os.kill, signal.SIGINT)],
    "SIGINT, then SIGKILL": [(os.kill, signal.SIGINT), (os.kill, signal.SIGKILL)],
    "SIGINT to all": [(os.killpg, signal.SIGINT)],
    "SIGHUP to all": [(os.killpg, signal.SIGHUP)],
    "SIGKILL to all": [(os.killpg, signal.SIGKILL)],
}


def test_the_whole_tree_ends_with_its_host(bench: Bench) -> None:
    """Every family and every end at once: stubborn processes are given time before they are killed."""
    steps = [(name, LATENTS, pre_cache, actions) for name, actions in FAMILIES.items()]
    steps.append(("the training below accelerate", TRAIN, launch, [["spawn", STUBBORN], ["hang"]]))
    hosts: dict[str, Host] = {}
    try:
        for way in ENDS:
            for family, script, run, actions in steps if " " not in way else steps[1:2]:
                workspace = bench.workspace()
                workspace.tuner.does(script, *actions)
                hosts[f"{way}: {family}"] = Host.start(workspace, OURS, run, len(actions))
        for name, host in hosts.items():
            for send, number in ENDS[name.partition(":")[0]]:
                send(host.running.process.pid, number)
        for host in hosts.values():
            host.running.process.wait(60)
        survivors = {name: host.survivors(patience_s=30) for name, host in hosts.items()}
        assert {name: pids for name, pids in survivors.items() if pids} == {}
    finally:
        for host in hosts.values():
            host.end()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_the_trees_of_the_original_do_not_end(bench: Bench, number: signal.Signals) -> None:
    """So the test above can fail."""
    workspace = bench.workspace()
    workspace.tuner.does(LATENTS, *FAMILIES["children that ignore signals"])
    host = Host.start(workspace, bench.the_original(), pre_cache, 3)
    try:
        os.kill(host.running.process.pid, number)
        host.running.process.wait(30)
        assert host.survivors(patience_s=0.5)
    finally:
        host.end()


def pre_cache_and_tell_of_lines(work: Work):
    import logging
    import pathlib

    class Teller(logging.Handler):
        def emit(self, record):
            if record.getMessage().endswith("started"):
                pathlib.Path(work.path("heard")).touch()

    logging.getLogger("musubitraining").addHandler(Teller())
    with open(work.path("any.toml"), "w"):
        work.trainer()._pre_cache(work.path("any.toml"))


def test_ctrl_c_raises_keyboard_interrupt_and_is_said_once(bench: Bench) -> None:
    workspace = bench.workspace()
    workspace.tuner.does(LATENTS, ["say", "started\n"], ["hang"])
    running = workspace.start(OURS, pre_cache_and_tell_of_lines)
    assert wait_until(lambda: (workspace.root / "heard").exists(), 30)
    os.kill(running.process.pid, signal.SIGINT)
    run = running.finish()
    assert run.error is not None
    assert run.error["type"] == "KeyboardInterrupt"
    assert run.logged("[precache:latents] started")


def step_and_more(work: Work):
    trainer = work.trainer()
    trainer._run_cmd("s", ["/bin/sh", "-c", "echo done"], cwd=work.root)
    with open(work.path("any.toml"), "w"):
        trainer._pre_cache(work.path("any.toml"))
    return "went on"


@ON_LINUX_ALONE
def test_what_a_finished_step_leaves_behind_ends_too(bench: Bench) -> None:
    """A step that has ended is over, with all that it started."""
    workspace = bench.workspace()
    workspace.tuner.does(LATENTS, ["spawn", {**STUBBORN, "setsid": True}], ["await", str(workspace.root / "go")])
    running = workspace.start(OURS, step_and_more)
    try:
        pids = workspace.tuner.wait_for_pids(1)
        (workspace.root / "go").touch()
        assert running.finish().ok().result == "went on"
        assert wait_until(lambda: not any(is_running(pid) for pid in pids), 30)
    finally:
        end(workspace.tuner.pids())
