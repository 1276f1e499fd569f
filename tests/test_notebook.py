"""In a notebook: the bars, the log, an interrupt, and the example."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import musubitraining
import pytest
from harness import chromium
from harness.kernel import Kernel, kernel, plain
from harness.tuner import wait_until
from musubitraining import MusubiTraining, TrainingRun
from musubitraining import run_events as events
from test_progress_bars import OtherRun, at

EXAMPLE = Path(__file__).parents[1] / "examples/quickstart.ipynb"
RECORDED = Path(__file__).parent / "recorded/runs/demo/events.jsonl"
LIBRARY = str(Path(musubitraining.__file__).parents[1])

SETUP = f"""
import json, logging, sys
from pathlib import Path
from musubitraining import progress_bars, run_events as events
logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("musubitraining")

def replay(until=lambda event: False):
    bars = progress_bars.of(None)
    for number, event in enumerate(events.read(Path({str(RECORDED)!r}))):
        if isinstance(event, events.Started):
            event = type(event)(**{{**vars(event), "folders": {{"training": str(Path("training").absolute())}}}})
        if isinstance(event, events.StepFinished) and event.step == "dataset":
            Path("training").mkdir(exist_ok=True)
        if bars is not None:
            bars(event)
        if not isinstance(event, events.Done):
            logger.info("line %d", number)
        if number == 100:
            logger.warning("something <looks> wrong")
        if until(event):
            break
    return bars
"""
EVENTS = sum(1 for _ in events.read(RECORDED))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    folder = tmp_path_factory.mktemp("notebook")
    with kernel(folder, {"PYTHONPATH": LIBRARY}) as running:
        cell = running.run(SETUP + "sys.modules['ipywidgets'] = None")
        assert cell.error() is None, cell.outputs
        yield running


def test_bars_and_log_of_a_cell(running: Kernel) -> None:
    shutil.rmtree(running.folder / "training", ignore_errors=True)
    cell = running.run("_ = replay(); logger.info('behind')")
    bars, fold = cell.html()
    assert plain(bars).startswith("done           100%|█")
    assert plain(bars).endswith("| 00:08, step 5 of 5, loss 0.769")
    # The last twenty lines; `Done` is the end, and has none.
    assert fold.count("line ") == 20
    assert f"line {EVENTS - 2}" in fold
    assert "line 100" not in fold
    path = running.folder / "training/run.log"
    assert str(path) in fold
    lines = [line.split(" | ", 2)[1:] for line in path.read_text("utf-8").splitlines()]
    expected = [["INFO", f"line {number}"] for number in range(EVENTS - 1)]
    expected.insert(101, ["WARNING", "something <looks> wrong"])
    assert lines == expected
    # What looks wrong is seen at once; and behind the run the log is as before.
    assert cell.text("stderr") == "something <looks> wrong\nbehind\n"
    assert "IProgress" not in str(cell.outputs)


# Puts a document into a page as a notebook does, in the place of the one before.
SHOW = """html => {
    document.body.innerHTML = html;
    for (const script of document.body.querySelectorAll("script")) {
        const again = document.createElement("script");
        again.textContent = script.textContent;
        script.replaceWith(again);
    }
    return new Promise(done => setTimeout(() => done(document.querySelector("details").open), 50));
}"""


@pytest.mark.skipif(chromium.find() is None, reason="there is no Chromium")
def test_an_open_fold_stays_open(running: Kernel, tmp_path: Path) -> None:
    fold = json.dumps(running.run("_ = replay()").html()[1])
    (tmp_path / "page.html").write_text("<!doctype html><title>a cell</title>")
    with chromium.page(str(chromium.find())) as page:
        page.open(tmp_path / "page.html")
        assert page.value(f"({SHOW})({fold})") is False
        page.value('document.querySelector("summary").click()')
        assert page.value("new Promise(done => setTimeout(done, 50)).then(() => true)")
        assert page.value(f"({SHOW})({fold})") is True
        page.value('document.querySelector("summary").click()')
        assert page.value("new Promise(done => setTimeout(done, 50)).then(() => true)")
        assert page.value(f"({SHOW})({fold})") is False
        assert page.console == []


def test_lines_are_shown_as_they_are(running: Kernel) -> None:
    cell = running.run("bars = replay(until=lambda event: getattr(event, 'done', 0) == 46)\nbars.close()")
    _, fold = cell.html()
    assert "something &lt;looks&gt; wrong" in fold


def test_lines_that_the_host_does_not_listen_to(running: Kernel) -> None:
    code = """
    logging.getLogger().setLevel(logging.WARNING)
    _ = replay()
    print(logger.level, len(logger.handlers), logger.isEnabledFor(logging.INFO))
    logging.getLogger().setLevel(logging.INFO)
    """
    cell = running.run("\n".join(line.strip() for line in code.splitlines()))
    assert cell.text("stdout") == "0 0 False\n"
    assert cell.text("stderr") == "something <looks> wrong\n"
    assert len((running.folder / "training/run.log").read_text("utf-8").splitlines()) == EVENTS


def test_a_log_that_cannot_be_written_ends_no_run(running: Kernel) -> None:
    shutil.rmtree(running.folder / "training")
    (running.folder / "training").mkdir()
    (running.folder / "training/run.log").mkdir()
    cell = running.run("_ = replay()")
    assert cell.error() is None
    bars, fold = cell.html()
    assert plain(bars).startswith("done           100%")
    assert "all of them" not in fold
    (running.folder / "training/run.log").rmdir()


def test_with_ipywidgets(tmp_path: Path) -> None:
    pytest.importorskip("ipywidgets")
    with kernel(tmp_path, {"PYTHONPATH": LIBRARY}) as running:
        running.run(SETUP)
        cell = running.run("_ = replay()")
    kinds = [next(iter(set(found.data) - {"text/plain"})) for found in cell.outputs if "data" in found]
    widget = "application/vnd.jupyter.widget-view+json"
    # The bar of the run, that of the training, the fold under them.
    assert kinds == [widget, widget, "text/html"]
    assert cell.text("stderr") == "something <looks> wrong\n"


def test_a_run_is_watched(running: Kernel) -> None:
    watched = running.folder / "watched"
    watched.mkdir()
    shutil.copy(RECORDED, watched)
    cell = running.run("import musubitraining; musubitraining.watch('watched')")
    # Bars, the fold, and the run as a card.
    assert plain(cell.html()[0]).startswith("done           100%")
    assert "zwxcat" in cell.html()[-1]


# Tells outside that the first event is there.
TELLS = """
import musubitraining
bars_of = progress_bars.of
class Tells:
    def __init__(self, bars): self.bars = bars
    def __call__(self, event): self.bars(event); Path("seen").touch()
    def __getattr__(self, name): return getattr(self.bars, name)
progress_bars.of = lambda progress: Tells(bars_of(progress))
"""


def test_a_run_is_watched_again_after_a_restart_of_the_kernel(tmp_path: Path) -> None:
    other = OtherRun(tmp_path)
    other.happens(events.Started(version=1), events.StepStarted(step="train"), at(10))
    watch = "musubitraining.watch('.')"
    with kernel(tmp_path, {"PYTHONPATH": LIBRARY}) as running:
        assert running.run(SETUP + TELLS).error() is None
        watched = running.run_interrupted(f"print({watch}.outcome)", (tmp_path / "seen").exists)
    # The interrupt has ended the watching, without an error, and not the run.
    assert (watched.error(), watched.text("stdout")) == (None, "running\n")
    other.happens(at(11))
    with kernel(tmp_path, {"PYTHONPATH": LIBRARY}) as running:
        assert running.run(SETUP + TELLS).error() is None
        (tmp_path / "seen").unlink()
        end = threading.Thread(
            target=lambda: (wait_until((tmp_path / "seen").exists, 30), other.happens(events.Done()))
        )
        end.start()
        watched = running.run(f"run = {watch}; print(run.outcome, len(run.loss))")
        end.join()
    assert (watched.error(), watched.text("stdout")) == (None, "done 2\n")
    other.end()


def processes_of(folder: Path) -> list[str]:
    """The command lines that name a folder."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if str(folder) in line]


def example_cells(steps: int) -> dict[str, str]:
    notebook = json.loads(EXAMPLE.read_text("utf-8"))
    cells = {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"}
    assert '"max_train_steps": 200' in cells["trainer"]
    return {**cells, "trainer": cells["trainer"].replace("200", str(steps))}


def test_an_interrupt_in_the_middle_of_a_run_leaves_no_child(tmp_path: Path) -> None:
    cells = example_cells(100_000)
    with kernel(tmp_path, {"PYTHONPATH": LIBRARY}) as running:
        for name in ("trainer", "plan"):
            assert running.run(cells[name]).error() is None
        seen: list[str] = []

        def is_training() -> bool:
            seen[:] = [line for line in processes_of(tmp_path) if "zimage_train_network.py" in line]
            return bool(seen)

        cell = running.run_interrupted(cells["train"], is_training)
        assert cell.error() == "KeyboardInterrupt"
        assert seen
        # It is said when the processes are gone, not a while before.
        assert processes_of(tmp_path) == []
        # The kernel is as it was, and trains again.
        again = running.run(cells["trainer"].replace("100000", "3") + "\n" + cells["train"])
        assert again.error() is None, again.outputs
    assert (tmp_path / "quickstart/output/output_lora_model_comfyui.safetensors").exists()


@pytest.mark.skipif(not hasattr(MusubiTraining, "last_run"), reason="this build writes no record of a run")
def test_the_example_runs(tmp_path: Path) -> None:
    with kernel(tmp_path, {"PYTHONPATH": LIBRARY}) as running:
        cells = {name: running.run(code) for name, code in example_cells(20).items()}
    assert {name: cell.error() for name, cell in cells.items() if cell.error()} == {}
    assert "checks" in plain(cells["plan"].html()[0])
    assert "[train]" not in cells["train"].text("stderr")
    assert any("20/20" in plain(html) or "done           100%" in plain(html) for html in cells["train"].html()) or (
        "application/vnd.jupyter.widget-view+json" in cells["train"].kinds()
    )
    assert "zwxcat" in cells["run"].html()[0]
    assert "image/png" in cells["curve"].kinds()
    assert "quickstart/training/report.html" in cells["report"].html()[0]
    training = tmp_path / "quickstart/training"
    assert TrainingRun.load(training).outcome == "done"
    assert "zwxcat" in (training / "report.html").read_text("utf-8")
    assert "[pipeline] done final_model=" in (training / "run.log").read_text("utf-8")


def test_the_example_is_kept_without_what_it_shows() -> None:
    notebook = json.loads(EXAMPLE.read_text("utf-8"))
    assert notebook["nbformat"] == 4
    assert [cell["id"] for cell in notebook["cells"] if cell.get("outputs") or cell.get("execution_count")] == []
