"""Time of collectives over the two levels of links: inside a host, and between hosts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from train.planning.cluster import Cluster
from train.planning.plan import Plan
from train.planning.shape import Shape


class Shares(Protocol):
    """What a collective reaches of a link's rate, and its seconds besides: once, and per hop."""

    @property
    def nvlink_efficiency(self) -> float:
        """Inside a host."""

    @property
    def nic_efficiency(self) -> float:
        """Through a NIC."""

    @property
    def collective_latency(self) -> float:
        """Seconds of a collective of no bytes."""

    @property
    def ring_step(self) -> float:
        """Seconds from one GPU to the next inside a host."""

    @property
    def ring_step_across(self) -> float:
        """Seconds from one host to the next."""


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
    size = plan.ranks
    local = max(1, min(size, cluster.per_host // plan.tp))
    return Group(size, local, max(1, cluster.per_host // local))


def tensor_group(plan: Plan, cluster: Cluster) -> Group:
    """Return the ranks that share every matrix."""
    local = max(1, min(plan.tp, cluster.per_host))
    return Group(plan.tp, local, max(1, cluster.per_host // local))


def replica_group(plan: Plan, cluster: Cluster) -> Group:
    """Return the ranks that share a row, of the largest replica."""
    size = max(plan.sizes) if plan.replicas else plan.sp
    local = max(1, min(size, cluster.per_host))
    return Group(size, local, max(1, cluster.per_host // local))


def copy_group(plan: Plan, cluster: Cluster) -> Group:
    """Return the ranks that keep a second copy of ZeRO-3's weights among them."""
    local = max(1, min(plan.hpz, cluster.per_host))
    return Group(plan.hpz, local, max(1, cluster.per_host // local))


def received_tokens(shape: Shape, sp: int, row: float, reach: float) -> float:
    """Return of how many tokens a rank receives the keys for a layer, the mean over the layers.

    A rank holds two pieces of a row of `row` tokens. Both together see up to `reach` tokens before
    them, in their own samples, and within the window.
    """
    whole = min(row * (1 - 1 / sp), reach)
    near = whole if shape.window is None else min(whole, 2.0 * shape.window)
    return (shape.full_layers * whole + (shape.layers - shape.full_layers) * near) / shape.layers


def exchange_time(size: float, group: Group, cluster: Cluster, shares: Shares) -> float:
    """Return the seconds in which every rank receives `size` bytes, as much from each other one."""
    others = max(1, group.size - 1)
    inside = size * (group.local - 1) / others
    across = size * (group.size - group.local) / others * cluster.per_host
    hop = shares.ring_step_across if across else shares.ring_step
    return (
        max(
            inside / (cluster.gpu.link * shares.nvlink_efficiency),
            across / (cluster.nic * shares.nic_efficiency),
        )
        + shares.collective_latency
        + hop
    )


def gather_time(
    size: float, group: Group, cluster: Cluster, shares: Shares, times: float = 1.0
) -> float:
    """Return the seconds of all-gathers, or reduce-scatters, of `size` bytes in all, in `times`.

    Every host receives what it has not got through its NICs, which its groups share; every GPU
    passes all of it on inside the host. The slower of the two decides. Besides, each of the
    `times` goes round a ring of all ranks, which is the one way that NCCL has for these two.
    """
    if group.size == 1:
        return 0.0
    inside = size * (group.local - 1) / group.local / (cluster.gpu.link * shares.nvlink_efficiency)
    across = 0.0
    if group.hosts > 1:
        missing = size * (group.hosts - 1) / group.hosts * group.beside
        across = missing / (cluster.nic * shares.nic_efficiency)
    hosts = group.hosts if group.hosts > 1 else 0
    ring = (group.size - hosts) * shares.ring_step + hosts * shares.ring_step_across
    return max(inside, across) + times * (shares.collective_latency + ring)
