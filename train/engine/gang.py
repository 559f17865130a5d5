"""The processes of one job, as an argument: who they are and how they agree."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import deepspeed
import torch
import torch.distributed as dist

from train.config import World
from train.engine.device import choose_device, gpu_found
from train.engine.replica import Replica
from train.errors import ConfigError, FaultError, mark_echo
from train.hosts.memory import left_by_limits, memory
from train.hosts.probe import interface_variables
from train.launch import heartbeat
from train.planning.cluster import Device

T = TypeVar("T")
SETUP_TIMEOUT = timedelta(minutes=60)


@dataclass(frozen=True)
class Gang:
    """All processes of the job; `control` is a gloo group for small objects and slow work.

    `marks`: moments of this start, by name, as seconds since the epoch (see `RestartRecord`).
    """

    world: World
    device: torch.device
    control: Any
    marks: Mapping[str, float] = field(default_factory=dict)

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in rank order, on every rank."""
        found: list[Any] = [None] * self.world.size
        dist.all_gather_object(found, value, group=self.control)
        return found

    def on_main(self, act: Callable[[], T]) -> T | None:
        """Run `act` on rank 0, where its value is returned; raise its error on every rank."""
        value: T | None = None
        failure: list[Exception | None] = [None]
        if self.world.is_main:
            try:
                value = act()
            except Exception as error:
                failure = [error]
        dist.broadcast_object_list(failure, src=0, group=self.control)
        if failure[0] is not None:
            if not self.world.is_main:
                mark_echo(failure[0])
            raise failure[0]
        return value

    def from_main(self, make: Callable[[], T]) -> T:
        """Run `make` on rank 0 and return its value, or raise its error, on every rank."""
        box: list[Any] = [self.on_main(make)]
        dist.broadcast_object_list(box, src=0, group=self.control)
        found: T = box[0]
        return found

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Add the ranks' tensors in place; same shape and type on every rank."""
        dist.all_reduce(values)
        return values

    def devices(self) -> tuple[Device, ...]:
        """Describe every rank's device, in rank order."""
        host = memory()["total"]
        if self.device.type == "cuda":
            own = gpu_found(self.world.node, self.device, host)
        else:
            ranks = self.world.local_size
            share = min(1.0, len(os.sched_getaffinity(0)) / ranks)
            room = min(host // ranks, left_by_limits())
            own = Device(self.world.node, "cpu", room, host, share)
        return tuple(self.gather(own))

    def replica(self, ranks: tuple[int, ...]) -> Replica:
        """Join these ranks, of which this is one, to a replica; only they take part."""
        return Replica(self.group(ranks), ranks, ranks.index(self.world.rank))

    def group(self, ranks: tuple[int, ...]) -> Any:
        """Return torch's group of these ranks, of which this is one; only they take part.

        torch names such groups by how many a process has made: every rank must make as many. Their
        connections are made at once: what they send later does not need every one of them.
        """
        group = dist.new_group(list(ranks), timeout=SETUP_TIMEOUT, use_local_synchronization=True)
        dist.all_reduce(torch.zeros(1, device=self.device), group=group)
        return group

    def barrier(self) -> None:
        """Wait until every rank is here."""
        dist.barrier(group=self.control)

    def close(self) -> None:
        """Leave the job; nothing can be agreed afterwards."""
        dist.destroy_process_group()


def connect(world: World, env: MutableMapping[str, str]) -> Gang:
    """Join the job, when it is this rank's turn.

    `env` is the process's environment: DeepSpeed reads LOCAL_RANK from it, so for a run that no
    launcher started it is completed in place.
    """
    own = {"began": heartbeat.began(), "imported": time.time()}
    marks = {**own, **heartbeat.await_turn(env)}
    device = choose_device(world, env)
    _without_shared_memory_op()
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" in env:
        env.update(interface_variables(env, env["MASTER_ADDR"]))
        _join(world, env, backend)
    else:
        env.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_SIZE="1")
        store = dist.HashStore()  # type: ignore[attr-defined]  # documented, but not exported
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
    control = dist.new_group(backend="gloo", timeout=SETUP_TIMEOUT)
    return Gang(world, device, control, marks)


def _join(world: World, env: Mapping[str, str], backend: str) -> None:
    try:
        dist.init_process_group(
            backend, rank=world.rank, world_size=world.size, timeout=SETUP_TIMEOUT
        )
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        taken = f"port {env['MASTER_PORT']}, where the ranks were to meet, is in use on this host"
        if heartbeat.supervised(env):
            raise FaultError(f"{taken}: the next start takes another") from None
        raise ConfigError(
            f"{taken}: give another one, as in 'deepspeed --master_port 29511 …'"
        ) from None


def _without_shared_memory_op() -> None:
    """Keep DeepSpeed from building, and mapping 69 MB of /dev/shm per rank for, an op not used.

    It asks nothing else of this table, and would ask a compiler of every rank to fill it.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
