"""Parts of a tensor along one dimension, and how elements of one part are found in another.

Where tensor ranks divide a matrix, each holds some index ranges of one dimension, laid end to end,
and what it saves is a run of elements of that smaller matrix, in row-major order. Loaded with
another number of ranks, such a run is put together from runs of other parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.errors import CheckpointError

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Cut:
    """The part of a tensor with the indices `parts`, pairs (first, last), of one dimension."""

    dimension: int
    parts: tuple[tuple[int, int], ...]

    @property
    def extent(self) -> int:
        """How many indices the part has."""
        return sum(last - first for first, last in self.parts)

    def shape(self, whole: Sequence[int]) -> tuple[int, ...]:
        """Return the part's shape, from the whole tensor's."""
        return (*whole[: self.dimension], self.extent, *whole[self.dimension + 1 :])

    @staticmethod
    def of(content: Any, shape: Sequence[int]) -> Cut | None:
        """Read what index.json holds of a slice's cut; None: the slice is of the whole tensor.

        Raises:
            KeyError, TypeError, ValueError: the tensor has no such part.
        """
        if content is None:
            return None
        parts = tuple((int(first), int(last)) for first, last in content["parts"])
        found = Cut(int(content["dimension"]), parts)
        if not 0 <= found.dimension < len(shape):
            raise ValueError(f"a tensor of shape {tuple(shape)} has no dimension {found.dimension}")
        ends = [end for part in parts for end in part]
        if ends != sorted(ends) or not parts or ends[0] < 0 or ends[-1] > shape[found.dimension]:
            raise ValueError(f"a tensor of shape {tuple(shape)} has no part {parts}")
        return found


@dataclass(frozen=True)
class Span:
    """Elements `start` to `stop` of a part of a tensor, or of the whole, in row-major order."""

    cut: Cut | None
    start: int
    stop: int


@dataclass(frozen=True)
class Runs:
    """Runs of elements that two spans share: where each begins in both, and its length."""

    target: Indices
    source: Indices
    length: Indices

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return zip(self.target.tolist(), self.source.tolist(), self.length.tolist(), strict=True)


def shared_runs(shape: Sequence[int], target: Span, source: Span) -> Runs:
    """Return what two spans of a tensor share, sorted by the place in `source`.

    Raises:
        CheckpointError: the two are cut along different dimensions.
    """
    cuts = [span.cut for span in (target, source) if span.cut is not None]
    dimension = cuts[0].dimension if cuts else 0
    if any(cut.dimension != dimension for cut in cuts):
        raise CheckpointError(f"a tensor of shape {tuple(shape)} is cut along two dimensions")
    extent = shape[dimension] if shape else 1
    parts = [s.cut.parts if s.cut else ((0, extent),) for s in (target, source)]
    inner = prod(shape[dimension + 1 :])
    widths = [sum(last - first for first, last in part) * inner for part in parts]
    # Rows of which both spans hold something: there are many, and most pairs of spans share none.
    first = max(target.start // widths[0], source.start // widths[1])
    last = min(-(-target.stop // widths[0]), -(-source.stop // widths[1]))
    rows = np.arange(first, max(first, last), dtype=np.int64)
    found = [
        _clipped(rows * widths[0] + at * inner, rows * widths[1] + from_ * inner, n * inner,
                 target, source)
        for at, from_, n in _common(*parts)
    ]  # fmt: skip
    joined = np.concatenate([np.empty((3, 0), np.int64), *found], axis=1)
    return Runs(*joined[:, joined[1].argsort(kind="stable")])


def _common(
    one: Sequence[tuple[int, int]], other: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int, int]]:
    """Yield the indices that two lists of ranges share: places in both, and how many."""
    at = 0
    for first, last in one:
        there = 0
        for begin, end in other:
            low, high = max(first, begin), min(last, end)
            if low < high:
                yield at + low - first, there + low - begin, high - low
            there += end - begin
        at += last - first


def _clipped(at: Indices, there: Indices, length: int, target: Span, source: Span) -> Indices:
    """Return runs (3, n), those of no length left out, cut to the ends of both spans."""
    skipped = np.maximum(0, np.maximum(target.start - at, source.start - there))
    left = np.minimum(length, np.minimum(target.stop - at, source.stop - there)) - skipped
    found: Indices = np.stack([at + skipped, there + skipped, left])[:, left > 0]
    return found
