"""Rows of files, folders and hub datasets, each with the place where it stands.

A row that cannot be read is yielded with its problem instead of being raised, so that the caller
decides whether it ends the run or is counted.
"""

from __future__ import annotations

import csv
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from train.data.read_json import read_json
from train.data.rows import (
    BOM,
    Block,
    Row,
    first_line,
    in_blocks,
    line_blocks,
    numbered_lines,
    open_file,
    unpacked_from,
)
from train.errors import DataError
from train.text import listed

BLOCK = 1000  # rows that are taken from a columnar file at a time
POINTER = b"version https://git-lfs"


def read_files(files: Sequence[Path]) -> Iterator[Block]:
    """Yield the rows of data files in order, in blocks.

    Raises:
        DataError: a file cannot be read at all.
    """
    sizes = [path.stat().st_size for path in files]
    for number, path in enumerate(files):
        before, own, whole = sum(sizes[:number]), sizes[number], max(1, sum(sizes))
        require_whole(path)
        try:
            for block in _read_file(path):
                yield replace(block, share=(before + block.share * own) / whole)
        except (OSError, EOFError, zlib.error) as error:  # gzip raises all three
            raise DataError(
                f"{path} cannot be read ({first_line(error)}): give a file that can be"
            ) from None


def require_whole(path: Path) -> None:
    """Refuse a file of which Git has fetched the name only.

    Raises:
        DataError: it is a pointer to a large file.
    """
    with suppress(OSError), path.open("rb") as file:  # what else is wrong is said where it is read
        if file.read(len(POINTER)) == POINTER:
            raise DataError(f"{path} is a Git LFS pointer, not the file: run 'git lfs pull' there")


def read_table(table: Any, place: str) -> Iterator[Block]:
    """Yield the rows of a `datasets.Dataset`, in blocks."""
    yield from in_blocks(_table_rows(table, place))


def _table_rows(table: Any, place: str) -> Iterator[Row]:
    number = 0
    for block in table.iter(batch_size=BLOCK):
        for values in zip(*block.values(), strict=True):
            number += 1
            row = dict(zip(block, map(_without_nulls, values), strict=True))
            yield Row(f"{place}, row {number}", row, share=number / len(table))


def file_format(path: Path) -> str:
    """Return the suffix that says how a file is read, `.gz` aside, in lower case."""
    return (Path(path.stem) if path.suffix.lower() == ".gz" else path).suffix.lower()


def _read_file(path: Path) -> Iterator[Block]:
    form = file_format(path)
    if form == ".parquet":
        yield from in_blocks(_read_parquet(path))
    elif form in (".csv", ".tsv"):
        yield from in_blocks(_read_csv(path))
    elif form == ".txt":
        yield from line_blocks(path)
    else:
        yield from read_json(path)


def _read_csv(path: Path) -> Iterator[Row]:
    """Read rows under a header, separated by what separates it; every value is a text.

    Raises:
        DataError: the header names a column twice, or a quote swallows the rest of the file.
    """
    csv.field_size_limit(sys.maxsize)  # the default refuses a sample of 100,000 tokens
    head = next((line for _, line in numbered_lines(path)), b"")
    delimiter = max(b",", b";", b"\t", key=head.count).decode()
    with open_file(path) as file:
        raw, size = unpacked_from(file), path.stat().st_size
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
                header = fields
                if _csv_row(place, header, fields).value is None:
                    raise DataError(f"{place} is not valid UTF-8: save the file as UTF-8")
                twice = [name for name in header if name and header.count(name) > 1]
                if twice:
                    raise DataError(
                        f"{place} names the column {listed(twice[:1])} twice: rename one"
                    )
            elif fields:
                yield replace(_csv_row(place, header, fields), share=raw.tell() / size)


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
        file = parquet.ParquetFile(path)
        for block in file.iter_batches(batch_size=BLOCK):
            for value in block.to_pylist():
                number += 1
                row = {k: _without_nulls(v) for k, v in value.items()}
                yield Row(f"{path}, row {number}", row, share=number / file.metadata.num_rows)
    except ArrowException as error:
        raise DataError(
            f"{path} is not a Parquet file ({first_line(error)}): write it again"
        ) from None
    except (ValueError, OverflowError) as error:  # text that is no UTF-8, dates beyond any calendar
        reason = f"a value after row {number} that cannot be read ({first_line(error)})"
        raise DataError(f"{path} has {reason}: write it again") from None
