"""AdamW, and how its learning rate moves."""

from __future__ import annotations

import argparse
import ast
import logging
import math
from typing import Any

import numpy as np

from musubi_tuner.networks.lora import LoRANetwork

logger = logging.getLogger("musubi_tuner.training.trainer_base")

# Names that torch has and the miniature has not: another answer than for a name that torch lacks too.
_TORCH_OPTIMIZERS = {"Adam", "Adamax", "Adagrad", "Adadelta", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"}


class AdamW:
    """AdamW in 32-bit floats, also where the 8-bit kind is asked for: a small model has no memory to save."""

    def __init__(self, network: LoRANetwork, args: argparse.Namespace) -> None:
        """Reads `--optimizer_type` and `--optimizer_args`."""
        kind, options = args.optimizer_type.lower(), _options(args.optimizer_args)
        if kind == "adamw8bit":
            logger.info(f"use 8-bit AdamW optimizer | {options}")
            self.name = "bitsandbytes.optim.adamw.AdamW8bit"
        elif kind == "adamw":
            logger.info(f"use AdamW optimizer | {options}")
            self.name = "torch.optim.adamw.AdamW"
        elif kind == "adafactor" or "." in kind or args.optimizer_type in _TORCH_OPTIMIZERS:
            raise NotImplementedError(f"the miniature tuner has AdamW and AdamW8bit, not {args.optimizer_type}")
        else:
            raise AttributeError(f"module 'torch.optim' has no attribute '{args.optimizer_type}'")
        if args.learning_rate == 0:
            raise ValueError("optimizer got an empty parameter list")
        self.described = self.name + (f"({','.join(f'{k}={v}' for k, v in options.items())})" if options else "")
        self.betas = options.pop("betas", (0.9, 0.999))
        self.epsilon = options.pop("eps", 1e-8)
        self.weight_decay = options.pop("weight_decay", 0.01)
        if options:
            raise TypeError(
                f"{self.name.split('.')[-1]}.__init__() got an unexpected keyword argument '{next(iter(options))}'"
            )
        self.network = network
        self.moments = [(np.zeros_like(values), np.zeros_like(values)) for values, _ in network.pairs()]
        self.steps = 0

    def step(self, learning_rate: float, max_norm: float) -> None:
        """Moves every matrix against its gradient, all gradients cut to `max_norm` together, and clears them."""
        self.steps += 1
        norm = math.sqrt(sum(float(np.sum(gradient.astype(np.float64) ** 2)) for _, gradient in self.network.pairs()))
        factor = min(1.0, max_norm / (norm + 1e-6)) if max_norm and not math.isnan(norm) else 1.0
        first_beta, second_beta = self.betas
        for (values, gradient), (first, second) in zip(self.network.pairs(), self.moments, strict=True):
            gradient *= np.float32(factor)
            first += (1 - first_beta) * (gradient - first)
            second += (1 - second_beta) * (gradient**2 - second)
            mean = first / (1 - first_beta**self.steps)
            spread = np.sqrt(second / (1 - second_beta**self.steps)) + self.epsilon
            values *= np.float32(1 - learning_rate * self.weight_decay)
            values -= np.float32(learning_rate) * mean / spread
        self.network.clear_gradients()


class LearningRate:
    """The learning rate of each step, as `--lr_scheduler` says."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Reads the `--lr_…` flags."""
        if args.lr_scheduler not in {"constant", "constant_with_warmup", "linear", "cosine"}:
            raise NotImplementedError(f"the miniature tuner has no --lr_scheduler {args.lr_scheduler}")
        self.kind = args.lr_scheduler
        self.base: float = args.learning_rate
        self.total: int = args.max_train_steps
        warmup = args.lr_warmup_steps
        self.warmup = int(warmup * self.total) if isinstance(warmup, float) else warmup
        if self.kind == "constant" and self.warmup:
            raise ValueError(f"{self.kind} does not require `num_warmup_steps`. Set None or 0.")

    def at(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        if step < self.warmup:
            return self.base * step / self.warmup
        share = (step - self.warmup) / max(1, self.total - self.warmup)
        if self.kind == "linear":
            return self.base * (1 - share)
        if self.kind == "cosine":
            return self.base * 0.5 * (1 + math.cos(math.pi * share))
        return self.base


def _options(texts: list[str] | None) -> dict[str, Any]:
    pairs = (text.split("=") for text in texts or [])
    return {key: ast.literal_eval(value) for key, value in pairs}
