"""From the words of a command line to values by name, each read and checked alone."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from train.arguments import ARGUMENTS, GROUPS, OTHER_NAMES, PIN_KEYS, Argument, Parser
from train.errors import ConfigError, did_you_mean

NOTHING = "nothing"  # is to be written for what begins so in OTHER_NAMES
MANY = 6  # unknown arguments; so many are told a line each


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `train/main.py`; it raises ConfigError where argparse would exit."""
    parser = Parser("train/main.py", "Fine-tune a language model; the same run at any GPU count.")
    group = parser.add_argument_group()
    for row in ARGUMENTS:
        if row.flag in GROUPS:
            group = parser.add_argument_group(GROUPS[row.flag])
        flags = [row.flag] + ([row.alias] if row.alias else [])
        default = None if row.default in (None, False) else row.default
        text = (
            row.help
            if default is None or row.help is argparse.SUPPRESS
            else f"{row.help} (default {default})"
        )
        if row.read is None:
            group.add_argument(*flags, action="store_true", default=None, help=text)
        elif row.flag == "--pin":
            group.add_argument(*flags, action="extend", nargs="+", metavar="KEY=VALUE", help=text)
        else:
            group.add_argument(*flags, help=text, metavar="|".join(row.choices) or None)
    return parser


def read_words(argv: Sequence[str]) -> dict[str, Any]:
    """Return the values that a command line gives, by name, each read and checked alone.

    Raises:
        ConfigError: an unknown flag, or a missing or malformed value.
    """
    parser = build_parser()
    spaced = [hyphens(word) for word in argv]
    found, unknown = parser.parse_known_args(spaced)
    if unknown:
        told = list(_unknown(unknown))
        if len(told) < MANY:
            raise ConfigError("; ".join(told))
        raise ConfigError("\n    ".join((f"{len(told)} words are unknown:", *told)))
    return {
        row.name: _value(row, text)
        for row in ARGUMENTS
        if (text := getattr(found, row.name)) is not None
    }


def _unknown(words: Sequence[str]) -> Iterator[str]:
    """Say of each unknown argument, and of each word that follows none, what is meant instead."""
    flag = ""
    for word in words:
        if not word.startswith("--"):
            if not flag:
                yield f"unknown word '{word}'; see --help"
            flag = ""
            continue
        flag, equals, value = word.partition("=")
        meant = OTHER_NAMES.get(flag.removeprefix("--").lower())
        if meant is None:
            said = did_you_mean(flag, [row.flag for row in ARGUMENTS]) or "; see --help"
        elif meant.startswith(NOTHING):
            said = f": leave it out{meant.removeprefix(NOTHING)}"
        else:
            said = f": here it is {meant}"
        yield f"unknown argument '{word if value == 'false' else flag}'{said}"
        flag = "" if equals else flag


def hyphens(word: str) -> str:
    """Return a flag with dashes in its name: accept --batch_size for --batch-size."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value


def _value(row: Argument, text: Any) -> Any:
    if row.read is None or isinstance(text, list):
        return text
    if row.choices and text not in row.choices:
        near = did_you_mean(text, row.choices)
        raise ConfigError(
            f"{row.flag} must be one of {', '.join(row.choices)}, but is '{text}' instead{near}"
        )
    if text == "":
        raise ConfigError(f"{row.flag} must not be empty: give a value or leave the flag out")
    try:
        return row.read(text)
    except ValueError as error:
        raise ConfigError(f"{row.flag} {error}") from None


def parse_pins(words: Sequence[str], keys: Sequence[str] = PIN_KEYS) -> dict[str, str]:
    """Split `key=value` words; the planner checks the values.

    Raises:
        ConfigError: a word without `=`, an unknown key, or a key given twice with different values.
    """
    pins: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (equals and key and value):
            raise ConfigError(
                f"--pin takes key=value, but is '{word}' instead; for example --pin zero=2"
            )
        if key not in keys:
            hint = did_you_mean(key, keys) or f"; the keys are {', '.join(keys)}"
            raise ConfigError(f"--pin does not know '{key}'{hint}")
        if pins.setdefault(key, value) != value:
            raise ConfigError(f"--pin gives '{key}' twice, as {pins[key]} and as {value}: keep one")
    return pins
