"""From rows to samples: rendered, tokenized in batches, masked, cut and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from train.config import DataConfig
from train.data.edges import settle
from train.data.read import Row
from train.data.store import Sample
from train.data.template import Rendered, RowFormat, Segments, choose_format, refuse_richer, render
from train.data.tokenizer import Encoded, Tokenizer, TokenizerInfo
from train.errors import DataError

ROWS = 1000  # rows that are tokenized at a time, shared out to threads by the tokenizer's library


class Tally:
    """What became of the rows; `kind` is decided by the first that can be read."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.kind: RowFormat | None = None
        self.first_problem = ""


def tokenize(
    rows: Iterable[Row], config: DataConfig, tokenizer: Tokenizer, tally: Tally
) -> Iterator[Sample]:
    """Yield the samples that carry loss, counting in `tally` what is read, cut and left out.

    Raises:
        DataError: a row is malformed and `--skip-bad-rows` was not given.
    """
    rendered = _render_rows(rows, config, tokenizer, tally)
    while block := tuple(islice(rendered, ROWS)):
        texts = ["".join(text for text, _ in run) for item in block for run in item.runs]
        encoded = iter(tokenizer.encode_batch(texts))
        for item in block:
            parts = [(run, next(encoded)) for run in item.runs]
            tokens, mask = _assemble(parts, item.complete, tokenizer.info)
            tally.counts["truncated"] += len(tokens) > config.block_size
            tokens, mask = tokens[: config.block_size], mask[: config.block_size]
            if mask.any():
                tally.counts["samples"] += 1
                yield tokens, mask
            else:
                tally.counts["without loss"] += 1


def _render_rows(
    rows: Iterable[Row], config: DataConfig, tokenizer: Tokenizer, tally: Tally
) -> Iterator[Rendered]:
    for row in rows:
        tally.counts["rows"] += 1
        problem = row.problem
        if row.value is not None:
            columns = _columns(row.value)
            try:
                tally.kind = tally.kind or choose_format(columns, config.loss_on, row.place)
                refuse_richer(tally.kind, columns)
                rendered = render(tally.kind, row.value, config.loss_on, tokenizer)
                yield settle(rendered, tokenizer, tally.counts)
                continue
            except ValueError as error:
                problem = f": {error}"
            except DataError as error:
                if not config.skip_bad_rows:
                    raise
                tally.first_problem = tally.first_problem or str(error)
        message = f"{row.place}{problem if problem.startswith(':') else ' ' + problem}"
        if not config.skip_bad_rows:
            raise DataError(f"{message}; correct it, or leave such rows out with --skip-bad-rows")
        tally.counts["skipped"] += 1
        tally.first_problem = tally.first_problem or message


def _columns(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(name) for name in row)


def _assemble(
    parts: Sequence[tuple[Segments, Encoded]], complete: bool, info: TokenizerInfo
) -> Sample:
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
