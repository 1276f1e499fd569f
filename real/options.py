"""Asks the real scripts' own parsers whether every option exists, and what they make of our words.

usage: python options.py MUSUBI_TUNER_DIR WORK

with the small weights of compare.py in WORK and the library on PYTHONPATH. The oracle is each script's `--help`, and
the parser that it builds in a process of its own: it is given our words, and gives back what it has understood.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from musubitraining import LaunchOptions, Models, MusubiTraining, TrainingOptions

HERE = Path(__file__).resolve().parent
LAUNCHER = "accelerate.commands.launch"
TRAIN = "zimage_train_network.py"
TEXT = "zimage_cache_text_encoder_outputs.py"

# Runs a script or module up to the point where it parses, and lets its parser parse each of the lists on stdin.
ORACLE = """\
import argparse, json, runpy, sys
class Parsing(BaseException): pass
def stop(parser, *_, **__): raise Parsing(parser)
parse, argparse.ArgumentParser.parse_args = argparse.ArgumentParser.parse_args, stop
script = sys.argv.pop(1)
try:
    (runpy.run_path if script.endswith(".py") else runpy.run_module)(script, run_name="__main__")
except Parsing as parsing:
    (parser,) = parsing.args
argparse.ArgumentParser.parse_args = parse
type_of = lambda action: "flag" if action.nargs == 0 else getattr(action.type, "__name__", "str")
flags = {flag: [type_of(action), action.choices and list(action.choices)]
         for action in parser._actions for flag in action.option_strings}
given = json.load(sys.stdin)
print(json.dumps([flags, [vars(parse(parser, words)) for words in given]], default=str))
"""

# Together they set every field to something else than its default.
TRAININGS = (
    TrainingOptions(),
    *(preset.options for preset in TrainingOptions.presets().values()),
    TrainingOptions(
        attention="xformers",
        split_attn=True,
        use_32bit_attention=True,
        mixed_precision="fp16",
        save_precision="bf16",
        fp8_base=True,
        fp8_scaled=True,
        fp8_llm=True,
        base_weights=None,
        blocks_to_swap=28,
        use_pinned_memory_for_block_swap=True,
        block_swap_h2d_only=True,
        block_swap_ring_size=1,
        gradient_checkpointing_cpu_offload=True,
        gradient_accumulation_steps=2,
        timestep_sampling="logsnr",
        discrete_flow_shift=2.5,
        sigmoid_scale=0.5,
        weighting_scheme="logit_normal",
        logit_mean=-1e-5,
        logit_std=1.5,
        mode_scale=-1.0,
        min_timestep=1,
        max_timestep=999,
        preserve_distribution_shape=True,
        num_timestep_buckets=4,
        optimizer_type="AdamW",
        optimizer_args=("betas=(0.9,0.99)", "eps=1e-8"),
        learning_rate=1 / 3e5,
        max_grad_norm=0,
        lr_scheduler="cosine_with_min_lr",
        lr_scheduler_args=("last_epoch=-1",),
        lr_warmup_steps="5%",
        lr_decay_steps=0.1,
        lr_scheduler_num_cycles=2,
        lr_scheduler_power=0.5,
        lr_scheduler_timescale=10,
        lr_scheduler_min_lr_ratio=0.1,
        max_train_epochs=3,
        network_module="networks.lokr",
        network_dim=4,
        network_alpha=0.5,
        network_args=("exclude_patterns=['.*a.*']",),
        network_dropout=0.1,
        network_weights="lora.safetensors",
        scale_weight_norms=1,
        text_encoder_batch_size=4,
        max_data_loader_n_workers=2,
        persistent_data_loader_workers=True,
        compile=True,
        compile_backend="eager",
        compile_mode="max-autotune",
        compile_dynamic="false",
        compile_fullgraph=True,
        compile_cache_size_limit=32,
        cuda_allow_tf32=True,
        cuda_cudnn_benchmark=True,
        save_every_n_steps=10,
        save_every_n_epochs=1,
        save_last_n_steps=30,
        save_last_n_epochs=2,
        save_state=True,
        save_state_on_train_end=True,
        save_last_n_steps_state=10,
        save_last_n_epochs_state=1,
        resume="state",
        sample_prompts="prompts.txt",
        sample_every_n_steps=10,
        sample_every_n_epochs=1,
        sample_at_first=True,
        logging_dir="logs",
        log_with="all",
        log_prefix="p",
        log_tracker_name="n",
        log_tracker_config="c.toml",
        wandb_run_name="--odd",
        log_config=True,
        training_comment="-1 and more",
        no_metadata=True,
        metadata_title="é",
        metadata_author="a",
        metadata_description="two words",
        metadata_license="MIT",
        metadata_tags="a,b",
        metadata_reso="1024,1024",
        metadata_arch="x",
        ddp_timeout=10,
        ddp_gradient_as_bucket_view=True,
        ddp_static_graph=True,
        extra_args=("--guidance_scale", "-0.5", "--async_upload"),
    ),
    TrainingOptions(gradient_checkpointing=False, base_weights_multiplier=-0.5, lr_scheduler_type="StepLR"),
)
LAUNCHES = (
    LaunchOptions(),
    LaunchOptions(num_cpu_threads_per_process=2, gpu_ids="all", config_file="c.yaml"),
    LaunchOptions(
        num_processes=4,
        gpu_ids=(0, 1),
        num_machines=2,
        machine_rank=1,
        main_process_ip="10.0.0.1",
        main_process_port=29501,
        extra_args=("--rdzv_backend", "c10d"),
    ),
)
# Whether merging an adapter changes what a layer gives, in bf16 and in scaled 8 bits.
LOST_ADAPTER = """\
import sys, torch
from musubi_tuner.networks import lora_zimage
from musubi_tuner.zimage import zimage_model
from safetensors.torch import load_file
dit, adapter = sys.argv[1:]
def output(scaled, merged):
    kind = None if scaled else torch.bfloat16
    model = zimage_model.load_zimage_model("cpu", dit, "torch", False, "cpu", kind, fp8_scaled=scaled)
    if merged:
        weights = load_file(adapter)
        network = lora_zimage.create_arch_network_from_weights(1.0, weights, unet=model, for_inference=True)
        network.merge_to(None, model, weights, torch.bfloat16, "cpu")
    layer = model.layers[0].attention.to_q
    return layer(torch.ones(1, layer.in_features, dtype=torch.bfloat16))
for scaled in (False, True):
    print(bool((output(scaled, True) != output(scaled, False)).any()))
"""


class Scripts:
    """The real scripts, each asked in a process of its own."""

    def __init__(self, musubi: Path) -> None:
        """Ask nothing yet."""
        self.musubi = musubi
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "HF_"))}
        self.environment = kept | {
            "PYTHONPATH": os.pathsep.join([str(HERE / "small"), str(musubi / "src")]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "COLUMNS": "10000",
        }

    def run(self, *words: object, said: str = "") -> str:
        """What a Python program prints."""
        done = subprocess.run(
            [sys.executable, *map(str, words)], env=self.environment, input=said, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{words}: {done.stderr}")
        return done.stdout

    def oracle(self, script: str, given: list[list[str]]) -> tuple[dict[str, list[Any]], list[dict[str, Any]]]:
        """Each flag with its type and choices, and what the parser makes of each list of words."""
        program = self.musubi / script if script.endswith(".py") else script
        flags, understood = json.loads(self.run("-c", ORACLE, program, said=json.dumps(given)).splitlines()[-1])
        return flags, understood

    def help(self, script: str) -> dict[str, str]:
        """Each flag with what `--help` shows behind it: nothing for a switch, `{a,b}` for choices."""
        program = [self.musubi / script] if script.endswith(".py") else ["-m", script]
        usage = self.run(*program, "--help").partition("usage:")[2].partition("\n\n")[0]
        shown = re.findall(r"(--[\w-]+)(?: ((?:\[[^\]]*\]|\{[^}]*\}|[^\]\s|])+))?", " ".join(usage.split()))
        return {flag.replace("-", "_").replace("__", "--", 1): value for flag, value in shown}


class Report:
    """The verdicts."""

    wrong = 0

    def say(self, what: str, faults: list[str]) -> None:
        """Print one."""
        self.wrong += bool(faults)
        print(f"  {'WRONG' if faults else 'right'}  {what}")
        for fault in faults:
            print(f"         {fault}")


def flag_of(name: str, value: Any) -> str:
    """The flag that says a field."""
    return f"--{value}" if name == "attention" else f"--{name}"


def expected_type(value: Any) -> set[str]:
    """What the parser may call the type of such a value."""
    if isinstance(value, bool):
        return {"flag"}
    if isinstance(value, int):
        return {"int", "_int_or_float", "int_or_float"}
    return {"float", "_int_or_float", "int_or_float"} if isinstance(value, float) else {"str", "_int_or_float"}


def differences(options: Any, understood: dict[str, Any], script: str) -> list[str]:
    """The fields that the parser has understood to be something else."""
    faults = []
    for one in dataclasses.fields(options):
        name, value = one.name, getattr(options, one.name)
        if value in (None, False, ()) or name in ("extra_args", "base_weights", "text_encoder_batch_size"):
            continue
        found = understood.get(value if name == "attention" else name)
        if name == "attention":
            wanted: Any = True
        elif one.metadata.get("is_path"):
            wanted = os.path.abspath(value)
        elif name == "gpu_ids":
            wanted = value if value == "all" else ",".join(map(str, value))
        elif name == "base_weights_multiplier":
            wanted = [value]
        elif isinstance(value, str) and value.endswith("%"):
            wanted = float(value[:-1]) / 100
        else:
            wanted = list(value) if isinstance(value, tuple) else value
        if found != wanted:
            faults.append(f"{script}: {name}={value!r} is understood as {found!r}")
    return faults


def check(
    report: Report, scripts: Scripts, script: str, made: tuple[Any, ...], given: list[list[str]]
) -> dict[str, Any]:
    """Hold the fields of options against the help and the parser of a script."""
    flags, understood = scripts.oracle(script, given)
    shown = scripts.help(script)
    missing, types = [], []
    for options in made:
        for one in dataclasses.fields(options):
            name, value = one.name, getattr(options, one.name)
            if value in (None, ()) or name in ("extra_args", "text_encoder_batch_size"):
                continue
            flag = flag_of(name, value)
            if flag not in shown or flag not in flags:
                missing.append(flag)
                continue
            of_one = value[0] if isinstance(value, tuple) else value
            of_one = ",".join(map(str, value)) if name == "gpu_ids" else True if name == "attention" else of_one
            if flags[flag][0] not in expected_type(of_one):
                types.append(f"{flag}: {of_one!r}, but the parser's type is {flags[flag][0]}")
            if (shown[flag] == "") != isinstance(of_one, bool):
                types.append(f"{flag}: {of_one!r}, but --help shows {shown[flag] or 'a switch'}")
            choices = flags[flag][1]
            if choices and shown[flag] != "{" + ",".join(choices) + "}":
                types.append(f"{flag}: its choices are {choices}, but --help shows {shown[flag]}")
    unset = {one.name for one in dataclasses.fields(made[0])}
    unset -= {
        one.name for other in made[1:] for one in dataclasses.fields(other) if other.__dict__[one.name] != one.default
    }
    report.say(f"{script}: every field is tried", sorted(unset))
    report.say(f"{script}: every field is in --help", sorted(set(missing)))
    report.say(f"{script}: every field has the type of its flag", sorted(set(types)))
    faults = [fault for one, found in zip(made, understood, strict=True) for fault in differences(one, found, script)]
    report.say(f"{script}: every value arrives as it was given", faults)
    return flags


class Recording(MusubiTraining):
    """Trains nothing: what it is to run is not run."""

    def _run_cmd(self, step: str, cmd: Any, *, cwd: Any) -> None:
        return


def read_as_text(musubi: Path, work: Path, flags: dict[str, Any]) -> list[str]:
    """Let the library, which reads the source, judge all flags that the real parser has, and one that it has not."""
    folder = work / "options"
    folder.mkdir(exist_ok=True)
    toml = folder / "dataset.toml"
    toml.touch()

    def objection(*words: str) -> str:
        trainer = Recording(work / "small/models", Models(), folder, folder, musubi)
        try:
            trainer.options = TrainingOptions(extra_args=words)
            trainer._launch_training(toml)
        except ValueError as error:
            return str(error)
        return ""

    faults = []
    for flag, (kind, choices) in flags.items():
        value = [] if kind == "flag" else [choices[0] if choices else "1"]
        said = objection(flag, *value) if flag.startswith("--") else ""
        if said and not said.startswith("TrainingOptions: extra_args"):
            faults.append(f"{flag} {value} is refused: {said}")
    if "has no --no_such_flag" not in objection("--no_such_flag", "1"):
        faults.append("--no_such_flag is taken: the clone's parser cannot be read")
    return faults


def main() -> None:
    """Ask everything."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    musubi, work = (Path(argument).resolve() for argument in sys.argv[1:])
    report, scripts = Report(), Scripts(musubi)
    print("options against the real parsers")
    flags = check(report, scripts, TRAIN, TRAININGS, [options._training_words() for options in TRAININGS])
    launched = [[*options._launch_words("bf16"), "script.py"] for options in LAUNCHES]
    check(report, scripts, LAUNCHER, LAUNCHES, launched)
    needed = ["--dataset_config", "x", "--text_encoder", "x"]
    _, cached = scripts.oracle(TEXT, [needed + options._text_cache_words() for options in TRAININGS])
    faults = [
        f"{options.text_encoder_batch_size}, {options.fp8_llm}: {found}"
        for options, found in zip(TRAININGS, cached, strict=True)
        if (found["batch_size"], found["fp8_llm"]) != (options.text_encoder_batch_size, options.fp8_llm)
    ]
    report.say(f"{TEXT}: batch size and fp8 arrive", faults)
    report.say("the clone's parser, read as text, has the flags of the real one", read_as_text(musubi, work, flags))
    models = Models()
    paths = [work / "small/models" / name for name in (models.DiT, models.base_weights)]
    counts = scripts.run("-c", LOST_ADAPTER, *paths).split()[-2:]
    report.say(
        "base weights count in bf16, and are lost in scaled 8 bits",
        [] if counts == ["True", "False"] else [f"whether merging changes the output: {counts}"],
    )
    sys.exit(bool(report.wrong))


if __name__ == "__main__":
    main()
