"""The native half of `musubitraining`."""

import os
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from musubitraining.plan import Plan
from musubitraining.run_events import Event
from musubitraining.run_record import TrainingRun
from musubitraining.run_status import RunStatus
from musubitraining.training_options import LaunchOptions, TrainingOptions

__all__ = [
    "IMAGE_EXTENSIONS",
    "Cancelled",
    "DatasetLimits",
    "DownloadError",
    "GPUMonitor",
    "Models",
    "MusubiTraining",
    "_gpu_memory_bytes",
    "_gpus",
    "_restore_download_error",
    "_supervise",
    "convert_lora_to_comfyui",
    "dataset_toml",
]

_Path = str | os.PathLike[str]

IMAGE_EXTENSIONS: tuple[str, ...]
"""What Musubi Tuner reads, in lower case and without dots."""

class Cancelled(Exception):
    """The run was ended by `MusubiTraining.cancel()`."""

@dataclass(frozen=True, kw_only=True)
class DatasetLimits:
    """How much a zip of photos may bring; more is refused before the old dataset is touched.

    Set it on a trainer: `trainer.dataset_limits = DatasetLimits(extracted_bytes=200 * 2**30)`. It is read when the
    dataset is prepared, and any object with the three attributes will do. Each is an int of at least 1.

    Attributes:
        zip_bytes: bytes of the zip as it is downloaded, also of what a Content-Encoding inflates to.
        extracted_bytes: bytes of all the files in it, extracted.
        entries: files and folders in it, of any kind.

    Raises:
        TypeError: a value is no int.
        ValueError: a value is less than 1.
    """

    zip_bytes: int = ...
    extracted_bytes: int = ...
    entries: int = ...
    def __post_init__(self) -> None: ...

class _HasDatasetLimits(Protocol):
    @property
    def zip_bytes(self) -> int: ...
    @property
    def extracted_bytes(self) -> int: ...
    @property
    def entries(self) -> int: ...

class _HasDatasetOptions(Protocol):
    @property
    def captions(self) -> str: ...
    @property
    def default_caption(self) -> str | None: ...
    @property
    def image_extensions(self) -> str | Sequence[str]: ...
    @property
    def upright(self) -> bool: ...

class DownloadError(OSError):
    """The zip of photos could not be had.

    Where `requests` is importable, `except requests.RequestException` catches it too (as `requests.HTTPError`,
    `requests.ConnectionError`, `requests.Timeout` or `requests.TooManyRedirects`).

    Attributes:
        status: the HTTP status, or None where there was no answer.
    """

    status: int | None

def _supervise(lifeline: int, locks: list[int]) -> None:
    """Make a fork of a warm interpreter the supervisor of a step: returns in the step's own process, a fork of it."""

def _gpu_memory_bytes() -> int:
    """All memory of the GPU that a training in this environment uses.

    Raises:
        RuntimeError: there is no NVIDIA driver, it reports no GPU, or none is visible.
    """

def _gpus() -> dict[str, Any]:
    """What NVML says: "driver", its version, and "gpus", each as the driver has it at the moment.

    A GPU has "index" (in the order of the PCI bus), "name", "uuid", "total_bytes", "free_bytes" and "processes", those
    that compute on it, each with "pid" and "used_bytes". None stands for what the driver does not say.

    Raises:
        RuntimeError: there is no NVIDIA driver that works; the message says what to do.
    """

def _restore_download_error(message: str, status: int | None, kind: str) -> DownloadError:
    """Make an unpickled error of the kind that this process has: with `requests` or without."""

class GPUMonitor:
    """The GPUs that the NVIDIA driver reports.

    Attributes:
        gpu_count: how many there are.
        gpu_name: what `get_gpu_name()` gave at construction.

    Raises:
        RuntimeError: there is no NVIDIA driver, or it reports no GPU; the message says what to do.
    """

    gpu_count: int
    gpu_name: str
    def __init__(self) -> None: ...
    def get_gpu_name(
        self,
    ) -> Literal["RTX 4090", "RTX 5090", "RTX 6000 Ada", "A40", "H100", "A100", "B200", "H200", "Unknown GPU"]:
        """Return the label of GPU 0.

        Raises:
            RuntimeError: there is no NVIDIA driver, or it reports no GPU.
        """

@dataclass
class Models:
    """The names of the weight files inside the models folder.

    The defaults are those of TechTrash_MusubiTraining 0.0.11.

    Attributes:
        ae: the VAE.
        text_encoder: Qwen3-4B.
        DiT: Z-Image itself.
        base_weights: the training adapter that is merged before training.
    """

    ae: str = "ae.safetensors"
    text_encoder: str = "qwen_3_4b.safetensors"
    DiT: str = "z_image_de_turbo_v1_bf16.safetensors"
    base_weights: str = "zimage_turbo_training_adapter_v2.safetensors"

class _HasModels(Protocol):
    ae: str
    text_encoder: str
    DiT: str
    base_weights: str

class MusubiTraining:
    """Trains photo LoRAs for Z-Image with Musubi Tuner.

    The five arguments are plain attributes that are read when a method runs. A relative path counts from the current
    folder.

    Args:
        absolute_path_models: the folder of the weight files; it must exist.
        models_for_training: their names; any object with the four attributes of `Models` will do.
        absolute_path_training_folder: where the dataset is built; created when it is needed.
        absolute_path_output: where the LoRA is written; created at once.
        absolute_path_musubi_tuner: a clone of Musubi Tuner; it must exist.
        options: how to train; by default as TechTrash_MusubiTraining 0.0.11.
        launch_options: how the training is launched, likewise.
        dataset_options: how photos and captions are taken, likewise.

    Raises:
        FileNotFoundError: the models folder or the clone does not exist.
    """

    absolute_path_models: _Path
    models_for_training: Models | _HasModels
    absolute_path_training_folder: _Path
    absolute_path_output: _Path
    absolute_path_musubi_tuner: _Path
    options: TrainingOptions | None
    """How to train; read when a step runs, absent where none were given."""
    launch_options: LaunchOptions | None
    """How the training is launched, likewise."""
    dataset_limits: DatasetLimits | _HasDatasetLimits
    """How much a zip of photos may bring; may be set, absent otherwise."""
    last_run: TrainingRun | None
    """The last run of `train`, however it ended; None before there is one."""

    def __init__(
        self,
        absolute_path_models: _Path,
        models_for_training: Models | _HasModels,
        absolute_path_training_folder: _Path,
        absolute_path_output: _Path,
        absolute_path_musubi_tuner: _Path,
        *,
        options: TrainingOptions | None = None,
        launch_options: LaunchOptions | None = None,
        dataset_options: _HasDatasetOptions | None = None,
    ) -> None: ...
    def _run_cmd(self, step: str, cmd: Sequence[_Path], *, cwd: _Path) -> None:
        """Run a command and log every line of its merged stdout and stderr, live.

        The command has no stdin, and its whole process tree ends when this returns or raises, or when this process
        dies.

        Args:
            step: what to call it in the log.
            cmd: program and arguments.
            cwd: the folder to run it in.

        Raises:
            subprocess.CalledProcessError: it failed; `returncode` is negative for a signal, `output` has the last
                lines, and the message says why where that is known. It is a `musubitraining.CalledProcessError`.
            OSError: it could not be started.
            Cancelled: `cancel()` was called.
        """

    def _validate_toml_str(self, toml_content: str) -> dict[str, Any]:
        """Parse the dataset TOML, as Python's `tomllib` does.

        Args:
            toml_content: TOML 1.0.

        Returns:
            What it says.

        Raises:
            ValueError: it is no TOML; its `__cause__`, a `tomllib.TOMLDecodeError`, says where.
        """

    def _prepare_dataset(self, dataset_toml_content: str | None, images_zip_url: _Path, trigger_word: str) -> str:
        """Download the zip of photos and make a ready dataset of it.

        That is `images/` with a caption beside each photo, an empty `cache/`, and `dataset.toml`. The dataset that was
        there before stays until the new one stands.

        Args:
            dataset_toml_content: Musubi Tuner's dataset configuration; None for that of `dataset_toml`.
            images_zip_url: where the zip is, http or https; or the path or file:// URL of a zip or a folder of photos
                that is here, in which nothing is changed.
            trigger_word: the caption of every photo, or a part of it (see `DatasetOptions`).

        Returns:
            The path of `dataset.toml`.

        Raises:
            ValueError: the TOML does not parse, an argument cannot work, or no photo is left.
            OSError: a zip or folder that is here cannot be read.
            zipfile.BadZipFile: what came is not a zip.
            DownloadError: the zip could not be had.
            RuntimeError: another run has the training folder.
            Cancelled: `cancel()` was called.
        """

    def _pre_cache(self, dataset_toml_path: _Path) -> None:
        """Cache the photos' latents and the captions' text encoder outputs, with Musubi Tuner's two scripts.

        Args:
            dataset_toml_path: the dataset configuration.

        Raises:
            FileNotFoundError: the configuration, a script or a weight file does not exist.
            RuntimeError: a weight file is cut, or something else in its place; a script found no images, or left photos
                without a cache; another run has the training folder.
            subprocess.CalledProcessError: a script failed.
            Cancelled: `cancel()` was called.
        """

    def _launch_training(
        self,
        dataset_toml_path: _Path,
        *,
        output_name: str = "output_lora_model",
        max_train_steps: int = 2000,
        seed: int = 42,
    ) -> str:
        """Train the LoRA, with `accelerate launch` of Musubi Tuner's script.

        Args:
            dataset_toml_path: the dataset configuration.
            output_name: the LoRA's file name without its ending.
            max_train_steps: optimisation steps, at least 1.
            seed: of the training's random numbers, 0 to 2**32 - 1.

        Returns:
            The path of the LoRA that this run has written.

        Raises:
            FileNotFoundError: something that is needed, or the LoRA after the run, does not exist.
            RuntimeError: accelerate is missing; a weight file is cut, or something else in its place; the loss was NaN
                to the end, or the LoRA is cut or holds values that are no finite numbers; another run has the training
                folder.
            ValueError: an argument cannot work.
            TypeError: an argument is of a type that cannot work.
            subprocess.CalledProcessError: the training failed.
            Cancelled: `cancel()` was called.
        """

    def _convert_for_comfyui(self, model_path: _Path) -> str:
        """Convert a trained LoRA to the form that ComfyUI loads, with the clone's own script.

        Args:
            model_path: the trained LoRA.

        Returns:
            `model_path` with `_comfyui.safetensors` in place of `.safetensors`.

        Raises:
            FileNotFoundError: the LoRA, the script, or the converted file after the run does not exist.
            RuntimeError: the converted file is cut, or holds values that are no finite numbers.
            subprocess.CalledProcessError: the script failed.
            Cancelled: `cancel()` was called.
        """

    def train(
        self,
        dataset_toml_content: str | None,
        images_zip_url: _Path,
        trigger_word: str,
        *,
        use_pre_cache: bool = True,
        convert_for_comfyui: bool = True,
        output_name: str = "output_lora_model",
        max_train_steps: int = 2000,
        seed: int = 42,
        warm_start: bool = False,
        native_convert: bool = False,
        options: TrainingOptions | None = None,
        launch_options: LaunchOptions | None = None,
        dataset_options: _HasDatasetOptions | None = None,
        on_event: Callable[[Event], object] | None = None,
        progress: bool | None = None,
    ) -> str:
        """Make a LoRA from a zip of photos: dataset, caches, training, conversion.

        Everything that can be checked beforehand is checked before anything is deleted or fetched.

        Args:
            dataset_toml_content: Musubi Tuner's dataset configuration. Its `image_directory` and `cache_directory` must
                be `images` and `cache` in the training folder. None for that of `dataset_toml`.
            images_zip_url: where the zip of photos is, http or https; or the path or file:// URL of a zip or a folder
                of photos that is here, in which nothing is changed.
            trigger_word: the caption of every photo, or a part of it (see `DatasetOptions`).
            use_pre_cache: run the two caching steps.
            convert_for_comfyui: convert the LoRA for ComfyUI.
            output_name: the LoRA's file name without its ending.
            max_train_steps: optimisation steps, at least 1.
            seed: of the training's random numbers, 0 to 2**32 - 1.
            warm_start: import PyTorch and the rest once for all steps, in one interpreter that begins while the photos
                are downloaded and forks for each step, and convert natively. Where that cannot be, the log says why,
                and each step has an interpreter of its own.
            native_convert: convert with `convert_lora_to_comfyui` instead of the clone's script; where it cannot, the
                log says why, and the script does.
            options: how to train, in the place of the trainer's.
            launch_options: how the training is launched, in the place of the trainer's.
            dataset_options: how photos and captions are taken, in the place of the trainer's.
            on_event: called in this thread with everything that happens, as it happens: `musubitraining.run_events` has
                the kinds. What it raises ends the run and is raised here; the run waits for it.
            progress: whether progress bars are shown; by default in a terminal and in a notebook.

        Returns:
            The path of the converted LoRA, or of the trained one with `convert_for_comfyui=False`.

        Raises:
            ValueError: an argument, the TOML or an option cannot work, or no photo is left; the message names a flag
                that this Musubi Tuner does not have.
            TypeError: an argument is of a type that cannot work.
            FileNotFoundError: weights, a script, or a file that a step should have written do not exist.
            RuntimeError: accelerate is missing; a weight file is cut, or something else in its place; a step ended well
                but its work cannot be used (no images, photos without a cache, a NaN loss, a cut LoRA); another run has
                the training folder.
            DownloadError: the zip could not be had.
            zipfile.BadZipFile: what came is not a zip.
            subprocess.CalledProcessError: a step failed.
            Cancelled: `cancel()` was called.
            BaseException: what `on_event` raises.
        """

    def train_async(self, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, str]:
        """Train as `train` does, in a thread of its own.

        Args:
            *args: as for `train`.
            **kwargs: as for `train`; `on_event` is called in that thread.

        Returns:
            A coroutine of what `train` returns. Cancelling it cancels the run, and waits until nothing of it is left
            running.

        Raises:
            BaseException: what `train` raises.
        """

    def plan(
        self,
        dataset_toml_content: str | None = None,
        images_zip_url: _Path | None = None,
        trigger_word: str | None = None,
        *,
        use_pre_cache: bool = True,
        convert_for_comfyui: bool = True,
        output_name: str = "output_lora_model",
        max_train_steps: int = 2000,
        seed: int = 42,
        warm_start: bool = False,
        native_convert: bool = False,
        options: TrainingOptions | None = None,
        launch_options: LaunchOptions | None = None,
        dataset_options: _HasDatasetOptions | None = None,
    ) -> Plan:
        """Say what a run with these arguments will meet, before it starts.

        That is paths, weights, packages, the tokenizer, the GPU, memory, disks, and what the server says of the zip.
        Nothing is deleted, created or downloaded, and nothing of the tuner's is imported. It takes less than a second.

        Args:
            dataset_toml_content: as for `train`; it may be left out, as may the next two.
            images_zip_url: as for `train`; a server is asked for size and type only, of what is here names are read.
            trigger_word: as for `train`.
            use_pre_cache: as for `train`.
            convert_for_comfyui: as for `train`.
            output_name: as for `train`.
            max_train_steps: as for `train`.
            seed: as for `train`.
            warm_start: as for `train`.
            native_convert: as for `train`.
            options: as for `train`.
            launch_options: as for `train`.
            dataset_options: as for `train`.

        Returns:
            Every check with its verdict, what was found, what was expected and the mend; and each step's command.

        Raises:
            TypeError: options are of another class.
            Cancelled: `cancel()` was called.
        """

    def cancel(self) -> bool:
        """Cancel what is under way on this trainer; may be called from any thread.

        The call that is under way (`train`, or a step alone) ends its process tree and raises `Cancelled` in its own
        thread. The training folder is left as after any other end: the next run can use it.

        Returns:
            Whether anything was under way.
        """

    def status(self) -> RunStatus:
        """Say where the run that is under way on this trainer is; may be called from any thread.

        Returns:
            Its step, how far that is, the loss, the time left; the end of the last run where none is under way.
        """

def dataset_toml(
    training_folder: _Path,
    *,
    resolution: int | tuple[int, int] = (1024, 1024),
    batch_size: int = 1,
    num_repeats: int = 1,
    enable_bucket: bool = True,
    bucket_no_upscale: bool = False,
    caption_extension: str = ".txt",
) -> str:
    """Write the dataset configuration of a training folder, as Musubi Tuner reads it.

    Args:
        training_folder: that of the trainer; its photos will be in `images`, its caches in `cache`. A relative path
            counts from the current folder.
        resolution: pixels, 32 to 8192: the side of a square, or width and height. With buckets, the area that photos
            are brought to; without, their size, in multiples of 16.
        batch_size: photos in a step, 1 to 1024.
        num_repeats: how often each photo comes in an epoch, 1 to 100_000.
        enable_bucket: whether photos keep their shape, as near as buckets come to it.
        bucket_no_upscale: whether photos that are smaller keep their size; needs enable_bucket.
        caption_extension: of the captions' files, with its dot. Those of this library end in ".txt".

    Returns:
        The text, for `dataset_toml_content`.

    Raises:
        ValueError: a value is out of its range, or the path is one that Musubi Tuner cannot work with.
        TypeError: a value is of a type that cannot work.
    """

def convert_lora_to_comfyui(
    source: _Path, destination: _Path, *, form: Literal["merged", "separate"] = "merged"
) -> str:
    """Convert a LoRA or LoHa of Z-Image to a form that ComfyUI loads.

    No torch is needed, and memory stays small whatever the file's size. Ctrl-C ends it. What is at the destination
    stays until the new file is complete, which takes its owner and permissions; a link stays one.

    Args:
        source: the LoRA, as Musubi Tuner has trained it. One that is merged already is passed through.
        destination: the file to write, in a folder that exists; it may be the source.
        form: "merged" is what the clone's `convert_z_image_lora_to_comfy.py` writes, but for the order of the
            metadata: q, k and v as one module, and new hashes where there are metadata. "separate" is what its
            `convert_lora.py --target other` writes, which nunchaku needs: diffusers' naming, q, k and v each for
            itself, alpha multiplied into the matrices of a LoRA.

    Returns:
        The destination.

    Raises:
        ValueError: the source is no LoRA or LoHa of Z-Image in Musubi Tuner's naming (a LoKr, say), or it is damaged;
            q, k and v cannot be merged; the form is neither. Nothing is written.
        TypeError: an argument is of a type that cannot work.
        OSError: a file cannot be read or written, as where the disk is full.
    """
