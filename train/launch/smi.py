"""`anyrank smi`: the accelerator, all hosts as one device; with --hosts a row for each host."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.errors import ConfigError
from train.launch import everywhere, flavor, hostfile
from train.launch.hostfile import Host, Hostfile
from train.launch.request import ROOT

USAGE = "anyrank smi [--hosts] [--hostfile F]      the current flavor, or this machine"
_PATIENCE = 5.0  # seconds for a host to answer
_GB = 1e9
HEADS = ("NAME", "GPUS", "MEMORY", "UTILISATION", "POWER", "JOB")


@dataclass(frozen=True)
class Row:
    """A line of the table: bytes, a share of 1, watts; `fault` stands for a silent host."""

    name: str
    count: int = 0
    device: str = ""
    used: float = 0.0
    total: float = 0.0
    busy: float | None = None
    power: float | None = None
    jobs: tuple[str, ...] = ()
    fault: str = ""


def command(argv: Sequence[str]) -> int:
    """Print the table; the exit code is 1 if a host did not answer.

    Raises:
        UserError: an unknown word, or a hostfile that cannot be read.
    """
    if "-h" in argv or "--help" in argv:
        print(USAGE)
        return 0
    path, each = arguments(argv)
    path = path or flavor.current(flavor.memory_file(os.environ, ROOT))
    found = hostfile.read(path) if path else Hostfile((Host("localhost", 1),))
    answers = everywhere.ask(found.hosts, "train.launch.gauge", (), Path.cwd(), _PATIENCE)
    rows = [row(answer) for answer in answers]
    name = Path(found.path).name if found.path else "this machine"
    print("\n".join(table([whole(name, rows), *(rows if each else ())])))
    silent = [one for one in rows if one.fault]
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


def row(answer: everywhere.Answer) -> Row:
    """Return one host's row."""
    name = answer.host.name
    if answer.facts is None:
        return Row(name, fault=answer.trouble)
    gauges: list[Mapping[str, Any]] = answer.facts["gauges"]
    devices = Counter(gauge["name"] for gauge in gauges)
    return Row(
        name,
        len(gauges),
        ", ".join(devices),
        sum(gauge["used"] for gauge in gauges),
        sum(gauge["total"] for gauge in gauges),
        _mean([gauge["busy"] for gauge in gauges]),
        _sum([gauge["power"] for gauge in gauges]),
        tuple(answer.facts["jobs"]),
    )


def whole(name: str, rows: Sequence[Row]) -> Row:
    """Return all hosts' rows as if they were one device."""
    heard = [one for one in rows if not one.fault]
    weighed = [one.busy for one in heard for _ in range(one.count)]
    return Row(
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


def table(rows: Sequence[Row]) -> list[str]:
    """Return the rows as aligned lines below their heads."""
    cells = [HEADS, *(_cells(one) for one in rows)]
    widths = [max(len(line[i]) for line in cells if len(line) > 2) for i in range(len(HEADS))]
    widths[0] = max(len(line[0]) for line in cells)
    return [
        "   ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=False)).rstrip()
        for line in cells
    ]


def _cells(one: Row) -> tuple[str, ...]:
    if one.fault:
        return (one.name, one.fault)
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
