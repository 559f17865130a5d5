"""The model card of a saved model: a README.md made of what the run's folder says of it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from train.config import ModelConfig
from train.config_file import flags_of
from train.launch.arguments import TOKENIZED
from train.names import for_others, read_names
from train.output.metrics import of_rows, read_metrics
from train.paths import looks_local
from train.text import printable

# Arguments that concern this machine, and nobody else; and those that name datasets.
_OWN = ("--run-dir", "--save-dir", "--local-rank", "--resume", "--report-to")
_DATASETS = ("--dataset-name-or-path", "--eval-dataset-name-or-path")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
# The ranks that vLLM makes room for; where nothing is said, for 16 (its vllm/config/lora.py).
_VLLM_RANKS = (16, 32, 64, 128, 256, 320, 512)


def beside(run: Path, attempt: Path, step: int, *, merged: bool = False) -> dict[str, str]:
    """Return what lies beside a saved model, by file: its card, and a chat template that writes as
    its samples were written, where its tokenizer has none. Arguments as of `model_card`.
    """
    template = _tokenized(attempt).get("chat_template")
    found = {"README.md": model_card(run, attempt, step, merged=merged)}
    return found | ({"chat_template.jinja": template} if template else {})


def _tokenized(attempt: Path) -> Mapping[str, Any]:
    """Return what a start says of its samples: nothing where it is of an earlier version."""
    file = attempt / TOKENIZED
    found: Mapping[str, Any] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    return found


def model_card(run: Path, attempt: Path, step: int, *, merged: bool = False) -> str:
    """Return the README.md of the model after `step` steps of a run.

    Args:
        run: the run's folder; attempt: the folder of the start that saved the step.
        merged: the adapter was merged into its base model.

    Raises:
        OSError, ValueError, KeyError: the folder does not hold what a run writes there.
    """
    config = json.loads((attempt / "config.json").read_text(encoding="utf-8"))
    words = json.loads((attempt / "environment.json").read_text(encoding="utf-8"))
    model, text = config["model"], config["data"]["name_or_path"] or ""
    datasets = read_names(text) if text else ()
    hub = [one.where for one in datasets if one.on_hub and _HUB_NAME.fullmatch(one.where)]
    adapter = bool(model["lora"]) and not merged
    pairs = config["data"].get("objective") == "dpo"
    head = {
        "base_model": model.get("hub"),
        "base_model_relation": model.get("hub") and ("adapter" if adapter else "finetune"),
        "datasets": list(dict.fromkeys(hub)),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["anyrank", *["lora"] * bool(model["lora"]), *["dpo"] * pairs],
    }
    base = base_of(model)
    told = (one.short + f" (weight {one.weight:g})" * (one.weight != 1) for one in datasets)
    lines = [
        "---", *(f"{key}: {json.dumps(value)}" for key, value in head.items() if value), "---",
        "", f"# {Path(base).name}, fine-tuned", "",
        f"{'An adapter of' if adapter else 'Made from'} {base} on {', '.join(told)}, "
        "with anyrank.", "",
        *(f"{form[:1].upper()}{form[1:]}.\n" for form in _tokenized(attempt).get("forms", ())),
        *_table(config, run, step), "", "```", _command(words["arguments"]), "```",
    ]  # fmt: skip
    return printable("\n".join(lines) + "\n")


def next_commands(
    run: Path, folder: Path, model: ModelConfig, *, kept: bool, made: bool = False
) -> Iterator[str]:
    """Yield, a line each, the command that serves a saved model, that merges and that uploads it.

    `kept`: the run has a checkpoint, from which an adapter can be merged; `made`: the saved chat
    template was made for the samples, so the base has none.
    """
    yield f"Serve it:   vllm serve {_served(folder, model, made=made)}"
    if model.lora is not None and kept:
        yield f"Merge it:   anyrank export {quote(str(run))} --merge-lora"
    name = re.sub(r"[^\w.-]", "-", run.absolute().name, flags=re.ASCII)
    yield f"Upload it:  hf upload YOUR-NAME/{name} {quote(str(folder))}"


def _served(folder: Path, model: ModelConfig, *, made: bool) -> str:
    """Return vLLM's words; beside an adapter it takes all else from the base, unless it is told."""
    if model.lora is None:
        return quote(str(folder))
    base = quote(str(model.hub or model.name_or_path))
    words = [f"{base} --enable-lora --lora-modules tuned={quote(str(folder))}"]
    if model.lora.r > _VLLM_RANKS[0]:
        room = next((rank for rank in _VLLM_RANKS if rank >= model.lora.r), model.lora.r)
        words.append(f"--max-lora-rank {room}")
    template = folder / "chat_template.jinja"
    if (model.chat_template or made) and template.exists():
        words.append(f"--chat-template {quote(str(template))}")
    if (folder / "generation_config.json").exists():  # written where the base stops elsewhere
        words.append(f"--generation-config {quote(str(folder))}")
    return " ".join(words)


def base_of(model: Mapping[str, Any]) -> str:
    """Return what the base model is called: its hub name, or else its folder's own name."""
    return str(model.get("hub") or Path(str(model["name_or_path"])).absolute().name)


def _table(config: Mapping[str, Any], run: Path, step: int) -> Iterator[str]:
    optimizer, data, lora = config["optimizer"], config["data"], config["model"]["lora"]
    metrics = read_metrics(run / "metrics.jsonl")
    steps = [line for line in metrics.steps if line["step"] <= step]
    evals = [line for line in metrics.evals if line["step"] <= step]
    evals = of_rows(evals, evals[-1].get("eval_data", "")) if evals else []
    pairs = data.get("objective") == "dpo"
    rows = {
        **({"objective": "DPO, over pairs of answers"} if pairs else {}),
        "steps": step,
        f"{'pairs' if pairs else 'samples'} per step": data["batch_size"],
        "longest sample": f"{data['block_size']} tokens",
        "learning rate": f"{optimizer['lr']:g} ({optimizer['lr_schedule']})",
        "precision": config["model"]["precision"],
        "seed": data["seed"],
    }
    if lora:
        rows["adapter"] = f"LoRA, rank {lora['r']}, alpha {lora['alpha']}"
        if kind := config["model"].get("quantize"):
            rows["adapter"] += f", over the base in {kind}"
    if steps:
        rows["training loss"] = f"{steps[0]['loss']:.4f} → {steps[-1]['loss']:.4f}"
    if evals:
        losses = " → ".join(f"{line['eval_loss']:.4f}" for line in evals[:: max(1, len(evals) - 1)])
        other = data.get("eval_name_or_path")
        of = f"of {for_others(other)}" if other else "held out"
        noun = "pairs" if pairs else "tokens"
        rows["evaluation loss"] = f"{losses} on {evals[-1]['eval_tokens']} {noun} {of}"
    yield from ("| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items()))


def _command(words: Sequence[str]) -> str:
    """Return the command without this machine's folders."""
    kept: list[str] = []
    for flag, values in flags_of(words):
        if flag in _DATASETS:
            kept += (flag, *map(for_others, values))
        elif flag not in _OWN:
            kept += (flag, *(Path(v).absolute().name if looks_local(v) else v for v in values))
    return f"anyrank launch {shlex.join(kept)}".rstrip()
