"""`--config FILE`: arguments from a YAML or JSON file, or from an earlier run's config.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from train.arguments import ARGUMENTS
from train.command_line import read_words
from train.errors import ConfigError

# What belongs to one run alone, and is not taken over from its config.json.
PLACES = ("--run-dir", "--save-dir")
OWN = ("run_dir", "save_dir", "resume", "dry_run", "date")
FLAGS = {row.flag for row in ARGUMENTS}
SWITCHES = {row.flag for row in ARGUMENTS if row.read is None}
_NUMBER = re.compile(r"[-+]?(0|[1-9]\d*)?(\.\d*)?([eE][-+]?\d+)?|[-+]?\.(inf|nan)", re.IGNORECASE)
# What is typed, and what a file or an earlier start says instead.
INSTEAD = {
    "--epochs": "--max-steps",
    "--warmup-steps": "--warmup-ratio",
    "--warmup-ratio": "--warmup-steps",
}


def expand(argv: Sequence[str]) -> tuple[str, ...]:
    """Return a command line with `--config FILE` replaced by what the file says.

    That comes first, so what is typed wins over it.

    Raises:
        ConfigError: the file cannot be read, or does not hold arguments of a run.
    """
    path, typed = _split(argv)
    if path is None:
        return _at_home(argv)
    content = _read(path)
    if not isinstance(content, Mapping):
        raise ConfigError(f"--config {path} must hold arguments by name, such as 'lr: 2e-6'")
    try:
        words = words_of(content)
        names = [flag for flag, _ in flags_of(words)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigError(f"{min(twice)} stands twice: keep one")
        if "--config" in names:
            raise ConfigError("a file cannot name another by 'config': write its lines here")
        read_words(words)
    except ConfigError as error:
        raise ConfigError(f"--config {path}: {error}") from None
    return _at_home((*under(words, typed), *typed))


def _at_home(words: Sequence[str]) -> tuple[str, ...]:
    """Return a command line with `~` written out where no shell has done so: --run-dir=~/x."""
    found: list[str] = []
    for word in words:
        flag, equals, value = word.partition("=")
        named = flag if equals else found[-1] if found else ""
        value = value if equals else word
        if named.replace("_", "-") in PLACES and value.startswith("~"):
            value = str(Path(value).expanduser())
            word = f"{flag}={value}" if equals else value
        found.append(word)
    return tuple(found)


def under(words: Sequence[str], typed: Sequence[str]) -> tuple[str, ...]:
    """Return what remains of the words of a file, or of an earlier start, under what is typed.

    A flag that is typed, or of which another is typed that says the same, is left out; of pins
    those of the same key.
    """
    given = dict(flags_of(typed))
    pinned = {word.partition("=")[0] for word in given.pop("--pin", ())}
    given |= {other: () for flag, other in INSTEAD.items() if flag in given}
    kept: list[str] = []
    for flag, values in flags_of(words):
        if flag == "--pin":
            values = tuple(word for word in values if word.partition("=")[0] not in pinned)
        if flag not in given and (values or flag != "--pin"):
            kept += (flag, *values)
    return tuple(kept)


def flags_of(words: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each flag under its own name, with the words that follow it."""
    aliases = {row.alias: row.flag for row in ARGUMENTS if row.alias}
    flag, values = "", list[str]()
    for word in (*words, "--"):
        if not word.startswith("--"):
            values.append(word)
            continue
        if flag:
            yield aliases.get(flag, flag), tuple(values)
        name, equals, value = word.partition("=")
        flag, values = name.replace("_", "-"), [value] if equals else []


def words_of(content: Mapping[str, Any], leave_out: Sequence[str] = OWN) -> tuple[str, ...]:
    """Return the command line of arguments by name; dashes and underscores are alike.

    Args:
        content: arguments as in a file, or a run's whole config.json, which has sections.
        leave_out: names that are not taken from a config.json.

    Raises:
        ConfigError: a value is of no kind that an argument has.
    """
    whole = isinstance(content.get("model"), Mapping) and isinstance(content.get("data"), Mapping)
    pairs = _flat(content, leave_out) if whole else content.items()
    return tuple(word for name, value in pairs for word in _words(str(name), value))


def _flat(content: Mapping[str, Any], leave_out: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield the arguments of a run's config.json, as `RunConfig` is written there."""
    for key, value in content.items():
        if key in ("model", "data", "optimizer", "output"):
            lora = value.get("lora") if key == "model" else None
            if lora:
                yield "use_lora", True
                yield from ((f"lora_{name}", number) for name, number in lora.items())
            named = {
                "name_or_path": "dataset_name_or_path" if key == "data" else "model_name_or_path",
                "eval_name_or_path": "eval_dataset_name_or_path",
            }
            instead = "warmup_steps" if value.get("warmup_ratio") is not None else ""
            if hub := value.get("hub"):  # the folder is only where this machine keeps it
                value = {**value, "name_or_path": hub}
            for name, inner in value.items():
                if name not in (*leave_out, "lora", "hub", instead):
                    yield named.get(name, name), inner
        elif key not in leave_out:
            yield ("pin" if key == "pins" else key), value


def _words(name: str, value: Any) -> Iterator[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, Mapping):
        value = [f"{key}={inner}" for key, inner in value.items()]
    elif isinstance(value, list):
        pairs = all(isinstance(part, list) and len(part) == 2 for part in value)
        value = [f"{part[0]}={part[1]}" for part in value] if pairs else value
        if flag in FLAGS and not all(isinstance(part, str | int | float) for part in value):
            raise ConfigError(f"'{name}' must be a list of texts or numbers, but holds {value[0]}")
    if value is None or value in ([], ()):
        return
    if value is False:
        if flag not in SWITCHES:  # another trainer's name, or a misspelt one
            yield f"{flag}=false"
        return
    yield flag
    if isinstance(value, list):
        yield from map(str, value) if name == "pin" else (",".join(map(str, value)),)
    elif isinstance(value, str | int | float):
        if value is not True:
            yield str(value)
    else:
        raise ConfigError(f"'{name}' must be text, a number, true or false, or a list of them")


def _split(argv: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Return the file that --config names, and the other words.

    Raises:
        ConfigError: it is named twice, or without a file.
    """
    rest = list(argv)
    at = [i for i, word in enumerate(rest) if word.partition("=")[0] == "--config"]
    if not at:
        return None, rest
    word = rest.pop(at[0])
    name = word.partition("=")[2] if "=" in word else rest.pop(at[0]) if at[0] < len(rest) else ""
    if not name or len(at) > 1:
        raise ConfigError("--config takes one YAML or JSON file, once")
    return Path(name).expanduser(), rest


def _read(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} cannot be read ({error})") from None
    if path.suffix == ".json":
        try:
            return json.loads(text, object_pairs_hook=_once)
        except ConfigError as error:
            raise ConfigError(f"--config {path}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"--config {path} is not JSON ({error})") from None
    import yaml  # what most runs do without

    try:
        _require_plain(yaml.compose(text, yaml.SafeLoader))
        return yaml.safe_load(text)
    except ConfigError as error:
        raise ConfigError(f"--config {path}: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path} is not YAML ({' '.join(str(error).split())})") from None


def _require_plain(node: Any) -> None:
    """Refuse what YAML's parser reads in silence as something else.

    Of a key that a mapping has twice it takes the last; 010 is 8 to it, and 1:30 is 90.
    """
    number = node is not None and node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    if number and not _NUMBER.fullmatch(node.value):
        raise ConfigError(f"{node.value} is no plain number in YAML: write it in decimal digits")
    for part in node.value if node is not None and node.id in ("mapping", "sequence") else ():
        for inner in part if isinstance(part, tuple) else (part,):
            _require_plain(inner)
    if node is not None and node.id == "mapping":
        _once([(key.value, None) for key, _ in node.value if isinstance(key.value, str)])


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"'{min(twice)}' stands twice: keep one")
    return dict(pairs)
