"""LoRAs for ComfyUI: as the clone's own scripts convert them, which is recorded; or refused, with nothing lost."""

import errno
import hashlib
import inspect
import json
import logging
import os
import re
import resource
import signal
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import musubitraining
import pytest
from harness.tuner import wait_until
from musubitraining import _native, convert_lora_to_comfyui

RECORDED = Path(__file__).parent / "recorded/conversion"
CASES = sorted(path.name.partition(".")[0] for path in RECORDED.glob("*.merged.safetensors"))
FORMS = ("merged", "separate")
HASHES = ("sshs_model_hash", "sshs_legacy_hash")
Q = "lora_unet_layers_0_attention_to_q"
MB = 1 << 20

Tensors = dict[str, tuple[str, list[int], bytes]]


def read(path: Path) -> tuple[Tensors, dict[str, str] | None, bytes]:
    """The tensors by name, the metadata, and the data of all tensors as it lies there."""
    content = path.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8:start]), content[start:]
    metadata = header.pop("__metadata__", None)
    tensors = {
        name: (tensor["dtype"], tensor["shape"], data[slice(*tensor["data_offsets"])])
        for name, tensor in header.items()
    }
    return tensors, metadata, data


def with_header(header: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def of_tensors(tensors: Tensors, metadata: dict[str, str] | None = None) -> bytes:
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    return with_header(header, data)


def floats(*shape: int, value: float = 0.5) -> tuple[str, list[int], bytes]:
    count = 1
    for size in shape:
        count *= size
    return "F32", list(shape), struct.pack("<f", value) * count


def lora(*modules: str, rank: int = 2, inner: int = 6, outer: int = 4, alpha: float = 1) -> Tensors:
    tensors = {}
    for module in modules:
        tensors[f"{module}.lora_down.weight"] = floats(rank, inner)
        tensors[f"{module}.lora_up.weight"] = floats(outer, rank)
        tensors[f"{module}.alpha"] = floats(value=alpha)
    return tensors


def attention(**options: Any) -> Tensors:
    return lora(Q, f"{Q[:-1]}k", f"{Q[:-1]}v", **options)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(of_tensors(attention(), {"ss_name": "x"}))
    return path


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """A gigabyte of zeros that takes no room."""
    path = tmp_path / "sparse.safetensors"
    columns = 1 << 26
    header, end = {}, 0
    for name, shape in ((".lora_down.weight", [2, columns]), (".lora_up.weight", [columns, 2])):
        start, end = end, end + 8 * columns
        header["lora_unet_layers_0_feed_forward_w1" + name] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [start, end],
        }
    with open(path, "wb") as file:
        file.write(with_header(header))
        file.truncate(file.tell() + end)
    return path


def refusal(source: Path, destination: Path, form: Any = "merged") -> str:
    """Why; the destination's folder stays as it is."""

    def files() -> dict[Path, tuple[int, int]]:
        found = ((path, path.lstat()) for path in destination.parent.iterdir())
        return {path: (status.st_ino, status.st_mtime_ns) for path, status in found}

    before = files()
    with pytest.raises(ValueError, match=re.escape(str(source))) as raised:
        convert_lora_to_comfyui(source, destination, form=form)
    assert files() == before
    return str(raised.value)


# ---- what comes out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES)
def test_what_the_scripts_write(tmp_path: Path, case: str, form: str) -> None:
    ours = tmp_path / "ours.safetensors"
    convert_lora_to_comfyui(RECORDED / f"{case}.safetensors", ours, form=form)
    assert read(ours) == read(RECORDED / f"{case}.{form}.safetensors")


def test_there_are_records_to_compare_with() -> None:
    assert len(CASES) >= 16
    assert {"lora_bfloat16", "loha_float16", "int64_alpha", "no_metadata", "refiners"} <= set(CASES)


@pytest.mark.parametrize("form", FORMS)
def test_the_same_input_gives_the_same_file(tmp_path: Path, form: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(of_tensors(attention(), {f"ss_{number}": str(number) for number in range(20)}))
    first, second = tmp_path / "first", tmp_path / "second"
    for destination in (first, second):
        convert_lora_to_comfyui(source, destination, form=form)
    assert first.read_bytes() == second.read_bytes()


def test_what_is_merged_already_is_passed_through(tmp_path: Path) -> None:
    merged = RECORDED / "lora_float32.merged.safetensors"
    convert_lora_to_comfyui(merged, tmp_path / "again")
    assert read(tmp_path / "again") == read(merged)


def test_the_hashes_of_a_large_file(tmp_path: Path) -> None:
    metadata = {"ss_b": "b", "ss_a": "ä", "title": "not hashed", **dict.fromkeys(HASHES, "old")}
    source, destination = tmp_path / "source", tmp_path / "destination"
    columns = 3 * MB // 4
    tensors = lora(Q.replace("to_q", "to_out_0"), rank=1, inner=columns)
    tensors[next(iter(tensors))] = ("F32", [1, columns], b"".join(struct.pack("<I", n) for n in range(columns)))
    source.write_bytes(of_tensors(tensors, metadata))

    convert_lora_to_comfyui(source, destination)

    _, found, data = read(destination)
    assert found is not None
    header = json.loads(destination.read_bytes()[8:].split(b"}}", 1)[0] + b"}}")
    header["__metadata__"] = {"ss_a": "ä", "ss_b": "b"}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    hashed = struct.pack("<Q", -(-len(text) // 8) * 8) + text.ljust(-(-len(text) // 8) * 8) + data
    assert len(hashed) > 0x110000
    assert found["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert found["sshs_legacy_hash"] == hashlib.sha256(hashed[0x100000:0x110000]).hexdigest()[:8]
    assert {key: found[key] for key in metadata if key not in HASHES} == {
        key: value for key, value in metadata.items() if key not in HASHES
    }


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    code = """
import resource, sys
from musubitraining import convert_lora_to_comfyui
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def convert(name):
    for form in ("merged", "separate"):
        convert_lora_to_comfyui(sys.argv[1] + name, sys.argv[1] + "/out", form=form)
convert("/small")
before = peak()
convert("/large")
print(peak() - before)
"""
    (tmp_path / "small").write_bytes(of_tensors(attention(), {}))
    (tmp_path / "large").write_bytes(of_tensors(attention(inner=MB // 2, outer=MB // 2), {}))
    assert (tmp_path / "large").stat().st_size > 24 * MB
    grown_kb = int(subprocess.check_output([sys.executable, "-c", code, str(tmp_path)]))
    assert grown_kb < 8 << 10


def test_a_warning_where_q_k_and_v_differ_in_strength(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = RECORDED / "uneven_alpha.safetensors"
    convert_lora_to_comfyui(source, tmp_path / "separate", form="separate")
    assert caplog.records == []
    convert_lora_to_comfyui(source, tmp_path / "merged")
    [record] = caplog.records
    assert (record.name, record.levelno) == ("musubitraining", logging.WARNING)
    for words in (str(source), "alpha differs", "1 attentions", Q, 'form="separate"'):
        assert words in record.getMessage()


def test_a_warning_where_the_script_gives_names_that_no_module_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    convert_lora_to_comfyui(RECORDED / "refiners.safetensors", tmp_path / "merged")
    convert_lora_to_comfyui(RECORDED / "lora_float32.safetensors", tmp_path / "separate", form="separate")
    assert caplog.records == []
    convert_lora_to_comfyui(RECORDED / "refiners.safetensors", tmp_path / "separate", form="separate")
    [record] = caplog.records
    for words in ("20 modules", "diffusion_model.", "no module of"):
        assert words in record.getMessage()


# ---- how it is called -----------------------------------------------------------------------------------------------


def test_its_signature() -> None:
    assert musubitraining.convert_lora_to_comfyui is _native.convert_lora_to_comfyui
    assert "convert_lora_to_comfyui" in musubitraining.__all__
    assert str(inspect.signature(convert_lora_to_comfyui)) == "(source, destination, *, form='merged')"
    assert inspect.getdoc(convert_lora_to_comfyui)


def test_the_destination_is_returned_as_it_was_given(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    assert convert_lora_to_comfyui(str(source), "a.safetensors") == "a.safetensors"
    assert convert_lora_to_comfyui(source=source, destination=source.parent / "b") == str(source.parent / "b")
    odd = os.fsdecode(b"not \xff UTF-8")
    assert convert_lora_to_comfyui("lora.safetensors", odd, form="separate") == odd
    assert read(Path("a.safetensors")) == read(Path("b"))
    assert sorted(os.listdir()) == sorted(["a.safetensors", "b", "lora.safetensors", odd])


def test_arguments_that_cannot_work(source: Path, tmp_path: Path) -> None:
    convert: Any = convert_lora_to_comfyui
    destination = tmp_path / "out"
    with pytest.raises(ValueError, match=r'^form="splitted": expected "merged" or "separate"$'):
        convert(source, destination, form="splitted")
    for arguments in ((None, destination), (source, 1), (source,), (source, destination, "merged")):
        with pytest.raises(TypeError):
            convert(*arguments)
    with pytest.raises(TypeError):
        convert(source, destination, form=None)
    with pytest.raises(ValueError, match=r"NUL|null"):
        convert(source, "a\0b")
    assert not destination.exists()


# ---- bad input ------------------------------------------------------------------------------------------------------

GOOD = attention()
HEADER = {Q + ".lora_down.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}
OVERLAPPING = HEADER | {Q + ".lora_up.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [2, 6]}}


def without(name: str) -> bytes:
    return of_tensors({key: value for key, value in GOOD.items() if key != name})


def changed(**to: Any) -> bytes:
    return of_tensors(GOOD | {f"{Q[:-1]}{name.replace('__', '.')}": value for name, value in to.items()})


K = f"{Q[:-1]}k"
BAD = {
    "empty": (b"", "0 bytes"),
    "text": (b"fake", "4 bytes"),
    "torch's own": (b"PK\x03\x04" + bytes(100), "it is a PyTorch checkpoint"),
    "page": (b"<!DOCTYPE html><html>", "web page of 21 bytes"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 140\n", "git-lfs pointer"),
    "cut": (of_tensors(GOOD)[:-1], "is cut: its header promises"),
    "cut in its header": (of_tensors(GOOD)[:100], "is cut: its header promises"),
    "too long": (of_tensors(GOOD) + b"x", "more than that"),
    "overlapping": (with_header(OVERLAPPING, bytes(6)), "invalid offset"),
    "no tensors": (of_tensors({}, {"a": "b"}), "a file without tensors"),
    "lokr": (of_tensors({Q + ".lokr_w1": floats(2, 2), Q + ".alpha": floats()}), "it is a LoKr"),
    "unknown tensor": (of_tensors(GOOD | {Q + ".dora_scale": floats(4)}), ".dora_scale"),
    "unknown module": (of_tensors(lora("lora_unet_double_blocks_0_img_attn_qkv")), "no module of Z-Image"),
    "text encoder": (of_tensors(GOOD | lora("lora_te_model_layers_0_mlp")), "lora_te_model_layers_0_mlp"),
    "no prefix": (of_tensors({"weight": floats(2, 2)}), '"weight"'),
    "diffusers": (
        of_tensors({"diffusion_model.layers.0.attention.to_q.lora_A.weight": floats(2, 2)}),
        "diffusers' naming already",
    ),
    "half a module": (without(Q + ".lora_up.weight"), f"expected {Q}.lora_up.weight, and it is missing"),
    "alpha alone": (of_tensors({Q + ".alpha": floats()}), f"expected {Q}.lora_down.weight"),
    "lora and loha": (of_tensors(GOOD | {Q + ".hada_w1_a": floats(4, 2)}), "hada_w1_b, and it is missing"),
    "ranks": (changed(q__lora_up__weight=floats(4, 3)), "lora_down.weight [2, 6], lora_up.weight [4, 3]"),
    "no matrix": (changed(q__lora_up__weight=floats(4, 2, 1)), "lora_up.weight [4, 2, 1]"),
    "rank 0": (of_tensors(lora(Q, rank=0)), "lora_down.weight [0, 6]"),
    "alphas": (changed(q__alpha=floats(2)), "expected one number, found F32 of shape [2]"),
    "kind of alpha": (changed(q__alpha=("BOOL", [], b"\1")), "found BOOL"),
    "half bytes": (changed(q__alpha=("F4", [2], b"\1")), "F4: expected numbers of whole bytes"),
}
BAD_TO_MERGE = {
    "no q": (of_tensors({**lora(K), **lora(f"{Q[:-1]}v")}), f"it has the module {K}, and {Q} is missing"),
    "no k": (of_tensors({**lora(Q), **lora(f"{Q[:-1]}v")}), f"it has the module {Q}, and {K} is missing"),
    "no alpha of k": (without(K + ".alpha"), f"expected {K}.alpha"),
    "no alpha of q": (without(Q + ".alpha"), f"expected {Q}.alpha"),
    "another rank of k": (of_tensors(GOOD | lora(K, rank=3)), "lora_down.weight [3, 6]"),
    "another size of k": (of_tensors(GOOD | lora(K, outer=5)), "lora_up.weight [5, 2]"),
    "integers": (changed(k__lora_up__weight=("I32", [4, 2], bytes(32))), "of one dtype, or all floats"),
    "merged in part": (
        of_tensors(lora(*(f"lora_unet_layers_0_attention_{out}" for out in ("out", "to_out_0")))),
        "two of its tensors would become",
    ),
}
BAD_TO_SEPARATE = {
    "negative alpha": (changed(q__alpha=floats(value=-4)), ".alpha is -4: expected a number of at least 0"),
    "no alpha but NaN": (changed(q__alpha=floats(value=float("nan"))), ".alpha is NaN"),
    "integers": (changed(q__lora_up__weight=("I32", [4, 2], bytes(32))), "is of I32: expected F64"),
}


def cases(bad: dict[str, tuple[bytes, str]], *forms: str) -> list[Any]:
    return [pytest.param(*case, form, id=f"{name}-{form}") for name, case in bad.items() for form in forms]


@pytest.mark.parametrize(
    ("content", "words", "form"),
    [*cases(BAD, *FORMS), *cases(BAD_TO_MERGE, "merged"), *cases(BAD_TO_SEPARATE, "separate")],
)
def test_what_cannot_be_converted(tmp_path: Path, content: bytes, words: str, form: str) -> None:
    source, destination = tmp_path / "lora.safetensors", tmp_path / "out.safetensors"
    source.write_bytes(content)
    destination.write_bytes(b"what was there")
    message = refusal(source, destination, form)
    assert words in message


@pytest.mark.parametrize(("content", "form"), [case.values[::2] for case in cases(BAD_TO_MERGE, "separate")[:6]])
def test_what_cannot_be_merged_can_be_separate(tmp_path: Path, content: bytes, form: str) -> None:
    source = tmp_path / "lora.safetensors"
    source.write_bytes(content)
    convert_lora_to_comfyui(source, tmp_path / "out", form=form)
    assert len(read(tmp_path / "out")[0]) >= 4


def test_a_source_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        convert_lora_to_comfyui(tmp_path / "absent", tmp_path / "out")
    assert raised.value.filename == str(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe")
    for source in (tmp_path, tmp_path / "pipe"):
        assert "it is not a file" in refusal(source, tmp_path / "out")


def when_it_writes(folder: Path, reaction: Callable[[], object]) -> threading.Thread:
    """React as soon as the new file is begun. That this thread runs meanwhile shows that the interpreter is free."""

    def watch() -> None:
        assert wait_until(lambda: any(folder.glob(".convert-*")), 30)
        reaction()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_a_source_that_shrinks_meanwhile(sparse: Path) -> None:
    destination = sparse.parent / "out"
    thread = when_it_writes(sparse.parent, lambda: os.truncate(sparse, MB))
    with pytest.raises(ValueError, match="has changed while it was read"):
        convert_lora_to_comfyui(sparse, destination)
    thread.join()
    assert os.listdir(sparse.parent) == [sparse.name]


@pytest.mark.parametrize("form", FORMS)
def test_an_interrupt(sparse: Path, form: str) -> None:
    destination = sparse.parent / "out"
    destination.write_text("what was there")
    thread = when_it_writes(sparse.parent, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        convert_lora_to_comfyui(sparse, destination, form=form)
    thread.join()
    assert destination.read_text() == "what was there"
    assert sorted(os.listdir(sparse.parent)) == ["out", sparse.name]


# ---- where it goes --------------------------------------------------------------------------------------------------


def test_the_source_may_be_the_destination(source: Path, tmp_path: Path) -> None:
    convert_lora_to_comfyui(source, tmp_path / "other")
    convert_lora_to_comfyui(source, source)
    assert source.read_bytes() == (tmp_path / "other").read_bytes()
    source.write_bytes(of_tensors({Q + ".lokr_w1": floats(2, 2)}))
    refusal(source, source)


def test_a_new_file_is_as_open_makes_it(source: Path, tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        convert_lora_to_comfyui(source, tmp_path / "out")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640


def test_an_old_file_keeps_its_owner_and_permissions(source: Path, tmp_path: Path) -> None:
    destination = tmp_path / "out"
    destination.write_text("old")
    destination.chmod(0o604)
    if os.geteuid() == 0:
        os.chown(destination, 1234, 2345)
    before = destination.stat()
    convert_lora_to_comfyui(source, destination)
    after = destination.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert len(read(destination)[0]) == 3


def test_a_link_stays_a_link(source: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link, second, file = tmp_path / "link", tmp_path / "folder/second", tmp_path / "file"
    link.symlink_to("folder/second")
    second.symlink_to("../file")
    for _ in ("absent", "there"):
        convert_lora_to_comfyui(source, link)
        assert (link.is_symlink(), second.is_symlink(), file.is_symlink()) == (True, True, False)
        assert len(read(file)[0]) == 3
    assert sorted(os.listdir(tmp_path / "folder")) == ["second"]


def test_destinations_that_cannot_be_written(source: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        convert_lora_to_comfyui(source, tmp_path / "absent/out")
    assert raised.value.filename == str(tmp_path / "absent/out")
    with pytest.raises(IsADirectoryError):
        convert_lora_to_comfyui(source, tmp_path)
    with pytest.raises(OSError, match="File name too long") as too_long:
        convert_lora_to_comfyui(source, tmp_path / ("x" * 300))
    assert too_long.value.errno == errno.ENAMETOOLONG
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="device or a pipe"):
        convert_lora_to_comfyui(source, tmp_path / "pipe")
    assert sorted(os.listdir(tmp_path)) == [source.name, "pipe"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_destination_that_may_not_be_written(source: Path, tmp_path: Path) -> None:
    destination = tmp_path / "out"
    destination.write_text("old")
    destination.chmod(0o444)
    with pytest.raises(PermissionError):
        convert_lora_to_comfyui(source, destination)
    assert destination.read_text() == "old"


def test_a_disk_that_takes_only_a_part(tmp_path: Path) -> None:
    source, destination = tmp_path / "lora.safetensors", tmp_path / "out"
    source.write_bytes(of_tensors(attention(inner=MB // 4, outer=MB // 4), {}))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MB, hard))
    try:
        with pytest.raises(OSError, match="cannot write") as raised:
            convert_lora_to_comfyui(source, destination)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(destination))
    assert os.listdir(tmp_path) == [source.name]


ON_A_SMALL_DISK = """
import os, sys
from musubitraining import convert_lora_to_comfyui
source, disk, fill = sys.argv[1:]
destination = os.path.join(disk, "out.safetensors")
with open(destination, "w") as old:
    old.write("what was there")
if fill == "bytes":
    try:
        with open(os.path.join(disk, "filler"), "wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
    except OSError:
        pass
elif fill == "files":
    try:
        for number in range(1000):
            open(os.path.join(disk, f"filler-{number}"), "x").close()
    except OSError:
        pass
before = sorted(os.listdir(disk))
for name in (destination, os.path.join(disk, "absent")):
    try:
        convert_lora_to_comfyui(source, name)
    except OSError as error:
        print(error.errno, error)
    assert sorted(os.listdir(disk)) == before
assert open(destination).read() == "what was there"
"""


@pytest.mark.parametrize(
    ("fill", "words"),
    [
        pytest.param("", r"the converted LoRA needs \d+ bytes and \d+ are free", id="too small"),
        pytest.param("bytes", r"the disk is full \(0 bytes free\)", id="full"),
        pytest.param("files", r"the disk takes no more files", id="no inodes"),
    ],
)
def test_a_full_disk(tmp_path: Path, fill: str, words: str) -> None:
    source, disk = tmp_path / "lora.safetensors", tmp_path / "disk"
    disk.mkdir()
    source.write_bytes(of_tensors(attention(inner=MB // 4, outer=MB // 4)))
    mount = f"mount -t tmpfs -o size=2m,nr_inodes=20 tmpfs {disk}"
    within = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    try:
        tried = subprocess.run([*within, mount], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("needs a file system of its own: there is no unshare here")
    if tried.returncode:
        pytest.skip(f"needs a file system of its own: {tried.stderr.strip()}")
    python = [sys.executable, "-c", ON_A_SMALL_DISK, str(source), str(disk), fill]
    done = subprocess.run([*within, f'{mount} && exec "$@"', "sh", *python], capture_output=True, text=True)
    assert done.stderr == ""
    told = done.stdout.splitlines()
    assert len(told) == 2
    for line in told:
        assert line.startswith(f"{errno.ENOSPC} [Errno {errno.ENOSPC}] ")
        assert re.search(words, line)
