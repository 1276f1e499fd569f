"""The conversion of a LoRA for ComfyUI: the clone's scripts, this library, and copying what comes out."""

import array
import hashlib
import json
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from measure import Bench, Contender, Table, interleaved, ratios

ROUNDS = 7
SCRIPTS = {
    "merged": ("src/musubi_tuner/networks/convert_z_image_lora_to_comfy.py", "{source}", "{to}"),
    "separate": ("convert_lora.py", "--target", "other", "--input", "{source}", "--output", "{to}"),
}
LAYERS, WIDTH, INNER, RANK, ALPHA = 30, 3840, 10240, 16, 8
SIZES = {f"attention_{name}": (WIDTH, WIDTH) for name in ("to_q", "to_k", "to_v", "to_out_0")} | {
    "feed_forward_w1": (WIDTH, INNER),
    "feed_forward_w2": (INNER, WIDTH),
    "feed_forward_w3": (WIDTH, INNER),
}
CODE = "import sys; from musubitraining import convert_lora_to_comfyui as f; f(*sys.argv[1:3], form=sys.argv[3])"


def write_lora(path: Path) -> None:
    """Z-Image's 30 layers in fp32, with an alpha that is not the rank, so that there is something to multiply."""
    numbers = array.array("f", (random.Random(0).gauss(0, 0.01) for _ in range(RANK * INNER))).tobytes()
    header: dict[str, object] = {"__metadata__": {"ss_network_dim": str(RANK), "ss_network_alpha": str(ALPHA)}}
    data: list[bytes] = []
    end = 0
    for layer in range(LAYERS):
        for part, (inner, outer) in SIZES.items():
            for suffix, shape in (
                ("alpha", []),
                ("lora_down.weight", [RANK, inner]),
                ("lora_up.weight", [outer, RANK]),
            ):
                size = 4 * shape[0] * shape[1] if shape else 4
                data.append(numbers[:size] if shape else struct.pack("<f", ALPHA))
                name = f"lora_unet_layers_{layer}_{part}.{suffix}"
                header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
                end += size
    text = json.dumps(header).encode()
    path.write_bytes(b"".join([struct.pack("<Q", len(text)), text, *data]))


def data_of(path: Path) -> str:
    """A hash of everything but the header, whose metadata the scripts write in any order."""
    content = path.read_bytes()
    return hashlib.sha256(content[8 + struct.unpack("<Q", content[:8])[0] :]).hexdigest()


def tables(bench: Bench) -> Iterator[Table]:
    """A table for each form; without a clone, against copying alone."""
    folder = bench.work / "conversion"
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "lora.safetensors"
    write_lora(source)
    for form, (script, *arguments) in SCRIPTS.items():
        theirs, ours, copy = (folder / f"{form}.{name}.safetensors" for name in ("script", "ours", "copy"))
        contenders = [
            Contender(
                "this library", [str(bench.ours), "-c", CODE, str(source), str(ours), form], prepare=removal(ours)
            ),
            Contender("cp of the result", ["cp", str(ours), str(copy)], prepare=removal(copy)),
        ]
        against = contenders[1].name
        if bench.musubi and bench.real:
            against = Path(script).name
            words = [word.format(source=source, to=theirs) for word in arguments]
            paths = {"PYTHONPATH": str(bench.musubi / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
            command = [str(bench.real), str(bench.musubi / script), *words]
            contenders.append(Contender(against, command, {**os.environ, **paths}, prepare=removal(theirs)))
        # The first of each reads from the disk.
        interleaved(contenders, 1)
        if theirs.exists() and data_of(theirs) != data_of(ours):
            raise RuntimeError(f"{form}: the script's data and ours differ")
        sizes = f"{source.stat().st_size / 1e6:.0f} MB in fp32, to {ours.stat().st_size / 1e6:.0f} MB"
        conditions = f"A LoRA of Z-Image's real size, {sizes}; whole processes, imports included."
        yield ratios(f"Conversion, form={form!r}", conditions, interleaved(contenders, ROUNDS), against=against)
        for path in (theirs, ours, copy):
            path.unlink(missing_ok=True)
    source.unlink()


def removal(path: Path) -> Callable[[], None]:
    """What removes a file that may be there."""
    return lambda: path.unlink(missing_ok=True)
