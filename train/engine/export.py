"""`anyrank export`, and the final save of every run: a checkpoint as a Hugging Face folder."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from train import checkpoints
from train.config import LoraConfig, ModelConfig
from train.data.tokenizer import load_tokenizer
from train.errors import CheckpointError, ConfigError, FaultError
from train.launch.request import require_replaceable

if TYPE_CHECKING:  # torch takes seconds to import, a mistake on the command line none to name
    from train.engine.gang import Gang


def save_final(gang: Gang, checkpoint: Path, config: ModelConfig, seed: int, folder: Path) -> None:
    """Write the model, or with LoRA the adapter, and the tokeniser; every rank must call it.

    The ranks of the first host write the files between them, beside `folder`, which is replaced in
    one act when all is written and checked.

    Raises:
        CheckpointError: the checkpoint is damaged; FaultError: the folder cannot be written.
    """
    partial = folder.with_name(folder.name + ".incomplete")
    gang.on_main(lambda: _make(partial))
    world = gang.world
    failure: Exception | None = None
    if world.node == 0:
        try:
            _write(checkpoint, config, seed, partial, (world.local_rank, world.local_size))
        except (OSError, CheckpointError) as error:
            failure = error
    for one in gang.gather(failure):
        if isinstance(one, OSError):
            raise _unwritable(folder, one)
        if one is not None:
            raise one
    gang.on_main(lambda: _replace(partial, folder))


def command(argv: Sequence[str]) -> int:
    """Write a run's checkpoint as a Hugging Face folder.

    Raises:
        UserError: the run, or the checkpoint in it, is not there or not whole, or the output would
            replace other files.
    """
    described = "Write a run's checkpoint as a Hugging Face folder."
    parser = _Parser(prog="anyrank export", description=described, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("--step", type=int, help="which checkpoint; default: the newest")
    parser.add_argument("--merge-lora", action="store_true", help="the whole model, adapter merged")
    parser.add_argument("--output", type=Path, help="default: RUN/export/step_<number>")
    asked = parser.parse_args(list(argv))
    checkpoint = _find(asked.run, asked.step)
    config, seed = _configuration(asked.run, checkpoint)
    if asked.merge_lora and config.lora is None:
        raise ConfigError(f"{asked.run} was trained without LoRA: leave --merge-lora out")
    folder = asked.output or asked.run / "export" / (
        checkpoint.name + ("-merged" if asked.merge_lora else "")
    )
    require_replaceable(folder, str(config.name_or_path))
    partial = folder.with_name(folder.name + ".incomplete")
    try:
        _make(partial)
        _write(checkpoint, config, seed, partial, (0, 1), asked.merge_lora)
        _replace(partial, folder)
    except OSError as error:
        raise _unwritable(folder, error) from None
    print(f"Exported {checkpoint} to {folder}; every weight was compared with the checkpoint")
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"anyrank export: {message}; see anyrank export --help")


def _find(run: Path, step: int | None) -> Path:
    found = checkpoints.complete(run)
    if not found:
        raise CheckpointError(f"there is no checkpoint in {run}: name a run folder that has one")
    chosen = [path for path in found if step in (None, checkpoints.step_of(path))]
    if not chosen:
        steps = ", ".join(str(checkpoints.step_of(path)) for path in reversed(found))
        raise CheckpointError(f"{run} has no checkpoint of step {step}: there are {steps}")
    return chosen[0]


def _configuration(run: Path, checkpoint: Path) -> tuple[ModelConfig, int]:
    """Read the model's configuration and the seed of the start that saved a checkpoint."""
    attempt = checkpoints.read_index(checkpoint).record.get("attempt")
    file = run / "attempts" / str(attempt) / "config.json"
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        model = dict(content["model"])
        adapter = model.pop("lora")
        lora = LoraConfig(**adapter) if adapter else None
        return ModelConfig(**model, lora=lora), int(content["data"]["seed"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} does not say which model {checkpoint.name} belongs to ({error!r}): name a "
            "whole run folder"
        ) from None


def _write(
    checkpoint: Path,
    config: ModelConfig,
    seed: int,
    folder: Path,
    part: tuple[int, int],
    merge: bool = False,
) -> None:
    from train.engine.huggingface import export_adapter, export_model, open_exporter

    base = Path(str(config.name_or_path))
    if not base.is_dir():
        raise CheckpointError(
            f"the base model {base} is not there any more: the export takes its configuration"
        )
    exporter = open_exporter(checkpoint, base, config)
    if config.lora is None or merge:
        export_model(exporter, folder, *part)
    elif part[0] == 0:
        export_adapter(exporter, folder, config.lora, seed)
    if part[0] == 0:
        load_tokenizer(config).save(folder)


def _make(partial: Path) -> None:
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise _unwritable(partial, error) from None


def _unwritable(folder: Path, error: OSError) -> FaultError:
    return FaultError(
        f"the model could not be written to {folder} ({error.strerror or error}): free space or "
        "give another folder; the checkpoint is whole, anyrank export writes it again"
    )


def _replace(new: Path, folder: Path) -> None:
    """Put `new` in the place of `folder`, which stays whole until then."""
    old = folder.with_name(folder.name + ".replaced")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    new.replace(folder)
    shutil.rmtree(old, ignore_errors=True)
