"""What a run says of itself: events to a callback and in a file, the record at its end, and where it is meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from harness.library import OURS, Run, Workspace
from harness.photos import photo_zip
from harness.scenario import Work
from harness.server import content, status
from harness.tuner import LATENTS, LORA, TEXT, TRAIN, end, is_running, wait_until
from musubitraining import CalledProcessError, Cancelled, MusubiTraining, RunStatus, TrainingOptions, TrainingRun
from musubitraining import run_events as events
from musubitraining.main import Models
from test_gpu import STAND_IN, build, real_nvml
from test_plan import MORE_OF_NVML

REAL_OUTPUT = Path(__file__).parent / "recorded/output"
BAR = "steps:  50%|#####     | 2/4 [00:02<00:02,  1.00s/it, avr_loss=0.25]\n"


def trainer(workspace: Workspace, kind: type[MusubiTraining] = MusubiTraining, **options: Any) -> MusubiTraining:
    folders = (workspace.training, workspace.output, workspace.root / "musubi")
    return kind(workspace.models, Models(), *folders, **options)


def train(workspace: Workspace, of: MusubiTraining | None = None, **options: Any) -> str:
    return (of or trainer(workspace)).train(workspace.toml, workspace.url, "sks", **options)


def heard(workspace: Workspace, of: MusubiTraining | None = None, **options: Any) -> list[events.Event]:
    found: list[events.Event] = []
    train(workspace, of, on_event=found.append, **options)
    return found


def of_kind(found: list[events.Event], *kinds: type[events.Event]) -> list[Any]:
    return [event for event in found if isinstance(event, kinds)]


def written(workspace: Workspace) -> list[events.Event]:
    return list(events.read(workspace.training / events.FILE))


def in_latin(text: str) -> str:
    """What the stand-in says as these bytes of UTF-8."""
    return text.encode().decode("latin-1")


def real_output(step: str, workspace: Workspace) -> str:
    return (REAL_OUTPUT / f"{step}.txt").read_text("utf-8").replace("/workspace", str(workspace.root))


# ---- what is told -----------------------------------------------------------------------------------------------


def test_everything_is_told_in_order_to_the_callback_and_to_the_file(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "musubitraining")
    threads = set()
    found: list[events.Event] = []

    def on_event(event: events.Event) -> None:
        threads.add(threading.get_ident())
        found.append(event)

    path = train(workspace, on_event=on_event)
    assert threads == {threading.get_ident()}
    steps = ["dataset", "precache:latents", "precache:text_encoder", "train", "convert:comfyui"]
    told = of_kind(found, events.StepStarted, events.StepFinished)
    assert [event.step for event in told] == [step for step in steps for _ in range(2)]
    assert isinstance(found[0], events.Started)
    assert isinstance(found[-1], events.Done)
    assert [event.seconds for event in found] == sorted(event.seconds or 0 for event in found)
    # What the log says of commands and warnings, the events say.
    commands = [
        record.getMessage().partition("cmd=")[2] for record in caplog.records if "] cmd=" in record.getMessage()
    ]
    assert [" ".join(event.argv) for event in of_kind(found, events.StepStarted) if event.argv] == commands
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [event.message for event in of_kind(found, events.Warned)] == warnings != []
    finished = of_kind(found, events.StepFinished)
    assert [event.exit_code for event in finished] == [None, 0, 0, 0, 0]
    assert finished[0].photos[0]["caption"] == "sks"
    assert finished[0].photos[0]["bytes"] == (workspace.images / finished[0].photos[0]["file"]).stat().st_size
    lora, converted = found[-1].outputs
    assert (lora["kind"], lora["sha256"], lora["bytes"]) == ("lora", hashlib.sha256(LORA).hexdigest(), len(LORA))
    assert (converted["kind"], converted["path"]) == ("comfyui", path)
    # The folder was not there when the run began.
    assert written(workspace) == found


def test_the_real_tuners_training_is_told_step_by_step(workspace: Workspace) -> None:
    text = real_output("train", workspace)
    actions: list[list[Any]] = []
    for piece in text.split("saving checkpoint: "):
        if actions:
            path, rest = piece.split("\n", 1)
            # As the tuner does: the line, then the file, then on.
            actions += [["say", f"saving checkpoint: {path}\n"], ["write_at", path, "weights"], ["say", in_latin(rest)]]
        else:
            actions.append(["say", in_latin(piece)])
    workspace.tuner.does(TRAIN, *actions)
    options = TrainingOptions(save_every_n_steps=2)
    found = heard(workspace, trainer(workspace, options=options), max_train_steps=6)
    told = [event for event in of_kind(found, events.Progress) if event.step == "train"]
    last = {event.done: event.average_loss for event in told}
    assert last == {0: None, 1: 1.11, 2: 1.1, 3: 1.09, 4: 1.09, 5: 1.08, 6: 1.09}
    assert {event.total for event in told} == {6}
    first = next(event for event in told if event.done == 1)
    assert (first.rate, first.seconds_left) == (None, None)
    at_three = next(event for event in told if event.done == 3)
    # 2.87 s for each of three, of which the bar's clock has had two.
    assert at_three.rate == pytest.approx(2 / 3 / 2.87, abs=1e-3)
    assert at_three.seconds_left == pytest.approx(3 / at_three.rate, abs=0.1)
    saved = of_kind(found, events.CheckpointSaved)
    name = "output_lora_model"
    names = [f"{name}-step0000000{step}.safetensors" for step in (2, 4, 6)] + [f"{name}.safetensors"]
    assert [Path(event.path).name for event in saved] == names
    assert [(event.step, event.bytes) for event in saved] == [(2, 7), (4, 7), (6, 7), (6, 7)]
    run = TrainingRun.load(workspace.training)
    assert [point.step for point in run.loss] == [1, 2, 3, 4, 5, 6]
    assert len(run.checkpoints) == 4


def test_samples_of_the_real_tuner_are_told_with_their_prompts(workspace: Workspace) -> None:
    text = real_output("train", workspace)
    before, after = text.split("saving checkpoint: ", 1)
    names = [
        "output_lora_model_000002_00_20261123161105_000.png",
        "output_lora_model_000002_01_20261123161108_7_000.png",
    ]
    sample = workspace.output / "sample"
    sample.mkdir()
    (sample / "output_lora_model_000002_00_20250101000000_000.png").touch()
    writes = [["write_at", str(sample / name), "png"] for name in names]
    rest = after.split("\n", 1)[1].split("saving checkpoint: ")[0].split("generating sample")[0]
    workspace.tuner.does(TRAIN, ["say", in_latin(before)], *writes, ["say", in_latin(rest)], ["write"])
    told = of_kind(heard(workspace), events.SampleWritten)
    assert [(Path(event.path).name, event.step, event.prompt) for event in told] == [
        (names[0], 2, "a photo of sks"),
        (names[1], 2, "two dogs"),
    ]


def test_the_real_tuners_caching_is_told_in_photos(workspace: Workspace) -> None:
    workspace.toml = workspace.toml.replace("batch_size = 1", "batch_size = 2")
    for script, step in ((LATENTS, "precache_latents"), (TEXT, "precache_text_encoder")):
        workspace.tuner.does(script, ["say", in_latin(real_output(step, workspace))])
    told = of_kind(heard(workspace), events.Progress)
    done = {
        step: [event.done for event in told if event.step == step]
        for step in ("precache:latents", "precache:text_encoder")
    }
    # The text encoder takes sixteen at once.
    assert done == {"precache:latents": [0, 2, 4, 6], "precache:text_encoder": [0, 6]}
    assert {event.total for event in told} == {6}


def test_a_warning_of_the_tuner_behind_a_bar_is_told_once(workspace: Workspace) -> None:
    line = BAR.rstrip("\n") + "WARNING:musubi_tuner.training.trainer_base:slow disk\r"
    workspace.tuner.does(TRAIN, ["say", line * 3], ["write"])
    told = [event.message for event in of_kind(heard(workspace), events.Warned)]
    assert told.count("[train] WARNING:musubi_tuner.training.trainer_base:slow disk") == 1


def test_a_download_that_is_tried_again_is_told(workspace: Workspace) -> None:
    workspace.url = workspace.server.on("/flaky.zip", status(503, Retry_After="0"), content(photo_zip()))
    (retry,) = of_kind(heard(workspace), events.Retried)
    assert (retry.what, retry.attempt, retry.wait) == ("download", 2, 0)
    assert "503" in retry.reason


@pytest.mark.skipif(sys.platform != "linux", reason="NVML and LD_LIBRARY_PATH are Linux's")
def test_the_gpu_is_told_by_nvml(tmp_path: Path, bench: Any) -> None:
    more = r"""
typedef struct { unsigned int gpu, memory; } utilization_t;
int nvmlDeviceGetUtilizationRates(void *device, utilization_t *rates) {
    rates->gpu = 97;
    return note("utilisation");
}
"""
    used = MORE_OF_NVML.replace("memory->free =", "memory->used = 3ull << 30; memory->free =")
    assert used != MORE_OF_NVML
    build(STAND_IN + used + more, tmp_path)
    place: Workspace = bench.workspace()
    place.env |= {"LD_LIBRARY_PATH": str(tmp_path), "NVML_LOG": str(tmp_path / "log"), "NVML_NAME": "NVIDIA H200"}
    (tmp_path / "log").touch()
    place.run(OURS, train_plainly).ok()
    found = written(place)
    first = found[0]
    assert isinstance(first, events.Started)
    assert (first.versions["driver"], first.versions["gpu"]) == ("580.65.06", "NVIDIA H200")
    reading = of_kind(found, events.GpuRead)[0]
    assert (reading.used_bytes, reading.total_bytes, reading.utilisation_percent) == (3 << 30, 24 << 30, 97)
    log = (tmp_path / "log").read_text().split()
    assert log.count("init") == log.count("shutdown")
    assert TrainingRun.load(place.training).gpu[0].used_bytes == 3 << 30


@pytest.mark.skipif(sys.platform != "linux", reason="NVML and LD_LIBRARY_PATH are Linux's")
def test_a_driver_that_never_answers_does_not_hold_up_a_run(tmp_path: Path, bench: Any) -> None:
    build(STAND_IN, tmp_path)
    place: Workspace = bench.workspace()
    place.env |= {"LD_LIBRARY_PATH": str(tmp_path), "NVML_AWAITS": str(tmp_path / "never"), "NVML_NAME": "NVIDIA H200"}
    # Which asks the driver for itself.
    place.run(OURS, train_without_caching).ok()
    assert "driver" not in written(place)[0].versions  # type: ignore[attr-defined]


def train_without_caching(work: Work) -> Any:
    return work.train(use_pre_cache=False)


def train_plainly(work: Work) -> Any:
    return work.train()


@pytest.mark.skipif(real_nvml(), reason="this machine has NVIDIA's own library")
def test_without_a_gpu_nothing_is_told_of_one(workspace: Workspace) -> None:
    found = heard(workspace)
    assert not of_kind(found, events.GpuRead)
    assert "driver" not in found[0].versions  # type: ignore[attr-defined]


# ---- the callback -----------------------------------------------------------------------------------------------


class Enough(Exception):
    pass


@pytest.mark.parametrize(
    "kind",
    [
        events.Started,
        events.Warned,
        events.StepStarted,
        events.StepFinished,
        events.Progress,
        events.CheckpointSaved,
        events.Done,
    ],
)
def test_a_callback_that_raises_ends_the_run_and_leaves_nothing_running(
    workspace: Workspace, kind: type[events.Event]
) -> None:
    path = str(workspace.output / "a.safetensors")
    actions: list[list[Any]] = [["write_at", path, "weights"], ["say", f"saving checkpoint: {path}\n{BAR}"]]
    workspace.tuner.does(TRAIN, *actions, *([["write"]] if kind is events.Done else [["hang"]]))
    calls = []

    def on_event(event: events.Event) -> None:
        calls.append(event)
        if isinstance(event, kind):
            raise Enough

    with pytest.raises(Enough):
        train(workspace, on_event=on_event)
    assert isinstance(calls[-1], kind)
    assert not any(map(is_running, workspace.tuner.pids()))
    last = written(workspace)[-1] if workspace.training.exists() else None
    if kind is events.Done:
        assert isinstance(last, events.Done)
    elif last is not None:
        assert isinstance(last, events.Failed)
        assert (last.outcome, last.type) == ("failed", "Enough")
    workspace.tuner.does(TRAIN, ["write"])
    assert train(workspace)


def test_what_a_callback_raises_at_the_end_does_not_hide_why_the_run_failed(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    workspace.tuner.does(TRAIN, ["exit", 3])

    def on_event(event: events.Event) -> None:
        if isinstance(event, events.Failed):
            raise Enough("late")

    with pytest.raises(CalledProcessError):
        train(workspace, on_event=on_event)
    assert "on_event raised at the end of the run: late" in caplog.text


def test_a_callback_may_cancel_and_ask(workspace: Workspace) -> None:
    workspace.tuner.does(TRAIN, ["say", BAR], ["hang"])
    of = trainer(workspace)
    asked: list[RunStatus] = []

    def on_event(event: events.Event) -> None:
        asked.append(of.status())
        if isinstance(event, events.Progress):
            of.cancel()

    with pytest.raises(Cancelled):
        train(workspace, of, on_event=on_event)
    assert asked[0].outcome == "running"
    assert asked[-1].outcome == "cancelled"
    assert not any(map(is_running, workspace.tuner.pids()))


@pytest.mark.parametrize(("name", "value"), [("on_event", 5), ("progress", "yes"), ("progress", 1)])
def test_what_is_no_callback_is_refused_before_anything(workspace: Workspace, name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name}: expected"):
        train(workspace, **{name: value})
    assert not workspace.training.exists()
    assert workspace.server.requests == []


# ---- the file and the record ------------------------------------------------------------------------------------


def test_the_file_grows_line_by_line_and_can_be_followed(workspace: Workspace) -> None:
    go = workspace.root / "go"
    workspace.tuner.does(TRAIN, ["say", BAR], ["await", str(go)], ["write"])
    thread = threading.Thread(target=train, args=(workspace,))
    thread.start()
    seen = []
    for event in events.read(workspace.training / events.FILE, follow=True, timeout=30, poll=0.01):
        seen.append(event)
        if isinstance(event, events.Progress):
            assert not go.exists()
            so_far = TrainingRun.attach(workspace.training)
            assert (so_far.outcome, so_far.loss[-1].average_loss) == ("running", 0.25)
            assert not (workspace.training / "run.json").exists()
            go.touch()
        if isinstance(event, events.Done):
            # Who hears of the end finds the record.
            assert TrainingRun.load(workspace.training).outcome == "done"
    thread.join()
    assert isinstance(seen[-1], events.Done)
    assert of_kind(seen, events.Progress)


def test_the_record_is_the_same_in_the_file_on_the_trainer_and_from_the_events(workspace: Workspace) -> None:
    workspace.tuner.does(TRAIN, ["say", BAR * 3], ["write"])
    of = trainer(workspace)
    assert of.last_run is None
    train(workspace, of)
    loaded = TrainingRun.load(workspace.training)
    assert of.last_run == loaded == TrainingRun.attach(workspace.training)
    assert loaded.outcome == "done"
    assert loaded.commands["train"][0] == sys.executable
    assert loaded.arguments["max_train_steps"] == 2000
    assert loaded.arguments["absolute_path_models"] == str(workspace.models)
    assert loaded.arguments["models_for_training"]["ae"] == "ae.safetensors"
    assert loaded.folders.output == str(workspace.output)
    assert loaded.versions.musubi_tuner == "0.2.15"
    assert loaded.learning_rate == 2e-4
    assert pickle.loads(pickle.dumps(of)).last_run == loaded
    assert of.status() == RunStatus(
        outcome="done", step="convert:comfyui", done=2, average_loss=0.25, seconds=loaded.seconds
    )


def test_each_run_begins_its_files_anew(workspace: Workspace) -> None:
    of = trainer(workspace)
    train(workspace, of)
    first = of.last_run
    workspace.tuner.does(TRAIN, ["say", "ValueError: no\n"], ["exit", 1])
    with pytest.raises(CalledProcessError):
        train(workspace, of)
    assert first is not None
    assert first.outcome == "done"
    record = TrainingRun.load(workspace.training)
    assert (record.outcome, record.error and record.error.step) == ("failed", "train")
    assert record.steps[-1].exit_code == 1
    assert len(of_kind(written(workspace), events.Started)) == 1


def test_a_run_that_another_run_keeps_out_leaves_that_ones_record(workspace: Workspace) -> None:
    workspace.tuner.does(TRAIN, ["say", BAR], ["hang"])
    first, second = trainer(workspace), trainer(workspace)

    def run() -> None:
        with suppress(Cancelled):
            train(workspace, first)

    thread = threading.Thread(target=run)
    thread.start()
    assert wait_until(lambda: first.status().step == "train", 30)
    before = (workspace.training / events.FILE).read_bytes()
    with pytest.raises(RuntimeError):
        train(workspace, second)
    assert (workspace.training / events.FILE).read_bytes().startswith(before)
    assert second.last_run is None
    first.cancel()
    thread.join()
    assert TrainingRun.load(workspace.training).outcome == "cancelled"


def test_options_are_in_the_record(workspace: Workspace) -> None:
    of = trainer(workspace, options=TrainingOptions(learning_rate=1e-4, network_dim=8))
    train(workspace, of)
    record = TrainingRun.load(workspace.training)
    assert record.options is not None
    assert (record.options["network_dim"], record.learning_rate) == (8, 1e-4)
    assert TrainingOptions(**record.options) == of.options
    assert record.launch_options is None


def test_the_commit_of_the_clone_is_in_the_record(workspace: Workspace) -> None:
    commit = "30c658c4f4b0bf05038b3346eff9670259b10fc7"
    (workspace.tuner.root / ".git").mkdir()
    (workspace.tuner.root / ".git/HEAD").write_text("ref: refs/heads/main\n")
    (workspace.tuner.root / ".git/packed-refs").write_text(f"{commit} refs/heads/main\n")
    of = trainer(workspace)
    train(workspace, of)
    assert of.last_run is not None
    assert of.last_run.versions.musubi_tuner_commit == commit


def test_ctrl_c_is_a_cancelled_run(workspace: Workspace) -> None:
    workspace.tuner.does(TRAIN, ["say", BAR], ["hang"])

    def on_event(event: events.Event) -> None:
        if isinstance(event, events.Progress):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(workspace, on_event=on_event)
    record = TrainingRun.load(workspace.training)
    assert record.outcome == "cancelled"
    assert record.steps[-1].exit_code is None
    assert record.steps[-1].seconds is not None


def test_no_secret_is_in_any_file(workspace: Workspace) -> None:
    class Told(MusubiTraining):
        def _prepare_dataset(self, dataset_toml_content: Any, images_zip_url: Any, trigger_word: Any) -> str:
            super()._prepare_dataset(dataset_toml_content, images_zip_url, trigger_word)
            raise OSError(f"cannot fetch {images_zip_url}: /photos.zip?X-Signature=topsecret&user=me")

    workspace.url = workspace.url.replace("http://", "http://user:passw0rd@") + "?X-Signature=topsecret&user=me"
    with pytest.raises(OSError, match="cannot fetch"):
        train(workspace, trainer(workspace, Told))
    for name in (events.FILE, "run.json"):
        text = (workspace.training / name).read_text()
        assert "cannot fetch http://127.0.0.1" in text
        for secret in ("topsecret", "passw0rd"):
            assert secret not in text


def test_a_training_folder_that_never_comes_is_not_made(workspace: Workspace) -> None:
    (workspace.models / "ae.safetensors").unlink()
    of = trainer(workspace)
    with pytest.raises(FileNotFoundError):
        train(workspace, of)
    assert not workspace.training.exists()
    assert of.last_run is not None
    assert of.last_run.error is not None
    assert of.last_run.error.type == "FileNotFoundError"


# ---- what goes wrong with it ------------------------------------------------------------------------------------


def warnings_of(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if part in record.getMessage()]


def test_events_that_cannot_be_written_are_told_once_and_fail_nothing(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    (workspace.training / events.FILE).mkdir(parents=True)
    of = trainer(workspace)
    assert train(workspace, of)
    assert len(warnings_of(caplog, "cannot be written")) == 1
    assert of.last_run is not None
    assert of.last_run.outcome == "done"


def test_a_folder_that_goes_away_fails_nothing(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    def on_event(event: events.Event) -> None:
        if isinstance(event, events.StepFinished) and event.step == "train":
            shutil.rmtree(workspace.training)

    assert train(workspace, on_event=on_event)
    assert not workspace.training.exists()
    assert len(warnings_of(caplog, "the record of this run cannot be written")) == 1


def on_a_full_disk(work: Work) -> Any:
    import logging
    import resource

    # More than this does not fit into any one file; Python ignores the signal. The scenario's own log is to stay small.
    logging.getLogger("musubitraining").setLevel("WARNING")
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
    return work.train()


def test_a_full_disk_fails_nothing(bench: Any) -> None:
    place: Workspace = bench.workspace()
    place.tuner.does(TRAIN, ["say", "".join(BAR.replace("2/4", f"{step}/99") for step in range(1, 999))], ["write"])
    run: Run = place.run(OURS, on_a_full_disk).ok()
    assert len(run.logged("cannot be written", "WARNING")) == 1
    for line in (place.training / events.FILE).read_text().splitlines()[:-1]:
        assert events.parse(line)


def test_a_callback_that_is_slow_misses_no_end(workspace: Workspace) -> None:
    bars = "".join(BAR.replace("2/4", f"{step}/20000") for step in range(1, 20_000))
    workspace.tuner.does(TRAIN, ["say", bars], ["write"])
    found = heard(workspace)
    assert isinstance(found[-1], events.Done)
    assert of_kind(found, events.Progress)[-1].done == 19_999
    assert TrainingRun.load(workspace.training).loss[-1].step == 19_999


# ---- overrides --------------------------------------------------------------------------------------------------


class Theirs(MusubiTraining):
    """As somebody wrote it for the original."""

    def _pre_cache(self, dataset_toml_path: str) -> None:
        pass

    def _launch_training(self, dataset_toml_path: str, *, output_name: str, max_train_steps: int, seed: int) -> str:
        path = Path(self.absolute_path_output) / f"{output_name}.safetensors"
        path.write_bytes(b"theirs")
        return str(path)

    def _convert_for_comfyui(self, model_path: str) -> Any:
        return None


def test_of_steps_that_are_overridden_begin_and_end_are_told(workspace: Workspace) -> None:
    found = heard(workspace, trainer(workspace, Theirs))
    told = [(type(event).__name__, event.step) for event in of_kind(found, events.StepStarted, events.StepFinished)]
    assert told == [
        (kind, step)
        for step in ("dataset", "precache", "train", "convert:comfyui")
        for kind in ("StepStarted", "StepFinished")
    ]
    assert [output["kind"] for output in found[-1].outputs] == ["lora"]  # type: ignore[attr-defined]


def test_an_override_that_calls_the_step_tells_it_once(workspace: Workspace) -> None:
    class Wraps(MusubiTraining):
        def _launch_training(self, dataset_toml_path: Any, **keywords: Any) -> str:
            return super()._launch_training(dataset_toml_path, **keywords)

        def _run_cmd(self, step: str, cmd: Any, *, cwd: Any) -> None:
            super()._run_cmd(step, cmd, cwd=cwd)

    workspace.tuner.does(TRAIN, ["say", BAR], ["write"])
    found = heard(workspace, trainer(workspace, Wraps))
    started = of_kind(found, events.StepStarted)
    finished = of_kind(found, events.StepFinished)
    steps = ["dataset", "precache:latents", "precache:text_encoder", "train", "convert:comfyui"]
    assert [event.step for event in started] == [event.step for event in finished] == steps
    assert [event.exit_code for event in finished] == [None, 0, 0, 0, 0]
    assert of_kind(found, events.Progress)[-1].average_loss == 0.25
    commands = TrainingRun.load(workspace.training).commands
    assert commands["train"][1:3] == ("-m", "accelerate.commands.launch")
    assert set(commands) == set(steps[1:])


def test_a_step_alone_leaves_no_record(workspace: Workspace) -> None:
    of = trainer(workspace)
    toml = of._prepare_dataset(workspace.toml, workspace.url, "sks")
    of._pre_cache(toml)
    of._launch_training(toml)
    assert not (workspace.training / events.FILE).exists()
    assert not (workspace.training / "run.json").exists()
    assert of.last_run is None
    assert of.status() == RunStatus()


def test_a_subclass_keeps_a_last_run_of_its_own(workspace: Workspace) -> None:
    class Own(MusubiTraining):
        last_run = "yesterday"  # type: ignore[assignment]

    of = trainer(workspace, Own)
    train(workspace, of)
    assert of.last_run == "yesterday"
    assert TrainingRun.load(workspace.training).outcome == "done"


def test_the_native_conversion_is_a_step_too(workspace: Workspace) -> None:
    found = heard(workspace, native_convert=True)
    # It does not know the stand-in's LoRA, and the script does it.
    steps = [event.step for event in of_kind(found, events.StepFinished)]
    assert steps[-2:] == ["convert:comfyui", "convert:comfyui"]


# ---- while it runs ----------------------------------------------------------------------------------------------


def test_any_thread_may_ask_where_a_run_is(workspace: Workspace) -> None:
    workspace.tuner.does(TRAIN, ["say", BAR], ["hang"])
    of = trainer(workspace)
    assert of.status() == RunStatus(outcome="idle")

    def run() -> None:
        with suppress(Cancelled):
            train(workspace, of)

    thread = threading.Thread(target=run)
    thread.start()
    assert wait_until(lambda: of.status().done == 2, 30)
    now = of.status()
    assert (now.outcome, now.step, now.total, now.average_loss, now.seconds_left) == ("running", "train", 4, 0.25, 4.0)
    assert now.seconds is not None
    of.cancel()
    thread.join()
    assert (of.status().outcome, of.status().step) == ("cancelled", "train")


def test_a_run_is_awaited(workspace: Workspace) -> None:
    of = trainer(workspace)
    found: list[events.Event] = []

    async def main() -> str:
        return await of.train_async(workspace.toml, workspace.url, "sks", on_event=found.append, output_name="a")

    assert Path(asyncio.run(main())).name == "a_comfyui.safetensors"
    assert isinstance(found[-1], events.Done)


def test_what_a_run_raises_the_awaiting_one_gets(workspace: Workspace) -> None:
    workspace.tuner.does(TRAIN, ["exit", 3])

    async def main() -> None:
        await trainer(workspace).train_async(workspace.toml, workspace.url, "sks")

    with pytest.raises(CalledProcessError):
        asyncio.run(main())


def cancels_when(workspace: Workspace, is_time: Callable[[MusubiTraining], bool]) -> MusubiTraining:
    """Cancels the task, twice, and sees that it ends when nothing is left."""
    of = trainer(workspace)

    async def main() -> None:
        task = asyncio.create_task(of.train_async(workspace.toml, workspace.url, "sks"))
        await asyncio.sleep(0)
        while not is_time(of):
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert of.status().outcome in ("cancelled", "idle")

    asyncio.run(main())
    return of


def test_cancelling_the_awaiting_task_cancels_the_run(workspace: Workspace) -> None:
    workspace.tuner.does(TRAIN, ["say", BAR], ["hang"])
    cancels_when(workspace, lambda of: of.status().done == 2)
    assert len(workspace.tuner.pids()) == 1
    assert not any(map(is_running, workspace.tuner.pids()))
    assert TrainingRun.load(workspace.training).outcome == "cancelled"


def test_a_run_may_be_cancelled_before_it_has_begun(workspace: Workspace) -> None:
    workspace.tuner.does(TRAIN, ["hang"])
    cancels_when(workspace, lambda of: True)
    assert not any(map(is_running, workspace.tuner.pids()))
    assert "MainThread" in [thread.name for thread in threading.enumerate()]


def test_a_subclass_that_trains_in_its_own_way_is_awaited_too(workspace: Workspace) -> None:
    class Own(MusubiTraining):
        def train(self, dataset_toml_content: Any, images_zip_url: Any, trigger_word: Any, **keywords: Any) -> str:
            return f"{trigger_word} {keywords}"

    of = trainer(workspace, Own)
    assert asyncio.run(of.train_async("", "", "sks", seed=3)) == "sks {'seed': 3}"


def test_the_two_caching_steps_at_once_are_both_told_as_they_go(bench: Any) -> None:
    from test_at_once import each_waits_for_the_other, weights

    place: Workspace = bench.workspace()
    for name in ("ae.safetensors", "qwen_3_4b.safetensors"):
        weights(place.models / name)
    each_waits_for_the_other(place)
    place.run(OURS, train_plainly).ok()
    told = [
        (type(event).__name__, event.step)
        for event in written(place)
        if isinstance(event, events.StepStarted | events.StepFinished) and event.step.startswith("precache")
    ]
    both = ["precache:latents", "precache:text_encoder"]
    assert told == [(kind, step) for kind in ("StepStarted", "StepFinished") for step in both]


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Any:
    yield
    for folder in tmp_path.glob("*/musubi/pids"):
        end([int(path.name) for path in folder.iterdir() if path.name.isdigit()])


def test_every_line_is_json_of_a_kind_that_is_known(workspace: Workspace) -> None:
    workspace.tuner.does(TRAIN, ["say", BAR + "avr_loss \x00 \xff\n" + BAR.replace("0.25", "nan")], ["write"])
    with suppress(RuntimeError):
        train(workspace)
    text = (workspace.training / events.FILE).read_text("utf-8")
    for line in text.splitlines():
        assert json.loads(line)["event"] in events.KINDS
        event = events.parse(line)
        assert event is not None
        assert events.parse(events.line(event)) == event or "nan" in repr(event)


def test_a_run_of_the_demonstration_leaves_its_record(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    pytest.importorskip("PIL")
    command = [sys.executable, "-m", "musubitraining.demo", "--folder", str(tmp_path), "--steps", "12"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    run = TrainingRun.load(tmp_path / "training")
    assert run == TrainingRun.attach(tmp_path / "training")
    assert run.outcome == "done"
    assert [point.step for point in run.loss] == list(range(1, 13))
    assert [step.step for step in run.steps] == [
        "dataset",
        "precache:latents",
        "precache:text_encoder",
        "train",
        "convert:comfyui",
    ]
    assert {photo.caption for photo in run.photos} == {"zwxcat"}
    assert len(run.photos) == 6
    for output in run.outputs:
        assert output.sha256 == hashlib.sha256(Path(output.path).read_bytes()).hexdigest()
    caching = [event for event in run.events() if isinstance(event, events.Progress) and event.step != "train"]
    assert {(event.step, event.done) for event in caching} >= {("precache:latents", 6), ("precache:text_encoder", 6)}
