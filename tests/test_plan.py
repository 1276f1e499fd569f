"""`MusubiTraining.plan`: each row provoked with real files, servers and libraries; and what `train` makes of it."""

import dataclasses
import json
import logging
import math
import os
import pickle
import struct
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import musubitraining
import pytest
from harness.library import Workspace
from harness.photos import jpeg, make_zip
from harness.scenario import Work
from harness.server import redirect, silent, status
from harness.tuner import CONVERT, LATENTS, TEXT, TRAIN, install_accelerate
from musubitraining import Check, LaunchOptions, Plan, TrainingOptions
from musubitraining.demo.weights import TUNER, write_weights
from musubitraining.main import Models, MusubiTraining
from test_gpu import STAND_IN, build, real_nvml
from test_repairs import adapter_of_a_clone

VAE, TEXT_ENCODER, DIT, ADAPTER = Models().ae, Models().text_encoder, Models().DiT, Models().base_weights

# What the scripts import, at the versions of the clone below.
PACKAGES = {
    "accelerate": "1.6.0",
    "torch": "2.9.1",
    "transformers": "4.57.6",
    "diffusers": "0.32.1",
    "safetensors": "0.4.5",
    "huggingface_hub": "0.34.3",
    "einops": "0.7.0",
    "toml": "0.10.2",
    "voluptuous": "0.15.2",
    "tqdm": "4.67.1",
    "numpy": "1",
    "PIL": "11.3.0",
    "cv2": "4.10.0.84",
    "av": "14.0.1",
    "bitsandbytes": "0.50.2",
}
DISTRIBUTIONS = {"huggingface_hub": "huggingface-hub", "PIL": "pillow", "cv2": "opencv-python"}
PINNED = ("accelerate", "transformers", "diffusers", "safetensors")

Shapes = dict[str, list[int]]


def header_of(shapes: Shapes) -> tuple[bytes, int]:
    """Of a safetensors file; and how many bytes come behind it."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header, end


def weights(shapes: Shapes) -> bytes:
    """A whole safetensors file of zeros."""
    header, data_bytes = header_of(shapes)
    return header + bytes(data_bytes)


# True names, small shapes.
OF_VAE: Shapes = {"encoder.conv_in.weight": [8, 3, 3, 3], "decoder.conv_in.weight": [8, 16, 3, 3]}
OF_TEXT_ENCODER: Shapes = {
    "model.embed_tokens.weight": [512, 64],
    "model.layers.0.self_attn.q_proj.weight": [64, 64],
    "model.layers.0.self_attn.q_norm.weight": [32],
}
OF_DIT: Shapes = {
    "x_embedder.weight": [256, 64],
    "cap_embedder.1.weight": [256, 64],
    "layers.0.attention.qkv.weight": [768, 256],
    "layers.0.feed_forward.w1.weight": [682, 256],
}
OF_ADAPTER: Shapes = {
    "lora_unet_layers_0_attention_to_q.lora_down.weight": [4, 256],
    "lora_unet_layers_0_attention_to_q.lora_up.weight": [256, 4],
}
LORA: Shapes = {
    "lora_unet_layers_0_feed_forward_w1.alpha": [],
    "lora_unet_layers_0_feed_forward_w1.lora_down.weight": [4, 256],
    "lora_unet_layers_0_feed_forward_w1.lora_up.weight": [682, 4],
}
IN_DIFFUSERS_NAMING: Shapes = {
    "diffusion_model.layers.0.attention.to_q.lora_A.weight": [4, 256],
    "diffusion_model.layers.0.attention.to_q.lora_B.weight": [256, 4],
}
SDXL_VAE: Shapes = {"encoder.conv_in.weight": [8, 3, 3, 3], "decoder.conv_in.weight": [8, 4, 3, 3]}
SDXL_UNET: Shapes = {
    "model.diffusion_model.input_blocks.0.0.weight": [8, 4, 3, 3],
    "model.diffusion_model.label_emb.0.0.weight": [8, 8],
}
QWEN3_8B: Shapes = {"model.embed_tokens.weight": [151936, 4096], "model.layers.0.self_attn.q_norm.weight": [128]}
FLUX: Shapes = {"double_blocks.0.img_attn.qkv.weight": [8, 8]}
FLUX_LORA: Shapes = {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": [4, 8]}


@pytest.fixture
def place(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace where all is well: weights, packages and a tokenizer, each of them small."""
    for name, shapes in ((VAE, OF_VAE), (TEXT_ENCODER, OF_TEXT_ENCODER), (DIT, OF_DIT), (ADAPTER, OF_ADAPTER)):
        (workspace.models / name).write_bytes(weights(shapes))
    for package, version in PACKAGES.items():
        install(workspace, package, version)
    requirements = [f"{name}=={PACKAGES[name]}" for name in PINNED]
    (workspace.root / "musubi/pyproject.toml").write_text(
        '[project]\nname = "musubi-tuner"\nversion = "0.3.4"\nrequires-python = ">=3.10"\n'
        f'dependencies = {json.dumps(requirements)}\n[project.optional-dependencies]\ncu128 = ["torch>=2.7.1"]\n'
    )
    zimage = workspace.root / "musubi/src/musubi_tuner/zimage"
    zimage.mkdir()
    (zimage / "zimage_utils.py").write_text('ZIMAGE_ID = "Tongyi-MAI/Z-Image"\nTokenizer.from_pretrained(ZIMAGE_ID)\n')
    for name in list(os.environ):
        if name.startswith(("HF_", "TRANSFORMERS_", "TQDM_", "PYTHONIO", "CUDA_", "XDG_CACHE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(workspace.root / "hf"))
    tokenizer(workspace)
    return workspace


def install(workspace: Workspace, package: str, version: str) -> None:
    """Puts a package that must not be imported where the scripts' interpreter finds it, and its metadata."""
    site = workspace.root / "site"
    if package != "accelerate":
        (site / package).mkdir(exist_ok=True)
        (site / package / "__init__.py").write_text(f"raise ImportError('{package} was imported')\n")
    distribution = DISTRIBUTIONS.get(package, package)
    for old in site.glob(f"{distribution.replace('-', '_')}-*.dist-info"):
        (old / "METADATA").unlink()
        old.rmdir()
    info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")


def uninstall(workspace: Workspace, package: str) -> None:
    for path in (workspace.root / "site" / package).iterdir():
        path.unlink()
    (workspace.root / "site" / package).rmdir()


def tokenizer(workspace: Workspace) -> Path:
    repository = workspace.root / "hf/hub/models--Tongyi-MAI--Z-Image"
    folder = repository / "snapshots/5f/tokenizer"
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("5f")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    return folder


def trainer(workspace: Workspace, kind: Any = MusubiTraining, **changes: Any) -> Any:
    return kind(**Work(str(workspace.root), workspace.url, workspace.toml, {}).arguments(**changes))


def plan(workspace: Workspace, *, of: Any = None, url: str | Path | None = "", toml: str = "", **options: Any) -> Plan:
    url = workspace.url if url == "" else url
    made: Plan = (of or trainer(workspace)).plan(toml or workspace.toml, url, "word", **options)
    return made


def row(found: Plan, name: str) -> Check:
    rows = [check for check in found.checks if check.name == name]
    assert rows, f"no row {name!r} in\n{found}"
    return max(rows, key=lambda check: ("ok", "warning", "error").index(check.verdict))


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its size and time of change."""
    paths = [root, *sorted(root.rglob("*"))]
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths}


# ---- a whole plan -----------------------------------------------------------------------------------------------


def test_a_plan_of_a_run_that_works_is_ok_and_changes_nothing(place: Workspace) -> None:
    place.old_dataset()
    of = trainer(place)
    before = snapshot(place.root)
    found = plan(place, of=of)
    assert found.ok, str(found)
    assert found.errors == ()
    odd = {check.name for check in found.warnings}
    # What the defaults stack; and what this machine has.
    assert odd - {"GPU", "GPU memory", "others on the GPU", "visible GPUs", "RAM"} == {"DiT and adapter"}
    found.raise_if_not_ok()
    assert snapshot(place.root) == before
    assert [request.method for request in place.server.requests] == ["HEAD"]
    assert place.tuner.calls() == []
    assert not place.accelerate_imports.exists()
    assert "torch" not in sys.modules
    for check in found.checks:
        assert all([check.name, check.found, check.expected])
        assert bool(check.mend) == (check.verdict != "ok"), check


def test_everything_may_be_left_out(place: Workspace) -> None:
    found = trainer(place).plan()
    assert found.ok, str(found)
    assert place.server.requests == []
    assert list(found.commands) == ["precache:latents", "precache:text_encoder", "train", "convert:comfyui"]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"use_pre_cache": False, "convert_for_comfyui": False}, id="training alone"),
        pytest.param({"output_name": "mine", "max_train_steps": 7, "seed": 3}, id="values"),
        pytest.param({"native_convert": True}, id="converted natively"),
    ],
)
@pytest.mark.parametrize("adapter", [OF_ADAPTER, IN_DIFFUSERS_NAMING], ids=["adapter", "adapter to be renamed"])
def test_the_commands_are_those_that_train_runs(
    place: Workspace, caplog: pytest.LogCaptureFixture, options: dict[str, Any], adapter: Shapes
) -> None:
    adapter_of_a_clone(converts=False)(place)
    (place.models / ADAPTER).write_bytes(weights(adapter))
    place.tuner.does(TRAIN, ["write", weights(LORA).decode("latin-1")])
    caplog.set_level(logging.INFO, "musubitraining")
    found = plan(place, **options)
    assert found.ok, str(found)
    caplog.clear()
    trainer(place).train(place.toml, place.url, "word", **options)
    messages = [record.getMessage() for record in caplog.records]
    ran = {message[1:].partition("]")[0]: message.partition(" cmd=")[2] for message in messages if " cmd=" in message}
    assert {step: " ".join(words) for step, words in found.commands.items()} == ran
    renamed = str(place.training / "base_weights_musubi.safetensors")
    assert (renamed in found.commands["train"]) == (adapter is IN_DIFFUSERS_NAMING)


def test_relative_paths_count_from_the_current_folder(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.root)
    folders = ("models", "training", "output", "musubi")
    relative = MusubiTraining("models", Models(), *folders[1:])
    assert relative.plan(place.toml).commands == trainer(place).plan(place.toml).commands


def test_a_step_that_is_replaced_is_not_looked_at(place: Workspace) -> None:
    class Mine(MusubiTraining):
        def _launch_training(self, dataset_toml_path: Any, **_: Any) -> str:
            return str(dataset_toml_path)

    (place.models / DIT).unlink()
    (place.root / "musubi" / TRAIN).unlink()
    found = plan(place, of=trainer(place, Mine))
    assert found.ok, str(found)
    assert list(found.commands) == ["precache:latents", "precache:text_encoder"]


# ---- rows -------------------------------------------------------------------------------------------------------

Arrange = Callable[[Workspace], Any]


def of_another(name: str, shapes: Shapes) -> Arrange:
    """Whole, and sparse on the disk."""

    def arrange(workspace: Workspace) -> None:
        header, data_bytes = header_of(shapes)
        with open(workspace.models / name, "wb") as file:
            file.write(header)
            file.truncate(len(header) + data_bytes)

    return arrange


def cut(name: str) -> Arrange:
    def arrange(workspace: Workspace) -> None:
        path = workspace.models / name
        path.write_bytes(path.read_bytes()[:-1])

    return arrange


def put(name: str, data: bytes) -> Arrange:
    return lambda workspace: (workspace.root / name).write_bytes(data)


def without(name: str) -> Arrange:
    return lambda workspace: (workspace.root / name).unlink()


def without_tokenizer(workspace: Workspace) -> None:
    (workspace.root / "hf/hub/models--Tongyi-MAI--Z-Image/refs/main").unlink()


def accelerate_configuration(workspace: Workspace) -> None:
    folder = workspace.root / "hf/accelerate"
    folder.mkdir()
    (folder / "default_config.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 2\n")


def versioned(version: str) -> Arrange:
    return put("musubi/pyproject.toml", f'[project]\nversion = "{version}"\n'.encode())


def a_file_as_output(workspace: Workspace) -> None:
    workspace.output.rmdir()
    workspace.output.write_text("")


ROWS: list[tuple[str, Arrange, str, str, str]] = [
    ("cut VAE", cut(VAE), "weights ae", "error", "is cut"),
    ("cut text encoder", cut(TEXT_ENCODER), "weights text_encoder", "error", "is cut"),
    ("cut DiT", cut(DIT), "weights DiT", "error", "is cut"),
    ("cut adapter", cut(ADAPTER), "weights base_weights", "error", "is cut"),
    ("empty VAE", put(f"models/{VAE}", b""), "weights ae", "error", "0 bytes"),
    ("page as VAE", put(f"models/{VAE}", b"<!doctype html><p>Log in"), "weights ae", "error", "web page"),
    ("GGUF", put(f"models/{DIT}", b"GGUF" + bytes(100)), "weights DiT", "error", "GGUF"),
    ("checkpoint", put(f"models/{DIT}", b"PK\3\4" + bytes(100)), "weights DiT", "error", "PyTorch checkpoint"),
    ("no DiT", without(f"models/{DIT}"), "weights DiT", "error", "does not exist"),
    ("SDXL VAE", of_another(VAE, SDXL_VAE), "weights ae", "error", "is an SDXL VAE"),
    ("SDXL", of_another(DIT, SDXL_UNET), "weights DiT", "error", "an SDXL UNet in a checkpoint"),
    ("FLUX", of_another(DIT, FLUX), "weights DiT", "error", "a FLUX.1 transformer"),
    ("Qwen3-8B", of_another(TEXT_ENCODER, QWEN3_8B), "weights text_encoder", "error", "is Qwen3-8B"),
    ("VAE as DiT", of_another(DIT, OF_VAE), "weights DiT", "error", "a VAE with 16 latent channels"),
    ("FLUX LoRA", of_another(ADAPTER, FLUX_LORA), "weights base_weights", "error", "a LoRA for FLUX"),
    ("unknown", of_another(DIT, {"a": [2]}), "weights DiT", "warning", "not known"),
    (
        "adapter of ComfyUI",
        of_another(ADAPTER, {"lora_unet_layers_0_attention_qkv.lora_down.weight": [4, 8]}),
        "adapter naming",
        "error",
        "ComfyUI",
    ),
    ("De-Turbo and adapter", lambda w: None, "DiT and adapter", "warning", "De-Turbo"),
    ("no latents script", without(f"musubi/{LATENTS}"), f"script {LATENTS}", "error", "not there"),
    ("no text script", without(f"musubi/{TEXT}"), f"script {TEXT}", "error", "not there"),
    ("no training script", without(f"musubi/{TRAIN}"), f"script {TRAIN}", "error", "not there"),
    ("no conversion script", without(f"musubi/{CONVERT}"), f"script {Path(CONVERT).name}", "error", "not there"),
    ("old clone", versioned("0.2.9"), "Musubi Tuner", "error", "0.2.9"),
    ("new clone", versioned("0.9.0"), "Musubi Tuner", "warning", "0.9.0"),
    ("no version", without("musubi/pyproject.toml"), "Musubi Tuner", "warning", "does not say"),
    ("no torch", lambda w: uninstall(w, "torch"), "package torch", "error", "cannot find torch"),
    ("no bitsandbytes", lambda w: uninstall(w, "bitsandbytes"), "package bitsandbytes", "error", "cannot find"),
    ("old accelerate", lambda w: install(w, "accelerate", "0.9"), "package accelerate", "warning", "0.9"),
    ("old torch", lambda w: install(w, "torch", "2.0.1"), "package torch", "warning", "2.0.1"),
    ("no tokenizer", without_tokenizer, "tokenizer", "error", "refs/main"),
    ("accelerate's configuration", accelerate_configuration, "accelerate configuration", "warning", "MULTI_GPU"),
    ("output is a file", a_file_as_output, "output folder", "error", "not a folder"),
]


@pytest.mark.parametrize(("arrange", "name", "verdict", "part"), [pytest.param(*row[1:], id=row[0]) for row in ROWS])
def test_row(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, arrange: Arrange, name: str, verdict: str, part: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    of = trainer(place)
    arrange(place)
    before = snapshot(place.root)
    found = plan(place, of=of, url=None)
    check = row(found, name)
    assert (check.verdict, part in check.found) == (verdict, True), check
    assert check.mend
    others = {error.name for error in found.errors} - {name}
    assert others == set(), str(found)
    assert snapshot(place.root) == before


@pytest.mark.parametrize(
    ("name", "value", "check", "verdict"),
    [
        ("TQDM_ASCII", "1", "TQDM_ASCII", "error"),
        ("PYTHONIOENCODING", "latin-1", "PYTHONIOENCODING", "error"),
        ("HF_HOME", "/nowhere", "tokenizer", "error"),
    ],
)
def test_an_environment_variable_that_ends_a_run_is_an_error(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, name: str, value: str, check: str, verdict: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv(name, value)
    assert row(plan(place, url=None), check).verdict == verdict


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda toml: toml + "shuffle_caption = true\n", "`shuffle_caption`"),
        (lambda toml: toml.replace("/images", "/photos"), "images"),
        (lambda toml: toml.replace('caption_extension = ".txt"', 'caption_extension = "txt"'), "caption_extension"),
        (lambda toml: toml.replace("[64, 64]", "[8, 8]"), "resolution"),
    ],
)
def test_a_toml_that_would_not_train_is_an_error_with_its_line(
    place: Workspace, change: Callable[[str], str], part: str
) -> None:
    found = plan(place, url=None, toml=change(place.toml))
    checks = [check for check in found.errors if check.name == "dataset.toml"]
    assert any(part in check.found and check.found.startswith("dataset.toml, line ") for check in checks), str(found)


def test_a_toml_that_does_not_parse_is_an_error_with_its_line(place: Workspace) -> None:
    check = row(plan(place, url=None, toml="[general\n"), "dataset.toml")
    assert check.verdict == "error"
    assert "line 1" in check.found


@pytest.mark.parametrize(
    "options", [{"output_name": "../x"}, {"max_train_steps": 0}, {"seed": -1}, {"max_train_steps": "many"}]
)
def test_arguments_that_train_refuses_are_errors(place: Workspace, options: dict[str, Any]) -> None:
    check = row(plan(place, url=None, **options), "arguments")
    assert check.verdict == "error"
    assert next(iter(options)) in check.found


def test_a_trigger_word_that_is_empty_is_a_warning(place: Workspace) -> None:
    found = trainer(place).plan(place.toml, None, " ")
    assert row(found, "trigger word").verdict == "warning"


def test_glob_characters_in_the_training_folder_are_an_error(place: Workspace) -> None:
    of = trainer(place, absolute_path_training_folder=str(place.root / "run [1]"))
    assert row(plan(place, of=of, url=None), "glob characters").verdict == "error"
    assert not (place.root / "run [1]").exists()


def test_a_clone_that_is_gone_is_an_error(place: Workspace) -> None:
    of = trainer(place)
    of.absolute_path_musubi_tuner = str(place.root / "no")
    assert row(plan(place, of=of, url=None), "Musubi Tuner folder").verdict == "error"


def test_an_interpreter_that_does_not_answer_is_an_error(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    other = place.root / "python"
    other.write_text("#!/bin/sh\necho no Python here\n")
    other.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(other))
    check = row(plan(place, url=None), "Python")
    assert check.verdict == "error"
    assert "no Python here" in check.found


def test_another_clone_s_package_in_the_way_is_a_warning(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    other = place.root / "other/musubi_tuner"
    other.mkdir(parents=True)
    (other / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", f"{other.parent}:{os.environ['PYTHONPATH']}")
    check = row(plan(place, url=None), "package musubi_tuner")
    assert (check.verdict, str(other) in check.found) == ("warning", True)


def test_options_decide_what_is_needed(place: Workspace) -> None:
    uninstall(place, "bitsandbytes")
    of = trainer(place)
    other = TrainingOptions(optimizer_type="AdamW", attention="xformers", split_attn=True, base_weights=None)
    (place.models / ADAPTER).unlink()
    found = plan(place, of=of, url=None, options=other)
    assert {error.name for error in found.errors} == {"package xformers"}
    assert row(found, "DiT and adapter").verdict == "ok"
    assert not hasattr(of, "options")
    # Those of the trainer, where the call has none.
    of.options = other
    assert row(plan(place, of=of, url=None), "package xformers").verdict == "error"
    assert row(plan(place, of=of, url=None, options=TrainingOptions()), "package bitsandbytes").verdict == "error"


def test_a_turbo_without_an_adapter_is_a_warning(place: Workspace) -> None:
    turbo = "z_image_turbo_bf16.safetensors"
    (place.models / DIT).rename(place.models / turbo)
    of = trainer(place, models_for_training=Models(DiT=turbo))
    assert row(plan(place, of=of, url=None), "DiT and adapter").verdict == "ok"
    without = plan(place, of=of, url=None, options=TrainingOptions(base_weights=None))
    assert row(without, "DiT and adapter").verdict == "warning"


def test_options_that_the_clone_does_not_take_or_that_surprise_are_told(place: Workspace) -> None:
    state = place.root / "lora-state"
    state.mkdir()
    resumed = plan(place, url=None, options=TrainingOptions(resume=state))
    assert row(resumed, "options").verdict == "warning"
    assert "from 0 again" in row(resumed, "options").found
    options = TrainingOptions(resume=state)
    state.rmdir()
    assert [error.name for error in plan(place, url=None, options=options).errors] == ["options"]
    with pytest.raises(TypeError, match="options"):
        plan(place, options={"resume": state})


def test_what_a_subclass_keeps_under_the_same_name_is_its_own(place: Workspace) -> None:
    class Mine(MusubiTraining):
        launch_options = ("mine", 2)
        options = "mine"

    found = plan(place, of=trainer(place, Mine), url=None)
    assert found.ok, str(found)
    assert found.commands == plan(place, url=None).commands
    assert plan(place, of=trainer(place, Mine), url=None, options=TrainingOptions(network_dim=4)).ok


def test_a_launcher_s_configuration_that_is_meant_is_no_warning(place: Workspace) -> None:
    accelerate_configuration(place)
    found = plan(place, url=None, launch_options=LaunchOptions(num_processes=2))
    assert row(found, "accelerate configuration").verdict == "ok"
    assert "--num_processes" in found.commands["train"]


# ---- photos that are here ---------------------------------------------------------------------------------------


def test_photos_that_are_here_are_counted_and_not_touched(place: Workspace) -> None:
    folder = place.root / "photos"
    folder.mkdir()
    zipped = place.root / "photos.zip"
    zipped.write_bytes(make_zip(("a.jpg", jpeg()), ("a.txt", b"a cat"), ("b.png", b"other")))
    (folder / "a.jpg").write_bytes(jpeg())
    (folder / "a.txt").write_text("a cat")
    before = snapshot(place.root)
    for source in (folder, str(folder), zipped, zipped.as_uri()):
        check = row(plan(place, url=source), "photos")
        assert check.verdict == "ok", check
        assert "1 photos (1 with a text beside them)" in check.found
    assert snapshot(place.root) == before


def test_photos_of_an_earlier_run_are_counted(place: Workspace) -> None:
    assert [check for check in plan(place, url=None).checks if check.name == "photos"] == []
    place.images.mkdir(parents=True)
    (place.images / "a.jpg").write_bytes(jpeg())
    (place.images / "a.txt").write_text("a cat")
    before = snapshot(place.root)
    check = row(plan(place, url=None), "photos")
    assert check.verdict == "ok"
    assert "1 photos of an earlier run are in place (1 with a caption)" in check.found
    assert snapshot(place.root) == before


@pytest.mark.parametrize(
    ("arrange", "part"),
    [
        (lambda path: path.mkdir(), "0 photos"),
        (lambda path: path.write_bytes(b"not a zip"), "not a zip"),
        (lambda path: os.mkfifo(path), "is a pipe"),
        (lambda path: None, "nothing is at"),
    ],
)
def test_what_is_here_and_has_no_photos_is_an_error(
    place: Workspace, arrange: Callable[[Path], Any], part: str
) -> None:
    arrange(place.root / "photos")
    check = row(plan(place, url=str(place.root / "photos")), "photos")
    assert (check.verdict, part in check.found) == ("error", True), check


# ---- servers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replies", "verdict", "part"),
    [
        ([status(200, b"x" * 10, Content_Type="application/zip")], "ok", "10 bytes of application/zip"),
        ([status(200, b"<p>", Content_Type="text/html; charset=utf-8")], "error", "a web page"),
        ([status(200)], "error", "0 bytes"),
        ([status(404)], "error", "404"),
        ([status(403), status(206, b"x", Content_Range="bytes 0-0/4321")], "ok", "4321 bytes"),
        ([status(405), status(200, b"x" * 99)], "ok", "99 bytes"),
        ([redirect("/elsewhere.zip")], "ok", "7 bytes"),
        ([silent()], "warning", "no answer in time"),
    ],
)
def test_the_server_is_asked_for_size_and_type(place: Workspace, replies: list[Any], verdict: str, part: str) -> None:
    place.server.on("/elsewhere.zip", b"1234567")
    url = place.server.on("/secret.zip", *replies) + "?signature=abc"
    found = plan(place, url=url)
    check = row(found, "photos")
    assert (check.verdict, part in check.found) == (verdict, True), check
    assert "signature" not in str(found)
    methods = [request.method for request in place.server.requests]
    assert methods[0] == "HEAD"
    asked_for = [request.headers.get("range") for request in place.server.requests if request.method == "GET"]
    assert asked_for in ([], ["bytes=0-0"])


def test_a_zip_larger_than_is_taken_is_an_error(place: Workspace) -> None:
    of = trainer(place)
    of.dataset_limits = musubitraining.DatasetLimits(zip_bytes=10)
    assert row(plan(place, of=of), "photos").verdict == "error"


def test_a_zip_that_the_disk_has_no_room_for_is_an_error(place: Workspace) -> None:
    of = trainer(place)
    of.dataset_limits = musubitraining.DatasetLimits(zip_bytes=10**18)
    url = place.server.on("/huge.zip", lambda exchange: exchange.head(200, 10**17))
    found = plan(place, of=of, url=url)
    assert {error.name for error in found.errors} == {"disk of the training folder"}
    assert "200000000.0 GB" in row(found, "disk of the training folder").expected


def test_what_is_no_address_is_an_error(place: Workspace) -> None:
    assert row(plan(place, url="ftp://host/x.zip"), "photos").verdict == "error"


@pytest.mark.parametrize(
    ("replies", "verdict"), [([status(200, b"{}")], "ok"), ([status(401)], "error"), ([silent()], "warning")]
)
def test_the_hub_is_asked_for_a_tokenizer_that_is_not_in_the_cache(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, replies: list[Any], verdict: str
) -> None:
    without_tokenizer(place)
    monkeypatch.setenv("HF_ENDPOINT", place.server.base)
    place.server.on("/Tongyi-MAI/Z-Image/resolve/main/tokenizer/vocab.json", *replies)
    assert row(plan(place, url=None), "tokenizer").verdict == verdict


def test_cancel_ends_a_plan(place: Workspace) -> None:
    url = place.server.on("/silent.zip", silent())
    of = trainer(place)

    def cancel() -> None:
        assert place.server.wait_for_requests(1)
        of.cancel()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(musubitraining.Cancelled):
        plan(place, of=of, url=url)
    canceller.join()


# ---- the GPU ----------------------------------------------------------------------------------------------------

# The rest of NVML that a plan calls.
MORE_OF_NVML = r"""
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } memory_t;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gpu, compute; } process_t;

int nvmlDeviceGetMemoryInfo_v2(void *device, memory_t *memory) {
    memory->total = (unsigned long long)number("NVML_TOTAL_MIB", 24576) << 20;
    memory->free = (unsigned long long)number("NVML_FREE_MIB", 24000) << 20;
    return 0;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned int *count, process_t *processes) {
    unsigned int there = (unsigned int)number("NVML_PROCESSES", 0);
    if (*count < there) { *count = there; return 7; }
    for (unsigned int i = 0; i < there; i++) {
        processes[i].pid = 4711 + i;
        processes[i].used = 1ull << 30;
    }
    *count = there;
    return 0;
}

int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    *major = number("NVML_CAPABILITY", 8);
    *minor = 0;
    return 0;
}

int nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    strncpy(version, getenv("NVML_DRIVER") ? getenv("NVML_DRIVER") : "580.65.06", length);
    return 0;
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned int length) {
    snprintf(uuid, length, "GPU-%zu-abc", (size_t)device);
    return 0;
}
"""


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nvml")
    build(STAND_IN + MORE_OF_NVML, folder)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="NVML and LD_LIBRARY_PATH are Linux's")
@pytest.mark.parametrize(
    ("environment", "name", "verdict", "part"),
    [
        ({}, "GPU", "ok", "RTX 4090 (GPU 0, 24.0 GiB"),
        ({}, "GPU memory", "ok", "23.4 GiB of 24.0 GiB"),
        ({"NVML_FREE_MIB": "1"}, "GPU memory", "warning", "0.0 GiB of 24.0 GiB"),
        ({"NVML_TOTAL_MIB": "100", "NVML_FREE_MIB": "90"}, "GPU memory", "warning", "of 0.0 GiB"),
        ({"NVML_FREE_MIB": "0"}, "GPU memory", "error", "0.0 GiB of 24.0 GiB"),
        ({"NVML_PROCESSES": "2"}, "others on the GPU", "warning", "4711 (1.0 GiB), 4712 (1.0 GiB)"),
        ({"NVML_COUNT": "2"}, "visible GPUs", "warning", "2"),
        ({"NVML_COUNT": "2", "CUDA_VISIBLE_DEVICES": "1"}, "visible GPUs", "ok", "1"),
        ({"NVML_COUNT": "2", "CUDA_VISIBLE_DEVICES": "GPU-2"}, "GPU", "ok", "GPU 1"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "GPU", "error", "none of the 1 GPUs"),
        ({"NVML_INIT": "18"}, "GPU", "error", "different versions"),
        ({"NVML_DRIVER": "470.10"}, "GPU driver", "error", "470.10"),
        ({"NVML_CAPABILITY": "12", "TORCH": "2.9.1+cu126"}, "PyTorch for this GPU", "error", "12.6"),
        ({"TORCH": "2.9.1+cpu"}, "package torch", "error", "does not use the GPU"),
    ],
)
def test_the_gpu(place: Workspace, nvml: Path, environment: dict[str, str], name: str, verdict: str, part: str) -> None:
    install(place, "torch", environment.get("TORCH", "2.9.1+cu128"))
    program = """
        import json, sys
        from musubitraining.main import Models, MusubiTraining
        root, toml = sys.argv[1:]
        folders = [f"{root}/{name}" for name in ("training", "output", "musubi")]
        print(json.dumps(MusubiTraining(f"{root}/models", Models(), *folders).plan(toml).to_dict()))
    """
    environ = os.environ | {"LD_LIBRARY_PATH": str(nvml), "NVML_LOG": str(nvml / "log"), "NVML_NAME": "RTX 4090"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(place.root), place.toml],
        env=environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    checks = [check for check in json.loads(done.stdout)["checks"] if check["name"] == name]
    assert [(check["verdict"], part in check["found"]) for check in checks] == [(verdict, True)], checks


@pytest.mark.skipif(sys.platform != "linux", reason="NVML and LD_LIBRARY_PATH are Linux's")
def test_cancel_does_not_wait_for_a_slow_driver(place: Workspace, nvml: Path) -> None:
    program = """
        import sys, threading
        import musubitraining
        from musubitraining.main import Models, MusubiTraining
        root = sys.argv[1]
        folders = [f"{root}/{name}" for name in ("training", "output", "musubi")]
        trainer = MusubiTraining(f"{root}/models", Models(), *folders)
        def cancel():
            while not trainer.cancel():
                pass
        threading.Thread(target=cancel).start()
        try:
            trainer.plan()
        except musubitraining.Cancelled:
            print("cancelled", flush=True)
            # Not waiting for the driver at the end either.
            import os
            os._exit(0)
    """
    environ = os.environ | {"LD_LIBRARY_PATH": str(nvml), "NVML_LOG": str(nvml / "log"), "NVML_AWAITS": "/nowhere/go"}
    command = [sys.executable, "-c", textwrap.dedent(program), str(place.root)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert done.stdout == "cancelled\n", done.stderr


@pytest.mark.skipif(real_nvml(), reason="this machine has NVIDIA's own library")
def test_without_a_driver_the_gpu_is_a_warning(place: Workspace) -> None:
    assert row(plan(place, url=None), "GPU").verdict == "warning"


# ---- what train makes of it -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shapes", "words"),
    [
        (VAE, SDXL_VAE, ["is an SDXL VAE", "16 latent channels", "ae="]),
        (TEXT_ENCODER, QWEN3_8B, ["is Qwen3-8B", "Qwen3-4B", "text_encoder="]),
        (DIT, SDXL_UNET, ["is an SDXL UNet", "Z-Image transformer", "DiT="]),
        (ADAPTER, FLUX_LORA, ["is a LoRA for FLUX", "a LoRA for Z-Image", "base_weights="]),
        (DIT, OF_ADAPTER, ["is a LoRA for Z-Image", "Z-Image transformer", "DiT="]),
    ],
)
def test_train_refuses_weights_of_another_model_before_it_touches_anything(
    place: Workspace, name: str, shapes: Shapes, words: list[str]
) -> None:
    old = place.old_dataset()
    of_another(name, shapes)(place)
    with pytest.raises(RuntimeError) as raised:
        trainer(place).train(place.toml, place.url, "word")
    assert all(word in str(raised.value) for word in [name, *words]), raised.value
    assert place.server.requests == []
    assert place.tuner.calls() == []
    assert {file: (place.training / file).read_bytes() for file in old} == old


def test_train_refuses_a_missing_tokenizer_that_must_not_be_fetched(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_tokenizer(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RuntimeError, match=r"refs/main.*Tongyi-MAI/Z-Image.*hf download"):
        trainer(place).train(place.toml, place.url, "word")
    assert (place.server.requests, place.tuner.calls()) == ([], [])
    # Not for a run that does not need it, nor for a clone whose sources do not ask for it.
    assert trainer(place).train(place.toml, place.url, "word", use_pre_cache=False)
    (place.root / "musubi/src/musubi_tuner/zimage/zimage_utils.py").unlink()
    assert trainer(place).train(place.toml, place.url, "word")


def test_train_refuses_an_output_folder_that_is_a_file(place: Workspace) -> None:
    of = trainer(place)
    a_file_as_output(place)
    with pytest.raises(RuntimeError, match=r"output folder: .*is not a folder"):
        of.train(place.toml, place.url, "word")
    assert (place.server.requests, place.tuner.calls()) == ([], [])


def test_train_warns_of_an_environment_that_ends_or_multiplies_a_training(
    place: Workspace, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerate_configuration(place)
    monkeypatch.setenv("TQDM_ASCII", "1")
    assert trainer(place).train(place.toml, place.url, "word")
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for part in ("ZeroDivisionError", "MULTI_GPU"):
        assert any(part in warning and warning.startswith("[pipeline] ") for warning in warnings), warnings


def test_train_lets_pass_what_is_not_known(place: Workspace) -> None:
    for name in (VAE, TEXT_ENCODER, DIT, ADAPTER):
        of_another(name, {"a": [2]})(place)
    assert trainer(place).train(place.toml, place.url, "word")


# ---- the classes ------------------------------------------------------------------------------------------------


def made(*verdicts: str) -> Plan:
    checks = tuple(
        Check(
            name=f"row {number}",
            verdict=verdict,
            found="<found>",
            expected="more & more",
            mend="do" * (verdict != "ok"),
        )  # type: ignore[arg-type]
        for number, verdict in enumerate(verdicts)
    )
    return Plan(checks=checks, commands={"train": ["python", "a b"]})


def test_errors_are_raised_with_their_mend() -> None:
    made("ok", "warning").raise_if_not_ok()
    with pytest.raises(ValueError, match="row 1: <found>") as raised:
        made("ok", "error", "warning", "error").raise_if_not_ok()
    text = str(raised.value)
    assert text.count("mend: do") == text.count("expected: more & more") == 2
    assert "2 errors, 1 warning" in text
    assert "row 2" not in text


def test_a_plan_is_read_in_a_terminal_and_in_a_notebook() -> None:
    found = made("ok", "warning", "error")
    lines = str(found).splitlines()
    assert lines[0] == "plan: 1 error, 1 warning, 3 checks"
    assert [line[0] for line in lines[1:] if line[0] != " "] == ["✓", "!", "✗", "["]
    assert lines[-1] == "[train] python 'a b'"
    html = found._repr_html_()
    assert "&lt;found&gt;" in html
    assert "<found>" not in html
    assert html.count("<tr>") == 4


def test_a_plan_is_plain_data() -> None:
    found = made("ok", "error")
    data = json.loads(json.dumps(found.to_dict()))
    assert data["ok"] is False
    assert [check["verdict"] for check in data["checks"]] == ["ok", "error"]
    assert data["commands"] == {"train": ["python", "a b"]}
    assert pickle.loads(pickle.dumps(found)) == found
    assert len({found, made("ok", "error")}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.checks = ()  # type: ignore[misc]


def test_the_demo_s_own_weights_and_tuner_are_well(tmp_path: Path, workspace: Workspace) -> None:
    write_weights(tmp_path / "models")
    of = trainer(workspace, absolute_path_models=tmp_path / "models", absolute_path_musubi_tuner=TUNER)
    found = of.plan(workspace.toml)
    assert {check.name for check in found.errors if not check.name.startswith("package ")} == set(), str(found)
    assert {row(found, f"weights {field}").verdict for field in ("ae", "text_encoder", "DiT", "base_weights")} == {"ok"}


def test_an_accelerate_of_another_interpreter_is_asked_there(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sys.executable` was assigned: what this process can import says nothing."""
    other = place.root / "other python"
    other.write_text(f'#!/bin/sh\nPYTHONPATH={place.root / "elsewhere"} exec {sys.executable} "$@"\n')
    other.chmod(0o755)
    install_accelerate(place.root / "elsewhere")
    monkeypatch.setattr(sys, "executable", str(other))
    found = plan(place, url=None)
    assert row(found, "package accelerate").verdict == "ok"
    assert row(found, "package torch").verdict == "error"
