"""Pairs of answers, one chosen and one rejected: a row of two texts, and a split of such pairs.

A pair is stored as two samples, one behind the other. It is drawn, packed and counted as one: both
its texts stand in one micro-batch, since the loss is of their difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.data.batch import MicroBatch, collate
from train.data.columns import NAMES, plain_name
from train.data.mix import Dataset, JoinedSplit
from train.data.order import Mixture
from train.data.rows import Row
from train.data.store import Sample, StoredSplit
from train.data.turns import ends_in_answer, listed_turns
from train.data.unheeded import counts_for_less
from train.errors import DataError

BETA = 0.1  # of the DPO paper's experiments (arXiv 2305.18290), and everybody's default
ANSWERS = ("chosen", "rejected")
ASKED = (*NAMES["prompt"], *NAMES["messages"], "input")  # columns of the prompt
TOLD = (
    "--objective dpo: each pair's loss is of how much likelier the chosen answer has become than "
    f"the rejected one, against the model at the start (beta {BETA})"
)
# Columns that go with the prompt, by the names that they may have.
_KEPT = {
    name: role for role in ("system", "tools", "history", "input") for name in NAMES[role]
}  # fmt: skip


def answer_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield two rows for each: its prompt with the chosen, then with the rejected answer."""
    for row in rows:
        if row.value is None:
            yield row
            continue
        value = {_known(name): held for name, held in row.value.items()}
        try:
            asked, prompt, answers = _parts(value)
            kept = _beside(value, asked)
        except ValueError as error:
            yield Row(row.place, None, f": {error}")
            continue
        unused = [name for name in value if name not in (*_KEPT, *ANSWERS, asked)]
        for given in answers:
            value = {"prompt": prompt, "completion": given} | kept
            yield replace(row, value=value, beside=(*row.beside, *unused))


def _known(name: str) -> str:
    """Return a column's name, in small letters where it is one that pairs have."""
    word = plain_name(name)
    return word if word in (*ASKED, *ANSWERS, *_KEPT) else name


def _beside(row: Mapping[str, Any], asked: str) -> dict[str, Any]:
    """Return what goes with the prompt, by its role.

    Raises:
        ValueError: two columns have one role, or the row is to count for less than others.
    """
    kept: dict[str, Any] = {}
    for name, held in row.items():
        if counts_for_less(name, held):
            raise ValueError(f"'{name}' is {held}, but all pairs count alike: leave the row out")
        if name in _KEPT and name != asked and held:
            if _KEPT[name] in kept:
                raise ValueError(f"two columns could each be the {_KEPT[name]}: keep one")
            kept[_KEPT[name]] = held
    return kept


def _parts(row: Mapping[str, Any]) -> tuple[str, Any, tuple[Any, Any]]:
    """Return the prompt's column, the prompt, and both answers without it.

    Raises:
        ValueError: a column is missing, or holds no text.
    """
    missing = [name for name in ANSWERS if not row.get(name)]
    if missing:
        raise ValueError(
            f"--objective dpo needs columns prompt, chosen and rejected, but {missing[0]} is "
            f"missing or empty: found {', '.join(map(str, row))}"
        )
    chosen, rejected = (
        [row[name]] if isinstance(row[name], dict) else listed_turns(row[name]) or row[name]
        for name in ANSWERS
    )
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise ValueError("chosen and rejected must both be texts, or both lists of turns")
    shared = 0
    if isinstance(chosen, list):
        most = min(len(chosen), len(rejected)) - 1
        while shared < most and chosen[shared] == rejected[shared]:
            shared += 1
    if shared:  # whole conversations, which part at their last turns
        prompt = _before(row.get("prompt"), chosen[:shared])
        return "prompt", prompt, (chosen[shared:], rejected[shared:])
    column = next((name for name in ASKED if row.get(name)), None)
    if column is None:
        raise ValueError(
            "--objective dpo needs a prompt beside chosen and rejected: there is none, and they "
            f"do not begin with the same turns: found {', '.join(map(str, row))}"
        )
    if column in NAMES["messages"] and ends_in_answer(row[column]):
        raise ValueError(
            f"'{column}' ends in an answer, beside chosen and rejected: leave it out of the row"
        )
    return column, row[column], (chosen, rejected)


def _before(prompt: Any, shared: list[Any]) -> list[Any]:
    """Return the turns that both answers begin with, behind those of a prompt that they lack.

    Raises:
        ValueError: the prompt is a text that is none of the turns.
    """
    if not prompt or (isinstance(prompt, list) and shared[: len(prompt)] == prompt):
        return shared
    if isinstance(prompt, list) and not any(turn in shared for turn in prompt):
        return prompt + shared
    said = [
        str(turn.get("content", turn.get("value"))) for turn in shared if isinstance(turn, dict)
    ]
    if isinstance(prompt, str) and any(prompt.strip() in text for text in said):
        return shared
    raise ValueError(
        "the prompt stands beside other turns that chosen and rejected begin with, and is not the "
        "same: leave either out"
    )


@dataclass(frozen=True, eq=False)
class PairedSplit:
    """Pairs of which each is two samples of a split; see `StoredSplit` for what is not said here.

    `reference` (pairs,): how much likelier, in nats, the model at the start finds the chosen text.
    """

    split: StoredSplit | JoinedSplit
    reference: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def __len__(self) -> int:
        return len(self._numbers)

    @cached_property
    def _numbers(self) -> NDArray[np.int64]:
        """The pairs of the split whose texts both carry loss."""
        both = self.split.loss_tokens.reshape(-1, 2).min(axis=1, initial=2**31 - 1)
        return np.flatnonzero(both > 0)

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of both texts of each pair, (n,)."""
        summed: NDArray[Any] = self.split.lengths.reshape(-1, 2).sum(axis=1)
        return summed[self._numbers].astype(np.int32)

    @cached_property
    def loss_tokens(self) -> NDArray[np.int32]:
        """Tokens of both answers of each pair, (n,)."""
        summed: NDArray[Any] = self.split.loss_tokens.reshape(-1, 2).sum(axis=1)
        return summed[self._numbers].astype(np.int32)

    @property
    def largest_id(self) -> int:
        """The largest token id."""
        return self.split.largest_id

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the split's own, and of its being read as pairs."""
        return hashlib.sha256(f"{self.split.fingerprint}\npairs".encode()).hexdigest()[:16]

    @property
    def mixture(self) -> Mixture:
        """One set, of which an epoch takes each pair once."""
        return Mixture((len(self),), (len(self),))

    def texts(self, number: int) -> tuple[Sample, Sample]:
        """Return the chosen and the rejected text of a pair, each with its mask."""
        first = 2 * int(self._numbers[number])
        return self.split.sample(first), self.split.sample(first + 1)

    def sample(self, number: int) -> Sample:
        """Return the chosen text of a pair."""
        return self.texts(number)[0]


@dataclass(frozen=True)
class _Texts:
    """The texts of some pairs as samples: two for each."""

    split: PairedSplit
    numbers: NDArray[Any]

    def sample(self, number: int) -> Sample:
        return self.split.texts(int(self.numbers[number // 2]))[number % 2]


def collate_pairs(split: PairedSplit, numbers: NDArray[Any]) -> MicroBatch:
    """Lay both texts of each pair end to end, and set what the reference made of them."""
    row = collate(_Texts(split, numbers), range(2 * len(numbers)))
    samples = row.samples
    if len(numbers):
        samples = np.repeat(np.repeat(numbers, 2), row.lengths).astype(np.int64)
    known = len(split.reference) > 0
    reference = split.reference[numbers] if known else np.zeros(len(numbers))
    return replace(row, samples=samples, reference=reference)


def as_pairs(data: Dataset) -> Dataset:
    """Read a dataset's samples two by two.

    Raises:
        DataError: a weight was given, or there are too few pairs.
    """
    if data.train.mixture.counts != data.train.mixture.sizes:
        raise DataError("--objective dpo takes each pair once an epoch: leave the weights out")
    assert not isinstance(data.train, PairedSplit)
    assert not isinstance(data.validation, PairedSplit)
    if len(data.train) % 2 or len(data.validation) % 2:
        raise DataError("--objective dpo needs two pairs, to train on and to evaluate: add one")
    train, validation = PairedSplit(data.train), PairedSplit(data.validation)
    if not (len(train) and len(validation)):
        raise DataError(
            f"--objective dpo has {len(train)} pairs to train on and {len(validation)} to "
            "evaluate: give at least one of each, with answers within --block-size"
        )
    return replace(data, train=train, validation=validation, notices=(*data.notices, TOLD))
