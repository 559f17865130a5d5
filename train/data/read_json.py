"""Rows of JSON files: an object a line, objects of several lines, an array, or rows that one object
wraps; and of text files, whose lines are rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from train.data.column_names import is_known
from train.data.rows import (
    BOM,
    Block,
    Row,
    in_blocks,
    line_blocks,
    not_utf8,
    numbered_lines,
    open_file,
)
from train.data.turns import ROLE_KEYS
from train.errors import DataError
from train.text import listed


def read_json(path: Path) -> Iterator[Block]:
    """Yield the rows of a JSON file in whichever of these forms it is written.

    Raises:
        DataError: a text that spans lines is malformed, after which nothing can be found.
    """
    if _starts_with_bracket(path):
        yield from in_blocks(_read_array(path))
    elif _spans_lines(path) or _is_one_object(path):
        yield from in_blocks(_read_objects(path))
    else:
        yield from line_blocks(path)


def rows_of(block: Block) -> Iterator[Row]:
    """Yield a block's rows; those that lines hold are read here.

    Raises:
        DataError: a line is an object that wraps several lists of rows.
    """
    yield from block.rows
    plain = block.path.lower().removesuffix(".gz").endswith(".txt")
    for number, line in enumerate(block.lines, block.first):
        text = (line.removeprefix(BOM) if number == 1 else line).rstrip(b"\r\n")
        place = f"{block.path}, line {number}"
        if text.strip():
            yield from _read_text(place, text) if plain else _read_line(place, text)


def _read_text(place: str, line: bytes) -> Iterator[Row]:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        yield Row(place, None, not_utf8(line, error))
        return
    if text.startswith('{"') and text.rstrip().endswith("}"):
        with suppress(ValueError, RecursionError):
            if is_known(json.loads(text)):
                raise DataError(f"{place} is a row of JSON, not a text: name the file .jsonl")
    yield Row(place, {"text": text})


def _read_line(place: str, line: bytes) -> Iterator[Row]:
    try:
        value = _DECODER.decode(line.decode())
    except UnicodeDecodeError as error:
        yield Row(place, None, not_utf8(line, error))
    except (ValueError, RecursionError) as error:
        yield Row(place, None, f"is not a JSON object ({_reason(error)})")
    else:
        yield from _rows(place, value, alone=False)


def _object(place: str, value: Any) -> Row:
    if isinstance(value, dict):
        return Row(place, value)
    return Row(place, None, f"is not a JSON object, but {_clip(json.dumps(value))} instead")


def _rows(place: str, value: Any, *, alone: bool) -> Iterator[Row]:
    """Yield the row that a JSON value is, or the rows that it wraps: `{"row": {…}}`, and where it
    stands alone in its file `{"data": [{…}, {…}]}`. Of several in a file each list is one row's.

    Raises:
        DataError: it wraps several rows or lists of rows, or holds columns.
    """
    if alone and isinstance(value, dict) and _is_table(value):
        raise DataError(
            f"{place} holds columns, not rows: write one array of rows, as pandas does by "
            "to_json(…, orient='records')"
        )
    keys = [key for key, held in value.items() if _wraps(held)] if isinstance(value, dict) else []
    if not keys or is_known(value) or not (alone or isinstance(value[keys[0]], dict)):
        yield _object(place, value)
        return
    if len(keys) > 1 and all(isinstance(value[key], dict) for key in keys):
        raise DataError(
            f"{place} is one object that holds a row under each of the keys {listed(keys)}: write "
            "one array of them, or a row a line"
        )
    if len(keys) > 1:
        raise DataError(
            f"{place} is one object that holds the lists of rows {listed(keys)}: write each to "
            "a file of its own, as train.jsonl and validation.jsonl in one folder"
        )
    beside = tuple(key for key in value if key != keys[0])
    inner = value[keys[0]]
    for number, held in enumerate(inner if isinstance(inner, list) else [inner], 1):
        for row in _rows(f"{place}, row {number} of '{listed(keys)}'", held, alone=alone):
            yield replace(row, beside=(*beside, *row.beside))


def _wraps(value: Any) -> bool:
    """Whether a value is a row or a list of rows, and not of a conversation's turns."""
    if isinstance(value, dict):
        return is_known(value) or any(_wraps(held) for held in value.values())
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(row, dict) and not any(key in row for key in ROLE_KEYS) for row in value)


def _is_table(value: dict[str, Any]) -> bool:
    """Whether an object holds columns: `{"text": {"0": …}}` or `{"text": ["…", "…"]}`."""
    return any(value.values()) and all(
        [*held] == [str(number) for number in range(len(held))]
        if isinstance(held, dict)
        else isinstance(held, list) and all(isinstance(one, str) for one in held)
        for held in value.values()
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of a JSON object's pairs.

    Raises:
        ValueError: a key stands twice, of which json would take the last in silence.
    """
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {listed([twice])} stands twice")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


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
    with open_file(path) as file:
        return file.read(4096).removeprefix(BOM).lstrip().startswith(b"[")


def _spans_lines(path: Path) -> bool:
    """Whether the first line is the beginning of an object, and not the whole of it."""
    line = next((line for _, line in numbered_lines(path) if line.strip()), b"")
    first = line.decode(errors="replace").strip()
    try:
        json.loads(first)
    except (ValueError, RecursionError) as error:
        return first.startswith("{") and getattr(error, "pos", 0) >= len(first)
    return False


def _is_one_object(path: Path) -> bool:
    """Whether the file's only line is an object."""
    lines = (line for _, line in numbered_lines(path) if line.strip())
    first = next(lines, b"")
    try:
        return next(lines, None) is None and isinstance(_DECODER.decode(first.decode()), dict)
    except (ValueError, RecursionError):
        return False


def _whole_text(path: Path) -> str:
    """Return a file's text.

    Raises:
        DataError: it is no UTF-8.
    """
    with open_file(path) as file:
        content = file.read().removeprefix(BOM)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line} {not_utf8(content, error)}") from None


def _read_objects(path: Path) -> Iterator[Row]:
    """Read JSON objects of several lines each, one after another.

    Raises:
        DataError: one is malformed, after which nothing can be found.
    """
    text = _whole_text(path)
    start = at = _skip(text, 0)
    line, counted = 1, 0
    while at < len(text):
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = json.JSONDecoder(object_pairs_hook=_once).raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise DataError(_no_value(path, text, line, error)) from None
        share, at = end / len(text), _skip(text, end)
        found = _rows(f"{path}, line {line}", value, alone=counted == start and at == len(text))
        yield from (replace(row, share=share) for row in found)


def _read_array(path: Path) -> Iterator[Row]:
    """Read a JSON array element by element, so that each has a line.

    Raises:
        DataError: the array's text breaks off or is malformed, after which nothing can be found.
    """
    text = _whole_text(path)
    decoder = json.JSONDecoder(object_pairs_hook=_once)
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
        yield replace(_object(f"{path}, line {line}", value), share=end / len(text))
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
