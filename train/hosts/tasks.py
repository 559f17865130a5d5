"""Ranks that `srun`, `mpirun` or the like has started: one run of N, never N runs of one rank."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from train.errors import ConfigError
from train.hosts import slurm

_PORT = 29500  # torch's and DeepSpeed's
_JOB_PORTS = range(12_000, 30_000)  # for Slurm, where jobs share nodes


@dataclass(frozen=True)
class Starter:
    """A program that starts N processes, and the variables in which it tells each who it is."""

    name: str
    rank: str
    size: str
    local_rank: str
    local_size: str


_STARTERS = (
    Starter("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID",
            "SLURM_STEP_TASKS_PER_NODE"),
    Starter("mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
            "OMPI_COMM_WORLD_LOCAL_SIZE"),
    Starter("mpirun", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK",
            "MV2_COMM_WORLD_LOCAL_SIZE"),
    Starter("jsrun", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_RANK",
            "JSM_NAMESPACE_LOCAL_SIZE"),
    Starter("mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)  # fmt: skip


def variables(env: Mapping[str, str]) -> dict[str, str]:
    """Return a launcher's variables for a process that is one of several; {} for any other.

    Raises:
        ConfigError: a variable is no number, or it is not known where the ranks meet.
    """
    starter = _starter(env)
    if starter is None or "RANK" in env:
        return {}
    try:
        rank, size = int(env[starter.rank]), int(env[starter.size])
        local_rank = int(env[starter.local_rank])
        local_size = _local_size(env, starter)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"{starter.name} has started {env[starter.size]} copies of a run of one process, and "
            f"its variables do not say which rank this is ({error}): use ./launch.sh or deepspeed"
        ) from None
    return {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(local_rank),
        "LOCAL_SIZE": str(local_size),
        "CROSS_RANK": env.get("SLURM_NODEID") or str(rank // local_size),
        "MASTER_ADDR": env.get("MASTER_ADDR") or _master(env, starter, one_host=local_size == size),
        "MASTER_PORT": env.get("MASTER_PORT") or str(_port(env, starter)),
    }  # fmt: skip


def own_device(env: Mapping[str, str], local_rank: int, visible: int) -> int | None:
    """Return which of a process's visible GPUs is its own; None: there are fewer than processes.

    `srun --gpus-per-task=1` leaves each process one, which is the first that it sees.
    """
    if local_rank < visible:
        return local_rank
    return 0 if visible == 1 and _starter(env) is not None else None


def require_meeting_place(env: Mapping[str, str]) -> None:
    """Refuse a launcher's variables that name no place to meet at: torch would look for an hour.

    Raises:
        ConfigError: MASTER_ADDR or MASTER_PORT is missing, or is none.
    """
    address, port = env.get("MASTER_ADDR", ""), env.get("MASTER_PORT", "")
    try:
        if not (address and port.isdecimal() and 0 < int(port) < 1 << 16):
            raise ValueError("an address and a number from 1 to 65535 are needed")
        socket.getaddrinfo(address, int(port))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"RANK is set, so ranks meet at MASTER_ADDR '{address}' and MASTER_PORT '{port}', but "
            f"that is no place to meet at ({getattr(error, 'strerror', None) or error}): start the "
            "run with ./launch.sh or deepspeed, or unset RANK"
        ) from None


def refuse_copies(env: Mapping[str, str]) -> None:
    """Refuse to be one of several launchers, each of which would start the whole job.

    Raises:
        ConfigError: this process is one of several.
    """
    starter = _starter(env)
    if starter is not None:
        raise ConfigError(
            f"{starter.name} has started {env[starter.size]} copies of the launcher, each of which "
            "would start the whole job: start one, as slurm/train.sbatch does"
        )
    if "RANK" in env and env.get("WORLD_SIZE", "1") not in ("", "1"):  # as a PyTorchJob's pods
        raise ConfigError(
            f"RANK and WORLD_SIZE say that this is one of {env['WORLD_SIZE']} copies of the "
            "launcher, each of which would start the whole job: start one with both unset, or "
            "train/main.py in each"
        )


def _starter(env: Mapping[str, str]) -> Starter | None:
    """Return what has started this process, if it has started others, too.

    A shell that srun opened on a terminal is alone, whatever the job's size.
    """
    if "SLURM_PTY_PORT" in env:
        return None
    for starter in _STARTERS:
        if starter.rank in env and env.get(starter.size, "1") != "1":
            return starter
    return None


def _local_size(env: Mapping[str, str], starter: Starter) -> int:
    """Return the ranks of this host; Slurm writes those of all nodes, as `2(x3),1`."""
    if starter.name != "srun":
        return int(env[starter.local_size])
    if env.get("SLURM_STEP_NUM_NODES", "1") == "1":
        return int(env[starter.size])
    sizes: list[int] = []
    for word in env[starter.local_size].split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", word)
        if found is None:
            raise ValueError(f"{starter.local_size} is '{word}'")
        sizes += [int(found[1])] * int(found[2] or 1)
    return sizes[int(env["SLURM_NODEID"])]


def _master(env: Mapping[str, str], starter: Starter, *, one_host: bool) -> str:
    if one_host:
        return "127.0.0.1"
    if starter.name == "srun" and env.get("SLURM_STEP_NODELIST"):
        first = slurm.expand(env["SLURM_STEP_NODELIST"])[0]
        return slurm.address(first) or first
    raise ConfigError(
        f"{starter.name} has started {env[starter.size]} ranks on several hosts: set MASTER_ADDR "
        "to the address of rank 0's host for all of them, or use ./launch.sh"
    )


def _port(env: Mapping[str, str], starter: Starter) -> int:
    """Return a port that all ranks of a step agree on, and most likely no other step uses."""
    job, step = (env.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    if starter.name != "srun" or not (job.isdecimal() and step.isdecimal()):
        return _PORT
    return _JOB_PORTS[(int(job) * 101 + int(step)) % len(_JOB_PORTS)]
