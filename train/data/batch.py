"""The arrays of one micro-batch: samples laid end to end, with what keeps them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from train.data.divide import Division, divide, places

IGNORED = -100  # the label that torch's cross-entropy leaves out
NO_SAMPLE = -1


class Samples(Protocol):
    """What holds samples by number."""

    def sample(self, number: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Return the tokens (T,) of a sample and which of them carry loss (T,)."""
        ...


@dataclass(frozen=True)
class MicroBatch:
    """Packed samples; every array is int64 of shape (T,), T the sum of `lengths`.

    Of a row that the ranks of a replica share, these are one rank's tokens: `lengths` are of its
    stretches, and `division` holds those of all its ranks.

    `labels` are shifted already: at token t stands the next token of the same sample if that one
    carries loss, else -100. `positions` restart at 0 with each sample, `samples` holds each
    token's sample id. The empty micro-batch is one token of sample -1 without a label, so that
    every rank runs the same forward and backward.

    Of pairs of texts, the chosen one before the rejected one, `reference` (pairs,) is how much
    likelier the model at the start finds the chosen one, in nats.
    """

    tokens: NDArray[np.int64]
    labels: NDArray[np.int64]
    positions: NDArray[np.int64]
    samples: NDArray[np.int64]
    lengths: tuple[int, ...]
    division: Division = ()
    reference: NDArray[np.float64] | None = None

    @property
    def loss_tokens(self) -> int:
        """How many tokens are predicted."""
        return int((self.labels != IGNORED).sum())

    @property
    def terms(self) -> int:
        """How many terms the loss is a sum of: tokens that are predicted, or pairs."""
        return self.loss_tokens if self.reference is None else len(self.reference)

    @property
    def real_tokens(self) -> int:
        """How many tokens come from samples: 0 for the empty micro-batch."""
        return int((self.samples != NO_SAMPLE).sum())


def collate(split: Samples, ids: Sequence[int] | NDArray[Any]) -> MicroBatch:
    """Lay the samples `ids` of a split end to end, in that order."""
    if len(ids) == 0:
        return _empty()
    found = [split.sample(int(number)) for number in ids]
    labels = [_shift(tokens, mask) for tokens, mask in found]
    return _join([tokens for tokens, _ in found], labels, [int(number) for number in ids])


def share(row: MicroBatch, rank: int, ranks: int) -> MicroBatch:
    """Return what one of a replica's `ranks` holds of a packed row: a filler where that is nothing.

    An empty micro-batch is not divided: each rank runs it.
    """
    if ranks == 1 or row.real_tokens == 0:
        return row
    division = divide(row.lengths, ranks)
    own = places(division[rank])
    if len(own) == 0:
        return replace(_empty(), division=division)
    return MicroBatch(
        tokens=row.tokens[own],
        labels=row.labels[own],
        positions=row.positions[own],
        samples=row.samples[own],
        lengths=tuple(stretch.last - stretch.first for stretch in division[rank]),
        division=division,
    )


def continued(tokens: NDArray[Any]) -> MicroBatch:
    """Return a row of one sample (T,) of which only the token after its last is asked for."""
    labels = np.full(len(tokens), IGNORED)
    labels[-1] = 0
    return _join([tokens], [labels], [0])


def _empty() -> MicroBatch:
    return _join([np.zeros(1, np.int64)], [np.full(1, IGNORED)], [NO_SAMPLE])


def _shift(tokens: NDArray[np.int32], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    labels = np.full(len(tokens), IGNORED, dtype=np.int64)
    labels[:-1] = np.where(mask[1:], tokens[1:], IGNORED)
    return labels


def _join(
    tokens: Sequence[NDArray[Any]], labels: Sequence[NDArray[Any]], ids: Sequence[int]
) -> MicroBatch:
    lengths = tuple(len(part) for part in tokens)
    return MicroBatch(
        tokens=np.concatenate(tokens).astype(np.int64),
        labels=np.concatenate(labels).astype(np.int64),
        positions=np.concatenate([np.arange(length, dtype=np.int64) for length in lengths]),
        samples=np.repeat(np.array(ids, dtype=np.int64), lengths),
        lengths=lengths,
    )
