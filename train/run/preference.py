"""What pairs of answers are measured against: the model as it is at the start of the whole run."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from train.data.feed import Placement
from train.data.mix import Dataset
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
    place, model = placement(inputs, data, planned, engine), inputs.config.model
    base = engine.gang.from_main(lambda: weights_fingerprint(inputs.model))
    found = []
    for split in (data.train, data.validation):
        assert isinstance(split, PairedSplit)
        words = (base, split.fingerprint, model.precision, model.quantize or "")
        name = hashlib.sha256("\n".join(words).encode()).hexdigest()[:24]
        file = cache / "datasets" / f"{name}.reference.npy"
        reference = _kept(engine, split, file, inputs.config.data.batch_size, place, console)
        found.append(replace(split, reference=reference))
    return replace(data, train=found[0], validation=found[1])


def _kept(
    engine: Engine,
    split: PairedSplit,
    file: Path,
    batch: int,
    place: Placement,
    console: Console,
) -> NDArray[np.float64]:
    """Return the reference of a split, read from the file or made; equal on all ranks."""

    def read() -> NDArray[np.float64] | None:
        try:
            stored: NDArray[np.float64] = np.load(file, allow_pickle=False)
        except (OSError, ValueError):
            return None
        return stored if stored.shape == (len(split),) else None

    known = engine.gang.from_main(read)
    if known is not None:
        return known
    console.say(
        f"The model at the start is asked how likely {len(split)} pairs are, once: a forward pass "
        "over them"
    )
    made = margins(engine, split, batch, place)

    def write() -> None:
        partial = file.with_suffix(".partial.npy")
        np.save(partial, made)
        partial.replace(file)

    engine.gang.on_main(write)
    return made
