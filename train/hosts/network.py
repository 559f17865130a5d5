"""Addresses and ports: which host is this machine, and where the ranks meet."""

from __future__ import annotations

import getpass
import random
import socket
from collections.abc import Sequence
from contextlib import closing, suppress

from train.errors import FaultError, HostfileError
from train.hosts.hostfile import Host

_QUIET_PORTS = range(12_000, 30_000)


def is_here(name: str) -> bool:
    """Whether a hostfile's name means this machine (and, with `user@`, this user)."""
    user, _, host = name.rpartition("@")
    if user and user != getpass.getuser():
        return False
    if host in ("localhost", socket.gethostname()):
        return True
    return any(_binds(address) for address in _addresses(host))


def master_address(hosts: Sequence[Host]) -> str:
    """Return the address of the first host by which the others can reach it.

    Raises:
        HostfileError: the first host's name cannot be resolved.
    """
    first, *others = (host.name.rpartition("@")[2] for host in hosts)
    if not others:
        return "127.0.0.1"
    if is_here(hosts[0].name):
        return route_to(others[0]) or socket.gethostname()
    found = _addresses(first)
    if not found:
        raise HostfileError(
            f"the address of host '{first}' is not known here: write its address in the hostfile, "
            "or add the name to /etc/hosts"
        )
    return found[0]


def route_to(host: str) -> str | None:
    """Return this machine's address on the interface that leads to `host`, if it is known."""
    for address in _addresses(host):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with (
            suppress(OSError),  # no way there, or a kernel without IPv6
            closing(socket.socket(family, socket.SOCK_DGRAM)) as probe,
        ):
            probe.connect((address, 9))  # a datagram socket: nothing is sent
            return str(probe.getsockname()[0])
    return None


def loopback_error() -> str:
    """Return why processes of this machine cannot reach each other; empty if they can."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            probe.connect(("127.0.0.1", 9))  # a datagram socket: nothing is sent
        except OSError as error:
            return f"127.0.0.1 cannot be reached ({error.strerror}): run 'ip link set lo up'"
    return ""


def free_port() -> int:
    """Return a TCP port that nothing listens on, and that no system hands out by itself.

    One of those that it does hand out may be another's before the ranks have got to it.
    """
    for port in (*random.sample(_QUIET_PORTS, 100), 0):
        with (
            suppress(OSError),
            closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe,
        ):
            probe.bind(("", port))
            return int(probe.getsockname()[1])
    raise FaultError("no TCP port is free on this machine: end what holds them")


def _addresses(host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:  # not a name that this machine can resolve: an ssh alias, or a mistake
        return []
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)  # IPv4 first, as DeepSpeed expects
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _binds(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
            probe.bind((address, 0))
    except OSError:  # the address of another machine, or a kernel without IPv6
        return False
    return True
