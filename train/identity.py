"""What a checkpoint belongs to: what must be equal to go on from it, and what may have changed.

What one optimizer step means must be as it was, or the run is refused; how the step is laid out on
the GPUs, and how far and how fast the run goes, may change, and each change is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from train.checkpoints import Facts, Index
from train.data.store import Dataset
from train.engine.weights import fingerprint
from train.errors import CheckpointError
from train.hops import Source
from train.planning.plan import Plan

# What must be equal, with the words for it and what to do about a difference.
MUST = {
    "model": ("model shape", "give the same --model-name-or-path"),
    "adapter": ("LoRA shape", "give the same --use-lora, --lora-r and --lora-alpha"),
    "base": ("frozen base model", "give the same --model-name-or-path"),
    "block_size": ("block size", "give the same --block-size"),
    "loss_on": ("loss mask", "give the same --loss-on"),
    "tokenizer": ("tokeniser", "give the same --tokenizer"),
    "dataset": ("dataset", "give the same --dataset-name-or-path"),
    "batch_size": ("batch size", "give the same --batch-size"),
    "seed": ("seed", "give the same --seed"),
}
FOLLOWS = {"dataset": ("block_size", "loss_on", "tokenizer")}  # what changes a fingerprint, too


def facts(source: Source, data: Dataset, plan: Plan, world_size: int) -> Facts:
    """Say what a checkpoint of this run belongs to, and on which terms it is made."""
    config = source.config
    lora, sizes, optimizer = config.model.lora, config.data, config.optimizer
    identity = {
        "model": asdict(source.shape),
        "adapter": {"r": lora.r, "alpha": lora.alpha} if lora else None,
        "base": fingerprint(source.model) if lora else None,
        "block_size": sizes.block_size,
        "loss_on": sizes.loss_on,
        "tokenizer": data.tokenizer.fingerprint,
        "dataset": data.train.fingerprint,
        "batch_size": sizes.batch_size,
        "seed": sizes.seed,
    }
    terms = {
        "ranks": world_size,
        "plan": plan.to_json(),
        "precision": config.model.precision,
        "lora_dropout": lora.dropout if lora else None,
        "epochs": config.epochs,
        "max_steps": config.max_steps,
        **asdict(optimizer),
    }
    return Facts(identity, terms)


def refuse_other(index: Index, own: Facts, folder: Path) -> None:
    """Refuse a checkpoint of a run whose steps mean something else.

    Raises:
        CheckpointError: something that must be equal is not; every difference is named.
    """
    differ = {name for name in MUST if index.identity.get(name) != own.identity[name]}
    differ -= {name for name, causes in FOLLOWS.items() if differ & set(causes)}
    if differ:
        named = [name for name in MUST if name in differ]
        texts = [
            f"{MUST[name][0]} ({_difference(index.identity.get(name), own.identity[name])})"
            for name in named
        ]
        raise CheckpointError(
            f"{folder} belongs to a run with another {' and another '.join(texts)}: "
            f"{', '.join(MUST[name][1] for name in named)}, or another --run-dir"
        )


def refuse_later(index: Index, total: int, folder: Path) -> None:
    """Refuse a checkpoint from beyond the end of this run.

    Raises:
        CheckpointError: it is.
    """
    if index.step > total:
        raise CheckpointError(
            f"{folder} is at step {index.step}, but this run ends after step {total}: raise "
            "--max-steps or --epochs, or give another --run-dir"
        )


def changes(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """Yield what differs between the terms of a checkpoint and those of the run, but the plan."""
    for name, value in here.items():
        if name not in ("ranks", "plan") and there.get(name) != value:
            yield f"{name.replace('_', ' ')} was {_word(there.get(name))}, is {_word(value)}"


def _difference(there: Any, here: Any) -> str:
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
        return ", ".join(f"{key} {there.get(key)}, now {here.get(key)}" for key in keys)
    return f"{_word(there)}, now {_word(here)}"


def _word(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key} {item}" for key, item in value.items())
    return "none" if value is None else str(value)
