"""What every reader of data files needs: a row with its place, and files opened line by line."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from train.text import printable

BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Row:
    """A row, or (`value` None) what is wrong with it; `place` is a file with a line or row.

    `beside`: keys of the object that the row was found in, which are not used.
    """

    place: str
    value: Mapping[str, Any] | None
    problem: str = ""
    beside: tuple[str, ...] = ()


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading bytes, unpacked where it ends in .gz."""
    return cast(BinaryIO, gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")


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
