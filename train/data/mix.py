"""Several tokenized datasets as one: what an epoch takes of each, and what evaluates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from train.data.alpaca import alpaca_template
from train.data.order import Mixture
from train.data.store import Sample, Shown, Store, StoredSplit
from train.data.tokenizer import TokenizerInfo
from train.errors import DataError
from train.names import DatasetName

if TYPE_CHECKING:
    from train.data.pairs import PairedSplit


@dataclass(frozen=True, eq=False)
class JoinedSplit:
    """The samples of several sets, numbered one set after another; see `StoredSplit`."""

    parts: tuple[StoredSplit, ...]
    mixture: Mixture

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each sample, (n,)."""
        return np.concatenate([part.lengths for part in self.parts])

    @cached_property
    def loss_tokens(self) -> NDArray[np.int32]:
        """Tokens of each sample that carry loss, (n,)."""
        return np.concatenate([part.loss_tokens for part in self.parts])

    @property
    def drawn(self) -> NDArray[np.uint64]:
        """The number of each sample that its text decides, (n,)."""
        return np.concatenate([part.drawn for part in self.parts])

    @property
    def largest_id(self) -> int:
        """The largest token id of the sets."""
        return max(part.largest_id for part in self.parts)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the sets' own, and of what an epoch takes of each."""
        words = [part.fingerprint for part in self.parts] + [str(self.mixture.counts)]
        return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]

    def sample(self, number: int) -> Sample:
        """Return the tokens (T,) of a sample, and which of them carry loss (T,)."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        for part in self.parts:
            if number < len(part):
                return part.sample(number)
            number -= len(part)
        raise AssertionError(number)


@dataclass(frozen=True, eq=False)
class Dataset:
    """What a run trains on and evaluates on, and what is to be said of it.

    `date`: as `2026-01-31`, where a chat template has written it into samples. `fingerprint` is of
    both splits and the tokenizer. `shown`: samples for people to look at. `template`: the value of
    --chat-template that was needed, where none was given and the tokenizer has none. `forms`: how
    the rows of each dataset are read and written, in sentences; `chat_template`: the text of one
    that writes so, where the tokenizer has none and no other is used.
    """

    train: StoredSplit | JoinedSplit | PairedSplit
    validation: StoredSplit | JoinedSplit | PairedSplit
    tokenizer: TokenizerInfo
    fingerprint: str
    notices: tuple[str, ...]
    shown: tuple[Shown, ...]
    date: str | None = None
    template: str | None = None
    forms: tuple[str, ...] = ()
    chat_template: str | None = None


def mixed(
    names: Sequence[DatasetName],
    stores: Sequence[Store],
    held_names: Sequence[DatasetName] = (),
    held: Sequence[Store] = (),
) -> Dataset:
    """Put datasets together: `names` and `stores` to train on, `held` to evaluate on.

    Where `held` is empty, the validation splits of the others evaluate, each sample once.

    Raises:
        DataError: a weight is too small for its dataset.
    """
    counts = tuple(map(_count, names, stores))
    evaluated = [store.validation for store in held or stores if len(store.validation)]
    train = _joined([store.train for store in stores], counts)
    validation = _joined(evaluated, tuple(map(len, evaluated)))
    several = len(stores) + len(held) > 1
    prefixes = [f"{name.short}: " if several else "" for name in (*names, *held_names)]
    notices = [
        f"{prefix}{notice}"
        for prefix, store in zip(prefixes, (*stores, *held), strict=True)
        for notice in store.notices
    ]
    tokenizer = stores[0].tokenizer
    if counts != tuple(len(store.train) for store in stores) or len(stores) > 1:
        notices.append(_epoch(names, stores, counts))
    notices += _seen(train, validation)
    words = (train.fingerprint, validation.fingerprint, tokenizer.fingerprint)
    return Dataset(
        train=train,
        validation=validation,
        tokenizer=tokenizer,
        fingerprint=hashlib.sha256("\n".join(words).encode()).hexdigest()[:16],
        notices=tuple(notices),
        shown=tuple(
            replace(one, title=f"{one.title} of {name.short}" if len(stores) > 1 else one.title)
            for name, store in zip(names, stores, strict=True)
            for one in store.shown[: 2 if len(stores) == 1 else 1]
        ),
        date=next((store.date for store in (*stores, *held) if store.date), None),
        forms=tuple(
            f"{prefix}{store.form}" for prefix, store in zip(prefixes, stores, strict=False)
        ),
        chat_template=alpaca_template(tokenizer) if any(s.alpaca for s in stores) else None,
    )


def lengths_taken(split: StoredSplit | JoinedSplit | PairedSplit) -> tuple[dict[int, float], float]:
    """Return how many samples of each length an epoch takes of a split, and which share of their
    tokens carries loss.
    """
    sizes, counts = split.mixture.sizes, split.mixture.counts
    taken = np.repeat(np.divide(counts, sizes), sizes)  # how often each
    lengths, places = np.unique(split.lengths, return_inverse=True)
    found = dict(zip(lengths.tolist(), np.bincount(places, taken).tolist(), strict=True))
    return found, float(split.loss_tokens @ taken) / float(split.lengths @ taken)


def _joined(parts: Sequence[StoredSplit], counts: tuple[int, ...]) -> StoredSplit | JoinedSplit:
    if len(parts) == 1 and counts == (len(parts[0]),):
        return parts[0]
    return JoinedSplit(tuple(parts), Mixture(tuple(map(len, parts)), counts))


def _count(name: DatasetName, store: Store) -> int:
    count = round(name.weight * len(store.train))
    if count == 0:
        raise DataError(
            f"the weight {name.weight:g} of '{name.where}' leaves nothing of its "
            f"{len(store.train)} samples: give a larger one, or leave the dataset out"
        )
    return count


def _seen(train: StoredSplit | JoinedSplit, validation: StoredSplit | JoinedSplit) -> Iterator[str]:
    """Say where texts to evaluate on are trained on, too, as where one file is given for both."""
    ordered, sought = np.sort(train.drawn), validation.drawn  # np.isin takes ten times as long
    seen = int((ordered[np.searchsorted(ordered, sought) % len(ordered)] == sought).sum())
    if seen:
        yield (
            f"{seen} of the {len(validation)} texts to evaluate on are trained on as well: on "
            "these the loss does not tell what the model makes of others"
        )


def _epoch(names: Sequence[DatasetName], stores: Sequence[Store], counts: Sequence[int]) -> str:
    """Say what an epoch is."""
    parts = [
        f"{count} of {name.short} (weight {name.weight:g}, {len(store.train)} samples)"
        for name, store, count in zip(names, stores, counts, strict=True)
    ]
    return f"an epoch takes {' and '.join(parts)}: {sum(counts)} in all"
