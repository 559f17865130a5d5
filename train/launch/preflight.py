"""What the hosts' facts say: whether each can take part, and whether they match. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from train.launch.everywhere import Answer
from train.launch.hostfile import Host
from train.launch.need import Need

Facts = Mapping[str, Any]
_SKEW = 5.0  # seconds that hosts' clocks may differ
_FILES = 4096  # descriptors: a connection to every peer, the data's files, libraries
_SHM = 80e6  # bytes of /dev/shm for each rank
_BUSY = 1e9  # bytes in use on a GPU that nobody uses: less than this
_GB = 1e9
UNSHARED = "it does not see the run folder: mount it there, or name a shared one with --run-dir"


def fault(host: Host, facts: Facts | None, trouble: str) -> str:
    """Return why a host cannot take part, with what mends it; empty if it can."""
    if facts is None:
        return f"host {host.name}: it does not answer{_reason(host.name, trouble)}"
    if facts["fault"]:
        return f"host {host.name}: {facts['fault']}"
    if not facts.get("shared", True):
        return f"host {host.name}: {UNSHARED}"
    found = len(facts["gpus"])
    if facts["device"] != "cpu" and found < host.slots:
        return (
            f"host {host.name}: it has {found} GPUs, but slots={host.slots} are asked of it: "
            f"write '{host.name} slots={found}'"
        )
    return ""


def failures(answer: Answer, need: Need) -> list[str]:
    """Return what is wrong with one host, a sentence each."""
    facts, host = answer.facts, answer.host
    if facts is None:
        return [fault(host, None, answer.trouble)]
    found = [fault(host, facts, "")] if fault(host, facts, "") else []
    return found + [f"{host.name}: {text}" for text in _shortages(answer, facts, need)]


def limits(host: Host, facts: Facts, heard: float) -> Iterator[str]:
    """Yield in what a host, though it can take part, may fail later; `heard`: when it answered."""
    skew = facts["time"] - heard
    if abs(skew) > _SKEW:
        yield (
            f"its clock is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}: run 'systemctl "
            "restart chronyd' there (or ntpd, or timesyncd)"
        )
    shm = _SHM * host.slots
    if facts["shm"] < shm:
        yield (
            f"/dev/shm has {facts['shm'] / 1e6:.0f} MB, but {shm / 1e6:.0f} MB are needed: run "
            "'mount -o remount,size=8G /dev/shm', or docker run --shm-size=8g"
        )
    if facts["files"] < _FILES:
        yield f"only {facts['files']} files may be open: run 'ulimit -n 65536'"
    if facts["infiniband"] and facts["locked"] != -1:
        yield "memory for InfiniBand may not be locked: run 'ulimit -l unlimited'"
    busy = [one for one in facts["devices"][: host.slots] if one["used"] > _BUSY]
    if busy:
        used = sum(one["used"] for one in busy) / _GB
        yield (
            f"{len(busy)} of its GPUs are in use ({used:.0f} GB): see 'nvidia-smi' or 'rocm-smi' "
            "there"
        )


def _shortages(answer: Answer, facts: Facts, need: Need) -> Iterator[str]:
    yield from limits(answer.host, facts, answer.heard)
    if facts["disk"] < need.disk:
        yield (
            f"{facts['disk'] / _GB:.1f} GB of disk are free, but {need.disk / _GB:.1f} are needed: "
            "remove old runs, or name a larger disk with --run-dir"
        )
    available = facts["memory"]["available"]
    if available < need.memory:
        yield (
            f"{available / _GB:.1f} GB of memory are free, but {need.memory / _GB:.1f} GB are "
            "needed: end what uses it, or plan with --pin offload=none"
        )


def differences(facts: Sequence[Facts]) -> tuple[str, ...]:
    """Return, a sentence each, in what the hosts differ from the first and must not."""
    first, *others = facts
    found = []
    for other in others:
        name = other["host"]
        if other["device"] != first["device"]:
            found.append(
                f"{name} has ranks of kind {other['device']}, but {first['host']} has "
                f"{first['device']}: leave one of the two out of the hostfile"
            )
        if other["python"] != first["python"]:
            found.append(
                f"{name} has Python {other['python']}, but {first['host']} has {first['python']}: "
                "use the same environment on every host"
            )
        found += [
            f"{name} has {package} {other['packages'][package]}, but {first['host']} has "
            f"{version}: on {name}, run '{other['executable']} -m pip install "
            f"{package}=={version}'"
            for package, version in first["packages"].items()
            if other["packages"][package] != version
        ]
        if other["code"] != first["code"]:
            found.append(
                f"{name} has other code of anyrank ({other['code']}) than {first['host']} "
                f"({first['code']}): put the checkout on a folder that all hosts share, or rsync it"
            )
    return tuple(found)


def _reason(name: str, trouble: str) -> str:
    host = name.rpartition("@")[2]
    said = f" ({trouble})" if trouble else ""
    if "ermission denied" in trouble:
        return f"{said}: run 'ssh-copy-id {name}', so that ssh asks for no password"
    if "ost key" in trouble:
        return f"{said}: run 'ssh {name}' once and compare the key that it shows"
    if "resolve" in trouble:
        return f"{said}: add {host} to /etc/hosts, or correct its name in the hostfile"
    if "cd:" in trouble or "No module named" in trouble or "no such file" in trouble.lower():
        return f"{said}: the checkout, Python and this folder must be at the same paths there"
    return f"{said}: try 'ssh {name} true', and leave the host out if it is down"
