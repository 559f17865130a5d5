"""How a sample begins and ends: each first and last token once, and a turn that ends in one.

A text that brings its own first or last token gets no second one. A conversation whose template
ends the last turn in plain text gets the end-of-sequence token there, or a model trained on it
would never stop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from train.data.render import Rendered
from train.data.tokenizer import Segments, Tokenizer

# What is counted, and the sentence that tells of it; {first} and {last} are the tokens.
TOLD = {
    "brought": "{count} texts bring their own {first} or {last}, which is not written twice",
    "inside": "{count} texts hold {first} or {last} in their middle",
    "doubled": "{count} conversations hold a first token, a last token or a turn's end twice in "
    "a row: their messages bring what the chat template writes",
    "closed": "the chat template ends the last turn of {count} conversations in plain text, so the "
    "end-of-sequence token {last} is added there",
    "unclosed": "in {count} conversations no token that could stop the model ends the last turn "
    "with loss: it may not learn to stop",
}


def settle(
    rendered: Rendered, edges: tuple[str, str], tokenizer: Tokenizer, counts: Counter[str]
) -> Rendered:
    """Return a sample's text without the tokens that are written around it, or closed.

    Counts in `counts`, under the keys of TOLD, what was found. `edges` are the `edge_tokens`.
    """
    first, last = edges
    if rendered.complete:
        return _closed(rendered, edges, tokenizer, counts)
    runs = []
    found = {"brought": False, "inside": False}
    for number, run in enumerate(rendered.runs):
        run, brought = _stripped(run, first if not number else "", last)
        text = "".join(piece for piece, _ in run)
        found["brought"] |= brought
        found["inside"] |= any(token and token in text for token in (first, last))
        runs.append(run)
    counts.update(name for name, value in found.items() if value)
    if not found["brought"]:
        return rendered
    return replace(rendered, runs=tuple(runs))


def edge_tokens(tokenizer: Tokenizer) -> tuple[str, str]:
    """Return how the tokens that open and close a sample are spelt; empty where there are none."""
    info = tokenizer.info
    return tokenizer.spelling(info.opening), tokenizer.spelling(info.closing)


def sentences(counts: Mapping[str, int], tokenizer: Tokenizer) -> tuple[str, ...]:
    """Say what `settle` has counted."""
    first, last = (f"'{token}'" if token else "none" for token in edge_tokens(tokenizer))
    return tuple(
        text.format(count=counts[name], first=first, last=last)
        for name, text in TOLD.items()
        if counts.get(name)
    )


def _stripped(run: Segments, first: str, last: str) -> tuple[Segments, bool]:
    """Cut the tokens off that a run's text brings, with blanks outside of them."""
    pieces = list(run)
    brought = False
    text, loss = pieces[0]
    if first and text.lstrip().startswith(first):
        pieces[0], brought = (text.lstrip()[len(first) :], loss), True
    text, loss = pieces[-1]
    if last and text.rstrip().endswith(last):
        pieces[-1], brought = (text.rstrip()[: -len(last)], loss), True
    return tuple(pieces), brought


def _closed(
    rendered: Rendered, edges: tuple[str, str], tokenizer: Tokenizer, counts: Counter[str]
) -> Rendered:
    """Close a conversation whose last turn with loss ends in no token that could stop a model."""
    run = rendered.runs[-1]
    text = "".join(piece for piece, _ in run)
    first, last = edges
    ends = {tokenizer.ends_turn(piece) or last for piece, loss in run if loss}
    counts["doubled"] += any(token and token * 2 in text for token in {first, last, *ends})
    carried = [number for number, (text, loss) in enumerate(run) if loss and text.strip()]
    if not carried or tokenizer.ends_turn(run[carried[-1]][0]) is not None:
        return rendered
    rest = "".join(text for text, _ in run[carried[-1] + 1 :])
    if rest.strip() or not last:
        counts["unclosed"] += 1
        return rendered
    counts["closed"] += 1
    closed = (*run[: carried[-1] + 1], (last, True))
    return replace(rendered, runs=(*rendered.runs[:-1], closed))
