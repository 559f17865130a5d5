"""Write the model as a Hugging Face folder, gathered one parameter at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch

from train.engine.step import Engine
from train.errors import FaultError


def save_model(engine: Engine, folder: Path) -> None:
    """Save the weights in safetensors, loadable by transformers, or an adapter, by peft.

    Every rank must call it; rank 0 holds one copy of what is saved in host memory and writes it
    beside `folder`, which is replaced in one act when all is written.

    Raises:
        FaultError: the folder cannot be written.
    """
    state = dict(_gathered(engine))
    engine.gang.on_main(lambda: _write(engine.model.module, state, folder))


def _write(module: Any, state: dict[str, torch.Tensor], folder: Path) -> None:
    partial = folder.with_name(folder.name + ".incomplete")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        module.save_pretrained(partial, state_dict=state)
        replace_folder(partial, folder)
    except OSError as error:
        raise FaultError(
            f"the model could not be written to {folder} ({error}): free space or give --save-dir"
        ) from None


def replace_folder(new: Path, folder: Path) -> None:
    """Put `new` in the place of `folder`, which stays whole until then."""
    old = folder.with_name(folder.name + ".replaced")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    new.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def _gathered(engine: Engine) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what is saved, on the host: everything, or with an adapter only what was trained."""
    module = engine.model.module
    adapter = hasattr(module, "peft_config")
    keep = engine.gang.world.is_main
    for name, parameter in module.named_parameters():
        if adapter and not parameter.requires_grad:
            continue
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            if keep:
                yield name, parameter.detach().to("cpu", copy=True)
    if keep and not adapter:
        stored = module.state_dict().keys()
        for name, buffer in module.named_buffers():
            if name in stored:
                yield name, buffer.detach().to("cpu", copy=True)
