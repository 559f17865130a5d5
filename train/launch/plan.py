"""`anyrank plan`: the planner's command, with hostfiles."""

from __future__ import annotations

from collections.abc import Sequence

from train.launch import hostfile
from train.planning.command import Hosts, run


def command(argv: Sequence[str]) -> int:
    """Plan for a hostfile's hosts, print, and return the exit code.

    Raises:
        UserError: an argument, pin, GPU, model or hostfile that cannot be.
    """
    return run(argv, _hosts)


def _hosts(path: str | None) -> Hosts | None:
    if path is None:
        return None
    found = hostfile.read(path)
    return [(host.name, host.slots) for host in found.hosts], found.hardware
