"""Which samples a step sees: a pure function of (seed, fingerprint, samples, batch, step).

A keyed bijection of 0..n-1, one per epoch, is evaluated only where it is needed: no shuffled list
is kept, so any step is found in the time of its own batch and nothing has to be saved or skipped.
The bijection is a Feistel network over Z_a x Z_b with a * b just above n; the few values that
fall outside 0..n-1 are sent through it again until they come back inside (cycle walking).

Of several sets of samples an epoch takes as many places as their weights say. A set's places go
through its samples one after another, on from epoch to epoch: none is seen twice before all others
were seen once.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.errors import DataError

ROUNDS = 8  # sha512 gives eight 64-bit round keys; four rounds already pass a chi-square test


@dataclass(frozen=True)
class Mixture:
    """Sets of samples that are numbered one set after another, and what an epoch takes of each.

    `sizes`: samples of each set; `counts`: its places in an epoch, at least 1.
    """

    sizes: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def places(self) -> int:
        """Samples of an epoch, those counted twice that are seen twice."""
        return sum(self.counts)


def steps_per_epoch(samples: int, batch: int) -> int:
    """Return floor(samples / batch), the optimizer steps of one epoch.

    Raises:
        DataError: the batch is larger than the dataset.
    """
    if batch > samples:
        raise DataError(
            f"--batch-size {batch} is larger than the dataset has samples to train on: the "
            f"dataset has {samples} samples; give --batch-size {samples} or less, or more data"
        )
    return samples // batch


def sample_ids(
    seed: int, fingerprint: str, samples: int, batch: int, step: int
) -> NDArray[np.int64]:
    """Return the ids (batch,) of step `step`, counted from 0, each in 0..samples-1.

    Epoch e covers steps e * k to (e + 1) * k - 1 with k = floor(samples / batch), and visits
    k * batch distinct samples; the rest of that epoch's permutation is left out.

    Raises:
        DataError: the batch is larger than the dataset.
    """
    epoch, within = divmod(step, steps_per_epoch(samples, batch))
    places = np.arange(within * batch, (within + 1) * batch, dtype=np.uint64)
    return _permute(places, samples, _round_keys(seed, fingerprint, epoch)).astype(np.int64)


def mixed_ids(
    seed: int, fingerprint: str, mixture: Mixture, batch: int, step: int
) -> NDArray[np.int64]:
    """Return the ids (batch,) of step `step`, as `sample_ids` of the epoch's places gives them.

    Each is in 0..sum(sizes)-1. Of one set that an epoch takes once they are those of `sample_ids`.

    Raises:
        DataError: the batch is larger than an epoch.
    """
    places = sample_ids(seed, fingerprint, mixture.places, batch, step)
    epoch = step // steps_per_epoch(mixture.places, batch)
    ends = np.cumsum(mixture.counts)
    owners = np.searchsorted(ends, places, side="right")
    ids = np.empty_like(places)
    first = 0
    for number, (size, count) in enumerate(zip(mixture.sizes, mixture.counts, strict=True)):
        own = owners == number
        within = places[own] - (ends[number] - count)
        if count % size:  # a part of the set: another one in each epoch, and none by its order
            keys = _round_keys(seed, fingerprint, f"set {number}")
            within = (within + epoch * count) % size
            within = _permute(within.astype(np.uint64), size, keys).astype(np.int64)
        ids[own] = first + within % size
        first += size
    return ids


def sample_hash(ids: NDArray[np.int64]) -> str:
    """Return 16 hex digits that name a set of sample ids, whatever their order."""
    return hashlib.sha256(np.sort(ids).astype("<i8").tobytes()).hexdigest()[:16]


def _round_keys(seed: int, fingerprint: str, epoch: int | str) -> NDArray[np.uint64]:
    text = f"{seed}\n{fingerprint}\n{epoch}"
    return np.frombuffer(hashlib.sha512(text.encode()).digest(), dtype="<u8", count=ROUNDS)


def _permute(places: NDArray[np.uint64], size: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    found = _feistel(places, size, keys)
    while (outside := found >= size).any():
        found[outside] = _feistel(found[outside], size, keys)
    return found


def _feistel(values: NDArray[np.uint64], size: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply one bijection of 0..a*b-1; each round shifts one coordinate by a hash of the other."""
    rows = math.isqrt(size - 1) + 1
    sides = np.array([rows, -(-size // rows)], dtype=np.uint64)
    halves = [values // sides[1], values % sides[1]]
    for number, key in enumerate(keys):
        turn = number % 2
        halves[turn] = (halves[turn] + _mix(halves[1 - turn] ^ key) % sides[turn]) % sides[turn]
    joined: NDArray[np.uint64] = halves[0] * sides[1] + halves[1]
    return joined


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit words: the finaliser of splitmix64 (Steele, Lea and Flood, 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed
