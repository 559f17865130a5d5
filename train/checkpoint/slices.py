"""Slices of global tensors in files: written with checksums, read and verified in part.

A slice is a run of a tensor's elements in row-major order, or of those of a part of it. For each
kind of value (`master`, `exp_avg` and `exp_avg_sq` of a parameter, `value` of a buffer) its
safetensors file holds `<name>.<kind>`, and `<name>.blocks` holds a 64-bit xxh3 of every 16 KiB of
each kind; whoever reads is told the checksum of that table. So any part of a slice can be read, and
verified, by itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, pairwise
from math import prod
from pathlib import Path
from typing import TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from train.checkpoint.cut import Cut, Span, shared_runs
from train.checkpoint.failpoint import failpoint
from train.checkpoint.tensorfile import SIZES, ByteRange, TensorSpec, read_header, write_header
from train.errors import CheckpointError, FaultError

BLOCK = 1 << 14  # bytes under one checksum
CHUNK = 1 << 24  # bytes read at a time
GAP = 1 << 16  # bytes between two runs, up to which both are read in one
PAUSES = (0.5, 2.0, 8.0)  # seconds between two tries to read what cannot be read
STATE = ("master", "exp_avg", "exp_avg_sq")
Bytes = NDArray[np.uint8]
T = TypeVar("T")


@dataclass(frozen=True)
class ShardRef:
    """Elements `start` to `start + length` of a tensor, or of its `cut`, in `file`."""

    file: str
    start: int
    length: int
    checksum: str
    cut: Cut | None = None


@dataclass(frozen=True)
class TensorMetadata:
    """A global tensor: its shape, its kinds of values, all of one type, and its slices."""

    shape: tuple[int, ...]
    dtype: str
    kinds: tuple[str, ...]
    slices: tuple[ShardRef, ...]

    @property
    def elements(self) -> int:
        """The number of elements of one kind."""
        return prod(self.shape)

    @property
    def held(self) -> int:
        """The number of elements of one kind that the slices have together."""
        return sum(piece.length for piece in self.slices)


@dataclass(frozen=True)
class ShardData:
    """What one rank writes of a tensor, or of its `cut`: from element `start` each kind's bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int
    values: Mapping[str, Bytes] = field(repr=False)
    cut: Cut | None = None

    @property
    def length(self) -> int:
        """The number of elements."""
        return len(next(iter(self.values.values()))) // SIZES[self.dtype]

    @property
    def sum(self) -> int:
        """A number of 64 bits whose total over a tensor's slices tells tensors apart.

        It does not depend on where the slices begin, and any one element that differs changes it.
        Elements have 4 bytes.
        """
        places = np.arange(self.start, self.start + self.length, dtype=np.uint64) * 2 + 1
        kinds = (values.view("<u4").astype(np.uint64) * places for values in self.values.values())
        total = sum((2 * number + 1) * int(words.sum()) for number, words in enumerate(kinds))
        return total % 2**64


def write_shards(path: Path, parts: Sequence[ShardData]) -> dict[str, ShardRef]:
    """Write one rank's file, with checksums, and force it to disk; return its slices by name.

    Raises:
        OSError: it cannot be written whole.
    """
    tensors: dict[str, TensorSpec] = {}
    for part in parts:
        blocks = -(-len(next(iter(part.values.values()))) // BLOCK)
        tensors[f"{part.name}.blocks"] = TensorSpec("U64", (len(part.values), blocks))
    for part in parts:
        tensors |= {
            f"{part.name}.{kind}": TensorSpec(part.dtype, (part.length,)) for kind in part.values
        }
    slices = {}
    with path.open("xb") as file:
        failpoint("opened")
        places = write_header(file, tensors, {"format": "anyrank"})
        for number, part in enumerate(parts):
            table = np.array([_hashes(values) for values in part.values.values()], dtype="<u8")
            file.seek(places[f"{part.name}.blocks"].start)
            file.write(table.tobytes())
            for kind, values in part.values.items():
                file.seek(places[f"{part.name}.{kind}"].start)
                file.write(values.data)
            checksum = _hash(table.tobytes())
            slices[part.name] = ShardRef(path.name, part.start, part.length, checksum, part.cut)
            if number == len(parts) // 2:
                failpoint("halfway")
        file.flush()
        os.fsync(file.fileno())
    return slices


def _hashes(values: Bytes) -> list[int]:
    view = values.data
    return [xxhash.xxh3_64_intdigest(view[i : i + BLOCK]) for i in range(0, len(view), BLOCK)]


def _hash(content: bytes) -> str:
    return xxhash.xxh3_64_hexdigest(content)


class Reader:
    """Reads parts of a checkpoint's slices and verifies what it reads; counts its bytes."""

    def __init__(self, folder: Path, tensors: Mapping[str, TensorMetadata]) -> None:
        self.folder, self.tensors = folder, tensors
        self.bytes = 0
        self._headers: dict[str, dict[str, ByteRange]] = {}
        self._tables: dict[tuple[str, str], NDArray[np.uint64]] = {}
        self._files: dict[str, int] = {}

    def read(
        self, name: str, kind: str, start: int, stop: int, cut: Cut | None = None
    ) -> Iterator[tuple[int, Bytes]]:
        """Yield elements start..stop of a tensor, or of its `cut`, as (first element, bytes).

        They come in order.

        Raises:
            CheckpointError: they are missing or damaged.
        """
        if start >= stop:
            return
        entry = self.tensors.get(name)
        if entry is None or kind not in entry.kinds:
            raise CheckpointError(f"it has no {kind} of {name}")
        if cut is not None or any(piece.cut is not None for piece in entry.slices):
            yield from self._assembled(name, entry, kind, Span(cut, start, stop))
            return
        reached = start
        for piece in sorted(entry.slices, key=lambda piece: piece.start):
            first, last = max(reached, piece.start), min(stop, piece.start + piece.length)
            if first >= last:
                continue
            if first != reached:
                break
            yield from self._read(name, entry, kind, piece, first, last)
            reached = last
        if reached < stop:
            raise CheckpointError(f"elements {reached} to {stop} of {name} are in no file")

    def verify(self, name: str) -> None:
        """Read every byte of a tensor's slices.

        Raises:
            CheckpointError: they are damaged, or are not all of the tensor.
        """
        entry = self.tensors[name]
        for kind in entry.kinds:
            if all(piece.cut is None for piece in entry.slices):
                for _ in self.read(name, kind, 0, entry.elements):
                    pass
                continue
            for piece in entry.slices:
                for _ in self._read(
                    name, entry, kind, piece, piece.start, piece.start + piece.length
                ):
                    pass
        if entry.held != entry.elements:
            raise CheckpointError(
                f"{entry.held} of the {entry.elements} elements of {name} are in files"
            )

    def _assembled(
        self, name: str, entry: TensorMetadata, kind: str, wanted: Span
    ) -> Iterator[tuple[int, Bytes]]:
        """Yield a span, put together from slices that are cut otherwise, as `read` does."""
        size = SIZES[entry.dtype]
        for first in range(wanted.start, wanted.stop, CHUNK // size):
            part = Span(wanted.cut, first, min(first + CHUNK // size, wanted.stop))
            buffer = np.empty((part.stop - first) * size, dtype=np.uint8)
            missing = part.stop - first
            for piece in entry.slices:
                for at, raw in self._shared(name, entry, kind, piece, part):
                    buffer[(at - first) * size :][: len(raw)] = raw
                    missing -= len(raw) // size
            if missing:
                raise CheckpointError(f"{missing} elements of {name} are in no file, or in two")
            yield first, buffer

    def _shared(
        self, name: str, entry: TensorMetadata, kind: str, piece: ShardRef, wanted: Span
    ) -> Iterator[tuple[int, Bytes]]:
        """Yield what a slice has of a span, by its place there; near runs are read in one."""
        size = SIZES[entry.dtype]
        here = Span(piece.cut, piece.start, piece.start + piece.length)
        runs = shared_runs(entry.shape, wanted, here)
        ends = runs.source + runs.length
        apart = np.flatnonzero((runs.source[1:] - ends[:-1]) * size > GAP) + 1
        bounds = [0, *apart.tolist(), len(ends)]
        for low, high in pairwise(bounds if len(ends) else ()):
            begin = int(runs.source[low])
            found = self._read(name, entry, kind, piece, begin, int(ends[high - 1]))
            raw = np.concatenate([part for _, part in found])
            for at, source, length in islice(runs, low, high):
                yield at, raw[(source - begin) * size :][: length * size]

    def _read(
        self, name: str, entry: TensorMetadata, kind: str, piece: ShardRef, first: int, last: int
    ) -> Iterator[tuple[int, Bytes]]:
        size = SIZES[entry.dtype]
        where = self._place(piece, name, entry, kind)
        hashes = self._table(piece, name, entry)[entry.kinds.index(kind)]
        low, high = (first - piece.start) * size, (last - piece.start) * size
        for chunk in range(low // BLOCK * BLOCK, high, CHUNK):
            end = min(chunk + CHUNK, -(-high // BLOCK) * BLOCK, piece.length * size)
            raw = self._bytes(piece.file, where.start + chunk, end - chunk)
            wanted = hashes[chunk // BLOCK : -(-end // BLOCK)]
            if not np.array_equal(np.array(_hashes(raw), dtype="<u8"), wanted):
                raise CheckpointError(f"{name}.{kind} in {piece.file} has other values than saved")
            begin, finish = max(low, chunk), min(high, end)
            yield piece.start + begin // size, raw[begin - chunk : finish - chunk]

    def _table(self, piece: ShardRef, name: str, entry: TensorMetadata) -> NDArray[np.uint64]:
        key = (piece.file, name)
        if key not in self._tables:
            blocks = -(-piece.length * SIZES[entry.dtype] // BLOCK)
            wanted = TensorSpec("U64", (len(entry.kinds), blocks))
            where = self._header(piece.file).get(f"{name}.blocks")
            if where is None or where.kind != wanted:
                raise CheckpointError(f"{piece.file} has no checksums of {name}")
            raw = self._bytes(piece.file, where.start, wanted.bytes)
            if _hash(raw.tobytes()) != piece.checksum:
                raise CheckpointError(f"the checksums of {name} in {piece.file} are damaged")
            self._tables[key] = raw.view("<u8").reshape(wanted.shape)
        return self._tables[key]

    def _place(self, piece: ShardRef, name: str, entry: TensorMetadata, kind: str) -> ByteRange:
        where = self._header(piece.file).get(f"{name}.{kind}")
        if where is None or where.kind != TensorSpec(entry.dtype, (piece.length,)):
            raise CheckpointError(f"{piece.file} has no {name}.{kind} of {piece.length} elements")
        return where

    def _header(self, file: str) -> dict[str, ByteRange]:
        if file not in self._headers:
            try:
                self._headers[file] = patiently(partial(read_header, self.folder / file))
            except ValueError as error:
                raise CheckpointError(f"{file} cannot be read: {error}") from None
        return self._headers[file]

    def _bytes(self, file: str, start: int, count: int) -> Bytes:
        if file not in self._files:
            self._files[file] = patiently(partial(os.open, self.folder / file, os.O_RDONLY))
        buffer = np.empty(count, dtype=np.uint8)
        done = 0
        while done < count:
            place = (self._files[file], [buffer.data[done:]], start + done)
            more = patiently(partial(os.preadv, *place))
            if not more:
                raise CheckpointError(f"{file} is cut short at {start + done} bytes")
            done += more
        self.bytes += count
        return buffer

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()


def patiently(act: Callable[[], T]) -> T:
    """Read something of a checkpoint; try again where the disk or the network cannot just now.

    What cannot be read is not damaged: nothing is passed over, or removed, because of it.

    Raises:
        CheckpointError: a file is not there.
        FaultError: it still cannot be read after `PAUSES`.
    """
    for pause in (*PAUSES, None):
        try:
            return act()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise CheckpointError(f"{error.filename} cannot be read: {error.strerror}") from None
        except OSError as error:
            if pause is None:
                raise FaultError(
                    f"the checkpoint cannot be read ({error}), though it is not known to be "
                    "damaged: it is left as it is; see to the disk, and start again"
                ) from None
        time.sleep(pause)
    raise AssertionError
