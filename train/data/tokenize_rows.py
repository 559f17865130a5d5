"""From rows to samples: rendered, tokenized in batches, masked, cut and counted."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.config import DataConfig
from train.data.columns import (
    RowFormat,
    choose_format,
    require_columns,
    require_unjudged,
    require_weight,
    richer,
)
from train.data.edges import settle
from train.data.rows import Row
from train.data.store import StoredSample
from train.data.template import Rendered, Segments, render
from train.data.tokenizer import Encoded, Tokenizer, TokenizerInfo
from train.errors import DataError
from train.text import printable

ROWS = 1000  # rows that are tokenized at a time, shared out to threads by the tokenizer's library


class Tally:
    """What became of the rows; `form` is decided by the first that can be read.

    `how` the first was rendered, in words; `unused` columns are in the order in which they were
    met; `first` is the place of the first row of those that `counts` counts.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.form: RowFormat | None = None
        self.forms: dict[tuple[str, ...], RowFormat] = {}
        self.unused: dict[str, None] = {}
        self.first: dict[str, str] = {}
        self.first_problem = ""
        self.how = ""

    def count(self, what: str, place: str, times: int = 1) -> None:
        """Count something about a row."""
        if times:
            self.counts[what] += times
            self.first.setdefault(what, place)


def tokenize(
    rows: Iterable[Row], config: DataConfig, tokenizer: Tokenizer, tally: Tally
) -> Iterator[StoredSample]:
    """Yield the samples that carry loss, counting in `tally` what is read, cut and left out.

    Raises:
        DataError: a row is malformed and `--skip-bad-rows` was not given.
    """
    rendered = _render_rows(rows, config, tokenizer, tally)
    while block := tuple(islice(rendered, ROWS)):
        texts = ["".join(text for text, _ in run) for item, _ in block for run in item.runs]
        encoded = iter(tokenizer.encode_batch(texts))
        for item, drawn in block:
            parts = [(run, next(encoded)) for run in item.runs]
            tokens, mask = _assemble(parts, complete=item.complete, info=tokenizer.info)
            tally.counts["truncated"] += len(tokens) > config.block_size
            tokens, mask = tokens[: config.block_size], mask[: config.block_size]
            if mask.any():
                tally.counts["samples"] += 1
                yield tokens, mask, drawn
            else:
                tally.counts["without loss"] += 1


def _draw(said: str) -> int:
    """Return a number of 0..2**64-1 that only what a row says decides: rows alike draw alike,
    whatever template or length samples are made with.
    """
    return int.from_bytes(hashlib.blake2b(said.encode(), digest_size=8).digest(), "little")


def _render_rows(
    rows: Iterable[Row], config: DataConfig, tokenizer: Tokenizer, tally: Tally
) -> Iterator[tuple[Rendered, int]]:
    for row in rows:
        tally.counts["rows"] += 1
        problem = row.problem
        if row.value is not None:
            try:
                form = _form(row.value, row.place, config, tally)
                tally.unused |= dict.fromkeys(row.beside)
                rendered = render(form, row.value, config.loss_on, tokenizer)
                settled = settle(rendered, tokenizer, tally.counts)
            except ValueError as error:
                problem = f": {error}"
            except DataError as error:
                if not config.skip_bad_rows:
                    raise DataError(printable(str(error))) from None
                problem = str(error).removeprefix(row.place)
            else:
                tally.how = tally.how or rendered.how
                tally.unused |= dict.fromkeys(rendered.unread)
                for what in ("empty", "shortened", "glued", "quoted", "written"):
                    tally.count(what, row.place, getattr(rendered, what))
                yield settled, _draw(rendered.said)
                continue
        message = printable(f"{row.place}{'' if problem[:1] == ':' else ' '}{problem}")
        if not config.skip_bad_rows:
            raise DataError(f"{message}; correct it, or leave such rows out with --skip-bad-rows")
        tally.counts["skipped"] += 1
        tally.first_problem = tally.first_problem or message


def _form(row: Mapping[str, Any], place: str, config: DataConfig, tally: Tally) -> RowFormat:
    """Return how a row is read, by its set of columns; not otherwise than the rows before it.

    Raises:
        DataError: its columns are not known.
        ValueError: they are read otherwise.
    """
    names = tuple(map(str, row))
    form = tally.forms.get(names)
    if form is None or (form.kind == "prompt" and not form.given):  # what is beside it may be null
        if tally.form is not None:
            require_columns(tally.form, row)
        columns = dict(config.columns)
        if config.several and not any(column in row for column in columns.values()):
            columns = {}  # they are those of another dataset
        form = choose_format(row, columns, config.loss_on, place)
        tally.form = tally.form or form
        if problem := richer(tally.form, form):
            raise ValueError(problem)
        tally.forms[names] = form
        tally.unused |= dict.fromkeys(form.unused)
    require_weight(form, row)
    require_unjudged(form, row)
    return form


def _assemble(
    parts: Sequence[tuple[Segments, Encoded]], *, complete: bool, info: TokenizerInfo
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Join tokenized runs, each closed by the last token, into tokens and mask (T,)."""
    tokens = [] if complete else [np.array(info.opening)]
    mask = [np.zeros(len(part), np.bool_) for part in tokens]
    for run, (ids, characters) in parts:
        ends = np.cumsum([len(text) for text, _ in run])
        owners = np.minimum(np.searchsorted(ends, characters, side="right"), len(run) - 1)
        tokens.append(ids)
        mask.append(np.array([loss for _, loss in run])[owners])
        if not complete:
            tokens.append(np.array(info.closing))
            mask.append(np.full(len(info.closing), run[-1][1]))
    joined, carried = np.concatenate(tokens).astype(np.int32), np.concatenate(mask).astype(np.bool_)
    carried[:1] = False  # nothing predicts the first token
    return joined, carried
