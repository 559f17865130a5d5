"""How the ranks of a replica divide a packed row: equal tokens, and nearly equal cost.

A pure function of the lengths: every rank computes the same answer. The row is cut into twice as
many pieces as there are ranks, equal in tokens, wherever that is inside a sample. Attention makes
the late tokens of a sample dearer than the early ones, so each rank gets the dearest piece that is
left and the cheapest. A token needs the keys of its own sample up to itself, within the window;
those that other ranks hold are sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Stretch:
    """Neighbouring tokens `first` to `last` - 1 of one sample, which begins at `start`.

    All three count the tokens of the row.
    """

    start: int
    first: int
    last: int

    def keys(self, window: int | None) -> tuple[int, int]:
        """Return the first key that these tokens see, and the one after the last."""
        return max(self.start, 0 if window is None else self.first - window + 1), self.last


Division = tuple[tuple[Stretch, ...], ...]


@dataclass(frozen=True)
class Route:
    """Which keys one rank sends and receives.

    `sends`: for each rank of the replica the places, among this rank's tokens, that it needs,
    ascending. `receives`: how many tokens come from each rank. `keys`: for each stretch of this
    rank, one after the other, the places of its keys among this rank's tokens followed by the
    received ones, in the order of the ranks. `bounds`: where in it each stretch begins, and its
    length.
    """

    sends: tuple[Places, ...]
    receives: tuple[int, ...]
    keys: Places
    bounds: tuple[int, ...]


def divide(lengths: Sequence[int], ranks: int) -> Division:
    """Return each rank's stretches of a row of samples of these lengths, in the row's order.

    A rank has none where the row has fewer tokens than ranks.
    """
    starts = np.concatenate([[0], np.cumsum(lengths)])
    cuts = int(starts[-1]) * np.arange(2 * ranks + 1) // (2 * ranks)
    costs = np.diff(_pairs_before(cuts, starts)).tolist()
    ranked = sorted(range(2 * ranks), key=lambda piece: (costs[piece], piece))
    pairs = [sorted((ranked[rank], ranked[-1 - rank])) for rank in range(ranks)]
    return tuple(_stretches([(cuts[p], cuts[p + 1]) for p in pair], starts) for pair in pairs)


def places(stretches: Sequence[Stretch]) -> Places:
    """Return which tokens of the row stand in these stretches, ascending."""
    runs = [np.arange(stretch.first, stretch.last) for stretch in stretches]
    return np.concatenate([np.zeros(0, np.int64), *runs])


def route(division: Division, rank: int, window: int | None) -> Route:
    """Return what `rank` of a replica sends and receives; equal windows make equal routes.

    Args:
        window: a token sees itself and this many minus one before it; None: all.
    """
    total = max((stretch.last for part in division for stretch in part), default=0)
    needed = [_needed(stretches, window, total) for stretches in division]
    held = [places(stretches) for stretches in division]
    own = held[rank]
    sends = [np.flatnonzero(mask[own]) for mask in needed]
    come = [part[needed[rank][part]] for part in held]
    sends[rank], come[rank] = sends[rank][:0], come[rank][:0]
    here = np.concatenate([own, *come])
    where = np.zeros(total, np.int64)
    where[here] = np.arange(len(here))
    runs = [where[slice(*stretch.keys(window))] for stretch in division[rank]]
    bounds = np.cumsum([0, *(len(run) for run in runs)])
    return Route(
        sends=tuple(sends),
        receives=tuple(len(part) for part in come),
        keys=np.concatenate([where[:0], *runs]),
        bounds=tuple(int(at) for at in bounds),
    )


def _needed(stretches: Sequence[Stretch], window: int | None, total: int) -> NDArray[np.bool_]:
    """Return which of the row's `total` tokens these stretches see."""
    found = np.zeros(total, np.bool_)
    for stretch in stretches:
        found[slice(*stretch.keys(window))] = True
    return found


def _pairs_before(cuts: Places, starts: Places) -> Places:
    """Return how many pairs of query and key stand before each cut of the row."""
    whole = np.diff(starts)
    before = np.concatenate([[0], np.cumsum(whole * (whole + 1) // 2)])
    sample = np.searchsorted(starts, cuts, side="right") - 1
    inside = cuts - starts[sample]
    found: Places = before[sample] + inside * (inside + 1) // 2
    return found


def _stretches(pieces: Sequence[tuple[int, int]], starts: Places) -> tuple[Stretch, ...]:
    """Cut pieces of the row, ascending, where samples begin; neighbours are joined before."""
    (first, middle), (after, last) = pieces
    joined = [(first, last)] if middle == after else [(first, middle), (after, last)]
    found = []
    for begin, end in joined:
        inner = starts[(starts > begin) & (starts < end)].tolist()
        edges = [int(begin), *inner, int(end)]
        for left, right in pairwise(edges):
            if left < right:
                start = int(starts[np.searchsorted(starts, left, side="right") - 1])
                found.append(Stretch(start, left, right))
    return tuple(found)
