"""What pairs of answers are measured against: the model as it is at the start of the whole run."""

from __future__ import annotations

import hashlib
import json
import secrets
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from train.checkpoint.identity import meaning
from train.data.feed import Placement
from train.data.mix import Dataset
from train.data.model_folder import read_model_config
from train.data.pairs import PairedSplit
from train.engine.preference import margins
from train.engine.step import Engine
from train.engine.weights import weights_fingerprint
from train.output.console import Console
from train.run.inputs import RunInputs
from train.run.planning import PlannedRun
from train.run.session import placement


def refer(
    engine: Engine,
    inputs: RunInputs,
    data: Dataset,
    planned: PlannedRun,
    cache: Path,
    console: Console,
) -> Dataset:
    """Return the dataset with what the model at the start makes of its pairs; others as they are.

    It is computed once, by all ranks, before any checkpoint is loaded, and kept in the cache folder
    beside the data for runs that go on.
    """
    if inputs.config.data.objective == "sft":
        return data
    place = placement(inputs, data, planned, engine)
    model = engine.gang.from_main(partial(referee, inputs))
    found = []
    for split in (data.train, data.validation):
        assert isinstance(split, PairedSplit)
        name = hashlib.sha256(f"{model}\n{split.fingerprint}".encode()).hexdigest()[:24]
        file = cache / "datasets" / f"{name}.reference.npy"
        reference = _reference(engine, split, file, inputs.config.data.batch_size, place, console)
        found.append(replace(split, reference=reference))
    return replace(data, train=found[0], validation=found[1])


def referee(inputs: RunInputs) -> str:
    """Name the model that is asked: a hash of all that its answer depends on besides the tokens.

    The longest sample that there may be decides on the rotations of some models.
    """
    model, folder = inputs.config.model, inputs.model
    own_code = sorted(folder.glob("*.py")) if model.trust_remote_code else []
    words = (
        weights_fingerprint(folder),
        json.dumps(meaning(read_model_config(folder)), sort_keys=True),
        model.precision,
        model.quantize or "",
        str(inputs.config.data.block_size),
        *(path.read_text(encoding="utf-8") for path in own_code),
    )
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def _reference(
    engine: Engine,
    split: PairedSplit,
    file: Path,
    batch: int,
    place: Placement,
    console: Console,
) -> NDArray[np.float64]:
    """Return the reference of a split, read from the file or made; equal on all ranks."""
    known = engine.gang.from_main(lambda: stored(file, len(split)))
    if known is not None:
        return known
    console.say(
        f"The model at the start is asked how likely {len(split)} pairs are, once: a forward pass "
        "over them"
    )
    made = margins(engine, split, batch, place)
    if told := engine.gang.from_main(lambda: keep(file, made)):
        console.say(told)
    return made


def stored(file: Path, pairs: int) -> NDArray[np.float64] | None:
    """Return what was kept for so many pairs; None: there is nothing, or it is damaged."""
    try:
        with file.open("rb") as opened:
            found: NDArray[np.float64] = np.lib.format.read_array(opened)  # type: ignore[no-untyped-call]
    except (OSError, ValueError):
        return None
    return found if found.shape == (pairs,) and found.dtype == np.float64 else None


def keep(file: Path, found: NDArray[np.float64]) -> str:
    """Keep it for other starts, under its name only when it is whole: others may do the same.

    Returns:
        A sentence, where it cannot be kept.
    """
    draft = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    try:
        with draft.open("wb") as opened:
            np.save(opened, found)
        draft.replace(file)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        return (
            f"What it found cannot be kept in {file.parent} ({error.strerror or error}), so the "
            "next start asks it again"
        )
    return ""
