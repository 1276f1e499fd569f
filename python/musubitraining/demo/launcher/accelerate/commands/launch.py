"""`python -m accelerate.commands.launch [flags] script [arguments]` for one process on a CPU.

It knows accelerate 1.6's flags for that, sets the environment accelerate sets, and ends as accelerate ends: with 0, or,
whatever the script ended with, with 1 and a traceback whose last line tells.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

_DYNAMO_BACKENDS = (
    "no", "eager", "aot_eager", "inductor", "aot_ts_nvfuser", "nvprims_nvfuser", "cudagraphs", "ofi", "fx2trt",
    "onnxrt", "tensorrt", "aot_torchxla_trace_once", "torchxla_trace_once", "ipex", "tvm",
)  # fmt: skip


def setup_parser() -> argparse.ArgumentParser:
    """The launcher's parser; every flag may be written with `-` or `_`."""
    parser = argparse.ArgumentParser("Accelerate launch command", allow_abbrev=False)

    def add(name: str, **options: object) -> None:
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        parser.add_argument(*spellings, dest=name, **options)  # type: ignore[arg-type]

    for switch in ("cpu", "multi_gpu", "debug", "quiet", "enable_cpu_affinity", "same_network"):
        add(switch, action="store_true")
    for switch in ("dynamo_use_fullgraph", "dynamo_use_dynamic"):
        add(switch, action="store_true")
    for text in ("config_file", "gpu_ids", "main_process_ip"):
        add(text)
    for number in ("num_processes", "num_machines", "num_cpu_threads_per_process", "machine_rank", "main_process_port"):
        add(number, type=int)
    add("mixed_precision", choices=("no", "fp16", "bf16", "fp8"))
    add("dynamo_backend", type=str.lower, choices=_DYNAMO_BACKENDS, default="no")
    add("dynamo_mode", choices=("default", "reduce-overhead", "max-autotune"), default="default")
    parser.add_argument("training_script")
    parser.add_argument("training_script_args", nargs=argparse.REMAINDER)
    return parser


def environment(args: argparse.Namespace) -> dict[str, str]:
    """The script's environment."""
    added = {
        "ACCELERATE_USE_CPU": str(args.cpu),
        "ACCELERATE_MIXED_PRECISION": args.mixed_precision or "no",
        "ACCELERATE_DYNAMO_BACKEND": args.dynamo_backend.upper(),
        "ACCELERATE_DYNAMO_MODE": args.dynamo_mode,
        "ACCELERATE_DYNAMO_USE_FULLGRAPH": str(args.dynamo_use_fullgraph),
        "ACCELERATE_DYNAMO_USE_DYNAMIC": str(args.dynamo_use_dynamic),
        "OMP_NUM_THREADS": str(args.num_cpu_threads_per_process or 1),
    }
    return os.environ | added


def main() -> None:
    """Runs the script."""
    parser = setup_parser()
    args = parser.parse_args()
    if args.multi_gpu or (args.num_processes or 1) > 1 or (args.num_machines or 1) > 1:
        parser.error("the demonstration's launcher starts one process: install accelerate for more")
    command = [sys.executable, args.training_script, *args.training_script_args]
    with subprocess.Popen(command, env=environment(args)) as process:
        process.wait()
    if process.returncode != 0:
        if args.quiet:
            sys.exit(1)
        raise subprocess.CalledProcessError(returncode=process.returncode, cmd=command)


if __name__ == "__main__":
    main()
