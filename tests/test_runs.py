"""Runs in a hostile world: cancelled from any thread, two at once, steps that end well and have done nothing."""

import logging
import math
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness import server
from harness.library import OURS, Bench, Run, Workspace
from harness.scenario import Work
from harness.tuner import CONVERT, LATENTS, TEXT, TRAIN, end, install_accelerate_program, is_running, wait_until
from musubitraining import CalledProcessError, Cancelled
from musubitraining.main import MusubiTraining
from test_contract import train, trainer
from test_repairs import CUT_WEIGHTS, ON_LINUX_ALONE, STUBBORN, header


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "musubitraining")


# ---- cancel -----------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere() -> Iterator[ThreadPoolExecutor]:
    """Another thread."""
    with ThreadPoolExecutor(2) as executor:
        yield executor


@ON_LINUX_ALONE
@pytest.mark.parametrize(
    ("step", "worker"), [(LATENTS, {}), (TEXT, {"setsid": True}), (TRAIN, STUBBORN), (CONVERT, {"daemon": True})]
)
def test_cancel_ends_a_step_with_its_whole_tree(
    workspace: Workspace, elsewhere: ThreadPoolExecutor, step: str, worker: dict[str, Any]
) -> None:
    workspace.tuner.does(step, ["spawn", worker], ["hang"])
    a_trainer = trainer(workspace)
    running = elsewhere.submit(train, workspace, a_trainer)
    try:
        workspace.tuner.wait_for_pids(2)
        assert a_trainer.cancel() is True
        with pytest.raises(Cancelled, match="nothing of it is left running"):
            running.result(60)
        assert not any(is_running(pid) for pid in workspace.tuner.pids())
    finally:
        end(workspace.tuner.pids())
    workspace.tuner.does(step, ["write"])
    assert train(workspace, a_trainer) == str(workspace.output / "output_lora_model_comfyui.safetensors")


@pytest.mark.parametrize("said", [b"", b"PK"])
def test_cancel_ends_a_download_and_leaves_the_old_dataset(
    workspace: Workspace, elsewhere: ThreadPoolExecutor, said: bytes
) -> None:
    old = workspace.old_dataset()
    workspace.url = workspace.server.on("/slow.zip", server.silent(said))
    a_trainer = trainer(workspace)
    running = elsewhere.submit(train, workspace, a_trainer)
    assert workspace.server.wait_for_requests()
    assert a_trainer.cancel()
    with pytest.raises(Cancelled):
        running.result(60)
    assert {name: (workspace.training / name).read_bytes() for name in old} == old
    assert sorted(path.name for path in workspace.training.iterdir()) == ["cache", "events.jsonl", "images", "run.json"]


def test_cancel_without_a_run_does_nothing(workspace: Workspace) -> None:
    a_trainer = trainer(workspace)
    assert a_trainer.cancel() is False
    train(workspace, a_trainer)
    assert a_trainer.cancel() is False
    train(workspace, a_trainer)


def test_cancel_is_for_one_trainer(workspace: Workspace, bench: Bench, reacts: Any) -> None:
    other = trainer(bench.workspace())
    reacts("[train] starting", other.cancel)
    assert train(workspace)


def test_cancel_in_a_log_handler(workspace: Workspace, reacts: Any) -> None:
    a_trainer = trainer(workspace)
    reacts("[precache:latents] starting", a_trainer.cancel)
    with pytest.raises(Cancelled):
        train(workspace, a_trainer)
    assert [call["step"] for call in workspace.tuner.calls() if call["step"] != LATENTS] == []


def test_cancel_while_a_replaced_step_works(workspace: Workspace, elsewhere: ThreadPoolExecutor) -> None:
    caching, cancelled = threading.Event(), threading.Event()

    class Mine(MusubiTraining):
        def _pre_cache(self, dataset_toml_path: Any) -> None:
            caching.set()
            cancelled.wait(30)

    a_trainer = trainer(workspace, Mine)
    running = elsewhere.submit(train, workspace, a_trainer)
    assert caching.wait(30)
    assert a_trainer.cancel()
    cancelled.set()
    with pytest.raises(Cancelled):
        running.result(60)
    assert workspace.tuner.calls() == []


def test_cancel_ends_the_tree_while_a_log_handler_is_stuck(
    workspace: Workspace, elsewhere: ThreadPoolExecutor, reacts: Any
) -> None:
    stuck, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        stuck.set()
        go_on.wait(60)

    workspace.tuner.does(LATENTS, ["spawn", {}], ["say", "up\n"], ["hang"])
    reacts("[precache:latents] up", wait)
    a_trainer = trainer(workspace)
    running = elsewhere.submit(train, workspace, a_trainer)
    try:
        pids = workspace.tuner.wait_for_pids(2)
        assert stuck.wait(30)
        assert a_trainer.cancel()
        assert wait_until(lambda: not any(is_running(pid) for pid in pids), 30)
        go_on.set()
        with pytest.raises(Cancelled):
            running.result(60)
    finally:
        go_on.set()
        end(workspace.tuner.pids())


def test_a_step_alone_is_cancelled(workspace: Workspace, elsewhere: ThreadPoolExecutor) -> None:
    a_trainer = trainer(workspace)
    command = [sys.executable, "-c", "print('up', flush=True); import time; time.sleep(600)"]
    running: Future[None] = elsewhere.submit(a_trainer._run_cmd, "s", command, cwd=workspace.root)
    assert wait_until(a_trainer.cancel, 30)
    with pytest.raises(Cancelled):
        running.result(60)


# ---- two runs ---------------------------------------------------------------------------------------------------


def in_the_middle(workspace: Workspace, step: str = TRAIN) -> Callable[[], None]:
    """Has the step wait; returns what lets it go on."""
    go = workspace.root / "go"
    workspace.tuner.does(step, ["await", str(go)], ["write"])
    return go.touch


def wait_for_step(workspace: Workspace, step: str) -> None:
    assert wait_until(lambda: any(call["step"] == step for call in workspace.tuner.calls()), 30)


@pytest.mark.parametrize("which", ["the same trainer", "another trainer"])
def test_the_second_run_in_a_folder_is_refused_at_once(
    workspace: Workspace, elsewhere: ThreadPoolExecutor, which: str
) -> None:
    go_on = in_the_middle(workspace)
    first = trainer(workspace)
    second = first if which == "the same trainer" else trainer(workspace)
    running = elsewhere.submit(train, workspace, first)
    wait_for_step(workspace, TRAIN)
    requests = len(workspace.server.requests)
    with pytest.raises(RuntimeError, match=r"has the training folder .* of its own"):
        train(workspace, second)
    with pytest.raises(RuntimeError, match="has the training folder"):
        elsewhere.submit(trainer(workspace)._prepare_dataset, workspace.toml, workspace.url, "word").result(60)
    assert len(workspace.server.requests) == requests
    go_on()
    assert running.result(60)
    assert train(workspace, second)


def train_quietly(work: Work):
    return work.train()


def test_the_second_run_of_another_process_is_refused_at_once(
    bench: Bench, workspace: Workspace, elsewhere: ThreadPoolExecutor
) -> None:
    go_on = in_the_middle(workspace)
    running = elsewhere.submit(train, workspace)
    wait_for_step(workspace, TRAIN)
    run = workspace.run(OURS, train_quietly)
    assert run.error
    assert run.error["type"] == "RuntimeError"
    assert f"another run (process {os.getpid()}) has the training folder" in run.error["message"]
    go_on()
    assert running.result(60)


def test_two_trainings_share_a_dataset(workspace: Workspace, elsewhere: ThreadPoolExecutor) -> None:
    """As on two GPUs, from one cache."""
    toml = trainer(workspace)._prepare_dataset(workspace.toml, workspace.url, "word")
    go_on = in_the_middle(workspace)
    names = ("one", "two")
    running = [elsewhere.submit(trainer(workspace)._launch_training, toml, output_name=name) for name in names]
    assert wait_until(lambda: len(workspace.tuner.calls()) == 2, 30)
    with pytest.raises(RuntimeError, match="has the training folder"):
        trainer(workspace)._prepare_dataset(workspace.toml, workspace.url, "word")
    go_on()
    assert [future.result(60) for future in running] == [
        str(workspace.output / f"{name}.safetensors") for name in names
    ]


def test_a_trainer_within_a_run_may_use_its_folder(workspace: Workspace) -> None:
    """A subclass may hand a step to another trainer."""

    class Mine(MusubiTraining):
        def _launch_training(self, *args: Any, **options: Any) -> str:
            return trainer(workspace)._launch_training(*args, **options)

    assert train(workspace, trainer(workspace, Mine))


def test_a_step_may_run_in_another_thread_of_the_run(workspace: Workspace, elsewhere: ThreadPoolExecutor) -> None:
    """A subclass may give a step a time limit so."""

    class Mine(MusubiTraining):
        def _launch_training(self, *args: Any, **options: Any) -> str:
            return elsewhere.submit(MusubiTraining._launch_training, self, *args, **options).result(60)

    assert train(workspace, trainer(workspace, Mine))


def test_a_step_may_run_on_another_trainer_in_another_thread(
    workspace: Workspace, elsewhere: ThreadPoolExecutor
) -> None:
    class Mine(MusubiTraining):
        def _launch_training(self, *args: Any, **options: Any) -> str:
            return elsewhere.submit(trainer(workspace)._launch_training, *args, **options).result(60)

    assert train(workspace, trainer(workspace, Mine))


def hands_a_step_to_another_process(work: Work):
    import multiprocessing

    from musubitraining.main import MusubiTraining

    class Mine(MusubiTraining):
        def _launch_training(self, *args, **options):
            with multiprocessing.get_context("fork").Pool(1) as pool:
                return pool.apply(work.trainer()._launch_training, args, options)

    return work.train(work.trainer(Mine))


def test_a_step_may_run_in_another_process(workspace: Workspace) -> None:
    assert workspace.run(OURS, hands_a_step_to_another_process).ok().result


def test_the_next_run_waits_for_the_processes_of_a_killed_one(bench: Bench) -> None:
    """They would write into its caches."""
    workspace = bench.workspace()
    workspace.tuner.does(LATENTS, ["spawn", STUBBORN], ["hang"])
    first = workspace.start(OURS, train_quietly)
    try:
        pids = workspace.tuner.wait_for_pids(2)
        first.process.kill()
        first.process.wait()
        workspace.tuner.does(LATENTS, ["write"])
        first.notes.rename(workspace.root / "notes of the first")
        run = workspace.run(OURS, train_quietly).ok()
        assert run.result
        assert not any(is_running(pid) for pid in pids)
    finally:
        end(workspace.tuner.pids())


def forks_a_child_that_exits_in_a_log_handler(work: Work):
    import logging
    import os
    import sys

    children = []

    class Forker(logging.Handler):
        def emit(self, record):
            if record.getMessage() == "[s] up":
                child = os.fork()
                if child == 0:
                    sys.exit(7)
                children.append(child)

    logging.getLogger("musubitraining").addHandler(Forker())
    code = "import time; print('up', flush=True); time.sleep(1); print('over')"
    work.trainer()._run_cmd("s", [sys.executable, "-c", code], cwd=work.root)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def test_a_fork_that_exits_in_a_log_handler_leaves_the_run_alone(bench: Bench) -> None:
    run = bench.workspace().run(OURS, forks_a_child_that_exits_in_a_log_handler).ok()
    # Not 7: the lock that `logging` would release is the parent's.
    assert run.result == [1]
    assert run.logged("[s] over")


def killed_while_its_fork_lives(work: Work):
    import logging
    import os
    import pathlib
    import signal

    class Killer(logging.Handler):
        def emit(self, record):
            if record.getMessage() == "[train] starting":
                child = os.fork()
                if child == 0:
                    while True:
                        signal.pause()
                pathlib.Path(work.path("fork")).write_text(str(child))
                os.kill(os.getpid(), signal.SIGKILL)

    logging.getLogger("musubitraining").addHandler(Killer())
    work.train()


def test_a_dead_owner_does_not_hold_the_folder(workspace: Workspace) -> None:
    try:
        workspace.start(OURS, killed_while_its_fork_lives).process.wait(60)
        fork = int((workspace.root / "fork").read_text())
        assert is_running(fork)
        assert train(workspace)
    finally:
        os.kill(fork, signal.SIGKILL)


# ---- success is checked -----------------------------------------------------------------------------------------


def bar(step: int, loss: str) -> str:
    return f"steps:  50%|#####     | {step}/4 [00:01<00:01,  1.90it/s, avr_loss={loss}]\r"


def lora(*numbers: float) -> str:
    data = struct.pack(f"<{len(numbers)}f", *numbers)
    name = "lora_unet_layers_0_attention_to_q.alpha"
    return (header({name: ("F32", [len(numbers)], len(data))}) + data).decode("latin-1")


CUT = CUT_WEIGHTS.decode("latin-1")


def caches(*names: str) -> Callable[[Workspace], list[list[Any]]]:
    return lambda workspace: [["write_at", str(workspace.training / "cache" / name), "cache"] for name in names]


@dataclass
class Failure:
    """A step that ends well with nothing to show for it."""

    name: str
    step: str
    actions: list[list[Any]] | Callable[[Workspace], list[list[Any]]]
    error: str
    words: tuple[str, ...]

    def arrange(self, workspace: Workspace) -> None:
        actions = self.actions(workspace) if callable(self.actions) else self.actions
        workspace.tuner.does(self.step, *actions)
        for name in ("output_lora_model.safetensors", "output_lora_model_comfyui.safetensors"):
            (workspace.output / name).write_text("of an earlier run")


NAN = ("no finite numbers", "lora_unet_layers_0_attention_to_q.alpha", "learning rate")
FAILURES = [
    Failure(
        "no images for the latents",
        LATENTS,
        [["say_on_stderr", "INFO:musubi_tuner.dataset.datasources:found 0 images\n"], ["say", "0it\rDone!\n"]],
        "RuntimeError",
        ("found 0 images", "images", "caption_extension", '".txt"', "dataset.toml"),
    ),
    Failure(
        "no images for the text encoder",
        TEXT,
        [["say", "found 0 images\nDone!\n"]],
        "RuntimeError",
        ("found 0 images",),
    ),
    Failure(
        "fewer latents than photos",
        LATENTS,
        caches("a_0064x0048_zi.safetensors"),
        "RuntimeError",
        ("latents of 1 photos only", "images", "none of b, c.", "remove"),
    ),
    Failure(
        "fewer text encoder outputs than photos",
        TEXT,
        caches("a_zi_te.safetensors", "c_zi_te.safetensors"),
        "RuntimeError",
        ("text encoder outputs of 2 photos only", "none of b."),
    ),
    Failure(
        "a NaN loss to the end",
        TRAIN,
        [["say_on_stderr", bar(1, "0.5") + bar(2, "nan") + bar(4, "nan")], ["write"]],
        "RuntimeError",
        ("NaN from step 2 of 4", "output_lora_model.safetensors", "learning rate"),
    ),
    Failure("a NaN in the LoRA", TRAIN, [["write", lora(1, math.nan)]], "RuntimeError", NAN),
    Failure("an infinity in the LoRA", TRAIN, [["write", lora(-math.inf)]], "RuntimeError", NAN),
    Failure("a NaN in the converted LoRA", CONVERT, [["write", lora(math.nan)]], "RuntimeError", NAN),
    Failure(
        "a cut LoRA",
        TRAIN,
        [["write", CUT]],
        "RuntimeError",
        ("is cut", f"promises {len(CUT) - 100 + 4096} bytes", f"has {len(CUT)}", "disk", "run again"),
    ),
    Failure("a cut converted LoRA", CONVERT, [["write", CUT]], "RuntimeError", ("is cut", "_comfyui", "make room")),
    Failure("a LoRA of an earlier run", TRAIN, [], "FileNotFoundError", ("Trained model not found: ",)),
    Failure(
        "a converted LoRA of an earlier run", CONVERT, [], "FileNotFoundError", ("ComfyUI model was not created: ",)
    ),
]


def with_accelerate_on_path(arrange: Callable[[Workspace], None]) -> Callable[[Workspace], None]:
    """The original's way without one cannot work."""

    def both(workspace: Workspace) -> None:
        install_accelerate_program(workspace.root / "bin", workspace.python, workspace.root / "accelerate-of-path-ran")
        workspace.env["PATH"] = f"{workspace.root}/bin:/usr/bin:/bin"
        arrange(workspace)

    return both


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.name)
def test_success_is_checked(bench: Bench, failure: Failure) -> None:
    theirs, ours = bench.both(train_quietly, with_accelerate_on_path(failure.arrange))
    assert theirs.ok().result, "the original should not notice"
    assert ours.error, f"{ours.result} was returned"
    assert ours.error["type"] == failure.error
    for word in failure.words:
        assert word in ours.error["message"]
    steps = [call["step"] for call in ours.calls]
    assert steps[-1] == os.path.basename(failure.step), "a step went on from it"


def renames_its_steps(work: Work):
    from musubitraining.main import MusubiTraining

    class Mine(MusubiTraining):
        def _run_cmd(self, step, cmd, *, cwd):
            super()._run_cmd("job 1: " + step, cmd, cwd=cwd)

    return work.train(work.trainer(Mine), convert_for_comfyui=False)


def test_success_is_checked_whatever_a_subclass_calls_a_step(bench: Bench) -> None:
    workspace = bench.workspace()
    workspace.tuner.does(TRAIN)
    error = workspace.run(OURS, renames_its_steps).error
    assert error
    assert error["type"] == "FileNotFoundError"


def test_a_file_of_this_run_may_have_an_older_ones_time_and_size(workspace: Workspace) -> None:
    """As `shutil.copy2` of a fixture gives it."""
    fixture = workspace.root / "fixture"
    fixture.write_bytes(b"weights")

    class Mine(MusubiTraining):
        def _run_cmd(self, step: str, cmd: Any, *, cwd: Any) -> None:
            super()._run_cmd(step, [sys.executable, "-c", "pass"], cwd=cwd)
            if step == "train":
                shutil.copy2(fixture, workspace.output / "output_lora_model.safetensors")

    for _ in range(2):
        assert train(workspace, trainer(workspace, Mine), convert_for_comfyui=False)


def test_a_loss_that_recovers_is_a_warning(bench: Bench) -> None:
    workspace = bench.workspace()
    workspace.tuner.does(TRAIN, ["say", bar(1, "nan") + bar(2, "0.5")], ["write", lora(1)])
    run = workspace.run(OURS, train_quietly).ok()
    assert len(run.logged("NaN at step 1 of 4", "WARNING")) == 1


def test_one_dataset_of_two_without_images_is_a_warning(bench: Bench) -> None:
    workspace = bench.workspace()
    workspace.tuner.does(LATENTS, ["say", "found 3 images\nfound 0 images\n"])
    assert len(workspace.run(OURS, train_quietly).ok().logged("1 of 2 datasets", "WARNING")) == 1


def test_nothing_is_believed_of_a_command_alone(bench: Bench) -> None:
    """It may be any command."""
    workspace = bench.workspace()
    run = workspace.run(OURS, says_what_steps_say).ok()
    assert run.logged("found 0 images")


def says_what_steps_say(work: Work):
    work.trainer()._run_cmd("s", ["/bin/echo", "found 0 images"], cwd=work.root)


def merging(adapter: str) -> list[list[Any]]:
    said = f"merging module: {adapter} with multiplier 1.0\nINFO:lora:create LoRA network from weights\n"
    return [["say", said + "INFO:lora:create LoRA for U-Net/DiT: 0 modules.\n"]]


def test_an_adapter_of_which_nothing_is_merged_is_a_warning_at_once(workspace: Workspace, reacts: Any) -> None:
    adapter = workspace.models / "zimage_turbo_training_adapter_v2.safetensors"
    seen = workspace.root / "seen"
    # The step waits for what the warning brings about.
    workspace.tuner.does(TRAIN, *merging(str(adapter)), ["await", str(seen)], ["write"])
    warned: list[str] = []
    reacts(f"merged 0 modules of the adapter {adapter}: it trains as if", seen.touch)
    reacts("--target default", lambda: warned.append("mend"))
    assert train(workspace)
    assert warned == ["mend"]


def test_an_empty_adapter_merges_nothing_and_that_is_right(bench: Bench) -> None:
    workspace = bench.workspace()
    adapter = workspace.models / "zimage_turbo_training_adapter_v2.safetensors"
    adapter.write_bytes(header({}))
    workspace.tuner.does(TRAIN, *merging(str(adapter)), ["write"])
    assert workspace.run(OURS, train_quietly).ok().logged("merged 0 modules") == []


def test_what_proves_nothing_passes(bench: Bench) -> None:
    """Stand-in scripts write what they like: a cache for each photo under another name, a LoRA of a few letters."""

    def arrange(workspace: Workspace) -> None:
        for step, ending in ((LATENTS, "_zi.safetensors"), (TEXT, "_zi_te.safetensors")):
            workspace.tuner.does(step, *caches(*(f"{number}{ending}" for number in range(3)))(workspace))

    theirs, ours = bench.both(train_quietly, with_accelerate_on_path(arrange))
    assert ours.ok().result == theirs.ok().result


# ---- lines ------------------------------------------------------------------------------------------------------


def run_code(work: Work):
    import re
    import sys

    def peak_kb():
        with open("/proc/self/status") as status:
            return int(re.search(r"VmHWM:\s+(\d+)", status.read()).group(1))

    before = peak_kb() if sys.platform == "linux" else 0
    work.trainer()._run_cmd("s", [sys.executable, "-c", work.extra["code"]], cwd=work.root)
    return peak_kb() - before if sys.platform == "linux" else 0


def said(bench: Bench, code: str) -> Run:
    workspace = bench.workspace()
    workspace.extra = {"code": code}
    return workspace.run(OURS, run_code).ok()


def test_no_line_of_many_is_lost_and_their_order_is_kept(bench: Bench) -> None:
    run = said(bench, "for number in range(100_000): print(number)")
    assert run.logged("[s] ", "INFO")[3:-1] == [f"[s] {number}" for number in range(100_000)]
    assert run.result < 32 << 10


def test_a_line_without_end_does_not_fill_the_memory(bench: Bench) -> None:
    run = said(bench, "import sys\nfor _ in range(64): sys.stdout.write('x' * (1 << 20))")
    pieces = [line.removeprefix("[s] ") for line in run.logged("[s] x")]
    assert sum(len(piece) for piece in pieces) == 64 << 20
    assert run.result < 64 << 10


def test_bytes_that_are_no_text_are_replaced(bench: Bench) -> None:
    run = said(
        bench, r"import os; os.write(1, b'a\xff\xfe\xc3(\xe2\x82b\n'); os.write(2, bytes(range(128, 256)) + b'\n')"
    )
    lines = run.logged("[s] ", "INFO")[3:-1]
    assert lines[0] == "[s] a\ufffd\ufffd\ufffd(\ufffdb"
    assert len(lines) == 2
    assert set(lines[1].removeprefix("[s] ")) == {"\ufffd"}


def test_a_step_that_closes_its_output_is_heard_out(bench: Bench) -> None:
    run = said(bench, "import os, time; os.write(1, b'up\\n'); os.close(1); os.close(2); time.sleep(0.3)")
    assert run.logged("[s] ", "INFO")[3:-1] == ["[s] up"]
    assert run.logged("[s] done")


def test_a_step_that_closes_its_output_is_cancelled(workspace: Workspace, elsewhere: ThreadPoolExecutor) -> None:
    closed = workspace.root / "closed"
    code = f"import os, time; os.close(1); os.close(2); open({str(closed)!r}, 'w'); time.sleep(600)"
    a_trainer = trainer(workspace)
    running = elsewhere.submit(a_trainer._run_cmd, "s", [sys.executable, "-c", code], cwd=workspace.root)
    assert wait_until(closed.exists, 30)
    assert a_trainer.cancel()
    with pytest.raises(Cancelled):
        running.result(60)


def test_nothing_is_read_from_the_hosts_stdin(workspace: Workspace, reacts: Any) -> None:
    heard: list[bool] = []
    reacts("[s] read ''", lambda: heard.append(True))
    code = "import sys; print('read', repr(sys.stdin.read()))"
    trainer(workspace)._run_cmd("s", [sys.executable, "-c", code], cwd=workspace.root)
    assert heard == [True]


# ---- the host's end ---------------------------------------------------------------------------------------------


def becomes_another_program(work: Work):
    import logging
    import os

    class Becomer(logging.Handler):
        def emit(self, record):
            if record.getMessage() == "[precache:latents] up":
                os.execv("/bin/true", ["true"])

    logging.getLogger("musubitraining").addHandler(Becomer())
    with open(work.path("any.toml"), "w"):
        work.trainer()._pre_cache(work.path("any.toml"))


def aborts(work: Work):
    import logging
    import os
    import resource

    class Aborter(logging.Handler):
        def emit(self, record):
            if record.getMessage() == "[precache:latents] up":
                os.abort()

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.getLogger("musubitraining").addHandler(Aborter())
    with open(work.path("any.toml"), "w"):
        work.trainer()._pre_cache(work.path("any.toml"))


def ends_in_a_thread(work: Work):
    import logging
    import os
    import threading

    class Ender(logging.Handler):
        def emit(self, record):
            if record.getMessage() == "[precache:latents] up":
                threading.Thread(target=os._exit, args=(7,)).start()

    logging.getLogger("musubitraining").addHandler(Ender())
    with open(work.path("any.toml"), "w"):
        work.trainer()._pre_cache(work.path("any.toml"))


def leaves_it_to_a_daemon_thread(work: Work):
    import logging
    import threading

    up = threading.Event()

    class Teller(logging.Handler):
        def emit(self, record):
            if record.getMessage() == "[precache:latents] up":
                up.set()

    def run():
        with open(work.path("any.toml"), "w"):
            work.trainer()._pre_cache(work.path("any.toml"))

    logging.getLogger("musubitraining").addHandler(Teller())
    threading.Thread(target=run, daemon=True).start()
    up.wait(30)


@ON_LINUX_ALONE
@pytest.mark.parametrize(
    "run",
    [becomes_another_program, aborts, ends_in_a_thread, leaves_it_to_a_daemon_thread],
    ids=lambda run: run.__name__,
)
def test_however_the_host_ends_the_tree_ends(bench: Bench, run: Callable[[Work], Any]) -> None:
    workspace = bench.workspace()
    children = ["spawn", {"setsid": True}], ["spawn", {}]
    workspace.tuner.does(LATENTS, *children, ["note_pid"], ["say", "up\n"], ["hang"])
    running = workspace.start(OURS, run)
    try:
        pids = workspace.tuner.wait_for_pids(3)
        running.process.wait(60)
        assert wait_until(lambda: not any(is_running(pid) for pid in pids), 30)
    finally:
        end(workspace.tuner.pids())


# ---- why a step failed ------------------------------------------------------------------------------------------

RECORDED = Path(__file__).parent / "recorded/failures"


def recorded(name: str) -> tuple[str, str]:
    """What a really provoked failure said, and the reason that is to be told."""
    lines = (RECORDED / f"{name}.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    head = [line for line in lines if line.startswith("# ")]
    (reason,) = [line.removeprefix("# reason: ").strip() for line in head if line.startswith("# reason: ")]
    return "".join(lines[len(head) :]), reason


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (TRAIN, "gpu_memory"),
        (TEXT, "tokenizer_offline"),
        (TRAIN, "module_bitsandbytes"),
        (LATENTS, "disk_full_latents"),
        (TRAIN, "disk_full_lora"),
    ],
)
def test_a_failed_step_says_why(workspace: Workspace, caplog: pytest.LogCaptureFixture, step: str, name: str) -> None:
    said, reason = recorded(name)
    workspace.tuner.does(step, ["say", said.encode().decode("latin-1")], ["exit", 1])
    with pytest.raises(subprocess.CalledProcessError) as caught:
        train(workspace)
    error = caught.value
    assert isinstance(error, CalledProcessError)
    assert error.returncode == 1
    assert error.reason == reason
    assert str(error).endswith(f"returned non-zero exit status 1. {reason}")
    assert any(said.splitlines()[-1][:2000] in line for line in error.output.splitlines())
    assert [record.levelname for record in caplog.records if reason in record.getMessage()] == ["WARNING"]
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.output, again.cmd) == (type(error), str(error), error.output, error.cmd)


def test_a_failed_command_has_its_last_lines(workspace: Workspace) -> None:
    code = (
        "import sys\nfor number in range(1000): print(number)\n"
        "for step in range(200): print(f'steps: {step}%|# | {step}/200 [00:01<00:01, 1.0it/s]', end='\\r')\n"
        "print('the end')\nsys.exit(3)"
    )
    with pytest.raises(CalledProcessError) as caught:
        trainer(workspace)._run_cmd("s", [sys.executable, "-c", code], cwd=workspace.root)
    lines = caught.value.output.splitlines()
    assert len(lines) == 50
    assert lines[-3:] == ["999", "steps: 199%|# | 199/200 [00:01<00:01, 1.0it/s]", "the end"]
    assert caught.value.reason is None
    assert str(caught.value).endswith("returned non-zero exit status 3.")


def test_what_the_kernel_kills_for_memory_is_named(workspace: Workspace) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(CalledProcessError, match="SIGKILL") as caught:
        trainer(workspace)._run_cmd("s", [sys.executable, "-c", code], cwd=workspace.root)
    assert caught.value.returncode == -9
    assert "memory" in caught.value.reason


def test_ctrl_c_is_heard_wherever_it_comes(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two lines of a step the logger is asked what it is: there, too."""
    workspace.tuner.does(TRAIN, ["say", "a line\n"], ["write"])
    asked = logging.getLogRecordFactory

    def interrupted() -> Any:
        monkeypatch.setattr(logging, "getLogRecordFactory", asked)
        raise KeyboardInterrupt

    monkeypatch.setattr(logging, "getLogRecordFactory", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(workspace)
