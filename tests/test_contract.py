"""What users hold: names, the two classes and how they behave under everything Python does to classes."""

import copy
import dataclasses
import importlib.metadata
import inspect
import itertools
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import typing
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import create_autospec, patch

import musubitraining
import pytest
import requests
from harness import server
from harness.library import OURS, WEIGHTS, Bench, Workspace
from harness.photos import HTML, jpeg, make_zip, photo_zip
from harness.scenario import Work
from harness.tuner import CONVERT, LATENTS, TEXT, TRAIN, end, is_running, wait_until
from musubitraining import main
from musubitraining.main import GPU, GPUMonitor, Models, MusubiTraining, logger
from test_repairs import CUT_WEIGHTS, GIT_LFS_POINTER, adapter_of_a_clone, header

EMPTY = inspect.Parameter.empty
POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD
NAMED = inspect.Parameter.KEYWORD_ONLY

FOLDERS = (
    "absolute_path_models",
    "absolute_path_training_folder",
    "absolute_path_output",
    "absolute_path_musubi_tuner",
)


def arguments(workspace: Workspace, **changes: Any) -> dict[str, Any]:
    return Work(str(workspace.root), workspace.url, workspace.toml, {}).arguments(**changes)


def trainer(workspace: Workspace, kind: Any = MusubiTraining, **changes: Any) -> Any:
    return kind(**arguments(workspace, **changes))


def train(workspace: Workspace, a_trainer: Any = None, trigger_word: str = "word", **options: Any) -> str:
    return (a_trainer or trainer(workspace)).train(workspace.toml, workspace.url, trigger_word, **options)


def untouched(workspace: Workspace) -> bool:
    return workspace.server.requests == [] and workspace.tuner.calls() == [] and not workspace.images.exists()


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "musubitraining")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# ---- names ------------------------------------------------------------------------------------------------------


def test_names() -> None:
    assert logger is logging.getLogger("musubitraining")
    assert typing.get_origin(GPU) is typing.Literal
    labels = "RTX 4090, RTX 5090, RTX 6000 Ada, A40, H100, A100, B200, H200, Unknown GPU"
    assert typing.get_args(GPU) == tuple(labels.split(", "))
    for kind in (MusubiTraining, Models, GPUMonitor):
        assert (kind.__module__, kind.__qualname__) == ("musubitraining.main", kind.__name__)
        assert getattr(main, kind.__name__) is kind
        assert getattr(sys.modules["musubitraining"], kind.__name__) is kind
        assert kind.__doc__
    assert importlib.metadata.version("TechTrash_MusubiTraining").split(".")[0] == "1"


def test_nothing_is_required() -> None:
    needed = importlib.metadata.requires("TechTrash_MusubiTraining") or []
    assert [line for line in needed if "extra" not in line] == []


def test_the_import_brings_in_nothing_besides_itself() -> None:
    code = """
import sys
before = set(sys.modules)
import musubitraining.main
print(*sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["musubitraining", "musubitraining._native", "musubitraining.main"]


@pytest.mark.parametrize("module", ["musubitraining", "musubitraining.main"])
def test_every_name_can_be_had_in_every_way(module: str) -> None:
    code = f"""
import {module} as module
assert set(module.__all__) <= set(dir(module))
assert not hasattr(module, "Nothing")
from {module} import *
for name in module.__all__:
    assert globals()[name] is getattr(module, name) is getattr(module, name), name
"""
    subprocess.run([sys.executable, "-c", code], check=True)


FIVE = (
    ("absolute_path_models", POSITIONAL, EMPTY),
    ("models_for_training", POSITIONAL, EMPTY),
    ("absolute_path_training_folder", POSITIONAL, EMPTY),
    ("absolute_path_output", POSITIONAL, EMPTY),
    ("absolute_path_musubi_tuner", POSITIONAL, EMPTY),
)
OPTIONS = (("output_name", NAMED, "output_lora_model"), ("max_train_steps", NAMED, 2000), ("seed", NAMED, 42))
METHODS = {
    "_run_cmd": (("step", POSITIONAL, EMPTY), ("cmd", POSITIONAL, EMPTY), ("cwd", NAMED, EMPTY)),
    "_validate_toml_str": (("toml_content", POSITIONAL, EMPTY),),
    "_prepare_dataset": (
        ("dataset_toml_content", POSITIONAL, EMPTY),
        ("images_zip_url", POSITIONAL, EMPTY),
        ("trigger_word", POSITIONAL, EMPTY),
    ),
    "_pre_cache": (("dataset_toml_path", POSITIONAL, EMPTY),),
    "_launch_training": (("dataset_toml_path", POSITIONAL, EMPTY), *OPTIONS),
    "_convert_for_comfyui": (("model_path", POSITIONAL, EMPTY),),
    "train": (
        ("dataset_toml_content", POSITIONAL, EMPTY),
        ("images_zip_url", POSITIONAL, EMPTY),
        ("trigger_word", POSITIONAL, EMPTY),
        ("use_pre_cache", NAMED, True),
        ("convert_for_comfyui", NAMED, True),
        *OPTIONS,
    ),
}


def parameters(function: Any) -> tuple[Any, ...]:
    found = inspect.signature(function).parameters.values()
    return tuple((parameter.name, parameter.kind, parameter.default) for parameter in found)


def test_signature_of_the_class() -> None:
    found = parameters(MusubiTraining)
    assert found[:5] == FIVE
    # New ones, which no call of the original's can meet.
    assert all(kind == NAMED and default is None for _, kind, default in found[5:])
    names = ("ae", "text_encoder", "DiT", "base_weights")
    assert parameters(Models) == tuple((name, POSITIONAL, file) for name, file in zip(names, WEIGHTS, strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_signature_of_a_method(workspace: Workspace, name: str) -> None:
    (self_name, self_kind, self_default), *rest = parameters(getattr(MusubiTraining, name))
    assert (self_name, self_default) == ("self", EMPTY)
    assert self_kind in (POSITIONAL, inspect.Parameter.POSITIONAL_ONLY)
    original, added = rest[: len(METHODS[name])], rest[len(METHODS[name]) :]
    assert tuple(original) == METHODS[name]
    # `train` alone has new parameters, which no call of the original's can meet.
    assert not added or name == "train"
    assert all(kind == NAMED and default is not EMPTY for _, kind, default in added)
    assert parameters(getattr(trainer(workspace), name)) == tuple(rest)


def test_signature_of_a_subclass_is_that_of_its_init() -> None:
    class Mine(MusubiTraining):
        def __init__(self, config: dict[str, Any], *, dry: bool = False) -> None:
            pass

    class Same(MusubiTraining):
        pass

    assert parameters(Mine) == (("config", POSITIONAL, EMPTY), ("dry", NAMED, False))
    assert parameters(Same) == parameters(MusubiTraining)


# ---- Models -----------------------------------------------------------------------------------------------------


def test_models_is_a_dataclass() -> None:
    models = Models()
    assert dataclasses.is_dataclass(Models)
    assert [field.name for field in dataclasses.fields(models)] == ["ae", "text_encoder", "DiT", "base_weights"]
    assert tuple(dataclasses.asdict(models).values()) == WEIGHTS == dataclasses.astuple(models)
    assert dataclasses.replace(models, DiT="x") == Models(WEIGHTS[0], WEIGHTS[1], "x", WEIGHTS[3])
    assert models == Models()
    assert models != Models(ae="other")
    assert models != WEIGHTS
    assert repr(Models("a", "b", "c", "d")) == "Models(ae='a', text_encoder='b', DiT='c', base_weights='d')"
    with pytest.raises(TypeError):
        hash(models)


def test_models_is_mutable_copied_and_pickled() -> None:
    models = Models()
    models.DiT = "mine.safetensors"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(models, protocol)) == models
    assert copy.copy(models) == copy.deepcopy(models) == models


def test_models_is_matched() -> None:
    match Models(ae="x"):
        case Models(ae, _, DiT=dit):
            assert (ae, dit) == ("x", WEIGHTS[2])
        case _:
            pytest.fail("not matched")


def test_models_is_extended() -> None:
    @dataclasses.dataclass
    class More(Models):
        clip: str = "clip.safetensors"

    assert dataclasses.astuple(More(ae="x")) == ("x", *WEIGHTS[1:], "clip.safetensors")


# ---- the class and its instances --------------------------------------------------------------------------------


class Extended(MusubiTraining):
    """At module level, for pickle."""

    def __init__(self, folders: dict[str, Any], label: str = "") -> None:
        super().__init__(**folders)
        self.label = label


def test_attributes_are_plain(workspace: Workspace) -> None:
    given = arguments(workspace)
    made = MusubiTraining(**given)
    assert vars(made) == given
    for name, value in given.items():
        assert getattr(made, name) is value
        setattr(made, name, "another")
        assert getattr(made, name) == "another"
    made.note = ["anything"]
    assert made.note == ["anything"]
    del made.note
    with pytest.raises(AttributeError):
        _ = made.note


def test_instances_are_like_those_of_any_class(workspace: Workspace) -> None:
    made = trainer(workspace)
    assert weakref.ref(made)() is made
    assert {made: 1}[made] == 1
    assert made != trainer(workspace)
    assert isinstance(made, MusubiTraining)
    assert "MusubiTraining" in repr(made)
    assert made.train.__name__ == "train"
    assert made.train.__self__ is made


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_with_its_attributes(workspace: Workspace, protocol: int) -> None:
    made = Extended(arguments(workspace), "label")
    made.more = {"a": 1}
    for one in (trainer(workspace), made):
        again = pickle.loads(pickle.dumps(one, protocol))
        assert type(again) is type(one)
        assert vars(again) == vars(one)
    assert again._validate_toml_str("a = 1") == {"a": 1}


def test_copied(workspace: Workspace) -> None:
    made = Extended(arguments(workspace), "label")
    shallow, deep = copy.copy(made), copy.deepcopy(made)
    assert vars(shallow) == vars(deep) == vars(made)
    assert shallow.models_for_training is made.models_for_training
    assert deep.models_for_training is not made.models_for_training


def test_a_subclass_that_does_not_call_super(workspace: Workspace) -> None:
    class Mine(MusubiTraining):
        def __init__(self, root: Path) -> None:
            for name, value in arguments(workspace).items():
                setattr(self, name, value)

    assert train(workspace, Mine(workspace.root)).endswith("_comfyui.safetensors")


def test_a_subclass_with_properties_and_a_mixin(workspace: Workspace) -> None:
    class Counts:
        def __init__(self) -> None:
            super().__init__()
            self.counted = 0

    class Mine(MusubiTraining, Counts):
        __slots__ = ("extra",)

        @property
        def seven(self) -> int:
            return 7

        @classmethod
        def here(cls, root: Workspace) -> "Mine":
            return cls(**arguments(root))

    made = Mine.here(workspace)
    made.extra = 1
    assert (made.counted, made.seven, made.extra) == (0, 7, 1)


def test_an_instance_never_constructed_says_what_it_lacks() -> None:
    with pytest.raises(AttributeError, match="absolute_path_"):
        MusubiTraining.__new__(MusubiTraining)._pre_cache(__file__)


def test_methods_are_borrowed_by_other_classes(workspace: Workspace) -> None:
    class Runner:
        run = MusubiTraining._run_cmd

    assert Runner().run("step", [sys.executable, "-c", ""], cwd=str(workspace.root)) is None
    assert MusubiTraining._validate_toml_str(None, "a = 1") == {"a": 1}


def test_instances_are_made_without_init() -> None:
    made = object.__new__(MusubiTraining)
    assert vars(made) == {}
    assert made._validate_toml_str("a = 1") == {"a": 1}


def test_a_mocked_class_checks_its_arguments() -> None:
    mocked = create_autospec(MusubiTraining)
    mocked(*FOLDERS, "clone")
    with pytest.raises(TypeError):
        mocked("models")


def test_methods_are_called_unbound(workspace: Workspace) -> None:
    assert MusubiTraining._validate_toml_str(trainer(workspace), "a = 1") == {"a": 1}
    with pytest.raises(TypeError):
        MusubiTraining._validate_toml_str("a = 1")


def test_results_are_plain_strings(workspace: Workspace) -> None:
    made = trainer(workspace, **{name: Path(arguments(workspace)[name]) for name in FOLDERS})
    assert type(train(workspace, made)) is str
    assert type(train(workspace, made, convert_for_comfyui=False)) is str
    assert type(made._prepare_dataset(workspace.toml, workspace.url, "x")) is str


def test_output_folder_is_made_and_the_training_folder_is_not(workspace: Workspace) -> None:
    trainer(workspace, absolute_path_output=str(workspace.root / "a/b/c"))
    assert (workspace.root / "a/b/c").is_dir()
    assert not workspace.training.exists()


# ---- the children -----------------------------------------------------------------------------------------------


def test_children_write_unbuffered_and_find_a_bare_clone(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    train(workspace)
    steps = [call["step"] for call in workspace.tuner.calls()]
    assert steps == [Path(script).name for script in (LATENTS, TEXT, TRAIN, CONVERT)]
    for call in workspace.tuner.calls():
        assert call["cwd"] == str(workspace.root / "musubi")
        assert call["env"]["PYTHONUNBUFFERED"] == "1"
        source = str(workspace.root / "musubi/src")
        assert call["env"]["PYTHONPATH"].split(os.pathsep) == [source, str(workspace.root / "site")]


def test_an_installed_musubi_tuner_is_left_in_place(bench: Bench) -> None:
    workspace = bench.workspace()
    (workspace.root / "site/musubi_tuner").mkdir()
    (workspace.root / "site/musubi_tuner/__init__.py").touch()
    run = workspace.run(OURS, whole_run).ok()
    assert {call["env"]["PYTHONPATH"] for call in run.calls} == {"<work>/site"}


def whole_run(work: Work):
    return work.train()


def test_a_musubi_tuner_that_only_this_process_has_is_not_the_childrens(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "musubi_tuner", ModuleType("musubi_tuner"))
    train(workspace)
    source = str(workspace.root / "musubi/src")
    assert all(call["env"]["PYTHONPATH"].split(os.pathsep)[0] == source for call in workspace.tuner.calls())


def test_this_process_keeps_its_environment_and_folder(workspace: Workspace) -> None:
    before = dict(os.environ), Path.cwd(), list(sys.path)
    train(workspace)
    assert (dict(os.environ), Path.cwd(), list(sys.path)) == before


@pytest.mark.parametrize("ending", ["\n", "\r", "\r\n"])
def test_lines_come_live(workspace: Workspace, reacts: Any, ending: str) -> None:
    """The child waits for what its own line brings about."""
    seen = workspace.root / "seen"
    workspace.tuner.does(LATENTS, ["say", "50% done" + ending + "x"], ["await", str(seen)])
    reacts("[precache:latents] 50% done", seen.touch)
    trainer(workspace)._pre_cache(str(workspace.tuner.root / "pyproject.toml"))


# At once.
LINES = [sys.executable, "-c", "import os; os.write(1, b'one\\ntwo\\nthree\\n')"]
OF_A_LINE = {"msg", "args", "created", "msecs", "relativeCreated"}


class Records(logging.Handler):
    """Keeps what every record has, then writes on it, as formatters do."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        assert type(record) is logging.LogRecord
        self.seen.append({**vars(record), "message": record.getMessage()})
        record.note = "of another record"


@pytest.fixture
def records(info: None) -> Iterator[Records]:
    handler = Records()
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def test_a_lines_record_is_like_any_other(workspace: Workspace, records: Records) -> None:
    before = time.time()
    trainer(workspace)._run_cmd("s", LINES, cwd=str(workspace.root))
    starting, *_, one, two, three, _ = records.seen
    assert [record["message"] for record in (one, two, three)] == ["[s] one", "[s] two", "[s] three"]
    for record in (one, two, three):
        assert {name: value for name, value in record.items() if name not in {*OF_A_LINE, "message"}} == {
            name: value for name, value in starting.items() if name not in {*OF_A_LINE, "message"}
        }
        assert record.keys() == starting.keys()
        assert record["args"] == ("s", record["message"][4:])
        assert before <= starting["created"] <= record["created"] <= time.time()
        assert abs(record["created"] % 1 * 1000 - record["msecs"]) <= 1
        drift = (record["created"] - starting["created"]) * 1000
        assert abs(record["relativeCreated"] - starting["relativeCreated"] - drift) < 1


def test_a_logger_with_ways_of_its_own_keeps_them(workspace: Workspace, records: Records) -> None:
    own = SimpleNamespace(info=lambda *words: said.append(words), warning=None, error=None)
    said: list[Any] = []
    with patch.object(main, "logger", own):
        trainer(workspace)._run_cmd("s", LINES, cwd=str(workspace.root))
    assert said[3:-1] == [("[%s] %s", "s", line) for line in ("one", "two", "three")]
    assert records.seen == []
    with patch.object(logging.Logger, "makeRecord", side_effect=logging.Logger.makeRecord, autospec=True) as make:
        trainer(workspace)._run_cmd("s", LINES, cwd=str(workspace.root))
    assert make.call_count == len(records.seen) == 7
    factory = logging.getLogRecordFactory()
    logging.setLogRecordFactory(lambda *args, **options: numbered(factory(*args, **options)))
    numbers = itertools.count()

    def numbered(record: logging.LogRecord) -> logging.LogRecord:
        record.number = next(numbers)
        return record

    try:
        trainer(workspace)._run_cmd("s", LINES, cwd=str(workspace.root))
    finally:
        logging.setLogRecordFactory(factory)
    assert [record["number"] for record in records.seen[7:]] == list(range(7))


def test_a_slow_handler_does_not_put_off_the_cancellation(workspace: Workspace, records: Records) -> None:
    ours = trainer(workspace)
    records.addFilter(lambda record: not record.getMessage().endswith(" 1") or ours.cancel())
    command = [sys.executable, "-c", "import os; os.write(1, b'0\\n1\\n2\\n3\\n')"]
    with pytest.raises(musubitraining.Cancelled):
        ours._run_cmd("s", command, cwd=str(workspace.root))
    assert records.seen[-1]["message"] == "[s] 1"


def test_other_threads_run_meanwhile(workspace: Workspace) -> None:
    go = workspace.root / "go"
    workspace.tuner.does(LATENTS, ["say", "waiting\n"], ["await", str(go)])
    helper = threading.Thread(target=lambda: wait_until(lambda: workspace.tuner.calls(), 30) and go.touch())
    helper.start()
    trainer(workspace)._pre_cache(str(workspace.tuner.root / "pyproject.toml"))
    helper.join()


def test_a_raising_log_handler_ends_the_run_and_its_processes(workspace: Workspace, reacts: Any) -> None:
    def stop() -> None:
        workspace.tuner.wait_for_pids(2)
        raise LookupError("not logged")

    workspace.tuner.does(LATENTS, ["spawn", {}], ["say", "go\n"], ["hang"])
    reacts("[precache:latents] go", stop)
    try:
        with pytest.raises(LookupError, match="not logged"):
            trainer(workspace)._pre_cache(str(workspace.tuner.root / "pyproject.toml"))
        assert not any(is_running(pid) for pid in workspace.tuner.pids())
    finally:
        end(workspace.tuner.pids())


def test_an_exception_of_a_signal_handler_ends_the_run_and_its_processes(workspace: Workspace) -> None:
    def raise_it(*_: object) -> None:
        raise LookupError("time is up")

    workspace.tuner.does(LATENTS, ["spawn", {}], ["hang"])
    helper = threading.Thread(target=lambda: workspace.tuner.wait_for_pids(2) and os.kill(os.getpid(), signal.SIGUSR1))
    before = signal.signal(signal.SIGUSR1, raise_it)
    try:
        helper.start()
        with pytest.raises(LookupError, match="time is up"):
            trainer(workspace)._pre_cache(str(workspace.tuner.root / "pyproject.toml"))
        assert not any(is_running(pid) for pid in workspace.tuner.pids())
    finally:
        helper.join()
        signal.signal(signal.SIGUSR1, before)
        end(workspace.tuner.pids())


def test_two_runs_at_once(bench: Bench, workspace: Workspace) -> None:
    second = bench.workspace()
    results: list[str] = []
    threads = [threading.Thread(target=lambda w=w: results.append(train(w))) for w in (workspace, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {str(w.output / "output_lora_model_comfyui.safetensors") for w in (workspace, second)}
    assert set(results) == expected


def used_then_forked(work: Work):
    """As web servers do: the library has worked before the worker processes are forked."""
    import os
    import sys

    trainer = work.trainer()
    trainer._prepare_dataset(work.toml, work.url, "parent")
    trainer._run_cmd("s", ["/bin/echo", "parent"], cwd=work.root)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            trainer._prepare_dataset(work.toml, work.url, "child")
            trainer._run_cmd("s", [sys.executable, "-c", "print('child')"], cwd=work.root)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_forked_process_goes_on_using_it(bench: Bench) -> None:
    run = bench.workspace().run(OURS, used_then_forked).ok()
    assert run.result == 0
    assert run.logged("[s] child")
    assert (run.workspace.images / "a.txt").read_text() == "child"


def leaves_a_thread_behind(work: Work):
    import threading
    import time

    thread = threading.Thread(target=lambda: work.trainer()._pre_cache(__file__), daemon=True)
    thread.start()
    import os

    while not os.listdir(work.path("musubi", "pids")):
        time.sleep(0.01)


def test_the_end_of_the_host_does_not_wait_for_its_threads(bench: Bench) -> None:
    workspace = bench.workspace()
    workspace.tuner.does(LATENTS, ["hang"])
    running = workspace.start(OURS, leaves_a_thread_behind)
    try:
        running.finish().ok()
        assert running.process.returncode == 0, running.output
        assert wait_until(lambda: not any(is_running(pid) for pid in workspace.tuner.pids()), 30)
    finally:
        end(workspace.tuner.pids())


# ---- the download -----------------------------------------------------------------------------------------------


def prepare(workspace: Workspace) -> list[str]:
    trainer(workspace)._prepare_dataset(workspace.toml, workspace.url, "word")
    return sorted(path.name for path in workspace.images.iterdir() if path.suffix != ".txt")


def test_http_errors_are_caught_as_before(workspace: Workspace) -> None:
    workspace.url = workspace.server.on("/gone.zip", server.status(404))
    with pytest.raises(requests.HTTPError) as raised:
        prepare(workspace)
    assert isinstance(raised.value, OSError)
    assert raised.value.response.status_code == 404
    assert "404" in str(raised.value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_http_errors_come_back_from_a_worker_process(workspace: Workspace, protocol: int) -> None:
    workspace.url = workspace.server.on("/gone.zip", server.status(410))
    with pytest.raises(requests.HTTPError) as raised:
        prepare(workspace)
    returned = pickle.loads(pickle.dumps(raised.value, protocol))
    assert type(returned) is type(raised.value)
    assert str(returned) == str(raised.value)
    assert returned.status == returned.response.status_code == 410


def prepare_without_requests(work: Work):
    import sys

    sys.modules["requests"] = None
    work.trainer()._prepare_dataset(work.toml, work.url, "x")


def test_without_requests_it_is_an_os_error(bench: Bench) -> None:
    workspace = bench.workspace()
    workspace.url = workspace.server.on("/gone.zip", server.status(404))
    run = workspace.run(OURS, prepare_without_requests)
    assert run.error is not None
    assert "OSError" in run.error["bases"]
    assert "404" in run.error["message"]


@pytest.mark.parametrize("url", ["", "photos.zip", "ftp://x/photos.zip", "http://", "file:///nowhere/photos.zip"])
def test_no_url(workspace: Workspace, url: str) -> None:
    workspace.url = url
    with pytest.raises((ValueError, requests.RequestException)):
        prepare(workspace)


NEW = make_zip("new.jpg")


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        pytest.param([server.cut(photo_zip(), 99)], ["a.jpg", "b.jpeg", "c.jpg"], id="nothing to check by"),
        pytest.param(
            [server.cut(photo_zip(), 99, etag='"1"'), server.content(NEW, etag='"2"')], ["new.jpg"], id="changed"
        ),
        pytest.param([server.cut(photo_zip(), 99), server.content(NEW, ranges=False)], ["new.jpg"], id="no ranges"),
        pytest.param([server.chunked(photo_zip(), 50, last=False)], ["a.jpg", "b.jpeg", "c.jpg"], id="cut in chunks"),
        pytest.param(
            [server.status(500), server.status(429, Retry_After="0")], ["a.jpg", "b.jpeg", "c.jpg"], id="busy"
        ),
        pytest.param([server.cut(photo_zip(), 0)], ["a.jpg", "b.jpeg", "c.jpg"], id="cut at once"),
    ],
)
def test_a_second_try(workspace: Workspace, replies: list[Any], expected: list[str]) -> None:
    workspace.url = workspace.server.on("/flaky.zip", *replies, server.content(photo_zip()))
    if expected == ["new.jpg"]:
        workspace.server.on("/flaky.zip", *replies)
    assert prepare(workspace) == expected


def silent_download(work: Work):
    work.trainer()._prepare_dataset(work.toml, work.url, "x")


@pytest.mark.parametrize("said", [b"", b"PK\3\4"], ids=["no answer", "no more"])
def test_ctrl_c_while_the_server_is_silent(bench: Bench, said: bytes) -> None:
    """Long before any time-out; the old dataset is whole and nothing is left beside it."""
    workspace = bench.workspace()
    workspace.old_dataset()
    before = workspace.files()
    workspace.url = workspace.server.on("/silent.zip", server.silent(said))
    running = workspace.start(OURS, silent_download)
    assert workspace.server.wait_for_requests()
    os.kill(running.process.pid, signal.SIGINT)
    run = running.finish(20)
    assert run.error is not None
    assert run.error["type"] == "KeyboardInterrupt"
    assert run.files == before


# ---- known first ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(CUT_WEIGHTS, [str(len(CUT_WEIGHTS)), str(len(CUT_WEIGHTS) - 100 + 4096)], id="cut"),
        pytest.param(HTML, ["web page"], id="a web page"),
        pytest.param(GIT_LFS_POINTER, ["git", "lfs", "8044982048"], id="a git-lfs pointer"),
    ],
)
def test_weights_that_cannot_be(workspace: Workspace, name: str, data: bytes, words: list[str]) -> None:
    (workspace.models / name).write_bytes(data)
    with pytest.raises((RuntimeError, ValueError, OSError)) as raised:
        train(workspace)
    assert all(word in str(raised.value).lower() for word in [str(workspace.models / name).lower(), *words])
    assert untouched(workspace)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"fake weights", id="a few words"),
        pytest.param(b"\xff" * 100, id="a header length that cannot be"),
        pytest.param(b"PK\3\4" + bytes(200), id="another format"),
    ],
)
def test_weights_that_are_not_recognised_are_a_warning(
    workspace: Workspace, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    for name in WEIGHTS:
        (workspace.models / name).write_bytes(data)
    assert train(workspace)
    assert all(any(name in message for message in warnings(caplog)) for name in WEIGHTS)


def test_whole_weights_are_no_warning(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    for name in WEIGHTS:
        (workspace.models / name).write_bytes(header({"a.weight": ("F32", [4], 16)}) + bytes(16))
    assert train(workspace)
    assert [message for message in warnings(caplog) if "safetensors" in message] == []


def test_broken_toml_is_known_first(workspace: Workspace) -> None:
    workspace.toml = "[general"
    with pytest.raises(ValueError, match="Invalid TOML provided"):
        train(workspace)
    assert untouched(workspace)


REPLACED = {
    "_pre_cache": [f"musubi/{LATENTS}", f"musubi/{TEXT}"],
    "_launch_training": [
        f"musubi/{TRAIN}",
        f"models/{WEIGHTS[2]}",
        f"models/{WEIGHTS[3]}",
        "site/accelerate/__init__.py",
    ],
    "_convert_for_comfyui": [f"musubi/{CONVERT}"],
}


@pytest.mark.parametrize("how", ["subclass", "class", "instance"])
@pytest.mark.parametrize("method", REPLACED)
def test_a_replaced_step_is_not_checked_for(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, method: str, how: str
) -> None:
    trained = workspace.output / "mine.safetensors"
    trained.touch()

    def step(*args: Any, **kwargs: Any) -> str:
        return str(trained)

    kind = type("Mine", (MusubiTraining,), {method: step}) if how == "subclass" else MusubiTraining
    made = trainer(workspace, kind)
    if how == "class":
        monkeypatch.setattr(MusubiTraining, method, step)
    elif how == "instance":
        monkeypatch.setattr(made, method, step, raising=True)
    for name in REPLACED[method]:
        (workspace.root / name).unlink()
    if method == "_launch_training":
        shutil.rmtree(workspace.root / "site/accelerate")
    assert train(workspace, made).startswith(str(workspace.output))


def test_a_replaced_step_may_bring_what_the_later_ones_need(workspace: Workspace) -> None:
    weights = [(workspace.root / "models" / name) for name in WEIGHTS]

    class Fetching(MusubiTraining):
        def _prepare_dataset(self, *args: Any) -> str:
            for file in weights:
                file.touch()
            self.models_for_training = Models()
            return super()._prepare_dataset(*args)

    for file in weights:
        file.unlink()
    made = trainer(workspace, Fetching, models_for_training=None)
    assert train(workspace, made) == str(workspace.output / "output_lora_model_comfyui.safetensors")


COPY = "import shutil, sys\nsource, destination = {}\nshutil.copyfile(source, destination)\n"


@pytest.mark.parametrize(
    "script",
    [
        COPY.format("sys.argv[1:]"),
        COPY.format("sys.argv[2], sys.argv[4]"),
        COPY.format("[dict(zip(sys.argv[1::2], sys.argv[2::2]))[f'--{name}_path'] for name in ('model', 'output')]"),
        COPY.format("[sys.argv[sys.argv.index(flag) + 1] for flag in ('--model_path', '--output_path')]"),
        "# takes no --model_path and no --output_path\nimport argparse, shutil\nparser = argparse.ArgumentParser()\n"
        "parser.add_argument('src')\nparser.add_argument('dst')\nargs = parser.parse_args()\n"
        "shutil.copyfile(args.src, args.dst)\n",
        "import argparse, shutil\nparser = argparse.ArgumentParser()\n"
        "declare = parser.add_argument\ndeclare('--model_path')\ndeclare('--output_path')\n"
        "args = parser.parse_args()\nshutil.copyfile(args.model_path, args.output_path)\n",
    ],
    ids=["two words", "four words", "pairs", "looked up", "argparse by position", "argparse by flags, hidden"],
)
def test_a_converter_that_the_original_can_call_is_called(workspace: Workspace, script: str) -> None:
    (workspace.root / "musubi" / CONVERT).write_text(script)
    assert train(workspace) == str(workspace.output / "output_lora_model_comfyui.safetensors")


def test_a_converter_that_fails_is_not_called_in_other_ways(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    script = "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('src')\n"
    (workspace.root / "musubi" / CONVERT).write_text(script + "parser.add_argument('dst')\nraise SystemExit(1)\n")
    with pytest.raises(subprocess.CalledProcessError):
        train(workspace)
    assert len([line for line in caplog.messages if line == "[convert:comfyui] starting"]) == 1


def test_steps_that_are_left_out_are_not_checked_for(workspace: Workspace) -> None:
    for name in (*REPLACED["_pre_cache"], *REPLACED["_convert_for_comfyui"]):
        (workspace.root / name).unlink()
    assert train(workspace, use_pre_cache=False, convert_for_comfyui=False)


def test_an_adapter_is_renamed_for_a_training_alone(workspace: Workspace) -> None:
    """No dataset has been prepared, so the training folder is not there yet."""
    adapter_of_a_clone(converts=False)(workspace)
    trainer(workspace)._launch_training(str(workspace.tuner.root / "pyproject.toml"))
    (argv,) = (call["argv"] for call in workspace.tuner.calls())
    assert Path(argv[argv.index("--base_weights") + 1]).parent == workspace.training


# ---- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["with blanks", 'it\'s "quoted"', "été 日本", "50%", "a;b&c$d"])
def test_any_name_of_a_folder(tmp_path: Path, workspace: Workspace, name: str) -> None:
    root = tmp_path / name
    root.mkdir()
    other = Workspace.make(root / "work", workspace.server)
    assert train(other) == str(other.output / "output_lora_model_comfyui.safetensors")


@pytest.mark.parametrize("character", "[*?")
def test_a_folder_that_the_tuners_glob_cannot_read(workspace: Workspace, character: str) -> None:
    folder = str(workspace.root / f"run {character}1")
    workspace.toml = workspace.toml.replace(str(workspace.training), folder)
    with pytest.raises(ValueError, match=r"glob|\[") as raised:
        train(workspace, trainer(workspace, absolute_path_training_folder=folder))
    assert folder in str(raised.value)
    assert untouched(workspace)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"output_name": ""}, ValueError),
        ({"output_name": ".."}, ValueError),
        ({"output_name": "a/b"}, ValueError),
        ({"output_name": "a\0b"}, ValueError),
        ({"output_name": None}, TypeError),
        ({"output_name": b"x"}, TypeError),
        ({"max_train_steps": 0}, ValueError),
        ({"max_train_steps": -1}, ValueError),
        ({"max_train_steps": 1.5}, TypeError),
        ({"max_train_steps": "10"}, TypeError),
        ({"max_train_steps": None}, TypeError),
        ({"seed": -1}, ValueError),
        ({"seed": 2**32}, ValueError),
        ({"seed": 2**200}, ValueError),
        ({"seed": "42"}, TypeError),
        ({"seed": 0.5}, TypeError),
    ],
    ids=repr,
)
def test_options_that_cannot_work(workspace: Workspace, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        train(workspace, **options)
    assert untouched(workspace)
    with pytest.raises(error):
        trainer(workspace)._launch_training(str(workspace.tuner.root / "pyproject.toml"), **options)
    assert untouched(workspace)


def test_options_of_any_integer_type(workspace: Workspace) -> None:
    class Number:
        def __index__(self) -> int:
            return 7

    train(workspace, max_train_steps=Number(), seed=Number())
    argv = next(call["argv"] for call in workspace.tuner.calls() if call["step"] == TRAIN)
    assert (argv[argv.index("--max_train_steps") + 1], argv[argv.index("--seed") + 1]) == ("7", "7")


@pytest.mark.parametrize("argument", ["dataset_toml_content", "images_zip_url", "trigger_word"])
@pytest.mark.parametrize("value", [None, 5, b"bytes", ["list"]], ids=repr)
def test_arguments_of_the_wrong_type(workspace: Workspace, argument: str, value: Any) -> None:
    if (argument, value) == ("dataset_toml_content", None):
        pytest.skip("there is a usual one")
    given = {"dataset_toml_content": workspace.toml, "images_zip_url": workspace.url, "trigger_word": "x"}
    with pytest.raises(TypeError):
        trainer(workspace).train(**(given | {argument: value}))
    assert untouched(workspace)


@pytest.mark.parametrize("argument", ["dataset_toml_content", "trigger_word"])
def test_half_a_character(workspace: Workspace, argument: str) -> None:
    given = {"dataset_toml_content": workspace.toml, "images_zip_url": workspace.url, "trigger_word": "x"}
    with pytest.raises(ValueError):  # noqa: PT011 - whichever of ValueError and UnicodeEncodeError
        trainer(workspace).train(**(given | {argument: "# \ud800"}))
    assert untouched(workspace)


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("value", [None, 5, ["list"]], ids=repr)
def test_folders_of_the_wrong_type(workspace: Workspace, name: str, value: Any) -> None:
    with pytest.raises(TypeError):
        train(workspace, trainer(workspace, **{name: value}))
    assert untouched(workspace)


def test_a_folder_with_a_nul(workspace: Workspace) -> None:
    for name in FOLDERS:
        with pytest.raises((ValueError, FileNotFoundError)):
            train(workspace, trainer(workspace, **{name: f"{workspace.root}/a\0b"}))
    assert untouched(workspace)


def test_models_without_an_attribute(workspace: Workspace) -> None:
    models = SimpleNamespace(ae=WEIGHTS[0], text_encoder=WEIGHTS[1], DiT=WEIGHTS[2])
    with pytest.raises(AttributeError, match="base_weights"):
        train(workspace, trainer(workspace, models_for_training=models))
    assert untouched(workspace)


@pytest.mark.parametrize(
    ("word", "expected"),
    [("", 1), ("one\ntwo", 1), (" ".join(["word"] * 600), 1), ("ohwx man", 0), ("une robe d'été", 0)],
    ids=["empty", "with newlines", "too long", "usual", "not ASCII"],
)
def test_trigger_words(workspace: Workspace, caplog: pytest.LogCaptureFixture, word: str, expected: int) -> None:
    train(workspace, trigger_word=word)
    assert (workspace.images / "a.txt").read_text(encoding="utf-8") == word
    said = [message.replace(str(workspace.root), "") for message in warnings(caplog)]
    assert len([message for message in said if "trigger_word" in message]) == expected


def test_relative_paths_count_from_here(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.root)
    names = {"models": FOLDERS[0], "training": FOLDERS[1], "output": FOLDERS[2], "musubi": FOLDERS[3]}
    made = trainer(workspace, **{attribute: folder for folder, attribute in names.items()})
    result = train(workspace, made)
    assert Path(result).resolve() == workspace.output / "output_lora_model_comfyui.safetensors"
    root = str(workspace.root)
    paths = [
        word for call in workspace.tuner.calls() for word in call["argv"] if word.endswith((".py", ".toml", "ensors"))
    ]
    assert len(paths) >= 10
    assert [path for path in paths if not path.startswith(root)] == []


# ---- photos -----------------------------------------------------------------------------------------------------


def test_dummy_photos_are_kept_with_a_warning(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    workspace.serve(make_zip(("a.jpg", b"fake"), ("b.jpg", b"fake")))
    assert prepare(workspace) == ["a.jpg", "b.jpg"]
    assert [message for message in warnings(caplog) if "a.jpg" in message]


def test_a_dummy_among_photos_is_left_out_with_a_warning(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    workspace.serve(make_zip(("a.jpg", b"no picture"), ("b.jpg", jpeg()[:-40]), "c.jpg"))
    assert prepare(workspace) == ["c.jpg"]
    for name in ("a.jpg", "b.jpg"):
        assert [message for message in warnings(caplog) if name in message]
    assert [message for message in warnings(caplog) if "c.jpg" in message] == []


def test_photos_are_kept_to_the_byte(workspace: Workspace) -> None:
    photo = jpeg(640, 480, "mine", orientation=1)
    workspace.serve(make_zip(("a.jpg", photo)))
    assert prepare(workspace) == ["a.jpg"]
    assert (workspace.images / "a.jpg").read_bytes() == photo


def test_nothing_is_left_beside_the_dataset(workspace: Workspace) -> None:
    prepare(workspace)
    prepare(workspace)
    assert {path.name for path in workspace.training.iterdir()} == {"dataset.toml", "photos.json", "images", "cache"}
    assert sorted(
        path.name for path in workspace.root.iterdir() if path.name.startswith(("training", ".training"))
    ) == ["training"]
