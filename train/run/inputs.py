"""The stages of a run that need no torch: find what is named, open the data."""

from __future__ import annotations

import gc
import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from train.arguments import ADAPTER, ARGUMENTS
from train.config import RunConfig, World
from train.config_file import expand, flags_of
from train.data.mix import Dataset
from train.data.model_files import require_trainable, rounded
from train.data.model_folder import locate_model, read_model_config
from train.data.open import opening
from train.data.order import steps_per_epoch
from train.data.preset import build_preset
from train.data.preview import sample_lines
from train.data.tokenizers import unlike_own
from train.errors import ConfigError
from train.hosts import network
from train.launch.arguments import TOKENIZED, ds_config_path, of_run, require_place
from train.output.console import Console
from train.paths import cache_folder
from train.planning import DsConfig, Shape, read_ds_config, shape_of
from train.planning.catalog import hub_name
from train.planning.pins import Pins, merge_pins, zero3_left_out

_NAMED = {"--model-name-or-path", "--dataset-name-or-path"}
FEW = 30  # optimizer steps of a whole run
WHOLE = next(row.default for row in ARGUMENTS if row.flag == "--lr")


@dataclass(frozen=True)
class RunInputs:
    """A run with every name resolved: its model is a local folder, its ds_config read."""

    config: RunConfig
    model: Path
    shape: Shape
    ds: DsConfig
    pins: Pins
    preset: bool


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep the collector off while libraries are imported.

    Nothing that an import makes is garbage, and walking over it took a third of the time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def words(typed: Sequence[str], world: World) -> tuple[str, ...]:
    """Return what is run: what was typed, with the arguments of the file that --config names.

    Where the folder of a run of another model than the preset is all that names one, it goes on
    with its own arguments, as under `./launch.sh`.

    Raises:
        ConfigError: the file cannot be read, or does not hold arguments of a run.
    """
    given = expand(typed)
    found, said = of_run(given)
    if _NAMED & dict(flags_of(given)).keys() or not _NAMED & dict(flags_of(found)).keys():
        return given
    Console(world.is_main).say(said)
    return found


def begin(world: World, env: Mapping[str, str]) -> tuple[Console, Path]:
    """Return rank 0's voice, silent on other ranks, and this user's cache folder.

    Raises:
        ConfigError: the cache folder cannot be made, or this machine has no loopback interface.
    """
    if error := network.loopback_error():
        raise ConfigError(error)
    return Console(world.is_main), cache_folder(env)


def host_name() -> str:
    """Return this host's short name."""
    return socket.gethostname().split(".")[0]


def locate(config: RunConfig, cache: Path, console: Console) -> RunInputs:
    """Find the model's folder and the ds_config; build the preset where nothing was named.

    Raises:
        UserError: one of them is missing or malformed, or the model would replace other files.
    """
    require_place(config)
    ds = read_ds_config(ds_config_path(config.ds_config), config)
    if ds.notice:
        console.say(ds.notice)
    pins = merge_pins(config, ds)
    if left_out := zero3_left_out(config.pins, config, ds):
        console.say(left_out)
    preset = config.preset
    if preset:
        config = _with_preset(config, cache, console)
    name = str(config.model.name_or_path)
    hub = None if Path(name).expanduser().exists() else hub_name(name) or name
    if hub not in (None, name):
        console.say(f"{name} is {hub} on the hub")
    model = locate_model(name, trust_remote_code=config.model.trust_remote_code)
    config = replace(
        config,
        model=replace(config.model, name_or_path=str(model), hub=hub),
        data=replace(config.data, date=date_of(config.output.run_dir)),
    )
    described = read_model_config(model)
    block = config.data.block_size
    shape, notices = require_trainable(model, described, shape_of(described), block)
    for notice in (*notices, *rounded(model, config.model.precision)):
        console.say(notice)
    return RunInputs(config, model, shape, ds, pins, preset)


def date_of(run: str | None) -> str | None:
    """Return the day that a run's first start told the chat template, where one asked for it."""
    for path in sorted(Path(run or "").glob(f"attempts/*/{TOKENIZED}")) if run else ():
        try:
            date = json.loads(path.read_text(encoding="utf-8")).get("date")
        except (OSError, ValueError, AttributeError):  # a start was killed as it wrote this
            continue
        if date is not None:
            return str(date)
    return None


def open_data(inputs: RunInputs, cache: Path, console: Console) -> tuple[RunInputs, Dataset]:
    """Open the dataset, tokenized once per host, say what was found in it and show samples.

    Returns:
        The inputs, with the chat template that its rows need, and the dataset.

    Raises:
        DataError: it is missing, empty or malformed, or smaller than one batch.
    """
    config = inputs.config
    data = console.follow(opening(config.data, config.model, cache))
    unlike = unlike_own(config.model) if console.speaks else ""
    for notice in (*data.notices, *([unlike] if unlike else [])):
        console.say(notice)
    places, batch = data.train.mixture.places, config.data.batch_size
    noun = "pairs" if config.data.objective == "dpo" else "samples"
    evaluated = "to evaluate on" if config.data.eval_names else "held out"
    console.say(
        f"{len(data.train)} {noun} to train on, {len(data.validation)} {evaluated}; "
        f"{batch} {noun} per step, {steps_per_epoch(places, batch)} steps per epoch"
    )
    for line in (*few_steps(config, places), *slow_adapter(config)):
        console.say(line)
    for line in sample_lines(data.shown, colour=console.colour):
        console.say(line)
    if data.template is None:
        return inputs, data
    model = replace(config.model, chat_template=data.template)
    return replace(inputs, config=replace(config, model=model)), data


def few_steps(config: RunConfig, places: int) -> Iterator[str]:
    """Say where a run of `places` samples an epoch makes few steps, or each sees much of the data.

    A model learns by its steps, and a batch that is large for the data leaves it few.
    """
    batch = config.data.batch_size
    total = config.max_steps or config.epochs * steps_per_epoch(places, batch)
    if config.max_steps is None and total < FEW:
        smaller = f"a smaller --batch-size than {batch}, or more --epochs, makes"
        mend = smaller if batch > 1 else "more --epochs make"
        few = "steps, which may be too few to learn much"
        yield f"the run makes {total} {few}: {mend} more of them"
    elif batch > max(1, places / 10):
        yield (
            f"a batch of {batch} is {batch / places:.0%} of the data: a smaller --batch-size makes "
            "more steps of an epoch"
        )


def slow_adapter(config: RunConfig) -> Iterator[str]:
    """Say where an adapter has a rate at which it hardly learns, as from a whole model's --config.

    Such a file gives --lr, so that an adapter's own does not count.
    """
    lr, own = config.optimizer.lr, ADAPTER["lr"]
    if config.model.lora and config.data.objective == "sft" and lr <= WHOLE:
        yield (
            f"--lr {lr:g} is a rate for whole models, at which an adapter hardly learns: where "
            f"nothing gives it, also no --config, it is {own:g} with --use-lora"
        )


def _with_preset(config: RunConfig, cache: Path, console: Console) -> RunConfig:
    found = build_preset(cache)
    console.say(
        f"The embedded preset: a small Mistral on the standard library's functions; batch size "
        f"{config.data.batch_size}, block size {config.data.block_size}, "
        f"{config.max_steps or 'all'} steps, lr {config.optimizer.lr:g} "
        f"({config.optimizer.lr_schedule}), {config.model.precision}, "
        f"ds_config {Path(config.ds_config).name}"
    )
    return replace(
        config,
        model=replace(config.model, name_or_path=str(found.model)),
        data=replace(config.data, name_or_path=str(found.dataset)),
    )
