"""What each replica is worth as measured. Every rank computes the same answer from the same paces.

The work is moved only where it is sure to help: a replica must be slower than the others by more
than noise, in the median of several steps that lie apart, and the others must wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, median_high

# After EVERY steps the WATCH-th, second WATCH-th, … of them decide: a short disturbance is in few.
EVERY, WATCH = 20, 4
FEWEST = 3  # watched steps that decide
# Replicas whose speeds are closer than this are taken to be as fast as was thought: it is noise.
NOTICEABLE = 1.15
# Of the fastest, what the slowest is taken to do at least: what stands still is a fault.
LEAST = 1 / 8
# Seconds of products in a step below which nothing is known: other things take the time then.
SHORTEST = 0.02


@dataclass(frozen=True)
class Pace:
    """How fast products were: FLOP per second while they ran, and seconds a step; 0: not known."""

    rate: float = 0.0
    seconds: float = 0.0


def is_watched(step: int) -> bool:
    """Whether the products of step `step`, from 0, are timed."""
    return step % WATCH == WATCH - 1


def is_weighed(step: int) -> bool:
    """Whether the ranks compare their paces after step `step`, from 0."""
    return step % EVERY == EVERY - 1


def usual(paces: Sequence[Pace]) -> Pace:
    """Return the median of a rank's watched steps; not known where too few had enough to do."""
    known = [pace for pace in paces if pace.seconds >= SHORTEST]
    if len(known) < FEWEST:
        return Pace()
    return Pace(median(pace.rate for pace in known), median(pace.seconds for pace in known))


def of_replica(ranks: Sequence[Pace]) -> Pace:
    """Return the pace of ranks that work on the same rows: equal parts, so the slowest decides."""
    slowest = min(ranks, key=lambda pace: pace.rate)
    return Pace(slowest.rate, max(pace.seconds for pace in ranks)) if slowest.rate else Pace()


def corrected(speeds: Sequence[float], paces: Sequence[Pace]) -> tuple[float, ...]:
    """Return the speed of every replica, against the slowest; `speeds` again where none is to move.

    A replica whose pace is not known keeps what it had, and so does one that is about as fast as
    most say. Nothing moves unless the slowest took longer than the mean: with less to do it is the
    others that would be waited for.

    Args:
        speeds: of each replica, as its work follows them so far, in any unit.
        paces: of each replica.
    """
    known = [number for number, pace in enumerate(paces) if pace.rate > 0]
    if len(known) < 2:
        return tuple(speeds)
    found = {number: paces[number].rate / speeds[number] for number in known}
    most = median_high(found.values())
    slowest = min(found, key=lambda number: found[number])
    waited = paces[slowest].seconds > fmean(paces[number].seconds for number in known)
    factors = [found.get(number, most) / most for number in range(len(speeds))]
    moved = [1.0 if 1 / NOTICEABLE <= factor <= NOTICEABLE else factor for factor in factors]
    if not waited or set(moved) == {1.0}:
        return tuple(speeds)
    wanted = [speed * factor for speed, factor in zip(speeds, moved, strict=True)]
    least = max(min(wanted), LEAST * max(wanted))
    return tuple(max(speed, least) / least for speed in wanted)
