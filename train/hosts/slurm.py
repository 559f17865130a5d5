"""A Slurm job as hosts: its node list, its GPUs, its nodes' addresses."""

from __future__ import annotations

import itertools
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress

from train.errors import HostfileError
from train.hosts.hostfile import Host, Hostfile

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_WHOLE_JOBS = ("SLURM_GPUS", "SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK")
_MOST = 100_000  # nodes: more than any cluster has, so a range that long is a mistake


def hosts(env: Mapping[str, str]) -> Hostfile | None:
    """Return the hosts of the Slurm job that this process belongs to; None outside of one.

    Raises:
        HostfileError: the job's variables cannot be read.
    """
    if "SLURM_JOB_ID" not in env or "SLURM_JOB_NODELIST" not in env:
        return None
    names = expand(env["SLURM_JOB_NODELIST"])
    slots = slots_per_node(env)
    if len(names) == 1 and env.get("SLURMD_NODENAME") == names[0]:  # not salloc's shell elsewhere
        return Hostfile((Host("localhost", slots),), path="the Slurm job")
    return Hostfile(tuple(Host(name, slots) for name in names), path="the Slurm job")


def step_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for a step of one node.

    What srun would read as the whole job's wish for GPUs is no wish of such a step.
    """
    return {name: value for name, value in env.items() if name not in _WHOLE_JOBS}


def slots_per_node(env: Mapping[str, str]) -> int:
    """Return the GPUs of each node; without GPUs the tasks of each node, or 1.

    Raises:
        HostfileError: a variable that says neither `4` nor `a100:4`.
    """
    for name in ("SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE", "SLURM_NTASKS_PER_NODE"):
        if env.get(name):
            number = env[name].rpartition(":")[2]
            if not re.fullmatch("[1-9][0-9]{0,3}", number):
                raise HostfileError(
                    f"{name} is '{env[name]}', which names no number of GPUs: submit with "
                    "--gpus-per-node=4"
                )
            return int(number)
    return 1


def expand(text: str) -> tuple[str, ...]:
    """Return the nodes of a list such as `a[1-3,07],b`, in order.

    Raises:
        HostfileError: anything that is not such a list.
    """
    names: list[str] = []
    for word in _split(text):
        for name in itertools.islice(_expand_word(word, text), _MOST + 1):
            names.append(name)
            if len(names) > _MOST:
                raise _wrong(text, f"it names more than {_MOST} nodes")
    if len(set(names)) != len(names):
        raise _wrong(text, "it names a node twice")
    return tuple(names)


def address(name: str) -> str | None:
    """Return a node's address where its name alone does not resolve; None where it does."""
    with suppress(OSError):
        socket.getaddrinfo(name, None)
        return None
    shown = subprocess.run(
        ("scontrol", "show", "node", name), capture_output=True, text=True, timeout=30, check=False
    )
    found = re.search(r"\bNodeAddr=(\S+)", shown.stdout)
    return found[1] if found else None


def _split(text: str) -> list[str]:
    """Split at commas outside of brackets."""
    if len(text) > 1 << 20:
        raise _wrong(text[:40] + "…", "it is too long")
    words = re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", text)
    if not words or ",".join(words) != text:
        raise _wrong(text, "its commas or brackets do not match")
    return words


def _expand_word(word: str, text: str) -> Iterator[str]:
    parts = re.split(r"\[([^\[\]]*)\]", word)
    choices = [list(_ranges(part, text)) if n % 2 else [part] for n, part in enumerate(parts)]
    for pieces in itertools.product(*choices):
        name = "".join(pieces)
        if not _NAME.fullmatch(name):
            raise _wrong(text, f"'{ascii(name)[1:-1]}' cannot be a node's name")
        yield name


def _ranges(part: str, text: str) -> Iterator[str]:
    for piece in part.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", piece)
        if match is None:
            raise _wrong(text, f"'[{ascii(part)[1:-1]}]' is no list of numbers")
        low, high = match[1], match[2] or match[1]
        if int(high) < int(low) or int(high) - int(low) > _MOST:
            raise _wrong(text, f"'{piece}' is no range of nodes")
        yield from (f"{number:0{len(low)}d}" for number in range(int(low), int(high) + 1))


def _wrong(text: str, fault: str) -> HostfileError:
    shown = text if len(text) <= 80 else text[:77] + "..."
    return HostfileError(
        f"SLURM_JOB_NODELIST:1: {shown!a} is no node list such as 'a[1-3],b', as {fault}"
    )
