"""Which replica processes which samples of a batch, and in which micro-batch.

A pure function of the samples' lengths: every rank computes the same answer and nothing is sent.
The invariant: every position stands in exactly one micro-batch, every replica has the same number
of them, and none holds more tokens than the capacity. Under ZeRO-3 the ranks wait for one another
at every micro-batch, so the k-th micro-batches are made alike across the replicas.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

Packing = tuple[tuple[tuple[int, ...], ...], ...]
Bins = list[list[int]]


def pack(
    lengths: NDArray[Any],
    capacity: int,
    replicas: int,
    cost: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
) -> Packing:
    """Return [replica][micro-batch] -> positions in the batch, ascending.

    Args:
        lengths: tokens of each sample of the batch, (B,).
        capacity: most tokens of one micro-batch; at least the longest sample.
        replicas: how many micro-batches are processed at a time.
        cost: time of each sample from the lengths, in any unit, (B,) -> (B,); default: tokens.

    Raises:
        ValueError: a sample is longer than the capacity, or there are no samples or replicas.
    """
    if replicas < 1 or len(lengths) == 0:
        raise ValueError(f"cannot pack {len(lengths)} samples for {replicas} replicas")
    if int(lengths.max()) > capacity:
        raise ValueError(f"a sample of {int(lengths.max())} tokens exceeds capacity {capacity}")
    tokens: list[int] = lengths.tolist()
    costs: list[float] = (lengths if cost is None else cost(lengths)).tolist()
    tight = _best_fit(tokens, capacity)
    rounds = -(-len(tight) // replicas)
    bins = _spread(tokens, costs, capacity, rounds * replicas) or tight
    bins += [[] for _ in range(rounds * replicas - len(bins))]
    return _deal(bins, costs, replicas)


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


def _spread(tokens: list[int], costs: list[float], capacity: int, count: int) -> Bins | None:
    """Fill `count` bins evenly: the dearest sample first, into the cheapest bin with room for it.

    None where that runs out of room or searches for long: the bins are then so full that the
    tightest filling is an even one, too.
    """
    bins: Bins = [[] for _ in range(count)]
    filled = [0] * count
    heap = [(0.0, number) for number in range(count)]
    patience = 4 * len(tokens)
    for position in sorted(range(len(tokens)), key=lambda p: (-costs[p], -tokens[p], p)):
        full: list[tuple[float, int]] = []
        while heap and filled[heap[0][1]] + tokens[position] > capacity:
            full.append(heapq.heappop(heap))
        patience -= len(full)
        if not heap or patience < 0:
            return None
        load, number = heap[0]
        heapq.heapreplace(heap, (load + costs[position], number))
        bins[number].append(position)
        filled[number] += tokens[position]
        for entry in full:
            heapq.heappush(heap, entry)
    return bins


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
