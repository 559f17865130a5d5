"""From rows to samples: rendered, tokenized in batches, masked, cut and counted."""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import accumulate
from typing import Any

from train.config import DataConfig
from train.data.alpaca import WRITTEN
from train.data.columns import choose_format
from train.data.edges import edge_tokens, settle
from train.data.pairs import answer_rows
from train.data.render import JOINED, OWN, Rendered, render
from train.data.row_format import RowFormat, refuse_half, require_columns, richer
from train.data.rows import Row
from train.data.store import Part
from train.data.tokenizer import Encoded, Tokenizer, TokenizerInfo
from train.data.unheeded import require_heeded
from train.errors import DataError
from train.text import printable

MISSING = ("nan", "none", "null", "n/a", "<na>", "undefined")


class Tally:
    """What became of the rows; `form` is decided by the first that can be read.

    `unused` columns are in the order in which they were met; `first` is the place of the first row
    of those that `counts` counts.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.form: RowFormat | None = None
        self.forms: dict[tuple[str, ...], RowFormat] = {}
        self.unused: dict[str, None] = {}
        self.first: dict[str, str] = {}
        self.first_problem = ""

    @property
    def how(self) -> str:
        """How rows were rendered, in words: those that bring a template's marks are told apart."""
        joined = self.counts[JOINED] - self.counts["written"]
        ways = {OWN: self.counts[OWN], WRITTEN: self.counts[WRITTEN], JOINED: joined}
        found = {way: count for way, count in ways.items() if count > 0}
        if len(found) < 2:
            return next(iter(found), JOINED if self.counts[JOINED] else "")
        return " or ".join(f"{way} ({count} rows)" for way, count in found.items())

    def add(self, other: Mapping[str, Any]) -> None:
        """Add what became of later rows, as `told` has put it.

        A row's form is decided before others are read elsewhere.
        """
        if self.form is None and other["form"] is not None:
            self.form = RowFormat(**{**other["form"], "unused": tuple(other["form"]["unused"])})
        self.counts.update(other["counts"])
        self.unused |= dict.fromkeys(other["unused"])
        self.first = {**other["first"], **self.first}
        self.first_problem = self.first_problem or other["first_problem"]

    def told(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {
            "form": None if self.form is None else asdict(self.form),
            "counts": dict(self.counts),
            "unused": list(self.unused),
            "first": self.first,
            "first_problem": self.first_problem,
        }

    def count(self, what: str, place: str, times: int = 1) -> None:
        """Count something about a row."""
        if times:
            self.counts[what] += times
            self.first.setdefault(what, place)


def tokenize(rows: Iterable[Row], config: DataConfig, tokenizer: Tokenizer, tally: Tally) -> Part:
    """Return the samples that carry loss, counting in `tally` what is read, cut and left out.

    Raises:
        DataError: a row is malformed and `--skip-bad-rows` was not given.
    """
    paired = config.objective == "dpo"
    items = list((_render_pairs if paired else _render_rows)(rows, config, tokenizer, tally))
    runs = [run for item in items for run in item.runs]
    texts = ["".join(text for text, _ in run) for run in runs]
    cuts = [list(accumulate(len(text) for text, _ in run[:-1])) for run in runs]
    encoded = iter(tokenizer.encode_batch(texts, cuts))
    unknown = tokenizer.info.unknown
    tokens, mask = array("i"), bytearray()
    lengths, loss_tokens, drawn = array("i"), array("i"), array("Q")
    for item in items:
        ids, carried = _assemble(item, encoded, tokenizer.info)
        tally.counts["truncated"] += len(ids) > config.block_size
        ids, carried = ids[: config.block_size], carried[: config.block_size]
        carrying = carried.count(1)
        tally.counts["unknown"] += unknown is not None and unknown in ids
        tally.counts["without loss"] += not carrying
        if carrying or paired:  # pairs stay pairs
            tally.counts["samples"] += 1
            tokens += array("i", ids)
            mask += carried
            lengths.append(len(ids))
            loss_tokens.append(carrying)
            drawn.append(_draw(item.said))
    if sys.byteorder == "big":
        tokens.byteswap()
    return Part(tokens.tobytes(), bytes(mask), lengths, loss_tokens, drawn)


def _render_pairs(
    rows: Iterable[Row], config: DataConfig, tokenizer: Tokenizer, tally: Tally
) -> Iterator[Rendered]:
    """Yield both texts of each pair; one whose other text is a bad row is left out with it."""
    for row in rows:
        texts = list(_render_rows(answer_rows([row]), config, tokenizer, tally))
        if len(texts) == 2:
            tally.count("alike", row.place, int(texts[0].said == texts[1].said))
            yield from texts


def _draw(said: str) -> int:
    """Return a number of 0..2**64-1 that only what a row says decides: rows alike draw alike,
    whatever template or length samples are made with.
    """
    return int.from_bytes(hashlib.blake2b(said.encode(), digest_size=8).digest(), "little")


def _render_rows(
    rows: Iterable[Row], config: DataConfig, tokenizer: Tokenizer, tally: Tally
) -> Iterator[Rendered]:
    edges = edge_tokens(tokenizer)
    for row in rows:
        tally.counts["rows"] += 1
        problem = row.problem
        if row.value is not None:
            try:
                form = _form(row.value, row.place, config, tally)
                tally.unused |= dict.fromkeys(row.beside)
                rendered = render(form, row.value, config.loss_on, tokenizer)
                settled = settle(rendered, edges, tokenizer, tally.counts)
            except ValueError as error:
                problem = f": {error}"
            except DataError as error:
                if not config.skip_bad_rows:
                    raise DataError(printable(str(error))) from None
                problem = str(error).removeprefix(row.place)
            else:
                tally.counts[rendered.how] += 1
                tally.unused |= dict.fromkeys(rendered.unread)
                tally.count("missing", row.place, _is_missing(form, row.value))
                for what in ("empty", "shortened", "glued", "quoted", "written"):
                    tally.count(what, row.place, getattr(rendered, what))
                yield settled
                continue
        message = printable(f"{row.place}{'' if problem[:1] == ':' else ' '}{problem}")
        if not config.skip_bad_rows:
            raise DataError(f"{message}; correct it, or leave such rows out with --skip-bad-rows")
        tally.counts["skipped"] += 1
        tally.first_problem = tally.first_problem or message


def _is_missing(form: RowFormat, row: Mapping[str, Any]) -> bool:
    """Whether an answer is what programs write for a value that they lack."""
    answer = row.get(form.roles.get("completion", ""))
    return isinstance(answer, str) and answer.strip().lower() in MISSING


def _form(row: Mapping[str, Any], place: str, config: DataConfig, tally: Tally) -> RowFormat:
    """Return how a row is read, by its set of columns; not otherwise than the rows before it.

    Raises:
        DataError: its columns are not known.
        ValueError: they are read otherwise.
    """
    names = tuple(map(str, row))
    form = tally.forms.get(names)
    if form is None:
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
    require_heeded(form, row)
    refuse_half(row, form)  # what is beside it may be null here, or a number, and a text there
    return form


def _assemble(
    item: Rendered, encoded: Iterator[Encoded], info: TokenizerInfo
) -> tuple[list[int], bytearray]:
    """Join tokenized runs, each closed by the last token, into tokens and a mask of 0 and 1."""
    ids = [] if item.complete else list(info.opening)
    mask = bytearray(len(ids))
    for run in item.runs:
        own, counts = next(encoded)
        ids += own
        ends = [*counts, len(own)]
        for (_, loss), start, end in zip(run, [0, *counts], ends, strict=False):
            mask += (b"\1" if loss else b"\0") * (end - start)
        if not item.complete:
            ids += info.closing
            mask += (b"\1" if run[-1][1] else b"\0") * len(info.closing)
    mask[:1] = b"\0"[: len(mask)]  # nothing predicts the first token
    return ids, mask
