"""What a ds_config states and the run's arguments say: compared with them, never handed on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from train.config import OptimizerConfig, RunConfig

_MICRO, _ACCUMULATED = "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"
_SCHEDULER = "scheduler.params."

# The argument that says it, and its value in a run.
_CLAIMS: Mapping[str, tuple[str, Callable[[RunConfig], Any]]] = {
    "train_batch_size": ("--batch-size", lambda run: run.data.batch_size),
    "gradient_clipping": ("--max-grad-norm", lambda run: run.optimizer.max_grad_norm),
    "optimizer.params.lr": ("--lr", lambda run: run.optimizer.lr),
    "optimizer.params.weight_decay": ("--weight-decay", lambda run: run.optimizer.weight_decay),
    "scheduler.params.warmup_max_lr": ("--lr", lambda run: run.optimizer.lr),
    "scheduler.params.warmup_num_steps": ("--warmup-steps", lambda run: _warmup(run.optimizer)),
    "scheduler.params.total_num_steps": ("--max-steps", lambda run: run.max_steps),
}
# What no argument changes.
_FIXED: Mapping[str, Any] = {
    "optimizer.params.betas": [0.9, 0.999],
    "optimizer.params.eps": 1e-8,
    "optimizer.params.bias_correction": True,
    "optimizer.params.adam_w_mode": True,
    "optimizer.params.amsgrad": False,
    "scheduler.params.warmup_min_lr": 0,
    "scheduler.params.warmup_type": "linear",
    "scheduler.params.warmup_min_ratio": 0,
    "scheduler.params.cos_min_ratio": 0,
    "scheduler.params.last_batch_iteration": -1,
}
# In a run of that precision.
_FP16: Mapping[str, Any] = {
    "fp16.loss_scale": 0,  # dynamic
    "fp16.auto_cast": False,
    "fp16.fp16_master_weights_and_grads": False,
}
# How a dynamic scale moves, which changes no step: one that overflows is made again. Hysteresis is
# left out, since it only puts off what is done anyway.
_SCALE = {"fp16.initial_scale_power": 16, "fp16.loss_scale_window": 1000, "fp16.min_loss_scale": 1}
_SCHEDULES = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
# What DeepSpeed's schedules take where nothing is written: runtime/lr_schedules.py.
_UNWRITTEN = {"warmup_num_steps": "1000", "warmup_type": "log", "cos_min_ratio": "0.0001"}
_ADAM_W = ("adamw", "adam")  # DeepSpeed's Adam decays as AdamW does, unless adam_w_mode is false


def _warmup(config: OptimizerConfig) -> int | None:
    """Return the warm-up's steps; None: it is a share of a run whose length no ds_config knows."""
    return config.warmup_steps if config.warmup_ratio is None else None


def differences(stated: Mapping[str, Any], left: Sequence[str], run: RunConfig) -> list[str]:
    """Return what contradicts the run, each as the second half of a sentence with what to give.

    Args:
        stated: values by their names, as `optimizer.params.lr`.
        left: names of values that are left to the run.
    """
    found = [_difference(name, value, run) for name, value in stated.items()]
    found += [_schedule(stated, left, run), _batch(stated)]
    return [words for words in found if words]


def not_used(stated: Mapping[str, Any], run: RunConfig) -> list[str]:
    """Return the names of numbers that are the run's or the plan's, and that no step depends on."""
    half = run.model.precision == "fp16"
    scale = [name for name, own in _SCALE.items() if half and stated.get(name, own) != own]
    return scale + [name for name in (_MICRO, _ACCUMULATED) if name in stated]


def unwritten(stated: Mapping[str, Any], left: Sequence[str], run: RunConfig) -> list[str]:
    """Return what a schedule's missing numbers are in a run, where DeepSpeed's own are others."""
    kind, warmup = stated.get("scheduler.type"), _warmup(run.optimizer)
    if kind not in _SCHEDULES:
        return []
    own = {"warmup_type": "linear"}
    own |= {} if warmup is None else {"warmup_num_steps": str(warmup)}
    own |= {"cos_min_ratio": "0"} if kind == "WarmupCosineLR" else {}
    missing = [name for name in own if not {_SCHEDULER + name} & {*stated, *left}]
    return [f"{name} is {own[name]}, not DeepSpeed's {_UNWRITTEN[name]}" for name in missing]


def _difference(name: str, value: Any, run: RunConfig) -> str:
    shown = json.dumps(value)
    if name in _CLAIMS:
        argument, read = _CLAIMS[name]
        own = read(run)
        if not isinstance(value, int | float):
            return f"sets '{name}' to {shown}, but it must be a number: give {argument} instead"
        if value == own:
            return ""
        is_own = "not given" if own is None else f"{own:g}"
        return (
            f"sets '{name}' to {shown}, but {argument} is {is_own}: give {argument} {shown}, or "
            "leave it out"
        )
    if name in ("fp16.enabled", "bf16.enabled"):
        precision = name.partition(".")[0]
        if value is (run.model.precision == precision):
            return ""
        if not isinstance(value, bool):
            return f"sets '{name}' to {shown}, but it must be true or false"
        return (
            f"sets '{name}' to {shown}, but --precision is {run.model.precision}: "
            f"{f'give --precision {precision}' if value else 'change --precision'}, or leave it out"
        )
    if name == "optimizer.type":
        known = str(value).lower() in _ADAM_W
        return "" if known else f"sets '{name}' to {shown}: the optimizer is AdamW; leave it out"
    fixed = {**_FIXED, **(_FP16 if run.model.precision == "fp16" else {})}
    if name in fixed and value != fixed[name]:
        return (
            f"sets '{name}' to {shown}: it is {json.dumps(fixed[name])} in every run; leave it out"
        )
    return ""


def _schedule(stated: Mapping[str, Any], left: Sequence[str], run: RunConfig) -> str:
    """Compare the kind of schedule, unless all of its numbers are left to the run."""
    kind, own = stated.get("scheduler.type"), run.optimizer.lr_schedule
    numbers = [name for name in (*stated, *left) if name.startswith(_SCHEDULER)]
    if kind is None or (numbers and not any(name in stated for name in numbers)):
        return ""
    if kind not in _SCHEDULES:
        return f"sets 'scheduler.type' to {json.dumps(kind)}: use --lr-schedule; leave it out"
    if _SCHEDULES[kind] == own:
        return ""
    return (
        f"sets 'scheduler.type' to {json.dumps(kind)}, but --lr-schedule is {own}: give "
        f"--lr-schedule {_SCHEDULES[kind]}, or leave it out"
    )


def _batch(stated: Mapping[str, Any]) -> str:
    """Refuse a batch for each GPU; where the whole batch is stated, the planner cuts it."""
    named = [name for name in (_MICRO, _ACCUMULATED) if name in stated]
    if not named or "train_batch_size" in stated:
        return ""
    values = " and ".join(f"'{name}' to {json.dumps(stated[name])}" for name in named)
    factors = [stated[name] for name in named]
    each = ""
    if len(factors) == 2 and all(type(factor) is int for factor in factors):
        each = f", here {factors[0] * factors[1]} for each GPU"
    return (
        f"sets {values}: give --batch-size, the samples of the whole job in a step{each}, and "
        f"leave {'both' if len(named) == 2 else 'it'} out"
    )
