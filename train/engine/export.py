"""A checkpoint put in the place of a Hugging Face folder: at the end of a run, or by itself."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

from train.checkpoint.identity import adapter_of, differences, meaning
from train.config import ModelConfig
from train.data.model_folder import read_model_config
from train.data.stops import settle_stops
from train.data.tokenizers import copy_others, load_tokenizer
from train.engine.gang import Gang
from train.engine.huggingface import Exporter, export_adapter, export_model, open_exporter
from train.engine.weights import weights_fingerprint
from train.errors import AnyrankError, CheckpointError, FaultError

_WEIGHTS = re.compile(r"(model|adapter_model)(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


def save_final(
    gang: Gang,
    checkpoint: Path,
    config: ModelConfig,
    seed: int,
    folder: Path,
    files: Mapping[str, str],
) -> str:
    """Write the model, or with LoRA the adapter, and the tokenizer; every rank must call it.

    The ranks of the first host write the files between them, beside `folder`, which is replaced in
    one act when all is written and checked.

    Args:
        files: texts that lie beside it, by name.

    Returns:
        On rank 0, a sentence about what is other than in the base model; it may be empty.

    Raises:
        CheckpointError: the checkpoint is damaged; FaultError: the folder cannot be written.
    """
    folder, partial = _places(folder)
    gang.on_main(lambda: _make(partial))
    world = gang.world
    failure: Exception | None = None
    told = ""
    if world.node == 0:
        try:
            part = (world.local_rank, world.local_size)
            told = _write(checkpoint, config, seed, partial, part, files)
        except (OSError, AnyrankError) as error:
            failure = error
    for one in gang.gather(failure):
        if isinstance(one, OSError):
            raise _unwritable(folder, one)
        if one is not None:
            raise one
    kept = gang.from_main(lambda: _replace(partial, folder))
    return "; ".join(filter(None, (told, kept)))


def save_alone(
    checkpoint: Path,
    config: ModelConfig,
    seed: int,
    folder: Path,
    files: Mapping[str, str],
    *,
    merge: bool,
) -> str:
    """Write the model, or with LoRA the adapter unless it is merged, from this process alone.

    Returns:
        A sentence about what is other than in the base model; it may be empty.

    Raises:
        CheckpointError: the checkpoint is damaged; FaultError: the folder cannot be written.
    """
    folder, partial = _places(folder)
    try:
        _make(partial)
        told = _write(checkpoint, config, seed, partial, (0, 1), files, merge=merge)
        return "; ".join(filter(None, (told, _replace(partial, folder))))
    except OSError as error:
        raise _unwritable(folder, error) from None


def _write(
    checkpoint: Path,
    config: ModelConfig,
    seed: int,
    folder: Path,
    part: tuple[int, int],
    files: Mapping[str, str],
    *,
    merge: bool = False,
) -> str:
    base = Path(str(config.name_or_path))
    if not base.is_dir():
        raise CheckpointError(
            f"the base model {base} is not there any more: the export takes its configuration"
        )
    exporter = open_exporter(checkpoint, base, config)
    with closing(exporter.reader):
        _require_same_base(exporter, merged=config.lora is not None and merge)
        if config.lora is None or merge:
            export_model(exporter, folder, *part)
        elif part[0] == 0:
            export_adapter(exporter, folder, config.lora, seed)
    if part[0] != 0:
        return ""
    tokenizer = load_tokenizer(config)
    tokenizer.save(folder)
    copy_others(config, folder)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    told = settle_stops(base, folder, tokenizer)
    if merge and config.quantize:
        said = f"the adapter, trained over the base in {config.quantize}, is merged into the base's"
        told = "; ".join(filter(None, (told, f"{said} own weights")))
    if tokenizer.info.fingerprint == exporter.index.run.must_match.get("tokenizer"):
        return told
    return "; ".join(filter(None, (told, "the tokenizer is not as it was when samples were made")))


def _require_same_base(exporter: Exporter, *, merged: bool) -> None:
    """Refuse to write a model whose configuration, or frozen weights, are not those of the run.

    Nor is an adapter's scale, of a checkpoint that was put into another run's folder.
    """
    saved = exporter.index.run.must_match
    if differ := differences(saved, {**saved, "adapter": adapter_of(exporter.config)}):
        raise CheckpointError(
            f"the checkpoint belongs to a run with another {differ['adapter']}: put it back into "
            "that run's folder, and name this"
        )
    here: dict[str, Any] = {"config": meaning(read_model_config(exporter.base))}
    here |= {"base": weights_fingerprint(exporter.base)} if merged else {}
    if differ := differences(saved, {**saved, **here}):
        raise CheckpointError(
            f"{exporter.base} has another {' and another '.join(differ.values())} since the run "
            "was trained: put back what was there, then write the model by anyrank export"
        )


def _places(folder: Path) -> tuple[Path, Path]:
    """Return where a model goes, a link to another disk followed, and where it is written first."""
    there = folder.resolve()
    return there, there.with_name(there.name + ".incomplete")


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


def _replace(new: Path, folder: Path) -> str:
    """Put `new` in the place of `folder`, which stays whole until then; return what is to be said.

    A folder into which somebody has put files of their own is kept beside the new one.
    """
    old = folder.with_name(folder.name + ".replaced")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    new.replace(folder)
    written = {path.name for path in folder.iterdir()}
    inside = sorted(path.name for path in old.iterdir()) if old.is_dir() else []
    others = [name for name in inside if name not in written and not _WEIGHTS.fullmatch(name)]
    if not others:
        shutil.rmtree(old, ignore_errors=True)
        return ""
    places = (folder.with_name(f"{folder.name}.before-{number}") for number in count(1))
    place = next(path for path in places if not path.exists())
    old.replace(place)
    named = ", ".join(others[:3]) + ", …" * (len(others) > 3)
    return f"{folder} held other things ({named}): all that was there before is in {place}"
