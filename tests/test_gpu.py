"""GPUMonitor against a stand-in for NVIDIA's library, and against the real one where there is a GPU."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import get_args

import pytest
from musubitraining.main import GPU

# The part of NVML that GPUMonitor calls. What it answers comes from the environment; it logs what it is asked.
STAND_IN = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int opened;

static int number(const char *variable, int otherwise) {
    const char *text = getenv(variable);
    return text ? atoi(text) : otherwise;
}

static int note(const char *call) {
    FILE *log = fopen(getenv("NVML_LOG"), "a");
    fprintf(log, "%s\n", call);
    fclose(log);
    return 0;
}

int nvmlInit_v2(void) {
    const char *awaited = getenv("NVML_AWAITS");
    while (awaited && access(awaited, F_OK) != 0) usleep(1000);
    if (number("NVML_INIT", 0)) return number("NVML_INIT", 0);
    __atomic_add_fetch(&opened, 1, __ATOMIC_SEQ_CST);
    return note("init");
}

int nvmlShutdown(void) {
    __atomic_sub_fetch(&opened, 1, __ATOMIC_SEQ_CST);
    return note("shutdown");
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    if (opened < 1) return 1;
    *count = (unsigned int)number("NVML_COUNT", 1);
    return number("NVML_COUNT_ERROR", 0);
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    if (opened < 1) return 1;
    if ((int)index >= number("NVML_COUNT", 1)) return 2;
    *device = (void *)(size_t)(index + 1);
    return number("NVML_HANDLE", 0);
}

int nvmlDeviceGetName(void *device, char *name, unsigned int length) {
    strncpy(name, device == (void *)1 ? getenv("NVML_NAME") : "NVIDIA GeForce GTX 1080", length);
    return number("NVML_NAME_ERROR", 0);
}
"""

EVERY_ERROR = {
    1: "not first initialized",
    2: "argument was invalid",
    3: "not available on the target device",
    4: "/dev/nvidia*",
    6: "find an object",
    7: "not large enough",
    8: "external power cables",
    9: "without a loaded driver",
    10: "timeout",
    11: "interrupt issue",
    12: "shared library couldn't be found",
    13: "function couldn't be found",
    14: "infoROM is corrupted",
    15: "GPU 0 is lost",
    16: "needs a reset",
    17: "blocked by the operating system",
    18: "of different versions",
    19: "in use",
    20: "insufficient memory",
    999: "internal driver error",
    4711: "4711",
}


def real_nvml() -> bool:
    for name in ("libnvidia-ml.so.1", "libnvidia-ml.so"):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


linux = pytest.mark.skipif(sys.platform != "linux", reason="NVML and LD_LIBRARY_PATH are Linux's")
without_driver = pytest.mark.skipif(real_nvml(), reason="this machine has NVIDIA's own library")


def build(source: str, folder: Path) -> None:
    """Compile C code to the library that GPUMonitor loads."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler to build a stand-in for NVML with")
    (folder / "nvml.c").write_text(source)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", folder / "nvml.c"], check=True)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the stand-in library."""
    folder = tmp_path_factory.mktemp("nvml")
    build(STAND_IN, folder)
    return folder


def run(code: str, library: Path, **environment: str | bytes) -> subprocess.CompletedProcess[str]:
    """Run Python code that finds NVML in the folder `library`."""
    environ = {
        **{os.fsencode(name): os.fsencode(value) for name, value in os.environ.items()},
        b"LD_LIBRARY_PATH": os.fsencode(library),
        b"NVML_LOG": os.fsencode(library / "log"),
        b"NVML_NAME": b"NVIDIA GeForce RTX 4090",
        **{os.fsencode(name): os.fsencode(value) for name, value in environment.items()},
    }
    (library / "log").write_text("")
    program = "from musubitraining.main import GPUMonitor\n" + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60)


def answer(code: str, library: Path, **environment: str | bytes) -> object:
    """Run Python code that prints JSON, and see that NVML was shut down as often as it was opened."""
    done = run("import json\n" + textwrap.dedent(code), library, **environment)
    assert done.returncode == 0, done.stderr
    log = (library / "log").read_text().split()
    assert log == ["init", "shutdown"] * (len(log) // 2)
    return json.loads(done.stdout)


def error(library: Path, **environment: str | bytes) -> str:
    """The text of the RuntimeError that GPUMonitor raises."""
    code = """
        try:
            GPUMonitor()
        except RuntimeError as error:
            print(error)
    """
    done = run(code, library, **environment)
    assert done.returncode == 0, done.stderr
    log = (library / "log").read_text().split()
    assert log.count("init") == log.count("shutdown")
    assert "expected an NVIDIA driver" in done.stdout
    assert "training does not need it" in done.stdout
    return done.stdout


MONITOR = """
    monitor = GPUMonitor()
    print(json.dumps([monitor.gpu_count, monitor.gpu_name]))
"""


@linux
@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 5090", "RTX 5090"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA A40", "A40"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA RTX A4000", "Unknown GPU"),
        ("Tesla V100-SXM2-16GB", "Unknown GPU"),
        ("", "Unknown GPU"),
    ],
)
def test_the_first_gpu_is_labelled(stand_in: Path, name: str, label: str) -> None:
    assert answer(MONITOR, stand_in, NVML_NAME=name) == [1, label]
    assert label in get_args(GPU)


@linux
def test_a_name_that_is_not_utf_8_is_unknown(stand_in: Path) -> None:
    assert answer(MONITOR, stand_in, NVML_NAME=b"NVIDIA \xff H100") == [1, "Unknown GPU"]


@linux
def test_several_gpus_are_counted_and_the_first_is_named(stand_in: Path) -> None:
    assert answer(MONITOR, stand_in, NVML_COUNT="8", NVML_NAME="NVIDIA H200") == [8, "H200"]


@linux
def test_get_gpu_name_works_at_any_time(stand_in: Path) -> None:
    code = """
        import os
        monitor = GPUMonitor()
        os.putenv("NVML_NAME", "NVIDIA H100 PCIe")
        print(json.dumps([monitor.gpu_name, monitor.get_gpu_name(), monitor.gpu_name]))
    """
    assert answer(code, stand_in) == ["RTX 4090", "H100", "RTX 4090"]


@linux
def test_many_threads_ask_at_once(stand_in: Path) -> None:
    code = """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(8) as pool:
            print(json.dumps(sorted(set(pool.map(lambda _: GPUMonitor().gpu_name, range(32))))))
    """
    done = run("import json\n" + textwrap.dedent(code), stand_in)
    assert json.loads(done.stdout) == ["RTX 4090"], done.stderr
    log = (stand_in / "log").read_text().split()
    assert log.count("init") == log.count("shutdown") == 64


@linux
def test_other_threads_run_while_nvml_is_slow(stand_in: Path, tmp_path: Path) -> None:
    code = """
        import os, threading
        asking = threading.Thread(target=GPUMonitor)
        asking.start()
        open(os.environ["NVML_AWAITS"], "w").close()
        asking.join()
        print(json.dumps("both ran"))
    """
    assert answer(code, stand_in, NVML_AWAITS=str(tmp_path / "go")) == "both ran"


@linux
def test_attributes_are_plain_and_survive_pickle_and_copy(stand_in: Path) -> None:
    code = """
        import copy, pickle
        monitor = GPUMonitor()
        monitor.gpu_name, monitor.note = "mine", [1]
        twins = [copy.copy(monitor), copy.deepcopy(monitor)]
        twins += [pickle.loads(pickle.dumps(monitor, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
        assert all(type(twin) is GPUMonitor for twin in twins)
        print(json.dumps([twin.__dict__ for twin in twins]))
    """
    found = answer(code, stand_in)
    assert isinstance(found, list)
    assert all(attributes == {"gpu_count": 1, "gpu_name": "mine", "note": [1]} for attributes in found)
    assert len(found) >= 7


@linux
def test_a_subclass_is_an_ordinary_python_class(stand_in: Path) -> None:
    code = """
        class Mine(GPUMonitor):
            def __init__(self, note, *, more=1):
                super().__init__()
                self.note = note, more

            def get_gpu_name(self):
                return "mine: " + super().get_gpu_name()

        class Without(GPUMonitor):
            def __init__(self):
                pass

        mine = Mine("x", more=2)
        print(json.dumps([mine.gpu_count, mine.gpu_name, mine.note, Without().__dict__]))
    """
    assert answer(code, stand_in) == [1, "mine: RTX 4090", ["x", 2], {}]


@linux
def test_it_looks_like_the_original(stand_in: Path) -> None:
    code = """
        import inspect
        try:
            GPUMonitor(1)
            refused = False
        except TypeError:
            refused = True
        class Sub(GPUMonitor):
            pass
        print(json.dumps([str(inspect.signature(GPUMonitor)), str(inspect.signature(Sub)),
                          str(inspect.signature(GPUMonitor().get_gpu_name)),
                          str(inspect.signature(GPUMonitor.get_gpu_name)),
                          GPUMonitor.__module__, GPUMonitor.__name__, refused]))
    """
    assert answer(code, stand_in) == ["()", "()", "()", "(self)", "musubitraining.main", "GPUMonitor", True]


@linux
def test_the_package_can_be_imported_anew(stand_in: Path) -> None:
    code = """
        import sys
        for name in [name for name in sys.modules if name.startswith("musubitraining")]:
            del sys.modules[name]
        from musubitraining.main import GPUMonitor
        print(json.dumps([GPUMonitor().gpu_name, GPUMonitor().get_gpu_name()]))
    """
    assert answer(code, stand_in) == ["RTX 4090", "RTX 4090"]


@linux
@pytest.mark.parametrize("call", ["NVML_INIT", "NVML_COUNT_ERROR", "NVML_HANDLE", "NVML_NAME_ERROR"])
@pytest.mark.parametrize("code", EVERY_ERROR)
def test_every_error_is_a_runtime_error_that_says_what_to_do(stand_in: Path, call: str, code: int) -> None:
    assert EVERY_ERROR[code] in error(stand_in, **{call: str(code)})


@linux
def test_a_driver_without_gpus_is_an_error(stand_in: Path) -> None:
    text = error(stand_in, NVML_COUNT="0")
    assert "without any GPU" in text
    assert "--gpus all" in text


@linux
@without_driver
def test_without_a_driver_the_error_names_the_library(tmp_path: Path) -> None:
    text = error(tmp_path)
    assert "libnvidia-ml.so.1" in text
    assert "Install the NVIDIA driver" in text


@linux
@without_driver
def test_a_library_without_a_number_is_found_too(stand_in: Path, tmp_path: Path) -> None:
    shutil.copy(stand_in / "libnvidia-ml.so.1", tmp_path / "libnvidia-ml.so")
    assert answer(MONITOR, tmp_path) == [1, "RTX 4090"]


@linux
def test_a_library_that_is_not_nvml_is_an_error(tmp_path: Path) -> None:
    build("int something_else(void) { return 0; }\n", tmp_path)
    assert "not NVML" in error(tmp_path)
    (tmp_path / "libnvidia-ml.so.1").write_text("this is not a library")
    if not real_nvml():
        assert "libnvidia-ml.so.1" in error(tmp_path)


@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no nvidia-smi: this machine has no NVIDIA driver")
def test_the_real_library_agrees_with_nvidia_smi() -> None:
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    names = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    code = "from musubitraining.main import GPUMonitor as G; g = G(); print(g.gpu_count, g.gpu_name, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, label = done.stdout.splitlines()
    assert int(count) == len(names)
    assert label == "Unknown GPU" or all(word in names[0].replace("-", " ").split() for word in label.split())
