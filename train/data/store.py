"""Tokenized samples on disk: written once, then only mapped into memory.

A folder holds the samples of both splits, as they were read: tokens.i32 and mask.b8 (flat),
lengths.npy, loss_tokens.npy, drawn.npy and held.npy (one number per sample), index.json (everything
else). It is written under another name and renamed when it is whole, so a folder that exists is
complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from train.data.order import Mixture
from train.data.tokenizer import Segment, Tokenizer, TokenizerInfo

Sample = tuple[NDArray[np.int32], NDArray[np.bool_]]


@dataclass(frozen=True)
class Part:
    """Samples, one behind another: `tokens` as little-endian int32 and `mask` as bytes of 0 and 1.

    Of each sample: `lengths` and `loss_tokens`, and a number of 0..2**64-1 that is drawn by its
    text.
    """

    tokens: bytes
    mask: bytes
    lengths: array[int]
    loss_tokens: array[int]
    drawn: array[int]

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True, eq=False)
class StoredSplit:
    """Samples that are mapped into memory.

    `lengths` and `loss_tokens` (n,) int32: tokens, and tokens that carry loss, of each sample;
    `starts` (n,) int64: where its tokens begin in `tokens` and `mask`;
    `drawn` (n,) uint64: a number that its text alone decides.
    `fingerprint` is a hash of every token and mask, so it is equal on hosts that hold equal data.
    """

    lengths: NDArray[np.int32]
    loss_tokens: NDArray[np.int32]
    fingerprint: str
    starts: NDArray[np.int64]
    tokens: NDArray[np.int32]
    mask: NDArray[np.bool_]
    drawn: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def largest_id(self) -> int:
        """The largest token id of the store, 0 where it is empty."""
        return int(self.tokens.max(initial=0))

    @property
    def mixture(self) -> Mixture:
        """One set, of which an epoch takes each sample once."""
        return Mixture((len(self),), (len(self),))

    def sample(self, number: int) -> Sample:
        """Return the tokens (T,) of a sample, and which of them carry loss (T,)."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        start = self.starts[number]
        stop = start + self.lengths[number]
        return self.tokens[start:stop], self.mask[start:stop]


@dataclass(frozen=True)
class Shown:
    """A sample for people: what it is, and its text in pieces that carry loss or do not."""

    title: str
    pieces: tuple[Segment, ...]


@dataclass(frozen=True, eq=False)
class Store:
    """A tokenized dataset: two splits, the tokenizer's facts, and what was done to the rows.

    `date`: as `2026-01-31`, where the chat template has written it into the samples.
    `shown`: two samples to train on. `named`: whether rows were read by `--columns`. `form`: how
    rows are read and written, in a sentence; `alpaca`: whether by the alpaca template, in place of
    one of the tokenizer's.
    """

    train: StoredSplit
    validation: StoredSplit
    tokenizer: TokenizerInfo
    notices: tuple[str, ...]
    shown: tuple[Shown, ...]
    date: str | None
    named: bool
    form: str
    alpaca: bool


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

    def extend(self, part: Part) -> None:
        """Append samples."""
        self._tokens.write(part.tokens)
        self._mask.write(part.mask)
        self._lengths.extend(part.lengths)
        self._loss_tokens.extend(part.loss_tokens)
        self._drawn.extend(part.drawn)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for file in (self._tokens, self._mask):
            file.flush()
            os.fsync(file.fileno())
            file.close()
        for name, numbers in (("lengths", self._lengths), ("loss_tokens", self._loss_tokens)):
            np.save(self._folder / f"{name}.npy", np.array(numbers, dtype=np.int32))
        np.save(self._folder / "drawn.npy", self.drawn)


@dataclass(frozen=True)
class Sealed:
    """What a store says of itself beside its samples.

    `held`: which samples (n,) are held out from training; `notices`: what was done to the rows;
    `paired`: two samples behind one another are a pair; the others as of a `Store`.
    """

    held: NDArray[np.bool_]
    notices: tuple[str, ...]
    date: str | None
    named: bool
    form: str
    alpaca: bool
    paired: bool = False


def seal(partial: Path, folder: Path, sealed: Sealed, tokenizer: Tokenizer) -> None:
    """Write the index of a closed store in `partial` and rename that to its place."""
    np.save(partial / "held.npy", sealed.held)
    tokens, mask = _map(partial)
    train, validation = _splits(partial, ("", ""))
    fingerprints = [_fingerprint(train), _fingerprint(validation)]
    index = {
        "bytes": [tokens.size, mask.size],
        "fingerprints": fingerprints,
        "tokenizer": asdict(tokenizer.info),
        "notices": list(sealed.notices),
        "date": sealed.date,
        "named": sealed.named,
        "form": sealed.form,
        "alpaca": sealed.alpaca,
        "shown": [
            (title, _spell(*train.sample(number), tokenizer))
            for title, number in _samples_to_show(len(train), fingerprints[0], paired=sealed.paired)
        ],
    }
    with (partial / "index.json").open("w", encoding="utf-8") as file:
        json.dump(index, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _samples_to_show(samples: int, fingerprint: str, *, paired: bool) -> list[tuple[str, int]]:
    """Return the first sample and one by chance, the same at every start; or the first pair."""
    if not samples:
        return []
    if paired:
        names = enumerate(("chosen", "rejected"))
        answers = [(f"The {name} answer of the first pair", number) for number, name in names]
        return answers[:samples]
    number = 1 + int(fingerprint, 16) % max(1, samples - 1)
    shown = [("The first sample", 0), (f"Sample {number + 1} of {samples}, by chance", number)]
    return shown[:samples]


def open_store(folder: Path) -> Store | None:
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
    return Store(
        train=train,
        validation=validation,
        tokenizer=TokenizerInfo(**{**facts, **edges}),
        notices=tuple(index["notices"]),
        shown=tuple(
            Shown(title, tuple((str(text), bool(loss)) for text, loss in pieces))
            for title, pieces in index["shown"]
        ),
        date=index["date"],
        named=index["named"],
        form=index["form"],
        alpaca=index["alpaca"],
    )


def _splits(folder: Path, fingerprints: Sequence[str]) -> tuple[StoredSplit, StoredSplit]:
    """Map the samples to train on, and those that are held out."""
    tokens, mask = _map(folder)
    lengths, loss_tokens, drawn, held = (
        np.load(folder / f"{name}.npy") for name in ("lengths", "loss_tokens", "drawn", "held")
    )
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    train, validation = (
        StoredSplit(
            lengths[part], loss_tokens[part], fingerprint, starts[part], tokens, mask, drawn[part]
        )
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
    # Bytes are cut out here, since a call of `sample` takes longer than hashing what it returns.
    tokens, mask = (part.view(np.uint8).data for part in (split.tokens, split.mask))
    ends = split.starts + split.lengths
    for start, end in zip(split.starts.tolist(), ends.tolist(), strict=True):
        digest.update(tokens[4 * start : 4 * end])
        digest.update(mask[start:end])
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
