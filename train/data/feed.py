"""From a step's number to one replica's micro-batches, prepared while the step before runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from train.data.batch import MicroBatch, Samples, collate, share
from train.data.order import Mixture, mixed_ids, sample_hash
from train.data.pack import Cost, Load, pack, pack_unequal
from train.data.pairs import PairedSplit, collate_pairs


class Split(Samples, Protocol):
    """Samples with what is known of each without reading it."""

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each sample."""
        ...

    @property
    def loss_tokens(self) -> NDArray[np.int32]:
        """Tokens of each sample that carry loss."""
        ...

    @property
    def fingerprint(self) -> str:
        """What names the samples' content and order."""
        ...

    @property
    def mixture(self) -> Mixture:
        """The sets that the samples are of, and what an epoch takes of each."""
        ...


@dataclass(frozen=True)
class Placement:
    """Where this process stands in a step: replica `replica` of `replicas`.

    `capacity` is a micro-batch's most tokens; with `padded`, counted after padding. The replica's
    `ranks` share each micro-batch; this process is number `rank` of them. `loads`: what each
    replica takes, where they are not equal.
    """

    replica: int
    replicas: int
    capacity: int
    cost: Cost | None = None
    padded: bool = False
    rank: int = 0
    ranks: int = 1
    loads: tuple[Load, ...] = ()


@dataclass(frozen=True)
class StepBatch:
    """One rank's part of one step, and the whole step's counts."""

    micros: tuple[MicroBatch, ...]
    samples: int
    tokens: int
    loss_tokens: int
    sample_hash: str
    lengths: NDArray[np.int32]
    pairs: int = 0

    @property
    def terms(self) -> int:
        """How many terms the step's loss is a mean of: tokens that carry loss, or pairs."""
        return self.pairs or self.loss_tokens


def step_batch(split: Split, seed: int, batch: int, step: int, layout: Placement) -> StepBatch:
    """Return this rank's share of step `step` (from 0) of a job of `batch` samples a step."""
    ids = mixed_ids(seed, split.fingerprint, split.mixture, batch, step)
    return batch_of(split, ids, layout)


def batch_of(split: Split, ids: NDArray[np.int64], layout: Placement) -> StepBatch:
    """Pack the samples `ids` for all replicas and collate this rank's part of its own."""
    lengths = split.lengths[ids]
    sizes = np.full_like(lengths, lengths.max()) if layout.padded else lengths
    if layout.loads:
        packed = pack_unequal(sizes, layout.loads, layout.cost)
    else:
        packed = pack(sizes, layout.capacity, layout.replicas, layout.cost)
    paired = isinstance(split, PairedSplit)
    rows = [
        collate_pairs(split, ids[list(positions)])
        if isinstance(split, PairedSplit)
        else collate(split, ids[list(positions)])
        for positions in packed[layout.replica]
    ]
    return StepBatch(
        micros=tuple(share(row, layout.rank, layout.ranks) for row in rows),
        samples=len(ids),
        tokens=int(lengths.sum()),
        loss_tokens=int(split.loss_tokens[ids].sum()),
        sample_hash=sample_hash(ids),
        lengths=lengths,
        pairs=len(ids) if paired else 0,
    )


def whole_split(split: Split, batch: int, layout: Placement) -> Iterator[tuple[MicroBatch, ...]]:
    """Yield this rank's micro-batches of every sample of a split, `batch` samples at a time.

    A split that is not trained on may have longer samples than fit: there is room for one then.
    """
    longest = int(split.lengths.max(initial=0))
    loads = (replace(load, capacity=max(load.capacity, longest)) for load in layout.loads)
    layout = replace(layout, capacity=max(layout.capacity, longest), loads=tuple(loads))
    for first in range(0, len(split.lengths), batch):
        ids = np.arange(first, min(first + batch, len(split.lengths)), dtype=np.int64)
        yield batch_of(split, ids, layout).micros


AHEAD = 2  # steps from one that has ended to the first whose batch is not being made yet


def prefetched(
    make: Callable[[int], Callable[[], StepBatch]], first: int, last: int
) -> Iterator[StepBatch]:
    """Yield what make(first) … make(last - 1) return, each called in a thread one step ahead.

    `make` itself is called here, when step `step` is asked for with `step + 1`: so what it depends
    on may change between two steps, and holds from the same step on all ranks.
    """
    with ThreadPoolExecutor(1, "feed") as pool:
        waiting = pool.submit(make(first)) if first < last else None
        for step in range(first, last):
            assert waiting is not None
            share = waiting.result()
            waiting = pool.submit(make(step + 1)) if step + 1 < last else None
            yield share
