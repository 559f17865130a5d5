"""Blocks of rows made into samples, in as many processes as there are cores."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

from train.config import DataConfig
from train.data.parts import Parts
from train.data.read_json import rows_of
from train.data.row_format import RowFormat
from train.data.rows import Block
from train.data.tokenize_rows import Tally, tokenize
from train.data.tokenizer import Tokenizer
from train.data.workers import cores, shared_out


@dataclass(frozen=True)
class Progress:
    """How far a dataset is made: `share` of what is named, from 0 to 1, and its tokens so far."""

    what: str
    share: float
    tokens: int


@dataclass(frozen=True)
class Recipe:
    """How blocks are made, and where they are kept."""

    config: DataConfig
    tokenizer: Tokenizer
    parts: Parts


@dataclass(frozen=True)
class Task:
    """A block, its number, and the form of the first row; `kept`: what an earlier start made."""

    number: int
    block: Block
    form: RowFormat | None
    kept: dict[str, Any] | None


def make_blocks(
    blocks: Iterable[Block], first: int, what: str, recipe: Recipe, tally: Tally
) -> Generator[Progress, None, int]:
    """Make blocks, numbered from `first` on, and count in `tally`, both in their order.

    Returns:
        The number after the last.

    Raises:
        DataError: of the first row that is malformed.
    """
    shares: deque[float] = deque()
    number, tokens = first, 0
    for told in _results(_tasks(blocks, first, shares, recipe.parts, tally), recipe, tally):
        tally.add(told)
        tokens += told["tokens"]
        number += 1
        yield Progress(what, shares.popleft(), tokens)
    return number


def _tasks(
    blocks: Iterable[Block], first: int, shares: deque[float], parts: Parts, tally: Tally
) -> Iterator[Task]:
    for number, block in enumerate(blocks, first):
        shares.append(block.share)
        kept = parts.told(number)
        if kept is not None:
            block = replace(block, rows=(), lines=())
        yield Task(number, block, tally.form, kept)


def _results(tasks: Iterator[Task], recipe: Recipe, tally: Tally) -> Iterator[dict[str, Any]]:
    """Make blocks here until one has decided how rows are read; the others wherever there is room.

    A dataset of one block needs no other process.
    """
    work = partial(_make, recipe)
    for task in tasks:
        yield work(task)
        if tally.form is not None:
            break
    ahead = next(tasks, None)
    if ahead is None:
        return
    rest, processes = chain([ahead], tasks), cores()
    yield from map(work, rest) if processes == 1 else shared_out(work, rest, processes)


def _make(recipe: Recipe, task: Task) -> dict[str, Any]:
    """Write a block's samples; return what became of its rows."""
    if task.kept is not None:
        return task.kept
    tally = Tally()
    tally.form = task.form
    part = tokenize(rows_of(task.block), recipe.config, recipe.tokenizer, tally)
    told = {**tally.told(), "tokens": len(part.mask)}
    recipe.parts.write(task.number, part, told)
    return told
