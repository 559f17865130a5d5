"""Rows of files, folders and hub datasets, each with the place where it stands.

A row that cannot be read is yielded with its problem instead of being raised, so that the caller
decides whether it ends the run or is counted.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from train.errors import DataError

BOM = b"\xef\xbb\xbf"
BLOCK = 1000  # rows that are taken from a columnar file at a time


@dataclass(frozen=True)
class Row:
    """A row, or (`value` None) what is wrong with it; `place` is a file with a line or row."""

    place: str
    value: Mapping[str, Any] | None
    problem: str = ""


def read_files(files: Sequence[Path]) -> Iterator[Row]:
    """Yield the rows of data files in order.

    Raises:
        DataError: a file cannot be read at all.
    """
    for path in files:
        try:
            yield from _read_file(path)
        except (OSError, EOFError, zlib.error) as error:  # gzip raises all three
            raise DataError(f"{path} cannot be read ({error}): give a file that can be") from None


def read_table(table: Any, place: str) -> Iterator[Row]:
    """Yield the rows of a `datasets.Dataset`."""
    number = 0
    for block in table.iter(batch_size=BLOCK):
        for values in zip(*block.values(), strict=True):
            number += 1
            yield Row(f"{place}, row {number}", dict(zip(block, values, strict=True)))


def file_format(path: Path) -> str:
    """Return the suffix that says how a file is read, `.gz` aside, in lower case."""
    return (Path(path.stem) if path.suffix.lower() == ".gz" else path).suffix.lower()


def _read_file(path: Path) -> Iterator[Row]:
    form = file_format(path)
    if form == ".parquet":
        yield from _read_parquet(path)
    elif form == ".csv":
        yield from _read_csv(path)
    elif form == ".txt":
        yield from _read_text(path)
    elif form == ".json" and _starts_with_bracket(path):
        yield from _read_array(path)
    else:
        yield from _read_json_lines(path)


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield line numbers, from 1, and lines without their end or a byte-order mark."""
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            yield number, (line.removeprefix(BOM) if number == 1 else line).rstrip(b"\r\n")


def _not_utf8(line: bytes, error: UnicodeDecodeError) -> str:
    return f"is not valid UTF-8 (byte 0x{line[error.start]:02x}): save the file as UTF-8"


def _read_text(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        place = f"{path}, line {number}"
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            yield Row(place, None, _not_utf8(line, error))
            continue
        if text.strip():
            yield Row(place, {"text": text})


def _read_json_lines(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        place = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            yield _object(place, json.loads(line.decode()))
        except UnicodeDecodeError as error:
            yield Row(place, None, _not_utf8(line, error))
        except (ValueError, RecursionError) as error:
            yield Row(place, None, f"is not a JSON object ({error})")


def _object(place: str, value: Any) -> Row:
    if isinstance(value, dict):
        return Row(place, value)
    return Row(place, None, f"is not a JSON object, but {_clip(json.dumps(value))} instead")


def _clip(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def _starts_with_bracket(path: Path) -> bool:
    with _open(path) as file:
        return file.read(4096).removeprefix(BOM).lstrip().startswith(b"[")


def _read_array(path: Path) -> Iterator[Row]:
    """Read a JSON array element by element, so that each has a line.

    Raises:
        DataError: the array's text breaks off or is malformed, after which nothing can be found.
    """
    with _open(path) as file:
        content = file.read().removeprefix(BOM)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line} {_not_utf8(content, error)}") from None
    decoder = json.JSONDecoder()
    at, line, counted = _skip(text, text.index("[") + 1), 1, 0
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = decoder.raw_decode(text, at)
            at = _skip(text, end)
            if text[at : at + 1] not in ("]", ","):
                raise ValueError("a comma or ] must follow")
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {line} is not a JSON value ({error})") from None
        yield _object(f"{path}, line {line}", value)
        at = _skip(text, at + 1) if text[at] == "," else at


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\t", "\r", "\n"):
        at += 1
    return at


def _read_csv(path: Path) -> Iterator[Row]:
    """Read comma-separated rows under a header; every value is a text."""
    csv.field_size_limit(sys.maxsize)  # the default refuses a sample of 100,000 tokens
    with _open(path) as file:
        texts = (
            (line.removeprefix(BOM) if number == 0 else line).decode("utf-8", "surrogateescape")
            for number, line in enumerate(file)
        )
        reader = csv.reader(texts, strict=True)
        header: list[str] | None = None
        while True:
            place = f"{path}, line {reader.line_num + 1}"
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Row(place, None, f"is not a CSV row ({error})")
                continue
            if header is None:
                header = [field.encode("utf-8", "replace").decode() for field in fields]
            elif fields:
                yield _csv_row(place, header, fields)


def _csv_row(place: str, header: Sequence[str], fields: Sequence[str]) -> Row:
    if len(fields) != len(header):
        return Row(place, None, f"has {len(fields)} fields, but the header has {len(header)}")
    try:
        "".join(fields).encode()
    except UnicodeEncodeError:
        return Row(place, None, "is not valid UTF-8: save the file as UTF-8")
    return Row(place, dict(zip(header, fields, strict=True)))


def _read_parquet(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]

    number = 0
    try:
        for block in parquet.ParquetFile(path).iter_batches(batch_size=BLOCK):
            for value in block.to_pylist():
                number += 1
                yield Row(f"{path}, row {number}", value)
    except ArrowException as error:
        raise DataError(f"{path} is not a Parquet file ({error}): write it again") from None
    except (ValueError, OverflowError) as error:  # text that is no UTF-8, dates beyond any calendar
        raise DataError(
            f"{path} has a value after row {number} that cannot be read ({error}): write it again"
        ) from None
