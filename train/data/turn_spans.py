"""Which part of a rendered conversation each turn is, where its template does not mark it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise, takewhile
from typing import Any

from train.data.tokenizer import Segment

Render = Callable[..., str]
MARK = "anyrank\N{DIVISION SIGN}turn"  # nothing that a conversation holds or a template changes


def find_turns(
    messages: Sequence[Mapping[str, Any]], render: Render, carrying: Collection[int]
) -> tuple[Segment, ...]:
    """Find the turns that carry loss, endings included, in a rendered conversation.

    Raises:
        ValueError: a turn cannot be told apart from the rest.
    """
    text = render(messages)
    spans = []
    for number in sorted(carrying):
        after = text if number + 1 == len(messages) else render(messages[: number + 1])
        span = _by_beginnings(text, after, messages[:number], render)
        span = span or _by_mark(text, messages, number, render)
        span = span or _by_call(text, messages, number, render)
        if span is None:
            raise ValueError(
                f"the chat template rewrites message {number + 1}, so what the assistant says "
                "in it cannot be told apart: use a template with {% generation %} marks or "
                "--loss-on all"
            )
        spans.append(span)
    if any(early[1] > late[0] for early, late in pairwise(spans)):
        raise ValueError(
            "the chat template leaves out turns, so two that are alike cannot be told apart: use "
            "another template"
        )
    return segments_of(text, spans)


def _by_beginnings(
    text: str, after: str, before: Sequence[Mapping[str, Any]], render: Render
) -> tuple[int, int] | None:
    """Compare the conversation rendered through the turn with that up to it: the difference is the
    turn.
    """
    if not before or not text.startswith(after):
        return None
    up_to = render(before, True)
    return (len(up_to), len(after)) if after.startswith(up_to) else None


def _by_mark(
    text: str, messages: Sequence[Mapping[str, Any]], number: int, render: Render
) -> tuple[int, int] | None:
    """Put a mark in the place of what is said: what stands around it is not the turn's.

    For templates that write earlier turns otherwise than the last (without their reasoning, or
    the system's text moved to the last question), so that no beginning is a prefix of the whole.
    """
    marked = [dict(message) for message in messages]
    marked[number]["content"] = MARK
    around = render(marked).split(MARK)
    ending = render(marked[: number + 1]).rpartition(MARK)[2]
    if len(around) != 2 or len(around[0]) + len(around[1]) > len(text):
        return None
    if not (text.startswith(around[0]) and text.endswith(around[1])):
        return None
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(ending, around[1], strict=False))
    return len(around[0]), len(text) - len(around[1]) + len(list(alike))


def _by_call(
    text: str, messages: Sequence[Mapping[str, Any]], number: int, render: Render
) -> tuple[int, int] | None:
    """Find a call without a text: where a turn begins there, and ends as after a text.

    For templates that write the last turn otherwise than earlier ones, and a call otherwise where
    no text stands before it.
    """
    if messages[number].get("content") or not number:
        return None
    marked = [*messages[:number], {**messages[number], "content": MARK}]
    before, said = render(messages[:number], True), render(marked).rpartition(MARK)[2].strip()
    start = text.find(said, len(before))
    if not text.startswith(before) or not said or text[len(before) : start].strip():
        return None
    end = start + len(said)
    return len(before), end + len(text[end:]) - len(text[end:].lstrip("\n"))


def asks_always(render: Render) -> bool:
    """Whether a template asks for another answer behind a conversation that has ended."""
    turns = [{"role": role, "content": MARK} for role in ("user", "assistant") * 2]
    try:
        pieces = [piece.strip() for piece in render(turns).split(MARK)]
    except Exception:  # jinja2 raises what the template tells it to
        return False
    return len(pieces) == 5 and pieces[1] == pieces[3] == pieces[4] != pieces[2]


def segments_of(text: str, spans: Sequence[tuple[int, int]]) -> tuple[Segment, ...]:
    """Return a text in pieces, of which those at the spans carry loss."""
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    pieces = [text[start:end] for start, end in pairwise(edges)]
    return tuple((piece, bool(k % 2)) for k, piece in enumerate(pieces) if piece)
