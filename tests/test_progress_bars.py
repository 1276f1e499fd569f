"""Progress bars: in a real terminal, in a real kernel, and not where nobody looks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import musubitraining
import pytest
from harness.terminal import Screen, Terminal, terminal
from musubitraining import run_events as events

RECORDED = Path(__file__).parent / "recorded/runs/demo/events.jsonl"
LIBRARY = str(Path(musubitraining.__file__).parents[1])
BAR = re.compile(r"(?P<name>[\w:, ]+?) +(?P<percent>\d+)%\|(?P<bar>.*)\| (?P<rest>.+)")

# A run as the library has one: its events, and the lines of its log between them.
REPLAY = f"""
import logging, sys, time
from pathlib import Path
from musubitraining import progress_bars, run_events as events

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("musubitraining")
handler, = logging.getLogger().handlers
stream = handler.stream

def replay(path={str(RECORDED)!r}, progress=None, until=None):
    bars = progress_bars.of(progress)
    for number, event in enumerate(events.read(Path(path))):
        logger.info("line %d", number)
        if bars is not None:
            bars(event)
        if until is not None and until(event):
            break
    return bars
"""


def run_in_terminal(code: str, tmp_path: Path, columns: int = 100, env: dict[str, str] | None = None) -> Screen:
    with in_terminal(code, tmp_path, columns, env) as program:
        return program.finish()


@contextmanager
def in_terminal(code: str, tmp_path: Path, columns: int = 100, env: dict[str, str] | None = None) -> Iterator[Terminal]:
    script = tmp_path / "program.py"
    script.write_text(REPLAY + textwrap.dedent(code), encoding="utf-8")
    with terminal([sys.executable, str(script)], {"PYTHONPATH": LIBRARY, **(env or {})}, tmp_path, columns) as program:
        yield program


def run_in_pipe(code: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": LIBRARY, "PYTHONUTF8": "1", **(env or {})}
    program = [sys.executable, "-c", REPLAY + textwrap.dedent(code)]
    return subprocess.run(program, env=environment, capture_output=True, text=True, check=True)


def ends_with(*lines: str | re.Pattern[str]) -> Callable[[Screen], bool]:
    """What is on the screen between two strokes is not looked at: bars are drawn one after the other."""
    return lambda screen: (
        len(screen.shown()) >= len(lines) and all(map(re.fullmatch, lines, screen.shown()[-len(lines) :]))
    )


EVENTS = sum(1 for _ in events.read(RECORDED))


def test_lines_and_bars_do_not_tear_each_other(tmp_path: Path) -> None:
    screen = run_in_terminal("replay(); assert handler.stream is stream; logger.info('behind')", tmp_path)
    *lines, bar, behind = screen.shown()
    assert lines == [f"line {number}" for number in range(EVENTS)]
    # One line stays, the bar of the run at its end.
    assert (match := BAR.fullmatch(bar))
    assert match["name"] == "done"
    assert match["percent"] == "100"
    assert set(match["bar"]) == {"█"}
    assert match["rest"] == "00:08, step 5 of 5, loss 0.769"
    assert behind == "behind"
    assert screen.overlong == []


def test_bars_of_the_run_and_of_its_training(tmp_path: Path) -> None:
    code = """
    bars = replay(until=lambda event: getattr(event, "done", 0) == 100 and event.average_loss)
    logger.info("here")
    sys.stdin.readline()
    """
    with in_terminal(code, tmp_path) as program:
        *_, run, training = program.read_until(ends_with("here", BAR, BAR)).shown()
    assert (of_run := BAR.fullmatch(run))
    assert of_run["name"] == "train"
    # 11 of 20: three steps of the run that count one each, and half of the training, which counts 16.
    assert of_run["percent"] == "55"
    assert "step 4 of 5" in of_run["rest"]
    assert (of_training := BAR.fullmatch(training))
    assert of_training["name"] == "training steps"
    assert of_training["percent"] == "50"
    assert re.fullmatch(r"100/200, loss \d\.\d{3}, [\d.]+ steps/s, 0:0\d left", of_training["rest"])


@pytest.mark.parametrize("columns", [30, 60, 200])
def test_bars_are_no_wider_than_the_terminal(tmp_path: Path, columns: int) -> None:
    screen = run_in_terminal("replay()", tmp_path, columns)
    assert screen.overlong == []
    assert screen.shown()[:-1] == [f"line {number}" for number in range(EVENTS)]


def test_the_log_is_as_before_after_an_error(tmp_path: Path) -> None:
    code = """
    bars = replay(until=lambda event: isinstance(event, events.Progress) and event.done == 100)
    bars(events.StepFinished(step="train", exit_code=1))
    bars(events.Failed(outcome="failed", type="CalledProcessError", step="train"))
    assert handler.stream is stream
    """
    (bar,) = run_in_terminal(code, tmp_path).shown()[-1:]
    assert (match := BAR.fullmatch(bar))
    assert match["name"] == "failed in train"
    assert match["percent"] == "55"


@pytest.mark.parametrize("end", ["bars.close(); bars.close()", "del bars"])
def test_the_log_is_as_before_however_the_bars_end(tmp_path: Path, end: str) -> None:
    code = f"""
    bars = replay(until=lambda event: isinstance(event, events.StepStarted))
    assert handler.stream is not stream
    {end}
    assert handler.stream is stream
    """
    run_in_terminal(code, tmp_path)


def test_ctrl_c_while_bars_are_drawn(tmp_path: Path) -> None:
    code = """
    bars = replay(until=lambda event: isinstance(event, events.Progress))
    class Interrupted(float):
        def __truediv__(self, other): raise KeyboardInterrupt
    try:
        bars(events.Progress(step="train", done=Interrupted(5), total=200))
    except KeyboardInterrupt:
        # The run's last word comes yet.
        bars(events.Failed(outcome="cancelled", step="train"))
        assert handler.stream is stream
        logger.info("behind")
    """
    *_, bar, behind = run_in_terminal(code, tmp_path).shown()
    assert (match := BAR.fullmatch(bar))
    assert match["name"] == "cancelled in train"
    assert behind == "behind"


def test_what_comes_behind_the_end_begins_no_bars(tmp_path: Path) -> None:
    code = """
    bars = replay()
    bars(events.Warned(message="late"))
    bars.show()
    assert handler.stream is stream
    """
    assert run_in_terminal(code, tmp_path).shown()[-1].startswith("done           100%")


def test_events_that_come_late(tmp_path: Path) -> None:
    code = """
    bars = progress_bars.of(None)
    bars(events.Started(seconds=0.0))
    started = time.time()
    while time.time() < started + 0.05:
        pass
    bars(events.Done(seconds=0.0))
    logger.info("behind")
    """
    bar, behind = run_in_terminal(code, tmp_path).shown()
    assert BAR.fullmatch(bar)
    assert behind == "behind"


def test_a_run_without_all_of_its_steps_is_done_all_the_same(tmp_path: Path) -> None:
    code = """
    bars = progress_bars.of(None)
    for event in (events.Started(), events.StepStarted(step="train"), events.StepFinished(step="train"), events.Done()):
        bars(event)
    """
    (bar,) = run_in_terminal(code, tmp_path).shown()
    assert (match := BAR.fullmatch(bar))
    assert match["percent"] == "100"


def test_bars_that_cannot_be_drawn_end_no_run(tmp_path: Path) -> None:
    code = """
    class Closed:
        def write(self, text): raise OSError(5, "Input/output error of this test")
        def flush(self): raise OSError(28, "no room")
        def isatty(self): return True
        encoding = "utf-8"
    logging.getLogger().removeHandler(handler)
    said = []
    class Keeps(logging.Handler):
        def emit(self, record): said.append(record.getMessage())
    logging.getLogger().addHandler(Keeps())
    sys.stderr = Closed()
    bars = replay()
    sys.stderr = sys.__stderr__
    (warning,) = [line for line in said if not line.startswith("line ")]
    assert warning.startswith("[progress] the progress bars have ended: OSError: ")
    assert said.count("line 10") == 1
    """
    run_in_terminal(code, tmp_path)


def test_other_bars_of_the_host_stay_above(tmp_path: Path) -> None:
    code = """
    from tqdm.auto import tqdm
    for name in tqdm(["a", "b"], desc="all", file=sys.stderr):
        replay()
    """
    shown = run_in_terminal(code, tmp_path).shown()
    # The first line of each run comes before there is any bar but the host's.
    lines = [line for line in shown if line.startswith("line ")]
    assert lines == [f"line {number}" for number in range(1, EVENTS)] * 2
    assert sum(line.startswith("done           100%") for line in shown) == 2
    assert shown[-1].startswith("all: 100%")


@pytest.mark.parametrize("env", [{}, {"CI": "false"}])
def test_on_by_themselves_in_a_terminal(tmp_path: Path, env: dict[str, str]) -> None:
    run_in_terminal("assert progress_bars.of(None); assert progress_bars.of(False) is None", tmp_path, env=env)


@pytest.mark.parametrize("env", [{"CI": "true"}, {"TERM": "dumb"}])
def test_never_by_themselves_in_ci(tmp_path: Path, env: dict[str, str]) -> None:
    run_in_terminal("assert progress_bars.of(None) is None; assert progress_bars.of(True)", tmp_path, env=env)


def test_a_plain_log_stays_plain() -> None:
    done = run_in_pipe("replay()")
    assert done.stdout == ""
    assert done.stderr == "".join(f"line {number}\n" for number in range(EVENTS))


def test_bars_where_they_are_asked_for() -> None:
    assert "done           100%" in run_in_pipe("replay(progress=True)").stderr


@pytest.mark.parametrize(("progress", "said"), [("None", 0), ("True", 1)])
def test_without_tqdm(progress: str, said: int) -> None:
    done = run_in_pipe(f"sys.modules['tqdm'] = None; replay(progress={progress}); replay(progress={progress})")
    lines = done.stderr.splitlines()
    hint = '[progress] no bars without tqdm: pip install "TechTrash_MusubiTraining[progress]"'
    assert lines.count(hint) == said
    assert len(lines) == 2 * EVENTS + said


def test_nothing_is_loaded_where_there_are_no_bars() -> None:
    done = run_in_pipe("progress_bars.of(None); print('tqdm' in sys.modules, 'IPython' in sys.modules)")
    assert done.stdout == "False False\n"


def test_bars_leave_no_thread_behind() -> None:
    done = run_in_pipe("replay(progress=True); import threading; print(threading.active_count())")
    assert done.stdout == "1\n"


# A run of another process, which has its folder as runs have theirs: it writes an event for each line that it is given.
RUN = """
import fcntl, os, sys
from pathlib import Path
folder = Path(sys.argv[1])
fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX)
beside = folder / "beside"
with beside.open("w") as file:
    os.replace(beside, folder / "events.jsonl")
    for line in sys.stdin:
        file.write(line)
        file.flush()
        print("written", flush=True)
"""


class OtherRun:
    """A run of another process."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.began = time.monotonic()

    def happens(self, *events_: events.Event) -> None:
        assert self.process.stdin
        assert self.process.stdout
        for event in events_:
            now = time.monotonic() - self.began
            self.process.stdin.write(events.line(replace(event, at=datetime.now(timezone.utc), seconds=now)))
            self.process.stdin.flush()
            assert self.process.stdout.readline() == "written\n"

    def end(self) -> None:
        with self.process:
            self.process.kill()


@pytest.fixture
def other_run(tmp_path: Path) -> Iterator[OtherRun]:
    run = OtherRun(tmp_path)
    run.happens(events.Started(version=1), events.StepStarted(step="train"), at(10))
    yield run
    run.end()


def at(step: int) -> events.Progress:
    return events.Progress(step="train", done=step, total=100, average_loss=0.5, rate=2.0, seconds_left=50.0 - step / 2)


@contextmanager
def watching(folder: Path, env: dict[str, str] | None = None) -> Iterator[Terminal]:
    code = f"""
    import musubitraining
    progress_bars.SILENCE = 0.3
    run = musubitraining.watch({str(folder)!r})
    print(run.outcome, len(run.loss), run.folder == Path({str(folder)!r}), handler.stream is stream)
    """
    with in_terminal(code, folder, env=env) as program:
        yield program


def shows(part: str) -> Callable[[Screen], bool]:
    return lambda screen: any(part in line for line in screen.shown())


def test_a_run_of_another_process_is_watched_to_its_end(tmp_path: Path, other_run: OtherRun) -> None:
    with watching(tmp_path) as watcher:
        watcher.read_until(shows("10/100, loss 0.500, 2.0 steps/s, 0:45 left"))
        other_run.happens(at(60))
        watcher.read_until(shows("60/100"))
        other_run.happens(events.Warned(message="[train] something looks wrong"), events.Done())
        screen = watcher.finish()
    warning, bar, said = screen.shown()
    assert warning == "[train] something looks wrong"
    assert bar.startswith("done ")
    assert bar.endswith("loss 0.500")
    assert said == "done 2 True True"


def test_ctrl_c_ends_the_watching_only(tmp_path: Path, other_run: OtherRun) -> None:
    with watching(tmp_path) as watcher:
        watcher.read_until(shows("10/100"))
        watcher.press_ctrl_c()
        screen = watcher.finish()
    assert screen.shown()[-1] == "running 1 True True"
    other_run.happens(at(11))


def test_watching_ends_with_a_run_that_was_killed(tmp_path: Path, other_run: OtherRun) -> None:
    with watching(tmp_path) as watcher:
        watcher.read_until(shows("10/100"))
        other_run.end()
        assert watcher.finish().shown()[-1] == "running 1 True True"


def test_watching_goes_on_while_a_run_is_silent(tmp_path: Path, other_run: OtherRun) -> None:
    with watching(tmp_path, env={"PYTHONUNBUFFERED": "1"}) as watcher:
        watcher.read_until(shows("10/100"))
        # Several times the silence after which it looks whether the run is still there.
        with pytest.raises(subprocess.TimeoutExpired):
            watcher.program.wait(1.5)
        other_run.happens(at(20), events.Done())
        # Nothing is taken twice.
        assert watcher.finish().shown()[-1] == "done 2 True True"


def test_the_next_run_in_the_folder_is_watched_then(tmp_path: Path, other_run: OtherRun) -> None:
    with watching(tmp_path) as watcher:
        watcher.read_until(shows("10/100"))
        other_run.end()
        another = OtherRun(tmp_path)
        another.happens(events.Started(version=1), events.StepStarted(step="train"), at(1), at(2), at(3), events.Done())
        assert watcher.finish().shown()[-1] == "done 3 True True"
        another.end()


def test_a_run_that_has_ended_is_watched_at_once(tmp_path: Path) -> None:
    shutil.copy(RECORDED, tmp_path)
    run = musubitraining.watch(tmp_path)
    assert run.outcome == "done"
    assert len(run.loss) == 200
    assert run.folder == tmp_path


def test_a_folder_without_events(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected the events of a run"):
        musubitraining.watch(tmp_path)


def test_a_folder_that_goes_away(tmp_path: Path, other_run: OtherRun) -> None:
    with watching(tmp_path) as watcher:
        watcher.read_until(shows("10/100"))
        (tmp_path / "events.jsonl").unlink()
        assert watcher.finish().shown()[-1] == "running 1 True True"


# ---- a real run, on the miniature tuner -----------------------------------------------------------------------------

needs_events = pytest.mark.skipif(
    not hasattr(musubitraining.MusubiTraining, "last_run"), reason="this build tells no events of a run"
)

TRAIN = """
import sys
from musubitraining import dataset_toml, demo
trainer = demo.trainer("run")
arguments = dataset_toml(trainer.absolute_path_training_folder, resolution=256), demo.PHOTOS, "zwxcat"
try:
    trainer.train(*arguments, max_train_steps=STEPS)
except KeyboardInterrupt:
    print("interrupted")
root, = logging.getLogger().handlers
print(root.stream is sys.stderr)
"""


@needs_events
def test_a_real_run(tmp_path: Path) -> None:
    with in_terminal(f"STEPS = 20\n{TRAIN}", tmp_path, columns=160) as program:
        program.read_until(ends_with(BAR, re.compile(r"training steps +\d+%\|.*\| \d+/20, loss [\d.]+.*")))
        *log, bar, restored = program.finish().shown()
    assert (match := BAR.fullmatch(bar))
    assert (match["name"], match["percent"]) == ("done", "100")
    assert restored == "True"
    assert sum("] steps: 100%" in line for line in log) >= 1
    assert log[-1].startswith("[pipeline] done final_model=")


@needs_events
def test_a_real_run_is_interrupted(tmp_path: Path) -> None:
    with in_terminal(f"STEPS = 100_000\n{TRAIN}", tmp_path, columns=160) as program:
        program.read_until(shows("/100000, loss "))
        program.press_ctrl_c()
        *_, bar, interrupted, restored = program.finish().shown()
    assert (match := BAR.fullmatch(bar))
    assert match["name"] == "cancelled in train"
    assert (interrupted, restored) == ("interrupted", "True")


@needs_events
def test_a_real_run_is_watched_from_another_process(tmp_path: Path) -> None:
    with in_terminal(f"STEPS = 100_000\n{TRAIN}", tmp_path, columns=160) as program:
        program.read_until(shows("/100000, loss "))
        with watching(tmp_path / "run/training") as watcher:
            watcher.read_until(shows("/100000, loss "))
            program.press_ctrl_c()
            assert watcher.finish().shown()[-1].startswith("cancelled ")
        program.finish()
