"""What every reader of data files needs: rows with their places, blocks of them, lines of files.

A block is what is made into samples at a time, wherever that is done: rows, or the lines that hold
them, so that reading them is no work of the one process that deals blocks out.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from train.text import printable

BOM = b"\xef\xbb\xbf"
ROWS = 250  # rows of a block
LONG = 1 << 18  # bytes of lines at which a block has fewer


@dataclass(frozen=True)
class Row:
    """A row, or (`value` None) what is wrong with it; `place` is a file with a line or row.

    `beside`: keys of the object that the row was found in, which are not used. `share`: how much of
    its file is read with it.
    """

    place: str
    value: Mapping[str, Any] | None
    problem: str = ""
    beside: tuple[str, ...] = ()
    share: float = 0.0


@dataclass(frozen=True)
class Block:
    """Rows, or lines of JSON of the file `path` from its line `first` on.

    `share`: how much of a split is read with it, from 0 to 1.
    """

    share: float
    rows: tuple[Row, ...] = ()
    path: str = ""
    first: int = 0
    lines: tuple[bytes, ...] = ()


def in_blocks(rows: Iterable[Row]) -> Iterator[Block]:
    """Yield rows in blocks."""
    iterator = iter(rows)
    while block := tuple(islice(iterator, ROWS)):
        yield Block(block[-1].share, block)


def line_blocks(path: Path) -> Iterator[Block]:
    """Yield the lines of a file in blocks of some rows, or of long ones fewer."""
    size = max(1, path.stat().st_size)
    with open_file(path) as file:
        raw = unpacked_from(file)
        lines: list[bytes] = []
        held, first = 0, 1
        for number, line in enumerate(file, 1):
            lines.append(line)
            held += len(line)
            if len(lines) == ROWS or held >= LONG:
                yield Block(raw.tell() / size, (), str(path), first, tuple(lines))
                lines, held, first = [], 0, number + 1
        if lines:
            yield Block(1.0, (), str(path), first, tuple(lines))


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading bytes, unpacked where it ends in .gz."""
    return cast(BinaryIO, gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")


def unpacked_from(file: BinaryIO) -> BinaryIO:
    """Return the file of which `open_file` unpacks another, or that itself: its place is known."""
    return cast(BinaryIO, getattr(file, "fileobj", file))


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield line numbers, from 1, and lines without their end or a byte-order mark."""
    with open_file(path) as file:
        for number, line in enumerate(file, 1):
            yield number, (line.removeprefix(BOM) if number == 1 else line).rstrip(b"\r\n")


def not_utf8(line: bytes, error: UnicodeDecodeError) -> str:
    """Return what is wrong with a line, and what to do."""
    return f"is not valid UTF-8 (byte 0x{line[error.start]:02x}): save the file as UTF-8"


def first_line(error: Exception) -> str:
    """Return the first line of what a library says."""
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0])
