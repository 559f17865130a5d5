"""A sample as a person reads it: decoded, the part that carries loss marked, in a few lines."""

from __future__ import annotations

from collections.abc import Sequence

from train.data.store import Shown
from train.data.tokenizer import Segment
from train.text import printable

LINES = 19  # of a sample at most, with those that stand for what is left out
HEAD, TAIL = 60, 25  # characters of a piece of a line; a longer one is cut in its middle
Line = list[Segment]


def preview(sample: Sequence[Segment], *, colour: bool) -> list[str]:
    """Return the lines of a sample, the text with loss in green (`colour`) or between « and ».

    Of a long sample the beginning, the end, and what stands where the loss begins.
    """
    lines: list[Line] = [[]]
    for text, loss in sample:
        first, *more = text.split("\n")
        lines[-1].append((first, loss))
        lines += [[(part, loss)] for part in more]
    lines = [[piece for piece in line if piece[0]] for line in lines]
    lines = [line for line in lines if line]
    shown, last = [], -1
    for number in _chosen(lines):
        if number > last + 1:
            shown.append(f"… {number - last - 1} lines …")
        shown.append(
            "".join(_piece(text, loss=loss, colour=colour) for text, loss in lines[number])
        )
        last = number
    return shown


def sample_lines(samples: Sequence[Shown], *, colour: bool) -> list[str]:
    """Return the lines that show samples, each under its title."""
    marked = "in green" if colour else "between « and »"
    lines = []
    for number, sample in enumerate(samples):
        said = f" to train on, what carries loss {marked}" if number == 0 else ""
        lines.append(f"{sample.title}{said}:")
        lines += [f"    {line}" for line in preview(sample.pieces, colour=colour)]
    return lines


def _chosen(lines: Sequence[Line]) -> list[int]:
    """Return the numbers of the lines that are shown."""
    if len(lines) <= LINES:
        return list(range(len(lines)))
    start = next((k for k, line in enumerate(lines) if any(loss for _, loss in line)), 0)
    end = len(lines)
    kept = {*range(5), *range(max(0, start - 2), min(end, start + 5)), *range(end - 5, end)}
    return sorted(kept)


def _piece(text: str, *, loss: bool, colour: bool) -> str:
    """Write a piece: without what could steer a terminal, and a long one without its middle."""
    text = printable(text)
    if len(text) > HEAD + TAIL + 3:
        text = f"{text[:HEAD]} … {text[-TAIL:]}"
    if not loss:
        return text
    return f"\x1b[32m{text}\x1b[0m" if colour else f"«{text}»"
