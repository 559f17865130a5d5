"""What the hosts' facts say: whether each can take part, and whether they match. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from train.launch.hostfile import Host

Facts = Mapping[str, Any]
CLOCK_SKEW = 60.0  # seconds that hosts' clocks may differ, connection times included


def fault(host: Host, facts: Facts | None, trouble: str) -> str:
    """Return why a host cannot take part, with what mends it; empty if it can."""
    if facts is None:
        return f"host {host.name}: it does not answer{_reason(host.name, trouble)}"
    if facts["fault"]:
        return f"host {host.name}: {facts['fault']}"
    found = len(facts["gpus"])
    if facts["device"] != "cpu" and found < host.slots:
        return (
            f"host {host.name}: it has {found} GPUs, but slots={host.slots} are asked of it: "
            f"write '{host.name} slots={found}'"
        )
    return ""


def differences(facts: Sequence[Facts]) -> tuple[str, ...]:
    """Return, a sentence each, in what the hosts differ from the first and must not."""
    first, *others = facts
    found = []
    for other in others:
        name = other["host"]
        if other["device"] != first["device"]:
            found.append(
                f"{name} has ranks of kind {other['kind']}, but {first['host']} has "
                f"{first['kind']}: leave one of the two out of the hostfile"
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
