"""A model's safetensors files, read slice by slice, to check what was loaded against them.

A model whose weights silently stayed random is the worst failure of fine-tuning, so every
parameter is compared with the file after loading: in chunks, each rank the part that it holds.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from train.errors import ModelError

PROBE = 256  # elements at the beginning and at the end of a tensor that its fingerprint hashes
CHUNK = 1 << 22  # elements compared at a time


def weight_files(folder: Path) -> dict[str, Path]:
    """Map every tensor name in the folder to the file that holds it.

    Raises:
        ModelError: the index names a file that is missing, or a file is damaged.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        for name in sorted(set(named.values())):
            if not (folder / name).exists():
                raise ModelError(f"{index} names {name}, which is missing: copy the whole model")
            _keys(folder / name)
        return {key: folder / name for key, name in named.items()}
    return {key: path for path in sorted(folder.glob("*.safetensors")) for key in _keys(path)}


def _keys(path: Path) -> list[str]:
    """Read which tensors a file holds, from its header alone."""
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged ({error}): copy the model again") from None


def check_tie(folder: Path, tied: bool, names: tuple[str, str]) -> None:
    """Refuse a folder that says its embeddings are tied but holds two that differ.

    Under ZeRO-3 they would be tied without a word, elsewhere untied: one model, two meanings.
    """
    files = weight_files(folder)
    if not tied or not set(names) <= set(files):
        return
    first, second = (_whole(files[name], name) for name in names)
    if first.shape != second.shape or not torch.equal(first, second):
        raise ModelError(
            f"{folder} holds {names[0]} and {names[1]} that differ, but its config.json ties "
            "them: set tie_word_embeddings to false there, or remove one of the two"
        )


def _whole(path: Path, key: str) -> torch.Tensor:
    with safe_open(path, "pt") as file:
        return torch.as_tensor(file.get_tensor(key)).reshape(-1)


def check_loaded(folder: Path, model: PreTrainedModel) -> None:
    """Compare each parameter, or this rank's part of it, with the file.

    Raises:
        ModelError: a parameter is not in the files, has another shape, or other values.
    """
    files = weight_files(folder)
    for name, parameter in model.named_parameters():
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        keys = keys_of(model, name, shape, files)
        if not keys:
            raise ModelError(
                f"{folder} has no weights for '{name}': it would start random, so the folder "
                "does not hold this model"
            )
        if len(keys) == 1:
            start, part = _held(parameter)
            _compare(files[keys[0]], keys[0], name, shape, start, part)


def keys_of(
    model: PreTrainedModel, name: str, shape: tuple[int, ...], files: Mapping[str, Path]
) -> tuple[str, ...]:
    """Find a parameter's names in the files: as it is, with or without prefix, or converted.

    Several names (experts that transformers fuses while loading) cannot be compared one to one.
    """
    for candidate in (name, name.partition(".")[2], f"model.{name}"):
        if candidate in files:
            return (candidate,)
    stored = stored_form(model, name, torch.empty(shape, device="meta"))
    return tuple(stored) if set(stored) <= set(files) else ()


def stored_form(model: PreTrainedModel, name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return a weight under the names, and in the form, that the model's own files have."""
    found: dict[str, torch.Tensor] = revert_weight_conversion(model, {name: value})
    return found


def _held(parameter: torch.nn.Parameter) -> tuple[int, torch.Tensor]:
    """Return where this rank's flat part begins in the parameter, and the part itself."""
    shard = getattr(parameter, "ds_tensor", None)
    if shard is None:
        return 0, parameter.detach().reshape(-1)
    persistent = shard.numel() >= parameter.ds_numel  # type: ignore[attr-defined]
    rank = 0 if persistent else torch.distributed.get_rank()
    start = rank * shard.numel()
    length = max(0, min(shard.numel(), parameter.ds_numel - start))  # type: ignore[attr-defined]
    return start, shard.detach()[:length]


def _compare(
    path: Path, key: str, name: str, shape: tuple[int, ...], start: int, part: torch.Tensor
) -> None:
    with safe_open(path, "pt") as file:
        stored = tuple(file.get_slice(key).get_shape())
        if stored != shape:
            raise ModelError(
                f"'{key}' in {path} has shape {list(stored)}, but the model's config.json makes "
                f"it {list(shape)}: the weights belong to another model"
            )
        for offset in range(0, part.numel(), CHUNK):
            here = part[offset : offset + CHUNK].cpu()
            there = _read(file, key, start + offset, here.numel()).to(here.dtype)
            if not torch.equal(here, there):
                raise ModelError(
                    f"'{name}' was not loaded as it stands in {path}: the model's weights would "
                    "be partly random, so nothing was trained; check the installed transformers "
                    "version"
                )


def _read(file: Any, key: str, start: int, count: int) -> torch.Tensor:
    """Read `count` elements of a tensor in an open file from its flat position `start`."""
    view = file.get_slice(key)
    shape = view.get_shape()
    if not shape:
        return torch.as_tensor(file.get_tensor(key)).reshape(-1)
    width = math.prod(shape[1:])
    first, last = start // width, -(-(start + count) // width)
    rows: torch.Tensor = view[first:last].reshape(-1)
    return rows[start - first * width :][:count]


def weights_fingerprint(folder: Path) -> str:
    """Name a model's weights: a hash of every tensor's name, type, shape, beginning and end."""
    digest = hashlib.sha256()
    for key, path in sorted(weight_files(folder).items()):
        with safe_open(path, "pt") as file:
            view: Any = file.get_slice(key)
            size = math.prod(view.get_shape())
            digest.update(f"{key} {view.get_dtype()} {view.get_shape()}".encode())
            for start in sorted({0, max(0, size - PROBE)}):
                part = _read(file, key, start, min(size, PROBE)).contiguous()
                digest.update(part.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
