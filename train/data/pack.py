"""Which replica processes which samples of a batch, and in which micro-batch.

A pure function of the samples' lengths: every rank computes the same answer and nothing is sent.
The invariant: every position stands in exactly one micro-batch, every replica has the same number
of them, and none holds more tokens than its replica's capacity. Under ZeRO-3 the ranks wait for one
another at every micro-batch, so the k-th micro-batches are made alike across the replicas. Replicas
of more ranks are faster and hold more: alike means that they end at the same time.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from numpy.typing import NDArray

Packing = tuple[tuple[tuple[int, ...], ...], ...]
Bins = list[list[int]]
Cost = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class Load:
    """What one replica takes: tokens of a micro-batch at most, and its speed against others'."""

    capacity: int
    speed: float = 1.0


def pack(lengths: NDArray[Any], capacity: int, replicas: int, cost: Cost | None = None) -> Packing:
    """Pack for `replicas` equal replicas; see `pack_unequal`."""
    return pack_unequal(lengths, [Load(capacity)] * replicas, cost)


def pack_unequal(lengths: NDArray[Any], loads: Sequence[Load], cost: Cost | None = None) -> Packing:
    """Return [replica][micro-batch] -> positions in the batch, ascending.

    Args:
        lengths: tokens of each sample of the batch, (B,).
        loads: what each replica takes; every capacity is at least the longest sample.
        cost: time of each sample from the lengths, in any unit, (B,) -> (B,); default: tokens.

    Raises:
        ValueError: a sample is longer than a capacity, or there are no samples or replicas.
    """
    if not loads or len(lengths) == 0:
        raise ValueError(f"cannot pack {len(lengths)} samples for {len(loads)} replicas")
    least = min(load.capacity for load in loads)
    if int(lengths.max()) > least:
        raise ValueError(f"a sample of {int(lengths.max())} tokens exceeds capacity {least}")
    tokens: list[int] = lengths.tolist()
    costs: list[float] = (lengths if cost is None else cost(lengths)).tolist()
    kinds = sorted(set(loads), key=lambda load: (load.speed, load.capacity))
    members = [[n for n, load in enumerate(loads) if load == kind] for kind in kinds]
    bins = _fill(tokens, costs, kinds, [len(replicas) for replicas in members])
    dealt: list[Any] = [None] * len(loads)
    for replicas, filled in zip(members, bins, strict=True):
        for replica, micros in zip(replicas, _deal(filled, costs, len(replicas)), strict=True):
            dealt[replica] = micros
    return tuple(dealt)


def _fill(
    tokens: list[int], costs: list[float], kinds: Sequence[Load], counts: Sequence[int]
) -> list[Bins]:
    """Return the bins of each kind of replica: as few rounds as are found, evenly filled."""
    if len(kinds) == 1:
        tight = _best_fit(tokens, kinds[0].capacity)
        rounds = -(-len(tight) // counts[0])
        even = _spread(tokens, costs, kinds, [rounds * counts[0]])
        tight += [[] for _ in range(rounds * counts[0] - len(tight))]
        return even or [tight]
    # As long as it takes until the first bin is full, if all are filled at their speeds.
    longest = min(kind.capacity / kind.speed for kind in kinds)
    room = longest * sum(kind.speed * count for kind, count in zip(kinds, counts, strict=True))
    rounds = max(1, ceil(sum(tokens) / room))
    while (even := _spread(tokens, costs, kinds, [rounds * n for n in counts])) is None:
        rounds += 1  # as many rounds as samples always do
    return even


def _best_fit(tokens: list[int], capacity: int) -> Bins:
    """Fill as few bins as best-fit-decreasing can: at most 11/9 of the fewest, plus one."""
    bins: Bins = []
    rooms: list[tuple[int, int]] = []
    for position in sorted(range(len(tokens)), key=lambda p: (-tokens[p], p)):
        place = bisect_left(rooms, (tokens[position], -1))
        room, number = rooms.pop(place) if place < len(rooms) else (capacity, len(bins))
        if number == len(bins):
            bins.append([])
        bins[number].append(position)
        insort(rooms, (room - tokens[position], number))
    return bins


class _Shelf:
    """The bins of one kind of replica, of which the cheapest with room is found quickly."""

    def __init__(self, load: Load, count: int) -> None:
        self.load = load
        self.bins: Bins = [[] for _ in range(count)]
        self._filled = [0] * count
        self._heap = [(0.0, number) for number in range(count)]

    def take(self, tokens: int) -> tuple[tuple[float, int] | None, int]:
        """Take the cheapest bin with room out; return its cost and number, and how many had none.

        None where no bin has room.
        """
        full: list[tuple[float, int]] = []
        while self._heap and self._filled[self._heap[0][1]] + tokens > self.load.capacity:
            full.append(heapq.heappop(self._heap))
        found = heapq.heappop(self._heap) if self._heap else None
        for entry in full:
            heapq.heappush(self._heap, entry)
        return found, len(full)

    def put(self, entry: tuple[float, int]) -> None:
        """Put a bin back."""
        heapq.heappush(self._heap, entry)

    def fill(self, entry: tuple[float, int], position: int, cost: float, tokens: int) -> None:
        """Put a bin back with one sample more."""
        self.bins[entry[1]].append(position)
        self._filled[entry[1]] += tokens
        self.put((entry[0] + cost, entry[1]))


def _spread(
    tokens: list[int], costs: list[float], kinds: Sequence[Load], counts: Sequence[int]
) -> list[Bins] | None:
    """Fill bins evenly: the dearest sample first, into the bin with room that ends first with it.

    None where that runs out of room or searches for long: the bins are then so full that the
    tightest filling is an even one, too.
    """
    shelves = [_Shelf(kind, count) for kind, count in zip(kinds, counts, strict=True)]
    patience = 4 * len(tokens)
    for position in sorted(range(len(tokens)), key=lambda p: (-costs[p], -tokens[p], p)):
        ends: list[tuple[float, int]] = []
        taken = [shelf.take(tokens[position]) for shelf in shelves]
        for number, (entry, skipped) in enumerate(taken):
            patience -= skipped
            if entry is not None:
                end = (entry[0] + costs[position]) / shelves[number].load.speed
                ends.append((end, number))
        if not ends or patience < 0:
            return None
        _, best = min(ends)
        for number, (entry, _) in enumerate(taken):
            if entry is not None and number == best:
                shelves[number].fill(entry, position, costs[position], tokens[position])
            elif entry is not None:
                shelves[number].put(entry)
    return [shelf.bins for shelf in shelves]


def _deal(bins: Bins, costs: list[float], replicas: int) -> Packing:
    """Give each replica one bin of each round; bins of like cost share a round, dearest first."""
    loads = [sum(costs[p] for p in members) for members in bins]
    ranked = sorted(range(len(bins)), key=lambda number: (-loads[number], number))
    totals = [0.0] * replicas
    dealt: list[list[tuple[int, ...]]] = [[] for _ in range(replicas)]
    for start in range(0, len(ranked), replicas):
        needy = sorted(range(replicas), key=lambda replica: (totals[replica], replica))
        for replica, number in zip(needy, ranked[start : start + replicas], strict=True):
            dealt[replica].append(tuple(sorted(bins[number])))
            totals[replica] += loads[number]
    return tuple(tuple(micros) for micros in dealt)
