"""Makes the real Musubi Tuner fail in every way that `src/failure.rs` knows, and keeps what it said.

usage: python provoke.py MUSUBI_TUNER_DIR WORK [CASE …]

with the small weights in WORK/small (see compare.py) and the library on PYTHONPATH. Each case runs through `_run_cmd`,
as a step of `train()` does. The lines that tell why it failed are written to WORK/failures/CASE.txt in the form of
tests/recorded/failures, without a line of anybody's code; and where that folder has the case with a reason, the error
must give the same reason, but for paths and numbers. Linux; as root, or where user namespaces are allowed.
"""

import logging
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

from compare import release
from musubitraining.main import Models, MusubiTraining
from PIL import Image
from train import DATASET

HERE = Path(__file__).resolve().parent
RECORDED = HERE.parent / "tests" / "recorded" / "failures"
VERSIONS = ("torch", "transformers", "accelerate", "safetensors", "bitsandbytes", "pillow")
PHOTO = "images/photo_0.jpg"
CACHE = "cache/photo_0_0112x0096_zi.safetensors"
BAR = re.compile(r"\d+%\|| \d*it \[|it/s|s/it")
FRAME = re.compile(r'  File "(?P<file>[^"]+)", line \d+, in .*')
REFUSAL = re.compile(r": (error|can't open file|Error while finding|No module named)")
LOADING = re.compile(r"Loading .* from |merging module: |Loaded |weights merged|saving checkpoint: ")
LINK = re.compile(r"(During handling of the above|The above exception was the direct)")
PARTICULARS = re.compile(r"\S*/\S*|\d[\d.]*")


class Commands(MusubiTraining):
    """Keeps the commands of the steps in the place of running them."""

    def _run_cmd(self, step: str, cmd: Sequence[str | os.PathLike[str]], *, cwd: str | os.PathLike[str]) -> None:
        vars(self)[step] = [os.fspath(word) for word in cmd]


class Place:
    """The folder of one failing run, and the commands of a good one."""

    def __init__(self, musubi: Path, small: Path, run: Path) -> None:
        """Name the paths, and ask the library for its commands."""
        self.musubi, self.models, self.run = musubi, small / "models", run
        steps = Commands(str(self.models), Models(), str(run), str(run / "output"), str(musubi))
        steps._pre_cache(dataset_toml_path=str(run / "dataset.toml"))
        steps._launch_training(dataset_toml_path=str(run / "dataset.toml"), output_name="lora", max_train_steps=4)
        lora = run / "output" / "lora.safetensors"
        lora.touch()
        # Nothing is converted, which it finds.
        with suppress(FileNotFoundError):
            steps._convert_for_comfyui(str(lora))
        lora.unlink()
        self.steps: dict[str, list[str]] = vars(steps)

    def command(self, step: str) -> list[str]:
        """The command of a step, on the weights at hand."""
        good = self.run.parent / "small" / "models"
        return [word.replace(str(good), str(self.models)) for word in self.steps[step]]


Prepare = Callable[[Place], None]
Command = Callable[[Place], list[str]]


@dataclass(frozen=True)
class Case:
    """A way to fail."""

    name: str
    how: str
    command: Command
    prepare: Prepare = lambda place: None
    environment: dict[str, str] = field(default_factory=dict)
    kill: tuple[str, str, signal.Signals] | None = None
    """At a line with the first, the process whose command line has the second gets the signal."""
    around: Callable[[], AbstractContextManager[list[str]]] = lambda: nullcontext([])
    """What the command runs in, and what that counted, for the record."""


def latents(place: Place) -> list[str]:
    """Caches the latents."""
    return place.command("precache:latents")


def text(place: Place) -> list[str]:
    """Caches the captions."""
    return place.command("precache:text_encoder")


def train(place: Place) -> list[str]:
    """Trains."""
    return place.command("train")


def convert(place: Place) -> list[str]:
    """Converts, into a folder of its own."""
    return [*place.command("convert:comfyui")[:-1], str(place.run / "cache" / "comfyui.safetensors")]


def adding(command: Command, *options: str) -> Command:
    """The command with further options; the last of two holds."""
    return lambda place: [*command(place), *(option.format(run=place.run) for option in options)]


def replacing(command: Command, old: str, new: str) -> Command:
    """The command with words replaced."""
    return lambda place: [word.replace(old, new.format(run=place.run)) for word in command(place)]


def inserting(command: Command, before: str, *words: str) -> Command:
    """The command with words before one of its own."""

    def inserted(place: Place) -> list[str]:
        good = command(place)
        at = good.index(before)
        return [*good[:at], *words, *good[at:]]

    return inserted


def mounted(command: Command, folder: str, options: str) -> Command:
    """The command with a small file system of its own on a folder."""
    mount = f'mount -t tmpfs -o {options} none "$0" && exec "$@"'
    return lambda place: ["unshare", "-rm", "sh", "-c", mount, str(place.run / folder), *command(place)]


def in_shell(command: Command, before: str) -> Command:
    """The command after a line of shell."""
    return lambda place: ["sh", "-c", f'{before} && exec "$@"', "sh", *command(place)]


def without_options(command: Command, python: str) -> Command:
    """The command with an option for Python itself."""
    return lambda place: [command(place)[0], python, *command(place)[1:]]


def put(name: str, content: bytes) -> Prepare:
    """Overwrites a file of the run."""
    return lambda place: void((place.run / name).write_bytes(content))


def cut(name: str, length: int) -> Prepare:
    """Cuts a file of the run."""
    return lambda place: os.truncate(place.run / name, length)


def model(field_name: str, change: Callable[[Path], object]) -> Prepare:
    """Changes a copy of one of the four files of weights."""

    def prepare(place: Place) -> None:
        copy = place.run / "models"
        shutil.copytree(place.models, copy)
        change(copy / getattr(Models(), field_name))
        place.models = copy

    return prepare


def of_another(field_name: str) -> Callable[[Path], object]:
    """Replaces a file of weights by another one's."""
    return lambda path: shutil.copy(path.with_name(getattr(Models(), field_name)), path)


def hide(module: str) -> Prepare:
    """Lets a module's import fail as if it were not installed."""

    def prepare(place: Place) -> None:
        folder = place.run / "hidden"
        folder.mkdir()
        (folder / f"{module}.py").write_text(
            f'raise ModuleNotFoundError("No module named {module!r}", name="{module}")\n'
        )
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ["PYTHONPATH"]])

    return prepare


def cut_photo(kind: str) -> Prepare:
    """Puts half of a photo of another format in a photo's place."""

    def prepare(place: Place) -> None:
        photo = BytesIO()
        Image.open(place.run / PHOTO).save(photo, kind)
        (place.run / PHOTO).write_bytes(photo.getvalue()[: len(photo.getvalue()) // 2])

    return prepare


def empty_text_caches(place: Place) -> None:
    """Leave no byte in the caches of the captions."""
    for cache in (place.run / "cache").glob("*_te.safetensors"):
        cache.write_bytes(b"")


def adapter_to_convert(place: Place) -> None:
    """A LoRA that the converter takes."""
    shutil.copy(place.models / Models().base_weights, place.run / "output/lora.safetensors")


def clear(folder: str) -> Prepare:
    """Empties a folder of the run."""

    def prepare(place: Place) -> None:
        shutil.rmtree(place.run / folder)
        (place.run / folder).mkdir()

    return prepare


def cuda_folder() -> str:
    """Where this environment has a library that torch is linked to."""
    return str(next(Path(sys.prefix).glob("lib/python*/site-packages/nvidia/cufft/lib")))


def void(_: object) -> None:
    """For lambdas that return nothing."""


def half(path: Path) -> None:
    """Cut a file in the middle."""
    os.truncate(path, path.stat().st_size // 2)


@contextmanager
def port_in_use() -> Iterator[list[str]]:
    """Hold accelerate's port."""
    with socket.create_server(("", 29500)):
        yield []


@contextmanager
def small_cgroup(limit_mib: int) -> Iterator[list[str]]:
    """A memory cgroup (v1) for us and the command, too small for it; what it counted."""
    (ours,) = re.findall(r"^\d+:memory:/(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    group = CGROUPS / "musubitraining-provoke"
    group.mkdir()
    limit = limit_mib << 20
    (group / "memory.limit_in_bytes").write_text(str(limit))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    counted: list[str] = []
    try:
        yield counted
    finally:
        (CGROUPS / ours / "cgroup.procs").write_text(str(os.getpid()))
        kills = (group / "memory.oom_control").read_text().split()[-1]
        counted += [f"# OOM kills: {kills}", f"# memory limit: {limit}"]
        group.rmdir()


def uncounted() -> AbstractContextManager[list[str]]:
    """For a kill that is none of the kernel's."""
    return nullcontext(["# OOM kills: 0"])


CGROUPS = Path("/sys/fs/cgroup/memory")
AS_NOBODY = 'set -- setpriv --reuid=65534 --clear-groups "$@"'
HTML = (
    b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Access to this model is restricted.</body></html>"
)
OFFLINE = {"HF_HOME": "/nonexistent", "HF_HUB_OFFLINE": "1"}
REFUSED = {"HF_HOME": "/nonexistent", "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
TRAINING = "zimage_train_network.py"

CASES = [
    Case("module_bitsandbytes", "bitsandbytes hidden", train, hide("bitsandbytes")),
    Case("module_transformers", "transformers hidden", text, hide("transformers")),
    Case("module_cv2", "cv2 hidden", latents, hide("cv2")),
    Case("module_musubi_tuner", "Python started with -I", without_options(latents, "-I")),
    Case("module_accelerate", "Python started with -I -S", without_options(train, "-IS")),
    Case("script_missing", "no such script", replacing(latents, "zimage_cache_latents.py", "zimage_cache.py")),
    Case("tokenizer_offline", "HF_HUB_OFFLINE=1 and an empty HF_HOME", text, environment=OFFLINE),
    Case("tokenizer_refused", "HF_ENDPOINT on a port that nobody listens on", text, environment=REFUSED),
    Case("disk_full_lora", "output folder of 64 KiB", mounted(train, "output", "size=64k")),
    Case("disk_full_latents", "cache folder of 4 KiB", mounted(latents, "cache", "size=4k")),
    Case("disk_full_text", "cache folder of 4 KiB", mounted(text, "cache", "size=4k")),
    Case("disk_no_inodes", "cache folder for one file", mounted(latents, "cache", "nr_inodes=2")),
    Case("read_only", "cache folder read-only", mounted(latents, "cache", "ro")),
    Case(
        "shared_memory_batches",
        "/dev/shm of 100 KiB, and SIGTERM, as the training then waits forever",
        mounted(train, "/dev/shm", "size=100k"),
        kill=("unable to write to file", TRAINING, signal.SIGTERM),
    ),
    Case("permission", "a user who may not start this Python", in_shell(train, AS_NOBODY)),
    Case("library", "a folder of CUDA's libraries hidden", lambda place: mounted(latents, cuda_folder(), "ro")(place)),
    Case("open_files", "at most 16 open files", in_shell(train, "ulimit -n 16")),
    Case("shared_memory", "/dev/shm of 64 KiB", mounted(train, "/dev/shm", "size=64k")),
    Case(
        "killed",
        "the training process killed",
        train,
        kill=("running training", TRAINING, signal.SIGKILL),
        around=uncounted,
    ),
    Case(
        "killed_directly",
        "SIGKILL to a caching script",
        latents,
        kill=("Load dataset config", "zimage_cache", signal.SIGKILL),
        around=uncounted,
    ),
    Case(
        "killed_sigterm", "SIGTERM to the training process", train, kill=("running training", TRAINING, signal.SIGTERM)
    ),
    Case(
        "killed_sigsegv", "SIGSEGV to the training process", train, kill=("running training", TRAINING, signal.SIGSEGV)
    ),
    Case(
        "killed_sigill",
        "SIGILL to a caching script",
        latents,
        kill=("Load dataset config", "zimage_cache", signal.SIGILL),
    ),
    Case("oom_killed", "a memory cgroup of 600 MiB", train, around=lambda: small_cgroup(600)),
    Case(
        "oom_killed_directly",
        "a memory cgroup of 300 MiB",
        latents,
        around=lambda: small_cgroup(300),
    ),
    Case(
        "worker_killed",
        "SIGKILL to the data loader's workers",
        train,
        kill=("epoch is incremented", "worker", signal.SIGKILL),
        around=uncounted,
    ),
    Case("address_space", "ulimit -v", in_shell(latents, "ulimit -v 2500000")),
    Case(
        "nan_loss_then_failure",
        "a learning rate of 1e30, and an output folder that cannot be made",
        adding(train, "--learning_rate", "1e30", "--output_dir", "/proc/x"),
    ),
    Case(
        "nan_loss_then_disk_full",
        "a learning rate of 1e30, and an output folder of 64 KiB",
        mounted(adding(train, "--learning_rate", "1e30"), "output", "size=64k"),
    ),
    Case("toml_unknown_key", "resolutoin in [general]", latents, lambda p: rewrite(p, "resolution", "resolutoin")),
    Case(
        "toml_wrong_type",
        "a string for batch_size",
        latents,
        lambda p: rewrite(p, "batch_size = 1", 'batch_size = "1"'),
    ),
    Case("toml_syntax", "an unclosed quote", latents, lambda p: rewrite(p, '".txt"', '".txt')),
    Case("toml_missing", "no dataset.toml", latents, lambda p: (p.run / "dataset.toml").unlink()),
    Case("weights_missing_vae", "no such file", latents, model("ae", Path.unlink)),
    Case("weights_missing_text", "no such file", text, model("text_encoder", Path.unlink)),
    Case("weights_missing_dit", "no such file", train, model("DiT", Path.unlink)),
    Case("weights_html_vae", "a web page", latents, model("ae", lambda path: path.write_bytes(HTML))),
    Case("weights_html_text", "a web page", text, model("text_encoder", lambda path: path.write_bytes(HTML))),
    Case("weights_html_dit", "a web page", train, model("DiT", lambda path: path.write_bytes(HTML))),
    Case("weights_html_adapter", "a web page", train, model("base_weights", lambda path: path.write_bytes(HTML))),
    Case("weights_empty_vae", "no byte", latents, model("ae", lambda path: path.write_bytes(b""))),
    Case("weights_empty_adapter", "no byte", train, model("base_weights", lambda path: path.write_bytes(b""))),
    Case(
        "weights_not_json",
        "a header that is no JSON",
        latents,
        model("ae", lambda path: path.write_bytes(struct.pack("<Q", 8) + b"not json")),
    ),
    Case("weights_cut_vae", "cut in the middle", latents, model("ae", half)),
    Case("weights_cut_text", "cut in the middle", text, model("text_encoder", half)),
    Case("weights_cut_dit", "cut in the middle", train, model("DiT", half)),
    Case("weights_cut_adapter", "cut in the middle", train, model("base_weights", half)),
    Case("weights_of_another_vae", "the text encoder's file", latents, model("ae", of_another("text_encoder"))),
    Case("weights_of_another_text", "the VAE's file", text, model("text_encoder", of_another("ae"))),
    Case("weights_of_another_dit", "the VAE's file", train, model("DiT", of_another("ae"))),
    Case("no_caches", "an empty cache folder", train, clear("cache")),
    Case("cache_cut", "a latent cache cut", train, cut(CACHE, 100)),
    Case("cache_garbage", "a latent cache of text", train, put(CACHE, HTML)),
    Case(
        "cache_empty_text",
        "empty text caches, and no workers",
        adding(train, "--max_data_loader_n_workers", "0"),
        empty_text_caches,
    ),
    Case(
        "cache_empty_text_of_workers",
        "empty text caches, and SIGTERM, as the training then waits forever",
        train,
        empty_text_caches,
        kill=("Can't pickle", TRAINING, signal.SIGTERM),
    ),
    Case("cache_empty_latents", "an empty latent cache", train, put(CACHE, b"")),
    Case("photo_is_text", "text named .jpg", latents, put(PHOTO, b"not a photo")),
    Case("photo_cut", "a photo cut in the middle", latents, cut(PHOTO, 900)),
    Case("photo_cut_png", "a PNG cut in the middle", latents, cut_photo("PNG")),
    Case("photo_cut_webp", "a WebP cut in the middle", latents, cut_photo("WebP")),
    Case("option_unknown", "an option that the script does not have", adding(train, "--save_pecision", "bf16")),
    Case("option_missing", "no --text_encoder", lambda p: text(p)[:4]),
    Case("option_value", "a value that is none of the choices", adding(train, "--mixed_precision", "bf61")),
    Case(
        "option_launcher",
        "an option that accelerate does not have",
        replacing(train, "--num_cpu_threads_per_process", "--num_threads_of_the_cpu"),
    ),
    Case("cuda_without_gpu", "--device cuda without a GPU", adding(latents, "--device", "cuda")),
    Case("output_folder", "an output folder in /proc", adding(train, "--output_dir", "/proc/x")),
    Case(
        "address_in_use",
        "accelerate's port held",
        inserting(train, "--num_cpu_threads_per_process", "--multi_gpu", "--num_processes=2"),
        around=port_in_use,
    ),
    Case("convert_missing", "no LoRA to convert", convert),
    Case("convert_garbage", "a LoRA of text", convert, put("output/lora.safetensors", HTML)),
    Case("convert_disk_full", "a folder of 4 KiB", mounted(convert, "cache", "size=4k"), adapter_to_convert),
]


def rewrite(place: Place, old: str, new: str) -> None:
    """Change the dataset's TOML."""
    toml = place.run / "dataset.toml"
    toml.write_text(toml.read_text().replace(old, new, 1))


class Listener(logging.Handler):
    """Keeps a step's lines, and kills at one of them."""

    def __init__(self, kill: tuple[str, str, signal.Signals] | None) -> None:
        """Begin with no line."""
        super().__init__(logging.INFO)
        self.lines: list[str] = []
        self.kill = kill

    def emit(self, record: logging.LogRecord) -> None:
        """Hear a line."""
        prefix, said = "[provoked] ", record.getMessage()
        if not said.startswith(
            (f"{prefix}starting", f"{prefix}cwd=", f"{prefix}cmd=", f"{prefix}failed", f"{prefix}done")
        ):
            self.lines.append(said.removeprefix(prefix))
        if self.kill and self.kill[0] in said:
            _, what, number = self.kill
            self.kill = None
            for process in victims(what):
                os.kill(process, number)


def victims(what: str) -> list[int]:
    """Our descendants with `what` in their command line; or, for "worker", those that a training script forked."""
    commands: dict[int, tuple[int, str]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            commands[int(folder.name)] = parent, (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue

    def ours(process: int) -> bool:
        while process in commands and process != os.getpid():
            process = commands[process][0]
        return process == os.getpid()

    if what == "worker":
        return [
            process
            for process, (parent, command) in commands.items()
            if ours(process) and TRAINING in command and commands.get(parent, (0, ""))[1] == command
        ]
    found = [
        process
        for process, (_, command) in commands.items()
        if what in command and "accelerate" not in command and ours(process)
    ]
    # A process before what it forked.
    return sorted(found)[:1]


@dataclass
class Provoked:
    """What became of a case."""

    returncode: int
    error: str
    lines: list[str]
    counted: list[str]


def provoke(case: Case, musubi: Path, work: Path) -> Provoked:
    """Run a case."""
    run = work / "provoked"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(work / "prepared", run)
    (run / "output").mkdir(exist_ok=True)
    rewrite_paths = (run / "dataset.toml").read_text().replace(str(work / "prepared"), str(run))
    (run / "dataset.toml").write_text(rewrite_paths)
    place = Place(musubi, work / "small", run)
    before = dict(os.environ)
    listener = Listener(case.kill)
    logger = logging.getLogger("musubitraining")
    logger.addHandler(listener)
    try:
        case.prepare(place)
        os.environ.update(case.environment)
        trainer = MusubiTraining(str(place.models), Models(), str(run), str(run / "output"), str(musubi))
        with case.around() as counted:
            trainer._run_cmd("provoked", case.command(place), cwd=str(musubi))
    except subprocess.CalledProcessError as error:
        return Provoked(error.returncode, str(error), listener.lines, counted)
    finally:
        logger.removeHandler(listener)
        os.environ.clear()
        os.environ.update(before)
    return Provoked(0, "", listener.lines, counted)


def telling(lines: list[str]) -> list[str]:
    """The lines that tell of the failure: no code, few bars, what was loaded last."""
    kept: list[str] = []
    last_bar = last_loading = ""
    in_frames = text_may_follow = False
    for line in lines:
        if "Traceback (most recent call last):" in line:
            kept += [last for last in (last_loading, last_bar) if last]
            last_bar = last_loading = ""
            in_frames = True
            kept.append(line)
        elif in_frames:
            if FRAME.fullmatch(line):
                kept.append(line)
            elif not line.startswith("  "):
                in_frames, text_may_follow = False, True
                kept.append(line)
        elif LINK.match(line) or REFUSAL.search(line) or (text_may_follow and line):
            text_may_follow = False
            kept.append(line)
        elif BAR.search(line):
            last_bar = line
        elif LOADING.search(line):
            last_loading = line
    return [*kept, *(last for last in (last_loading, last_bar) if last)]


def neutral(line: str, musubi: Path, work: Path) -> str:
    """The line with nobody's paths, and short."""
    paths = {
        str(work / "provoked"): "/run",
        str(work / "small"): "/small",
        str(musubi): "/clone",
        str(HERE): "/real",
        sys.prefix: "/env",
        sys.base_prefix: "/python",
    }
    for path, name in paths.items():
        line = line.replace(path, name)
    return re.sub(r"Command '\[.*\]'", "Command '[…]'", line)[:600]


def reason_of(record: Path) -> str:
    """The reason that a recorded failure has."""
    sign = "# reason: "
    lines = record.read_text().splitlines() if record.exists() else []
    return next((line.removeprefix(sign) for line in lines if line.startswith(sign)), "")


def without_particulars(text: str) -> str:
    """The text without paths and numbers."""
    return PARTICULARS.sub("…", text)


def prepare_run(musubi: Path, work: Path) -> None:
    """Make the folder that every case starts from a copy of, with its caches, once."""
    prepared = work / "prepared"
    if not (prepared / "ready").exists():
        shutil.rmtree(prepared, ignore_errors=True)
        (prepared / "cache").mkdir(parents=True)
        shutil.unpack_archive(work / "small/photos.zip", prepared / "images")
        for photo in (prepared / "images").glob("*.jpg"):
            photo.with_suffix(".txt").write_text("a photo of sks")
        (prepared / "dataset.toml").write_text(DATASET.format(training=prepared))
        place = Place(musubi, work / "small", prepared)
        for command in (latents(place), text(place)):
            subprocess.run(command, check=True, cwd=musubi, capture_output=True)
        (prepared / "ready").touch()


def main() -> None:
    """Provoke, write, compare."""
    musubi, work, *wanted = [Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), *sys.argv[3:]]
    logging.getLogger("musubitraining").setLevel(logging.INFO)
    logging.getLogger("musubitraining").propagate = False
    os.environ.update(
        PYTHONPATH=os.pathsep.join([str(HERE / "small"), str(musubi / "src")]),
        HF_HOME=str(work / "small/hf"),
        HF_HUB_OFFLINE="1",
        CUDA_VISIBLE_DEVICES="",
        OMP_NUM_THREADS="1",
        PYTHONUNBUFFERED="1",
        PYTHONDONTWRITEBYTECODE="1",
        NO_PROXY="127.0.0.1",
    )
    prepare_run(musubi, work)
    versions = f"Musubi Tuner {release(musubi)}, Python {sys.version.split()[0]}, "
    versions += ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    written = work / "failures"
    written.mkdir(exist_ok=True)
    unlike = 0
    for case in CASES:
        if wanted and case.name not in wanted:
            continue
        provoked = provoke(case, musubi, work)
        recorded = RECORDED / f"{case.name}.txt"
        reason = reason_of(recorded)
        header = [
            f"# exit code: {provoked.returncode}",
            *provoked.counted,
            f"# provoked by: {case.how}",
            f"# versions: {versions}",
            f"# reason: {reason}",
        ]
        kept = [neutral(line, musubi, work) for line in telling(provoked.lines)]
        (written / recorded.name).write_text("\n".join([*header, *kept]) + "\n")
        same = without_particulars(reason) in without_particulars(provoked.error)
        unlike += not same
        print(f"  {'as recorded' if same else 'UNLIKE'}  {case.name}", flush=True)
        if not same:
            print(f"    recorded: {reason}\n    now: {provoked.error}")
    sys.exit(bool(unlike))


if __name__ == "__main__":
    main()
