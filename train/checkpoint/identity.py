"""What a checkpoint belongs to: what must be equal to go on from it, and what may have changed.

What one optimizer step means must be as it was, or the run is refused; how the step is laid out on
the GPUs, and how far and how fast the run goes, may change, and each change is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.config import ModelConfig
from train.errors import CheckpointError

# What must be equal, with the words for it and what to do about a difference.
RESUME_INVARIANTS = {
    "model": ("model shape", "give the same --model-name-or-path"),
    "config": ("model configuration", "give the same --model-name-or-path"),
    "adapter": ("LoRA shape", "give the same --use-lora, --lora-r and --lora-alpha"),
    "objective": ("objective", "give the same --objective"),
    "base": ("frozen base model", "give the same --model-name-or-path"),
    "block_size": ("block size", "give the same --block-size"),
    "loss_on": ("loss mask", "give the same --loss-on"),
    "tokenizer": ("tokenizer", "give the same --tokenizer"),
    "dataset": ("dataset", "give the same --dataset-name-or-path"),
    "batch_size": ("batch size", "give the same --batch-size"),
    "seed": ("seed", "give the same --seed"),
}
# What changes with others, too: then they are named, and it is not.
IMPLIED_BY = {
    "dataset": ("block_size", "loss_on", "tokenizer", "objective"),
    "config": ("model",),
    "base": ("adapter", "objective"),
}
NEW = (
    "config",
    "objective",
    "evaluation_data",
    "begun_from",
)  # what older checkpoints do not say: it is not compared
# What a config.json says of its file, or of generation, and not of a training step.
NO_MEANING = (
    "_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache",
    "bos_token_id", "eos_token_id", "pad_token_id", "attn_implementation", "_attn_implementation",
)  # fmt: skip


@dataclass(frozen=True)
class RunFingerprint:
    """What a checkpoint says of its run: what must be equal to resume, and what may differ.

    `must_match` has the keys of RESUME_INVARIANTS.
    """

    must_match: Mapping[str, Any]
    may_differ: Mapping[str, Any]


def refuse_other_run(there: RunFingerprint, own: RunFingerprint, folder: Path) -> None:
    """Refuse a checkpoint of a run whose steps mean something else.

    Raises:
        CheckpointError: something that must be equal is not; every difference is named.
    """
    differ = differences(there.must_match, own.must_match)
    if differ:
        remedies = [RESUME_INVARIANTS[name][1] for name in differ]
        raise CheckpointError(
            f"{folder} belongs to a run with another {' and another '.join(differ.values())}: "
            f"{', '.join(remedies)}, or another --run-dir"
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Return what differs of that which must be equal, in words with both values."""
    names = [name for name in RESUME_INVARIANTS if name in old or name not in NEW]
    differ = [name for name in names if _compared(name, old) != _compared(name, new)]
    return {
        name: f"{RESUME_INVARIANTS[name][0]} ({_difference(old.get(name), new.get(name))})"
        for name in differ
        if not set(differ) & set(IMPLIED_BY.get(name, ()))
    }


def _compared(name: str, facts: Mapping[str, Any]) -> Any:
    """Return what counts of a fact: a model's shape is the same wherever the model came from."""
    value = facts.get(name)
    if name == "model" and isinstance(value, Mapping):
        return {key: number for key, number in value.items() if key != "name"}
    return value


def meaning(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model's config.json says of a training step."""
    return {key: value for key, value in config.items() if key not in NO_MEANING}


def adapter_of(config: ModelConfig) -> dict[str, Any] | None:
    """Return what a model's adapter is besides its weights; None: there is none."""
    lora = config.lora
    quantized = {"base in": config.quantize} if config.quantize else {}
    return {"r": lora.r, "alpha": lora.alpha} | quantized if lora else None


def refuse_beyond_end(step: int, total: int, folder: Path) -> None:
    """Refuse a checkpoint from beyond the end of this run.

    Raises:
        CheckpointError: it is.
    """
    if step > total:
        raise CheckpointError(
            f"{folder} is at step {step}, but this run ends after step {total}: raise "
            "--max-steps or --epochs, or give another --run-dir"
        )


def changes(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """Yield what differs between a checkpoint's settings and the run's, the plan left out."""
    for name, value in here.items():
        known = name in there or name not in NEW
        if known and name not in ("ranks", "plan") and there.get(name) != value:
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
