"""Numbers and tables in words: what every room prints in the same way. Bytes inside, units here."""

from __future__ import annotations

import os
import re
import shutil
import textwrap
from collections.abc import Collection, Sequence
from itertools import islice
from typing import TextIO

GIB = 2**30
COLOUR = re.compile(r"\x1b\[\d*m")
MARK = re.compile(r"(\[(info|error|launch)\])?\s*")  # what a line's other lines stand behind


def format_bytes(size: float) -> str:
    """Write bytes in decimal units: `2.4 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def format_count(number: float) -> str:
    """Write a large number in short: `1.9 M`."""
    for unit in ("", " k", " M"):
        if number < 1000:
            return f"{number:.0f}" if not unit else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.1f} G"


def duration(seconds: float) -> str:
    """Write seconds as hours, minutes and seconds: `1:02:03`, `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def fitted(text: str, width: int | None, indent: str = "") -> str:
    """Return a text with lines that are longer than a terminal's `width` broken between words."""
    if width is None:
        return text
    return "\n".join(
        textwrap.fill(line, width, initial_indent=indent, subsequent_indent=indent,
                      break_long_words=False, break_on_hyphens=False)
        for line in text.splitlines()
    )  # fmt: skip


def shown(text: str, stream: TextIO) -> str:
    """Return a text as `stream` is to show it: a terminal's lines are broken between words, with
    what goes on below its beginning; elsewhere nothing is changed.
    """
    try:
        width = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return text
    return "\n".join(_hung(line, width) for line in text.split("\n")) if width > 20 else text


def _hung(line: str, width: int) -> str:
    if len(COLOUR.sub("", line)) <= width:
        return line
    found = MARK.match(line)
    indent = " " * (len(found[0]) if found else 0) + " " * 4 * (not line.startswith("["))
    return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False,
                         break_on_hyphens=False)  # fmt: skip


def printable(text: str, most: int | None = None) -> str:
    """Return a text as a terminal and UTF-8 can hold it: what cannot be printed spelt in escapes,
    and of one longer than `most` characters the beginning.
    """
    text = text if most is None or len(text) <= most else f"{text[: most - 3]}..."
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def terminal_width() -> int | None:
    """Return the columns of the terminal, or of COLUMNS; None where output goes elsewhere."""
    return shutil.get_terminal_size((0, 0)).columns or None


def terminal_height() -> int | None:
    """Return the lines of the terminal, or of LINES; None where output goes elsewhere."""
    return shutil.get_terminal_size((0, 0)).lines or None


def laid_out(
    rows: Sequence[Sequence[str]], left: Sequence[bool], width: int | None, gap: str = "  "
) -> list[str]:
    """Return rows aligned as `align` does, the heads first, in a form that fits a terminal.

    Where it is too narrow columns stand closer, and then the last one goes below each row that has
    something in it.
    """
    for each in (gap, " "):
        lines = align(rows, left, each)
        if width is None or max(map(len, lines), default=0) <= width:
            return lines
    whole = len(left)
    lines = align([row[:-1] if len(row) == whole else row for row in rows], left[:-1], " ")
    found = lines[:1]
    for line, row in zip(lines[1:], rows[1:], strict=True):
        found.append(line)
        if len(row) == whole and row[-1] != "-":
            found += fitted(f"{rows[0][-1]}: {row[-1]}", width, "  ").splitlines()
    return found


def align(rows: Sequence[Sequence[str]], left: Sequence[bool], gap: str = "  ") -> list[str]:
    """Return rows as lines of aligned columns.

    Args:
        rows: of cells; a row may be shorter than the others, and its last cell does not then
            widen the column.
        left: for each column, whether its cells are set to the left.
        gap: what stands between two columns.
    """
    count = len(left)
    widths = [
        max((len(row[i]) for row in rows if len(row) == count or i + 1 < len(row)), default=0)
        for i in range(count)
    ]
    return [
        gap.join(
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(row, widths, left, strict=False)
        ).rstrip()
        for row in rows
    ]


def listed(names: Collection[object]) -> str:
    """Return names with commas between them, blank ones quoted: of many the first 20; or `none`."""
    shown = [printable(str(name), 40) for name in islice(names, 20)]
    more = [f"and {len(names) - 20} more"] if len(names) > 20 else []
    return ", ".join([name if name.strip() else f"'{name}'" for name in shown] + more) or "none"
