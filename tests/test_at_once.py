"""The two caching steps at the same time: seen by what they do, and in the log one after the other."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness.library import OURS, Run, Workspace
from harness.scenario import Work
from harness.tuner import LATENTS, TEXT, TRAIN, is_running

AT_ONCE = "latents and text encoder outputs are cached at the same time"
ONE_BY_ONE = "latents and text encoder outputs are cached one after the other"


def train(work: Work) -> str:
    return work.train()


def weights(path: Path, numbers: int = 1) -> None:
    """A whole safetensors file, which tells what it will take."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}}).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 4 * numbers)


@pytest.fixture
def place(bench: Any) -> Workspace:
    workspace: Workspace = bench.workspace()
    for name in ("ae.safetensors", "qwen_3_4b.safetensors"):
        weights(workspace.models / name)
    return workspace


def each_waits_for_the_other(workspace: Workspace) -> None:
    """Neither ends before the other has begun."""
    latents, text = workspace.root / "latents", workspace.root / "text"
    for script, own, other in ((LATENTS, latents, text), (TEXT, text, latents)):
        workspace.tuner.does(
            script, ["say", f"{own.name} begin\n"], ["write_at", str(own), ""], ["await", str(other)], ["say", "end\n"]
        )


def caching(run: Run) -> list[str]:
    return [message for _, message in run.log if message.startswith("[precache")]


def test_both_run_and_the_log_has_them_in_order(place: Workspace) -> None:
    each_waits_for_the_other(place)
    run = place.run(OURS, train).ok()
    decision, *lines = caching(run)
    assert decision.startswith(f"[precache] {AT_ONCE}: they need RAM")
    assert lines == [
        "[precache:latents] starting",
        "[precache:latents] cwd=<work>/musubi",
        f"[precache:latents] cmd=<python> <work>/musubi/{LATENTS} --dataset_config <work>/training/dataset.toml "
        "--vae <work>/models/ae.safetensors",
        "[precache:latents] latents begin",
        "[precache:latents] end",
        "[precache:latents] done (duration=<s>)",
        "[precache:text_encoder] starting",
        "[precache:text_encoder] cwd=<work>/musubi",
        f"[precache:text_encoder] cmd=<python> <work>/musubi/{TEXT} --dataset_config <work>/training/dataset.toml "
        "--text_encoder <work>/models/qwen_3_4b.safetensors --batch_size 16",
        "[precache:text_encoder] text begin",
        "[precache:text_encoder] end",
        "[precache:text_encoder] done (duration=<s>)",
    ]


def test_warm_too(place: Workspace) -> None:
    each_waits_for_the_other(place)
    run = place.run(OURS, warm).ok()
    assert run.logged(AT_ONCE)
    assert not run.logged("no warm start, the steps run in processes of their own")


def warm(work: Work) -> str:
    return work.train(warm_start=True)


@pytest.mark.parametrize(("failing", "other"), [(LATENTS, TEXT), (TEXT, LATENTS)])
def test_the_failure_of_one_ends_the_other(place: Workspace, failing: str, other: str) -> None:
    up = place.root / "up"
    place.tuner.does(other, ["say", "it hangs\n"], ["spawn", {"setsid": True}], ["write_at", str(up), ""], ["hang"])
    place.tuner.does(failing, ["await", str(up)], ["say", "no good\n"], ["exit", 5])
    run = place.run(OURS, train)
    assert run.error
    assert run.error["returncode"] == 5
    assert failing in run.error["message"]
    assert not any(map(is_running, place.tuner.pids()))
    assert [call["step"] for call in run.calls if call["step"] == TRAIN] == []
    step = "precache:latents" if failing == LATENTS else "precache:text_encoder"
    assert caching(run)[-1] == f"[{step}] failed (exit_code=5, duration=<s>)"
    assert f"[{step}] no good" in caching(run)
    if failing == TEXT:
        assert "[precache:latents] ended, because precache:text_encoder has failed" in caching(run)


def test_the_first_is_judged_before_the_second_is_told(place: Workspace) -> None:
    """Nothing was found to cache, which ends the run, and with it the other step."""
    place.tuner.does(LATENTS, ["say_on_stderr", "INFO:dataset:found 0 images\n"])
    place.tuner.does(TEXT, ["hang"])
    run = place.run(OURS, train)
    assert run.error
    assert "found 0 images" in run.error["message"]
    assert not run.logged("[precache:text_encoder]")
    assert not any(map(is_running, place.tuner.pids()))


def test_cancelling_ends_both(place: Workspace) -> None:
    for script in (LATENTS, TEXT):
        place.tuner.does(script, ["say", "up\n"], ["hang"])
    running = place.start(OURS, cancelled)
    assert running.finish().error["type"] == "Cancelled"
    assert len(place.tuner.pids()) == 2
    assert not any(map(is_running, place.tuner.pids()))


def cancelled(work: Work) -> str:
    import os
    import threading
    import time

    trainer = work.trainer()

    def cancel_when_both_are_up() -> None:
        while len([name for name in os.listdir(work.path("musubi", "pids")) if name.isdigit()]) < 2:
            time.sleep(0.01)
        trainer.cancel()

    threading.Thread(target=cancel_when_both_are_up).start()
    return trainer.train(work.toml, work.url, work.trigger_word)


@pytest.mark.parametrize("name", ["ae.safetensors", "qwen_3_4b.safetensors"])
def test_weights_that_tell_nothing_are_cached_one_after_the_other(place: Workspace, name: str) -> None:
    (place.models / name).write_bytes(b"fake")
    run = place.run(OURS, train).ok()
    assert run.logged(f"{ONE_BY_ONE}: it is not known what the weights take")
    assert [call["step"] for call in run.calls][:2] == [LATENTS, TEXT]


def test_weights_that_do_not_fit_are_cached_one_after_the_other(place: Workspace) -> None:
    weights(place.models / "ae.safetensors", numbers=1 << 40)
    run = place.run(OURS, train).ok()
    (line,) = run.logged(ONE_BY_ONE)
    assert "together they need RAM" in line


def mine(work: Work) -> list[Any]:
    seen: list[Any] = []
    trainer = work.trainer()
    run = type(trainer)._run_cmd

    def watched(step: str, cmd: list[str], *, cwd: str) -> None:
        seen.append([step, "begins"])
        run(trainer, step, cmd, cwd=cwd)
        seen.append([step, "ends"])

    trainer._run_cmd = watched
    work.train(trainer)
    return seen[:4]


def test_an_override_of_run_cmd_has_them_one_after_the_other(place: Workspace) -> None:
    run = place.run(OURS, mine).ok()
    assert run.result == [
        [step, event] for step in ("precache:latents", "precache:text_encoder") for event in ("begins", "ends")
    ]
    assert not run.logged("[precache] ")


MERGE: Callable[[str], str] = """
# As a caching script ends: what is there and not of its own kind is left alone.
import glob
cache = os.path.join(os.path.dirname(option("--dataset_config")), "cache")
for number in range(40):
    with open(os.path.join(cache, f"{{number}}{ending}"), "wb") as file:
        file.write(STEP.encode() * 100)
""".format


def test_both_write_into_one_folder(place: Workspace) -> None:
    each_waits_for_the_other(place)
    for script, ending in ((LATENTS, "_zi.safetensors"), (TEXT, "_zi_te.safetensors")):
        path = place.tuner.root / script
        path.write_text(path.read_text() + MERGE(ending=ending))
    place.run(OURS, train).ok()
    found = sorted(path.name for path in (place.training / "cache").iterdir())
    assert len(found) == 80
    assert all(
        (place.training / "cache" / f"{number}{ending}").read_bytes() == script.encode() * 100
        for number in range(40)
        for script, ending in ((LATENTS, "_zi.safetensors"), (TEXT, "_zi_te.safetensors"))
    )
