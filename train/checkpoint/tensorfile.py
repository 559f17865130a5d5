"""Tensors in safetensors files, written and read a piece at a time, so that none is held whole.

The format is a length (8 bytes, little endian), a JSON header of names, types, shapes and places,
and the bytes: https://huggingface.co/docs/safetensors#format. Nothing in it can be executed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

SIZES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2,
    "U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
LONGEST_HEADER = 100_000_000  # bytes, as in safetensors itself


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor is: its type, as safetensors writes it, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """The bytes that its values take."""
        return self.elements * SIZES[self.dtype]


@dataclass(frozen=True)
class ByteRange:
    """Where a tensor lies in its file: bytes `start` to `stop`, counted from the file's start."""

    kind: TensorSpec
    start: int
    stop: int


def write_header(
    file: BinaryIO, tensors: Mapping[str, TensorSpec], notes: Mapping[str, str] | None = None
) -> dict[str, ByteRange]:
    """Write the header of a file that will hold `tensors` in this order; return their places.

    Raises:
        OSError: the file cannot be written.
    """
    at = 0
    header: dict[str, Any] = {} if notes is None else {"__metadata__": dict(notes)}
    places = {}
    for name, kind in tensors.items():
        header[name] = {
            "dtype": kind.dtype,
            "shape": list(kind.shape),
            "data_offsets": [at, at + kind.bytes],
        }
        places[name] = (kind, at)
        at += kind.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    base = 8 + len(text)
    return {
        name: ByteRange(kind, base + start, base + start + kind.bytes)
        for name, (kind, start) in places.items()
    }


def read_header(path: Path) -> dict[str, ByteRange]:
    """Return the places of a file's tensors.

    Raises:
        ValueError: this is not a whole safetensors file.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size
        if not 0 < length <= min(LONGEST_HEADER, size - 8):
            raise ValueError("its header is cut short")
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        return {name: _place(entry, 8 + length, size) for name, entry in header.items()}
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"its header is malformed ({error!r})") from None


def _place(entry: Mapping[str, object], base: int, size: int) -> ByteRange:
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not (isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2):
        raise ValueError("its header is malformed")
    kind = TensorSpec(str(entry["dtype"]), tuple(int(extent) for extent in shape))
    start, stop = base + int(offsets[0]), base + int(offsets[1])
    if stop > size:
        raise ValueError(f"it is cut short at {size} bytes")
    if any(extent < 0 for extent in kind.shape) or start < base or stop - start != kind.bytes:
        raise ValueError("its header contradicts itself")
    return ByteRange(kind, start, stop)
