"""Tokenized samples on disk: written once, then only mapped into memory.

A folder holds the samples of both splits one after another: tokens.i32 and mask.b8 (flat),
lengths.npy and loss_tokens.npy (one number per sample), index.json (everything else). It is
written under another name and renamed when it is whole, so a folder that exists is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from train.data.tokenizer import TokenizerInfo

Sample = tuple[NDArray[np.int32], NDArray[np.bool_]]
HASHED = 1 << 24  # tokens that are hashed at a time


@dataclass(frozen=True, eq=False)
class StoredSplit:
    """Samples that are mapped into memory.

    `lengths` and `loss_tokens` (n,) int32: tokens, and tokens that carry loss, of each sample.
    `fingerprint` is a hash of every token and mask, so it is equal on hosts that hold equal data.
    """

    lengths: NDArray[np.int32]
    loss_tokens: NDArray[np.int32]
    fingerprint: str
    offsets: NDArray[np.int64]
    tokens: NDArray[np.int32]
    mask: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.lengths)

    def sample(self, number: int) -> Sample:
        """Return the tokens (T,) of a sample, and which of them carry loss (T,)."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        start, stop = self.offsets[number], self.offsets[number + 1]
        return self.tokens[start:stop], self.mask[start:stop]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A tokenized dataset: two splits, the tokenizer's facts, and what was done to the rows.

    `date`: as `2026-01-31`, where the chat template has written it into the samples.
    """

    train: StoredSplit
    validation: StoredSplit
    tokenizer: TokenizerInfo
    fingerprint: str
    notices: tuple[str, ...]
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

    def __len__(self) -> int:
        return len(self._lengths)

    def extend(self, samples: Iterable[Sample]) -> None:
        """Append samples."""
        for tokens, mask in samples:
            self._tokens.write(tokens.astype("<i4").tobytes())
            self._mask.write(mask.tobytes())
            self._lengths.append(len(tokens))
            self._loss_tokens.append(int(np.count_nonzero(mask)))

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
    train: int,
    tokenizer: TokenizerInfo,
    notices: Iterable[str],
    date: str | None,
) -> None:
    """Write the index of a closed store, whose first `train` samples are for training, and rename
    it to its place.
    """
    whole = _map(partial)
    ends = [whole[0].size, whole[1].size]
    index = {
        "train": train,
        "bytes": ends,
        "fingerprints": [_fingerprint(partial, 0, train), _fingerprint(partial, train, None)],
        "tokenizer": asdict(tokenizer),
        "notices": list(notices),
        "date": date,
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
        lengths, loss_tokens = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("lengths", "loss_tokens")
        )
    except (OSError, ValueError):
        return None
    if [tokens.size, mask.size] != index["bytes"] or int(lengths.sum(dtype=np.int64)) != mask.size:
        return None
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    cut = int(index["train"])
    parts = (slice(0, cut), slice(cut, len(lengths)))
    splits = [
        StoredSplit(
            np.asarray(lengths[part]),
            np.asarray(loss_tokens[part]),
            fingerprint,
            offsets[part.start : part.stop + 1],
            tokens,
            mask,
        )
        for part, fingerprint in zip(parts, index["fingerprints"], strict=True)
    ]
    facts = index["tokenizer"]
    edges = {name: tuple(facts[name]) for name in ("opening", "closing")}
    tokenizer = TokenizerInfo(**{**facts, **edges})
    names = "\n".join((*index["fingerprints"], tokenizer.fingerprint))
    return Dataset(
        train=splits[0],
        validation=splits[1],
        tokenizer=tokenizer,
        fingerprint=hashlib.sha256(names.encode()).hexdigest()[:16],
        notices=tuple(index["notices"]),
        date=index["date"],
    )


def _map(folder: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    return (
        np.memmap(folder / "tokens.i32", dtype="<i4", mode="r"),
        np.memmap(folder / "mask.b8", dtype=np.bool_, mode="r"),
    )


def _fingerprint(folder: Path, start: int, stop: int | None) -> str:
    """Hash the lengths, tokens and masks of the samples start..stop-1."""
    tokens, mask = _map(folder)
    lengths = np.load(folder / "lengths.npy")
    first, last = int(lengths[:start].sum()), int(lengths[:stop].sum())
    digest = hashlib.sha256(lengths[start:stop].astype("<i4").tobytes())
    for at in range(first, last, HASHED):
        digest.update(tokens[at : min(at + HASHED, last)].tobytes())
        digest.update(mask[at : min(at + HASHED, last)].tobytes())
    return digest.hexdigest()[:16]
