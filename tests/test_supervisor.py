"""The process between the host and a step: what it outlives, what it holds, and what its own death does."""

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

HOST = """
import logging, mmap, os, signal, sys, threading
from musubitraining.main import Models, MusubiTraining
folder = sys.argv[1]
trainer = MusubiTraining(folder, Models(), folder, folder, folder)
def step(code):
    return trainer._run_cmd("s", [sys.executable, "-c", code], cwd=folder)
def when_it_says(word, act):
    class Handler(logging.Handler):
        def emit(self, record):
            if record.getMessage() == f"[s] {word}":
                act()
    trainer_logger = logging.getLogger("musubitraining")
    trainer_logger.addHandler(Handler())
"""
# A worker that outlasts every test unless it is ended, and that ends when nobody is left to read its output.
WITH_A_WORKER = """
import os, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("worker", worker.pid, flush=True)
print("up", flush=True)
time.sleep(600)
"""


@contextmanager
def host(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-c", HOST + code, folder, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            assert process.stdout
            process.stdout.close()


def read_until(process: subprocess.Popen[str], word: str) -> str:
    """What it says from here to the line that has this word."""
    said = ""
    assert process.stdout
    for line in process.stdout:
        said += line
        if word in line:
            return said
    pytest.fail(f"ended without saying {word!r}: {said}")


def wait_for_the_end_of(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended, _, _ = select.select([descriptor], [], [], 30)
    os.close(descriptor)
    assert ended, f"{pid} runs on"


def supervisor_of(host_pid: int) -> int:
    children = Path(f"/proc/{host_pid}/task").glob("*/children")
    [pid] = [int(pid) for file in children for pid in file.read_text().split()]
    return pid


def worker_in(said: str) -> int:
    return int(said.partition("[s] worker ")[2].split()[0])


def test_it_goes_by_its_own_name() -> None:
    with host("step(sys.argv[2])", WITH_A_WORKER) as process:
        read_until(process, "[s] up")
        supervisor = Path(f"/proc/{supervisor_of(process.pid)}")
        assert (supervisor / "comm").read_text() == "musubi-guard\n"
        assert (supervisor / "cmdline").read_bytes() == b""


def test_it_holds_none_of_the_hosts_memory() -> None:
    hold = "held = mmap.mmap(-1, 256 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); held.write(bytes(256 << 20))\n"
    with host(hold + "step(sys.argv[2])", WITH_A_WORKER) as process:
        read_until(process, "[s] up")
        status = Path(f"/proc/{supervisor_of(process.pid)}/status").read_text()
        resident_kb = int(status.partition("VmRSS:")[2].split()[0])
        assert resident_kb < (256 << 10) / 4


@pytest.mark.parametrize(
    ("sent", "returncode"),
    [
        pytest.param(signal.SIGKILL, -signal.SIGKILL, id="its death ends the step"),
        pytest.param(signal.SIGTERM, -signal.SIGTERM, id="another signal is passed on"),
    ],
)
def test_a_signal_to_it_ends_the_step_and_its_workers(sent: signal.Signals, returncode: int) -> None:
    code = """
try:
    step(sys.argv[2])
except Exception as error:
    print("raised", type(error).__name__, error.returncode, flush=True)
"""
    with host(code, WITH_A_WORKER) as process:
        worker = worker_in(read_until(process, "[s] up"))
        os.kill(supervisor_of(process.pid), sent)
        assert f"raised CalledProcessError {returncode}" in read_until(process, "raised")
        wait_for_the_end_of(worker)


def test_ctrl_c_is_heard_although_a_fork_of_the_host_lives_on() -> None:
    code = """
def fork():
    if os.fork() == 0:
        signal.pause()
    signal.raise_signal(signal.SIGINT)
when_it_says("up", fork)
try:
    step(sys.argv[2])
except KeyboardInterrupt:
    print("interrupted", flush=True)
    os.killpg(0, signal.SIGKILL)
"""
    with host("os.setpgid(0, 0)\n" + code, WITH_A_WORKER) as process:
        said = read_until(process, "interrupted")
        wait_for_the_end_of(worker_in(said))


@pytest.mark.parametrize(("exits", "told"), [("0", "done"), ("3", "failed (exit_code=3,")])
def test_a_host_that_ignores_its_children_learns_how_a_step_ended(exits: str, told: str) -> None:
    code = """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
try:
    step(f"raise SystemExit({sys.argv[2]})")
except Exception as error:
    print(type(error).__name__, error.returncode, flush=True)
print("over", flush=True)
"""
    with host(code, exits) as process:
        assert told in read_until(process, "over")


def test_a_host_that_ignores_its_children_learns_of_a_program_that_is_not_there() -> None:
    code = """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
try:
    trainer._run_cmd("s", ["/no/such/program"], cwd=folder)
except FileNotFoundError as error:
    print("raised", error, flush=True)
"""
    with host(code) as process:
        assert "No such file or directory: '/no/such/program'" in read_until(process, "raised")


def test_a_thread_that_cannot_be_made_is_an_error() -> None:
    code = """
import resource
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
os.setuid(65534)
try:
    step("pass")
except RuntimeError as error:
    print("raised", error, flush=True)
"""
    if os.getuid() != 0:
        pytest.skip("needs root to become a user without processes")
    with host(code) as process:
        assert "cannot start a thread" in read_until(process, "raised")


# As OpenBLAS's, which takes a lock that another thread of the host may have had when this process was forked.
WAITS_IN_FORKS_OF_A_FORK = """
#include <pthread.h>
#include <unistd.h>
static pid_t host;
static void prepare(void) { while (getpid() != host) pause(); }
__attribute__((constructor)) static void begin(void) { host = getpid(); pthread_atfork(prepare, NULL, NULL); }
"""


def test_what_a_library_does_at_forks_does_not_hold_a_step_up(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path / "library.so"
    (tmp_path / "library.c").write_text(WAITS_IN_FORKS_OF_A_FORK)
    subprocess.run([compiler, "-shared", "-fPIC", "-pthread", "-o", library, tmp_path / "library.c"], check=True)
    code = "import ctypes; ctypes.CDLL(sys.argv[2]); step('print(\\'up\\')'); print('step done', flush=True)"
    with host(code, str(library)) as process:
        output, _ = process.communicate(timeout=60)
        assert "step done" in output, output
