"""A model's safetensors files, read slice by slice, to check what was loaded against them.

A model whose weights silently stayed random is the worst failure of fine-tuning, so every
parameter is compared with the file after loading: in chunks, each rank the part that it holds.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import xxhash
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from train.data.model_files import COMPUTED, OTHER_PARTS, stored_tensors
from train.engine.quantize import check_packed, true_shape
from train.errors import ModelError

CHUNK = 1 << 22  # elements compared at a time
LAYER = re.compile(r"\.\d+\.")


def weight_files(folder: Path) -> dict[str, Path]:
    """Map every tensor name in the folder to the file that holds it.

    Raises:
        ModelError: the index names a file that is missing, or a file is damaged.
    """
    return {key: stored.file for key, stored in stored_tensors(folder).items()}


def check_shapes(folder: Path, model: PreTrainedModel) -> list[str]:
    """Compare a model without weights with the headers of the files, before anything is loaded.

    Returns:
        The names in the files of what the model does not use.

    Raises:
        ModelError: a parameter is not in the files, or has another shape there; or they hold more
            layers than the model has.
    """
    tensors = stored_tensors(folder)
    files = {key: stored.file for key, stored in tensors.items()}
    used: set[str] = set()
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        keys = keys_of(model, name, shape, files)
        used.update(keys)
        if not keys:
            longer = next((key for key in files if key.endswith(f".{name}")), None)
            raise ModelError(
                f"{folder} has no weights for '{name}': it would start random, so the folder "
                "does not hold this model"
                + (f" (it holds '{longer}': save it without what stands before)" if longer else "")
            )
        if len(keys) == 1 and tensors[keys[0]].shape != shape:
            raise ModelError(
                f"'{keys[0]}' in {files[keys[0]]} has shape {list(tensors[keys[0]].shape)}, but "
                f"config.json makes it {list(shape)}: the weights belong to another model"
            )

    own = model.state_dict()
    for name in own.keys() - dict(model.named_parameters()).keys():  # tied, and buffers
        used.update(keys_of(model, name, tuple(own[name].shape), files))
    ignored = model._keys_to_ignore_on_load_unexpected or ()  # noqa: SLF001
    known = [COMPUTED, OTHER_PARTS, *map(re.compile, ignored)]
    rest = [key for key in files if key not in used and not any(p.search(key) for p in known)]
    _refuse_layers(folder, rest, used, model)
    return rest


def _refuse_layers(
    folder: Path, rest: Sequence[str], used: Collection[str], model: PreTrainedModel
) -> None:
    """Refuse weights that are those of a further layer: the model would be cut in silence."""
    more = [key for key in rest if LAYER.sub(".0.", key, count=1) in used]
    predicting = getattr(model.config, "num_nextn_predict_layers", 0)  # further tokens, as extras
    if more and not predicting:
        raise ModelError(
            f"{folder} holds '{more[0]}', a layer beyond those of its config.json: set the number "
            "of layers there as the model was saved, or copy the whole model"
        )


def check_tie(folder: Path, *, tied: bool, names: tuple[str, str]) -> None:
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
    """Compare each parameter, or this rank's part of it, with the file, to the last element.

    Raises:
        ModelError: a parameter has other values than in the files.
    """
    files = weight_files(folder)
    for name, parameter in model.named_parameters():
        packed = true_shape(parameter)
        shape = packed or tuple(getattr(parameter, "ds_shape", parameter.shape))
        keys = keys_of(model, name, shape, files)
        if packed and len(keys) == 1:
            check_packed(files[keys[0]], keys[0], name, parameter, model.dtype)
        elif len(keys) == 1:
            start, part = _held(parameter)
            _compare(files[keys[0]], keys[0], name, start, part)


def keys_of(
    model: PreTrainedModel, name: str, shape: tuple[int, ...], files: Mapping[str, Path]
) -> tuple[str, ...]:
    """Find a parameter's names in the files: as it is, with another prefix, or converted.

    Several names (experts that transformers fuses while loading) cannot be compared one to one.
    """
    tail = name.partition(".")[2]
    text = (f"model.language_model.{tail}", f"language_model.{name}", f"language_model.{tail}")
    for candidate in (name, tail, f"model.{name}", *text):  # the last three: of a larger model
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


def _compare(path: Path, key: str, name: str, start: int, part: torch.Tensor) -> None:
    with safe_open(path, "pt") as file:
        stored = torch.as_tensor(file.get_tensor(key)).reshape(-1)  # mapped: only what is read
    for offset in range(0, part.numel(), CHUNK):
        here = part[offset : offset + CHUNK].cpu()
        there = stored[start + offset :][: here.numel()].to(here.dtype)
        if not _same_bits(here, there):
            raise ModelError(
                f"'{name}' was not loaded as it stands in {path}: the model's weights would be "
                "partly random, so nothing was trained; check the installed transformers version"
            )


def _bytes(flat: torch.Tensor) -> np.ndarray:
    found: np.ndarray = flat.contiguous().view(torch.uint8).numpy()
    return found


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Compare eight bytes at a time: four times as fast as torch compares bf16 numbers."""
    left, right = _bytes(one), _bytes(other)
    whole = len(left) // 8 * 8
    return np.array_equal(left[:whole].view(np.int64), right[:whole].view(np.int64)) and (
        np.array_equal(left[whole:], right[whole:])
    )


def weights_fingerprint(folder: Path) -> str:
    """Name a model's weights: a hash of every tensor's name, type, shape and bytes.

    Reads all files once, mapped, a tensor at a time; the next to read them finds them in memory.
    """
    digest = xxhash.xxh3_128()
    for key, path in sorted(weight_files(folder).items()):
        with safe_open(path, "pt") as file:
            tensor = file.get_tensor(key)
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(_bytes(tensor.reshape(-1)).data)
    return digest.hexdigest()
