"""`anyrank smi`: the accelerator, all hosts as one device; with --hosts a row for each host."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.errors import ConfigError
from train.hosts import flavor, hostfile, remote
from train.hosts.hostfile import Host, Hostfile
from train.text import laid_out, terminal_width

USAGE = "anyrank smi [--hosts] [--hostfile F]      the current flavor, or this machine"
_PATIENCE = 25.0  # seconds for a host to answer, whose nvidia-smi may take 20
_GB = 1e9
HEADS = ("NAME", "GPUS", "MEMORY", "UTILISATION", "POWER", "JOB")


@dataclass(frozen=True)
class HostRow:
    """A line of the table: bytes, a share of 1, watts; `error` stands for a silent host."""

    name: str
    count: int = 0
    device: str = ""
    used: float = 0.0
    total: float = 0.0
    busy: float | None = None
    power: float | None = None
    jobs: tuple[str, ...] = ()
    error: str = ""


def command(argv: Sequence[str]) -> int:
    """Print the table; the exit code is 1 if a host did not answer.

    Raises:
        UserError: an unknown word, or a hostfile that cannot be read.
    """
    if "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0
    path, each = arguments(argv)
    path = path or flavor.current(flavor.choice_file(os.environ))
    found = hostfile.read(path) if path else Hostfile((Host("localhost", 1),))
    answers = remote.ask(found.hosts, "train.hosts.usage", (), Path.cwd(), _PATIENCE)
    rows = [row(answer) for answer in answers]
    name = Path(found.path).name if found.path else "this machine"
    print("\n".join(table([whole(name, rows), *(rows if each else ())], terminal_width())))
    silent = [one for one in rows if one.error]
    if silent and not each:
        print(f"{len(silent)} of {len(rows)} hosts did not answer: anyrank smi --hosts shows which")
    return 1 if silent else 0


def arguments(argv: Sequence[str]) -> tuple[Path | None, bool]:
    """Return the hostfile that was named, if one was, and whether each host gets a row.

    Raises:
        ConfigError: a word that is neither --hosts nor --hostfile F.
    """
    words, path, each = list(argv), None, False
    while words:
        word = words.pop(0)
        if word == "--hosts":
            each = True
        elif word == "--hostfile" and words:
            path = Path(words.pop(0))
        else:
            raise ConfigError(f"anyrank smi does not know '{word}': {USAGE}")
    return path, each


def row(answer: remote.Answer) -> HostRow:
    """Return one host's row."""
    name = answer.host.name
    if answer.content is None:
        return HostRow(name, error=answer.error)
    devices: list[Mapping[str, Any]] = answer.content["devices"]
    names = Counter(device["name"] for device in devices)
    return HostRow(
        name,
        len(devices),
        ", ".join(names),
        sum(device["used"] for device in devices),
        sum(device["total"] for device in devices),
        _mean([device["busy"] for device in devices]),
        _sum([device["power"] for device in devices]),
        tuple(answer.content["jobs"]),
    )


def whole(name: str, rows: Sequence[HostRow]) -> HostRow:
    """Return all hosts' rows as if they were one device."""
    heard = [one for one in rows if not one.error]
    weighed = [one.busy for one in heard for _ in range(one.count)]
    return HostRow(
        name,
        sum(one.count for one in heard),
        ", ".join(sorted({one.device for one in heard})),
        sum(one.used for one in heard),
        sum(one.total for one in heard),
        _mean(weighed),
        _sum([one.power for one in heard]),
        tuple(sorted({job for one in heard for job in one.jobs})),
        "" if heard else "no host answered",
    )


def table(rows: Sequence[HostRow], width: int | None = None) -> list[str]:
    """Return the rows as aligned lines below their heads; in a narrow terminal jobs stand below."""
    cells = [HEADS, *(_cells(one) for one in rows)]
    return laid_out(cells, [True] * len(HEADS), width, "   ")


def _cells(one: HostRow) -> tuple[str, ...]:
    if one.error:
        return (one.name, one.error)
    return (
        one.name,
        f"{one.count} x {one.device}",
        f"{one.used / _GB:.1f} / {one.total / _GB:.1f} GB",
        "-" if one.busy is None else f"{one.busy:.0%}",
        "-" if one.power is None else f"{one.power:.0f} W",
        ", ".join(one.jobs) or "-",
    )


def _mean(numbers: Sequence[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if known else None


def _sum(numbers: Sequence[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None
