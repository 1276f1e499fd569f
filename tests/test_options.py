"""TrainingOptions and LaunchOptions: what they refuse, the words that they become, and the clones that take these."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from harness.library import OURS, WEIGHTS, Bench, Run, Workspace
from harness.scenario import Work
from harness.tuner import TEXT, TRAIN, install_accelerate
from musubitraining import LaunchOptions, MusubiTraining, Preset, TrainingOptions
from musubitraining.fields import Options
from musubitraining.training_options import _decimal
from test_gpu import STAND_IN, build, linux, run

RECORDED: dict[str, dict[str, dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "demo_flags.json").read_text(encoding="utf-8")
)
"""What the real parsers of Musubi Tuner v0.3.4 take."""

FIELDS = {one.name: one for one in dataclasses.fields(TrainingOptions)}
LAUNCH_FIELDS = {one.name: one for one in dataclasses.fields(LaunchOptions)}


class Recording(MusubiTraining):
    """Runs nothing, and keeps what it was to run."""

    def _run_cmd(self, step: str, cmd: Any, *, cwd: Any) -> None:
        self.__dict__.setdefault("commands", {})[step] = [os.fspath(word) for word in cmd]


def trainer(workspace: Workspace, kind: Any = Recording, **changes: Any) -> Any:
    return kind(**Work(str(workspace.root), workspace.url, workspace.toml, {}).arguments(**changes))


def train(workspace: Workspace, a_trainer: Any = None, **given: Any) -> dict[str, list[str]]:
    """The command of every step."""
    a_trainer = a_trainer or trainer(workspace)
    # The converter looks for what training has written.
    given = {"convert_for_comfyui": False} | given
    a_trainer.train(workspace.toml, workspace.url, "word", **given)
    commands: dict[str, list[str]] = a_trainer.commands
    return commands


def is_untouched(workspace: Workspace) -> bool:
    return not workspace.server.requests and not workspace.training.exists()


def after(flag: str, words: list[str]) -> list[str]:
    """The values of a flag."""
    values = []
    for word in words[words.index(flag) + 1 :]:
        if word.startswith("--"):
            break
        values.append(word)
    return values


# ---- The default ------------------------------------------------------------------------------------------------


def the_contracts(workspace: Workspace) -> dict[str, list[str]]:
    """Every command of a call without options, but for how accelerate's launcher is found."""
    models, toml, musubi = workspace.models, f"{workspace.training}/dataset.toml", workspace.tuner.root
    ae, text_encoder, dit, base_weights = (f"{models}/{name}" for name in WEIGHTS)
    latents = [sys.executable, f"{musubi}/zimage_cache_latents.py", "--dataset_config", toml, "--vae", ae]
    text = [sys.executable, f"{musubi}/{TEXT}", "--dataset_config", toml, "--text_encoder", text_encoder]
    launch = f"{sys.executable} -m accelerate.commands.launch --num_cpu_threads_per_process 1 --mixed_precision bf16"
    script = (
        f"{musubi}/{TRAIN} --dit {dit} --vae {ae} --text_encoder {text_encoder} --base_weights {base_weights} "
        f"--dataset_config {toml} --sdpa --mixed_precision bf16 --timestep_sampling sigmoid --weighting_scheme none "
        "--optimizer_type adamw8bit --learning_rate 2e-4 --optimizer_args weight_decay=0.0001 --gradient_checkpointing "
        "--max_train_steps 2000 --seed 42 --network_module networks.lora_zimage --network_dim 16 --network_alpha 16 "
        f"--output_dir {workspace.output} --output_name output_lora_model"
    )
    return {
        "precache:latents": latents,
        "precache:text_encoder": [*text, "--batch_size", "16"],
        "train": [*launch.split(), *script.split()],
    }


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"options": TrainingOptions(), "launch_options": LaunchOptions()},
        {"options": TrainingOptions.preset("original")},
        {"options": None, "launch_options": None},
    ],
    ids=["none", "defaults", "the original's preset", "None"],
)
def test_the_default_is_the_contracts_argv_word_for_word(workspace: Workspace, given: dict[str, Any]) -> None:
    assert train(workspace, **given) == the_contracts(workspace)


def test_each_flag_of_the_contract_has_its_value_from_the_field_of_its_name(workspace: Workspace) -> None:
    words = the_contracts(workspace)["train"]
    words = words[words.index(f"{workspace.tuner.root}/{TRAIN}") :]
    said = {word.removeprefix("--") for word in words if word.startswith("--")} & FIELDS.keys()
    for name in sorted(said - {"base_weights"}):
        default = FIELDS[name].default
        values = after(f"--{name}", words)
        if default is True:
            assert values == []
        elif isinstance(default, float):
            assert [float(value) for value in values] == [default]
        else:
            assert values == (list(default) if isinstance(default, tuple) else [str(default)])
    assert f"--{TrainingOptions().attention}" in words
    others = FIELDS.keys() - said - {"attention", "base_weights", "text_encoder_batch_size"}
    assert {TrainingOptions().__dict__[name] for name in others} == {None, False, ()}


# ---- Each field -------------------------------------------------------------------------------------------------

# Of each field: a value, the words that it becomes, other fields that it needs, and values out of its range.
Row = tuple[Any, list[str], dict[str, Any], list[Any]]


def text_row(name: str) -> Row:
    return ("a b", [f"--{name}", "a b"], {}, ["", "a\0b"])


def flag_row(name: str, **needs: Any) -> Row:
    return (True, [f"--{name}"], needs, [])


def whole_row(name: str, least: int, **needs: Any) -> Row:
    return (least + 1, [f"--{name}", str(least + 1)], needs, [least - 1])


SAMPLES: dict[str, Any] = {"sample_prompts": "/p.txt", "sample_at_first": True}

ROWS: dict[str, Row] = {
    "attention": ("flash3", ["--flash3"], {}, ["sage_attn", ""]),
    "split_attn": flag_row("split_attn"),
    "use_32bit_attention": flag_row("use_32bit_attention"),
    "mixed_precision": ("fp16", ["--mixed_precision", "fp16"], {}, ["fp8", "BF16"]),
    "save_precision": ("bf16", ["--save_precision", "bf16"], {}, ["fp8"]),
    "fp8_base": flag_row("fp8_base"),
    "fp8_scaled": flag_row("fp8_scaled", fp8_base=True, base_weights=None),
    "fp8_llm": flag_row("fp8_llm"),
    "blocks_to_swap": (28, ["--blocks_to_swap", "28"], {}, [29, -1]),
    "use_pinned_memory_for_block_swap": flag_row("use_pinned_memory_for_block_swap", blocks_to_swap=1),
    "block_swap_h2d_only": flag_row("block_swap_h2d_only", blocks_to_swap=1),
    "block_swap_ring_size": whole_row("block_swap_ring_size", 1, block_swap_h2d_only=True, blocks_to_swap=1),
    "gradient_checkpointing": flag_row("gradient_checkpointing"),
    "gradient_checkpointing_cpu_offload": flag_row("gradient_checkpointing_cpu_offload"),
    "gradient_accumulation_steps": whole_row("gradient_accumulation_steps", 1),
    "timestep_sampling": ("shift", ["--timestep_sampling", "shift"], {}, ["shifted"]),
    "discrete_flow_shift": (2, ["--discrete_flow_shift", "2"], {}, [0, -1, float("inf"), float("nan")]),
    "sigmoid_scale": (0.5, ["--sigmoid_scale", "0.5"], {}, [0]),
    "weighting_scheme": ("mode", ["--weighting_scheme", "mode"], {}, ["None"]),
    "logit_mean": (-1e-5, ["--logit_mean=-1e-5"], {}, [float("nan"), float("-inf")]),
    "logit_std": (1.5, ["--logit_std", "1.5"], {}, [0]),
    "mode_scale": (1.25, ["--mode_scale", "1.25"], {}, [float("inf")]),
    "min_timestep": (0, ["--min_timestep", "0"], {}, [-1, 1000]),
    "max_timestep": (1000, ["--max_timestep", "1000"], {}, [0, 1001]),
    "preserve_distribution_shape": flag_row("preserve_distribution_shape"),
    "num_timestep_buckets": whole_row("num_timestep_buckets", 2),
    "optimizer_type": (
        "bitsandbytes.optim.Lion8bit",
        ["--optimizer_type", "bitsandbytes.optim.Lion8bit"],
        {},
        ["lion8bit", "", "a b", "torch..x"],
    ),
    "optimizer_args": (
        ["weight_decay=0.01", "betas=(0.9, 0.99)"],
        ["--optimizer_args", "weight_decay=0.01", "betas=(0.9, 0.99)"],
        {},
        [["weight_decay"], ["a=1=2"], ["a=b"], ["=1"], ["--x=1"], ["a="], ["a=" + "(" * 500]],
    ),
    "learning_rate": (5e-05, ["--learning_rate", "5e-5"], {}, [0, -1e-4, 1e30, float("nan")]),
    "max_grad_norm": (0, ["--max_grad_norm", "0"], {}, [-0.1]),
    "lr_scheduler": ("cosine", ["--lr_scheduler", "cosine"], {}, ["adafactor", "reduce_lr_on_plateau"]),
    "lr_scheduler_type": text_row("lr_scheduler_type"),
    "lr_scheduler_args": (("T_max=100",), ["--lr_scheduler_args", "T_max=100"], {}, [["T_max=many"]]),
    "lr_warmup_steps": ("5%", ["--lr_warmup_steps", "5%"], {"lr_scheduler": "linear"}, [-1, 1.0, 1.5, "5", "101%"]),
    "lr_decay_steps": (0.1, ["--lr_decay_steps", "0.1"], {}, [0.0, float("nan"), "x%", "nan%"]),
    "lr_scheduler_num_cycles": whole_row("lr_scheduler_num_cycles", 1),
    "lr_scheduler_power": (2.0, ["--lr_scheduler_power", "2"], {}, [0]),
    "lr_scheduler_timescale": whole_row("lr_scheduler_timescale", 1),
    "lr_scheduler_min_lr_ratio": (0.1, ["--lr_scheduler_min_lr_ratio", "0.1"], {}, [-0.1, 1.1]),
    "max_train_epochs": whole_row("max_train_epochs", 1),
    "network_module": (
        "networks.loha",
        ["--network_module", "networks.loha"],
        {},
        ["networks.lora", "networks.lora_wan", "musubi_tuner.networks.lora_flux", "networks/loha.py", ""],
    ),
    "network_dim": whole_row("network_dim", 1),
    "network_alpha": (0.5, ["--network_alpha", "0.5"], {}, [0, -1]),
    "network_args": (["loraplus_lr_ratio=4"], ["--network_args", "loraplus_lr_ratio=4"], {}, [["x"], ["a=b=c"]]),
    "network_dropout": (0.25, ["--network_dropout", "0.25"], {}, [-0.1, 1.5]),
    "network_weights": (Path("/l.safetensors"), ["--network_weights", "/l.safetensors"], {}, ["", "a\0b"]),
    "scale_weight_norms": (1, ["--scale_weight_norms", "1"], {}, [0]),
    "base_weights": (None, [], {}, ["none", "/a.safetensors"]),
    "base_weights_multiplier": (0.75, ["--base_weights_multiplier", "0.75"], {}, [float("nan")]),
    "text_encoder_batch_size": (4, ["--batch_size", "4"], {}, [0]),
    "max_data_loader_n_workers": (0, ["--max_data_loader_n_workers", "0"], {}, [-1]),
    "persistent_data_loader_workers": flag_row("persistent_data_loader_workers"),
    "compile": flag_row("compile"),
    "compile_backend": ("eager", ["--compile_backend", "eager"], {"compile": True}, [""]),
    "compile_mode": ("max-autotune", ["--compile_mode", "max-autotune"], {"compile": True}, ["fast"]),
    "compile_dynamic": ("auto", ["--compile_dynamic", "auto"], {"compile": True}, ["True"]),
    "compile_fullgraph": flag_row("compile_fullgraph", compile=True),
    "compile_cache_size_limit": whole_row("compile_cache_size_limit", 1, compile=True),
    "cuda_allow_tf32": flag_row("cuda_allow_tf32"),
    "cuda_cudnn_benchmark": flag_row("cuda_cudnn_benchmark"),
    "save_every_n_steps": whole_row("save_every_n_steps", 1),
    "save_every_n_epochs": whole_row("save_every_n_epochs", 1),
    "save_last_n_steps": whole_row("save_last_n_steps", 1, save_every_n_steps=1),
    "save_last_n_epochs": whole_row("save_last_n_epochs", 1, save_every_n_epochs=1),
    "save_state": flag_row("save_state"),
    "save_state_on_train_end": flag_row("save_state_on_train_end"),
    "save_last_n_steps_state": whole_row("save_last_n_steps_state", 1, save_every_n_steps=1, save_state=True),
    "save_last_n_epochs_state": whole_row("save_last_n_epochs_state", 1, save_every_n_epochs=1, save_state=True),
    "resume": ("/state", ["--resume", "/state"], {}, [""]),
    "sample_prompts": ("/p.toml", ["--sample_prompts", "/p.toml"], {"sample_at_first": True}, ["/p.csv", "/p.TXT"]),
    "sample_every_n_steps": whole_row("sample_every_n_steps", 1, **SAMPLES),
    "sample_every_n_epochs": whole_row("sample_every_n_epochs", 1, **SAMPLES),
    "sample_at_first": flag_row("sample_at_first", **SAMPLES),
    "logging_dir": ("/logs", ["--logging_dir", "/logs"], {}, [""]),
    "log_with": ("all", ["--log_with", "all"], {"logging_dir": "/logs"}, ["mlflow"]),
    "log_prefix": text_row("log_prefix"),
    "log_tracker_name": text_row("log_tracker_name"),
    "log_tracker_config": ("/c.toml", ["--log_tracker_config", "/c.toml"], {}, [""]),
    "wandb_run_name": text_row("wandb_run_name"),
    "log_config": flag_row("log_config"),
    "training_comment": ("--odd", ["--training_comment=--odd"], {}, [""]),
    "no_metadata": flag_row("no_metadata"),
    **{
        f"metadata_{name}": text_row(f"metadata_{name}")
        for name in ("title", "author", "description", "license", "tags", "reso", "arch")
    },
    "ddp_timeout": whole_row("ddp_timeout", 1),
    "ddp_gradient_as_bucket_view": flag_row("ddp_gradient_as_bucket_view"),
    "ddp_static_graph": flag_row("ddp_static_graph"),
    "extra_args": (
        ["--guidance_scale", "-0.5", "--async_upload"],
        ["--guidance_scale", "-0.5", "--async_upload"],
        {},
        [
            ["value"],
            ["-x"],
            *(
                [f"--{name}", "x"]
                for name in (
                    *("dit", "vae", "text_encoder", "base_weights", "dataset_config", "output_dir", "output_name"),
                    *(
                        "max_train_steps",
                        "seed",
                        "sdpa",
                        "sage_attn",
                        "help",
                        "show_timesteps",
                        "learning_rate",
                        "resume",
                    ),
                    *("wandb_api_key", "huggingface_token", "resume_from_huggingface"),
                    # What argparse would take for one of them.
                    *("learning_rat", "see", "dataset-config"),
                )
            ),
            ["--output_dir=/elsewhere"],
            ["--async_upload", "--seed=1"],
        ],
    ),
}

LAUNCH_ROWS: dict[str, Row] = {
    "num_cpu_threads_per_process": whole_row("num_cpu_threads_per_process", 1),
    "num_processes": (1, ["--num_processes", "1"], {}, [0]),
    "gpu_ids": ([1, 3], ["--gpu_ids", "1,3"], {}, [[], [0, 0], [-1], "0", ""]),
    "num_machines": (1, ["--num_machines", "1"], {}, [0]),
    "machine_rank": (0, ["--machine_rank", "0"], {}, [-1]),
    "main_process_ip": ("10.0.0.1", ["--main_process_ip", "10.0.0.1"], {}, [""]),
    "main_process_port": (29501, ["--main_process_port", "29501"], {}, [-1, 65536]),
    "config_file": ("/c.yaml", ["--config_file", "/c.yaml"], {}, [""]),
    "extra_args": (
        ["--rdzv_backend", "c10d"],
        ["--rdzv_backend", "c10d"],
        {},
        [["x"], ["-m"], ["--module"], ["--mixed_precision", "no"], ["--num-processes=2"], ["--multi_gpu"], ["--num_m"]],
    ),
}

CASES = [(TrainingOptions, name, row) for name, row in ROWS.items()] + [
    (LaunchOptions, name, row) for name, row in LAUNCH_ROWS.items()
]
EACH = pytest.mark.parametrize(
    ("kind", "name", "row"), CASES, ids=[f"{kind.__name__}.{name}" for kind, name, _ in CASES]
)


def test_every_field_has_its_row_and_its_line_in_the_documentation() -> None:
    for kind, rows in ((TrainingOptions, ROWS), (LaunchOptions, LAUNCH_ROWS)):
        names = [one.name for one in dataclasses.fields(kind)]
        assert sorted(names) == sorted(rows)
        documented = re.findall(r"^        (\w+): ", str(kind.__doc__).partition("Raises:")[0], re.MULTILINE)
        assert sorted(documented) == sorted(names)


@EACH
def test_what_a_field_takes_becomes_its_words(kind: type[Any], name: str, row: Row) -> None:
    value, words, needs, _ = row
    made = kind(**(needs | {name: value}))

    def said(options: Any) -> list[str]:
        if kind is LaunchOptions:
            return list(options._launch_words("bf16"))
        # The words of the script that caches captions come to those of the training.
        return [*options._training_words(["--here_steps"], ["--here_output"]), *options._text_cache_words()]

    found = said(made)
    assert any(found[place : place + len(words)] == words for place in range(len(found)))
    if words:
        # By this field, and by nothing else.
        assert found.count(words[0]) == 1 + (name == "fp8_llm")
    if all(word in said(kind()) for word in words):
        assert value == kind.__dataclass_fields__[name].default or name == "base_weights"
    assert [word for word in found if word.startswith("--here_")] == (
        [] if kind is LaunchOptions else ["--here_steps", "--here_output"]
    )


@EACH
def test_what_a_field_does_not_take_is_refused_by_name_value_and_range(kind: type[Any], name: str, row: Row) -> None:
    _, _, needs, out_of_range = row
    of_another_type: list[Any] = [object(), b"1", len, 1j]
    taken = {kind.__dataclass_fields__[name].type, *get_args(kind.__dataclass_fields__[name].type)}
    of_another_type += [] if bool in taken else [True]
    if str not in taken and taken & {int, float, bool}:
        of_another_type += ["1", [1]]
    if bool in taken:
        of_another_type += [0, 1, None]
    for value, error in [(value, TypeError) for value in of_another_type] + [
        (value, ValueError) for value in out_of_range
    ]:
        with pytest.raises(error) as raised:
            kind(**(needs | {name: value}))
        message = str(raised.value)
        assert message.startswith(kind.__name__), message
        assert name in message, message
        if name != "extra_args":
            assert f"{kind.__name__}.{name}={value!r}: expected " in message


CONTRADICTIONS: list[tuple[type[Any], dict[str, Any], list[str]]] = [
    (TrainingOptions, {"fp8_scaled": True, "base_weights": None}, ["fp8_scaled", "fp8_base"]),
    (TrainingOptions, {"fp8_scaled": True, "fp8_base": True}, ["fp8_scaled", "base_weights=None", "blocks_to_swap"]),
    (TrainingOptions, {"attention": "xformers"}, ["attention", "split_attn"]),
    (
        TrainingOptions,
        {"gradient_checkpointing": False, "gradient_checkpointing_cpu_offload": True},
        ["gradient_checkpointing_cpu_offload", "gradient_checkpointing"],
    ),
    (TrainingOptions, {"use_pinned_memory_for_block_swap": True}, ["use_pinned_memory", "blocks_to_swap"]),
    (TrainingOptions, {"block_swap_h2d_only": True, "blocks_to_swap": 0}, ["block_swap_h2d_only", "blocks_to_swap"]),
    (
        TrainingOptions,
        {"block_swap_h2d_only": True, "blocks_to_swap": 1, "gradient_checkpointing": False},
        ["block_swap_h2d_only", "gradient_checkpointing"],
    ),
    (TrainingOptions, {"block_swap_ring_size": 1}, ["block_swap_ring_size", "block_swap_h2d_only"]),
    (
        TrainingOptions,
        {"persistent_data_loader_workers": True, "max_data_loader_n_workers": 0},
        ["persistent_data_loader_workers", "max_data_loader_n_workers"],
    ),
    (TrainingOptions, {"save_last_n_steps": 1}, ["save_last_n_steps", "save_every_n_steps"]),
    (TrainingOptions, {"save_last_n_epochs": 1}, ["save_last_n_epochs", "save_every_n_epochs"]),
    (TrainingOptions, {"save_last_n_steps_state": 1, "save_every_n_steps": 1}, ["save_state"]),
    (TrainingOptions, {"save_last_n_epochs_state": 1, "save_state": True}, ["save_every_n_epochs"]),
    (TrainingOptions, {"base_weights_multiplier": 1, "base_weights": None}, ["base_weights_multiplier"]),
    (TrainingOptions, {"min_timestep": 500, "max_timestep": 500}, ["min_timestep=500", "max_timestep=500"]),
    (TrainingOptions, {"timestep_sampling": "sigma", "preserve_distribution_shape": True}, ["timestep_sampling"]),
    (TrainingOptions, {"lr_scheduler": "linear", "lr_scheduler_type": "x"}, ["lr_scheduler", "lr_scheduler_type"]),
    (TrainingOptions, {"lr_warmup_steps": 10}, ["lr_warmup_steps", "lr_scheduler"]),
    (TrainingOptions, {"lr_scheduler": "constant", "lr_warmup_steps": 0.1}, ["lr_warmup_steps"]),
    (TrainingOptions, {"lr_scheduler": "cosine_with_min_lr"}, ["lr_scheduler_min_lr_ratio"]),
    (TrainingOptions, {"sample_every_n_steps": 100}, ["sample_every_n_steps", "sample_prompts"]),
    (TrainingOptions, {"sample_prompts": "/p.txt"}, ["sample_every_n_steps", "sample_at_first"]),
    (TrainingOptions, {"log_with": "tensorboard"}, ["log_with", "logging_dir"]),
    (TrainingOptions, {"compile_mode": "default"}, ["compile_mode", "compile"]),
    (LaunchOptions, {"num_machines": 2, "num_processes": 2}, ["machine_rank", "main_process_ip", "main_process_port"]),
    (LaunchOptions, {"num_processes": 3, "num_machines": 2, "machine_rank": 0, "main_process_ip": "h"}, ["num_mach"]),
    (LaunchOptions, {"machine_rank": 1}, ["machine_rank=1", "num_machines=1"]),
    (LaunchOptions, {"gpu_ids": [0], "num_processes": 2}, ["num_processes=2", "gpu_ids"]),
    (
        LaunchOptions,
        {
            "num_machines": 2,
            "num_processes": 2,
            "machine_rank": 0,
            "main_process_ip": "10.0.0.1",
            "main_process_port": 0,
        },
        ["main_process_port=0"],
    ),
]


@pytest.mark.parametrize(
    ("kind", "given", "named"), CONTRADICTIONS, ids=[str(sorted(one[1])) for one in CONTRADICTIONS]
)
def test_fields_that_contradict_each_other_are_named(kind: type[Any], given: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ValueError, match=f"^{kind.__name__}: ") as raised:
        kind(**given)
    assert [name for name in named if name not in str(raised.value)] == []


def test_options_are_values() -> None:
    made = TrainingOptions(network_dim=32, optimizer_args=["weight_decay=0.1"])
    assert made == dataclasses.replace(TrainingOptions(optimizer_args=("weight_decay=0.1",)), network_dim=32)
    assert hash(made) == hash(pickle.loads(pickle.dumps(made)))
    assert isinstance(made, Options)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.network_dim = 8  # type: ignore[misc]
    with pytest.raises(TypeError):
        TrainingOptions("sdpa")  # type: ignore[misc]
    with pytest.raises(ValueError, match="network_dim"):
        dataclasses.replace(made, network_dim=0)


def test_numbers_of_numpy_are_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    made = TrainingOptions(network_dim=numpy.int64(8), learning_rate=numpy.float32(0.5))
    words = made._training_words()
    assert after("--network_dim", words) == ["8"]
    assert after("--learning_rate", words) == ["0.5"]


def test_a_float_is_written_as_people_write_it_and_is_the_same_one() -> None:
    for number, expected in [(2e-4, "2e-4"), (0.0001, "1e-4"), (1.5e-5, "1.5e-5"), (0.001, "0.001"), (16.0, "16")]:
        assert _decimal(number) == expected
    for number in [1 / 3, 1e-7 / 3, 1e300, 5e-324, 123456789.125, 1e16]:
        assert float(_decimal(number)) == number
        assert float(_decimal(-number)) == -number


# ---- Against what the real parsers take -------------------------------------------------------------------------

KINDS = {"int": {"int"}, "float": {"float"}, "str": {"str"}, "steps": {"int", "float", "str"}}


def test_every_field_is_a_flag_of_that_type_and_its_choices_are_the_scripts() -> None:
    flags = RECORDED["zimage_train_network"]
    for name, row in ROWS.items():
        value, words, needs, _ = row
        made = TrainingOptions(**(needs | {name: value}))
        if name in ("text_encoder_batch_size", "base_weights", "extra_args"):
            continue
        flag = flags[words[0].partition("=")[0]]
        taken = getattr(made, name)
        if flag["type"] == "flag":
            assert taken is True or name == "attention", name
        elif "choices" in flag and name != "attention":
            of_literals = [get_args(one) or (one,) for one in (FIELDS[name].type, *get_args(FIELDS[name].type))]
            known = {word for words in of_literals for word in words if isinstance(word, str)}
            assert not known or known == set(flag["choices"]), name
            for choice in flag["choices"]:
                TrainingOptions(**(needs | {name: choice}))
        elif flag.get("nargs"):
            assert isinstance(taken, tuple) or name == "base_weights_multiplier", name
        else:
            assert type(taken).__name__ in KINDS.get(flag["type"], {"str"}), (name, flag)


def test_no_flag_of_the_script_is_out_of_reach() -> None:
    """Each has a field, is decided by the library, or passes through `extra_args`."""
    for flag in RECORDED["zimage_train_network"]:
        name = flag.removeprefix("--")
        if name in FIELDS or name in TrainingOptions._said_elsewhere:
            continue
        TrainingOptions(extra_args=[flag])
    cache = RECORDED["zimage_cache_text_encoder_outputs"]
    assert cache["--batch_size"]["type"] == "int"
    assert cache["--fp8_llm"]["type"] == "flag"


# ---- Presets ----------------------------------------------------------------------------------------------------


def test_presets_say_where_they_come_from_and_what_they_need() -> None:
    presets = TrainingOptions.presets()
    assert list(presets) == ["original", "musubi", "24gb", "16gb", "12gb"]
    for name, preset in presets.items():
        assert isinstance(preset, Preset)
        assert preset.source
        assert preset.needs
        assert TrainingOptions.preset(name) == preset.options  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'8gb'.*'original'.*'auto'"):
        TrainingOptions.preset("8gb")  # type: ignore[arg-type]


def test_the_preset_of_musubi_tuner_is_the_command_in_its_documentation() -> None:
    documented = (
        "--sdpa --mixed_precision bf16 --timestep_sampling shift --weighting_scheme none --discrete_flow_shift 2 "
        "--optimizer_type adamw8bit --learning_rate 1e-4 --gradient_checkpointing --max_data_loader_n_workers 2 "
        "--persistent_data_loader_workers --network_module networks.lora_zimage --network_dim 32 "
        "--max_train_epochs 16 --save_every_n_epochs 1"
    )
    # Its parser's default, where the original says another.
    documented += " --network_alpha 1"
    preset = TrainingOptions.preset("musubi")
    assert sorted(preset._training_words()) == sorted(documented.split())
    assert preset.base_weights is None


def test_less_memory_takes_no_other_training() -> None:
    """They swap blocks, which changes no number, and keep the adapter."""
    for name in ("24gb", "16gb", "12gb"):
        memory = {"blocks_to_swap": None, "fp8_llm": False}
        preset = TrainingOptions.preset(name)  # type: ignore[arg-type]
        assert dataclasses.replace(preset, **memory) == TrainingOptions()  # type: ignore[arg-type]


MEMORY = r"""
struct memory { unsigned int version; unsigned long long total, reserved, free, used; };

static unsigned long long listed(const char *variable, void *device) {
    char text[256];
    strncpy(text, getenv(variable), sizeof text);
    char *word = strtok(text, ",");
    for (size_t index = 1; word && index < (size_t)device; index++) word = strtok(NULL, ",");
    return word ? strtoull(word, NULL, 10) << 20 : 0;
}

int nvmlDeviceGetMemoryInfo_v2(void *device, struct memory *memory) {
    memory->total = listed("NVML_MIB", device);
    memory->free = memory->total / 2;
    return 0;
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned int length) {
    snprintf(uuid, length, "GPU-%zu", (size_t)device);
    return 0;
}
"""

AUTO = """
    from musubitraining import TrainingOptions
    try:
        chosen = TrainingOptions.preset("auto")
        print([name for name, preset in TrainingOptions.presets().items() if preset.options == chosen])
    except RuntimeError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nvml")
    build(STAND_IN + MEMORY, folder)
    return folder


def chosen(nvml: Path, **environment: str) -> str:
    done = run(AUTO, nvml, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@linux
@pytest.mark.parametrize(
    ("mib", "environment", "expected"),
    [
        ("143771", {}, "'original'"),
        ("32607", {}, "'original'"),
        ("24564", {}, "'24gb'"),
        ("23034", {}, "'24gb'"),
        ("16376", {}, "'16gb'"),
        ("15360", {}, "'16gb'"),
        ("12282", {}, "'12gb'"),
        ("8188", {}, "has 8.0 GiB, expected at least 11"),
        # The one that is used is not the first of the driver.
        ("8188,24564", {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1"}, "'24gb'"),
        ("8188,24564", {}, "'24gb'"),
        ("24564,16376", {"CUDA_VISIBLE_DEVICES": "GPU-2"}, "'16gb'"),
        ("24564", {"CUDA_VISIBLE_DEVICES": ""}, "begins with none of the 1 GPUs"),
        ("24564", {"CUDA_VISIBLE_DEVICES": "7"}, "CUDA_VISIBLE_DEVICES=7"),
    ],
)
def test_auto_chooses_by_the_card(nvml: Path, mib: str, environment: dict[str, str], expected: str) -> None:
    environment = {"NVML_COUNT": str(mib.count(",") + 1), "CUDA_VISIBLE_DEVICES": "0", **environment}
    assert expected in chosen(nvml, NVML_MIB=mib, **environment)


@linux
def test_auto_without_a_gpu_says_what_to_do(nvml: Path) -> None:
    for environment in ({"NVML_INIT": "9"}, {"NVML_COUNT": "0"}):
        said = chosen(nvml, NVML_MIB="1", **environment)
        assert 'TrainingOptions.preset("auto")' in said
        assert "nvidia-smi" in said
        assert "name a preset" in said


# ---- Given to a trainer, or to a call ---------------------------------------------------------------------------


def dims(commands: dict[str, list[str]]) -> list[str]:
    return after("--network_dim", commands["train"])


def test_those_of_a_call_go_before_those_of_the_trainer(workspace: Workspace) -> None:
    made = trainer(workspace, options=TrainingOptions(network_dim=4))
    assert dims(train(workspace, made)) == ["4"]
    assert dims(train(workspace, made, options=TrainingOptions(network_dim=8))) == ["8"]
    assert dims(train(workspace, made)) == ["4"]
    made.options = TrainingOptions(network_dim=2)
    assert dims(train(workspace, made)) == ["2"]
    made._launch_training(f"{workspace.training}/dataset.toml")
    assert dims(made.commands) == ["2"]
    made.options = None
    assert dims(train(workspace, made)) == ["16"]


def test_those_of_a_call_that_has_failed_are_gone(workspace: Workspace) -> None:
    made = trainer(workspace)
    with pytest.raises(ValueError, match="seed"):
        train(workspace, made, options=TrainingOptions(network_dim=8), seed=-1)
    assert dims(train(workspace, made)) == ["16"]


def test_a_subclass_with_the_originals_parameters_keeps_working(workspace: Workspace) -> None:
    class Mine(Recording):
        def _launch_training(
            self,
            dataset_toml_path: Any,
            *,
            output_name: str = "output_lora_model",
            max_train_steps: int = 2000,
            seed: int = 42,
        ) -> str:
            return super()._launch_training(
                dataset_toml_path, output_name=output_name, max_train_steps=max_train_steps, seed=seed
            )

        def _pre_cache(self, dataset_toml_path: Any) -> None:
            super()._pre_cache(dataset_toml_path)

    options = TrainingOptions(network_dim=4, text_encoder_batch_size=2, fp8_llm=True)
    commands = train(workspace, trainer(workspace, Mine), options=options)
    assert dims(commands) == ["4"]
    assert commands["precache:text_encoder"][-3:] == ["--batch_size", "2", "--fp8_llm"]


@pytest.mark.parametrize("name", ["options", "launch_options"])
@pytest.mark.parametrize("value", [{}, "fp8", object, TrainingOptions], ids=repr)
def test_what_are_no_options_is_refused_before_anything_is_touched(workspace: Workspace, name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=name):
        train(workspace, **{name: value})
    with pytest.raises(TypeError, match=f"{name}: expected a .*Options from musubitraining, found"):
        trainer(workspace, **{name: value})
    assert is_untouched(workspace)


def test_what_a_subclass_keeps_under_the_same_names_is_its_own(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    class Mine(Recording):
        def __init__(self, **folders: Any) -> None:
            super().__init__(**folders)
            self.options = {"anything": 1}  # type: ignore[assignment]
            self.launch_options = "fast"  # type: ignore[assignment]

    assert train(workspace, trainer(workspace, Mine)) == the_contracts(workspace)
    for said in ("`options` is no TrainingOptions, but a dict", "`launch_options` is no LaunchOptions, but a str"):
        assert sum(said in message for message in caplog.messages) == 1
    assert dims(train(workspace, trainer(workspace, Mine), options=TrainingOptions(network_dim=2))) == ["2"]


def test_without_base_weights_their_file_is_neither_wanted_nor_read(workspace: Workspace) -> None:
    (workspace.models / WEIGHTS[3]).unlink()
    options = TrainingOptions(base_weights=None)
    commands = train(workspace, options=options)
    assert "--base_weights" not in commands["train"]
    # A page of the web in its place is nobody's concern either.
    (workspace.models / WEIGHTS[3]).write_text("<!DOCTYPE html><html>")
    train(workspace, options=options)
    with pytest.raises(RuntimeError, match=WEIGHTS[3]):
        train(workspace)


def test_the_launcher_is_told_the_same_precision(workspace: Workspace) -> None:
    words = train(workspace, options=TrainingOptions(mixed_precision="no"))["train"]
    assert [words[place + 1] for place, word in enumerate(words) if word == "--mixed_precision"] == ["no", "no"]


def test_files_count_from_here_and_must_exist(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.root)
    for name, file in (("network_weights", "l.safetensors"), ("resume", "state"), ("sample_prompts", "p.txt")):
        options = TrainingOptions(**{name: file} | ({"sample_at_first": True} if name == "sample_prompts" else {}))  # type: ignore[arg-type]
        with pytest.raises(FileNotFoundError, match=f"TrainingOptions.{name} not found: {file}"):
            train(workspace, options=options)
    with pytest.raises(FileNotFoundError, match=r"LaunchOptions.config_file not found: c.yaml"):
        train(workspace, launch_options=LaunchOptions(config_file="c.yaml"))
    assert is_untouched(workspace)
    Path("p.txt").touch()
    options = TrainingOptions(sample_prompts=Path("p.txt"), sample_at_first=True, logging_dir="logs")
    words = train(workspace, options=options)["train"]
    assert after("--sample_prompts", words) == [f"{workspace.root}/p.txt"]
    assert after("--logging_dir", words) == [f"{workspace.root}/logs"]


def test_what_may_surprise_is_said(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    train(workspace, options=TrainingOptions(max_train_epochs=3, resume=workspace.models))
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("max_train_epochs=3 decides" in line for line in said)
    assert any("resume: steps are counted from 0" in line for line in said)


def test_the_options_are_not_imported_before_they_are_needed() -> None:
    code = (
        "import sys; from musubitraining.main import Models, MusubiTraining; Models();"
        "assert 'musubitraining.training_options' not in sys.modules;"
        "from musubitraining import TrainingOptions; import musubitraining as m; assert 'LaunchOptions' in dir(m)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- Several processes ------------------------------------------------------------------------------------------

TWO_MACHINES = LaunchOptions(
    num_processes=4,
    num_machines=2,
    machine_rank=1,
    main_process_ip="10.0.0.1",
    main_process_port=29501,
    gpu_ids=(0, 1),
    extra_args=["--rdzv_backend", "c10d"],
)


@pytest.mark.parametrize(
    ("options", "further"),
    [
        (LaunchOptions(num_processes=1), "--num_processes 1"),
        (LaunchOptions(num_processes=2, main_process_port=0), "--multi_gpu --num_processes 2 --main_process_port 0"),
        (LaunchOptions(gpu_ids=[3]), "--num_processes 1 --gpu_ids 3"),
        (LaunchOptions(gpu_ids=(1, 0)), "--multi_gpu --num_processes 2 --gpu_ids 1,0"),
        (LaunchOptions(gpu_ids="all"), "--gpu_ids all"),
        # It may say another kind than several GPUs.
        (LaunchOptions(num_processes=2, config_file="/c.yaml"), "--num_processes 2 --config_file /c.yaml"),
        (
            TWO_MACHINES,
            "--multi_gpu --num_processes 4 --gpu_ids 0,1 --num_machines 2 --machine_rank 1 --main_process_ip 10.0.0.1 "
            "--main_process_port 29501 --rdzv_backend c10d",
        ),
    ],
    ids=str,
)
def test_the_launcher_is_told_of_gpus_processes_and_machines(options: LaunchOptions, further: str) -> None:
    default = ["--num_cpu_threads_per_process", "1", "--mixed_precision", "bf16"]
    assert options._launch_words("bf16") == [*default, *further.split()]


def on_one(work: Work) -> str:
    from musubitraining import LaunchOptions

    return work.train(launch_options=LaunchOptions())


def on_two(work: Work) -> str:
    from musubitraining import LaunchOptions

    return work.train(launch_options=LaunchOptions(num_processes=2))


def on_two_from_a_warm_interpreter(work: Work) -> str:
    from musubitraining import LaunchOptions

    return work.train(launch_options=LaunchOptions(num_processes=2), warm_start=True)


@pytest.mark.parametrize(
    ("scenario", "as_written"),
    [(on_one, False), (on_two, True), (on_two_from_a_warm_interpreter, True)],
)
def test_a_launcher_of_several_processes_is_run_as_written(
    bench: Bench, scenario: Callable[[Work], str], as_written: bool
) -> None:
    workspace = bench.workspace()
    install_accelerate(workspace.root / "site", as_the_real_one=True)
    launcher = workspace.root / "site/accelerate/commands/launch.py"
    text = launcher.read_text()
    # A switch takes no value.
    text = text.replace(
        "        options[", '        if words[0] == "--multi_gpu":\n            del words[0]\n        options['
    )
    run_by = 'print("accelerate:", os.path.basename(sys.modules["__main__"].__file__), sys.argv[1:]'
    launcher.write_text(text.replace('print("accelerate: one process"', run_by))
    ran: Run = workspace.run(OURS, scenario).ok()
    (said,) = ran.logged("accelerate: ")
    assert said.startswith(f"[train] accelerate: {'launch.py' if as_written else 'step_interpreter.py'} [")
    assert ("'--multi_gpu', '--num_processes', '2'" in said) == as_written
    assert [call["step"] for call in ran.calls].count(TRAIN) == 1
    assert bool(ran.logged("no warm start for the training: its launcher is told of")) == (
        scenario is on_two_from_a_warm_interpreter
    )


# ---- What the clone at hand takes -------------------------------------------------------------------------------


def declared(flags: dict[str, dict[str, Any]]) -> str:
    """A helper that declares flags as a real clone does."""
    lines = []
    for flag, facts in flags.items():
        words = [repr(flag)]
        if facts["type"] == "flag":
            words.append('action="store_true"')
        else:
            words.append(f"type={facts['type'].replace('Path', 'pathlib.Path')}")
        words += [f"{key}={facts[key]!r}" for key in ("choices", "nargs", "required") if key in facts]
        words.append('help="not --this, (or that"')
        lines.append(f"    parser.add_argument(  # {flag}\n        " + ",\n        ".join(words) + ",\n    )\n")
    return "".join(lines)


def clone(workspace: Workspace, version: str = "0.3.4", *, old: bool = False, without: tuple[str, ...] = ()) -> Path:
    """Make of the stub a clone with parsers of the recorded facts, in the files where a real one has them."""
    root = workspace.tuner.root
    package = root / "src/musubi_tuner"
    (root / "pyproject.toml").write_text(f'[project]\nname = "musubi-tuner"\nversion = "{version}"\n')
    for script, shared in (
        (TRAIN, "hv_train_network.py" if old else "training/parser_common.py"),
        (TEXT, "cache_text_encoder_outputs.py"),
    ):
        flags = {flag: facts for flag, facts in RECORDED[Path(script).stem].items() if flag not in without}
        own = {flag: flags.pop(flag) for flag in ("--text_encoder", "--fp8_llm", "--fp8_scaled") if flag in flags}
        (package / shared).parent.mkdir(exist_ok=True)
        (package / shared).write_text(
            f"def setup_parser_common():\n    parser = argparse.ArgumentParser()\n{declared(flags)}    return parser\n"
        )
        (package / script).write_text(
            f"def own_parser(parser):\n{declared(own)}    return parser\n\n\n"
            "def main():\n    parser = own_parser(setup_parser_common())\n    args = parser.parse_args()\n"
        )
        with open(root / script, "a") as wrapper:
            wrapper.write(f"\n# from musubi_tuner.{Path(script).stem} import main\n")
    return package


@pytest.mark.parametrize("old", [False, True])
def test_a_clone_that_has_all_flags_takes_all_options(workspace: Workspace, old: bool) -> None:
    clone(workspace, old=old)
    of_a_file = {"network_weights", "resume", "sample_prompts", "log_tracker_config"}
    toml = workspace.root / "dataset.toml"
    toml.touch()
    for name, (value, _, needs, _) in ROWS.items():
        needs = needs | {name: value}
        if not of_a_file & needs.keys():
            made = trainer(workspace, options=TrainingOptions(**needs))
            made._launch_training(toml)
            made._pre_cache(toml)
    # Of the recorded facts, so that the next test's refusals are not for nothing.
    with pytest.raises(ValueError, match="has no --no_such_flag"):
        train(workspace, options=TrainingOptions(extra_args=["--no_such_flag", "1"]))


@pytest.mark.parametrize(
    ("options", "without", "part"),
    [
        ({"save_precision": "bf16"}, ("--save_precision",), "has no --save_precision"),
        ({"fp8_llm": True}, ("--fp8_llm",), "has no --fp8_llm"),
        ({"extra_args": ["--block_size", "1"]}, (), "has no --block_size"),
        ({"extra_args": ["--dynamo_mode", "fast"]}, (), "takes one of default, reduce-overhead, max-autotune for"),
        ({"extra_args": ["--guidance_scale", "much"]}, (), 'takes a number for --guidance_scale, not "much"'),
        ({"extra_args": ["--guidance_scale"]}, (), "takes one value for --guidance_scale, not 0"),
        ({"extra_args": ["--async_upload", "yes"]}, (), 'takes no value for --async_upload, not "yes"'),
        ({"network_module": "networks.lokr"}, (), "has no network module networks.lokr"),
    ],
    ids=str,
)
def test_what_a_clone_lacks_is_named_before_anything_is_touched(
    workspace: Workspace, options: dict[str, Any], without: tuple[str, ...], part: str
) -> None:
    package = clone(workspace, "0.2.15", old=True, without=without)
    (package / "networks/lora_zimage.py").touch()
    for attempt in (
        lambda: train(workspace, options=TrainingOptions(**options)),
        lambda: train(workspace, trainer(workspace, options=TrainingOptions(**options)), use_pre_cache=False),
    ):
        with pytest.raises(ValueError, match=re.escape(part)) as raised:
            attempt()
        assert "(version 0.2.15)" in str(raised.value)
        assert str(workspace.tuner.root) in str(raised.value)
        assert "Change them, or use a Musubi Tuner that takes it" in str(raised.value)
    assert is_untouched(workspace)


def test_the_script_that_caches_captions_is_judged_by_its_own_parser(workspace: Workspace) -> None:
    package = clone(workspace)
    text = (package / TEXT).read_text()
    assert "'--fp8_llm'" in text
    (package / TEXT).write_text(text.replace("'--fp8_llm'", "'--fp8_of_another_name'"))
    made = trainer(workspace, options=TrainingOptions(fp8_llm=True))
    with pytest.raises(ValueError, match=f"{TEXT} of the Musubi Tuner in .* has no --fp8_llm"):
        train(workspace, made)
    assert is_untouched(workspace)
    train(workspace, made, use_pre_cache=False)


def test_a_call_without_options_is_not_judged(workspace: Workspace) -> None:
    clone(workspace, without=("--gradient_checkpointing", "--fp8_llm"))
    train(workspace)


SHARED = "training/parser_common.py"


def replaced(file: str, part: str, by: str) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        text = (package / file).read_text()
        assert part in text
        (package / file).write_text(text.replace(part, by))

    return change


SPOILT: dict[str, Callable[[Path], object]] = {
    "no script": lambda package: (package / TRAIN).unlink(),
    "no text": lambda package: (package / TRAIN).write_bytes(b"\xff\xfe not text"),
    "a stub": lambda package: (package / TRAIN).write_text("print('a stub')"),
    "nothing shared": lambda package: (package / SHARED).write_text(""),
    "flags may come from elsewhere": replaced(TRAIN, "own_parser(setup", "of_others(parser, setup"),
    "flags are declared in another way": replaced(SHARED, "'--sdpa'", "SDPA"),
    "no Python": replaced(SHARED, ",\n    )", ""),
    "the script parses for itself": replaced(f"../../{TRAIN}", "# from musubi_tuner", "# "),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_clone_whose_parser_cannot_be_read_is_not_accused(
    workspace: Workspace, spoil: Callable[[Path], object]
) -> None:
    options = TrainingOptions(extra_args=["--no_such_flag", "1"])
    package = clone(workspace)
    with pytest.raises(ValueError, match="has no --no_such_flag"):
        train(workspace, options=options)
    spoil(package)
    assert after("--no_such_flag", train(workspace, options=options)["train"]) == ["1"]


def test_the_demo_and_stubs_take_everything(workspace: Workspace) -> None:
    options = TrainingOptions(save_precision="bf16", extra_args=["--no_such_flag"])
    assert "--no_such_flag" in train(workspace, options=options)["train"]


def trained_with_options(work: Work) -> str:
    from musubitraining import LaunchOptions, TrainingOptions

    options = TrainingOptions(network_dim=4, training_comment="-- a comment", metadata_title="日本 'x'")
    return work.train(options=options, launch_options=LaunchOptions(num_cpu_threads_per_process=2))


def test_words_arrive_at_the_scripts_as_they_were_given(bench: Bench) -> None:
    ran = bench.workspace().run(OURS, trained_with_options).ok()
    (argv,) = ran.argv(TRAIN)
    assert after("--network_dim", argv) == ["4"]
    assert "--training_comment=-- a comment" in argv
    assert after("--metadata_title", argv) == ["日本 'x'"]
    assert ran.logged("--num_cpu_threads_per_process 2 --mixed_precision bf16 <work>/musubi/")
