"""What was run: model, data, batch, rate, GPUs and command of runs, and what differs in them."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from train.arguments import ARGUMENTS
from train.report.runs import Run, ranks

# Of config.json, what says where results go, how often, or how a start was meant.
_ELSEWHERE = {"output", "dry_run", "no_regrow", "date", "pins", "ds_config", "hub"}
_FLAGS = {row.name: row.flag for row in ARGUMENTS}
_OTHERS = {"lora": "--use-lora", "r": "--lora-r", "alpha": "--lora-alpha",
           "dropout": "--lora-dropout"}  # fmt: skip


def facts(run: Run) -> dict[str, str]:
    """Return what was run, by what it is called; what its folder does not tell is left out."""
    config = run.config
    model, data = (config.get(key) or {} for key in ("model", "data"))
    found = {
        "model": _model(model, run.parameters),
        "data": _name(data.get("name_or_path")),
        "batch": _batch(data, run),
        "rate": _rates(run),
        "length": _length(config),
        "GPU": _devices(run),
        "plan": _plan(run),
        "command": command(run),
    }
    return {name: text for name, text in found.items() if text}


def differences(base: Run, run: Run) -> list[str]:
    """Return the arguments in which a run differs from another: `--lr 0.005 → 0.01`."""
    ours, theirs = dict(_leaves(base.config)), dict(_leaves(run.config))
    return [
        f"{flag} {_text(ours.get(flag))} → {_text(theirs.get(flag))}"
        for flag in dict.fromkeys((*ours, *theirs))
        if ours.get(flag) != theirs.get(flag)
    ]


def command(run: Run) -> str:
    """Return the command that goes through the run's last start, as far as its folder tells it."""
    if not run.arguments:
        return ""
    return shlex.join(["./launch.sh", str(run.gpus[-1]), *run.arguments])


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of a config.json that a training depends on, by their arguments."""
    for key, value in config.items():
        if key in _ELSEWHERE:
            continue
        flag = _OTHERS.get(key) or _FLAGS.get(f"{prefix}{key}") or _FLAGS.get(key)
        if isinstance(value, Mapping):
            if key == "lora":
                yield "--use-lora", True
            yield from _leaves(value, f"{key}_")
        elif key == "lora":
            yield "--use-lora", False
        else:
            yield flag or key, value


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else _name(str(value))


def _name(path: str | None) -> str:
    """Return a path's last part, or a hub's name as it is; of several each."""
    return ",".join(
        Path(part).name if part.startswith(("/", "~", ".")) or part.count("/") > 1 else part
        for part in (path or "").split(",")
    )


def _model(model: Mapping[str, Any], parameters: int | None) -> str:
    if not model:
        return ""
    lora = model.get("lora")
    words = [str(model.get("hub") or _name(model.get("name_or_path")) or "preset")]
    if parameters:
        billions = parameters >= 1e9
        size = parameters / (1e9 if billions else 1e6)
        words.append(f"{size:.3g} {'billion' if billions else 'million'} parameters")
    quantized = f" over {model['quantize']}" if model.get("quantize") else ""
    words.append(f"LoRA r={lora['r']}{quantized}" if lora else "all trained")
    return ", ".join([*words, str(model.get("precision", ""))])


def _batch(data: Mapping[str, Any], run: Run) -> str:
    if "batch_size" not in data:
        return ""
    tokens = sum(int(step["tokens"]) for step in run.steps) / len(run.steps)
    noun = "pairs" if data.get("objective") == "dpo" else "samples"
    return (
        f"{data['batch_size']} {noun} of up to {data['block_size']} tokens a step, "
        f"{tokens:,.0f} tokens on average, seed {data['seed']}"
    )


def _rates(run: Run) -> str:
    """Return the learning rate, and from which step on a later start has trained at another."""
    trained = [start for start in run.starts if start.steps] or [run.last] if run.last else []
    told: dict[int, str] = {}
    for start in trained:
        first = start.steps[0] if start.steps else 1
        rate = _rate(start.config.get("optimizer") or {})
        told = told if first > 1 else {}  # a run that starts over
        if rate not in list(told.values())[-1:]:
            told[first] = rate
    first = min(told, default=1)
    return "; ".join(rate if n == first else f"from step {n} on {rate}" for n, rate in told.items())


def _rate(optimizer: Mapping[str, Any]) -> str:
    if "lr" not in optimizer:
        return ""
    words = [f"{optimizer['lr']:g}", str(optimizer.get("lr_schedule", ""))]
    if optimizer.get("warmup_ratio"):
        words.append(f"after {optimizer['warmup_ratio']:.0%} of the steps as warm-up")
    elif optimizer.get("warmup_steps"):
        words.append(f"after {optimizer['warmup_steps']} steps of warm-up")
    if optimizer.get("weight_decay"):
        words.append(f"decay {optimizer['weight_decay']:g}")
    return ", ".join(word for word in words if word)


def _length(config: Mapping[str, Any]) -> str:
    if config.get("max_steps"):
        return f"{config['max_steps']} steps"
    return f"{config['epochs']} epochs" if config.get("epochs") else ""


def _devices(run: Run) -> str:
    devices = run.last.devices if run.last else ()
    kinds = Counter(device.partition(": ")[2] or device for device in devices)
    hosts = len({device.partition(":")[0] for device in devices})
    if not kinds:
        return ranks(*run.gpus)
    said = ", ".join(f"{count} x {name}" for name, count in kinds.items())
    before = f" (before: {ranks(*run.gpus[:-1])})" if len(run.gpus) > 1 else ""
    return f"{said} on {hosts} host{'s' if hosts > 1 else ''}{before}"


def _plan(run: Run) -> str:
    plan = run.last.plan.get("plan", {}) if run.last else {}
    if "zero" not in plan:
        return ""
    degrees = "".join(f", {key} {plan[key]}" for key in ("tp", "pp", "sp") if plan.get(key, 1) > 1)
    return (
        f"ZeRO {plan['zero']}{degrees}, recomputation {plan['recompute']}, offload "
        f"{plan['offload']}, {plan['accumulation']} x {plan['micro_tokens']} tokens"
    )


def what_was_run(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Return a row for each fact, and where runs differ in it one for each of its values."""
    found = [facts(run) for run in runs]
    rows = []
    for name in dict.fromkeys(name for each in found for name in each):
        values: dict[str, list[str]] = {}
        for run, each in zip(runs, found, strict=True):
            values.setdefault(each.get(name, "–"), []).append(run.name)
        for value, names in values.items():
            row = {"": name, "what was run": value}
            if len(runs) > 1:
                row["of"] = "all" if len(values) == 1 else ", ".join(names)
            rows.append(row)
    return rows
