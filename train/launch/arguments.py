"""What was typed after `./launch.sh`, checked before anything heavy is imported or started."""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from train.config import RunConfig, parse_args
from train.config_file import expand, flags_of, under
from train.errors import ConfigError, DataError, ModelError, UserError
from train.paths import looks_local, shipped
from train.planning.dsconfig import read_ds_config
from train.planning.pins import merge_pins

TOKENIZED = "tokenized.json"  # of a start that trains: what samples depend on besides arguments
# What a later start of a run does not take over from an earlier one.
_OF_A_START = {"--run-dir", "--resume", "--dry-run", "--local-rank"}
USAGE = """\
./launch.sh [N|A-B] [--hostfile F] [arguments of train/main.py]

  N              GPUs of the whole job; the hosts are filled in order, the last one partly if
                 need be. Left out: all GPUs of the hosts, or of this machine. A machine without
                 a GPU runs CPU ranks, one thread each.
  A-B            what there is between A and B GPUs, growing and shrinking with it; fewer than A
                 are waited for
  --hostfile F   DeepSpeed's hostfile, lines such as 'node1 slots=4'; left out: the current
                 flavor (anyrank switch), or with none chosen this machine

With neither a model nor a dataset named, an embedded preset is trained. With the --run-dir of a run
that exists, arguments that are not given are those of its last start.

"""


@dataclass(frozen=True)
class LaunchRequest:
    """How many GPUs, on which hosts, and the run's own arguments.

    `least`: what there is between so many and `gpus` will do.
    """

    gpus: int | None
    hostfile: str | None
    args: tuple[str, ...]
    least: int | None = None


def parse(argv: Sequence[str]) -> LaunchRequest:
    """Split the launcher's own words from the run's.

    Raises:
        ConfigError: N is not a whole number of at least 1, or --hostfile or --config lacks its
            value, or what --config names holds no arguments.
    """
    words = list(argv)
    gpus: int | None = None
    least: int | None = None
    if words and not re.match(r"-\D", words[0]):
        least, gpus = _bounds(words.pop(0))
    hostfile: str | None = None
    args: list[str] = []
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if flag not in ("--hostfile", "-H"):
            args.append(word)
            continue
        if not equals:
            value = words.pop(0) if words else ""
        if not value or hostfile is not None:
            fault = "is given twice" if hostfile is not None else "lacks its value"
            raise ConfigError(f"--hostfile {fault}: name one hostfile, such as hostfiles/8node")
        hostfile = value
        if gpus is None and words and re.fullmatch(r"\d+(-\d+)?", words[0]):
            least, gpus = _bounds(words.pop(0))
    return LaunchRequest(gpus, hostfile, expand(args), least)


def check(request: LaunchRequest, now: float) -> tuple[RunConfig, tuple[str, ...]]:
    """Check the run's arguments and files; return them with the run folder decided.

    Everything that every rank must agree on is in the returned arguments: the clock is read once.

    Raises:
        UserError: an argument, the ds_config or a path is wrong.
    """
    config = parse_args(request.args)
    added: list[str] = []
    ds_config = ds_config_path(config.ds_config)
    if str(ds_config) != config.ds_config:
        added += ["--ds-config", str(ds_config)]
    merge_pins(config, read_ds_config(ds_config, config))
    require_path(config.model.name_or_path, "model", ModelError)
    require_path(config.model.tokenizer, "tokenizer", ModelError)
    for name in (*config.data.names, *config.data.eval_names):
        require_path(None if name.is_url else name.where, "dataset", DataError)
    template = config.model.chat_template
    if template not in (None, "chatml", "none") and not Path(str(template)).expanduser().is_file():
        raise ConfigError(
            f"--chat-template '{template}' is no file: give a file that holds a chat template, "
            "chatml, or none; or leave it out for the tokenizer's own"
        )
    require_place(config)
    if config.output.run_dir is None:
        added += ["--run-dir", run_dir(config, now)]
    args = (*request.args, *added)
    return parse_args(args), args


def of_run(typed: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return the words of the run that is gone on with, and what is to be said of it.

    They are those of the newest start that trained, as its folder has them, and what was typed over
    them.
    """
    named = [value for flag, value in flags_of(typed) if flag == "--run-dir" and value]
    trained = Path(named[-1][0]).glob(f"attempts/*/{TOKENIZED}") if named else ()
    for folder in sorted((path.parent for path in trained), reverse=True):
        try:
            stored = expand(json.loads((folder / "environment.json").read_text())["arguments"])
        except (OSError, ValueError, KeyError):
            continue
        # Another number of GPUs has pins of its own: they are taken over together or not at all.
        dropped = _OF_A_START | ({"--pin"} & dict(flags_of(typed)).keys())
        kept = [(flag, *value) for flag, value in flags_of(stored) if flag not in dropped]
        words = under([word for part in kept for word in part], typed)
        if not words:
            break
        said = (
            f"going on with {named[-1][0]} as it was started ({folder.name}): {shlex.join(words)}"
        )
        return (*words, *typed), said
    return tuple(typed), ""


def ds_config_path(name: str) -> Path:
    """Return where a ds_config lies; a shipped one is found from any working folder."""
    path = Path(name).expanduser()
    return shipped(path) if not path.exists() and shipped(path).exists() else path


def require_path(name: str | None, noun: str, error: type[UserError]) -> None:
    """Refuse a name that can only be a local path and is not there; hub names pass.

    Raises:
        UserError: of the class `error`.
    """
    if name is None or Path(name).expanduser().exists():
        return
    if looks_local(name):
        raise error(
            f"the {noun} '{name}' does not exist: check the path (it is relative to {Path.cwd()}),"
            " or give a hub name such as owner/name"
        )


def require_replaceable(folder: Path, base: str | None, run: str | None = None) -> None:
    """Refuse to put a model in the place of a folder that holds anything but one that was saved.

    Args:
        base: the model that is trained from, if it is a folder.
        run: the run's folder; left out, it will be one in `runs`.

    Raises:
        ConfigError: it does, also a model of others; it cannot be made, it is the model that is
            trained from, or the run lies in it.
    """
    own = Path(run or "runs/new").resolve()
    where = folder.resolve()
    if own.is_relative_to(where) or any(
        where.is_relative_to(own / kept) for kept in ("checkpoints", "attempts")
    ):
        raise ConfigError(
            f"'{folder}' would be replaced by the model, but the run's own folder {run or 'runs'} "
            "needs it: name another folder to save to"
        )
    if not folder.exists():
        parent = next(path for path in where.parents if path.exists())
        if not (parent.is_dir() and os.access(parent, os.W_OK)):
            raise ConfigError(
                f"'{folder}' cannot be made, as {parent} is no folder that can be written: name "
                "another folder to save to"
            )
        return
    _require_other(folder, base)
    inside = list(folder.iterdir()) if folder.is_dir() else [folder]
    saved = {"config.json", "adapter_config.json"} & {path.name for path in inside}
    if inside and (not saved or any(path.is_dir() for path in inside)):
        raise ConfigError(
            f"'{folder}' would be replaced by the model, but holds other things "
            f"({', '.join(sorted(path.name for path in inside)[:3])}): name a new folder to save to"
        )
    if inside and not _has_our_card(folder):
        raise ConfigError(
            f"'{folder}' would be replaced by the model, but holds one that anyrank has not saved: "
            "name a new folder to save to"
        )


def _has_our_card(folder: Path) -> bool:
    """Whether a saved model has the model card that anyrank writes (`output/card.py`)."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return re.search(r'^tags: .*"anyrank"', card, re.MULTILINE) is not None


def require_place(config: RunConfig) -> None:
    """Refuse arguments by which the final model would take the place of something else.

    Raises:
        ConfigError: --save-dir is no place for it, or the run's folder has the model that is
            trained from where it will be.
    """
    output, base = config.output, config.model.name_or_path
    if output.save_dir is not None:
        require_replaceable(Path(output.save_dir), base, output.run_dir)
    elif output.run_dir is not None:
        _require_other(Path(output.run_dir) / "model", base)


def _require_other(folder: Path, base: str | None) -> None:
    if base is not None and folder.resolve() == Path(base).expanduser().resolve():
        raise ConfigError(
            f"{folder} is the model that is trained from: name another folder to save to"
        )


def run_dir(config: RunConfig, now: float) -> str:
    """Name the run's folder `runs/<time>-<model>`; a second run of one second gets a suffix."""
    name = Path(config.model.name_or_path or "preset").name
    stem = f"runs/{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-"
    stem += re.sub(r"[^A-Za-z0-9._-]", "_", name) or "model"
    path, again = stem, 1
    while Path(path).exists():
        again += 1
        path = f"{stem}-{again}"
    return path


def _bounds(word: str) -> tuple[int | None, int]:
    """Read `N`, or `A-B`: what there is between the two."""
    low, dash, high = word.partition("-")
    if not (low and dash):
        return None, _count(word)
    least, most = _count(low), _count(high)
    if least > most:
        raise ConfigError(f"{word} has its bounds in the wrong order: write {most}-{least}")
    return least, most


def _count(word: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,9}", word):
        raise ConfigError(
            f"the first word is the number of GPUs of the whole job, but is '{word}' instead: "
            "write for example ./launch.sh 8, the run's arguments after it"
        )
    if int(word) < 1:
        raise ConfigError(
            f"the number of GPUs must be at least 1, but is {word} instead: write ./launch.sh 1"
        )
    return int(word)
