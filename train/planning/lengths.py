"""What the planner knows of samples' lengths, and how full the busiest replica gets. Tokens."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

# Lengths closer than this are counted as one: a histogram then has a few hundred steps at most.
STEP = 1.02


@dataclass(frozen=True)
class Lengths:
    """Sample lengths: their mean, the mean of their squares, the longest.

    `steps` are lengths, ascending, and `shares` of the samples that are at most so long.
    """

    mean: float
    mean_square: float
    longest: int
    steps: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()

    @property
    def reach(self) -> float:
        """Mean length of the sample that a token stands in, which is longer than the mean."""
        return self.mean_square / self.mean

    def longest_of(self, samples: int, least: float = 0.0) -> float:
        """Return the expected longest of so many samples, or `least` where that is more."""
        found, at = least, bisect_right(self.steps, least)
        shorter = self.shares[at - 1] if at else 0.0
        for step, share in zip(self.steps[at:], self.shares[at:], strict=True):
            found += (step - least) * (1 - shorter**samples)
            least, shorter = step, share
        return found

    def length_of(self, rank: int, samples: int) -> float:
        """Return about how long the sample is that is number `rank` from the longest, from 1."""
        share = 1 - rank / (samples + 1)
        return self.steps[min(bisect_left(self.shares, share), len(self.steps) - 1)]


def lengths_of(lengths: Sequence[int] | Mapping[int, float] | None, block_size: int) -> Lengths:
    """Summarise lengths, or a histogram of them; None stands for full blocks only."""
    counts: dict[int, float] = {}
    given = lengths or {block_size: 1}
    pairs = given.items() if isinstance(given, Mapping) else ((length, 1) for length in given)
    for length, times in pairs:
        length = min(length, block_size)
        counts[length] = counts.get(length, 0) + times
    count = sum(counts.values())
    total = sum(length * times for length, times in counts.items())
    square = sum(length * length * times for length, times in counts.items())
    steps: list[float] = []
    shares: list[float] = []
    first, seen = 0, 0.0
    for length in sorted(counts):
        seen += counts[length]
        if steps and length <= STEP * first:
            steps[-1], shares[-1] = length, seen / count
        else:
            first = length
            steps.append(length)
            shares.append(seen / count)
    return Lengths(total / count, square / count, max(counts), tuple(steps), tuple(shares))


@lru_cache(maxsize=256)
def busiest_tokens(lengths: Lengths, batch: int, replicas: int) -> float:
    """Return the expected tokens of the replica that has most, when `batch` samples are packed.

    It has at least an equal share, the longest sample, and (since some replica has j of the
    longest (j - 1) x replicas + 1 samples) j times the last of these; the packing reaches this.
    """
    least = batch * lengths.mean / replicas
    for held in range(2, min(64, -(-batch // replicas)) + 1):  # beyond, the equal share is more
        least = max(least, held * lengths.length_of((held - 1) * replicas + 1, batch))
    return lengths.longest_of(batch, least)
