"""One dataset tokenized into a store: which of its splits are read, what is held out, what is said.

The first process of a host that needs it makes it under a file lock; the others wait for the lock
and find it made. No collective is involved, so none can time out.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Generator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from train.config import DataConfig, ModelConfig
from train.data.alpaca import TOLD as ALPACA_TOLD
from train.data.alpaca import WRITTEN
from train.data.blocks import Progress, Recipe, make_blocks
from train.data.chatml import CHATML, END, NONE
from train.data.edges import edge_tokens, sentences
from train.data.parts import Parts
from train.data.render import OWN, NoTemplateError, describe, describe_pairs
from train.data.source import DataSource
from train.data.store import Sealed, Store, StoreWriter, open_store, seal
from train.data.tokenize_rows import Tally
from train.data.tokenizer import Tokenizer
from train.data.tokenizer_folder import settings_told
from train.data.tokenizers import load_tokenizer, today, tokenizer_name
from train.errors import DataError
from train.hosts.probe import code_digest
from train.locking import locked
from train.paths import PACKAGE
from train.text import listed

# What a dataset is for: training and, held out of it, evaluation; or one of them alone.
Use = Literal["both", "train", "evaluate"]
# What is counted of rows, and the sentence that tells of it.
TOLD = {
    "written": "{count} rows hold the chat template's own marks and are joined as they are; the "
    "first: {first}",
    "quoted": "in {count} rows a turn holds the chat template's own marks, which count as such; "
    "the first: {first}",
    "glued": "in {count} rows no white space stands between prompt and completion; the first: "
    "{first}; --chat-template chatml makes turns of them",
    "shortened": "the chat template leaves out or rewrites a part of {count} turns; the first: "
    "{first}",
    "empty": "{count} answers or texts are empty and carry no loss; the first: {first}",
    "missing": "{count} answers say no more than that there is none, as nan or null; the first: "
    "{first}",
    "alike": "in {count} pairs the chosen and the rejected answer are the same, which teaches "
    "nothing; the first: {first}",
    "truncated": "{count} of {rows} samples are longer than --block-size {config.block_size} "
    "tokens and were truncated",
    "unknown": "in {count} of {rows} rows a part of the text has no token in the vocabulary, and "
    "the tokenizer's unknown token stands for it",
    "without loss": "{count} samples without a loss token were left out",
}
KEPT = 14 * 86400  # seconds for which what was interrupted is kept
HELD_OUT = 20  # one sample in twenty is held out where there is no validation split


Making = Generator[Progress, None, Store | None]


def make_once(
    folder: Path, source: DataSource, use: Use, config: DataConfig, model: ModelConfig
) -> Making:
    """Yield progress, and return the store in `folder`, made if this host does not have it yet.

    None: the rows are conversations, and the tokenizer has no template to write them with.

    Raises:
        DataError: the dataset, a row or the tokenizer is wrong.
        OSError: the folder cannot be written.
    """
    with locked(folder.with_suffix(".lock")):
        found = open_store(folder)
        if untemplated(folder).exists():
            return None
        if found is None:
            try:
                yield from _make(folder, source, use, config, model)
            except NoTemplateError:
                untemplated(folder).touch()
                return None
            found = open_store(folder)
    if found is None:
        raise OSError(f"{folder} does not hold what was just written to it")
    return found


def untemplated(folder: Path) -> Path:
    """Return the file that says of a store that it needs another template."""
    return folder.with_suffix(".untemplated")


def _make(
    folder: Path, source: DataSource, use: Use, config: DataConfig, model: ModelConfig
) -> Generator[Progress, None, None]:
    """Tokenize a dataset into `folder`; called under its lock, so leftovers belong to the dead.

    Of these, blocks that are made are taken over.
    """
    date = config.date or today()
    _tidy(folder.parent)
    recipe = Recipe(
        config,
        load_tokenizer(model, date),
        Parts.open(folder.with_suffix(".parts"), (date, code_digest(PACKAGE))),
    )
    splits, said = source.splits()
    read, told = _splits_to_read(splits, source, use)
    tally, blocks, train = Tally(), 0, 0
    try:
        for split in read:
            what = f"{source.name.short}, {split}" if len(read) > 1 else source.name.short
            blocks = yield from make_blocks(splits[split], blocks, what, recipe, tally)
            train = train or tally.counts["samples"]
            _require_samples(train, tally, source, config)
    except (DataError, NoTemplateError):  # other rows are another dataset
        shutil.rmtree(recipe.parts.folder, ignore_errors=True)
        raise
    partial = folder.with_suffix(".partial")
    drawn = _joined(partial, recipe.parts, blocks)
    dated = date if "strftime_now" in recipe.tokenizer.template else None
    paired = config.objective == "dpo"
    form = "" if tally.form is None else describe(tally.form, config.loss_on, tally.how)
    form = describe_pairs(tally.how) if paired else form
    alpaca = tally.counts[WRITTEN] > 0 and not recipe.tokenizer.template
    notices = (*said, form, *_notices(tally, model, recipe, dated), *told)
    notices += (ALPACA_TOLD,) * alpaca
    held = np.arange(len(drawn)) >= (0 if use == "evaluate" else train)
    if use == "both" and not held.any():
        held, validation = _hold_out(drawn, 1 + paired, source, empty="validation" in splits)
        notices += (validation,)
    named = tally.form is not None and tally.form.given
    sealed = Sealed(held, tuple(filter(None, notices)), dated, named, form, alpaca, paired)
    seal(partial, folder, sealed, recipe.tokenizer)
    shutil.rmtree(recipe.parts.folder, ignore_errors=True)


def _joined(folder: Path, parts: Parts, blocks: int) -> NDArray[np.uint64]:
    """Write blocks to a new folder, one behind another; return the numbers drawn (n,)."""
    shutil.rmtree(folder, ignore_errors=True)
    with StoreWriter(folder) as writer:
        for number in range(blocks):
            writer.extend(parts.take(number))
    return writer.drawn


def _tidy(folder: Path) -> None:
    """Clear away blocks of datasets that nobody has gone on with for long."""
    for path in folder.glob("*.parts"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > KEPT:
                shutil.rmtree(path)


def _splits_to_read(
    splits: Mapping[str, object], source: DataSource, use: Use
) -> tuple[list[str], tuple[str, ...]]:
    """Return which splits are read, and what is said of the others.

    Raises:
        DataError: there is nothing to train on.
    """
    unused = ("the test split is not used",) if "test" in splits else ()
    if use == "evaluate":
        chosen = next((s for s in ("validation", "test", "train") if s in splits), "train")
        others = ", ".join(split for split in splits if split != chosen)
        said = f"evaluation is on the {chosen} split, without {others}"
        return [chosen], (said,) if others else ()
    if "train" not in splits:
        raise DataError(
            f"the dataset '{source.name.where}' has no train split, only "
            f"{', '.join(sorted(splits))}: rename one of them, or give --dataset-name-or-path "
            "another dataset"
        )
    if use == "train":
        said = "the validation split is not used, as --eval-dataset-name-or-path is given"
        return ["train"], unused + ((said,) if "validation" in splits else ())
    return [split for split in ("train", "validation") if split in splits], unused


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


def _template_told(model: ModelConfig, tokenizer: Tokenizer, tally: Tally) -> tuple[str, ...]:
    """Say which template is used where it is not the tokenizer's own."""
    if model.chat_template == NONE:
        return ("the tokenizer's chat template is not used, and not saved",)
    if model.chat_template is None:
        return ()
    where = f"that of {model.chat_template}"
    if model.chat_template == CHATML:
        end = edge_tokens(tokenizer)[1] if END not in tokenizer.template else END
        where = f"ChatML, turns ending in {end or END}"
    if not tally.counts[OWN]:
        return (f"no row is written with the chat template, {where}: the saved tokenizer has it",)
    return (f"the chat template is {where}: the saved tokenizer has it",)


def _require_samples(samples: int, tally: Tally, source: DataSource, config: DataConfig) -> None:
    rows, name = tally.counts["rows"], source.name.where
    if not rows:
        raise DataError(f"the dataset '{name}' is empty: give one with at least two rows")
    if not samples:
        reason = "they hold no text of the assistant's"
        if tally.counts["empty"]:
            reason = "their answers are empty"
        if cut := tally.counts["truncated"] > 0:
            reason = f"--block-size is {config.block_size}"
        raise DataError(
            f"none of the {rows} rows of '{name}' gives a sample with a token that carries "
            f"loss ({tally.first_problem or reason}): give other data"
            f"{' or a larger --block-size' * cut}"
        )


def _hold_out(
    drawn: NDArray[np.uint64], each: int, source: DataSource, *, empty: bool
) -> tuple[NDArray[np.bool_], str]:
    """Return which samples (n,) are held out, and a sentence about it: all `each` texts of one.

    A sample's own number decides, so that others do not move it from one side to the other, and
    samples that are alike are on the same side.
    """
    texts, drawn = len(drawn), drawn[::each]
    samples = len(drawn)
    if samples < 2:
        raise DataError(
            f"the dataset '{source.name.where}' gives 1 sample, but 2 are needed: one to train on "
            "and one to evaluate; add a row, or give --eval-dataset-name-or-path"
        )
    held = drawn < np.uint64(2**64 // HELD_OUT)
    if not held.any():
        held = drawn == drawn.min()
    if held.all():
        held = np.arange(samples) == samples - 1
    assert texts == samples * each, "half a pair"
    reason = "the validation split gives no sample" if empty else "there is no validation split"
    return np.repeat(held, each), (
        f"{reason}, so 1 sample in {HELD_OUT}, drawn by its text, is kept for evaluation "
        f"({int(held.sum())} of {samples})"
    )


def _notices(
    tally: Tally, model: ModelConfig, recipe: Recipe, dated: str | None
) -> tuple[str, ...]:
    counts, first = tally.counts, tally.first
    config, tokenizer = recipe.config, recipe.tokenizer
    if tally.form is None:
        return ()
    said = []
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
    if dated and tally.counts[OWN]:
        said.append(f"the chat template writes the date into every sample: it is {dated} there")
    if not tokenizer.info.closing:
        said.append("the tokenizer has no end-of-sequence token, so samples do not end with one")
    folder = Path(tokenizer_name(model)).expanduser()
    said.extend(settings_told(folder, tokenizer, begun=tally.how != OWN))
    return (*said, *_guessed(model, tokenizer), *_template_told(model, tokenizer, tally))
