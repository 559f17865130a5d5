"""`anyrank switch`: choose the hosts that ./launch.sh uses."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from train.errors import ConfigError, UserError
from train.hosts import flavor
from train.paths import shipped

USAGE = """\
anyrank switch            show the flavors and read a number, or q
anyrank switch NAME       choose one at once: a name, a number or a hostfile's path
anyrank switch --here     back to this machine alone"""


def command(argv: Sequence[str]) -> int:
    """Choose a flavor from the command line or from the menu; return the exit code.

    Raises:
        UserError: no such flavor, or more than one word.
    """
    folder, memory = shipped("hostfiles"), flavor.choice_file(os.environ)
    if argv and argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if len(argv) > 1:
        raise ConfigError(f"anyrank switch takes one name, but was given {len(argv)} words")
    if list(argv) == ["--here"]:
        flavor.remember(memory, None)
        print("The current flavor is this machine.")
        return 0
    found = flavor.find(folder)
    if argv:
        _take(argv[0], found, memory)
        return 0
    print(menu(found, flavor.current(memory)))
    return ask(found, memory, sys.stdin.readline)


def menu(flavors: tuple[flavor.Flavor, ...], chosen: Path | None) -> str:
    """Return the menu: number, name, GPUs, memory; a star marks the current flavor."""
    rows = []
    for number, one in enumerate(flavors, 1):
        gpus, memory = flavor.describe(one.hostfile) if one.hostfile else (one.fault, "")
        star = "*" if chosen is not None and one.path.resolve() == chosen.resolve() else ""
        rows.append((f"{number})", one.name, gpus, memory, star))
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
    lines = [
        f"{row[0]:>{widths[0]}} {row[1]:<{widths[1]}}   {row[2]:<{widths[2]}}   "
        f"{row[3]:>{widths[3]}}  {row[4]}".rstrip()
        for row in rows
    ]
    if chosen is not None and not any(row[4] for row in rows):
        lines.append(f"current: {chosen}")
    return "\n".join(lines)


def ask(flavors: tuple[flavor.Flavor, ...], memory: Path, read: Callable[[], str]) -> int:
    """Read a number until one is valid, and keep the choice; `q` or the end changes nothing."""
    while True:
        print("Number of the flavor, or q to keep the current one: ", end="", flush=True)
        word = read()
        if word.strip().lower() in ("", "q", "quit"):
            if not word:
                print()
            if not word or word.strip():
                chosen = flavor.current(memory)
                print(f"Nothing was changed: {chosen.name if chosen else 'this machine'} is used.")
                return 0
            continue
        try:
            _take(word.strip(), flavors, memory)
        except UserError as error:
            print(error)
        else:
            return 0


def _take(word: str, flavors: tuple[flavor.Flavor, ...], memory: Path) -> None:
    taken = flavor.choose(word, flavors)
    flavor.remember(memory, taken)
    gpus, size = flavor.describe(taken.hostfile) if taken.hostfile else ("", "")
    print(f"The current flavor is {taken.name}: {gpus}{', ' + size if size else ''}.")
