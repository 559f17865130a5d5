"""The hops of a run that need no torch: find what is named, open the data."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from train.config import RunConfig
from train.console import Console
from train.data.model_folder import locate_model, read_model_config
from train.data.open import open_dataset
from train.data.order import steps_per_epoch
from train.data.preset import build_preset
from train.data.store import Dataset
from train.errors import ConfigError
from train.launch.request import require_replaceable
from train.planning import DsConfig, Shape, read_ds_config, shape_of
from train.planning.pins import merge_pins

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Source:
    """A run with every name resolved: its model is a local folder, its ds_config read."""

    config: RunConfig
    model: Path
    shape: Shape
    ds: DsConfig
    pins: Mapping[str, str]
    preset: bool


def host_name() -> str:
    """Return this host's short name."""
    return socket.gethostname().split(".")[0]


def cache_folder(env: Mapping[str, str]) -> Path:
    """Return the user's cache folder of anyrank, made with mode 0700.

    Raises:
        ConfigError: it cannot be made.
    """
    base = Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "anyrank"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the cache folder {folder} cannot be made ({error.strerror}): set XDG_CACHE_HOME to a "
            "folder that can be written"
        ) from None
    return folder


def locate(config: RunConfig, cache: Path, console: Console) -> Source:
    """Find the model's folder and the ds_config; build the preset where nothing was named.

    Raises:
        UserError: one of them is missing or malformed, or the model would replace other files.
    """
    if config.output.save_dir is not None:
        save_dir, own = Path(config.output.save_dir), config.output.run_dir
        require_replaceable(save_dir, config.model.name_or_path, own)
    ds = read_ds_config(_ds_config(config.ds_config))
    pins = merge_pins(config, ds)
    preset = config.preset
    if preset:
        config = _with_preset(config, cache, console)
    model = locate_model(str(config.model.name_or_path), config.model.trust_remote_code)
    config = replace(config, model=replace(config.model, name_or_path=str(model)))
    return Source(config, model, shape_of(read_model_config(model)), ds, pins, preset)


def open_data(source: Source, cache: Path, console: Console) -> Dataset:
    """Open the dataset, tokenised once per host, and say what was found in it.

    Raises:
        DataError: it is missing, empty or malformed, or smaller than one batch.
    """
    data = open_dataset(source.config.data, source.config.model, cache)
    for notice in data.notices:
        console.say(notice)
    steps = steps_per_epoch(len(data.train), source.config.data.batch_size)
    console.say(
        f"{len(data.train)} samples to train on, {len(data.eval)} held out; "
        f"{source.config.data.batch_size} samples per step, {steps} steps per epoch"
    )
    return data


def _ds_config(name: str) -> Path:
    """Take a shipped ds_config by its name from any working folder."""
    path = Path(name).expanduser()
    shipped = ROOT / name
    return shipped if not path.exists() and shipped.exists() else path


def _with_preset(config: RunConfig, cache: Path, console: Console) -> RunConfig:
    found = build_preset(cache)
    console.say(
        f"The embedded preset: a small Mistral on the standard library's functions; batch size "
        f"{config.data.batch_size}, block size {config.data.block_size}, "
        f"{config.max_steps or 'all'} steps, lr {config.optimizer.lr:g}, {config.model.precision}"
    )
    return replace(
        config,
        model=replace(config.model, name_or_path=str(found.model)),
        data=replace(config.data, name_or_path=str(found.dataset)),
    )
