"""`anyrank export RUN`: a run's checkpoint as a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.arguments import Parser
from train.checkpoint import folder as checkpoints
from train.checkpoint.index import read_index
from train.config import LoraConfig, ModelConfig
from train.errors import CheckpointError, ConfigError, ExitCode
from train.launch.arguments import require_replaceable
from train.output.card import beside


def command(argv: Sequence[str]) -> int:
    """Write a run's checkpoint as a Hugging Face folder.

    Raises:
        UserError: the run, or the checkpoint in it, is not there or not whole, or the output would
            replace other files.
    """
    parser = Parser(
        "anyrank export",
        "Write a run's checkpoint as a Hugging Face folder.",
        "anyrank export, see anyrank export --help: ",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("--step", type=int, help="which checkpoint; default: the newest")
    parser.add_argument("--merge-lora", action="store_true", help="the whole model, adapter merged")
    parser.add_argument("--output", type=Path, help="default: RUN/export/step_<number>")
    asked = parser.parse_args(list(argv))
    checkpoint = _find(asked.run, asked.step)
    config, seed, attempt = _configuration(asked.run, checkpoint)
    if asked.merge_lora and config.lora is None:
        raise ConfigError(f"{asked.run} was trained without LoRA: leave --merge-lora out")
    folder = asked.output or asked.run / "export" / (
        checkpoint.name + ("-merged" if asked.merge_lora else "")
    )
    require_replaceable(folder, str(config.name_or_path))
    from train.engine.export import save_alone  # torch: a mistake above takes no time to name

    files = beside(asked.run, attempt, checkpoints.step_of(checkpoint), merged=asked.merge_lora)
    told = save_alone(checkpoint, config, seed, folder, files, merge=asked.merge_lora)
    print(f"Exported {checkpoint} to {folder}; every weight was compared with the checkpoint")
    if told:
        print(told)
    return ExitCode.DONE


def _find(run: Path, step: int | None) -> Path:
    found = checkpoints.complete(run)
    if not found:
        raise CheckpointError(f"there is no checkpoint in {run}: name a run folder that has one")
    chosen = [path for path in found if step in (None, checkpoints.step_of(path))]
    if not chosen:
        steps = ", ".join(str(checkpoints.step_of(path)) for path in reversed(found))
        raise CheckpointError(f"{run} has no checkpoint of step {step}: there are {steps}")
    return chosen[0]


def _configuration(run: Path, checkpoint: Path) -> tuple[ModelConfig, int, Path]:
    """Return the model's configuration, the seed and the folder of the start that saved."""
    attempt = read_index(checkpoint).provenance.get("attempt")
    file = run / "attempts" / str(attempt) / "config.json"
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        model = dict(content["model"])
        adapter = model.pop("lora")
        lora = LoraConfig(**adapter) if adapter else None
        return ModelConfig(**model, lora=lora), int(content["data"]["seed"]), file.parent
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} does not say which model {checkpoint.name} belongs to ({error!r}): name a "
            "whole run folder"
        ) from None
