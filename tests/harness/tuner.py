"""A folder shaped like a Musubi Tuner clone, and an accelerate, whose programs note how they were called.

Nothing of Musubi Tuner is in them: they write a line to `calls.jsonl` and then do what the test told their step to.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

LATENTS = "zimage_cache_latents.py"
TEXT = "zimage_cache_text_encoder_outputs.py"
TRAIN = "zimage_train_network.py"
CONVERT = "src/musubi_tuner/networks/convert_z_image_lora_to_comfy.py"

LORA = b"trained weights"
CONVERTED = b"converted weights"

_PROGRAM = """\
import json, os, signal, sys, time

ROOT, STEP = {root!r}, {step!r}


def option(name):
    return sys.argv[sys.argv.index(name) + 1]


def note(**record):
    with open(os.path.join(ROOT, "calls.jsonl"), "a") as calls:
        calls.write(json.dumps(record) + "\\n")


def note_pid():
    path = os.path.join(ROOT, "pids", str(os.getpid()))
    with open(path + ".new", "w"):
        os.rename(path + ".new", path)


def inherited():
    # What a process gets besides words and environment, as far as this system tells.
    if not os.path.exists("/proc/self/status"):
        return None
    with open("/proc/self/status") as status:
        lines = [line.split() for line in status]
    state = {{line[0]: line[1] for line in lines if line[0] in ("SigBlk:", "SigIgn:", "Umask:")}}
    descriptors = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd") if int(name) > 2]
    return {{**state, "open files": sorted(os.readlink(path) for path in descriptors if os.path.exists(path))}}


def output_path():
{output_path}


def hang():
    signal.alarm(120)
    note_pid()
    while True:
        signal.pause()


def spawn(ignore=(), setsid=False, daemon=False):
    child = os.fork()
    if child:
        # A test may end everything as soon as it hears of this step.
        while not daemon and not os.path.exists(os.path.join(ROOT, "pids", str(child))):
            time.sleep(0.001)
        return
    if setsid:
        os.setsid()
    if daemon and os.fork():
        os._exit(0)
    for name in ignore:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    hang()


note(
    step=STEP,
    argv=sys.argv,
    command=sys.orig_argv,
    cwd=os.getcwd(),
    env=dict(os.environ),
    stdin=os.fstat(0).st_rdev,
    inherited=inherited(),
)
with open(os.path.join(ROOT, "behaviour.json")) as file:
    actions = json.load(file).get(STEP, [["write"]])
for action, *args in actions:
    if action == "say":
        os.write(1, args[0].encode("latin-1"))
    elif action == "say_on_stderr":
        os.write(2, args[0].encode("latin-1"))
    elif action == "write":
        path = output_path()
        if path:
            with open(path, "wb") as file:
                file.write(args[0].encode("latin-1") if args else {content!r})
    elif action == "write_at":
        path, text = args
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(text.encode("latin-1"))
    elif action == "await":
        deadline = time.monotonic() + 30
        while not os.path.exists(args[0]):
            if time.monotonic() > deadline:
                sys.exit(9)
            time.sleep(0.01)
    elif action == "spawn":
        spawn(**args[0])
    elif action == "note_pid":
        note_pid()
    elif action == "hang":
        hang()
    elif action == "exit":
        sys.exit(args[0])
    elif action == "signal":
        os.kill(os.getpid(), args[0])
"""

_NO_OUTPUT = "    return None"
_TRAIN_OUTPUT = '    return os.path.join(option("--output_dir"), option("--output_name") + ".safetensors")'
_CONVERT_BY_FLAGS = """\
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("--model_path", required=True)
    parser.add_argument("--output_path", required=True)
    return parser.parse_args().output_path"""
_CONVERT_BY_POSITION = """\
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("src_path")
    parser.add_argument("dst_path")
    return parser.parse_args().dst_path"""

_LAUNCH = """\
import os, sys


def main():
    words = sys.argv[1:]
    while words and words[0].startswith("--"):
        del words[:2]
    env = dict(os.environ, ACCELERATE_MIXED_PRECISION="bf16")
    code = os.spawnve(os.P_WAIT, sys.executable, [sys.executable, *words], env)
    if code:
        sys.exit(f"accelerate: {words[0]} ended with {code}")


if __name__ == "__main__":
    main()
"""

# The shape of the real one, as far as the library takes over how it starts a single process.
_LAUNCH_AS_THE_REAL_ONE = """\
import os
import subprocess
import sys


def simple_launcher(args):
    cmd, current_env = args
    process = subprocess.Popen(cmd, env=current_env)
    process.wait()
    if process.returncode != 0:
        raise subprocess.CalledProcessError(returncode=process.returncode, cmd=cmd)


def main():
    words = sys.argv[1:]
    options = {}
    while words and words[0].startswith("--"):
        options[words[0]] = words[1]
        del words[:2]
    env = dict(os.environ, ACCELERATE_MIXED_PRECISION=options["--mixed_precision"])
    env["OMP_NUM_THREADS"] = options["--num_cpu_threads_per_process"]
    print("accelerate: one process", flush=True)
    simple_launcher(([sys.executable, *words], env))


if __name__ == "__main__":
    main()
"""

_ACCELERATE = """\
import os

with open({imports!r}, "a") as imports:
    imports.write(str(os.getpid()) + chr(10))
"""


class StubTuner:
    """A stand-in for a clone. `actions` of a step (its script's file name) are what its program does, in order:

    `["say", text]` (latin-1), `["say_on_stderr", text]`, `["write"]` or `["write", text]` the step's output,
    `["write_at", path, text]`, `["await", path]` until it exists, `["note_pid"]`, `["hang"]`, `["exit", code]`,
    `["signal", number]`,
    `["spawn", {"ignore": [signals], "setsid": bool, "daemon": bool}]` a process that never ends.
    """

    def __init__(self, root: Path, *, convert_by_flags: bool = True, version: str = "0.2.15") -> None:
        self.root = root
        self.actions: dict[str, list[list[Any]]] = {}
        self.pids_folder = root / "pids"
        (root / "src/musubi_tuner/networks").mkdir(parents=True)
        (root / "src/musubi_tuner/__init__.py").touch()
        self.pids_folder.mkdir()
        (root / "pyproject.toml").write_text(f'[project]\nname = "musubi-tuner"\nversion = "{version}"\n')
        self.add(LATENTS, _NO_OUTPUT)
        self.add(TEXT, _NO_OUTPUT)
        self.add(TRAIN, _TRAIN_OUTPUT, LORA)
        self.add_converter(by_flags=convert_by_flags)
        self._save()

    def add(self, script: str, output_path: str, content: bytes = b"") -> None:
        program = _PROGRAM.format(root=str(self.root), step=Path(script).name, output_path=output_path, content=content)
        (self.root / script).write_text(program, encoding="utf-8")

    def add_converter(self, *, by_flags: bool) -> None:
        self.add(CONVERT, _CONVERT_BY_FLAGS if by_flags else _CONVERT_BY_POSITION, CONVERTED)

    def does(self, script: str, *actions: list[Any]) -> None:
        self.actions[Path(script).name] = list(actions)
        self._save()

    def _save(self) -> None:
        (self.root / "behaviour.json").write_text(json.dumps(self.actions))

    def calls(self) -> list[dict[str, Any]]:
        path = self.root / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def pids(self) -> list[int]:
        """Of the processes that hang."""
        return [int(path.name) for path in self.pids_folder.iterdir() if path.name.isdigit()]

    def wait_for_pids(self, count: int, seconds: float = 30) -> list[int]:
        assert wait_until(lambda: len(self.pids()) >= count, seconds), f"{count} processes expected: {self.pids()}"
        return self.pids()


def install_accelerate(folder: Path, *, as_the_real_one: bool = False) -> Path:
    """Puts an accelerate into `folder`; returns the file in which every process that imports it leaves its id."""
    imports = folder / "imported-by"
    commands = folder / "accelerate/commands"
    commands.mkdir(parents=True, exist_ok=True)
    (folder / "accelerate/__init__.py").write_text(_ACCELERATE.format(imports=str(imports)))
    (commands / "__init__.py").touch()
    (commands / "launch.py").write_text(_LAUNCH_AS_THE_REAL_ONE if as_the_real_one else _LAUNCH)
    return imports


def install_accelerate_program(folder: Path, python: str, marker: Path) -> None:
    """An `accelerate` for PATH, as pip writes it; leaves `marker` when it runs."""
    folder.mkdir(exist_ok=True)
    program = folder / "accelerate"
    program.write_text(
        f"#!{python}\nimport sys\nopen({str(marker)!r}, 'w').close()\n"
        "del sys.argv[1]\nfrom accelerate.commands.launch import main\nmain()\n"
    )
    program.chmod(0o755)


def wait_until(condition: Any, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def is_running(pid: int) -> bool:
    """Not ended; a zombie has ended (where process 1 does not reap, orphans stay so)."""
    if not os.path.exists("/proc/self/stat"):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def end(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            continue
