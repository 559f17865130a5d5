"""Pairs of answers, one chosen and one rejected: a row of two texts, and a split of such pairs.

A pair is stored as two samples, one behind the other. It is drawn, packed and counted as one: both
its texts stand in one micro-batch, since the loss is of their difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.data.batch import MicroBatch, collate
from train.data.column_names import NAMES, plain_name
from train.data.mix import Dataset, JoinedSplit
from train.data.order import Mixture
from train.data.rows import Row
from train.data.store import Sample, StoredSplit
from train.data.turns import listed_turns, role_of
from train.data.unheeded import unheeded
from train.errors import DataError
from train.text import listed

BETA = 0.1  # of the DPO paper's experiments (arXiv 2305.18290), and everybody's default
ANSWERS = ("chosen", "rejected")
TOLD = (
    "--objective dpo: each pair's loss is of how much likelier the chosen answer has become than "
    f"the rejected one, against the model at the start (beta {BETA})"
)
_ASKED = (*NAMES["prompt"], *NAMES["messages"], *NAMES["input"])  # columns of the prompt
_WHOLE = ("prompt", *NAMES["messages"])  # those that say more than turns which begin with a user's
_BESIDE = ("system", "tools", "history", "input")  # roles that go with the prompt


def answer_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield two rows for each: its prompt with the chosen, then with the rejected answer."""
    for row in rows:
        if row.value is None:
            yield row
            continue
        try:
            asked, answers, unused = _parts(row.value)
        except ValueError as error:
            yield Row(row.place, None, f": {error}")
            continue
        for given in answers:
            value = {**asked, "completion": given}
            yield replace(row, value=value, beside=(*row.beside, *unused))


def _parts(row: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[Any, Any], list[str]]:
    """Return what both answers stand behind, by roles, the answers, and columns that are not used.

    Raises:
        ValueError: a column is missing or not heeded, or the answers are to no prompt.
    """
    named = {plain_name(name): name for name in row if row[name]}
    chosen, rejected = _answers(row, named)
    shared = _shared(chosen, rejected)
    whole = shared > 0 and role_of(chosen[0]) != "assistant"  # conversations, to their ends
    column = next((named[word] for word in (_WHOLE if whole else _ASKED) if word in named), None)
    if column is None and not shared:
        raise ValueError(
            "--objective dpo needs a prompt beside chosen and rejected: there is none, and they "
            f"do not begin with the same turns: found {', '.join(map(str, row))}"
        )
    prompt = None if column is None else _turns(row[column])
    answers = (chosen[shared:], rejected[shared:])
    _require_answers(prompt if not shared else None, answers)
    if shared:
        prompt = _before(prompt, chosen, shared)
    beside = _beside({word: name for word, name in named.items() if name != column}, whole=whole)
    used = {column, *beside.values(), *(named[word] for word in ANSWERS)}
    unused = [name for name in row if name not in used and (row[name] or not _goes(name))]
    if said := unheeded(row, unused):
        raise ValueError(f"{said}: leave the row out")
    return {"prompt": prompt} | {r: row[name] for r, name in beside.items()}, answers, unused


def _beside(named: Mapping[str, str], *, whole: bool) -> dict[str, str]:
    """Return the columns that go with the prompt, by their roles; whole turns have an input.

    Raises:
        ValueError: several have one role.
    """
    roles = {}
    for role in _BESIDE[: 3 if whole else 4]:
        found = [named[word] for word in NAMES[role] if word in named]
        if len(found) > 1:
            raise ValueError(f"{listed(found)} could each be the {role}: leave one of them out")
        if found:
            roles[role] = found[0]
    return roles


def _goes(name: str) -> bool:
    """Whether a column has a name of those that go with the prompt."""
    return any(plain_name(name) in NAMES[role] for role in _BESIDE)


def _shared(chosen: Any, rejected: Any) -> int:
    """Return with how many turns both answers begin; the last of neither counts."""
    pairs = zip(chosen[:-1], rejected[:-1], strict=False) if isinstance(chosen, list) else ()
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _answers(row: Mapping[str, Any], named: Mapping[str, str]) -> tuple[Any, Any]:
    """Return both answers, as texts or as lists of turns.

    Raises:
        ValueError: one is missing, or they are not of one kind.
    """
    missing = [name for name in ANSWERS if name not in named]
    if missing:
        raise ValueError(
            f"--objective dpo needs columns prompt, chosen and rejected, but {missing[0]} is "
            f"missing or empty: found {', '.join(map(str, row))}"
        )
    chosen, rejected = (_turns(row[named[name]]) for name in ANSWERS)
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise ValueError("chosen and rejected must both be texts, or both lists of turns")
    return chosen, rejected


def _turns(value: Any) -> Any:
    """Return a list of turns where a value is one, or a turn, or a JSON text of either."""
    if isinstance(value, dict):
        return [value]
    if isinstance(value, str) and value.lstrip().startswith("{"):
        return listed_turns(f"[{value}]") or value
    return listed_turns(value) or value


def _require_answers(prompt: Any, answers: tuple[Any, Any]) -> None:
    """Check that what differs are answers, and that they are to what was asked.

    Raises:
        ValueError: they begin with other turns, or the prompt ends in an answer.
    """
    for name, given in zip(ANSWERS, answers, strict=True):
        role = role_of(given[0]) if isinstance(given, list) else None
        if role in ("system", "user", "tool"):
            raise ValueError(
                f"{name} begins with the {role}'s turn, which the other answer has not: both must "
                "be answers to one prompt"
            )
    if isinstance(prompt, list) and prompt and role_of(prompt[-1]) == "assistant":
        raise ValueError(
            "the prompt ends in an answer, but chosen and rejected are those to choose between: "
            "leave that turn out of the prompt"
        )


def _before(prompt: Any, chosen: list[Any], shared: int) -> list[Any]:
    """Return the turns that both answers begin with, behind those of a prompt that they lack.

    Raises:
        ValueError: the prompt is a text that is none of the turns.
    """
    turns, given = chosen[:shared], prompt if isinstance(prompt, list) else []
    if not prompt or prompt == chosen or (given and turns[: len(given)] == given):
        return turns
    twice = given and role_of(given[-1]) == "user" and role_of(turns[0]) in ("system", "user")
    if given and not twice and not any(turn in turns for turn in given):
        return given + turns
    said = [str(turn.get("content", turn.get("value"))) for turn in turns if isinstance(turn, dict)]
    if isinstance(prompt, str) and any(prompt.strip() in text for text in said):
        return turns
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
