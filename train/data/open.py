"""Open what a run trains and evaluates on: tokenized once per host, then mapped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

from train.config import DataConfig, ModelConfig
from train.data.blocks import Progress
from train.data.chatml import CHATML, NONE
from train.data.make import Making, Use, make_once, untemplated
from train.data.mix import Dataset, mixed
from train.data.pairs import as_pairs
from train.data.source import find_source
from train.data.store import Store, open_store
from train.data.tokenizers import tokenizer_key
from train.errors import DataError
from train.names import DatasetName
from train.paths import unusable
from train.text import listed

FORMAT = 9
Opening = Generator[Progress, None, Dataset]
UNTEMPLATED = "the tokenizer has no chat template, so conversations are written in ChatML"


def open_dataset(config: DataConfig, model: ModelConfig, cache: Path) -> Dataset:
    """Return the dataset of a run, made first if this host does not have it yet: see `opening`."""
    steps = opening(config, model, cache)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: Dataset = end.value
            return found


def opening(config: DataConfig, model: ModelConfig, cache: Path) -> Opening:
    """Yield how far the dataset of a run is made, where this host does not have it yet; return it.

    Args:
        config: which rows, and how long a sample may be; the batch size and seed do not matter.
        model: names the tokenizer.
        cache: a folder of this user's, made with mode 0700 if need be.

    Raises:
        UserError: a dataset, a row or the tokenizer is wrong, or the cache cannot be written.
    """
    names, held_names = config.names, config.eval_names
    if not names:
        raise DataError("no dataset is named: give --dataset-name-or-path")
    train: Use = "train" if held_names else "both"
    uses: list[tuple[DatasetName, Use]] = [(name, train) for name in names]
    uses += [(name, "evaluate") for name in held_names]
    stores: list[Store] = []
    for name, use in uses:
        store = yield from _open_one(name, use, config, model, cache)
        if store is None and model.chat_template == NONE:
            raise DataError(
                f"the rows of '{name.where}' are conversations, which --chat-template none cannot "
                "write: give another, or leave it out"
            )
        if store is None:  # conversations, and no template
            with_template = replace(model, chat_template=CHATML)
            found = yield from opening(config, with_template, cache)
            return replace(found, template=CHATML, notices=(UNTEMPLATED, *found.notices))
        stores.append(store)
        config = replace(config, date=config.date or store.date)  # one for all, whenever made
    told = _require_columns([name for name, _ in uses], stores, config)
    found = mixed(names, stores[: len(names)], held_names, stores[len(names) :])
    found = replace(found, notices=(*told, *found.notices))
    return as_pairs(found) if config.objective == "dpo" else found


def _open_one(
    name: DatasetName, use: Use, config: DataConfig, model: ModelConfig, cache: Path
) -> Making:
    source = find_source(name, cache.expanduser())
    settings = (FORMAT, source.key, tokenizer_key(model), model.tokenizer, config.loss_on,
                config.block_size, config.skip_bad_rows, config.columns, config.several,
                use, *([config.objective] * (config.objective != "sft")))  # fmt: skip
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:24]
    folder = cache.expanduser() / "datasets" / digest
    try:
        found = open_store(folder)
        if found is not None and config.date not in (None, found.date) and found.date is not None:
            # Made on another day than this run began, with that day's date in the samples.
            folder = folder.with_name(f"{digest}-{config.date}")
            found = open_store(folder)
        if untemplated(folder).exists():
            return None
        if found is None:
            found = yield from make_once(folder, source, use, config, model)
        return found
    except OSError as error:
        raise unusable(cache, error) from None


def _require_columns(
    names: Sequence[DatasetName], stores: Sequence[Store], config: DataConfig
) -> tuple[str, ...]:
    """Refuse --columns of several datasets that none of them has; name those that have none."""
    if config.columns and not any(store.named for store in stores):
        raise DataError(
            f"--columns names {listed([column for _, column in config.columns])}, which none of "
            f"{listed([name.short for name in names])} has: name columns of one of them"
        )
    without = [name.short for name, store in zip(names, stores, strict=True) if not store.named]
    if not (config.columns and without):
        return ()
    return (f"--columns is not used for {listed(without)}, which has none of these columns",)
