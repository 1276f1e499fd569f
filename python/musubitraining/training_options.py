"""What a training can be told beyond the arguments of `MusubiTraining.train`: `TrainingOptions` and `LaunchOptions`."""

import ast
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from musubitraining._native import _gpu_memory_bytes
from musubitraining.fields import Check, Options, choice, each, flag, integer, number, option, path, text

_GIB = 1 << 30

_Path = str | os.PathLike[str]

PresetName = Literal["original", "musubi", "24gb", "16gb", "12gb", "auto"]

# ---- Checks of the fields ---------------------------------------------------------------------------------------


def _module() -> Check:
    """A module of networks that has something to train in Z-Image."""
    expected = "the dotted name of a module, such as 'networks.lora_zimage', 'networks.loha' or 'networks.lokr'"

    def check(value: Any) -> str:
        name: str = text(expected)(value)
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(expected)
        last = name.removeprefix("musubi_tuner.").removeprefix("networks.")
        # They find no module of Z-Image, and say so when the model has been loaded.
        if name != last and (last == "lora" or last.startswith("lora_")) and last != "lora_zimage":
            raise ValueError(f"{expected}; this one is for another model than Z-Image")
        return name

    return check


def _optimizer() -> Check:
    expected = "the name of an optimizer, such as 'adamw8bit', 'AdamW', 'adafactor', or the dotted path of a class"

    def check(value: Any) -> str:
        name: str = text(expected)(value)
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(expected)
        # Musubi Tuner looks for any other in torch.optim, where there is none.
        if name.lower().endswith("8bit") and "." not in name and name.lower() != "adamw8bit":
            raise ValueError(f"{expected}; 8-bit ones besides adamw8bit by their path: 'bitsandbytes.optim.{name}'")
        return name

    return check


def _assignments(*, literals: bool) -> Check:
    """Words `name=value`, which Musubi Tuner takes apart at the only `=`."""
    expected = "a str 'name=value' with a single '='"
    if literals:
        expected += ", the value as Python writes it ('weight_decay=0.01')"

    def check(value: Any) -> str:
        word: str = text(expected)(value)
        name, equals, right = word.partition("=")
        if not name.isidentifier() or not equals or "=" in right or not right:
            raise ValueError(expected)
        if literals:
            try:
                ast.literal_eval(right)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                raise ValueError(expected) from None
        return word

    return each(check, "a list or tuple")


def _share_or_steps() -> Check:
    expected = "an int of at least 0 (steps), a float above 0 and below 1 (a share of the steps), or a str like '5%'"

    def check(value: Any) -> int | float | str:
        if isinstance(value, str):
            try:
                percent = float(value.removesuffix("%"))
            except ValueError:
                raise ValueError(expected) from None
            if not value.endswith("%") or not 0 <= percent <= 100:
                raise ValueError(expected)
            return value
        if isinstance(value, float):
            if not 0 < value < 1:
                raise ValueError(expected)
            return value
        try:
            steps: int = integer(0)(value)
        except (TypeError, ValueError) as error:
            raise type(error)(expected) from None
        return steps

    return check


def _prompts() -> Check:
    expected = "the path of a file that ends in .txt, .toml or .json"

    def check(value: Any) -> str:
        name: str = path(expected)(value)
        if not name.endswith((".txt", ".toml", ".json")):
            raise ValueError(expected)
        return name

    return check


def _further_words() -> Check:
    expected = "a list or tuple of str, a flag '--name' first and then its values"

    def check(value: Any) -> tuple[str, ...]:
        words: tuple[str, ...] = each(text("a str", empty=True), expected)(value)
        short = any(word.startswith("-") and not word.startswith("--") and not word[1:2].isdigit() for word in words)
        if short or (words and not words[0].startswith("--")):
            raise ValueError(expected)
        return words

    return check


def _gpu_ids() -> Check:
    expected = "'all', or a list or tuple of different ints of at least 0"

    def check(value: Any) -> str | tuple[int, ...]:
        if isinstance(value, str):
            if value != "all":
                raise ValueError(expected)
            return value
        ids: tuple[int, ...] = each(integer(0), expected)(value)
        if not ids or len(set(ids)) < len(ids):
            raise ValueError(expected)
        return ids

    return check


# ---- Fields to words --------------------------------------------------------------------------------------------


def _decimal(value: float) -> str:
    """A float in the shortest form that gives the same one; small ones as people write them: 2e-4."""
    if value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if abs(value) >= 1e-3:
        return repr(value)
    shortest = next(form for digits in range(17) if float(form := f"{value:.{digits}e}") == value)
    mantissa, exponent = shortest.split("e")
    return f"{mantissa}e{int(exponent)}"


def _words(name: str, value: Any) -> list[str]:
    """The words of a command line that say it."""
    if value is None or value is False or value == ():
        return []
    if value is True:
        return [f"--{name}"]
    if isinstance(value, tuple):
        return [f"--{name}", *value]
    word = _decimal(value) if isinstance(value, float) else str(value)
    # One that begins with '-' would be taken for a flag.
    return [f"--{name}={word}"] if word.startswith("-") else [f"--{name}", word]


def _said_by(words: Callable[[Any], list[str]], default: Any, check: Check, *, optional: bool = False) -> Any:
    """A field that is not said by its own name and value."""
    return option(default, check, optional=optional, words=words)


class _CommandLine(Options):
    """Options that are words of a command line."""

    extra_args: Sequence[str]
    _said_elsewhere: ClassVar[dict[str, str]]

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        said_elsewhere = dict.fromkeys(self._names(), "it is a field") | self._said_elsewhere
        for word in self.extra_args:
            name = word.partition("=")[0].removeprefix("--").replace("-", "_")
            meant = next((other for other in said_elsewhere if other.startswith(name)), None)
            if not word.startswith("--") or meant is None:
                continue
            reason = said_elsewhere.get(name, f"in full, as --{meant} begins so: {said_elsewhere[meant]}")
            self._refuse((True, f"extra_args has {word.partition('=')[0]!r}, expected without it: {reason}"))

    def _names(self) -> list[str]:
        return [one.name for one in fields(self)]  # type: ignore[arg-type]

    def _words_of(self, names: Iterable[str]) -> list[str]:
        words: list[str] = []
        by_name = {one.name: one for one in fields(self)}  # type: ignore[arg-type]
        for name in names:
            value, metadata = getattr(self, name), by_name[name].metadata
            if metadata.get("is_path") and value is not None:
                # It counts from the caller's folder; a step runs in another.
                value = os.path.join(os.getcwd(), value)
            words += metadata["words"](value) if "words" in metadata else _words(name, value)
        return words

    def _look_for_files(self) -> None:
        """See that the files which the options name exist.

        Raises:
            FileNotFoundError: one does not.
        """
        for one in fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            if one.metadata.get("exists") and value is not None and not os.path.exists(value):
                raise FileNotFoundError(f"{type(self).__name__}.{one.name} not found: {value}")

    def _refuse(self, *reasons: tuple[object, str]) -> None:
        """Refuse values that contradict each other."""
        for applies, reason in reasons:
            if applies:
                raise ValueError(f"{type(self).__name__}: {reason}")


_ATTENTION = ("sdpa", "flash_attn", "flash3", "xformers")
_SCHEDULERS = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
    "piecewise_constant",
    "rex",
)
_TIMESTEP_SAMPLING = (
    "sigma",
    "uniform",
    "sigmoid",
    "shift",
    "flux_shift",
    "flux2_shift",
    "ideogram4_shift",
    "qwen_shift",
    "krea2_shift",
    "logsnr",
    "qinglong_flux",
    "qinglong_qwen",
)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(_CommandLine):
    """How a LoRA is trained, by the names that Musubi Tuner's Z-Image script gives it.

    `MusubiTraining(…, options=TrainingOptions(network_dim=32))` or `train(…, options=…)`, which goes before. The
    defaults are the settings of TechTrash_MusubiTraining 0.0.11; steps, seed and output name are arguments of `train`.
    What is None or False is not said, so that Musubi Tuner's own default holds; in brackets stand type and range, then
    that default. Names, types, ranges and defaults are of the parser and the code of its v0.3.4, where no other source
    is named. `dataclasses.replace` makes changed copies, of a preset too.

    Attributes:
        attention: "sdpa" (default), or "flash_attn", "flash3", "xformers" with the package of that name; "xformers"
            needs `split_attn`.
        split_attn: attention one item of the batch after the other, which takes less memory (bool).
        use_32bit_attention: attention in 32 bits whatever `mixed_precision` is (bool).
        mixed_precision: "bf16" (default), "fp16" or "no"; the launcher is told the same.
        save_precision: of the LoRA file: "fp32" (Musubi Tuner's), "float" (the same), "fp16" or "bf16"; from v0.3.2 on.
        fp8_base: the DiT's weights in 8 bits: half the memory, somewhat less quality (bool). The docs: with
            `fp8_scaled`.
        fp8_scaled: with a scale for each block of them, which loses less (bool); needs `fp8_base`, and
            `base_weights=None`: base weights that are merged into scaled ones are lost.
        fp8_llm: the text encoder in 8 bits, as captions are cached and samples drawn (bool).
        blocks_to_swap: so many of the DiT's 30 blocks wait in RAM until they are needed (int, 0 to 28; 0.36 GB of GPU
            memory each in bf16).
        use_pinned_memory_for_block_swap: faster, for more RAM (bool); needs `blocks_to_swap`.
        block_swap_h2d_only: blocks are only copied to the GPU, never back, which is faster (bool); needs
            `blocks_to_swap` and `gradient_checkpointing`; from v0.3.2 on.
        block_swap_ring_size: how many blocks have room on the GPU then (int, at least 1; 2); needs
            `block_swap_h2d_only`.
        gradient_checkpointing: compute activations again instead of keeping them (bool, default True).
        gradient_checkpointing_cpu_offload: keep in RAM what it does keep (bool); needs `gradient_checkpointing`.
        gradient_accumulation_steps: batches to an optimizer step (int, at least 1; 1).
        timestep_sampling: how noise levels are drawn (a name of Musubi Tuner's list, default "sigmoid"; its Z-Image
            docs: "shift").
        discrete_flow_shift: the shift of "shift" (float, above 0; 1; the Z-Image docs: 2).
        sigmoid_scale: the spread of "sigmoid" and "shift" (float, above 0; 1).
        weighting_scheme: how the loss is weighted by noise level: "none" (default), "logit_normal", "mode", "cosmap" or
            "sigma_sqrt".
        logit_mean: of "logit_normal" (float; 0).
        logit_std: of "logit_normal" (float, above 0; 1).
        mode_scale: of "mode" (float; 1.29).
        min_timestep: the least noise level that is drawn (int, 0 to 999; 0).
        max_timestep: the most (int, 1 to 1000; 1000); more than `min_timestep`.
        preserve_distribution_shape: draw anew what is out of these two instead of squeezing it in (bool); not with
            "sigma".
        num_timestep_buckets: draw evenly from so many parts of the levels (int, at least 2; not at all).
        optimizer_type: "adamw8bit" (default), "AdamW", "adafactor", another of torch.optim, or the dotted path of a
            class.
        optimizer_args: its arguments, each "name=value" as Python writes it (tuple of str, default
            ("weight_decay=0.0001",)).
        learning_rate: (float, above 0 to 10; default 2e-4; the Z-Image docs: 1e-4).
        max_grad_norm: to which gradients are clipped, 0 for none (float, at least 0; 1).
        lr_scheduler: how the learning rate goes: "constant" (Musubi Tuner's), "constant_with_warmup", "linear",
            "cosine", "cosine_with_restarts", "cosine_with_min_lr" (needs `lr_scheduler_min_lr_ratio`), "polynomial",
            "inverse_sqrt", "warmup_stable_decay", "piecewise_constant" or "rex".
        lr_scheduler_type: another's: a name of torch.optim.lr_scheduler or the dotted path of a class, in its place.
        lr_scheduler_args: its arguments, each "name=value" as Python writes it (tuple of str).
        lr_warmup_steps: steps to the full rate (int of at least 0), their share (float, 0 to 1, or "5%"); 0. Not with
            "constant".
        lr_decay_steps: steps of the decay, likewise (0).
        lr_scheduler_num_cycles: of the cosine ones (int, at least 1; 1).
        lr_scheduler_power: of "polynomial" (float, above 0; 1).
        lr_scheduler_timescale: of "inverse_sqrt" (steps, int, at least 1; those of the warm-up).
        lr_scheduler_min_lr_ratio: the least rate as a share of the full one (float, 0 to 1).
        max_train_epochs: train so many times through the dataset, whatever `max_train_steps` of `train` says (int, at
            least 1).
        network_module: what is trained: "networks.lora_zimage" (default), "networks.loha", "networks.lokr" (both from
            v0.3.0 on), or the dotted name of another module.
        network_dim: the rank (int, at least 1; default 16; the Z-Image docs: 32).
        network_alpha: the LoRA counts alpha / rank times (float, above 0; default 16; the Z-Image docs: 1).
        network_args: arguments of the module, each "name=value" (tuple of str).
        network_dropout: the share of neurons that are left out in a step (float, 0 to 1; 0).
        network_weights: a LoRA to go on from (path of a file).
        scale_weight_norms: to which the norms of weights are held (float, above 0; the help: 1 to begin with).
        base_weights: "models" (default): the file that Models names is merged into the DiT before. None: none is, and
            the file need not exist: for Z-Image itself, and for the De-Turbo, to which the docs offer the adapter as
            the alternative.
        base_weights_multiplier: how much of it (float; 1).
        text_encoder_batch_size: the most captions at once as they are cached (int, at least 1; default 16; the batches
            of the dataset's TOML are only ever divided).
        max_data_loader_n_workers: processes that read the caches (int, at least 0; 8; the Z-Image docs: 2).
        persistent_data_loader_workers: keep them from epoch to epoch (bool; in the Z-Image docs); not with 0 of them.
        compile: torch.compile, which needs Triton (bool).
        compile_backend: (str; "inductor"); this and the next four need `compile`.
        compile_mode: "default", "reduce-overhead", "max-autotune" or "max-autotune-no-cudagraphs".
        compile_dynamic: "true", "false" or "auto" ("auto").
        compile_fullgraph: (bool).
        compile_cache_size_limit: (int, at least 1; PyTorch's).
        cuda_allow_tf32: 32-bit products in 19 bits, from Ampere on (bool).
        cuda_cudnn_benchmark: try out which convolutions are fastest (bool).
        save_every_n_steps: save the LoRA meanwhile (int, at least 1; only at the end).
        save_every_n_epochs: likewise.
        save_last_n_steps: delete those that are so many steps old (int, at least 1; none); needs `save_every_n_steps`.
        save_last_n_epochs: keep so many (int, at least 1; all); needs `save_every_n_epochs`.
        save_state: save with each what `resume` needs (bool).
        save_state_on_train_end: at the end only (bool).
        save_last_n_steps_state: as `save_last_n_steps`, for the states; needs `save_state`.
        save_last_n_epochs_state: as `save_last_n_epochs`, for the states; needs `save_state`.
        resume: a state to go on from (path of a folder), of a training with the same network, rank and optimizer. Steps
            are counted from 0 again: as many as `train` is told come on top.
        sample_prompts: prompts to draw samples of into `sample/` in the output folder (path of a .txt, .toml or .json
            file). The text encoder and the VAE are loaded for it.
        sample_every_n_steps: when (int, at least 1); this and the next two need `sample_prompts`, which needs one of
            them.
        sample_every_n_epochs: likewise.
        sample_at_first: before the first step too (bool).
        logging_dir: where the training logs for TensorBoard (path of a folder).
        log_with: "tensorboard" (needs `logging_dir`, as "all" does), "wandb" or "all"; the package must be installed.
        log_prefix: of the log's folder (str).
        log_tracker_name: the project's name there (str).
        log_tracker_config: its configuration (path of a file).
        wandb_run_name: (str). The key comes from WANDB_API_KEY in the environment.
        log_config: log the settings too (bool).
        no_metadata: leave most of the LoRA's metadata out (bool).
        training_comment: in these metadata (str), as are the next seven.
        metadata_title: (str; the output name).
        metadata_author: (str).
        metadata_description: (str).
        metadata_license: (str).
        metadata_tags: separated by commas (str).
        metadata_reso: such as "1024,1024" (str).
        metadata_arch: (str).
        ddp_timeout: how long several processes wait for each other (minutes, int, at least 1; accelerate's).
        ddp_gradient_as_bucket_view: (bool), of several processes.
        ddp_static_graph: (bool), of several processes.
        extra_args: further words for the script (tuple of str), "--flag" first and then its values. Not what is said
            elsewhere.

    Raises:
        TypeError: a value is of a type that a field does not take; the message names the field, the value and the
            range.
        ValueError: a value is out of a field's range, or fields contradict each other.
    """

    _said_elsewhere: ClassVar = {
        "dit": "it is DiT of Models",
        "vae": "it is ae of Models",
        "text_encoder": "it is text_encoder of Models",
        "base_weights": "it is base_weights of Models, and base_weights=None of TrainingOptions leaves it out",
        "dataset_config": "it is the dataset's TOML",
        "output_dir": "it is absolute_path_output",
        "output_name": "it is an argument of train()",
        "max_train_steps": "it is an argument of train()",
        "seed": "it is an argument of train()",
        "sage_attn": "attention says it, and Musubi Tuner does not train with SageAttention",
        "help": "it trains nothing",
        "show_timesteps": "it shows them and trains nothing",
        "wandb_api_key": "the log would show it; set WANDB_API_KEY in the environment",
        "huggingface_token": "the log would show it; set HF_TOKEN in the environment",
        "resume_from_huggingface": "resume is a folder; fetch the state and name its folder",
        **dict.fromkeys(_ATTENTION, "attention says it"),
    }

    attention: Literal["sdpa", "flash_attn", "flash3", "xformers"] = _said_by(
        lambda value: [f"--{value}"], "sdpa", choice(*_ATTENTION)
    )
    mixed_precision: Literal["bf16", "fp16", "no"] = option("bf16", choice("bf16", "fp16", "no"))
    timestep_sampling: str = option("sigmoid", choice(*_TIMESTEP_SAMPLING))
    weighting_scheme: Literal["none", "logit_normal", "mode", "cosmap", "sigma_sqrt"] = option(
        "none", choice("none", "logit_normal", "mode", "cosmap", "sigma_sqrt")
    )
    optimizer_type: str = option("adamw8bit", _optimizer())
    learning_rate: float = option(2e-4, number(above=0, most=10))
    optimizer_args: Sequence[str] = option(("weight_decay=0.0001",), _assignments(literals=True))
    gradient_checkpointing: bool = option(True, flag())
    # Here come the steps and the seed.
    network_module: str = option("networks.lora_zimage", _module())
    network_dim: int = option(16, integer(1))
    network_alpha: float = option(16.0, number(above=0))
    # Here comes the output.
    split_attn: bool = option(False, flag())
    use_32bit_attention: bool = option(False, flag())
    save_precision: Literal["fp32", "float", "fp16", "bf16"] | None = option(
        None, choice("fp32", "float", "fp16", "bf16"), optional=True
    )
    fp8_base: bool = option(False, flag())
    fp8_scaled: bool = option(False, flag())
    fp8_llm: bool = option(False, flag())
    blocks_to_swap: int | None = option(None, integer(0, 28), optional=True)
    use_pinned_memory_for_block_swap: bool = option(False, flag())
    block_swap_h2d_only: bool = option(False, flag())
    block_swap_ring_size: int | None = option(None, integer(1), optional=True)
    gradient_checkpointing_cpu_offload: bool = option(False, flag())
    gradient_accumulation_steps: int | None = option(None, integer(1), optional=True)
    discrete_flow_shift: float | None = option(None, number(above=0), optional=True)
    sigmoid_scale: float | None = option(None, number(above=0), optional=True)
    logit_mean: float | None = option(None, number(), optional=True)
    logit_std: float | None = option(None, number(above=0), optional=True)
    mode_scale: float | None = option(None, number(), optional=True)
    min_timestep: int | None = option(None, integer(0, 999), optional=True)
    max_timestep: int | None = option(None, integer(1, 1000), optional=True)
    preserve_distribution_shape: bool = option(False, flag())
    num_timestep_buckets: int | None = option(None, integer(2), optional=True)
    max_grad_norm: float | None = option(None, number(0.0), optional=True)
    lr_scheduler: str | None = option(None, choice(*_SCHEDULERS), optional=True)
    lr_scheduler_type: str | None = option(None, text(), optional=True)
    lr_scheduler_args: Sequence[str] = option((), _assignments(literals=True))
    lr_warmup_steps: int | float | str | None = option(None, _share_or_steps(), optional=True)
    lr_decay_steps: int | float | str | None = option(None, _share_or_steps(), optional=True)
    lr_scheduler_num_cycles: int | None = option(None, integer(1), optional=True)
    lr_scheduler_power: float | None = option(None, number(above=0), optional=True)
    lr_scheduler_timescale: int | None = option(None, integer(1), optional=True)
    lr_scheduler_min_lr_ratio: float | None = option(None, number(0.0, 1.0), optional=True)
    max_train_epochs: int | None = option(None, integer(1), optional=True)
    network_args: Sequence[str] = option((), _assignments(literals=False))
    network_dropout: float | None = option(None, number(0.0, 1.0), optional=True)
    network_weights: _Path | None = option(None, path(), optional=True, is_path=True, exists=True)
    scale_weight_norms: float | None = option(None, number(above=0), optional=True)
    # Its path is of Models.
    base_weights: Literal["models"] | None = _said_by(lambda _: [], "models", choice("models"), optional=True)
    base_weights_multiplier: float | None = option(None, number(), optional=True)
    # Of the caching script.
    text_encoder_batch_size: int = _said_by(lambda _: [], 16, integer(1))
    max_data_loader_n_workers: int | None = option(None, integer(0), optional=True)
    persistent_data_loader_workers: bool = option(False, flag())
    compile: bool = option(False, flag())
    compile_backend: str | None = option(None, text(), optional=True)
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = option(
        None, choice("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"), optional=True
    )
    compile_dynamic: Literal["true", "false", "auto"] | None = option(
        None, choice("true", "false", "auto"), optional=True
    )
    compile_fullgraph: bool = option(False, flag())
    compile_cache_size_limit: int | None = option(None, integer(1), optional=True)
    cuda_allow_tf32: bool = option(False, flag())
    cuda_cudnn_benchmark: bool = option(False, flag())
    save_every_n_steps: int | None = option(None, integer(1), optional=True)
    save_every_n_epochs: int | None = option(None, integer(1), optional=True)
    save_last_n_steps: int | None = option(None, integer(1), optional=True)
    save_last_n_epochs: int | None = option(None, integer(1), optional=True)
    save_state: bool = option(False, flag())
    save_state_on_train_end: bool = option(False, flag())
    save_last_n_steps_state: int | None = option(None, integer(1), optional=True)
    save_last_n_epochs_state: int | None = option(None, integer(1), optional=True)
    resume: _Path | None = option(None, path(), optional=True, is_path=True, exists=True)
    sample_prompts: _Path | None = option(None, _prompts(), optional=True, is_path=True, exists=True)
    sample_every_n_steps: int | None = option(None, integer(1), optional=True)
    sample_every_n_epochs: int | None = option(None, integer(1), optional=True)
    sample_at_first: bool = option(False, flag())
    logging_dir: _Path | None = option(None, path(), optional=True, is_path=True, exists=False)
    log_with: Literal["tensorboard", "wandb", "all"] | None = option(
        None, choice("tensorboard", "wandb", "all"), optional=True
    )
    log_prefix: str | None = option(None, text(), optional=True)
    log_tracker_name: str | None = option(None, text(), optional=True)
    log_tracker_config: _Path | None = option(None, path(), optional=True, is_path=True, exists=True)
    wandb_run_name: str | None = option(None, text(), optional=True)
    log_config: bool = option(False, flag())
    training_comment: str | None = option(None, text(), optional=True)
    no_metadata: bool = option(False, flag())
    metadata_title: str | None = option(None, text(), optional=True)
    metadata_author: str | None = option(None, text(), optional=True)
    metadata_description: str | None = option(None, text(), optional=True)
    metadata_license: str | None = option(None, text(), optional=True)
    metadata_tags: str | None = option(None, text(), optional=True)
    metadata_reso: str | None = option(None, text(), optional=True)
    metadata_arch: str | None = option(None, text(), optional=True)
    ddp_timeout: int | None = option(None, integer(1), optional=True)
    ddp_gradient_as_bucket_view: bool = option(False, flag())
    ddp_static_graph: bool = option(False, flag())
    extra_args: Sequence[str] = _said_by(list, (), _further_words())

    def __post_init__(self) -> None:
        """Check every field, and what they say together."""
        super().__post_init__()
        said = {one.name for one in fields(self) if getattr(self, one.name) not in (None, False, ())}
        warms_up = self.lr_warmup_steps not in (None, 0, "0%")
        has_own_schedule = self.lr_scheduler_type or self.optimizer_type.lower().endswith("schedulefree")
        compiles = [name for name in said if name.startswith("compile_")]
        sampling = [name for name in said if name.startswith("sample_") and name != "sample_prompts"]
        lone = [
            (name, needed)
            for name, needed in (
                ("fp8_scaled", "fp8_base"),
                ("gradient_checkpointing_cpu_offload", "gradient_checkpointing"),
                ("use_pinned_memory_for_block_swap", "blocks_to_swap"),
                ("block_swap_h2d_only", "blocks_to_swap"),
                ("block_swap_h2d_only", "gradient_checkpointing"),
                ("block_swap_ring_size", "block_swap_h2d_only"),
                ("save_last_n_steps", "save_every_n_steps"),
                ("save_last_n_epochs", "save_every_n_epochs"),
                ("save_last_n_steps_state", "save_every_n_steps"),
                ("save_last_n_epochs_state", "save_every_n_epochs"),
                ("save_last_n_steps_state", "save_state"),
                ("save_last_n_epochs_state", "save_state"),
                ("base_weights_multiplier", "base_weights"),
                *((name, "compile") for name in sorted(compiles)),
                *((name, "sample_prompts") for name in sorted(sampling)),
            )
            # A 0 swaps nothing.
            if name in said and (needed not in said or getattr(self, needed) == 0)
        ]
        self._refuse(
            *((True, f"{name}={getattr(self, name)!r} needs {needed}") for name, needed in lone),
            (
                self.attention == "xformers" and not self.split_attn,
                "attention='xformers' needs split_attn=True",
            ),
            (
                self.fp8_scaled and self.base_weights,
                "fp8_scaled=True loses the base_weights that are merged into the DiT: set base_weights=None (with "
                "Z-Image itself or the De-Turbo as DiT), or save memory with blocks_to_swap instead",
            ),
            (
                self.persistent_data_loader_workers and self.max_data_loader_n_workers == 0,
                "persistent_data_loader_workers=True needs workers: max_data_loader_n_workers of at least 1",
            ),
            (
                (self.min_timestep or 0) >= (1000 if self.max_timestep is None else self.max_timestep),
                f"min_timestep={self.min_timestep} must be less than max_timestep={self.max_timestep}",
            ),
            (
                self.preserve_distribution_shape and self.timestep_sampling == "sigma",
                "preserve_distribution_shape=True does nothing with timestep_sampling='sigma'",
            ),
            (
                self.lr_scheduler and self.lr_scheduler_type,
                "lr_scheduler_type takes the place of lr_scheduler: set one of them",
            ),
            (
                warms_up and self.lr_scheduler in (None, "constant") and not has_own_schedule,
                f"lr_warmup_steps={self.lr_warmup_steps!r} needs another lr_scheduler than 'constant', such as "
                "'constant_with_warmup' or 'cosine'",
            ),
            (
                self.lr_scheduler == "cosine_with_min_lr" and self.lr_scheduler_min_lr_ratio is None,
                "lr_scheduler='cosine_with_min_lr' needs lr_scheduler_min_lr_ratio",
            ),
            (
                self.sample_prompts and not sampling,
                "sample_prompts needs to know when: sample_every_n_steps, sample_every_n_epochs or sample_at_first",
            ),
            (
                self.log_with in ("tensorboard", "all") and not self.logging_dir,
                f"log_with={self.log_with!r} needs logging_dir",
            ),
        )

    def _remarks(self) -> list[str]:
        """What is as it was asked for, and may still surprise."""
        remarks = []
        if self.max_train_epochs is not None:
            remarks.append(f"max_train_epochs={self.max_train_epochs} decides how long is trained, not max_train_steps")
        if self.resume is not None:
            remarks.append("resume: steps are counted from 0 again, max_train_steps of them come on top")
        return remarks

    def _training_words(self, steps: Sequence[str] = (), output: Sequence[str] = ()) -> list[str]:
        """What the training script is told, but for the weights and the dataset."""
        names = [one.name for one in fields(self)]
        network, rest = names.index("network_module"), names.index("network_alpha") + 1
        return [
            *self._words_of(names[:network]),
            *steps,
            *self._words_of(names[network:rest]),
            *output,
            *self._words_of(names[rest:]),
        ]

    def _text_cache_words(self) -> list[str]:
        """What the script that caches captions is told, but for the text encoder and the dataset."""
        return ["--batch_size", str(self.text_encoder_batch_size), *self._words_of(["fp8_llm"])]

    @classmethod
    def preset(cls, name: PresetName) -> "TrainingOptions":
        """Return the options of a preset.

        Args:
            name: one of `presets()`; or "auto": by the memory of the GPU that the training will use, the first of
                CUDA_VISIBLE_DEVICES ("original" where it has more than 24 GB).

        Raises:
            ValueError: there is no such preset.
            RuntimeError: "auto" finds no GPU, or one with less memory than any preset is for.
        """
        presets = cls.presets()
        if name == "auto":
            name = _preset_for(_memory_for_auto())
        if name not in presets:
            raise ValueError(f"preset({name!r}): expected one of {', '.join(map(repr, [*presets, 'auto']))}")
        return presets[name].options

    @classmethod
    def presets(cls) -> "dict[str, Preset]":
        """Return the presets by name: their options, where these come from, and what they need."""
        estimate = (
            "Estimated from the sizes of the weights (12.3 GB of DiT in bf16, 0.36 GB each of its 30 blocks) and of "
            "activations at 1024x1024 with batch_size 1; not measured."
        )
        return {
            "original": Preset(
                options=cls(),
                source="TechTrash_MusubiTraining 0.0.11, whose settings were fixed.",
                needs=f"About 18 GB of GPU memory, and 9 GB for the text encoder before. {estimate}",
            ),
            "musubi": Preset(
                options=cls(
                    timestep_sampling="shift",
                    discrete_flow_shift=2.0,
                    learning_rate=1e-4,
                    optimizer_args=(),
                    max_data_loader_n_workers=2,
                    persistent_data_loader_workers=True,
                    network_dim=32,
                    network_alpha=1.0,
                    max_train_epochs=16,
                    save_every_n_epochs=1,
                    base_weights=None,
                ),
                source="The training command in docs/zimage.md of Musubi Tuner v0.3.4.",
                needs="Memory as the original's, and a DiT that is trained without an adapter: Z-Image itself (which "
                "the docs recommend) or its De-Turbo. It trains 16 epochs, whatever max_train_steps says.",
            ),
            "24gb": Preset(
                options=cls(),
                source="The original's, which fit.",
                needs=f"A GPU of 24 GB, of which about 18 are used. {estimate}",
            ),
            "16gb": Preset(
                options=cls(blocks_to_swap=12),
                source="The original's, with the block swap that docs/zimage.md of Musubi Tuner v0.3.4 names for "
                "saving memory: it changes no weight, as 8 bits would.",
                needs=f"A GPU of 16 GB, of which about 13 are used, and 24 GB of RAM. {estimate}",
            ),
            "12gb": Preset(
                options=cls(blocks_to_swap=22, fp8_llm=True),
                source="As 16gb, with more blocks, and the text encoder in 8 bits as the same page offers.",
                needs=f"A GPU of 12 GB, of which about 9 are used, and 24 GB of RAM. {estimate}",
            ),
        }


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A preset of training options.

    Attributes:
        options: the options.
        source: where their values come from.
        needs: what they need.
    """

    options: TrainingOptions
    source: str
    needs: str


# A card's memory is somewhat less than its name says: 22.5 GiB of "24 GB" with error correction.
_PRESET_FROM_BYTES: tuple[tuple[int, PresetName], ...] = (
    (25 * _GIB, "original"),
    (22 * _GIB, "24gb"),
    (int(14.5 * _GIB), "16gb"),
    (11 * _GIB, "12gb"),
)


def _memory_for_auto() -> int:
    try:
        return _gpu_memory_bytes()
    except RuntimeError as error:
        named = 'or name a preset instead of "auto"'
        raise RuntimeError(f'TrainingOptions.preset("auto") chooses by the GPU: {error} ({named})') from None


def _preset_for(memory_bytes: int) -> PresetName:
    for least, name in _PRESET_FROM_BYTES:
        if memory_bytes >= least:
            return name
    raise RuntimeError(
        f'TrainingOptions.preset("auto"): the GPU has {memory_bytes / _GIB:.1f} GiB, expected at least '
        f"{_PRESET_FROM_BYTES[-1][0] // _GIB}. Train on a larger one, or try TrainingOptions(blocks_to_swap=28, "
        "fp8_base=True, fp8_llm=True) at a smaller resolution."
    )


@dataclass(frozen=True, kw_only=True)
class LaunchOptions(_CommandLine):
    """How accelerate launches the training: on which GPUs, and with how many processes and machines.

    `MusubiTraining(…, launch_options=LaunchOptions(num_processes=2))` or `train(…, launch_options=…)`, which goes
    before. The default is what TechTrash_MusubiTraining 0.0.11 did: one process where one GPU is visible; where there
    are several, accelerate starts one for each, unless its configuration file says otherwise: `num_processes=1` keeps
    it at one. Names, types and ranges are those of `accelerate launch` 1.6.0. The caching steps run on the first
    visible GPU, whatever is chosen here; CUDA_VISIBLE_DEVICES in the environment is for all steps.

    Attributes:
        num_cpu_threads_per_process: (int, at least 1; default 1, the original's).
        num_processes: on all machines together (int, at least 1, a multiple of `num_machines`); by default as many as
            `gpu_ids` names, else as accelerate decides. With 2 or more `--multi_gpu` is passed too, where there is no
            `config_file`.
        gpu_ids: of this machine (a list or tuple of different ints of at least 0, or "all").
        num_machines: (int, at least 1; 1). With 2 or more all of `num_processes`, `machine_rank`, `main_process_ip` and
            `main_process_port` are needed, and each machine runs this with its own rank: they wait for each other.
        machine_rank: of this machine (int, from 0 up to below `num_machines`).
        main_process_ip: the address of the machine with rank 0 (str).
        main_process_port: its port (int, 0 to 65535, 0 for any that is free, on one machine; 29500).
        config_file: a configuration file of accelerate, in the place of the default one (path of a file).
        extra_args: further words for the launcher (tuple of str), "--flag" first and then its values. Not what is said
            elsewhere.

    Raises:
        TypeError: a value is of a type that a field does not take; the message names the field, the value and the
            range.
        ValueError: a value is out of a field's range, or fields contradict each other.
    """

    _said_elsewhere: ClassVar = {
        "mixed_precision": "it is a field of TrainingOptions",
        "multi_gpu": "num_processes of at least 2 says it",
        "help": "it trains nothing",
        "module": "what is launched is Musubi Tuner's script",
        "no_python": "what is launched is Musubi Tuner's script",
    }

    num_cpu_threads_per_process: int = option(1, integer(1))
    # Here comes the precision.
    num_processes: int | None = option(None, integer(1), optional=True)
    gpu_ids: Sequence[int] | Literal["all"] | None = _said_by(
        lambda value: [] if value is None else ["--gpu_ids", value if value == "all" else ",".join(map(str, value))],
        None,
        _gpu_ids(),
        optional=True,
    )
    num_machines: int | None = option(None, integer(1), optional=True)
    machine_rank: int | None = option(None, integer(0), optional=True)
    main_process_ip: str | None = option(None, text(), optional=True)
    main_process_port: int | None = option(None, integer(0, 65535), optional=True)
    config_file: _Path | None = option(None, path(), optional=True, is_path=True, exists=True)
    extra_args: Sequence[str] = _said_by(list, (), _further_words())

    def __post_init__(self) -> None:
        """Check every field, and what they say together."""
        super().__post_init__()
        machines = self.num_machines or 1
        needed = ("num_processes", "machine_rank", "main_process_ip", "main_process_port")
        missing = [name for name in needed if getattr(self, name) is None]
        gpus = None if self.gpu_ids in (None, "all") else len(self.gpu_ids or ())
        here = None if self.num_processes is None else math.ceil(self.num_processes / machines)
        self._refuse(
            (machines > 1 and missing, f"num_machines={machines} needs {', '.join(missing)}"),
            (
                self.num_processes is not None and self.num_processes % machines,
                f"num_processes={self.num_processes} must be a multiple of num_machines={machines}: they are of all "
                "machines together",
            ),
            (
                self.machine_rank is not None and self.machine_rank >= machines,
                f"machine_rank={self.machine_rank} must be less than num_machines={machines}",
            ),
            (
                machines > 1 and self.main_process_port == 0,
                "main_process_port=0 cannot be known to the other machines: choose one that is free",
            ),
            (
                gpus is not None and here is not None and here > gpus,
                f"num_processes={self.num_processes} are {here} on this machine, more than the {gpus} GPUs of gpu_ids",
            ),
        )

    def _launch_words(self, mixed_precision: str) -> list[str]:
        """What the launcher is told before the script."""
        processes = self.num_processes
        if processes is None and isinstance(self.gpu_ids, tuple):
            # accelerate counts all GPUs that it sees.
            processes = len(self.gpu_ids)
        names = [one.name for one in fields(self)]
        several = (processes or 1) > 1 and self.config_file is None
        return [
            *self._words_of(names[:1]),
            *_words("mixed_precision", mixed_precision),
            *_words("multi_gpu", several),
            *_words("num_processes", processes),
            *self._words_of(names[2:]),
        ]
