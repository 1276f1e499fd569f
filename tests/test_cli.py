"""The command line, in processes of its own."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import test_plan
from harness.library import Workspace
from harness.server import Server, status
from harness.tuner import CONVERT, LATENTS, TEXT, TRAIN, end, is_running
from musubitraining import (
    DatasetLimits,
    DatasetOptions,
    LaunchOptions,
    Models,
    MusubiTraining,
    TrainingOptions,
    TrainingRun,
    dataset_toml,
    run_events,
)
from musubitraining.cli import failure, settings
from musubitraining.cli.arguments import parse
from test_gpu import STAND_IN, build, real_nvml

RECORDED = Path(__file__).parent / "recorded"
DEMO_RUN = RECORDED / "runs/demo"
LORA = RECORDED / "conversion/lora_float32.safetensors"

needs_events = pytest.mark.skipif(
    "on_event" not in inspect.signature(MusubiTraining.train).parameters, reason="train() has no events"
)


# A workspace where all is well.
ready = test_plan.place


class Done:
    """A process that has ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def last(self) -> str:
        """What the error is told in."""
        return self.err.splitlines()[-1]

    def ok(self) -> Done:
        assert self.code == 0, self.err
        return self

    def json(self) -> Any:
        """The one object on stdout."""
        (line,) = self.out.splitlines()
        return json.loads(line)


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "musubitraining", *map(str, words)]


def environment(workspace: Workspace | None, **more: str) -> dict[str, str]:
    return {**os.environ, **(workspace.env if workspace else {}), **more}


def cli(*words: object, of: Workspace | None = None, cwd: Path | None = None, **more: str) -> Done:
    done = subprocess.run(
        command(*words), env=environment(of, **more), cwd=cwd, capture_output=True, timeout=120, check=False
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def folders(workspace: Workspace) -> list[object]:
    """The flags of a workspace's folders."""
    return [
        *("--models", workspace.models, "--training-folder", workspace.training),
        *("--output", workspace.output, "--musubi-tuner", workspace.root / "musubi"),
    ]


@pytest.fixture
def run_flags(workspace: Workspace, folders: list[object]) -> list[object]:
    """What a run needs."""
    return [*folders, "--photos", workspace.url, "--trigger-word", "zwxcat"]


def called(workspace: Workspace, script: str) -> list[str]:
    (argv,) = [call["argv"] for call in workspace.tuner.calls() if call["step"] == Path(script).name]
    return list(map(str, argv))


def value(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


# ---- train ------------------------------------------------------------------------------------------------------


def test_train_makes_a_lora_and_prints_its_path(workspace: Workspace, run_flags: list[object]) -> None:
    done = cli("train", *run_flags, of=workspace).ok()
    assert done.out == f"{workspace.output}/output_lora_model_comfyui.safetensors\n"
    assert "[train] starting" in done.err
    assert [call["step"] for call in workspace.tuner.calls()] == [LATENTS, TEXT, TRAIN, Path(CONVERT).name]
    # Without options of its own the command line is the original's.
    by_library = MusubiTraining(
        str(workspace.models), Models(), str(workspace.training), str(workspace.output), str(workspace.root / "musubi")
    ).plan()
    assert called(workspace, TRAIN) == by_library.commands["train"][by_library.commands["train"].index("bf16") + 1 :]


def test_every_option_reaches_the_run(workspace: Workspace, run_flags: list[object]) -> None:
    (workspace.root / "prompts.txt").write_text("a cat\n")
    (workspace.models / "another.safetensors").touch()
    flags = [
        *("--max-train-steps", 7, "--seed=3", "--output-name", "mine", "--no-convert-for-comfyui"),
        *("--network_dim", 4, "--learning-rate", "1e-5", "--optimizer-args", "weight_decay=0.5", "eps=1e-6"),
        *("--no-gradient-checkpointing", "--lr-warmup-steps", "5%", "--lr-scheduler", "cosine"),
        *("--sample-prompts", "prompts.txt", "--sample-every-n-steps", 5, "--no-metadata"),
        *("--extra-args=--flag 'a b'", "--base-weights", "none", "--dit", "another.safetensors"),
        *("--num-cpu-threads-per-process", 2, "--gpu-ids", 0, "--launch-extra-args=--debug yes"),
        *("--resolution", 512, 256, "--num-repeats", 3, "--captions", "files", "--default-caption", "a [trigger]"),
        *("--image-extensions", "all", "--no-upright", "--entries", 50),
    ]
    done = cli("train", *run_flags, *flags, of=workspace, cwd=workspace.root).ok()
    assert done.out == f"{workspace.output}/mine.safetensors\n"
    words = called(workspace, TRAIN)
    said = {
        "--max_train_steps": "7",
        "--seed": "3",
        "--network_dim": "4",
        "--learning_rate": "1e-5",
        "--lr_warmup_steps": "5%",
        "--sample_prompts": str(workspace.root / "prompts.txt"),
        "--dit": str(workspace.models / "another.safetensors"),
        "--flag": "a b",
    }
    assert {flag: value(words, flag) for flag in said} == said
    at = words.index("--optimizer_args")
    assert words[at + 1 : at + 3] == ["weight_decay=0.5", "eps=1e-6"]
    assert "--no_metadata" in words
    assert "--gradient_checkpointing" not in words
    assert "--base_weights" not in words
    launch = next(line for line in done.err.splitlines() if "[train] cmd=" in line)
    assert "--num_cpu_threads_per_process 2" in launch
    assert "--gpu_ids 0 --debug yes" in launch
    toml = dataset_toml(str(workspace.training), resolution=(512, 256), num_repeats=3)
    assert (workspace.training / "dataset.toml").read_text() == toml
    assert {path.read_text() for path in workspace.images.glob("*.txt")} == {"a zwxcat"}


def test_every_parameter_and_every_field_is_a_flag() -> None:
    known = {(setting.table, setting.name) for group in settings.groups() for setting in group.settings}
    expected = {("", name) for name in ("models", "training_folder", "output", "musubi_tuner", "photos")}
    objects = {"options": TrainingOptions, "launch_options": LaunchOptions, "dataset_options": DatasetOptions}
    tables = {**objects, "dataset_limits": DatasetLimits, "weights": Models}
    expected |= {(table, one.name) for table, kind in tables.items() for one in fields(kind)}
    expected |= {("options", "preset"), ("dataset", "file")}
    expected |= {("dataset", name) for name in inspect.signature(dataset_toml).parameters if name != "training_folder"}
    told_otherwise = {"self", "dataset_toml_content", "images_zip_url", "on_event", "progress", *objects}
    expected |= {
        ("", name) for name in inspect.signature(MusubiTraining.train).parameters if name not in told_otherwise
    }
    assert known == expected
    flags = [setting.flag for group in settings.groups() for setting in group.settings]
    assert len(flags) == len(set(flags))
    assert set(settings.TRAINING_HEADINGS) < {one.name for one in fields(TrainingOptions)}


def test_a_file_says_the_same_and_flags_go_before(workspace: Workspace) -> None:
    (workspace.models / "other_ae.safetensors").touch()
    config = workspace.root / "run.toml"
    names = {"models": workspace.models, "training_folder": workspace.training, "output": workspace.output}
    lines = [f"{name} = {json.dumps(str(path))}" for name, path in names.items()]
    config.write_text(
        "\n".join(lines)
        + f"""
musubi_tuner = {json.dumps(str(workspace.root / "musubi"))}
photos = {json.dumps(workspace.url)}
trigger_word = "zwxçat"
max_train_steps = 11
seed = 5

[weights]
ae = "other_ae.safetensors"

[options]
preset = "16gb"
network_dim = 8
optimizer_args = ["weight_decay=0.25"]
base_weights = "none"

[launch_options]
num_cpu_threads_per_process = 3

[dataset_options]
image_extensions = ["png", "jpg"]

[dataset]
resolution = 320

[dataset_limits]
entries = 40
""",
        encoding="utf-8",
    )
    done = cli("train", "--config", config, "--seed", 6, "--network-dim", 2, of=workspace).ok()
    words = called(workspace, TRAIN)
    said = {
        "--max_train_steps": "11",
        "--seed": "6",
        "--network_dim": "2",
        "--optimizer_args": "weight_decay=0.25",
        "--blocks_to_swap": "12",
        "--vae": str(workspace.models / "other_ae.safetensors"),
    }
    assert {flag: value(words, flag) for flag in said} == said
    assert "--base_weights" not in words
    assert "--num_cpu_threads_per_process 3" in done.err
    assert "resolution = [320, 320]" in (workspace.training / "dataset.toml").read_text()
    assert {path.read_text("utf-8") for path in workspace.images.glob("*.txt")} == {"zwxçat"}


def test_a_file_may_come_through_a_pipe_and_begin_with_a_mark(workspace: Workspace, folders: list[object]) -> None:
    call = command("plan", *folders, "--json", "--config", "/dev/stdin")
    for text, code in ((b"\xef\xbb\xbfseed = 123\n", 3), (b"seed = '\xff'\n", 2), (b"", 3), (b"\0" * 100, 2)):
        done = subprocess.run(call, input=text, env=environment(workspace), capture_output=True, check=False)
        # The stand-in's weights are no weights.
        assert done.returncode == code, done.stderr
        assert b"Traceback" not in done.stderr
        assert (b'"123"' in done.stdout) == (b"123" in text)
    assert cli("plan", *folders, "--config", workspace.root, of=workspace).code == 2


@pytest.mark.parametrize(
    ("member", "found", "part"),
    [
        ("arguments", {"seed": {"a": 1}}, "seed"),
        ("arguments", {"photos": 3, "images_zip_url": [1]}, ""),
        ("arguments", {"dataset_toml_content": 5, "models_for_training": {"dit": 4}}, "dit"),
        ("options", {"network_dim": "many"}, "network_dim='many'"),
        ("options", {"not_yet_known": 1}, "not_yet_known"),
        ("arguments", {"absolute_path_models": None}, "expected --models too"),
        ("version", 2, "pip install --upgrade"),
        ("version", None, "is no record of a run"),
    ],
)
def test_a_record_that_is_odd_is_refused_in_a_line(workspace: Workspace, member: str, found: Any, part: str) -> None:
    record = recorded(workspace)
    run = json.loads(record.read_text())
    run[member] = {**run[member], **found} if member == "arguments" else found
    record.write_text(json.dumps(run))
    done = cli("train", "--from", record, of=workspace)
    assert done.code in (2, 3)
    assert part in done.last
    assert "Traceback" not in done.err
    assert not workspace.tuner.calls()


@pytest.mark.parametrize("how", ["flags", "file"])
@pytest.mark.parametrize(
    "options",
    [
        *({"options": preset.options} for preset in TrainingOptions.presets().values()),
        {
            "options": TrainingOptions(
                attention="xformers",
                split_attn=True,
                network_args=("conv_dim=4", "algo=lora"),
                lr_scheduler="cosine",
                lr_warmup_steps=0.25,
                lr_decay_steps=10,
                no_metadata=True,
                metadata_title="A 'title' of 100% -- \"quoted\"",
                logit_mean=-0.5,
                extra_args=("--flag", "a b", "--other"),
            ),
            "launch_options": LaunchOptions(gpu_ids=(1, 0), num_processes=2, extra_args=("--debug",)),
            "dataset_options": DatasetOptions(captions="files", image_extensions="all", upright=False),
        },
        {"launch_options": LaunchOptions(gpu_ids="all", config_file="a folder/config.yaml")},
    ],
)
def test_whatever_can_be_made_can_be_said(how: str, options: dict[str, Any], tmp_path: Path) -> None:
    known = [setting for group in settings.groups() for setting in group.settings]
    told = settings.Settings()
    said: list[str] = []
    tables = ""
    for table, made in options.items():
        tables += f"[{table}]\n"
        for one in fields(made):
            found = getattr(made, one.name)
            (setting,) = [setting for setting in known if (setting.table, setting.name) == (table, one.name)]
            tables += f"{one.name} = {json.dumps('none' if found is None else found)}\n"
            if isinstance(found, bool):
                said.append(setting.flag if found else f"--no-{setting.flag[2:]}")
            elif one.name == "extra_args":
                said.append(f"{setting.flag}={shlex.join(found)}")
            elif isinstance(found, tuple):
                said += [setting.flag, *map(str, found)]
            else:
                said.append(f"{setting.flag}={'none' if found is None else found}")
    if how == "file":
        (tmp_path / "run.toml").write_text(tables, encoding="utf-8")
        told.take_file(str(tmp_path / "run.toml"), known)
    else:
        told.take_flags(settings.of_flags(parse(["train", *said])), known)
    call = told.call()
    assert {name: call[name] for name in options} == options


def test_a_later_preset_or_dataset_goes_before_an_earlier_one(workspace: Workspace, folders: list[object]) -> None:
    (workspace.root / "dataset.toml").write_text(workspace.toml)
    config = workspace.root / "run.toml"
    config.write_text("[options]\nnetwork_dim = 8\n[dataset]\nresolution = 320\n")
    words = ["--config", config, *folders, "--preset", "12gb", "--dataset-toml", workspace.root / "dataset.toml"]
    plan = cli("plan", *words, "--json", of=workspace)
    assert value(plan.json()["commands"]["train"], "--network_dim") == "16"
    assert value(plan.json()["commands"]["train"], "--blocks_to_swap") == "22"
    refused = cli("plan", *words, "--resolution", 64, of=workspace)
    assert refused.code == 2
    assert "without --resolution" in refused.last


def recorded(workspace: Workspace, **arguments: Any) -> Path:
    """The record of a run with these arguments, as `train` leaves it."""
    run = TrainingRun(
        outcome="done",
        arguments={
            "images_zip_url": workspace.url,
            "trigger_word": "zwxcat",
            "dataset_toml_content": workspace.toml,
            "use_pre_cache": False,
            "convert_for_comfyui": True,
            "output_name": "again",
            "max_train_steps": 13,
            "seed": 9,
            "absolute_path_models": str(workspace.models),
            "absolute_path_musubi_tuner": str(workspace.root / "musubi"),
            "models_for_training": {"ae": "other_ae.safetensors"},
            "dataset_limits": {"entries": 30},
            **arguments,
        },
        options={"network_dim": 6, "optimizer_args": ["weight_decay=0.75"], "sample_prompts": None},
        dataset_options={"image_extensions": ["jpg", "png"]},
        folders={"training": str(workspace.training), "output": str(workspace.output)},  # type: ignore[arg-type]
    )
    workspace.training.mkdir(exist_ok=True)
    return run.save(workspace.training)


def test_a_run_is_repeated_from_its_record(workspace: Workspace) -> None:
    (workspace.models / "other_ae.safetensors").touch()
    record = recorded(workspace)
    done = cli("train", "--from", record, "--seed", 10, of=workspace).ok()
    assert done.out == f"{workspace.output}/again_comfyui.safetensors\n"
    words = called(workspace, TRAIN)
    said = {
        "--max_train_steps": "13",
        "--seed": "10",
        "--network_dim": "6",
        "--optimizer_args": "weight_decay=0.75",
        "--vae": str(workspace.models / "other_ae.safetensors"),
    }
    assert {flag: value(words, flag) for flag in said} == said
    assert [call["step"] for call in workspace.tuner.calls()] == [TRAIN, Path(CONVERT).name]
    assert (workspace.training / "dataset.toml").read_text() == workspace.toml


def test_a_run_is_repeated_in_another_folder(workspace: Workspace) -> None:
    record = recorded(workspace, models_for_training={})
    elsewhere = workspace.root / "elsewhere"
    cli("train", "--from", record, "--training-folder", "elsewhere", of=workspace, cwd=workspace.root).ok()
    toml = (elsewhere / "dataset.toml").read_text()
    assert toml == workspace.toml.replace(str(workspace.training), str(elsewhere))
    assert list((elsewhere / "images").glob("*.jpg"))
    assert not workspace.images.exists()


def test_the_limits_of_a_record_hold(workspace: Workspace) -> None:
    done = cli(
        "train", "--from", recorded(workspace, dataset_limits={"entries": 1}, models_for_training={}), of=workspace
    )
    assert done.code == 3
    assert "entries" in done.last


@needs_events
def test_a_real_record_repeats_its_run(workspace: Workspace, run_flags: list[object]) -> None:
    cli("train", *run_flags, "--network-dim", 4, "--resolution", 128, of=workspace).ok()
    first = workspace.tuner.calls()
    (workspace.root / "musubi/calls.jsonl").unlink()
    cli("train", "--from", workspace.training / "run.json", of=workspace).ok()
    assert [call["argv"] for call in workspace.tuner.calls()] == [call["argv"] for call in first]


@needs_events
def test_the_events_of_a_run_are_lines_of_json(workspace: Workspace, run_flags: list[object]) -> None:
    done = cli("train", *run_flags, "--json", of=workspace).ok()
    events = [run_events.parse(line) for line in done.out.splitlines()]
    assert events == list(run_events.read(workspace.training / run_events.FILE))
    assert isinstance(events[0], run_events.Started)
    assert isinstance(events[-1], run_events.Done)


@needs_events
def test_a_run_goes_on_when_nobody_reads_its_events(workspace: Workspace, run_flags: list[object]) -> None:
    with subprocess.Popen(
        command("train", *run_flags, "--json"),
        env=environment(workspace),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        process.stdout.close()
        assert process.stderr
        said = process.stderr.read().decode()
        assert process.wait(60) == 0, said
    assert said.count("nobody reads the events any more") == 1
    assert (workspace.output / "output_lora_model_comfyui.safetensors").exists()


# ---- how it ends ------------------------------------------------------------------------------------------------


def test_a_usage_that_cannot_be_is_one_line_and_2(workspace: Workspace, run_flags: list[object]) -> None:
    config = workspace.root / "run.toml"
    for text, words, part in (
        ("", ["train"], "expected --models, --training-folder, --output, --musubi-tuner, --photos, --trigger-word too"),
        ("", ["train", *run_flags, "--wrong"], "unrecognized arguments: --wrong"),
        ("", ["train", *run_flags, "--seed", "many"], "--seed: invalid int value: 'many'"),
        ("", ["train", *run_flags, "--attention", "best"], "invalid choice: 'best'"),
        ("", ["train", *run_flags, "--network-dim", "0"], "network_dim=0: expected an int of at least 1"),
        ("", ["train", *run_flags, "--fp8-scaled"], "fp8_scaled=True needs fp8_base"),
        ("", ["train", *run_flags, "--gpu-ids", "a"], "gpu_ids=('a',): expected 'all', or"),
        ("", ["train", *run_flags, "--entries", "0"], "entries"),
        ("", ["train", *run_flags, "--resolution", "7"], "resolution"),
        ("", ["train", *run_flags, "--dataset-toml", "gone.toml"], "--dataset-toml gone.toml cannot be read"),
        ("", ["train", *run_flags, "--config", "gone.toml"], "--config gone.toml cannot be read"),
        ("seed = \n", ["train", *run_flags], "run.toml is no TOML: "),
        ("sed = 4\n", ["train", *run_flags], "run.toml has 'sed': expected 'seed', perhaps"),
        ("network_dim = 4\n", ["train", *run_flags], "'network_dim': expected it in [options]"),
        ("[options]\nseed = 4\n", ["train", *run_flags], "'seed' in [options]: expected it before the first table"),
        ("[options]\nqqq = 4\n", ["train", *run_flags], "there is no such setting; the tables are [weights], "),
        ('[options]\npreset = "8gb"\n', ["train", *run_flags], "expected one of 'original', "),
        ("[options]\nnetwork_dim = true\n", ["train", *run_flags], "network_dim=True: expected an int"),
        ("[optoins]\nfp8_llm = true\n", ["train", *run_flags], "has 'optoins': expected 'options', perhaps"),
        ("options = 3\n", ["train", *run_flags], "has 'options': expected a table, [options]"),
        ("[dataset]\nfile = 3\n", ["train", *run_flags], "--dataset-toml 3 cannot be read"),
        ("", ["dance"], "invalid choice: 'dance'"),
        ("", ["convert"], "SOURCE"),
        ("", ["convert", LORA, "--form", "round"], "invalid choice: 'round'"),
    ):
        config.write_text(text)
        done = cli(*words, *(["--config", config] if text else []), of=workspace)
        assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1), (words, done.err)
        assert part in done.err, words
    assert cli().code == 2
    assert not workspace.tuner.calls()
    assert not workspace.server.requests


def test_bad_input_is_3(workspace: Workspace, server: Server, run_flags: list[object]) -> None:
    workspace.serve(b"no zip")
    (workspace.root / "wrong.toml").write_text("a = \n")
    for words, part in (
        ([*run_flags], "zip"),
        ([*run_flags, "--photos", server.url("/gone.zip")], "404"),
        ([*run_flags, "--models", workspace.root / "nowhere"], "Models folder not found: "),
        ([*run_flags, "--dit", "gone.safetensors"], "Model weights not found: "),
        ([*run_flags, "--output-name", "../mine"], "output_name"),
        ([*run_flags, "--max-train-steps", "0"], "max_train_steps"),
        ([*run_flags, "--dataset-toml", workspace.root / "wrong.toml"], "Invalid TOML"),
        (["--from", workspace.root], "run.json not found"),
        (["--from", LORA], "cannot be read: expected JSON"),
    ):
        done = cli("train", *words, of=workspace)
        assert (done.code, done.out) == (3, ""), (words, done.err)
        assert done.last.startswith("musubitraining: train: ")
        assert part in done.last
        assert "Traceback" not in done.err
    assert not workspace.tuner.calls()


def test_a_failed_step_is_4(workspace: Workspace, run_flags: list[object]) -> None:
    raised = 'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\n'
    raised += "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
    workspace.tuner.does(LATENTS, ["say", raised], ["exit", 3])
    done = cli("train", *run_flags, of=workspace)
    assert (done.code, done.out) == (4, "")
    assert done.last.startswith("musubitraining: train: precache:latents failed with exit code 3: ")
    assert "out of GPU memory" in done.last
    # The script's, in the log.
    assert done.err.count("Traceback") == 1


def test_a_step_that_ends_well_without_its_work_is_4(workspace: Workspace, run_flags: list[object]) -> None:
    workspace.tuner.does(TRAIN)
    done = cli("train", *run_flags, of=workspace)
    assert (done.code, done.out) == (4, "")
    assert "Trained model not found: " in done.last


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_cancelled_run_is_130_and_leaves_no_process(
    workspace: Workspace, run_flags: list[object], number: signal.Signals
) -> None:
    workspace.tuner.does(TRAIN, ["spawn", {}], ["hang"])
    process = subprocess.Popen(
        command("train", *run_flags), env=environment(workspace), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        pids = workspace.tuner.wait_for_pids(2)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (130, b"")
        assert err.decode().splitlines()[-1] == "musubitraining: train: cancelled"
        assert b"Traceback" not in err
        assert not any(map(is_running, pids))
    finally:
        process.kill()
        end(workspace.tuner.pids())


def test_everything_else_is_1(tmp_path: Path) -> None:
    done = cli("convert", LORA, tmp_path / ("x" * 300))
    assert done.code == 1, done.err
    assert done.last.startswith("musubitraining: convert: ")


def test_a_traceback_for_who_asks(workspace: Workspace, run_flags: list[object]) -> None:
    done = cli("train", *run_flags, "--dit", "gone.safetensors", "--traceback", of=workspace)
    assert done.code == 3
    assert "Traceback (most recent call last):" in done.err
    assert done.last.startswith("musubitraining: train: Model weights not found: ")


def test_no_secret_is_printed(workspace: Workspace, server: Server, run_flags: list[object]) -> None:
    host = server.base.removeprefix("http://")
    url = f"http://us3r:s3cret@{host}/gone.zip?X-Amz-Signature=s3cret#s3cret"
    server.on("/gone.zip", status(403))
    config = workspace.root / "run.toml"
    config.write_text(f"photos = [{json.dumps(url)}]\n")
    for words in (
        ["train", *run_flags, "--photos", url],
        ["train", *run_flags, "--photos", url, "--traceback"],
        ["train", *run_flags, "--photos", url.replace("http", "ftp"), "--traceback"],
        ["plan", *run_flags, "--photos", url],
        ["plan", *run_flags, "--photos", url, "--json"],
        ["train", *run_flags, url],
        ["train", *run_flags, "--seed", url],
        [url],
        ["train", *run_flags[:8], "--trigger-word", "x", "--config", config],
        ["train", *run_flags, "--extra-args=--wandb_api_key s3cret"],
    ):
        done = cli(*words, of=workspace)
        assert done.code in (2, 3), words
        assert "s3cret" not in done.out + done.err, words
        assert "us3r" not in done.out + done.err, words


def test_urls_lose_their_secrets_and_nothing_else() -> None:
    for text, expected in (
        ("see https://u:p@host:8/a/b.zip?c=d#e, then", "see https://host:8/a/b.zip then"),
        ("'https://host/a.zip?c=d' 'ftp://u@host'", "'https://host/a.zip' 'ftp://host'"),
        ("what? a#b user@host", "what? a#b user@host"),
        ("https://host/a@b.zip", "https://host/a@b.zip"),
    ):
        assert failure.without_secrets(text) == expected


# ---- plan -------------------------------------------------------------------------------------------------------


def test_a_plan_with_errors_is_3(workspace: Workspace, folders: list[object]) -> None:
    done = cli("plan", *folders, "--dit", "gone.safetensors", of=workspace)
    assert done.code == 3
    assert done.out.startswith("plan: ")
    assert "gone.safetensors" in done.out
    by_json = cli("plan", *folders, "--dit", "gone.safetensors", "--json", of=workspace)
    assert by_json.code == 3
    assert by_json.json()["ok"] is False
    assert set(by_json.json()) == {"ok", "checks", "commands"}
    assert not workspace.training.exists()


def test_a_plan_without_errors_is_0(ready: Workspace) -> None:
    flags = [
        *("--models", ready.models, "--training-folder", ready.training, "--output", ready.output),
        *("--musubi-tuner", ready.root / "musubi", "--photos", ready.url, "--trigger-word", "zwxcat"),
    ]
    plan = cli("plan", *flags, "--seed", 77, "--json", of=ready).ok().json()
    assert plan["ok"]
    assert value(plan["commands"]["train"], "--seed") == "77"
    assert "\n[train] " in cli("plan", *flags, of=ready).ok().out
    # Where the marks cannot be written, which is an error of the plan's as well.
    done = cli("plan", *flags, of=ready, PYTHONIOENCODING="ascii")
    assert done.code == 3
    assert "\n\\u2713 " in done.out
    assert "\n\\u2717 " in done.out


# ---- convert, report, gpu, demo ---------------------------------------------------------------------------------


def test_convert(tmp_path: Path) -> None:
    shutil.copy(LORA, tmp_path / "mine.safetensors")
    done = cli("convert", "mine.safetensors", cwd=tmp_path).ok()
    assert done.out == "mine_comfyui.safetensors\n"
    said = cli("convert", "mine.safetensors", "--form", "separate", "--json", cwd=tmp_path).json()
    assert said == {"model": "mine_separate.safetensors", "form": "separate"}
    there = cli("convert", "mine.safetensors", "there.safetensors", cwd=tmp_path).ok()
    assert there.out == "there.safetensors\n"
    assert (tmp_path / "there.safetensors").read_bytes() == (tmp_path / "mine_comfyui.safetensors").read_bytes()
    assert (tmp_path / "mine_separate.safetensors").stat().st_size > 0
    (tmp_path / "text.safetensors").write_text("no LoRA")
    failed = cli("convert", "text.safetensors", "--json", cwd=tmp_path)
    assert failed.code == 3
    assert failed.json()["error"]["message"] in failed.last


def test_report(tmp_path: Path) -> None:
    for name in ("run.json", "events.jsonl"):
        shutil.copy(DEMO_RUN / name, tmp_path)
    done = cli("report", tmp_path).ok()
    assert done.out == f"{tmp_path}/report.html\n"
    assert "<html" in (tmp_path / "report.html").read_text("utf-8")
    elsewhere = tmp_path / "page.html"
    assert cli("report", tmp_path / "run.json", "--to", elsewhere, "--json").json() == {"report": str(elsewhere)}
    (tmp_path / "empty").mkdir()
    failed = cli("report", tmp_path / "empty")
    assert failed.code == 3
    assert "run.json not found" in failed.last


def test_a_report_of_a_run_under_way_is_of_that_run(tmp_path: Path) -> None:
    shutil.copy(DEMO_RUN / "run.json", tmp_path)
    begun = run_events.Started(at=datetime.now(timezone.utc), seconds=0.0, arguments={"output_name": "the_new_one"})
    (tmp_path / "events.jsonl").write_text(run_events.line(begun))
    cli("report", tmp_path).ok()
    assert "the_new_one" in (tmp_path / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("nvml")
    build(STAND_IN + test_plan.MORE_OF_NVML, folder)
    return {"LD_LIBRARY_PATH": str(folder), "NVML_LOG": str(folder / "log"), "NVML_NAME": "NVIDIA GeForce RTX 4090"}


@pytest.mark.skipif(sys.platform != "linux", reason="NVML and LD_LIBRARY_PATH are Linux's")
def test_gpu(nvml: dict[str, str]) -> None:
    done = cli("gpu", **nvml, NVML_PROCESSES="1").ok()
    assert done.out == (
        "driver 580.65.06, GPUs: 1\n0: NVIDIA GeForce RTX 4090, 23.4 GiB of 24.0 GiB free\n   process 4711: 1.0 GiB\n"
    )
    said = cli("gpu", "--json", **nvml, NVML_PROCESSES="1", NVML_COUNT="2").json()
    assert said["driver"] == "580.65.06"
    assert said["gpus"][0] == {
        "index": 0,
        "name": "NVIDIA GeForce RTX 4090",
        "uuid": "GPU-1-abc",
        "total_bytes": 24576 << 20,
        "free_bytes": 24000 << 20,
        "processes": [{"pid": 4711, "used_bytes": 1 << 30}],
    }
    assert [gpu["index"] for gpu in said["gpus"]] == [0, 1]
    broken = cli("gpu", "--json", **nvml, NVML_INIT="18")
    assert broken.code == 3
    assert "different versions" in broken.json()["error"]["message"]


@pytest.mark.skipif(real_nvml(), reason="this machine has NVIDIA's own library")
def test_without_a_gpu_it_is_said_why() -> None:
    done = cli("gpu")
    assert (done.code, done.out) == (3, "")
    assert "expected an NVIDIA driver" in done.last
    assert cli("gpu", "--json").json()["error"]["type"] == "RuntimeError"


def test_demo(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    pytest.importorskip("PIL")
    done = cli("demo", "--folder", tmp_path / "demo", "--steps", 3, "--json").ok()
    said = done.json()
    assert said["training_folder"] == str(tmp_path / "demo/training")
    assert Path(said["model"]).stat().st_size > 0
    assert "[train] starting" in done.err


def test_what_the_demo_lacks_is_named() -> None:
    # Without the environment's packages.
    package = str(Path(failure.__file__).parents[2])
    call = [sys.executable, "-S", "-m", "musubitraining", "demo"]
    done = subprocess.run(
        call, env={**os.environ, "PYTHONPATH": package}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert "numpy, PIL" in line
    assert "pip install 'TechTrash_MusubiTraining[demo]'" in line


# ---- watch ------------------------------------------------------------------------------------------------------


def events_of(outcome: str) -> list[str]:
    """The lines of the recorded run, with another end."""
    lines = (DEMO_RUN / "events.jsonl").read_text("utf-8").splitlines(keepends=True)
    if outcome == "done":
        return lines
    step = {"failed": "train", "refused": None, "cancelled": "train"}[outcome]
    ended = "cancelled" if outcome == "cancelled" else "failed"
    last = run_events.Failed(outcome=ended, message="it was so", step=step)  # type: ignore[arg-type]
    # Where it is refused no step has begun.
    return [*(lines[:1] if step is None else lines[:-1]), run_events.line(last)]


@pytest.mark.parametrize(("outcome", "code"), [("done", 0), ("refused", 3), ("failed", 4), ("cancelled", 130)])
def test_watching_ends_as_the_run_does(tmp_path: Path, outcome: str, code: int) -> None:
    lines = events_of(outcome)
    (tmp_path / "events.jsonl").write_text("".join(lines), encoding="utf-8")
    done = cli("watch", tmp_path, "--no-progress")
    assert done.code == code
    said = [line.partition(" ")[2] for line in done.out.splitlines()]
    assert ("[train] started" in said) == (outcome != "refused")
    # Steps that take no time: how far they are is said once, at their end.
    assert said.count("[train] 200/200, loss 0.769") == (outcome != "refused")
    assert ("output_lora_model_comfyui.safetensors" in done.out) == (outcome == "done")
    by_json = cli("watch", tmp_path, "--json")
    assert by_json.code == code
    assert [json.loads(line) for line in by_json.out.splitlines()] == [json.loads(line) for line in lines]


class Watching:
    """A watcher of a folder, whose lines are read as they come."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.process = subprocess.Popen(
            command("watch", folder, *flags),
            env=environment(None),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()

    def end(self) -> tuple[int, str]:
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[Watching]:
    watching = Watching(tmp_path, "--json")
    yield watching
    watching.process.kill()
    watching.process.communicate()


def test_a_run_is_followed_as_it_goes_and_the_next_one_too(tmp_path: Path, watching: Watching) -> None:
    path = tmp_path / "events.jsonl"
    lines = events_of("done")
    assert watching.process.stderr
    assert "waiting for a run" in watching.process.stderr.readline()
    with path.open("w", encoding="utf-8") as file:
        for line in lines[:4]:
            file.write(line)
            file.flush()
            assert json.loads(watching.line()) == json.loads(line)
    # That one was killed; another one begins its own file.
    beside = tmp_path / "beside"
    begun = run_events.line(run_events.Started(at=datetime.now(timezone.utc), seconds=0.0))
    beside.write_text("".join([begun, *events_of("failed")[1:]]), encoding="utf-8")
    os.replace(beside, path)
    assert json.loads(watching.line()) == json.loads(begun)
    while '"error"' not in watching.line():
        pass
    assert watching.end()[0] == 4


def test_ctrl_c_ends_the_watching_only(tmp_path: Path, watching: Watching) -> None:
    (tmp_path / "events.jsonl").write_text(events_of("done")[0])
    assert watching.line()
    watching.process.send_signal(signal.SIGINT)
    code, err = watching.end()
    assert code == 130
    assert err.splitlines()[-1] == "musubitraining: no longer watching, the run is left alone"


def test_a_run_that_was_killed_is_found_dead(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("".join(events_of("done")[:7]), encoding="utf-8")
    program = "import sys; from musubitraining import cli, progress_bars; progress_bars.SILENCE = 0.1; "
    program += "sys.exit(cli.main(sys.argv[1:]))"
    call = [sys.executable, "-c", program, "watch", str(tmp_path), "--no-progress"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "the run was killed" in done.stderr
    assert done.stdout.count("[dataset] started") == 1


def test_there_is_nothing_to_watch_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    done = cli("watch", tmp_path / "nowhere")
    assert done.code == 3
    assert "expected the training folder of a run" in done.last


def test_watching_shows_bars(tmp_path: Path) -> None:
    pytest.importorskip("tqdm")
    (tmp_path / "events.jsonl").write_text("".join(events_of("done")), encoding="utf-8")
    done = cli("watch", tmp_path, "--progress").ok()
    assert "%|" in done.err
    assert done.out == ""


# ---- help, completion, start ------------------------------------------------------------------------------------

COMMANDS = ("train", "plan", "demo", "convert", "report", "watch", "gpu", "completion")


def test_help_names_every_command_and_every_exit_code() -> None:
    done = cli("--help").ok()
    for name in COMMANDS:
        assert f"\n    {name}" in done.out
        assert cli(name, "--help").ok().out.startswith(f"usage: musubitraining {name} ")
    for code in ("0 ", "1 ", "2 ", "3 ", "4 ", "130 "):
        assert f"\n  {code}" in done.out
    assert "examples:" in done.out


def test_the_help_of_train_says_something_of_every_flag() -> None:
    done = cli("train", "--help", COLUMNS="100").ok()
    for group in settings.groups():
        assert f"\n{group.title}:\n" in done.out
        for setting in group.settings:
            shown = f"--[no-]{setting.flag[2:]}" if setting.is_switch else setting.flag
            assert f"\n  {shown}" in done.out
    silent = [s.name for group in settings.groups() for s in group.settings if not s.about]
    assert silent == ["compile_fullgraph"]
    assert max(map(len, done.out.splitlines())) <= 100


def test_the_example_of_a_file_in_the_help_is_one(workspace: Workspace) -> None:
    text = cli("train", "--help").ok().out
    example = text[text.index("  models = ") : text.index("The other tables")]
    config = workspace.root / "run.toml"
    config.write_text(example.replace("/workspace", str(workspace.root)))
    folders = ["--training-folder", workspace.training, "--output", workspace.output]
    folders += ["--musubi-tuner", workspace.root / "musubi", "--photos", workspace.url]
    plan = cli("plan", "--config", config, *folders, "--json", of=workspace).json()
    assert value(plan["commands"]["train"], "--max_train_steps") == "1500"


def test_the_help_is_quick() -> None:
    program = """
        import sys
        from musubitraining.cli import main
        try:
            main(["--help"])
        except SystemExit:
            print(*sys.modules, sep="\\n", file=sys.stderr)
    """
    done = subprocess.run([sys.executable, "-c", inspect.cleandoc(program)], capture_output=True, text=True, check=True)
    slow = {"dataclasses", "json", "logging", "subprocess", "inspect", "musubitraining.training_options"}
    assert not slow & set(done.stderr.split())


def test_the_version() -> None:
    import importlib.metadata

    assert cli("--version").ok().out == f"musubitraining {importlib.metadata.version('TechTrash_MusubiTraining')}\n"


def test_a_reader_that_leaves_is_no_traceback() -> None:
    with subprocess.Popen(command("completion", "bash"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.close()
        assert process.stderr
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    for words in (["completion", "bash"], ["--version"], ["convert", LORA, tmp_path / "x.safetensors"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(command(*words), stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 1, words
        (line,) = done.stderr.splitlines()
        assert "No space left on device" in line


def shell(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here")
    return found


def completed(name: str, words: str, folder: Path) -> set[str]:
    """What a shell offers after these words."""
    script = folder / "script"
    script.write_text(cli("completion", name).ok().out)
    if name == "bash":
        # As readline does it.
        program = f"source {script}; COMP_WORDS=({words!s} {'' if words[-1:] != ' ' else chr(34) * 2}); "
        program += 'COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _musubitraining; printf "%s\\n" "${COMPREPLY[@]}"'
        call = [shell("bash"), "--norc", "-c", program]
    elif name == "fish":
        call = [shell("fish"), "--no-config", "-c", f"source {script}; complete -C '{words}'"]
    else:
        # Of the line editor only what our function calls.
        program = f"""
            compdef() {{ }}
            compadd() {{ shift; print -l -- ${{(M)@:#${{PREFIX}}*}} }}
            _describe() {{ print -l -- ${{${{(P)2}}%%:*}} }}
            _files() {{ print files }}
            source {script}
            words=({words}{'"" ' if words.endswith(" ") else ""}) CURRENT=$#words PREFIX=$words[-1]
            _musubitraining
        """
        call = [shell("zsh"), "-f", "-c", program]
    done = subprocess.run(call, capture_output=True, text=True, check=False, cwd=folder)
    assert not done.stderr, done.stderr
    return {line.split("\t")[0] for line in done.stdout.splitlines() if line}


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_completion(name: str, tmp_path: Path) -> None:
    assert {*COMMANDS} <= completed(name, "musubitraining ", tmp_path)
    assert completed(name, "musubitraining train --learning", tmp_path) == {"--learning-rate"}
    assert completed(name, "musubitraining train --no-gradient-checkpointing-", tmp_path) == {
        "--no-gradient-checkpointing-cpu-offload"
    }
    attention = completed(name, "musubitraining train --attention ", tmp_path)
    assert attention == {"sdpa", "flash_attn", "flash3", "xformers"}
    assert completed(name, "musubitraining completion ", tmp_path) == {"bash", "zsh", "fish"}
    assert "--learning-rate" not in completed(name, "musubitraining watch --", tmp_path)


def test_the_program_is_installed() -> None:
    program = Path(sys.executable).with_name("musubitraining")
    if not program.exists():
        pytest.skip("this environment was made before there was one")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("musubitraining ")
