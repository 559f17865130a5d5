"""Time of collectives over the two levels of links: inside a host, and between hosts."""

from __future__ import annotations

from dataclasses import dataclass
from math import log2
from typing import Protocol

from train.planning.hardware import Cluster
from train.planning.plan import Plan


class Shares(Protocol):
    """Shares of a link's rate that a collective reaches: inside a host, and through its NICs."""

    @property
    def busbar(self) -> float:
        """Inside a host."""

    @property
    def nic(self) -> float:
        """Through a NIC."""


@dataclass(frozen=True)
class Group:
    """Ranks that communicate: how many, how many of them on one host, and groups like it there."""

    size: int
    local: int
    beside: int

    @property
    def hosts(self) -> int:
        """Hosts that the group spans."""
        return -(-self.size // self.local)


def data_group(plan: Plan, cluster: Cluster) -> Group:
    """Return the ranks among which ZeRO divides: tensor parallel ranks are neighbours."""
    size = plan.dp * plan.sp
    local = max(1, min(size, cluster.per_host // plan.tp))
    return Group(size, local, max(1, cluster.per_host // local))


def tensor_group(plan: Plan, cluster: Cluster) -> Group:
    """Return the ranks that share every matrix."""
    local = max(1, min(plan.tp, cluster.per_host))
    return Group(plan.tp, local, max(1, cluster.per_host // local))


def gather_time(
    size: float, group: Group, cluster: Cluster, shares: Shares, latency: float
) -> float:
    """Return the seconds of an all-gather, or a reduce-scatter, of `size` bytes in all.

    Every host receives what it has not got through its NICs, which its groups share; every GPU
    passes all of it on inside the host. The slower of the two decides. `latency` is the seconds
    of a doubling of ranks.
    """
    if group.size == 1:
        return 0.0
    inside = size * (group.local - 1) / group.local / (cluster.gpu.link * shares.busbar)
    across = 0.0
    if group.hosts > 1:
        missing = size * (group.hosts - 1) / group.hosts * group.beside
        across = missing / (cluster.nic * shares.nic)
    return max(inside, across) + latency * log2(group.size)
