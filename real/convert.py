"""Converts LoRAs with Musubi Tuner's two converters and with this library, and compares what they wrote.

usage: python convert.py MUSUBI_TUNER_DIR WORK [RECORDED]

with the library on PYTHONPATH. WORK is compare.py's folder: what the trainings in it have written is converted, too. In
RECORDED, the small LoRAs and what the scripts make of them are kept, for tests that run without the scripts.
"""

import contextlib
import io
import itertools
import logging
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
from compare import Report, read_safetensors
from musubitraining import convert_lora_to_comfyui
from safetensors.torch import load_file, save_file

FORMS = {
    "merged": ("src/musubi_tuner/networks/convert_z_image_lora_to_comfy.py", "{source}", "{destination}"),
    "separate": ("convert_lora.py", "--target", "other", "--input", "{source}", "--output", "{destination}"),
}
ATTENTION = ("attention_to_q", "attention_to_k", "attention_to_v", "attention_to_out_0")
FEED_FORWARD = ("feed_forward_w1", "feed_forward_w2", "feed_forward_w3")
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
METADATA = {
    "ss_network_dim": "2",
    "ss_output_name": 'Ünïcode \N{RABBIT FACE} " \\ \t\n',
    "modelspec.title": "a title",
    "sshs_model_hash": "of the input",
    "sshs_legacy_hash": "input",
}

State = dict[str, torch.Tensor]
Metadata = dict[str, str] | None


def matrix(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Numbers of every size, some too large or too small for some dtypes."""
    return (torch.randn(shape) * 10 ** torch.empty(shape).uniform_(-7, 4)).to(dtype)


def lora(
    module: str,
    rank: int = 2,
    dtype: torch.dtype = torch.float32,
    alpha: float | None = 1.0,
    alpha_dtype: torch.dtype | None = None,
    inner: int = 6,
    outer: int = 4,
    alpha_shape: tuple[int, ...] = (),
    up_dtype: torch.dtype | None = None,
) -> State:
    """One module of a LoRA."""
    state = {
        f"lora_unet_{module}.lora_down.weight": matrix(rank, inner, dtype=dtype),
        f"lora_unet_{module}.lora_up.weight": matrix(outer, rank, dtype=up_dtype or dtype),
    }
    if alpha is not None:
        state[f"lora_unet_{module}.alpha"] = torch.full(alpha_shape, alpha, dtype=alpha_dtype or dtype)
    return state


def loha(
    module: str, rank: int = 2, dtype: torch.dtype = torch.float32, alpha: float = 1.0, inner: int = 6, outer: int = 4
) -> State:
    """One module of a LoHa."""
    return {
        f"lora_unet_{module}.hada_w1_a": matrix(outer, rank, dtype=dtype),
        f"lora_unet_{module}.hada_w1_b": matrix(rank, inner, dtype=dtype),
        f"lora_unet_{module}.hada_w2_a": matrix(outer, rank, dtype=dtype),
        f"lora_unet_{module}.hada_w2_b": matrix(rank, inner, dtype=dtype),
        f"lora_unet_{module}.alpha": torch.tensor(alpha, dtype=dtype),
    }


def of(kind: Callable[..., State], *modules: str, **options: object) -> State:
    """Several modules alike."""
    return {name: tensor for module in modules for name, tensor in kind(module, **options).items()}


def block(kind: Callable[..., State], name: str = "layers_0", **options: object) -> State:
    """Every module of a block that is trained by default."""
    return of(kind, *(f"{name}_{part}" for part in (*ATTENTION, *FEED_FORWARD)), **options)


def of_real_size() -> State:
    """All layers of Z-Image, of the rank that the library trains."""
    state: State = {}
    for layer in range(30):
        for part in ATTENTION:
            state |= lora(f"layers_{layer}_{part}", 16, alpha=16.0, inner=3840, outer=3840)
        for part, inner, outer in zip(FEED_FORWARD, (3840, 10240, 3840), (10240, 3840, 10240), strict=True):
            state |= lora(f"layers_{layer}_{part}", 16, alpha=16.0, inner=inner, outer=outer)
    return state


def small() -> Iterator[tuple[str, State, Metadata]]:
    """A few kB each: these can be recorded."""
    for dtype in FLOATS:
        name = str(dtype).removeprefix("torch.")
        yield f"lora_{name}", block(lora, dtype=dtype), METADATA
        yield f"loha_{name}", block(loha, dtype=dtype, rank=3), METADATA
    yield "no_metadata", block(lora, dtype=torch.bfloat16), None
    yield "no_training_metadata", block(lora), {"title": "x"}
    yield "int64_alpha", block(lora, dtype=torch.bfloat16, alpha=3, alpha_dtype=torch.int64), METADATA
    yield "part_of_the_modules", of(lora, "layers_3_attention_to_out_0", "layers_12_feed_forward_w2"), METADATA
    refiners = block(lora, "noise_refiner_0") | block(lora, "context_refiner_1")
    others = ("adaLN_modulation_0", "attention_norm_q", "attention_norm_k")
    beside = of(lora, "cap_embedder_1", "t_embedder_mlp_0", "all_final_layer_2-1_linear")
    yield "refiners", refiners | of(lora, *(f"layers_0_{other}" for other in others)) | beside, METADATA
    other_rank = block(lora, rank=5, alpha=2.5) | block(lora, "layers_1", rank=1)
    yield "ranks", other_rank | block(loha, "layers_10", rank=3), METADATA
    q, k, v = (lora(f"layers_0_attention_to_{one}", alpha=alpha) for one, alpha in (("q", 1), ("k", 2), ("v", 3)))
    yield "uneven_alpha", q | k | v, METADATA
    yield "no_alpha", of(lora, "layers_0_feed_forward_w1", alpha=None), METADATA
    yield "float64_alpha", block(lora, rank=3, alpha_dtype=torch.float64), METADATA
    yield "alpha_in_a_list", block(lora, dtype=torch.bfloat16, alpha_dtype=torch.float16, alpha_shape=(1,)), METADATA
    yield "mixed", block(lora, dtype=torch.float16, up_dtype=torch.float32), METADATA
    of_k = lora("layers_0_attention_to_k", dtype=torch.float16)
    yield "mixed_q_k_v", block(lora, dtype=torch.bfloat16) | of_k, METADATA


def more() -> Iterator[tuple[str, State, Metadata]]:
    """Every dtype with every other, and what does not fit a record."""
    for dtype, alpha_dtype in itertools.product(FLOATS, FLOATS + INTEGERS):
        for rank, alpha, shape in ((300, 7, ()), (257, 100, ()), (3, 0, ()), (3, 1, (1,)), (16, 16, ())):
            options = {"rank": rank, "dtype": dtype, "alpha": alpha, "alpha_dtype": alpha_dtype, "alpha_shape": shape}
            yield (
                f"{dtype}, alpha {alpha} {list(shape)} of {alpha_dtype}, rank {rank}",
                block(lora, **options),
                METADATA,
            )
    for dtype, up_dtype in itertools.permutations(FLOATS, 2):
        yield f"{dtype}, lora_up of {up_dtype}", block(lora, dtype=dtype, up_dtype=up_dtype), METADATA
        for kind in (lora, loha):
            mixed = block(kind, dtype=dtype) | kind("layers_0_attention_to_k", dtype=up_dtype)
            yield f"{kind.__name__}, {dtype}, k of {up_dtype}", mixed, METADATA
    yield "empty metadata", block(lora), {}
    yield "a number that is one alone", block(lora, rank=1, inner=1, outer=1, dtype=torch.bfloat16, alpha=3), METADATA
    # Of one key: the scripts write several in any order.
    yield "a header of over 1 MiB", block(lora), {"ss_tag_frequency": "x" * 0x10_0100}
    yield "of real size", of_real_size(), METADATA
    yield "of real size, bfloat16", {name: tensor.bfloat16() for name, tensor in of_real_size().items()}, METADATA


def run_script(musubi: Path, form: str, source: Path, destination: Path) -> None:
    """Run the clone's script in this process, so that torch is imported once."""
    script, *arguments = FORMS[form]
    argv = [script, *(word.format(source=source, destination=destination) for word in arguments)]
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(io.StringIO()):
        runpy.run_path(str(musubi / script), run_name="__main__")


def difference(theirs: Path, ours: Path) -> str:
    """What is not the same, in words."""
    load_file(ours)
    (tensors, metadata, data), (our_tensors, our_metadata, our_data) = map(read_safetensors, (theirs, ours))
    names = [name for name in tensors | our_tensors if tensors.get(name) != our_tensors.get(name)]
    keys = [key for key in metadata | our_metadata if metadata.get(key) != our_metadata.get(key)]
    found = [*names[:3], *keys, *(["the order of the data"] if data != our_data else [])]
    return ", ".join(found)


def main() -> None:
    """Compare what becomes of every LoRA, in both forms."""
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    musubi, work = (Path(argument).resolve() for argument in sys.argv[1:3])
    recorded = Path(sys.argv[3]).resolve() if len(sys.argv) == 4 else None
    sys.path.insert(0, str(musubi / "src"))
    logging.disable(logging.CRITICAL)
    torch.manual_seed(0)
    folder = work / "convert"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    source, theirs, ours = (folder / f"{name}.safetensors" for name in ("source", "theirs", "ours"))
    report = Report()

    def compare(name: str, record: Path | None = None) -> list[str]:
        differing = []
        for form in FORMS:
            run_script(musubi, form, source, theirs)
            convert_lora_to_comfyui(source, ours, form=form)
            found = difference(theirs, ours)
            differing += [f"{form}: {found}"] if found else []
            if record is not None:
                shutil.copy(theirs, record / f"{name}.{form}.safetensors")
        if record is not None:
            shutil.copy(source, record / f"{name}.safetensors")
        return differing

    if recorded is not None:
        recorded.mkdir(parents=True, exist_ok=True)
    for name, state, metadata in small():
        save_file(state, source, metadata)
        differing = compare(name, recorded)
        report.say(name, same=not differing, detail="; ".join(differing))
    count, others = 0, []
    for name, state, metadata in more():
        save_file(state, source, metadata)
        count, others = count + 1, others + [f"{name}: {found}" for found in compare(name)]
    report.say("every dtype with every other, the real size", same=not others, detail=f"{count} LoRAs")
    report.explain(others)
    for trained in sorted(work.glob("*/output/*.safetensors")):
        shutil.copy(trained, source)
        differing = compare(trained.name)
        report.say(str(trained.relative_to(work)), same=not differing, detail="; ".join(differing))
    shutil.rmtree(folder)
    print(f"\n{f'{report.differences} differences' if report.differences else 'all the same'}")
    sys.exit(bool(report.differences))


if __name__ == "__main__":
    main()
