"""Tokenized samples on disk: written once, then only mapped into memory.

A folder holds the samples of both splits, as they were read: tokens.i32 and mask.b8 (flat),
lengths.npy, loss_tokens.npy and held.npy (one number per sample), index.json (everything else). It
is written under another name and renamed when it is whole, so a folder that exists is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from train.data.tokenizer import Segment, Tokenizer, TokenizerInfo

Sample = tuple[NDArray[np.int32], NDArray[np.bool_]]
# With a number of 0..2**64-1 that is drawn by the sample's text.
StoredSample = tuple[NDArray[np.int32], NDArray[np.bool_], int]


@dataclass(frozen=True, eq=False)
class StoredSplit:
    """Samples that are mapped into memory.

    `lengths` and `loss_tokens` (n,) int32: tokens, and tokens that carry loss, of each sample;
    `starts` (n,) int64: where its tokens begin in `tokens` and `mask`.
    `fingerprint` is a hash of every token and mask, so it is equal on hosts that hold equal data.
    """

    lengths: NDArray[np.int32]
    loss_tokens: NDArray[np.int32]
    fingerprint: str
    starts: NDArray[np.int64]
    tokens: NDArray[np.int32]
    mask: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.lengths)

    def sample(self, number: int) -> Sample:
        """Return the tokens (T,) of a sample, and which of them carry loss (T,)."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        start = self.starts[number]
        stop = start + self.lengths[number]
        return self.tokens[start:stop], self.mask[start:stop]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A tokenized dataset: two splits, the tokenizer's facts, and what was done to the rows.

    `date`: as `2026-01-31`, where the chat template has written it into the samples.
    `first`: the text of the first sample to train on, in pieces that carry loss or do not.
    """

    train: StoredSplit
    validation: StoredSplit
    tokenizer: TokenizerInfo
    fingerprint: str
    notices: tuple[str, ...]
    first: tuple[Segment, ...]
    date: str | None = None


class StoreWriter:
    """Writes samples to a new folder; complete once its `with` block has ended."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        self._folder = folder
        self._tokens = (folder / "tokens.i32").open("wb")
        self._mask = (folder / "mask.b8").open("wb")
        self._lengths = array("i")
        self._loss_tokens = array("i")
        self._drawn = array("Q")

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def drawn(self) -> NDArray[np.uint64]:
        """The number of each sample (n,)."""
        return np.array(self._drawn, dtype=np.uint64)

    def extend(self, samples: Iterable[StoredSample]) -> None:
        """Append samples."""
        for tokens, mask, drawn in samples:
            self._tokens.write(tokens.astype("<i4").tobytes())
            self._mask.write(mask.tobytes())
            self._lengths.append(len(tokens))
            self._loss_tokens.append(int(np.count_nonzero(mask)))
            self._drawn.append(drawn)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for file in (self._tokens, self._mask):
            file.flush()
            os.fsync(file.fileno())
            file.close()
        for name, numbers in (("lengths", self._lengths), ("loss_tokens", self._loss_tokens)):
            np.save(self._folder / f"{name}.npy", np.array(numbers, dtype=np.int32))


def seal(
    partial: Path,
    folder: Path,
    held: NDArray[np.bool_],
    tokenizer: Tokenizer,
    notices: Iterable[str],
    date: str | None,
) -> None:
    """Write the index of a closed store and rename it to its place.

    Args:
        partial: the folder that was written.
        folder: its place.
        held: which samples (n,) are held out from training.
        tokenizer: spells the first sample to train on.
        notices: what was done to the rows.
        date: what the chat template has written into the samples, if it has.
    """
    np.save(partial / "held.npy", held)
    tokens, mask = _map(partial)
    train, validation = _splits(partial, ("", ""))
    index = {
        "bytes": [tokens.size, mask.size],
        "fingerprints": [_fingerprint(train), _fingerprint(validation)],
        "tokenizer": asdict(tokenizer.info),
        "notices": list(notices),
        "date": date,
        "first": _spell(*train.sample(0), tokenizer),
    }
    with (partial / "index.json").open("w", encoding="utf-8") as file:
        json.dump(index, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def open_store(folder: Path) -> Dataset | None:
    """Map a store; None where there is none, or where its files are not the size they were."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        tokens, mask = _map(folder)
        train, validation = _splits(folder, index["fingerprints"])
    except (OSError, ValueError):
        return None
    whole = int(train.lengths.sum(dtype=np.int64) + validation.lengths.sum(dtype=np.int64))
    if [tokens.size, mask.size] != index["bytes"] or whole != mask.size:
        return None
    facts = index["tokenizer"]
    edges = {name: tuple(facts[name]) for name in ("opening", "closing")}
    tokenizer = TokenizerInfo(**{**facts, **edges})
    names = "\n".join((*index["fingerprints"], tokenizer.fingerprint))
    return Dataset(
        train=train,
        validation=validation,
        tokenizer=tokenizer,
        fingerprint=hashlib.sha256(names.encode()).hexdigest()[:16],
        notices=tuple(index["notices"]),
        first=tuple((str(text), bool(loss)) for text, loss in index["first"]),
        date=index["date"],
    )


def _splits(folder: Path, fingerprints: Sequence[str]) -> tuple[StoredSplit, StoredSplit]:
    """Map the samples to train on, and those that are held out."""
    tokens, mask = _map(folder)
    lengths, loss_tokens, held = (
        np.load(folder / f"{name}.npy") for name in ("lengths", "loss_tokens", "held")
    )
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    train, validation = (
        StoredSplit(lengths[part], loss_tokens[part], fingerprint, starts[part], tokens, mask)
        for part, fingerprint in zip((~held, held), fingerprints, strict=True)
    )
    return train, validation


def _map(folder: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    return (
        np.memmap(folder / "tokens.i32", dtype="<i4", mode="r"),
        np.memmap(folder / "mask.b8", dtype=np.bool_, mode="r"),
    )


def _fingerprint(split: StoredSplit) -> str:
    """Hash the lengths, tokens and masks of a split's samples."""
    digest = hashlib.sha256(split.lengths.astype("<i4").tobytes())
    for tokens, mask in map(split.sample, range(len(split))):
        digest.update(tokens.tobytes())
        digest.update(mask.tobytes())
    return digest.hexdigest()[:16]


def _spell(
    tokens: NDArray[np.int32], mask: NDArray[np.bool_], tokenizer: Tokenizer
) -> list[Segment]:
    """Return a sample's text, cut where its loss begins and ends."""
    edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(mask)]
    return [
        (tokenizer.show(tokens[start:stop].tolist()), bool(mask[start]))
        for start, stop in pairwise(edges)
    ]
