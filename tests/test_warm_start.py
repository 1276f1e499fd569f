"""Steps in forks of one interpreter, and the launcher with its script in one process: as in processes of their own."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import musubitraining
import pytest
from harness.library import OURS, Run, Workspace
from harness.scenario import Work
from harness.tuner import LATENTS, TEXT, TRAIN, install_accelerate, is_running, wait_until

STEP_INTERPRETER = Path(musubitraining.__file__).with_name("step_interpreter.py")
NOT_WARM = "no warm start, the steps run in processes of their own"


def plain(work: Work) -> str:
    return work.train()


def warm(work: Work) -> str:
    return work.train(warm_start=True)


@pytest.fixture
def make(bench: Any) -> Callable[..., Workspace]:
    def make(arrange: Callable[[Workspace], object] = lambda _: None) -> Workspace:
        workspace: Workspace = bench.workspace()
        install_accelerate(workspace.root / "site", as_the_real_one=True)
        arrange(workspace)
        return workspace

    return make


def steps(run: Run) -> list[str]:
    """What the steps' commands have said, and how they have ended."""
    said = [message for _, message in run.log if message.startswith(("[precache:", "[train]"))]
    return [line for line in said if NOT_WARM not in line]


def calls(run: Run) -> list[dict[str, Any]]:
    """How the scripts have found themselves, those that Musubi Tuner itself has."""
    return [call for call in run.calls if call["step"] in (LATENTS, TEXT, TRAIN)]


def says_how_it_is(workspace: Workspace) -> None:
    """Scripts that say what a script can find out about its process, besides what every stub notes."""
    for name in (LATENTS, TEXT, TRAIN):
        script = workspace.tuner.root / name
        script.write_text(
            script.read_text()
            + textwrap.dedent("""
            import __main__, os, signal, threading
            print("main", __main__.__file__, __name__, __main__.__spec__, __main__.__doc__, vars(__main__) is globals())
            print("path", sys.path[0], "argv", sys.argv, "group", os.getpgrp() == os.getpid())
            print("signals", *map(signal.getsignal, sorted(signal.valid_signals())))
            print("streams", sys.stdin.read(), sys.stdout.encoding, sys.stdout.isatty(), sys.stderr.fileno())
            print("threads", threading.active_count(), threading.current_thread() is threading.main_thread())
            """)
        )


def dataset_and_outputs(run: Run) -> dict[str, str]:
    """Its record tells what it took."""
    return {name: what for name, what in run.files.items() if not name.endswith(("/events.jsonl", "/run.json"))}


def test_a_step_finds_what_it_finds_in_a_process_of_its_own(make: Callable[..., Workspace]) -> None:
    arranged = make(says_how_it_is), make(says_how_it_is)
    first, second = (workspace.run(OURS, run).ok() for workspace, run in zip(arranged, (plain, warm), strict=True))
    assert steps(first) == steps(second)
    assert len([line for line in steps(first) if "] main " in line]) == 3
    assert calls(first) == calls(second)
    assert [call["step"] for call in calls(first)] == [LATENTS, TEXT, TRAIN]
    assert calls(second)[2]["env"]["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert calls(second)[2]["env"]["OMP_NUM_THREADS"] == "1"
    assert dataset_and_outputs(first) == dataset_and_outputs(second)
    assert first.result == second.result
    assert second.logged("[pipeline] warm start: one interpreter imports for all steps")
    assert not second.logged(NOT_WARM)


ENDINGS: dict[str, str] = {
    "an exception": "def f():\n    raise ValueError('é')\nf()",
    "a chained exception": "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise KeyError('x') from error",
    "a syntax error": "x = = 1",
    "an exit code": "sys.exit(3)",
    "an exit code past a byte": "sys.exit(259)",
    "a message": "sys.exit('no more')",
    "os._exit": "import os; os._exit(4)",
    "an interrupt": "raise KeyboardInterrupt",
    "a signal": "import os; os.kill(os.getpid(), 15)",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "an exit in a thread": "import threading; threading.Thread(target=lambda: 1 / 0).start()",
    "work after its end": """
import atexit, threading, time
atexit.register(lambda: print("at exit"))
def work():
    time.sleep(0.2)
    print("still working")
threading.Thread(target=work).start()
left_open = open("left_open.txt", "w")
left_open.write("all of it")
print("the last line")
""",
    "a stream in another's place": "import io; sys.stdout = io.TextIOWrapper(sys.stdout.detach()); print('é')",
    "a closed stream": "sys.stdout.close()",
    "no streams": "sys.stdout = sys.stderr = None",
    "work after an interrupt": "import atexit\natexit.register(lambda: print('at exit'))\nraise KeyboardInterrupt",
    "an import at the end": "import atexit; atexit.register(lambda: __import__('wave') and print('ok'))",
}


FORK = "import step_interpreter as si, sys; si.leave(si.run(sys.argv[1], sys.argv[2:]))"
LAUNCH = ["--num_cpu_threads_per_process", "1", "--mixed_precision", "bf16"]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("is_launched", [False, True], ids=["script", "launch"])
def test_a_script_ends_as_in_a_process_of_its_own(tmp_path: Path, ending: str, is_launched: bool) -> None:
    """A fork ends by `os._exit`, and so does the launcher with its script in its process: nothing gets lost by that."""
    script = tmp_path / "script.py"
    script.write_text(f"import sys\nprint('it runs', sys.argv[1:])\n{ENDINGS[ending]}\n")
    install_accelerate(tmp_path, as_the_real_one=True)
    if is_launched:
        usual = ["-m", "accelerate.commands.launch", *LAUNCH, str(script), "-x"]
        ours = [str(STEP_INTERPRETER), "launch", *LAUNCH, str(script), "-x"]
    else:
        usual, ours = [str(script), "-x"], ["-c", FORK, str(script), "-x"]
    said, returncodes = zip(*(ended(command, tmp_path) for command in (usual, ours)), strict=True)
    ends_the_launcher_too = {
        "an interrupt": -2,
        "work after an interrupt": -2,
        "a signal": -15,
        "killed": -9,
        "os._exit": 4,
    }
    if is_launched and ending in ends_the_launcher_too:
        assert returncodes == (1, ends_the_launcher_too[ending])
        assert said[0][: len(said[1])] == said[1]
    else:
        assert returncodes[0] == returncodes[1]
        assert said[0] == said[1]


def ended(command: list[str], folder: Path) -> tuple[list[str], int]:
    """What a command of Python's has said and written, and its exit code."""
    path = os.pathsep.join([str(folder), str(STEP_INTERPRETER.parent)])
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = done.stdout.splitlines()
    # The frames that `python -m` has above the launcher's own.
    start = next((place for place, line in enumerate(lines) if "runpy" in line), None)
    if start is not None:
        end = next(place for place, line in enumerate(lines) if place > start and line.strip() == "main()")
        del lines[start : end + 1]
    left = folder / "left_open.txt"
    if left.exists():
        lines.append(left.read_text())
        left.unlink()
    return [line for line in lines if not set(line) <= set(" ^~")], done.returncode


@pytest.mark.parametrize("script", [LATENTS, TRAIN])
def test_a_killed_script_is_what_the_launcher_makes_of_it(make: Callable[..., Workspace], script: str) -> None:
    workspace = make(lambda workspace: workspace.tuner.does(script, ["signal", 9]))
    run = workspace.run(OURS, plain)
    assert run.error
    assert run.error["returncode"] == (1 if script == TRAIN else -9)


def test_nothing_is_left_running(make: Callable[..., Workspace]) -> None:
    workspace = make(
        lambda workspace: workspace.tuner.does(TEXT, ["spawn", {}], ["spawn", {"setsid": True}], ["write"])
    )
    workspace.run(OURS, warm).ok()
    assert not any(map(is_running, workspace.tuner.pids()))
    assert not processes_of(workspace)


def processes_of(workspace: Workspace) -> dict[int, str]:
    """The processes of this machine whose command line names the clone; supervisors, which end after them, left out."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words, name = (folder / "cmdline").read_bytes(), (folder / "comm").read_text()
        except OSError:
            continue
        if os.fsencode(workspace.tuner.root) in words and name != "musubi-guard\n":
            found[int(folder.name)] = words.decode(errors="replace")
    return found


@pytest.mark.parametrize("step", [LATENTS, TRAIN])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_host_that_ends_takes_everything_with_it(
    make: Callable[..., Workspace], step: str, how: signal.Signals
) -> None:
    workspace = make(lambda workspace: workspace.tuner.does(step, ["spawn", {"setsid": True}], ["hang"]))
    running = workspace.start(OURS, warm)
    pids = workspace.tuner.wait_for_pids(2)
    running.process.send_signal(how)
    running.process.wait(30)
    assert wait_until(lambda: not any(map(is_running, pids)), 30)
    assert wait_until(lambda: not processes_of(workspace), 30)


def interpreters(workspace: Workspace) -> list[int]:
    """The warm interpreter and its forks, which have its command line; it is the oldest."""
    return sorted(pid for pid, words in processes_of(workspace).items() if "step_interpreter.py\0warm" in words)


def waits(workspace: Workspace, script: str) -> Path:
    """Has a step wait, from when the file that is returned is there until it is not."""
    up, go = workspace.root / "up", workspace.root / "go"
    workspace.tuner.does(script, ["write_at", str(up), ""], ["await", str(go)], ["write"])
    return up


def test_the_interpreter_is_gone_while_the_training_runs(make: Callable[..., Workspace]) -> None:
    workspace = make()
    up = waits(workspace, TRAIN)
    running = workspace.start(OURS, warm)
    assert wait_until(up.exists, 30)
    assert wait_until(lambda: len(interpreters(workspace)) == 1, 30)
    (workspace.root / "go").touch()
    running.finish().ok()


def forks_while_warm(work: Work) -> str:
    import logging
    import os
    import signal

    forks = []

    def fork(record: logging.LogRecord) -> bool:
        if record.getMessage() == "[precache:latents] starting":
            forks.append(os.fork())
            if not forks[0]:
                signal.alarm(60)
                signal.pause()
        return True

    logging.getLogger("musubitraining").addFilter(fork)
    path = work.train(warm_start=True)
    os.kill(forks[0], signal.SIGKILL)
    return path


def test_it_is_gone_though_a_fork_of_the_host_lives_on(make: Callable[..., Workspace]) -> None:
    workspace = make()
    up = waits(workspace, TRAIN)
    running = workspace.start(OURS, forks_while_warm)
    assert wait_until(up.exists, 30)
    assert wait_until(lambda: len(interpreters(workspace)) == 1, 30)
    (workspace.root / "go").touch()
    running.finish().ok()


def test_it_is_gone_though_the_training_is_not_its_fork(bench: Any) -> None:
    """Of a launcher that is not known."""
    workspace: Workspace = bench.workspace()
    up = waits(workspace, TRAIN)
    running = workspace.start(OURS, warm)
    assert wait_until(up.exists, 30)
    assert wait_until(lambda: not interpreters(workspace), 30)
    (workspace.root / "go").touch()
    running.finish().ok()


def test_an_interpreter_that_is_killed_takes_no_step_with_it(make: Callable[..., Workspace]) -> None:
    workspace = make()
    up = waits(workspace, TEXT)
    running = workspace.start(OURS, warm)
    assert wait_until(up.exists, 30)
    interpreter, _ = interpreters(workspace)
    os.kill(interpreter, signal.SIGKILL)
    (workspace.root / "go").touch()
    run = running.finish().ok()
    (line,) = run.logged(NOT_WARM)
    assert line.startswith("[train] ")
    assert [call["step"] for call in calls(run)] == [LATENTS, TEXT, TRAIN]


def broken(text: str) -> Callable[[Workspace], None]:
    """A clone whose training script begins with this."""

    def arrange(workspace: Workspace) -> None:
        script = workspace.tuner.root / TRAIN
        script.write_text(text + "\n" + script.read_text())

    return arrange


def package(workspace: Workspace, name: str, text: str) -> None:
    (workspace.root / "site" / f"{name}.py").write_text(textwrap.dedent(text))


def dies(workspace: Workspace) -> None:
    package(workspace, "heavy", "import os, sys\nif 'warm' in sys.argv: os.kill(os.getpid(), 9)\n")
    broken("import heavy")(workspace)


def imports_fail(workspace: Workspace) -> None:
    package(workspace, "heavy", "import sys\nif 'warm' in sys.argv: raise RuntimeError('half of it is missing')\n")
    broken("import heavy")(workspace)


def starts_threads(workspace: Workspace) -> None:
    package(
        workspace,
        "heavy",
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True, name='idler').start()\n",
    )
    broken("import heavy")(workspace)


def sets_up_logging(workspace: Workspace) -> None:
    package(workspace, "heavy", "import logging\nlogging.basicConfig(format='heavy %(message)s')\n")
    broken("import heavy")(workspace)


def initialises_cuda(workspace: Workspace) -> None:
    package(
        workspace,
        "torch",
        """
        class cuda:
            is_initialized = is_available = _is_in_bad_fork = staticmethod(lambda: True)
        def set_num_threads(count): pass
        """,
    )
    broken("import torch")(workspace)


@pytest.mark.parametrize(
    ("arrange", "why"),
    [
        (dies, "it has ended before it was ready"),
        (imports_fail, "half of it is missing"),
        (starts_threads, "have started 1 threads (idler)"),
        (sets_up_logging, "sets up logging"),
        (initialises_cuda, "has initialised CUDA"),
    ],
)
def test_trouble_falls_back_with_one_line(make: Callable[..., Workspace], arrange: Any, why: str) -> None:
    run = make(arrange).run(OURS, warm).ok()
    (line,) = run.logged(NOT_WARM)
    assert why in line
    assert ("WARNING", line) in run.log
    assert [call["step"] for call in calls(run)] == [LATENTS, TEXT, TRAIN]
    assert not processes_of(run.workspace)


def test_a_failed_step_is_not_run_again(make: Callable[..., Workspace]) -> None:
    run = make(lambda workspace: workspace.tuner.does(TEXT, ["exit", 7])).run(OURS, warm)
    assert run.error
    assert run.error["returncode"] == 7
    assert not run.logged(NOT_WARM)
    assert [call["step"] for call in calls(run)] == [LATENTS, TEXT]


def test_a_clone_that_cannot_be_imported_fails_in_its_own_words(make: Callable[..., Workspace]) -> None:
    runs = [make(broken("import not_there_at_all")).run(OURS, run) for run in (plain, warm)]
    for run in runs:
        assert run.error
        assert run.logged("[train] ModuleNotFoundError: No module named 'not_there_at_all'")
    assert steps(runs[0]) == steps(runs[1])
    assert "not_there_at_all" in runs[1].logged(NOT_WARM)[0]


def says_at_import(workspace: Workspace) -> None:
    package(
        workspace,
        "heavy",
        """
        import logging, os, sys
        print("heavy is imported")
        os.write(2, b"and says so without Python\\n")
        logging.getLogger("heavy").warning("heavy warns")
        logging.getLogger("heavy").info("heavy informs")
        """,
    )
    for name in (LATENTS, TRAIN):
        script = workspace.tuner.root / name
        before = (
            "DIGITS = '\\d'\n"
            f"import logging\nlogging.basicConfig(level=logging.INFO, format='{name}: %(message)s')\nprint('first')\n"
        )
        script.write_text(f"{before}import heavy\nprint('then')\n{script.read_text()}")


def test_what_an_import_says_every_script_says(make: Callable[..., Workspace]) -> None:
    runs = []
    for run in (plain, warm):
        workspace = make(says_at_import)
        # Of the escape that is none.
        workspace.env["PYTHONWARNINGS"] = "default"
        runs.append(workspace.run(OURS, run).ok())
    assert steps(runs[0]) == steps(runs[1])
    assert len(runs[1].logged("heavy informs")) == 2
    assert not runs[1].logged(NOT_WARM)


def draws(workspace: Workspace) -> None:
    package(
        workspace,
        "torch",
        """
        import random
        class default_generator:
            drawn = random.random()
            @classmethod
            def seed(cls): cls.drawn = random.random()
        class cuda:
            is_initialized = is_available = _is_in_bad_fork = staticmethod(lambda: False)
        def set_num_threads(count): pass
        """,
    )
    for name in (LATENTS, TEXT, TRAIN):
        script = workspace.tuner.root / name
        script.write_text(f"import torch\nprint('drawn', torch.default_generator.drawn)\n{script.read_text()}")


def test_no_two_steps_draw_the_same_random_numbers(make: Callable[..., Workspace]) -> None:
    run = make(draws).run(OURS, warm).ok()
    assert len({line.partition("drawn ")[2] for line in run.logged("] drawn ")}) == 3
    assert not run.logged(NOT_WARM)


@pytest.mark.parametrize(("mkl", "count"), [({}, "1"), ({"MKL_NUM_THREADS": "2"}, "2")])
def test_the_launcher_says_how_many_threads_there_are_unless_mkl_does(
    make: Callable[..., Workspace], mkl: dict[str, str], count: str
) -> None:
    def arrange(workspace: Workspace) -> None:
        package(
            workspace,
            "torch",
            """
            import os
            threads = int(os.environ.get("MKL_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", 8)))
            def set_num_threads(count):
                global threads
                threads = count
            class default_generator:
                seed = staticmethod(lambda: None)
            class backends:
                class mkl:
                    is_available = staticmethod(lambda: True)
            class cuda:
                is_initialized = is_available = _is_in_bad_fork = staticmethod(lambda: False)
            """,
        )
        broken("import torch\nprint('threads', torch.threads)")(workspace)
        workspace.env |= mkl

    for way in (plain, warm):
        run = make(arrange).run(OURS, way).ok()
        assert run.logged("] threads ") == [f"[train] threads {count}"]
        assert not run.logged(NOT_WARM)


def leaves_things(workspace: Workspace) -> None:
    """A package that opens a file and starts a program as it is imported; and a host that says how to look for CUDA."""
    package(
        workspace,
        "heavy",
        f"""
        import subprocess
        log = open({str(workspace.root / "heavy.log")!r}, "a")
        program = subprocess.Popen(["false"], stdout=subprocess.PIPE)
        program.stdout.read()
        """,
    )
    for name in (LATENTS, TRAIN):
        script = workspace.tuner.root / name
        script.write_text(f"import heavy\nheavy.log.write('{name}\\n')\n{script.read_text()}")
    workspace.env["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"


def test_what_an_import_leaves_behind_is_as_it_would_be(make: Callable[..., Workspace]) -> None:
    runs = [make(leaves_things).run(OURS, run).ok() for run in (plain, warm)]
    assert not runs[1].logged(NOT_WARM)
    for run in runs:
        assert (run.workspace.root / "heavy.log").read_text().splitlines() == [LATENTS, TRAIN]
        assert {call["env"]["PYTORCH_NVML_BASED_CUDA_CHECK"] for call in calls(run)} == {"0"}


def other_environment(work: Work) -> str:
    import os

    trainer = work.trainer()
    prepare = type(trainer)._prepare_dataset

    def prepared(*arguments: Any) -> str:
        os.environ["SEEN_BY_THE_STEPS"] = "yes"
        return prepare(trainer, *arguments)

    trainer.__class__ = type("Mine", (type(trainer),), {"_prepare_dataset": lambda self, *given: prepared(*given)})
    return trainer.train(work.toml, work.url, work.trigger_word, warm_start=True)


def test_steps_that_are_to_find_something_else_get_processes_of_their_own(make: Callable[..., Workspace]) -> None:
    run = make().run(OURS, other_environment).ok()
    (line,) = run.logged(NOT_WARM)
    assert line.endswith("the environment has changed since")
    assert [call["env"].get("SEEN_BY_THE_STEPS") for call in calls(run)] == ["yes"] * 3


def mine(work: Work) -> list[str]:
    seen = []
    trainer = work.trainer()
    trainer._run_cmd = lambda step, cmd, *, cwd: seen.append(step)
    work.attempt(lambda: trainer.train(work.toml, work.url, work.trigger_word, warm_start=True))
    return seen


def test_an_override_of_run_cmd_gets_every_step(make: Callable[..., Workspace]) -> None:
    run = make().run(OURS, mine).ok()
    assert run.result == ["precache:latents", "precache:text_encoder", "train"]
    assert not run.logged("warm start")


def natively(work: Work) -> str:
    return work.train(native_convert=True)


RECORDED = Path(__file__).parent / "recorded/conversion"


def trains(workspace: Workspace, lora: bytes) -> None:
    workspace.tuner.does(TRAIN, ["write", lora.decode("latin-1")])


@pytest.mark.parametrize("run", [natively, warm])
def test_a_lora_is_converted_without_the_script(make: Callable[..., Workspace], run: Callable[[Work], str]) -> None:
    lora = (RECORDED / "lora_float32.safetensors").read_bytes()
    ran = make(lambda workspace: trains(workspace, lora)).run(OURS, run).ok()
    assert [call["step"] for call in ran.calls] == [LATENTS, TEXT, TRAIN]
    converted = (ran.workspace.output / "output_lora_model_comfyui.safetensors").read_bytes()
    assert len(converted) == (RECORDED / "lora_float32.merged.safetensors").stat().st_size
    assert ran.result == "<work>/output/output_lora_model_comfyui.safetensors"
    assert ran.logged("[convert:comfyui] done (duration=")


def test_a_lora_that_is_not_known_is_for_the_script(make: Callable[..., Workspace]) -> None:
    run = make(lambda workspace: trains(workspace, b"of another kind")).run(OURS, natively).ok()
    (line,) = run.logged("[convert:comfyui] not converted natively, the clone's script is to do it: ")
    assert ("WARNING", line) in run.log
    assert run.calls[-1]["step"] == "convert_z_image_lora_to_comfy.py"


def test_the_script_converts_where_nothing_else_is_asked_for(make: Callable[..., Workspace]) -> None:
    lora = (RECORDED / "lora_float32.safetensors").read_bytes()
    run = make(lambda workspace: trains(workspace, lora)).run(OURS, plain).ok()
    assert run.calls[-1]["step"] == "convert_z_image_lora_to_comfy.py"
