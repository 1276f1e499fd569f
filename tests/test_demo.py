"""The miniature tuner: real processes, real files. What is expected here is what Musubi Tuner 0.3.4 does."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")

SPEC = importlib.util.find_spec("musubitraining")
SOURCE = Path(__file__).parents[1] / "python" / "musubitraining"
PACKAGE = Path(SPEC.origin).parent if SPEC and SPEC.origin else SOURCE
DEMO = PACKAGE / "demo"
TUNER = DEMO / "tuner"
CONVERTER = TUNER / "src" / "musubi_tuner" / "networks" / "convert_z_image_lora_to_comfy.py"
FLAGS = json.loads((Path(__file__).parent / "demo_flags.json").read_text())

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]

MODULES = (
    *(f"attention_to_{part}" for part in ("q", "k", "v", "out_0")),
    *(f"feed_forward_w{number}" for number in (1, 2, 3)),
)
STEP_BAR = re.compile(
    r"steps: +\d+%\|[ ▏▎▍▌▋▊▉█]{10}\| (\d+)/(\d+) \[\d\d:\d\d<(?:\d\d:\d\d|\?), +(?:[\d.]+(?:it/s|s/it)|\?it/s)"
    r"(?:, avr_loss=(\d[\w.+-]*|nan|inf))?\] *$"
)


def python(*args: str | Path, path: tuple[Path, ...] = (TUNER / "src",), **options: Any) -> SimpleNamespace:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, *map(str, args)], env=env, capture_output=True, check=False, **options)
    # bytes first: a text pipe would turn the carriage returns into newlines
    out, err = done.stdout.decode(), done.stderr.decode()
    lines = [line for line in err.replace("\r", "\n").split("\n") if line.strip() and not re.search(r"it/s|s/it", line)]
    return SimpleNamespace(code=done.returncode, out=out, err=err, last=lines[-1] if lines else "")


def read(path: Path) -> tuple[Tensors, dict[str, str] | None]:
    """An independent reader: name to (type, shape, bytes), and the metadata."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    metadata = header.pop("__metadata__", None)
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(data)
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        tensors[name] = (entry["dtype"], tuple(entry["shape"]), data[start:end])
    return tensors, metadata


def write(path: Path, tensors: Tensors, metadata: dict[str, str] | None) -> None:
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, (dtype, shape, values) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def array(tensor: tuple[str, tuple[int, ...], bytes]) -> Any:
    return np.frombuffer(tensor[2], dtype="<f4").reshape(tensor[1])


def load_module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"demo_{path.stem.strip('_')}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    load_module(DEMO / "weights.py").write_weights(folder)
    return folder


class Workspace:
    """A dataset of photos and the scripts run on it."""

    def __init__(self, folder: Path, models: Path, resolution: int = 64, photos: int = 3) -> None:
        self.folder, self.models = folder, models
        self.images, self.cache, self.output = (folder / name for name in ("images", "cache", "output"))
        self.images.mkdir(parents=True)
        for photo in sorted((DEMO / "photos").glob("*.jpg"))[:photos]:
            shutil.copy(photo, self.images)
            (self.images / photo.name).with_suffix(".txt").write_text("zwx cat\n")
        self.config = folder / "dataset.toml"
        self.configure(resolution=resolution)

    def configure(self, dataset: str = "", general: str = "", resolution: int = 64) -> None:
        self.config.write_text(
            f'[general]\nresolution = [{resolution}, {resolution}]\ncaption_extension = ".txt"\nbatch_size = 1\n'
            f"enable_bucket = true\n{general}\n[[datasets]]\nimage_directory = '{self.images}'\n"
            f"cache_directory = '{self.cache}'\n{dataset}\n"
        )

    def latents(self, *args: str | Path) -> SimpleNamespace:
        vae = self.models / "ae.safetensors"
        return python(TUNER / "zimage_cache_latents.py", "--dataset_config", self.config, "--vae", vae, *args)

    def texts(self, *args: str | Path) -> SimpleNamespace:
        encoder = self.models / "qwen_3_4b.safetensors"
        script = TUNER / "zimage_cache_text_encoder_outputs.py"
        return python(script, "--dataset_config", self.config, "--text_encoder", encoder, "--batch_size", "16", *args)

    def cached(self) -> Workspace:
        assert self.latents().code == 0
        assert self.texts().code == 0
        return self

    def arguments(self, **changes: Any) -> list[str]:
        """The library's arguments, changed; `None` leaves one out."""
        given: dict[str, Any] = {
            "dit": self.models / "z_image_de_turbo_v1_bf16.safetensors",
            "vae": self.models / "ae.safetensors",
            "text_encoder": self.models / "qwen_3_4b.safetensors",
            "base_weights": self.models / "zimage_turbo_training_adapter_v2.safetensors",
            "dataset_config": self.config,
            "sdpa": True,
            "mixed_precision": "bf16",
            "timestep_sampling": "sigmoid",
            "weighting_scheme": "none",
            "optimizer_type": "adamw8bit",
            "learning_rate": "2e-4",
            "optimizer_args": "weight_decay=0.0001",
            "gradient_checkpointing": True,
            "max_train_steps": 4,
            "seed": 42,
            "network_module": "networks.lora_zimage",
            "network_dim": 16,
            "network_alpha": 16,
            "output_dir": self.output,
            "output_name": "lora",
        } | changes
        words: list[str] = []
        for name, value in given.items():
            if value is not None:
                words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        return words

    def train(self, **changes: Any) -> SimpleNamespace:
        return python(TUNER / "zimage_train_network.py", *self.arguments(**changes))


@pytest.fixture
def workspace(tmp_path: Path, models: Path) -> Workspace:
    return Workspace(tmp_path, models)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, models: Path) -> SimpleNamespace:
    """A workspace trained for as long as the demonstration, at its resolution, on its photos."""
    place = Workspace(tmp_path_factory.mktemp("trained"), models, resolution=256, photos=6).cached()
    return SimpleNamespace(place=place, run=place.train(max_train_steps=200), file=place.output / "lora.safetensors")


# --- The command line


@pytest.mark.parametrize("script", FLAGS)
def test_flags_are_those_of_musubi_tuner(script: str) -> None:
    code = f"""
import argparse, json
from musubi_tuner import cache_latents, zimage_cache_text_encoder_outputs as texts
from musubi_tuner.training import parser_common
make = {{"zimage_cache_latents": cache_latents.setup_parser_common,
         "zimage_cache_text_encoder_outputs": texts.setup_parser,
         "zimage_train_network": parser_common.setup_parser}}[{script!r}]
names = {{parser_common.whole_or_share: "steps", None: "str"}}
flags = {{}}
for action in make()._actions:
    switch = isinstance(action, argparse._StoreTrueAction)
    row = {{"type": "flag" if switch else names.get(action.type) or action.type.__name__}}
    if action.default is not None and not switch: row["default"] = action.default
    if action.choices: row["choices"] = list(action.choices)
    if action.nargs: row["nargs"] = action.nargs
    if action.required: row["required"] = True
    flags[action.option_strings[0]] = row
del flags["-h"]
print(json.dumps(flags))
"""
    assert json.loads(python("-c", code).out) == FLAGS[script]


@pytest.mark.parametrize("flag", [flag for flag, row in FLAGS["zimage_train_network"].items() if "choices" in row])
def test_choices_are_checked(flag: str) -> None:
    done = python(TUNER / "zimage_train_network.py", flag, "nonsense")
    assert done.code == 2
    assert done.last.startswith(f"zimage_train_network.py: error: argument {flag}: invalid choice: 'nonsense'")


@pytest.mark.parametrize(
    ("script", "args", "message"),
    [
        ("zimage_cache_latents.py", [], "the following arguments are required: --dataset_config"),
        ("zimage_cache_latents.py", ["--dataset_config", "x", "--nope"], "unrecognized arguments: --nope"),
        ("zimage_cache_latents.py", ["--dataset_config", "x", "--batch_size", "y"], "invalid int value: 'y'"),
        ("zimage_cache_text_encoder_outputs.py", ["--dataset_config", "x"], "required: --text_encoder"),
        ("zimage_train_network.py", ["--max_train_steps", "many"], "invalid int value: 'many'"),
        ("zimage_train_network.py", ["--output_name", "-x"], "--output_name: expected one argument"),
        ("convert_lora.py", ["--input", "a", "--output", "b"], "required: --target"),
        ("src/musubi_tuner/networks/convert_z_image_lora_to_comfy.py", ["--model_path", "a", "--output_path", "b"], ""),
    ],
)
def test_usage_errors_end_with_2(script: str, args: list[str], message: str) -> None:
    done = python(TUNER / script, *args)
    assert done.code == 2
    assert re.search(rf"{Path(script).name}: error: .*{re.escape(message)}", done.last)


@pytest.mark.parametrize("script", [*sorted(TUNER.glob("*.py")), CONVERTER], ids=lambda script: script.name)
def test_scripts_need_the_package_on_the_path(script: Path) -> None:
    done = python(script, "--help", path=())
    assert (done.code, done.last) == (1, "ModuleNotFoundError: No module named 'musubi_tuner'")
    assert python(script, "--help").code == 0


# --- The dataset file


@pytest.mark.parametrize(
    ("dataset", "general", "message"),
    [
        ("foo = 1", "", "extra keys not allowed @ data['datasets'][0]['foo']"),
        ("shuffle_caption = true", "", "extra keys not allowed @ data['datasets'][0]['shuffle_caption']"),
        ("", "foo = 1", "extra keys not allowed @ data['general']['foo']"),
        ("", "cache_directory = 'x'", "extra keys not allowed @ data['general']['cache_directory']"),
        ("", "no_resize_control = true", "extra keys not allowed @ data['general']['no_resize_control']"),
        ("batch_size = '1'", "", "expected int for dictionary value @ data['datasets'][0]['batch_size']"),
        ("batch_size = 1.0", "", "expected int for dictionary value @ data['datasets'][0]['batch_size']"),
        ("enable_bucket = 1", "", "expected bool for dictionary value @ data['datasets'][0]['enable_bucket']"),
        ("resolution = [64]", "", "expected int for dictionary value @ data['datasets'][0]['resolution']"),
        ("control_directory = 3", "", "expected str for dictionary value @ data['datasets'][0]['control_directory']"),
        ("fp_1f_clean_indices = ['a']", "", "expected int @ data['datasets'][0]['fp_1f_clean_indices'][0]"),
        ("video_directory = 'x'", "", "extra keys not allowed @ data['datasets'][0]['image_directory']"),
    ],
)
def test_keys_and_types_are_checked(workspace: Workspace, dataset: str, general: str, message: str) -> None:
    workspace.configure(dataset, general)
    for done in (workspace.latents(), workspace.texts(), workspace.train()):
        assert (done.code, done.last) == (1, f"voluptuous.error.MultipleInvalid: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = = 1", r"toml\.decoder\.TomlDecodeError: .* \(line 1 column 5 char 4\)"),
        ("a = 1\na = 2", r"toml\.decoder\.TomlDecodeError: .*"),
        ("a = [1, 'x']", r"toml\.decoder\.TomlDecodeError: .*"),
        ("foo = 1", r"voluptuous\.error\.MultipleInvalid: extra keys not allowed @ data\['foo'\]"),
        ("[datasets]\nresolution = 64", r"voluptuous\.error\.MultipleInvalid: expected a list .*"),
        ("", "AssertionError: datasets should not be an empty iterable"),
        ("[[datasets]]\nresolution = 64", "ValueError: Unsupported architecture: zi"),
        ("[[datasets]]\nvideo_directory = 'x'", "ValueError: Unsupported architecture: zi"),
        (
            "[[datasets]]\nimage_directory = '/x'\n[[datasets]]\nimage_directory = '/x'",
            "ValueError: cache directory should be unique .*",
        ),
    ],
)
def test_dataset_files_that_cannot_be_used(workspace: Workspace, text: str, message: str) -> None:
    workspace.config.write_text(text)
    done = workspace.latents()
    assert done.code == 1
    assert re.fullmatch(message, done.last)


def test_a_true_is_an_int_and_old_names_are_renamed(workspace: Workspace) -> None:
    workspace.configure("num_repeats = true\nflux_kontext_no_resize_control = true")
    done = workspace.latents()
    assert done.code == 0
    assert "Deprecated config key 'flux_kontext_no_resize_control' found in datasets[0]" in done.err


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("batch_size = 0", "ValueError: range() arg 3 must not be zero"),
        ("resolution = 0", "ZeroDivisionError: "),
        ("resolution = 16", "ZeroDivisionError: "),
        ("resolution = [64, -64]", "ValueError: "),
        ("caption_extension = ''", "FileNotFoundError: [Errno 2] No such file or directory: ''"),
        ("caption_extension = 'txt'", "FileNotFoundError: [Errno 2] No such file or directory: "),
    ],
)
def test_settings_that_fail_later(workspace: Workspace, dataset: str, message: str) -> None:
    workspace.configure(dataset)
    done = workspace.latents()
    assert done.code == 1
    assert done.last.startswith(message)


# --- Caches


def test_caches_have_their_names_keys_and_shapes(workspace: Workspace) -> None:
    Image.new("RGB", (200, 100), "red").save(workspace.images / "wide[1] 日.PNG")
    (workspace.images / "wide[1] 日.txt").write_text("a caption\n")
    latents, texts = workspace.latents(), workspace.texts()
    assert latents.code == texts.code == 0
    assert "INFO:musubi_tuner.dataset.datasources:found 4 images\n" in latents.err
    assert {path.name for path in workspace.cache.iterdir()} == {
        "cat_eyes_0256x0192_zi.safetensors",
        "cat_eyes_zi_te.safetensors",
        "cat_face_0300x0300_zi.safetensors",
        "cat_face_zi_te.safetensors",
        "cat_nose_0236x0190_zi.safetensors",
        "cat_nose_zi_te.safetensors",
        "wide[1] 日_0200x0100_zi.safetensors",
        "wide[1] 日_zi_te.safetensors",
    }
    tensors, metadata = read(workspace.cache / "wide[1] 日_0200x0100_zi.safetensors")
    # 64 x 64 in steps of 16: 2:1 is nearest to 80 x 48
    assert {name: tensor[:2] for name, tensor in tensors.items()} == {"latents_1x6x10_float32": ("F32", (16, 6, 10))}
    assert metadata == {"architecture": "z_image", "width": "200", "height": "100", "format_version": "1.0.1"}
    tensors, metadata = read(workspace.cache / "wide[1] 日_zi_te.safetensors")
    assert list(tensors) == ["varlen_llm_embed_bfloat16"]
    dtype, (tokens, features), _ = tensors["varlen_llm_embed_bfloat16"]
    assert (dtype, features) == ("BF16", 2560)
    assert len("a caption") < tokens < 512
    assert metadata == {"architecture": "z_image", "caption1": "a caption", "format_version": "1.0.1"}


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    [((1920, 1080), 1024, (1360, 768)), ((3000, 2000), 1024, (1248, 832)), ((20, 2000), 1024, (512, 2048))],
)
def test_buckets(size: tuple[int, int], resolution: int, expected: tuple[int, int]) -> None:
    code = (
        "from musubi_tuner.dataset.bucket import BucketSelector\n"
        f"selector = BucketSelector(({resolution},) * 2, enable_bucket=True, no_upscale=False)\n"
        f"print(len(selector.resolutions), selector.select({size}))"
    )
    assert python("-c", code).out.strip() == f"65 {expected}"


def test_small_photos_keep_their_size_where_they_may_not_grow(workspace: Workspace) -> None:
    workspace.configure("bucket_no_upscale = true", resolution=1024)
    assert workspace.latents().code == 0
    tensors, _ = read(workspace.cache / "cat_face_0300x0300_zi.safetensors")
    assert list(tensors) == ["latents_1x36x36_float32"]


def test_stale_caches_go_and_others_stay(workspace: Workspace) -> None:
    workspace.cache.mkdir()
    stale = [workspace.cache / name for name in ("old_0001x0001_zi.safetensors", "old_zi_te.safetensors")]
    other = [workspace.cache / name for name in ("old_0001x0001_wan.safetensors", "notes.txt")]
    for path in stale + other:
        path.write_bytes(b"")
    kept = workspace.latents("--keep_cache")
    assert f"INFO:musubi_tuner.cache_latents:Keep cache file not in the dataset: {stale[0]}\n" in kept.err
    latents, texts = workspace.latents(), workspace.texts()
    assert f"INFO:musubi_tuner.cache_latents:Removed old cache file: {stale[0]}\n" in latents.err
    assert f"INFO:musubi_tuner.cache_text_encoder_outputs:Removed old cache file: {stale[1]}\n" in texts.err
    assert [path.exists() for path in stale + other] == [False, False, True, True]


def test_an_empty_dataset_ends_well_and_clears_the_caches(workspace: Workspace) -> None:
    workspace.cached()
    for path in workspace.images.glob("*.txt"):
        path.unlink()
    done = workspace.latents()
    assert done.code == 0
    assert "found 0 images" in done.err
    assert "\r0it [00:00, ?it/s]" in done.err
    assert done.last == "INFO:musubi_tuner.zimage_cache_latents:Done!"
    assert not list(workspace.cache.glob("*_zi.safetensors"))


def test_skip_existing_looks_at_names_only(workspace: Workspace) -> None:
    workspace.cached()
    latent, text = workspace.cache / "cat_eyes_0256x0192_zi.safetensors", workspace.cache / "cat_eyes_zi_te.safetensors"
    for path in (latent, text):
        path.write_bytes(b"broken")
    assert workspace.latents("--skip_existing").code == workspace.texts("--skip_existing").code == 0
    assert latent.read_bytes() == text.read_bytes() == b"broken"
    assert workspace.latents().code == 0
    assert read(latent)
    # a text cache is merged into what is there
    done = workspace.texts()
    assert (done.code, done.last) == (1, "struct.error: unpack requires a buffer of 8 bytes")


def test_a_text_cache_keeps_what_else_it_holds(workspace: Workspace) -> None:
    workspace.cached()
    path = workspace.cache / "cat_eyes_zi_te.safetensors"
    tensors, metadata = read(path)
    assert metadata
    stale: Tensors = {"varlen_llm_embed_float16": ("F16", (1,), b"\0\0"), "other": ("F32", (1,), b"\0\0\0\0")}
    write(path, stale | {"x": ("U8", (), b"\1")}, metadata | {"caption1": "before", "note": "mine"})
    done = workspace.texts()
    assert done.code == 0
    assert "caption mismatch: existing=before, new=zwx cat, overwrite" in done.err
    merged, new_metadata = read(path)
    assert set(merged) == set(tensors) | {"other", "x"}
    assert new_metadata == metadata | {"note": "mine"}


def test_bad_photos_end_caching(workspace: Workspace) -> None:
    photo = workspace.images / "cat_eyes.jpg"
    whole = photo.read_bytes()
    photo.write_bytes(whole[: len(whole) // 2])
    cut = workspace.latents()
    assert cut.code == 1
    assert re.fullmatch(r"OSError: image file is truncated \(\d+ bytes not processed\)", cut.last)
    photo.write_bytes(b"fake")
    fake = workspace.latents()
    # the bar of a loop closes before the traceback
    assert re.search(r"\r0it \[00:00, \?it/s\]\nTraceback \(most recent call last\):\n", fake.err)
    assert (fake.code, fake.last) == (1, f"PIL.UnidentifiedImageError: cannot identify image file '{photo}'")


def test_weights_that_are_none(workspace: Workspace) -> None:
    page, empty = workspace.folder / "page", workspace.folder / "empty"
    page.write_text("<!DOCTYPE html><html></html>" * 10)
    empty.write_bytes(b"")
    assert python(TUNER / "zimage_cache_latents.py", "--dataset_config", workspace.config).last == (
        "AssertionError: VAE checkpoint is required (--vae)"
    )
    assert workspace.latents("--vae", "/nope").last == "FileNotFoundError: [Errno 2] No such file or directory: '/nope'"
    assert workspace.latents("--vae", page).last == "MemoryError"
    assert workspace.latents("--vae", empty).last == "struct.error: unpack requires a buffer of 8 bytes"
    wrong = workspace.latents("--vae", workspace.models / "qwen_3_4b.safetensors")
    assert (
        "RuntimeError: Error(s) in loading state_dict for AutoencoderKL:\n\tMissing key(s) in state_dict: " in wrong.err
    )
    wrong = workspace.texts("--text_encoder", workspace.models / "ae.safetensors")
    assert wrong.last == "KeyError: 'model.embed_tokens.weight'"


# --- Training


def test_the_loss_falls(trained: SimpleNamespace) -> None:
    assert trained.run.code == 0
    means = {}
    for line in trained.run.err.replace("\n", "\r").split("\r"):
        # a log line may stand right behind the bar
        if found := STEP_BAR.match(re.sub(r"(?<=\])[A-Z]+:.*", "", line)):
            step, total, loss = found.groups()
            assert total == "200"
            if loss:
                means[int(step)] = float(loss)
    assert sorted(means) == list(range(1, 201))
    losses = [means[step] for step in sorted(means)]
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])


SS_METADATA = """
    session_id training_started_at training_finished_at output_name learning_rate num_train_items num_batches_per_epoch
    num_epochs epoch steps max_train_steps gradient_checkpointing gradient_checkpointing_cpu_offload
    gradient_accumulation_steps lr_warmup_steps lr_scheduler base_model_version network_module network_dim network_alpha
    network_dropout mixed_precision seed training_comment optimizer max_grad_norm fp8_base full_fp16 full_bf16
    weighting_scheme logit_mean logit_std mode_scale guidance_scale timestep_sampling sigmoid_scale discrete_flow_shift
    datasets sd_model_name vae_name
"""
MODEL_SPEC = ("sai_model_spec", "architecture", "implementation", "title", "resolution", "date")
METADATA = {f"ss_{name}" for name in SS_METADATA.split()} | {f"modelspec.{name}" for name in MODEL_SPEC}
METADATA |= {"sshs_model_hash", "sshs_legacy_hash"}


def test_lora_has_the_names_shapes_and_metadata_of_musubi_tuner(trained: SimpleNamespace) -> None:
    tensors, metadata = read(trained.file)
    assert metadata
    sizes = {"feed_forward_w1": (341, 128), "feed_forward_w2": (128, 341), "feed_forward_w3": (341, 128)}
    expected: dict[str, tuple[str, tuple[int, ...]]] = {}
    for layer in range(2):
        for module in MODULES:
            outputs, inputs = sizes.get(module, (128, 128))
            name = f"lora_unet_layers_{layer}_{module}"
            expected[f"{name}.alpha"] = ("F32", ())
            expected[f"{name}.lora_down.weight"] = ("F32", (16, inputs))
            expected[f"{name}.lora_up.weight"] = ("F32", (outputs, 16))
    assert {name: tensor[:2] for name, tensor in tensors.items()} == expected
    for name, tensor in tensors.items():
        assert np.isfinite(array(tensor)).all()
        assert np.any(array(tensor)), name
    assert set(metadata) == METADATA
    for name, value in {
        "ss_base_model_version": "z_image",
        "ss_network_module": "networks.lora_zimage",
        "ss_network_dim": "16",
        "ss_network_alpha": "16.0",
        "ss_steps": "200",
        "ss_epoch": "34",
        "ss_seed": "42",
        "ss_network_dropout": "None",
        "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.0001)",
        "ss_sd_model_name": "z_image_de_turbo_v1_bf16.safetensors",
        "modelspec.architecture": "Z-Image/lora",
        "modelspec.title": "lora",
        "modelspec.resolution": "1024x1024",
        "sshs_legacy_hash": "e3b0c442",
    }.items():
        assert metadata[name] == value
    assert json.loads(metadata["ss_datasets"])[0]["image_directory"] == "images"
    data = b"".join(tensor[2] for _, tensor in sorted(tensors.items()))
    assert metadata["sshs_model_hash"] == hashlib.sha256(data).hexdigest()


def test_one_seed_gives_one_lora(workspace: Workspace) -> None:
    workspace.cached()
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        assert workspace.train(seed=seed, output_name=name).code == 0
    first, again, other = (read(workspace.output / f"{name}.safetensors")[0] for name in ("first", "again", "other"))
    assert first == again
    assert first != other


MILESTONES = {
    "err": [
        "INFO:musubi_tuner.training.trainer_base:Load dataset config from ",
        "INFO:musubi_tuner.dataset.datasources:glob images in ",
        "INFO:musubi_tuner.dataset.datasources:found 3 images\n",
        "INFO:musubi_tuner.dataset.config_utils:[Dataset 0]\n  is_image_dataset: True\n  resolution: (64, 64)\n",
        "    control_resolution: None\n\n\n",
        "INFO:musubi_tuner.dataset.bucket:bucket: (64, 64), count: 3\n",
        "INFO:musubi_tuner.dataset.bucket:total batches: 3\n",
        "INFO:musubi_tuner.training.trainer_base:preparing accelerator\n",
        "DiT precision: torch.bfloat16, weight precision: torch.bfloat16\n",
        "Loading DiT model from ",
        "\rLoading z_image_de_turbo_v1_bf16.safetensors:   0%|          | 0/",
        "INFO:musubi_tuner.zimage.zimage_model:Loaded DiT model from ",
        "INFO:musubi_tuner.networks.lora:create LoRA network from weights\n",
        "INFO:musubi_tuner.networks.lora:create LoRA for U-Net/DiT: 14 modules.\n",
        "INFO:musubi_tuner.networks.lora:weights are merged\n",
        "INFO:musubi_tuner.networks.lora:create LoRA network. base dim (rank): 16, alpha: 16.0\n",
        "INFO:musubi_tuner.networks.lora:create LoRA for U-Net/DiT: 14 modules.\n",
        "INFO:musubi_tuner.networks.lora:enable LoRA for U-Net: 14 modules\n",
        "use 8-bit AdamW optimizer | {'weight_decay': 0.0001}\n",
        "\rsteps:   0%|          | 0/4 [00:00<?, ?it/s]INFO:musubi_tuner.training.trainer_base:network weights will",
        "\rsteps:  25%|██▌       | 1/4 [00:00<00:00, ",
        "\rsteps:  25%|██▌       | 1/4 [00:00<00:00, ",
        ", avr_loss=",
        "\rsteps: 100%|██████████| 4/4 [",
        "]INFO:musubi_tuner.training.trainer_base:model saved.\n\rsteps: 100%|██████████| 4/4 [",
    ],
    "out": [
        "accelerator device: cpu\n",
        "import network module: networks.lora_zimage\n",
        "merging module: ",
        " with multiplier 1.0\nall weights merged: ",
        "prepare optimizer, data loader etc.\n",
        "running training / 学習開始\n  num train items / 学習画像、動画数: 3\n",
        "  num batches per epoch / 1epochのバッチ数: 3\n  num epochs / epoch数: 2\n  batch size per device / ",
        "  total optimization steps / 学習ステップ数: 4\n\nepoch 1/2\n\nepoch 2/2\n\nsaving checkpoint: ",
    ],
}


def test_lines_come_in_order_on_their_stream(workspace: Workspace) -> None:
    done = workspace.cached().train()
    assert done.code == 0
    for stream, milestones in MILESTONES.items():
        text, position = getattr(done, stream), 0
        for milestone in milestones:
            found = text.find(milestone, position)
            assert found >= 0, f"{milestone!r} not in {text[position:]!r}"
            position = found + len(milestone)
    # every step is drawn twice: counted, then with its loss
    assert [len(re.findall(rf"\rsteps: [^\r]*\| {step}/4 ", done.err)) for step in (1, 2, 3)] == [2, 2, 2]
    assert done.err.endswith("]\n")


def test_an_adapter_in_diffusers_naming_merges_nothing(workspace: Workspace) -> None:
    adapter = workspace.models / "zimage_turbo_training_adapter_v2.safetensors"
    foreign, back = workspace.folder / "foreign.safetensors", workspace.folder / "back.safetensors"
    script = TUNER / "convert_lora.py"
    assert python(script, "--input", adapter, "--output", foreign, "--target", "other").code == 0
    assert python(script, "--input", foreign, "--output", back, "--target", "default").code == 0
    workspace.cached()
    merged = {}
    for path in (foreign, back):
        done = workspace.train(base_weights=path, max_train_steps=1)
        assert done.code == 0
        assert f"all weights merged: {path}\n" in done.out
        merged[path.stem] = re.findall(r"create LoRA for U-Net/DiT: (\d+) modules", done.err)
    assert merged == {"foreign": ["0", "14"], "back": ["14", "14"]}


def test_training_takes_every_cache_that_matches(workspace: Workspace) -> None:
    workspace.cached()
    shutil.rmtree(workspace.images)
    (workspace.cache / "cat_eyes_zi_te.safetensors").unlink()
    shutil.copy(workspace.cache / "cat_face_zi_te.safetensors", workspace.cache / "a_b_zi_te.safetensors")
    shutil.copy(workspace.cache / "cat_face_0300x0300_zi.safetensors", workspace.cache / "a_b_0300x0300_zi.safetensors")
    done = workspace.train()
    assert done.code == 0
    assert "Text encoder output cache file not found: " in done.err
    assert "total batches: 3\n" in done.err
    (workspace.cache / "foreign_zi.safetensors").write_bytes(b"")
    assert workspace.train().last == "ValueError: invalid literal for int() with base 10: 'foreign'"


def test_a_bracket_in_the_cache_folder_is_a_pattern(tmp_path: Path, models: Path) -> None:
    workspace = Workspace(tmp_path / "[run] 1", models)
    workspace.cached()
    assert len(list(workspace.cache.iterdir())) == 6
    done = workspace.train()
    assert done.code == 1
    assert done.last.startswith("ValueError: No training items found in the dataset. ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer_type": None}, "AttributeError: module 'torch.optim' has no attribute ''"),
        ({"network_module": None}, "AttributeError: 'NoneType' object has no attribute 'startswith'"),
        ({"sdpa": None}, "ValueError: either --sdpa, "),
        ({"dataset_config": None}, "ValueError: dataset_config is required"),
        ({"dit": None}, "ValueError: path to DiT model is required"),
        ({"output_dir": None}, "TypeError: "),
        ({"output_name": None}, "TypeError: "),
        ({"network_module": "networks.lora"}, "RuntimeError: No LoRA modules found"),
        ({"sage_attn": True}, "ValueError: SageAttention"),
        ({"fp8_scaled": True}, "AssertionError: "),
        ({"xformers": True}, "AttributeError: 'NoneType' object has no attribute 'memory_efficient_attention'"),
        ({"blocks_to_swap": 1}, "AssertionError: Cannot swap more than 0 double blocks"),
        ({"learning_rate": 0}, "ValueError: optimizer got an empty parameter list"),
        ({"dim_from_weights": True}, "TypeError: "),
        ({"output_dir": "/dev/null/x"}, "NotADirectoryError: [Errno 20] Not a directory: '/dev/null/x'"),
        ({"output_name": "absent/x"}, "safetensors_rust.SafetensorError: Error while serializing: IoError("),
        (
            {"base_weights": "PAGE"},
            "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge",
        ),
        ({"dit": "PAGE"}, "MemoryError"),
        ({"dit": "CUT"}, "RuntimeError: shape '["),
        ({"seed": 2**32}, "ValueError: Seed must be between 0 and 2**32 - 1"),
    ],
    ids=str,
)
def test_what_ends_a_training(workspace: Workspace, changes: dict[str, Any], message: str) -> None:
    workspace.cached()
    page, cut = workspace.folder / "page", workspace.folder / "cut"
    page.write_text("<!DOCTYPE html><html></html>" * 10)
    cut.write_bytes((workspace.models / "z_image_de_turbo_v1_bf16.safetensors").read_bytes()[:-1000])
    files = {"PAGE": page, "CUT": cut}
    done = workspace.train(**{name: files.get(str(value), value) for name, value in changes.items()})
    assert done.code == 1
    assert done.last.startswith(message)
    assert not list(workspace.folder.glob("output/*"))


def test_a_traceback_comes_before_the_last_bar(workspace: Workspace) -> None:
    done = workspace.cached().train(output_name="absent/x")
    assert re.search(r"IoError\(.*\)\n\rsteps: 100%\|██████████\| 4/4 \[[^\r]*\]\n$", done.err)


def test_a_loss_of_nan_is_no_failure(workspace: Workspace) -> None:
    done = workspace.cached().train(learning_rate="1e30")
    assert done.code == 0
    assert "avr_loss=nan" in done.err
    tensors, _ = read(workspace.output / "lora.safetensors")
    assert all(np.isnan(array(tensor)).all() for name, tensor in tensors.items() if "weight" in name)


def test_names_of_what_is_saved_on_the_way(workspace: Workspace) -> None:
    workspace.cached()
    assert workspace.train(max_train_steps=6, save_every_n_steps=1, save_last_n_steps=2).code == 0
    names = {path.name for path in workspace.output.iterdir()}
    assert names == {"lora.safetensors", *(f"lora-step{step:08d}.safetensors" for step in (4, 5, 6))}
    shutil.rmtree(workspace.output)
    assert workspace.train(max_train_epochs=3, save_every_n_epochs=1, save_precision="bf16").code == 0
    names = {path.name for path in workspace.output.iterdir()}
    assert names == {"lora.safetensors", "lora-000001.safetensors", "lora-000002.safetensors"}
    assert {tensor[0] for tensor in read(workspace.output / "lora.safetensors")[0].values()} == {"BF16"}


def test_a_config_file_is_beneath_the_flags(workspace: Workspace) -> None:
    config = workspace.folder / "flags.toml"
    config.write_text("[any]\nmax_train_steps = 9\nnetwork_dim = 8\nunknown = 1\n")
    done = workspace.cached().train(config_file=config.with_suffix(""), network_dim=None, max_train_steps=2)
    assert done.code == 0
    _, metadata = read(workspace.output / "lora.safetensors")
    assert metadata
    assert (metadata["ss_network_dim"], metadata["ss_max_train_steps"]) == ("8", "2")
    missing = workspace.train(config_file="/nope")
    assert (missing.code, missing.last) == (1, "INFO:musubi_tuner.training.parser_common:/nope.toml not found.")


# --- Conversion


def test_the_converter_merges_queries_keys_and_values(trained: SimpleNamespace, tmp_path: Path) -> None:
    converted, back = tmp_path / "comfyui.safetensors", tmp_path / "back.safetensors"
    done = python(CONVERTER, trained.file, converted)
    assert (done.code, done.err.splitlines()) == (
        0,
        [
            f"INFO:__main__:Loading source file {trained.file}",
            "INFO:__main__:Converting...",
            "INFO:__main__:Direct key renames applied: 6",
            "INFO:__main__:QKV layers processed: 2",
            "INFO:__main__:Calculating hashes and creating metadata...",
            f"INFO:__main__:Saving destination file {converted}",
        ],
    )
    old, old_metadata = read(trained.file)
    new, metadata = read(converted)
    assert old_metadata
    assert metadata
    assert (len(old), len(new)) == (42, 30)
    for layer in range(2):
        base = f"lora_unet_layers_{layer}_attention_"
        parts = [base + part for part in ("to_q", "to_k", "to_v")]
        downs = [array(old[f"{part}.lora_down.weight"]) for part in parts]
        ups = [array(old[f"{part}.lora_up.weight"]) for part in parts]
        down, up = array(new[f"{base}qkv.lora_down.weight"]), array(new[f"{base}qkv.lora_up.weight"])
        assert np.array_equal(down, np.concatenate(downs))
        assert up.shape == (3 * 128, 3 * 16)
        # what the LoRA adds to q, k and v is what it added before
        assert np.allclose(up @ down, np.concatenate([u @ d for u, d in zip(ups, downs, strict=True)]))
        assert array(new[f"{base}qkv.alpha"]) == 48
        assert new[f"{base}out.lora_up.weight"] == old[f"{base}to_out_0.lora_up.weight"]
    data = b"".join(tensor[2] for _, tensor in sorted(new.items()))
    assert metadata == old_metadata | {"sshs_model_hash": hashlib.sha256(data).hexdigest()}
    assert python(CONVERTER, converted, back, "--reverse").code == 0
    assert read(back)[0] == old


def test_the_converter_alone(tmp_path: Path) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    names = [f"lora_unet_layers_0_attention_to_{part}" for part in "qkv"]
    tensors: Tensors = {}
    for name in names:
        tensors[f"{name}.lora_down.weight"] = ("F32", (1, 1), struct.pack("<f", 2))
        tensors[f"{name}.lora_up.weight"] = ("F32", (1, 1), struct.pack("<f", 3))
        tensors[f"{name}.alpha"] = ("I64", (), struct.pack("<q", 5))
    tensors["lora_unet_noise_refiner_0_attention_to_out_0.alpha"] = ("F32", (), b"\0\0\0\0")
    write(source, tensors, None)
    assert python(CONVERTER, source, target).code == 0
    merged, metadata = read(target)
    assert metadata is None
    assert merged["lora_unet_layers_0_attention_qkv.alpha"] == ("I64", (), struct.pack("<q", 15))
    # a refiner's name has no `layers` in it, so it stays
    assert "lora_unet_noise_refiner_0_attention_to_out_0.alpha" in merged
    del tensors[f"{names[1]}.alpha"]
    write(source, tensors, None)
    target.unlink()
    broken = python(CONVERTER, source, target)
    assert (broken.code, broken.last) == (1, f"KeyError: '{names[1]}.alpha'")
    assert not target.exists()


# --- The launcher


def launch(*args: str | Path, **options: Any) -> SimpleNamespace:
    return python("-m", "accelerate.commands.launch", *args, path=(TUNER / "src", DEMO / "launcher"), **options)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(
        "import os, sys\nprint(sys.argv[2:], os.environ['ACCELERATE_MIXED_PRECISION'], os.environ['OMP_NUM_THREADS'])\n"
        "os.kill(os.getpid(), -int(sys.argv[1])) if int(sys.argv[1]) < 0 else sys.exit(int(sys.argv[1]))\n"
    )
    return path


def test_the_launcher_starts_the_script(script: Path) -> None:
    flags = ["--num_cpu_threads_per_process", "1", "--mixed_precision", "bf16"]
    done = launch(*flags, script, "0", "--mixed_precision", "fp16")
    assert (done.code, done.out) == (0, "['--mixed_precision', 'fp16'] bf16 1\n")
    assert launch("--num-cpu-threads-per-process=3", script, "0").out == "[] no 3\n"


@pytest.mark.parametrize(
    ("code", "ending"),
    [("2", "returned non-zero exit status 2."), ("-9", "died with <Signals.SIGKILL: 9>.")],
)
def test_the_launcher_ends_with_1(script: Path, code: str, ending: str) -> None:
    done = launch(script, code)
    command = [sys.executable, str(script), code]
    assert (done.code, done.last) == (1, f"subprocess.CalledProcessError: Command '{command}' {ending}")
    quiet = launch("--quiet", script, code)
    assert (quiet.code, quiet.err) == (1, "")


def test_the_launcher_refuses_what_it_does_not_know(script: Path) -> None:
    assert launch("--nope", script, "0").code == 2
    assert launch("--mixed_precision", "x", script, "0").code == 2
    assert launch("--num_processes", "2", script, "0").code == 2
    assert launch("launch", script, "0").code == 1


def test_the_launcher_ended_alone_leaves_the_script_running(tmp_path: Path) -> None:
    # As accelerate does: who wants the training to end must end the whole group.
    script = tmp_path / "script.py"
    script.write_text("import os, sys\nprint(os.getpid(), flush=True)\nsys.stdin.read()\n")
    env = {**os.environ, "PYTHONPATH": str(DEMO / "launcher")}
    command = [sys.executable, "-m", "accelerate.commands.launch", str(script)]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as launcher:
        assert launcher.stdin
        assert launcher.stdout
        pid = int(launcher.stdout.readline())
        launcher.terminate()
        assert launcher.wait() == -signal.SIGTERM
        os.kill(pid, 0)
        launcher.stdin.close()
        assert launcher.stdout.read() == b""


# --- The demonstration


def test_the_photos_are_small_and_credited() -> None:
    photos = list((DEMO / "photos").glob("*.jpg"))
    assert 5 <= len(photos) <= 6
    assert sum(photo.stat().st_size for photo in photos) < 200_000
    assert "CC0" in (DEMO / "photos" / "CREDITS.md").read_text()


def test_the_demonstration_trains_through_the_library(tmp_path: Path) -> None:
    pytest.importorskip("musubitraining.main", reason="the package is not installed", exc_type=ImportError)
    started = time.monotonic()
    done = python("-m", "musubitraining.demo", "--folder", tmp_path / "a b é", "--steps", "100", path=(), cwd=tmp_path)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    converted = tmp_path / "a b é" / "output" / "output_lora_model_comfyui.safetensors"
    assert lines[-1] == str(converted)
    assert len(read(converted)[0]) == 30
    durations = dict(re.findall(r"^([\w:]+) +([\d.]+)s$", done.out, re.MULTILINE))
    assert list(durations) == ["precache:latents", "precache:text_encoder", "train", "convert:comfyui"]
    assert all(float(duration) <= time.monotonic() - started for duration in durations.values())
    found = re.search(r"^The loss fell from ([\d.]+) to ([\d.]+) ", done.out, re.MULTILINE)
    assert found
    assert float(found[2]) < 0.9 * float(found[1])
    assert "for trying the pipeline" in done.out


def test_the_demonstration_says_what_is_missing(tmp_path: Path) -> None:
    pytest.importorskip("musubitraining.main", reason="the package is not installed", exc_type=ImportError)
    (tmp_path / "file").write_text("")
    done = python("-m", "musubitraining.demo", "--folder", tmp_path / "file" / "x", path=())
    assert done.code == 1
    assert re.fullmatch(r"demo: \w+Error: .*\n", done.err)
