"""Open a dataset: tokenized once per host, then mapped.

The first process that needs a dataset makes it under a file lock; the others wait for the lock
and find it made. No collective is involved, so none can time out.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from train.config import DataConfig, ModelConfig
from train.data.columns import listed
from train.data.edges import edge_tokens, sentences
from train.data.source import DataSource, find_source
from train.data.store import Dataset, StoreWriter, open_store, seal
from train.data.template import OWN, describe
from train.data.tokenize_rows import Tally, tokenize
from train.data.tokenizer import Tokenizer
from train.data.tokenizers import load_tokenizer, today, tokenizer_key, tokenizer_name
from train.errors import DataError
from train.locking import locked

FORMAT = 4
# What is counted of rows, and the sentence that tells of it.
TOLD = {
    "written": "{count} rows hold the chat template's own marks and are joined as they are; the "
    "first: {first}",
    "quoted": "in {count} rows a turn holds the chat template's own marks, which count as such; "
    "the first: {first}",
    "glued": "in {count} rows no white space stands between prompt and completion; the first: "
    "{first}",
    "shortened": "the chat template leaves out or rewrites a part of {count} turns; the first: "
    "{first}",
    "empty": "{count} answers or texts are empty and carry no loss; the first: {first}",
    "truncated": "{count} of {rows} samples are longer than --block-size {config.block_size} "
    "tokens and were truncated",
    "without loss": "{count} samples without a loss token were left out",
}
HELD_OUT = 20  # one sample in twenty is held out where there is no validation split


def open_dataset(config: DataConfig, model: ModelConfig, cache: Path) -> Dataset:
    """Return the dataset of a run, made first if this host does not have it yet.

    Args:
        config: which rows, and how long a sample may be; the batch size and seed do not matter.
        model: names the tokenizer.
        cache: a folder of this user's, made with mode 0700 if need be.

    Raises:
        DataError: the dataset, a row or the tokenizer is wrong, or the cache cannot be written.
    """
    source = find_source(config.name_or_path)
    settings = (FORMAT, source.key, tokenizer_key(model), model.tokenizer, config.loss_on,
                config.block_size, config.skip_bad_rows, config.columns)  # fmt: skip
    name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:24]
    folder = cache.expanduser() / "datasets" / name
    try:
        found = open_store(folder)
        if found is not None and config.date not in (None, found.date) and found.date is not None:
            # Made on another day than this run began, with that day's date in the samples.
            folder = folder.with_name(f"{name}-{config.date}")
            found = open_store(folder)
        return found if found is not None else _make_once(folder, source, config, model)
    except OSError as error:
        raise DataError(
            f"the cache folder {cache} cannot be used ({error.strerror or error}): free space "
            "there, or make it a folder that this user may write"
        ) from None


def _make_once(folder: Path, source: DataSource, config: DataConfig, model: ModelConfig) -> Dataset:
    with locked(folder.with_suffix(".lock")):
        found = open_store(folder)
        if found is None:
            _make(folder, source, config, model)
            found = open_store(folder)
    if found is None:
        raise OSError(f"{folder} does not hold what was just written to it")
    return found


def _make(folder: Path, source: DataSource, config: DataConfig, model: ModelConfig) -> None:
    """Tokenize a dataset into `folder`; called under its lock, so leftovers belong to the dead."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    date = config.date or today()
    tokenizer = load_tokenizer(model, date)
    splits, said = source.splits()
    if "train" not in splits:
        raise DataError(
            f"the dataset '{source.name}' has no train split, only {', '.join(sorted(splits))}: "
            "rename one of them, or give --dataset-name-or-path another dataset"
        )
    tally = Tally()
    try:
        with StoreWriter(partial) as writer:
            writer.extend(tokenize(splits["train"], config, tokenizer, tally))
            train = len(writer)
            _require_samples(train, tally, source, config)
            if "validation" in splits:
                writer.extend(tokenize(splits["validation"], config, tokenizer, tally))
        dated = date if "strftime_now" in tokenizer.template else None
        notices = (*said, *_notices(tally, config, tokenizer, dated))
        notices += _guessed(model, tokenizer)
        held = np.arange(len(writer)) >= train
        if not held.any():
            held, validation = _hold_out(writer.drawn, source, empty="validation" in splits)
            notices += (validation,)
        if "test" in splits:
            notices += ("the test split is not used",)
        seal(partial, folder, held, tokenizer, notices, dated)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _guessed(model: ModelConfig, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Say which tokens are taken for the first and last where a bare tokenizer.json names none."""
    path = Path(tokenizer_name(model)).expanduser()
    file = path if path.is_file() else path / "tokenizer.json"
    if file.suffix != ".json" or not file.exists():
        return ()
    if path.is_dir() and (path / "tokenizer_config.json").exists():
        return ()
    first, last = edge_tokens(tokenizer)
    return (
        f"the tokenizer does not say which tokens begin and end a text: by their usual names, "
        f"samples begin with {first or 'none'} and end with {last or 'none'}",
    )


def _require_samples(samples: int, tally: Tally, source: DataSource, config: DataConfig) -> None:
    rows = tally.counts["rows"]
    if not rows:
        raise DataError(f"the dataset '{source.name}' is empty: give one with at least two rows")
    if not samples:
        reason = "they hold no text of the assistant's"
        if tally.counts["empty"]:
            reason = "their answers are empty"
        if tally.counts["truncated"]:
            reason = f"--block-size is {config.block_size}"
        raise DataError(
            f"none of the {rows} rows of '{source.name}' gives a sample with a token that carries "
            f"loss ({tally.first_problem or reason}): give other data or a larger --block-size"
        )


def _hold_out(
    drawn: NDArray[np.uint64], source: DataSource, *, empty: bool
) -> tuple[NDArray[np.bool_], str]:
    """Return which samples (n,) are held out, and a sentence about it.

    A sample's own number decides, so that others do not move it from one side to the other, and
    samples that are alike are on the same side.
    """
    samples = len(drawn)
    if samples < 2:
        raise DataError(
            f"the dataset '{source.name}' gives 1 sample, but 2 are needed: one to train on and "
            "one to evaluate; add a row"
        )
    held = drawn < np.uint64(2**64 // HELD_OUT)
    if not held.any():
        held = drawn == drawn.min()
    if held.all():
        held = np.arange(samples) == samples - 1
    reason = "the validation split gives no sample" if empty else "there is no validation split"
    return held, (
        f"{reason}, so 1 sample in {HELD_OUT}, drawn by its text, is kept for evaluation "
        f"({int(held.sum())} of {samples})"
    )


def _notices(
    tally: Tally, config: DataConfig, tokenizer: Tokenizer, dated: str | None
) -> tuple[str, ...]:
    counts, form, first = tally.counts, tally.form, tally.first
    if form is None:
        return ()
    said = [describe(form, config.loss_on, tally.how)]
    if tally.unused:
        said.append(f"columns that are not used: {listed(tally.unused)}")
    said += [
        text.format(count=counts[what], first=first.get(what), rows=counts["rows"], config=config)
        for what, text in TOLD.items()
        if counts[what]
    ]
    if counts["skipped"]:
        said.append(f"{counts['skipped']} bad rows were skipped; the first: {tally.first_problem}")
    said.extend(sentences(counts, tokenizer))
    if dated and tally.how == OWN:
        said.append(f"the chat template writes the date into every sample: it is {dated} there")
    if not tokenizer.info.closing:
        said.append("the tokenizer has no end-of-sequence token, so samples do not end with one")
    return tuple(said)
