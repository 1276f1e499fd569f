"""Safetensors files, read and written without torch.

Musubi Tuner reads them through two doors that fail differently: caches and LoRA files through the safetensors library
(`load_file`, `save_file`), model weights and text caches through code of its own (`load_weights`, `write_file`). Both
are here, each with its errors.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# In the order in which the safetensors library lays tensors out in a file. Types numpy lacks are kept as their bits.
STORAGE = {
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
    "F32": "<f4",
    "U32": "<u4",
    "I32": "<i4",
    "BF16": "<u2",
    "F16": "<f2",
    "U16": "<u2",
    "I16": "<i2",
    "F8_E4M3": "<u1",
    "F8_E5M2": "<u1",
    "I8": "<i1",
    "U8": "<u1",
    "BOOL": "<u1",
}
_LAYOUT_ORDER = {dtype: position for position, dtype in enumerate(STORAGE)}
_HEADER_LIMIT_BYTES = 100_000_000
_LENGTH_BYTES = 8
_IO_KINDS = {
    errno.ENOSPC: "StorageFull",
    errno.ENOENT: "NotFound",
    errno.EACCES: "PermissionDenied",
    errno.EISDIR: "IsADirectory",
}


class SafetensorError(Exception):
    """What the safetensors library raises, under the name that a traceback of it shows."""

    __module__ = "safetensors_rust"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies in a file: the name of its type and its values, or its bits where numpy lacks the type."""

    dtype: str
    array: npt.NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's dimensions."""
        return self.array.shape

    def floats(self) -> Floats:
        """The values, widened or narrowed to 32-bit floats."""
        if self.dtype == "BF16":
            return (self.array.astype(np.uint32) << 16).view(np.float32)
        if self.dtype.startswith("F8"):
            raise NotImplementedError(f"{self.dtype} weights are beyond the miniature tuner: expected BF16, F16 or F32")
        return self.array.astype(np.float32)

    def scaled(self, factor: float) -> StoredTensor:
        """The tensor times `factor`, in its own type: rounded as torch rounds, whole numbers stay whole."""
        if self.dtype in {"BF16", "F16"}:
            return store(self.floats() * np.float32(factor), self.dtype)
        product = self.array * self.array.dtype.type(factor)
        return StoredTensor(self.dtype, np.asarray(product, dtype=self.array.dtype))

    def divided(self, divisor: int) -> StoredTensor:
        """The tensor over `divisor`, in its own type, but whole numbers become 32-bit floats."""
        if self.dtype == "F64":
            return StoredTensor(self.dtype, np.asarray(self.array / divisor))
        return store(self.floats() / np.float32(divisor), self.dtype if self.dtype in {"BF16", "F16"} else "F32")


Tensors = dict[str, StoredTensor]
Metadata = dict[str, str]


def store(values: npt.ArrayLike, dtype: str = "F32") -> StoredTensor:
    """Floats as a tensor of the type `dtype`; BF16 rounds to the nearest, ties to even, and keeps NaN a NaN."""
    floats = np.ascontiguousarray(values, dtype=np.float32).reshape(np.shape(values))
    if dtype != "BF16":
        with np.errstate(over="ignore", invalid="ignore"):
            return StoredTensor(dtype, floats.astype(STORAGE[dtype]))
    bits = floats.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    return StoredTensor("BF16", np.where(np.isnan(floats), 0x7FC0, rounded).astype("<u2"))


def serialize(tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str] | None) -> tuple[bytes, bytes]:
    """The header, length included, and the data of a safetensors file, laid out as the safetensors library does."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    data = bytearray()
    for name, tensor in sorted(tensors.items(), key=lambda item: (_LAYOUT_ORDER[item[1].dtype], item[0])):
        start = len(data)
        data += np.ascontiguousarray(tensor.array, dtype=STORAGE[tensor.dtype]).tobytes()
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, len(data)]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return struct.pack("<Q", len(text)) + text, bytes(data)


def write_file(
    tensors: Mapping[str, StoredTensor], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file, over an old one if there is one."""
    header, data = serialize(tensors, metadata)
    with open(path, "wb") as file:
        file.write(header)
        file.write(data)


def save_file(
    tensors: Mapping[str, StoredTensor], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Does what `write_file` does, with the safetensors library's errors."""
    try:
        write_file(tensors, path, metadata)
    except OSError as error:
        kind = _IO_KINDS.get(error.errno or 0, "Uncategorized")
        cause = f'Os {{ code: {error.errno}, kind: {kind}, message: "{error.strerror}" }}'
        raise SafetensorError(f"Error while serializing: IoError({cause})") from None


def hashes(tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> Metadata:
    """The two `sshs_` hashes by which a LoRA is known: of the data, and of one fixed stretch of the file."""
    header, data = serialize(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    stretch = (header + data)[0x100000:0x110000]
    return {
        "sshs_model_hash": hashlib.sha256(data).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(stretch).hexdigest()[:8],
    }


def load_file(path: str | os.PathLike[str]) -> tuple[Tensors, Metadata | None]:
    """Tensors and metadata of a cache or LoRA file, with the safetensors library's errors."""
    with open(path, "rb") as file:
        raw = file.read()

    def broken(reason: str) -> SafetensorError:
        return SafetensorError(f"Error while deserializing header: {reason}")

    if len(raw) < _LENGTH_BYTES:
        raise broken("HeaderTooSmall")
    (length,) = struct.unpack_from("<Q", raw)
    if length > _HEADER_LIMIT_BYTES:
        raise broken("HeaderTooLarge")
    if _LENGTH_BYTES + length > len(raw):
        raise broken("InvalidHeaderLength")
    try:
        header = json.loads(raw[_LENGTH_BYTES : _LENGTH_BYTES + length])
    except ValueError as error:
        raise broken("InvalidHeaderDeserialization") from error
    metadata = header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if _LENGTH_BYTES + length + end != len(raw):
        raise broken("MetadataIncompleteBuffer")
    return _tensors(header, raw[_LENGTH_BYTES + length :]), metadata


def load_weights(path: str | os.PathLike[str]) -> tuple[Tensors, Metadata | None]:
    """Tensors and metadata of a model file, with the errors of Musubi Tuner's own reader.

    It takes the first 8 bytes for a length whatever they are, so a web page ends in a `MemoryError`.
    """
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(_LENGTH_BYTES))
        if length > os.fstat(file.fileno()).st_size:
            raise MemoryError
        header = json.loads(file.read(length))
        data = file.read()
    metadata = header.pop("__metadata__", None)
    return _tensors(header, data), metadata


def _tensors(header: dict[str, Any], data: bytes) -> Tensors:
    tensors = {}
    # By place in the file: the order in which the safetensors library names them.
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = entry["data_offsets"]
        values = np.frombuffer(data[start:end][: end - start], dtype=np.uint8)
        storage = np.dtype(STORAGE[entry["dtype"]])
        shape = tuple(entry["shape"])
        if len(values) != storage.itemsize * int(np.prod(shape, dtype=np.int64)):
            found = len(values) // storage.itemsize
            raise RuntimeError(f"shape '{list(shape)}' is invalid for input of size {found}")
        tensors[name] = StoredTensor(entry["dtype"], values.view(storage).reshape(shape))
    return tensors
