"""Trains with the original library and with this one on the real Musubi Tuner, and compares what they said and left.

usage: python compare.py MUSUBI_TUNER_DIR OURS WORK

OURS is what pip installs as this library: the wheel of this checkout. WORK is a folder for the libraries, the small
weights and every run's files; what earlier runs left there is replaced.

Both libraries run one after the other in the same folder, with the same photos from the same address, so that argv,
log lines and files are compared as they are, but for what `LEFT_OUT` names.
"""

import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distributions
from pathlib import Path

LEFT_OUT = """\
left out, as no two runs share it: durations, and the times and rates of progress bars (their counts and losses are
compared); the moment at which a data loader's worker says its line (that it does is compared); of a LoRA's metadata
the dates and the random session id
rewritten in the original's log, as repaired on purpose: how accelerate is started; the converter's first, failing call
"""
ORIGINAL = "TechTrash-MusubiTraining==0.0.11"
ADAPTER = "zimage_turbo_training_adapter_v2.safetensors"
DIFFUSERS_ADAPTER = "adapter_in_diffusers_naming.safetensors"
LORA = "output/output_lora_model.safetensors"
COMFYUI_LORA = "output/output_lora_model_comfyui.safetensors"
HERE = Path(__file__).resolve().parent

DURATION = re.compile(r"duration=\d+\.\d+s")
# `6it [00:01, 5.42it/s]` and `4/4 [00:00<00:00, 17.70it/s, avr_loss=1.1] `: tqdm pads a bar that became shorter.
PROGRESS = re.compile(r"\[[\d:?]+(?:<[\d:?]+)?, +[\d.?]+(?:it/s|s/it)(?P<rest>[^\]]*)\] *")
# The blanks with which tqdm wipes a finished bar are as many as the bar was long.
WIPED = re.compile(r"\] {2,}$")
WORKER = "epoch is incremented"
COMMAND = re.compile(r"INFO \[[\w:]+\] cmd=")
LAUNCHER = re.compile(r"(?<=^INFO \[train\] cmd=).*?/accelerate launch(?= )")
BASE_WEIGHTS = re.compile(r"--base_weights (.*?) --dataset_config")
STEP_END = re.compile(r"\w+ \[(?P<step>[\w:]+)\] (?:done|failed) \(.*duration=(?P<seconds>[\d.]+)s\)")
MERGED = re.compile(r"create LoRA for U-Net/DiT: (\d+) modules")
CHANGES_THE_RUN = ("ACCELERATE_", "HF_", "PYTHON", "TQDM_")
NEVER_THE_SAME = {
    "modelspec.date",
    "ss_session_id",
    "ss_training_finished_at",
    "ss_training_started_at",
}

Tensors = dict[str, tuple[str, list[int], bytes]]


@dataclass(frozen=True)
class Run:
    """What one call of `train()` said, returned and left."""

    name: str
    folder: Path
    returned: str
    error: str
    seconds: float
    lines: list[str]

    @property
    def step_seconds(self) -> dict[str, float]:
        """How long each step took; a step that ran twice counts twice."""
        seconds: dict[str, float] = {}
        for end in filter(None, map(STEP_END.match, self.lines)):
            seconds[end["step"]] = seconds.get(end["step"], 0.0) + float(end["seconds"])
        return seconds

    @property
    def files(self) -> set[str]:
        """The files of the run, but for our log of it and our records."""
        paths = {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if not path.is_dir()}
        return paths - {"log.txt", "training/photos.json", "training/events.jsonl", "training/run.json"}

    @property
    def base_weights(self) -> str:
        """The adapter as it was handed to Musubi Tuner, relative to the run's folder where it lies in it."""
        adapter = next((found[1] for found in map(BASE_WEIGHTS.search, commands(self.lines)) if found), "")
        return adapter.removeprefix(f"{self.folder.parent / 'run'}/")

    @property
    def merged_modules(self) -> int | None:
        """How many modules the adapter was merged into."""
        lines = iter(self.lines)
        if not any("create LoRA network from weights" in line for line in lines):
            return None
        return next((int(count[1]) for count in map(MERGED.search, lines) if count), None)


@dataclass
class Report:
    """The verdicts, printed as they fall."""

    differences: int = 0

    def say(self, what: str, *, same: bool, detail: str = "") -> None:
        """Print one verdict."""
        self.differences += not same
        print(f"  {'same     ' if same else 'DIFFERENT'}  {what:<44} {detail}".rstrip(), flush=True)

    def explain(self, lines: list[str], limit: int = 12) -> None:
        """Print what a verdict rests on, cut to what one reads."""
        for line in lines[:limit]:
            print(f"             {line[:200]}")
        if len(lines) > limit:
            print(f"             … {len(lines) - limit} more")


class Workplace:
    """The folder of the comparison: two libraries, the weights, and one run at a time in `run/`."""

    def __init__(self, musubi: Path, work: Path) -> None:
        """Prepare the folder."""
        self.musubi, self.work, self.small = musubi, work, work / "small"
        work.mkdir(parents=True, exist_ok=True)

    def install(self, name: str, *requirement: str) -> Path:
        """Install a library into a folder of its own, over this environment's packages."""
        library = self._empty(name)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--target", library, *requirement], check=True)
        return library

    def write_weights(self) -> None:
        """Make the small Z-Image."""
        self._empty("small")
        subprocess.run(
            [sys.executable, HERE / "weights.py", self.small],
            env=self._environment(HERE / "small", self.musubi / "src"),
            check=True,
            stderr=subprocess.DEVNULL,
        )

    def convert(self, adapter: Path, target: Path) -> Path:
        """Let the clone's own converter rename an adapter."""
        converter = self.musubi / "convert_lora.py"
        subprocess.run(
            [sys.executable, converter, "--target", "default", "--input", adapter, "--output", target],
            env=self._environment(self.musubi / "src"),
            check=True,
            stderr=subprocess.DEVNULL,
        )
        return target

    def train(
        self, name: str, library: Path, url: str, adapter: str = ADAPTER, *, bare: bool = False, **options: object
    ) -> Run:
        """Run `train()` once; `bare` leaves it to the library to find the clone's `src`."""
        print(f"{name} …", end=" ", flush=True)
        folder = self._empty("run")
        paths = [library, HERE / "small"] if bare else [library, HERE / "small", self.musubi / "src"]
        began = time.monotonic()
        host = subprocess.run(
            [
                sys.executable,
                HERE / "train.py",
                self.musubi,
                self.small / "models",
                adapter,
                url,
                folder,
                json.dumps(options),
            ],
            env=self._environment(*paths),
            capture_output=True,
            text=True,
        )
        seconds = time.monotonic() - began
        log = folder / "log.txt"
        # Not splitlines(): a line of a child may hold other separators than the newline between two log lines.
        lines = log.read_text(encoding="utf-8").split("\n")[:-1] if log.exists() else []
        kept = folder.rename(self._gone(name))
        error = ""
        if host.returncode != 0:
            what = host.stderr.strip().rpartition("\n")[2]
            # The command is in the log; it would fill the screen here.
            error = f"{re.sub('Command .* returned', 'a command returned', what)} (log: {kept / 'log.txt'})"
        print(error or f"{seconds:.1f} s", flush=True)
        return Run(name, kept, host.stdout.strip(), error, seconds, lines)

    def _environment(self, *python_path: Path) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(CHANGES_THE_RUN)}
        return kept | {
            "PYTHONPATH": os.pathsep.join(map(str, python_path)),
            # The original finds accelerate on PATH.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "HF_HOME": str(self.small / "hf"),
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            # A bar that is redrawn at each step is redrawn equally often in every run.
            "TQDM_MININTERVAL": "0",
            # Ours sets it; the original's lines would come in another order without it.
            "PYTHONUNBUFFERED": "1",
            # The clone is left as it was found.
            "PYTHONDONTWRITEBYTECODE": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def _gone(self, name: str) -> Path:
        path = self.work / name.replace(" ", "-").replace(",", "")
        shutil.rmtree(path, ignore_errors=True)
        return path

    def _empty(self, name: str) -> Path:
        path = self._gone(name)
        path.mkdir()
        return path


class Quiet(SimpleHTTPRequestHandler):
    """A file server that says nothing."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def steady(lines: list[str]) -> list[str]:
    """The log without what no two runs share; see the top of this file."""
    masked = (PROGRESS.sub(r"[…\g<rest>]", DURATION.sub("duration=…", line)) for line in lines)
    steady = [WIPED.sub("] (bar wiped)", line) for line in masked]
    at_any_time = sorted(line for line in steady if WORKER in line)
    return [line for line in steady if WORKER not in line] + at_any_time


def repaired(lines: list[str]) -> list[str]:
    """The original's log as it would be without the two faults that show in it."""
    kept: list[str] = []
    for line in lines:
        kept.append(LAUNCHER.sub(f"{sys.executable} -m accelerate.commands.launch", line))
        if line.startswith("ERROR [convert:comfyui] failed "):
            while kept.pop() != "INFO [convert:comfyui] starting":
                pass
    return kept


def commands(lines: list[str]) -> list[str]:
    """The argv of each step, as the log has it."""
    return [line for line in lines if COMMAND.match(line)]


def read_safetensors(path: Path) -> tuple[Tensors, dict[str, str], bytes]:
    """Each tensor's dtype, shape and bytes by name; the metadata; and the data of all tensors, as it lies there."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8:start]), content[start:]
    metadata: dict[str, str] = header.pop("__metadata__", {})
    tensors: Tensors = {
        name: (tensor["dtype"], tensor["shape"], data[slice(*tensor["data_offsets"])])
        for name, tensor in header.items()
    }
    return tensors, metadata, data


def steady_content(path: Path) -> object:
    """What must be equal of a file: all of it, but for a safetensors file's metadata of the moment and its order."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    tensors, metadata, data = read_safetensors(path)
    return tensors, {key: value for key, value in metadata.items() if key not in NEVER_THE_SAME}, data


def compare_tensors(report: Report, what: str, original: Path, ours: Path) -> None:
    """The same tensors by name, with dtype, shape and bytes, whatever their order in the file."""
    if not (original.is_file() and ours.is_file()):
        report.say(what, same=False, detail="no file")
        return
    tensors, our_tensors = read_safetensors(original)[0], read_safetensors(ours)[0]
    differing = sorted(name for name in tensors | our_tensors if tensors.get(name) != our_tensors.get(name))
    report.say(what, same=not differing, detail=f"{len(tensors)} tensors")
    report.explain(differing)


def compare_lora(report: Report, what: str, original: Path, ours: Path) -> None:
    """The same tensors in the same order, and the same metadata but for what no two runs share."""
    compare_tensors(report, what, original, ours)
    if original.is_file() and ours.is_file():
        (_, metadata, data), (_, our_metadata, our_data) = map(read_safetensors, (original, ours))
        other = sorted(key for key in metadata | our_metadata if metadata.get(key) != our_metadata.get(key))
        same = data == our_data and NEVER_THE_SAME.issuperset(other)
        report.say("  its data as a whole, and its metadata", same=same, detail=f"{len(data)} bytes")
        report.explain([f"{len(metadata)} keys of metadata, equal but {', '.join(other) or 'none'}"])


def compare_lines(report: Report, what: str, original: list[str], ours: list[str]) -> None:
    """Every line of the original, in its order; lines of ours between them only where they say something new."""
    missing: list[str] = []
    added: list[str] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, original, ours, autojunk=False).get_opcodes():
        if kind != "equal":
            missing += original[a:b]
            added += ours[c:d]
    twice = set(added) & set(original)
    same = bool(original) and not missing and not twice
    report.say(what, same=same, detail=f"{len(original)} lines, {len(added)} added by ours")
    report.explain([f"- {line}" for line in missing])
    report.explain([f"+ {line}" for line in added])


def compare_files(report: Report, what: str, original: Run, ours: Run) -> None:
    """The same files with the same content."""
    in_one = original.files ^ ours.files
    changed = {
        name
        for name in original.files & ours.files
        if steady_content(original.folder / name) != steady_content(ours.folder / name)
    }
    report.say(what, same=not in_one and not changed, detail=f"{len(original.files)} files")
    report.explain([f"not in both: {name}" for name in sorted(in_one)])
    report.explain([f"content: {name}" for name in sorted(changed)])


def without_conversion(run: Run) -> Run:
    """The run as it would be with nothing said of the conversion."""
    return replace(run, lines=[line for line in run.lines if " [convert:comfyui] " not in line])


def compare_runs(report: Report, original: Run, ours: Run) -> None:
    """Everything that a user of the library can see."""
    print(f"\n{ours.name} / {original.name}")
    if original.error or ours.error:
        report.say("train() comes to its end", same=False, detail=original.error or ours.error)
        return
    report.say("path that train() returns", same=original.returned == ours.returned, detail=ours.returned)
    argv, our_argv = commands(repaired(original.lines)), commands(ours.lines)
    report.say("argv of every step", same=argv == our_argv, detail=f"{len(our_argv)} commands")
    words, our_words = " ".join(argv).split(" "), " ".join(our_argv).split(" ")
    report.explain([word for word in difflib.ndiff(words, our_words) if word[0] in "+-"])
    compare_lines(report, "log lines, in order", steady(repaired(original.lines)), steady(ours.lines))
    compare_files(report, "files left on disk", original, ours)
    compare_lora(report, "trained LoRA, bit by bit", original.folder / LORA, ours.folder / LORA)
    compare_lora(report, "ComfyUI LoRA, bit by bit", original.folder / COMFYUI_LORA, ours.folder / COMFYUI_LORA)
    both = original.step_seconds, ours.step_seconds
    ratios = [f"{step} {both[1][step] / took:.2f}" for step, took in both[0].items() if both[1].get(step) and took]
    print(f"  time, ours/original: {', '.join(ratios)}, train() as a whole {ours.seconds / original.seconds:.2f}")


def compare_adapter(report: Report, place: Workplace, default: Run, original: Run, ours: Run) -> None:
    """An adapter in diffusers' naming: the original trains without it, ours must train as with the default naming."""
    print("\nadapter in diffusers' naming")
    if original.error or ours.error:
        report.say("train() comes to its end", same=False, detail=original.error or ours.error)
        return
    given = place.small / "models" / DIFFUSERS_ADAPTER
    modules = sum(name.endswith("lora_A.weight") for name in read_safetensors(given)[0])
    print(f"  for comparison: the original merges {original.merged_modules} of {modules} modules")
    if original.merged_modules == modules:
        print("  this clone merges such an adapter itself, so it must be passed as it is")
        compare_runs(report, original, ours)
        return
    report.say("ours merges every module", same=ours.merged_modules == modules, detail=f"{ours.merged_modules} modules")
    added = ours.files - original.files
    in_training = added == {ours.base_weights} and ours.base_weights.startswith("training/")
    report.say("one further file, in the training folder", same=in_training, detail=ours.base_weights)
    by_clone = place.convert(given, place.work / "adapter_by_convert_lora.safetensors")
    compare_tensors(report, "that file and convert_lora.py's, bit by bit", by_clone, ours.folder / ours.base_weights)
    passed = f"--base_weights {ours.folder.parent / 'run' / ours.base_weights} "
    our_argv = [line.replace(passed, f"--base_weights {given} ") for line in commands(ours.lines)]
    report.say("argv of every step, but for that file", same=our_argv == commands(repaired(original.lines)))
    before_training = ours.lines[: ours.lines.index("INFO [train] starting")]
    said = [line for line in before_training if Path(ours.base_weights).name in line]
    report.say("a log line says so before training", same=bool(said))
    report.explain(said)
    for what, file in (("trained LoRA", LORA), ("ComfyUI LoRA", COMFYUI_LORA)):
        compare_lora(report, f"{what} = default naming's, bit by bit", default.folder / file, ours.folder / file)
    without = read_safetensors(original.folder / LORA)[2] != read_safetensors(default.folder / LORA)[2]
    report.say("without the adapter the LoRA is another", same=without, detail="else the two lines above mean nothing")


def version(library: Path) -> str:
    """The version of the library that a folder holds."""
    (found,) = (one for one in distributions(path=[str(library)]) if "musubitraining" in one.metadata["Name"].lower())
    return found.version


def release(musubi: Path) -> str:
    """The version that a clone gives itself."""
    found = re.search(r'^version = "(.+)"$', (musubi / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else "of unknown version"


def main() -> None:
    """Run both libraries in every setting, print the verdicts, and fail when anything differs."""
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    musubi, work = Path(sys.argv[1]).resolve(), Path(sys.argv[3]).resolve()
    if not (musubi / "zimage_train_network.py").is_file() or not (musubi / "src" / "musubi_tuner").is_dir():
        sys.exit(f"not a Musubi Tuner clone (no zimage_train_network.py, or no src/musubi_tuner): {musubi}")
    place = Workplace(musubi, work)
    theirs = place.install("library original", "--no-deps", ORIGINAL)
    ours = place.install("library ours", sys.argv[2])
    print(f"original {version(theirs)}, ours {version(ours)}, Musubi Tuner {release(musubi)} in {musubi}")
    place.write_weights()
    with served(place.small) as address:
        url = f"{address}/photos.zip"
        original = place.train("original", theirs, url)
        drop_in = place.train("ours", ours, url)
        bare = place.train("ours, bare clone", ours, url, bare=True)
        warm = place.train("ours, warm start", ours, url, warm_start=True)
        native = place.train("ours, native conversion", ours, url, native_convert=True)
        original_diffusers = place.train("original, diffusers adapter", theirs, url, DIFFUSERS_ADAPTER)
        drop_in_diffusers = place.train("ours, diffusers adapter", ours, url, DIFFUSERS_ADAPTER)
    report = Report()
    compare_runs(report, original, drop_in)
    compare_runs(report, original, bare)
    for run in (warm, native):
        compare_runs(report, without_conversion(original), without_conversion(run))
        fell_back = [line for line in run.lines if "no warm start" in line or "not converted natively" in line]
        report.say("nothing fell back", same=not fell_back)
        report.explain(fell_back)
    compare_adapter(report, place, original, original_diffusers, drop_in_diffusers)
    print(f"\n{LEFT_OUT}\n{f'{report.differences} differences' if report.differences else 'all the same'}")
    sys.exit(bool(report.differences))


if __name__ == "__main__":
    main()
