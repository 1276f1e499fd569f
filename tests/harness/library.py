"""Both libraries, to be put through the same scenarios: the original in an environment of its own, ours in this one."""

import fcntl
import hashlib
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import scenario
from harness.photos import photo_zip
from harness.scenario import Work
from harness.server import Server, serving
from harness.tuner import StubTuner, install_accelerate

ORIGINAL = "TechTrash-MusubiTraining==0.0.11"
WEIGHTS = (
    "ae.safetensors",
    "qwen_3_4b.safetensors",
    "z_image_de_turbo_v1_bf16.safetensors",
    "zimage_turbo_training_adapter_v2.safetensors",
)

Scenario = Callable[[Work], Any]


@dataclass(frozen=True)
class Library:
    name: str
    python: str


OURS = Library("ours", sys.executable)


def original(cache: Path) -> Library:
    """The original in a throw-away environment, made once and kept in `cache`; `ORIGINAL_PYTHON` names a ready one."""
    ready = os.environ.get("ORIGINAL_PYTHON")
    if ready:
        return Library("original", ready)
    cache.mkdir(parents=True, exist_ok=True)
    home = cache / "original-{}.{}".format(*sys.version_info)
    python = home / "bin/python"
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "ready").exists():
            _check([sys.executable, "-m", "venv", "--clear", str(home)])
            install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            # Its exact pins cannot all be installed on every Python: only what it imports.
            _check([*install, "requests", *(["tomli"] if sys.version_info < (3, 11) else [])])
            _check([*install, "--no-deps", ORIGINAL])
            (home / "ready").touch()
    return Library("original", str(python))


def _check(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"cannot make the environment of the original ({' '.join(command)}): {done.stderr.strip()}\n"
            "It needs the package registry once; or let ORIGINAL_PYTHON name a Python that has it."
        )


@dataclass(repr=False)
class Run:
    """What happened, with the workspace's own names taken out: `<work>`, `<server>`, `<python>`."""

    result: Any
    error: dict[str, Any] | None
    log: list[tuple[str, str]]
    calls: list[dict[str, Any]]
    requests: list[tuple[str, str]]
    headers: list[dict[str, str]]
    files: dict[str, str]
    output: str
    workspace: "Workspace"
    threads: set[str]
    """Those that log records came from."""

    def logged(self, part: str, level: str | None = None) -> list[str]:
        return [message for name, message in self.log if part in message and level in (None, name)]

    def argv(self, step: str) -> list[list[str]]:
        return [call["argv"] for call in self.calls if call["step"] == Path(step).name]

    def ok(self) -> "Run":
        assert self.error is None, self.error["traceback"] + self.output
        return self


@dataclass(repr=False)
class Workspace:
    """The folders, weights, zip, server and tuner of one scenario; change what you like before the run."""

    root: Path
    server: Server
    tuner: StubTuner
    accelerate_imports: Path
    env: dict[str, str] = field(default_factory=dict)
    url: str = ""
    toml: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    cwd: Path | None = None
    python: str = sys.executable

    @classmethod
    def make(cls, root: Path, server: Server) -> "Workspace":
        for folder in ("models", "output", "site"):
            (root / folder).mkdir(parents=True)
        for name in WEIGHTS:
            (root / "models" / name).touch()
        imports = install_accelerate(root / "site")
        workspace = cls(root, server, StubTuner(root / "musubi"), imports)
        workspace.env = {"PYTHONPATH": str(root / "site")}
        workspace.url = server.on("/photos.zip", photo_zip())
        workspace.toml = (
            '[general]\nresolution = [64, 64]\ncaption_extension = ".txt"\nbatch_size = 1\n\n'
            f"[[datasets]]\nimage_directory = {_toml(workspace.images)}\n"
            f"cache_directory = {_toml(workspace.training / 'cache')}\n"
        )
        return workspace

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def training(self) -> Path:
        return self.root / "training"

    @property
    def output(self) -> Path:
        return self.root / "output"

    @property
    def images(self) -> Path:
        return self.training / "images"

    def serve(self, data: bytes) -> None:
        self.url = self.server.on("/photos.zip", data)

    def old_dataset(self) -> dict[str, bytes]:
        """Puts a dataset of an earlier run in place; returns what must be there as long as it is not replaced."""
        files = {"images/old.jpg": b"old photo", "images/old.txt": b"old", "cache/old_zi.safetensors": b"latents"}
        for name, data in files.items():
            path = self.training / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return files

    def files(self) -> dict[str, str]:
        found = {}
        for top in (self.training, self.output):
            for path in sorted(top.rglob("*")):
                name = path.relative_to(self.root).as_posix()
                if path.is_symlink():
                    found[name] = "link"
                elif path.is_dir():
                    found[name + "/"] = "folder"
                else:
                    data = path.read_bytes()
                    found[name] = f"{len(data)} bytes {hashlib.sha256(self._plain(data)).hexdigest()[:12]}"
        return found

    def _plain(self, data: bytes) -> bytes:
        """The workspace's own path, in `dataset.toml`, does not make two files differ."""
        return data.replace(os.fsencode(self.root), b"<work>")

    def start(self, library: Library, run: Scenario) -> "Running":
        return Running(self, library, run)

    def run(self, library: Library, run: Scenario) -> Run:
        return self.start(library, run).finish()


def _toml(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)


def _source(run: Scenario) -> tuple[str, str]:
    if inspect.isfunction(run) and run.__name__ != "<lambda>":
        return textwrap.dedent(inspect.getsource(run)), run.__name__
    raise TypeError("a scenario is a plain function of its own")


class Running:
    """A scenario under way."""

    def __init__(self, workspace: Workspace, library: Library, run: Scenario) -> None:
        self.workspace = workspace
        self.library = library
        self.notes = workspace.root / "notes"
        self.notes.mkdir()
        source, name = _source(run)
        spec = {
            "source": source,
            "name": name,
            "root": str(workspace.root),
            "url": workspace.url,
            "toml": workspace.toml,
            "extra": workspace.extra,
            "log": str(self.notes / "log"),
            "report": str(self.notes / "report"),
        }
        names = ["PATH", "HOME", "LD_LIBRARY_PATH"]
        if library == OURS:
            # To put every scenario through another way of training: TRAIN_OPTIONS='{"warm_start": true}'.
            names.append("TRAIN_OPTIONS")
        env = {name: os.environ[name] for name in names if name in os.environ}
        with open(self.notes / "output", "wb") as output:
            self.process = subprocess.Popen(
                [library.python, scenario.__file__, json.dumps(spec)],
                cwd=workspace.cwd or workspace.root,
                env=env | {"LANG": "C.UTF-8"} | workspace.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return (self.notes / "output").read_text(errors="replace")

    def log(self) -> list[tuple[str, str, str]]:
        path = self.notes / "log"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [tuple(json.loads(line)) for line in lines]

    def finish(self, seconds: float = 60) -> Run:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.library.name}: not done after {seconds} s\n{self.output}") from None
        report_path = self.notes / "report"
        report = json.loads(report_path.read_text(encoding="utf-8")) if report_path.exists() else {}
        assert report or self.process.returncode < 0, f"{self.library.name} left no report:\n{self.output}"
        executable = report.get("executable", self.library.python)
        plain = _Plain(self.workspace, executable)
        log = self.log()
        return Run(
            result=plain(report.get("result")),
            error=plain(report.get("error")),
            log=[(level, plain(message)) for level, message, _ in log],
            calls=plain(self.workspace.tuner.calls()),
            requests=[(request.method, plain(request.path)) for request in self.workspace.server.requests],
            headers=[request.headers for request in self.workspace.server.requests],
            files=self.workspace.files(),
            output=plain(self.output),
            workspace=self.workspace,
            threads={thread for *_, thread in log},
        )


class _Plain:
    def __init__(self, workspace: Workspace, python: str) -> None:
        self.names = {str(workspace.root): "<work>", workspace.server.base: "<server>", python: "<python>"}

    def __call__(self, value: Any) -> Any:
        match value:
            case str():
                for name, plain in self.names.items():
                    value = value.replace(name, plain)
                return re.sub(r"duration=\d+\.\ds", "duration=<s>", value)
            case dict():
                return {key: self(item) for key, item in value.items()}
            case list():
                return [self(item) for item in value]
            case _:
                return value


class Bench:
    """Makes workspaces and puts both libraries through a scenario at the same time."""

    def __init__(self, root: Path, the_original: Callable[[], Library]) -> None:
        self.root = root
        self.the_original = the_original
        self.stack = ExitStack()
        self.made = 0

    def workspace(self) -> Workspace:
        self.made += 1
        server = self.stack.enter_context(serving())
        return Workspace.make(self.root / f"work{self.made}", server)

    def both(self, run: Scenario, arrange: Callable[[Workspace], None] = lambda _: None) -> tuple[Run, Run]:
        """The original's run and ours."""
        started = []
        for library in (self.the_original(), OURS):
            workspace = self.workspace()
            workspace.python = library.python
            arrange(workspace)
            started.append(workspace.start(library, run))
        first, second = (running.finish() for running in started)
        return first, second
