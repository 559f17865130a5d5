"""A model of which this rank holds a part, made without weights and filled from its own regions.

The whole model is made on `meta`, where it takes no memory; then each parameter gets the part that
this rank holds, read from the files as a region of a tensor. Under ZeRO-3 the ranks that share a
part divide it at once: the first of them reads, and no rank ever holds more than one parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import deepspeed
import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from train.engine.divide import Divided, Holding, connect_parts, divided_modules, hold
from train.engine.mesh import Mesh
from train.engine.weights import keys_of, weight_files
from train.errors import ModelError


def load_parts(
    model: PreTrainedModel,
    folder: Path,
    zero_config: Mapping[str, Any],
    device: torch.device,
    mesh: Mesh,
) -> tuple[Divided, ...]:
    """Fill a whole model on `meta` with this tensor rank's part; return what is divided.

    Raises:
        ModelError: the files hold a parameter in another form.
    """
    divided = divided_modules(model, mesh)
    fill(model, folder, hold(model, divided, mesh), zero_config, device, mesh)
    connect_parts(model, divided, mesh)
    return divided


def fill(
    model: PreTrainedModel,
    folder: Path,
    held: Mapping[str, Holding],
    zero_config: Mapping[str, Any],
    device: torch.device,
    mesh: Mesh,
) -> int:
    """Give a model on `meta` this rank's part of every weight; return the bytes that were read.

    Args:
        held: what this rank holds of every parameter, by its name in the model.
        zero_config: the final DeepSpeed configuration; stage 3 partitions each parameter.

    Raises:
        ModelError: the files hold a parameter in another form.
    """
    files, read = weight_files(folder), 0
    sharded = zero_config["zero_optimization"]["stage"] == 3
    divide: Any = None
    if sharded:
        divide = deepspeed.zero.Init(
            data_parallel_group=mesh.data_group, config_dict_or_path=zero_config, mpu=mesh.mpu
        )
    places: dict[int, list[tuple[torch.nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            places.setdefault(id(parameter), []).append((module, name))
    for name, parameter in tuple(model.named_parameters()):
        own, dtype = held[name], parameter.dtype
        if sharded and mesh.data > 0:
            shape = own.cut.shape(own.shape) if own.cut else own.shape
            values = torch.empty(shape, dtype=dtype)
        else:
            # A copy: what is read may be mapped from the file, and updated in place it goes wrong.
            values = _region(folder, model, name, own, files).to(dtype).clone()
            read += values.numel() * values.element_size()
        made = torch.nn.Parameter(values.to(device), parameter.requires_grad)
        made.held = own  # type: ignore[attr-defined]
        made._is_hf_initialized = True  # type: ignore[attr-defined]  # noqa: SLF001
        if divide is not None:
            divide._convert_to_zero_parameters([made])  # noqa: SLF001
        for module, attribute in places[id(parameter)]:
            setattr(module, attribute, made)
    _fill_buffers(model, device)
    return read


def _region(
    folder: Path, model: PreTrainedModel, name: str, held: Holding, files: Mapping[str, Path]
) -> torch.Tensor:
    """Return this rank's part of a weight as it stands in its file."""
    keys = keys_of(model, name, held.shape, files)
    if len(keys) != 1:
        raise ModelError(
            f"{folder} holds '{name}' in another form ({', '.join(keys) or 'nowhere'}), of which "
            "no part can be read: leave tp and pp out of --pin"
        )
    with safe_open(files[keys[0]], "pt") as file:
        if held.cut is None:
            return torch.as_tensor(file.get_tensor(keys[0]))
        view: Any = file.get_slice(keys[0])
        whole = (slice(None),) * held.cut.dimension
        parts = [view[(*whole, slice(first, last))] for first, last in held.cut.parts]
        return torch.cat(parts, dim=held.cut.dimension) if len(parts) > 1 else parts[0]


def _fill_buffers(model: Any, device: torch.device) -> None:
    """Give buffers, which are in no file, the values that transformers gives them while loading."""
    for module in model.modules():
        empty = {name: b for name, b in module.named_buffers(recurse=False) if b.is_meta}
        for name, buffer in empty.items():
            setattr(module, name, torch.empty_like(buffer, device=device))
        if empty:
            model._init_weights(module)  # noqa: SLF001
