"""The training: everything is loaded in Musubi Tuner's order, said in its lines, and saved under its names.

logging goes to stderr and print to stdout, as there; who merges the two streams sees the same mixture.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import logging
import math
import os
import random
import sys
import time
from types import ModuleType
from typing import Any

import numpy as np

from musubi_tuner.dataset.cache_io import load_caches
from musubi_tuner.dataset.config_utils import load_datasets
from musubi_tuner.dataset.image_video_dataset import CachedItem, ImageDataset
from musubi_tuner.networks.lora import LoRANetwork
from musubi_tuner.progress_bar import ProgressBar
from musubi_tuner.safetensors_file import Floats, Metadata, load_file
from musubi_tuner.training.optimizer import AdamW, LearningRate
from musubi_tuner.training.parser_common import given_but_missing
from musubi_tuner.training.timesteps import loss_weight, sample_noise_share
from musubi_tuner.zimage.zimage_model import ZImageTransformer2DModel, load_transformer

logger = logging.getLogger(__name__)
logging.basicConfig(level=logging.INFO)
cache_logger = logging.getLogger("musubi_tuner.dataset.cache_io")

# What turns the VAE's latents into the transformer's.
_LATENT_SHIFT, _LATENT_SCALE = np.float32(0.1159), np.float32(0.3611)
_SEED_LIMIT = 2**32
_SAVE_TYPES = {"float": "F32", "fp32": "F32", "fp16": "F16", "bf16": "BF16"}
_TYPE_NAMES = {"F32": "torch.float32", "F16": "torch.float16", "BF16": "torch.bfloat16"}
# What a file keeps of the metadata with `--no_metadata`.
_MINIMUM_METADATA = {
    "ss_base_model_version",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
}


class LossRecorder:
    """The mean loss over the last epoch's worth of steps."""

    def __init__(self) -> None:
        """Starts without a loss."""
        self.losses: list[float] = []

    def add(self, epoch: int, step: int, loss: float) -> float:
        """Takes a step's loss in place of the one of the epoch before, and returns the mean."""
        if epoch == 0:
            self.losses.append(loss)
        else:
            self.losses[step] = loss
        return sum(self.losses) / len(self.losses)


class NetworkTrainer:
    """One run of `zimage_train_network.py`."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Takes the parsed flags."""
        self.args = args
        self.started_at = time.time()
        self.session_id = random.SystemRandom().randrange(2**32)
        self.network_options: dict[str, Any] = dict(text.split("=") for text in args.network_args or [])

    def train(self) -> None:
        """Trains and saves."""
        args = self.args
        print("Trying to import sageattention")
        print("Failed to import sageattention")
        self._check_arguments()
        if args.show_timesteps:
            return
        self.rng = _seeded_generator(args)
        datasets = self._load_datasets()
        _prepare_accelerator(args)
        transformer = self._load_transformer()
        network = self._build_network(transformer)
        print("prepare optimizer, data loader etc.")
        optimizer = AdamW(network, args)
        self._check_workers()
        batches = _Batches(datasets, int(self.rng.integers(2**31)))
        if args.max_train_epochs is not None:
            args.max_train_steps = args.max_train_epochs * math.ceil(len(batches) / args.gradient_accumulation_steps)
            epochs, steps = args.max_train_epochs, args.max_train_steps
            print(f"override steps. steps for {epochs} epochs is / 指定エポックまでのステップ数: {steps}")
        with np.errstate(all="ignore"):  # a loss of nan is a result, not a warning
            self._fit(transformer, network, optimizer, batches)

    def _check_arguments(self) -> None:
        args = self.args
        for flag in given_but_missing(args):
            logger.warning(f"{flag} has no effect in the miniature tuner")
        if args.dataset_config is None:
            raise ValueError("dataset_config is required / dataset_configが必要です")
        if args.dit is None:
            raise ValueError("path to DiT model is required / DiTモデルのパスが必要です")
        assert not args.fp8_scaled or args.fp8_base, "fp8_scaled requires fp8_base / fp8_scaledはfp8_baseが必要です"
        if args.sage_attn:
            raise ValueError(
                "SageAttention doesn't support training currently. Please use `--sdpa` or `--xformers` etc."
            )

    def _load_datasets(self) -> list[ImageDataset]:
        logger.info(f"Load dataset config from {self.args.dataset_config}")
        datasets = load_datasets(self.args.dataset_config)
        for dataset in datasets:
            dataset.prepare_for_training()
        if not any(dataset.num_train_items for dataset in datasets):
            raise ValueError(
                "No training items found in the dataset. Please ensure that the latent/Text Encoder cache has been "
                "created beforehand. / データセットに学習データがありません。"
                "latent/Text Encoderキャッシュを事前に作成したか確認してください"
            )
        return datasets

    def _load_transformer(self) -> ZImageTransformer2DModel:
        args = self.args
        logger.info(f"Loading DiT model from {args.dit}")
        if not (args.sdpa or args.flash_attn or args.xformers or args.flash3):
            raise ValueError("either --sdpa, --flash-attn, --flash3, --sage-attn or --xformers must be specified")
        transformer = load_transformer(args.dit)
        swappable = len(transformer.blocks) - 2
        if (args.blocks_to_swap or 0) > swappable:
            requested = f"Requested {args.blocks_to_swap} double blocks."
            raise AssertionError(f"Cannot swap more than {swappable} double blocks. {requested}")
        return transformer

    def _build_network(self, transformer: ZImageTransformer2DModel) -> LoRANetwork:
        args = self.args
        module = _import_network_module(args.network_module)
        multipliers = args.base_weights_multiplier or []
        for number, path in enumerate(args.base_weights or []):
            multiplier = multipliers[number] if number < len(multipliers) else 1.0
            print(f"merging module: {path} with multiplier {multiplier}")
            tensors, _ = load_file(path)
            module.merge_arch_weights(transformer, tensors, multiplier)
        if args.base_weights is not None:
            print(f"all weights merged: {', '.join(args.base_weights)}")
        if args.dim_from_weights:
            # A switch whose value Musubi Tuner opens as a file.
            raise TypeError("argument 'filename': expected str, bytes or os.PathLike object, not bool")
        network: LoRANetwork = module.create_arch_network(
            transformer, args.network_dim, args.network_alpha, args.network_dropout, self.network_options, self.rng
        )
        if args.network_weights is not None:
            print(f"load network weights from {args.network_weights}: {network.load_weights(args.network_weights)}")
        if args.gradient_checkpointing:
            offload = args.gradient_checkpointing_cpu_offload
            print(f"Z-Image: Gradient checkpointing enabled. CPU offload: {offload}")
        return network

    def _check_workers(self) -> None:
        if self.args.persistent_data_loader_workers and self.args.max_data_loader_n_workers == 0:
            raise ValueError("persistent_workers option needs num_workers > 0")

    def _fit(
        self, transformer: ZImageTransformer2DModel, network: LoRANetwork, optimizer: AdamW, batches: _Batches
    ) -> None:
        args = self.args
        rate = LearningRate(args)
        epochs = math.ceil(args.max_train_steps / math.ceil(len(batches) / args.gradient_accumulation_steps))
        _print_plan(args, batches, epochs)
        metadata = self._metadata(optimizer, batches, epochs)
        logger.info(f"set DiT model name for metadata: {args.dit}")
        if args.vae is not None:
            logger.info(f"set VAE model name for metadata: {args.vae}")
        bar = ProgressBar(args.max_train_steps, "steps")
        save_type = _SAVE_TYPES[args.save_precision or "fp32"]
        source = f"--save_precision {args.save_precision}" if args.save_precision else "default"
        logger.info(f"network weights will be saved as {_TYPE_NAMES[save_type]} ({source})")
        logger.info("DiT dtype: torch.bfloat16, device: cpu")
        checkpoints = _Checkpoints(args, network, save_type, metadata)
        recorder = LossRecorder()
        step = 0
        for epoch in range(epochs):
            print(f"\nepoch {epoch + 1}/{epochs}")
            cache_logger.info(f"epoch is incremented. current_epoch: {epoch}, epoch: {epoch + 1}")
            order = batches.order(epoch + 1, self.rng)
            for number, batch in enumerate(order):
                loss = self._backpropagate(transformer, batch)
                is_update = (number + 1) % args.gradient_accumulation_steps == 0 or number + 1 == len(order)
                if is_update:
                    optimizer.step(rate.at(step), args.max_grad_norm)
                    if step == 0:
                        bar.reset()  # the first step is left out of the rate
                    bar.update()
                    step += 1
                    checkpoints.after_step(step, epoch)
                bar.set_postfix(avr_loss=recorder.add(epoch, number, loss))
                if step >= args.max_train_steps:
                    break
            checkpoints.after_epoch(epoch + 1, epochs, step)
        checkpoints.save(f"{args.output_name}.safetensors" if args.output_name is not None else None, step, epochs)
        logger.info("model saved.")
        bar.close()

    def _backpropagate(self, transformer: ZImageTransformer2DModel, batch: list[CachedItem]) -> float:
        """Adds a batch's gradients to the network's and returns its loss."""
        args = self.args
        if args.xformers or args.flash_attn or args.flash3:
            missing = "memory_efficient_attention" if args.xformers else "flash_attn_varlen_func"
            raise AttributeError(f"'NoneType' object has no attribute '{missing}'")
        total = 0.0
        for item in batch:
            cached, caption = load_caches(item.latent_cache_path, item.text_cache_path)
            latents = (cached - _LATENT_SHIFT) * _LATENT_SCALE
            noise = self.rng.standard_normal(latents.shape, dtype=np.float32)
            share = sample_noise_share(args, latents, self.rng)
            noisy = np.float32(1 - share) * latents + np.float32(share) * noise
            predicted, backward = transformer(noisy, 1 - share, caption)
            error: Floats = predicted - (latents - noise)
            weight = loss_weight(args.weighting_scheme, share)
            total += weight * float(np.mean(error**2)) / len(batch)
            backward(error * np.float32(2 * weight / (error.size * len(batch) * args.gradient_accumulation_steps)))
        return total

    def _metadata(self, optimizer: AdamW, batches: _Batches, epochs: int) -> Metadata:
        args = self.args
        copied = (
            "output_name", "learning_rate", "gradient_checkpointing", "gradient_checkpointing_cpu_offload",
            "gradient_accumulation_steps", "max_train_steps", "lr_warmup_steps", "lr_scheduler", "network_module",
            "network_dim", "network_alpha", "network_dropout", "mixed_precision", "seed", "training_comment",
            "max_grad_norm", "fp8_base", "weighting_scheme", "logit_mean", "logit_std", "mode_scale",
            "guidance_scale", "timestep_sampling", "sigmoid_scale", "discrete_flow_shift",
        )  # fmt: skip
        values: dict[str, Any] = {name: getattr(args, name) for name in copied} | {
            "session_id": self.session_id,
            "training_started_at": self.started_at,
            "num_train_items": batches.num_train_items,
            "num_batches_per_epoch": len(batches),
            "num_epochs": epochs,
            "base_model_version": "z_image",
            "optimizer": optimizer.described,
            "full_fp16": False,
            "full_bf16": False,
            "datasets": json.dumps([dataset.metadata() for dataset in batches.datasets]),
            "sd_model_name": os.path.basename(args.dit),
        }
        if self.network_options:
            values["network_args"] = json.dumps(self.network_options)
        if args.vae is not None:
            values["vae_name"] = os.path.basename(args.vae) if os.path.exists(args.vae) else args.vae
        return {f"ss_{name}": str(value) for name, value in values.items()}


class _Batches:
    """The batches of all datasets, one epoch after the other."""

    def __init__(self, datasets: list[ImageDataset], seed: int) -> None:
        self.datasets = datasets
        self.seed = seed
        self.num_train_items = sum(dataset.num_train_items for dataset in datasets)

    def __len__(self) -> int:
        return sum(len(dataset.batches) for dataset in self.datasets if dataset.batches)

    def order(self, epoch: int, rng: np.random.Generator) -> list[list[CachedItem]]:
        """The batches of an epoch, shuffled."""
        shuffled = []
        for dataset in self.datasets:
            if dataset.batches:
                dataset.batches.shuffle(self.seed + epoch)
                shuffled += [dataset.batches[position] for position in range(len(dataset.batches))]
        return [shuffled[position] for position in rng.permutation(len(shuffled))]


class _Checkpoints:
    """The files a training leaves. The folder is looked at only now: what is wrong with it ends a whole training."""

    def __init__(self, args: argparse.Namespace, network: LoRANetwork, save_type: str, metadata: Metadata) -> None:
        self.args = args
        self.network = network
        self.save_type = save_type
        self.metadata = metadata

    def after_step(self, step: int, epoch: int) -> None:
        """Saves if it is the time for it."""
        every = self.args.save_every_n_steps
        if every is None or step % every:
            return
        self.save(self._step_name(step), step, epoch)
        if self.args.save_last_n_steps is not None:
            oldest = step - self.args.save_last_n_steps - 1
            self._remove(oldest - oldest % every, self._step_name)

    def after_epoch(self, epoch: int, epochs: int, step: int) -> None:
        """Saves if it is the time for it and not the last epoch, which the final file is for."""
        every = self.args.save_every_n_epochs
        if every is None or epoch % every or epoch >= epochs:
            return
        self.save(self._epoch_name(epoch), step, epoch)
        if self.args.save_last_n_epochs is not None:
            self._remove(epoch - every * self.args.save_last_n_epochs, self._epoch_name)

    def save(self, name: str | None, step: int, epoch: int) -> None:
        """Writes the LoRA as it stands."""
        args = self.args
        if name is None:
            raise TypeError("unsupported operand type(s) for +: 'NoneType' and 'str'")
        os.makedirs(args.output_dir, exist_ok=True)
        path = os.path.join(args.output_dir, name)
        print(f"\nsaving checkpoint: {path}")
        now = time.time()
        self.metadata |= {
            "ss_training_finished_at": str(now),
            "ss_steps": str(step),
            "ss_epoch": str(epoch),
        }
        kept = {key: value for key, value in self.metadata.items() if not args.no_metadata or key in _MINIMUM_METADATA}
        self.network.save_weights(path, self.save_type, kept | _model_spec(args, now))

    def _step_name(self, step: int) -> str:
        return f"{self.args.output_name}-step{step:08d}.safetensors"

    def _epoch_name(self, epoch: int) -> str:
        return f"{self.args.output_name}-{epoch:06d}.safetensors"

    def _remove(self, number: int, name: Any) -> None:
        path = os.path.join(self.args.output_dir, name(number))
        if number >= 0 and os.path.exists(path):
            print(f"removing old checkpoint: {path}")
            os.remove(path)


def _model_spec(args: argparse.Namespace, now: float) -> Metadata:
    """The metadata of the ModelSpec standard."""
    resolution = [int(side) for side in (args.metadata_reso or "1024").split(",")]
    given = {name: getattr(args, f"metadata_{name}") for name in ("author", "description", "license", "tags")}
    if args.min_timestep is not None or args.max_timestep is not None:
        low = 0 if args.min_timestep is None else args.min_timestep
        given["timestep_range"] = f"{low},{1000 if args.max_timestep is None else args.max_timestep}"
    spec = {
        "sai_model_spec": "1.0.0",
        "architecture": f"{args.metadata_arch or 'Z-Image'}/lora",
        "implementation": "https://github.com/Tongyi-MAI/Z-Image",
        "title": args.output_name if args.metadata_title is None else args.metadata_title,
        "resolution": f"{resolution[0]}x{resolution[-1]}",
        "date": datetime.datetime.fromtimestamp(int(now)).isoformat(),
    }
    return {f"modelspec.{name}": value for name, value in (spec | given).items() if value is not None}


def _seeded_generator(args: argparse.Namespace) -> np.random.Generator:
    if args.seed is None:
        args.seed = random.SystemRandom().randrange(_SEED_LIMIT)
    if not 0 <= args.seed < _SEED_LIMIT:
        raise ValueError("Seed must be between 0 and 2**32 - 1")
    return np.random.default_rng(args.seed)


def _prepare_accelerator(args: argparse.Namespace) -> None:
    logger.info("preparing accelerator")
    print("accelerator device: cpu")
    if args.mixed_precision is None:
        args.mixed_precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        chosen = args.mixed_precision
        logger.info(f"mixed precision set to {chosen} / mixed precisionを{chosen}に設定")
    logger.info("DiT precision: torch.bfloat16, weight precision: torch.bfloat16")


def _import_network_module(name: str) -> ModuleType:
    # For `networks.lora_zimage`, as Musubi Tuner does it: at the end, so that another package `networks` would win.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    print("import network module:", name)
    return importlib.import_module(name)


def _print_plan(args: argparse.Namespace, batches: _Batches, epochs: int) -> None:
    sizes = ", ".join(str(dataset.batch_size) for dataset in batches.datasets)
    print("running training / 学習開始")
    print(f"  num train items / 学習画像、動画数: {batches.num_train_items}")
    print(f"  num batches per epoch / 1epochのバッチ数: {len(batches)}")
    print(f"  num epochs / epoch数: {epochs}")
    print(f"  batch size per device / バッチサイズ: {sizes}")
    print(f"  gradient accumulation steps / 勾配を合計するステップ数 = {args.gradient_accumulation_steps}")
    print(f"  total optimization steps / 学習ステップ数: {args.max_train_steps}")
