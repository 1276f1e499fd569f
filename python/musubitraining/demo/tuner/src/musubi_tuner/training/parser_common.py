"""The flags of `zimage_train_network.py`: all that Musubi Tuner knows, so that none it refuses is let through here.

Many say how a large model is fitted onto a GPU and mean nothing to a small one on a CPU. Those whose absence a user
would notice are in `NOT_IN_MINIATURE`; the script warns where they are given.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

from musubi_tuner.dataset.config_utils import parse_toml

logger = logging.getLogger(__name__)


def whole_or_share(text: str) -> int | float:
    """A number of steps, or a share of all steps as a fraction or in percent."""
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not an int or float") from None
    return int(number) if number >= 1 and number.is_integer() else number


_TEXT: dict[str, Any] = {"type": str}
_WHOLE: dict[str, Any] = {"type": int}
_REAL: dict[str, Any] = {"type": float}
_STEPS: dict[str, Any] = {"type": whole_or_share, "default": 0}
_SWITCH: dict[str, Any] = {"action": "store_true"}
_TEXTS: dict[str, Any] = {"type": str, "nargs": "*"}


def _one_of(*choices: str, default: str | None = None) -> dict[str, Any]:
    return {"type": str, "choices": choices, "default": default}


# fmt: off
FLAGS: dict[str, dict[str, Any]] = {
    # Files
    "--config_file": _TEXT, "--dataset_config": {"type": Path},
    "--dit": _TEXT, "--vae": _TEXT, "--vae_dtype": _TEXT, "--text_encoder": _TEXT, "--fp8_llm": _SWITCH,
    "--base_weights": _TEXTS, "--base_weights_multiplier": _REAL | {"nargs": "*"},
    "--network_weights": _TEXT, "--dim_from_weights": _SWITCH,
    # Network
    "--network_module": _TEXT, "--network_dim": _WHOLE, "--network_alpha": _REAL | {"default": 1},
    "--network_dropout": _REAL, "--network_args": _TEXTS, "--scale_weight_norms": _REAL,
    "--training_comment": _TEXT, "--no_metadata": _SWITCH,
    # Attention
    "--sdpa": _SWITCH, "--flash_attn": _SWITCH, "--sage_attn": _SWITCH, "--xformers": _SWITCH, "--flash3": _SWITCH,
    "--split_attn": _SWITCH, "--use_32bit_attention": _SWITCH,
    # Length of the training
    "--max_train_steps": _WHOLE | {"default": 1600}, "--max_train_epochs": _WHOLE, "--seed": _WHOLE,
    "--gradient_accumulation_steps": _WHOLE | {"default": 1},
    "--gradient_checkpointing": _SWITCH, "--gradient_checkpointing_cpu_offload": _SWITCH,
    "--max_data_loader_n_workers": _WHOLE | {"default": 8}, "--persistent_data_loader_workers": _SWITCH,
    # Precision and memory
    "--mixed_precision": _one_of("no", "fp16", "bf16"), "--save_precision": _one_of("float", "fp32", "fp16", "bf16"),
    "--fp8_base": _SWITCH, "--fp8_scaled": _SWITCH,
    "--blocks_to_swap": _WHOLE, "--use_pinned_memory_for_block_swap": _SWITCH, "--block_swap_h2d_only": _SWITCH,
    "--block_swap_ring_size": _WHOLE | {"default": 2}, "--img_in_txt_in_offloading": _SWITCH,
    "--disable_numpy_memmap": _SWITCH, "--cuda_allow_tf32": _SWITCH, "--cuda_cudnn_benchmark": _SWITCH,
    # Optimizer
    "--optimizer_type": _TEXT | {"default": ""}, "--optimizer_args": _TEXTS,
    "--learning_rate": _REAL | {"default": 2e-6}, "--max_grad_norm": _REAL | {"default": 1.0},
    "--lr_scheduler": _TEXT | {"default": "constant"}, "--lr_scheduler_type": _TEXT | {"default": ""},
    "--lr_scheduler_args": _TEXTS, "--lr_warmup_steps": _STEPS, "--lr_decay_steps": _STEPS,
    "--lr_scheduler_num_cycles": _WHOLE | {"default": 1}, "--lr_scheduler_power": _REAL | {"default": 1},
    "--lr_scheduler_timescale": _WHOLE, "--lr_scheduler_min_lr_ratio": _REAL,
    # Timesteps and loss
    "--timestep_sampling": _one_of(
        "sigma", "uniform", "sigmoid", "shift", "flux_shift", "flux2_shift", "ideogram4_shift", "qwen_shift",
        "krea2_shift", "logsnr", "qinglong_flux", "qinglong_qwen", default="sigma",
    ),
    "--discrete_flow_shift": _REAL | {"default": 1.0}, "--sigmoid_scale": _REAL | {"default": 1.0},
    "--weighting_scheme": _one_of("logit_normal", "mode", "cosmap", "sigma_sqrt", "none", default="none"),
    "--logit_mean": _REAL | {"default": 0.0}, "--logit_std": _REAL | {"default": 1.0},
    "--mode_scale": _REAL | {"default": 1.29}, "--min_timestep": _WHOLE, "--max_timestep": _WHOLE,
    "--preserve_distribution_shape": _SWITCH, "--num_timestep_buckets": _WHOLE,
    "--guidance_scale": _REAL | {"default": 1.0}, "--show_timesteps": _one_of("image", "console"),
    # Output
    "--output_dir": _TEXT, "--output_name": _TEXT,
    "--save_every_n_steps": _WHOLE, "--save_every_n_epochs": _WHOLE,
    "--save_last_n_steps": _WHOLE, "--save_last_n_epochs": _WHOLE,
    "--save_last_n_steps_state": _WHOLE, "--save_last_n_epochs_state": _WHOLE,
    "--save_state": _SWITCH, "--save_state_on_train_end": _SWITCH, "--resume": _TEXT,
    "--metadata_title": _TEXT, "--metadata_author": _TEXT, "--metadata_description": _TEXT,
    "--metadata_license": _TEXT, "--metadata_tags": _TEXT, "--metadata_reso": _TEXT, "--metadata_arch": _TEXT,
    # Samples
    "--sample_prompts": _TEXT, "--sample_every_n_steps": _WHOLE, "--sample_every_n_epochs": _WHOLE,
    "--sample_at_first": _SWITCH,
    # Logging
    "--logging_dir": _TEXT, "--log_with": _one_of("tensorboard", "wandb", "all"), "--log_prefix": _TEXT,
    "--log_tracker_name": _TEXT, "--log_tracker_config": _TEXT, "--log_config": _SWITCH,
    "--wandb_run_name": _TEXT, "--wandb_api_key": _TEXT,
    # Several GPUs
    "--ddp_timeout": _WHOLE, "--ddp_gradient_as_bucket_view": _SWITCH, "--ddp_static_graph": _SWITCH,
    # Compilation
    "--compile": _SWITCH, "--compile_backend": _TEXT | {"default": "inductor"},
    "--compile_mode": _one_of(
        "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs", default="default"
    ),
    "--compile_dynamic": _one_of("true", "false", "auto"), "--compile_fullgraph": _SWITCH,
    "--compile_cache_size_limit": _WHOLE,
    "--dynamo_backend": _one_of(
        "NO", "EAGER", "AOT_EAGER", "INDUCTOR", "AOT_TS_NVFUSER", "NVPRIMS_NVFUSER", "CUDAGRAPHS", "OFI", "FX2TRT",
        "ONNXRT", "TENSORRT", "AOT_TORCHXLA_TRACE_ONCE", "TORCHXLA_TRACE_ONCE", "IPEX", "TVM", "HPU_BACKEND",
        default="NO",
    ),
    "--dynamo_mode": _one_of("default", "reduce-overhead", "max-autotune"),
    "--dynamo_fullgraph": _SWITCH, "--dynamo_dynamic": _SWITCH,
    # Upload
    "--huggingface_repo_id": _TEXT, "--huggingface_repo_type": _TEXT, "--huggingface_path_in_repo": _TEXT,
    "--huggingface_token": _TEXT, "--huggingface_repo_visibility": _TEXT,
    "--save_state_to_huggingface": _SWITCH, "--resume_from_huggingface": _SWITCH, "--async_upload": _SWITCH,
}

NOT_IN_MINIATURE = (
    "--scale_weight_norms", "--fp8_base", "--lr_scheduler_type", "--preserve_distribution_shape",
    "--num_timestep_buckets", "--save_state", "--save_state_on_train_end", "--resume",
    "--sample_prompts", "--sample_every_n_steps", "--sample_every_n_epochs", "--sample_at_first",
    "--logging_dir", "--log_with", "--compile", "--huggingface_repo_id",
)
# fmt: on


def setup_parser() -> argparse.ArgumentParser:
    """The script's parser."""
    parser = argparse.ArgumentParser()
    for flag, options in FLAGS.items():
        parser.add_argument(flag, **options)
    return parser


def read_config_from_file(args: argparse.Namespace, parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments with those of `--config_file` beneath them: sections count for nothing, values go unchecked."""
    if not args.config_file:
        return args
    path = args.config_file if args.config_file.endswith(".toml") else args.config_file + ".toml"
    if not os.path.exists(path):
        logger.info(f"{path} not found.")
        sys.exit(1)
    logger.info(f"Loading settings from {path}...")
    flat: dict[str, Any] = {}
    for key, value in parse_toml(Path(path).read_text(encoding="utf-8")).items():
        flat |= value if isinstance(value, dict) else {key: value}
    args = parser.parse_args(namespace=argparse.Namespace(**flat))
    args.config_file = os.path.splitext(args.config_file)[0]
    logger.info(args.config_file)
    return args


def given_but_missing(args: argparse.Namespace) -> list[str]:
    """The flags that were given and have no effect here."""
    return [
        flag for flag in NOT_IN_MINIATURE if getattr(args, flag[2:]) not in {None, False, FLAGS[flag].get("default")}
    ]
