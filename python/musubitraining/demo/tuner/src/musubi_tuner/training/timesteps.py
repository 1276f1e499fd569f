"""How much noise a training step adds: 0 is none, 1 is nothing but noise."""

from __future__ import annotations

import argparse
import math

import numpy as np

from musubi_tuner.safetensors_file import Floats

# For samplers that look at the number of patches: where the shift's exponent starts and ends.
_SHIFT_LINES = {
    "flux_shift": (256, 0.5, 4096, 1.15),
    "qwen_shift": (256, 0.5, 8192, 0.9),
    "krea2_shift": (256, 0.5, 6400, 1.15),
}


def sample_noise_share(args: argparse.Namespace, latents: Floats, rng: np.random.Generator) -> float:
    """The share of noise in one training step, as `--timestep_sampling` and `--weighting_scheme` say."""
    low = (0 if args.min_timestep is None else args.min_timestep) / 1000
    high = (1000 if args.max_timestep is None else args.max_timestep) / 1000
    return low + _sample(args, latents, rng) * (high - low)


def _sample(args: argparse.Namespace, latents: Floats, rng: np.random.Generator) -> float:
    kind = args.timestep_sampling
    if kind == "uniform":
        return float(rng.random())
    if kind == "sigmoid":
        return _sigmoid(args.sigmoid_scale * rng.standard_normal())
    if kind == "logsnr":
        return _sigmoid(-(args.logit_mean + args.logit_std * rng.standard_normal()) / 2)
    if kind == "shift" or kind in _SHIFT_LINES:
        shift: float = args.discrete_flow_shift if kind == "shift" else _shift_for_size(kind, latents)
        share = _sigmoid(args.sigmoid_scale * rng.standard_normal())
        return share * shift / (1 + (shift - 1) * share)
    if kind in {"ideogram4_shift", "flux2_shift", "qinglong_flux", "qinglong_qwen"}:
        raise NotImplementedError(f"the miniature tuner has no --timestep_sampling {kind}")
    # sigma, and what a config file may say unchecked
    shift = args.discrete_flow_shift
    share = _sample_density(args, rng)
    return share * shift / (1 + (shift - 1) * share)


def _sample_density(args: argparse.Namespace, rng: np.random.Generator) -> float:
    if args.weighting_scheme == "logit_normal":
        return 1 - _sigmoid(args.logit_mean + args.logit_std * rng.standard_normal())
    share = float(rng.random())
    if args.weighting_scheme == "mode":
        scale: float = args.mode_scale
        return share + scale * (math.cos(math.pi * share / 2) ** 2 - 1 + share)
    return 1 - share


def loss_weight(scheme: str, share: float) -> float:
    """The weight that `--weighting_scheme` gives to a step's loss."""
    if scheme == "sigma_sqrt":
        return share**-2
    if scheme == "cosmap":
        return 2 / (math.pi * (1 - 2 * share + 2 * share**2))
    return 1.0


def _shift_for_size(kind: str, latents: Floats) -> float:
    start, start_value, end, end_value = _SHIFT_LINES[kind]
    patches = (latents.shape[1] // 2) * (latents.shape[2] // 2)
    return math.exp(start_value + (patches - start) * (end_value - start_value) / (end - start))


def _sigmoid(value: float) -> float:
    return 0.5 * (1 + math.tanh(0.5 * value))
