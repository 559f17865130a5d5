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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from train.data.columns import is_known, listed
from train.data.turns import ROLE_KEYS
from train.errors import DataError
from train.text import printable

BOM = b"\xef\xbb\xbf"
BLOCK = 1000  # rows that are taken from a columnar file at a time


@dataclass(frozen=True)
class Row:
    """A row, or (`value` None) what is wrong with it; `place` is a file with a line or row.

    `beside`: keys of the object that the row was found in, which are not used.
    """

    place: str
    value: Mapping[str, Any] | None
    problem: str = ""
    beside: tuple[str, ...] = ()


def read_files(files: Sequence[Path]) -> Iterator[Row]:
    """Yield the rows of data files in order.

    Raises:
        DataError: a file cannot be read at all.
    """
    for path in files:
        try:
            yield from _read_file(path)
        except (OSError, EOFError, zlib.error) as error:  # gzip raises all three
            raise DataError(
                f"{path} cannot be read ({_line(error)}): give a file that can be"
            ) from None


def read_table(table: Any, place: str) -> Iterator[Row]:
    """Yield the rows of a `datasets.Dataset`."""
    number = 0
    for block in table.iter(batch_size=BLOCK):
        for values in zip(*block.values(), strict=True):
            number += 1
            row = dict(zip(block, map(_without_nulls, values), strict=True))
            yield Row(f"{place}, row {number}", row)


def file_format(path: Path) -> str:
    """Return the suffix that says how a file is read, `.gz` aside, in lower case."""
    return (Path(path.stem) if path.suffix.lower() == ".gz" else path).suffix.lower()


def _read_file(path: Path) -> Iterator[Row]:
    form = file_format(path)
    if form == ".parquet":
        yield from _read_parquet(path)
    elif form in (".csv", ".tsv"):
        yield from _read_csv(path)
    elif form == ".txt":
        yield from _read_text(path)
    elif _starts_with_bracket(path):
        yield from _read_array(path)
    elif _spans_lines(path):
        yield from _read_objects(path)
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
            value = json.loads(line.decode())
        except UnicodeDecodeError as error:
            yield Row(place, None, _not_utf8(line, error))
        except (ValueError, RecursionError) as error:
            yield Row(place, None, f"is not a JSON object ({_reason(error)})")
        else:
            yield from _rows(place, value)


def _object(place: str, value: Any) -> Row:
    if isinstance(value, dict):
        return Row(place, value)
    return Row(place, None, f"is not a JSON object, but {_clip(json.dumps(value))} instead")


def _rows(place: str, value: Any) -> Iterator[Row]:
    """Yield the row that a JSON value is, or the rows that it wraps: `{"data": [{…}, {…}]}`.

    Raises:
        DataError: it wraps several lists of rows.
    """
    lists = (
        [key for key, held in value.items() if _is_rows(held)] if isinstance(value, dict) else []
    )
    if not lists or is_known(value):
        yield _object(place, value)
        return
    if len(lists) > 1:
        raise DataError(
            f"{place} is one object that holds the lists of rows {listed(lists)}: write each to "
            "a file of its own, as train.jsonl and validation.jsonl in one folder"
        )
    beside = tuple(key for key in value if key != lists[0])
    for number, row in enumerate(value[lists[0]], 1):
        yield replace(_object(f"{place}, row {number} of '{listed(lists)}'", row), beside=beside)


def _is_rows(value: Any) -> bool:
    """Whether a value is a list of objects that are no turns of a conversation."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(row, dict) and not any(key in row for key in ROLE_KEYS) for row in value)


def _line(error: Exception) -> str:
    """Return the first line of what a library says."""
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0])


def _reason(error: Exception) -> str:
    """Return a parser's reason without its own line number, which counts from the row's start."""
    return (
        f"{error.msg} at column {error.colno}"
        if isinstance(error, json.JSONDecodeError)
        else str(error)
    )


def _clip(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def _starts_with_bracket(path: Path) -> bool:
    with _open(path) as file:
        return file.read(4096).removeprefix(BOM).lstrip().startswith(b"[")


def _spans_lines(path: Path) -> bool:
    """Whether the first line is the beginning of an object, and not the whole of it."""
    line = next((line for _, line in _lines(path) if line.strip()), b"")
    first = line.decode(errors="replace").strip()
    try:
        json.loads(first)
    except (ValueError, RecursionError) as error:
        return first.startswith("{") and getattr(error, "pos", 0) >= len(first)
    return False


def _whole_text(path: Path) -> str:
    """Return a file's text.

    Raises:
        DataError: it is no UTF-8.
    """
    with _open(path) as file:
        content = file.read().removeprefix(BOM)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line} {_not_utf8(content, error)}") from None


def _read_objects(path: Path) -> Iterator[Row]:
    """Read JSON objects of several lines each, one after another.

    Raises:
        DataError: one is malformed, after which nothing can be found.
    """
    text = _whole_text(path)
    at, line, counted = _skip(text, 0), 1, 0
    while at < len(text):
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise DataError(_no_value(path, text, line, error)) from None
        yield from _rows(f"{path}, line {line}", value)
        at = _skip(text, end)


def _read_array(path: Path) -> Iterator[Row]:
    """Read a JSON array element by element, so that each has a line.

    Raises:
        DataError: the array's text breaks off or is malformed, after which nothing can be found.
    """
    text = _whole_text(path)
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
            raise DataError(_no_value(path, text, line, error)) from None
        yield _object(f"{path}, line {line}", value)
        at = _skip(text, at + 1) if text[at] == "," else at
    if _skip(text, at + 1) < len(text):
        line += text.count("\n", counted, _skip(text, at + 1))
        raise DataError(
            f"{path}, line {line} follows the end of a JSON array: write one array, or one "
            "object a line"
        )


def _no_value(path: Path, text: str, line: int, error: Exception) -> str:
    """Return a sentence about a value that begins at a line and is malformed at a later place."""
    reason = str(error)
    if isinstance(error, json.JSONDecodeError):
        line, reason = error.lineno, f"{error.msg} at column {error.colno}"
    return f"{path}, line {line} is not a JSON value ({reason}): correct it"


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\t", "\r", "\n"):
        at += 1
    return at


def _read_csv(path: Path) -> Iterator[Row]:
    """Read rows under a header, separated by what separates it; every value is a text.

    Raises:
        DataError: the header names a column twice, or a quote swallows the rest of the file.
    """
    csv.field_size_limit(sys.maxsize)  # the default refuses a sample of 100,000 tokens
    head = next((line for _, line in _lines(path)), b"")
    delimiter = max(b",", b";", b"\t", key=head.count).decode()
    with _open(path) as file:
        texts = (
            (line.removeprefix(BOM) if number == 0 else line).decode("utf-8", "surrogateescape")
            for number, line in enumerate(file)
        )
        reader = csv.reader(texts, strict=True, delimiter=delimiter)
        header: list[str] | None = None
        while True:
            first = reader.line_num + 1
            place = f"{path}, line {first}"
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if reader.line_num > first:
                    raise DataError(
                        f"{place} opens a quote that swallows the {reader.line_num - first} lines "
                        f"after it ({error}): double the quotes within a field"
                    ) from None
                yield Row(place, None, f"is not a CSV row ({error})")
                continue
            if header is None:
                header = [field.encode("utf-8", "replace").decode() for field in fields]
                twice = [name for name in header if name and header.count(name) > 1]
                if twice:
                    raise DataError(
                        f"{place} names the column {listed(twice[:1])} twice: rename one"
                    )
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


def _without_nulls(value: Any) -> Any:
    """Leave out, within a value, the keys that hold nothing: a table gives to every object of a
    column the keys of all.
    """
    if isinstance(value, dict):
        return {key: _without_nulls(held) for key, held in value.items() if held is not None}
    return [_without_nulls(held) for held in value] if isinstance(value, list) else value


def _read_parquet(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]

    number = 0
    try:
        for block in parquet.ParquetFile(path).iter_batches(batch_size=BLOCK):
            for value in block.to_pylist():
                number += 1
                yield Row(f"{path}, row {number}", {k: _without_nulls(v) for k, v in value.items()})
    except ArrowException as error:
        raise DataError(f"{path} is not a Parquet file ({_line(error)}): write it again") from None
    except (ValueError, OverflowError) as error:  # text that is no UTF-8, dates beyond any calendar
        raise DataError(
            f"{path} has a value after row {number} that cannot be read ({_line(error)}): write it "
            "again"
        ) from None
