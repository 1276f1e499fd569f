"""Weights on a cold disk, read while the photos are on their way."""

import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from harness.library import OURS, Workspace
from harness.photos import photo_zip
from harness.scenario import Work
from harness.server import Exchange, content
from harness.tuner import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into the page cache")

MEBIBYTE = 1 << 20


def train(work: Work) -> str:
    return work.train()


def cold(path: Path, mebibytes: int) -> Path:
    """A whole safetensors file that is on the disk alone."""
    size = mebibytes * MEBIBYTE
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if is_cached(path, path.stat().st_size // 2):
        pytest.skip("no file of this disk leaves the memory")
    return path


def is_cached(path: Path, place: int) -> bool:
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        try:
            return os.preadv(file.fileno(), [bytearray(1)], place, os.RWF_NOWAIT) == 1
        except BlockingIOError:
            return False


@pytest.fixture
def place(bench: Any, request: pytest.FixtureRequest) -> Workspace:
    workspace: Workspace = bench.workspace()
    # The folder for temporary files may be in memory.
    folder = Path(request.config.cache.mkdir("models"))
    for weights in workspace.models.iterdir():
        weights.rename(folder / weights.name)
    workspace.models.rmdir()
    workspace.models.symlink_to(folder)
    return workspace


def test_weights_are_read_while_the_photos_are_on_their_way(place: Workspace) -> None:
    vae = cold(place.models / "ae.safetensors", 3)
    text_encoder = cold(place.models / "qwen_3_4b.safetensors", 8)
    photos = content(photo_zip())
    read: list[bool] = []

    def once_they_are_read(exchange: Exchange) -> None:
        # Each look brings a page in: never at the same place twice.
        places = iter(range(8 * MEBIBYTE - 5000, 0, -5000))
        read.append(wait_until(lambda: is_cached(text_encoder, next(places, 0)), 30))
        photos(exchange)

    place.url = place.server.on("/photos.zip", once_they_are_read)
    run = place.run(OURS, train).ok()
    assert read == [True]
    assert is_cached(vae, 1_500_000)
    (line,) = run.logged("[pipeline] weights read ahead: ")
    assert " MiB read" in line
    assert run.log.index(("INFO", line)) < run.log.index(("INFO", "[precache:latents] starting"))


def test_the_trainings_weights_are_read_once_the_caching_has_read_its_own(place: Workspace) -> None:
    model = cold(place.models / "z_image_de_turbo_v1_bf16.safetensors", 8)
    go = place.root / "go"
    place.tuner.does("zimage_cache_text_encoder_outputs.py", ["await", str(go)])
    running = place.start(OURS, train)
    places = iter(range(8 * MEBIBYTE - 5000, 0, -5000))
    assert wait_until(lambda: is_cached(model, next(places, 0)), 30)
    go.touch()
    run = running.finish().ok()
    assert run.logged("[pipeline] weights read ahead: ")


def train_without_base_weights(work: Work) -> str:
    from musubitraining import TrainingOptions

    return work.train(use_pre_cache=False, options=TrainingOptions(base_weights=None))


def test_base_weights_that_are_not_merged_are_not_read(place: Workspace) -> None:
    model = cold(place.models / "z_image_de_turbo_v1_bf16.safetensors", 8)
    base_weights = cold(place.models / "zimage_turbo_training_adapter_v2.safetensors", 16)
    photos = content(photo_zip())

    def once_the_model_is_read(exchange: Exchange) -> None:
        places = iter(range(8 * MEBIBYTE - 5000, 0, -5000))
        assert wait_until(lambda: is_cached(model, next(places, 0)), 30)
        photos(exchange)

    place.url = place.server.on("/photos.zip", once_the_model_is_read)
    place.run(OURS, train_without_base_weights).ok()
    # Where the next file would have been read first.
    assert not is_cached(base_weights, 2 * MEBIBYTE)


def test_where_there_is_nothing_to_read_nothing_is_said(place: Workspace) -> None:
    assert not place.run(OURS, train).ok().logged("read ahead")
