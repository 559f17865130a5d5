"""Whether each host can take part, and whether they match: pure functions of their reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from train.hosts.hostfile import Host
from train.hosts.probe import HostReport

_SKEW = 5.0  # seconds that hosts' clocks may differ
_FILES = 4096  # descriptors: a connection to every peer, the data's files, libraries
_SHM = 80e6  # bytes of /dev/shm for each rank
_BUSY = 1e9  # bytes in use on a GPU that nobody uses: less than this
_GB = 1e9
UNSHARED = "it does not see the run folder: mount it there, or name a shared one with --run-dir"


def error_of(host: Host, report: HostReport | None, connection: str) -> str:
    """Return why a host cannot take part, with what mends it; empty if it can.

    Args:
        report: None from a host that did not answer.
        connection: what ssh or srun complained about.
    """
    if report is None:
        return f"host {host.name}: it does not answer{_reason(host.name, connection)}"
    if report.error:
        return f"host {host.name}: {report.error}"
    if report.shared is False:
        return f"host {host.name}: {UNSHARED}"
    found = len(report.gpus)
    if report.device != "cpu" and found < host.slots and report.held:
        return f"host {host.name}: {found} GPUs are free; others use {report.held}"
    if report.device != "cpu" and found < host.slots:
        return (
            f"host {host.name}: it has {found} GPUs, but slots={host.slots} are asked of it: "
            f"write '{host.name} slots={found}'"
        )
    return ""


def left_of(host: Host, report: HostReport | None) -> Host:
    """Return the host with the GPUs that are left of it, where it has lost some but not all."""
    found = 0 if report is None or report.device == "cpu" else len(report.gpus)
    return replace(host, slots=found) if 0 < found < host.slots else host


def notices_of(host: Host, report: HostReport, reported: float) -> Iterator[str]:
    """Yield in what a host, though it can take part, may fail later.

    Args:
        reported: seconds since the epoch, by this machine's clock, when the report came.
    """
    skew = report.time - reported
    if abs(skew) > _SKEW:
        yield (
            f"its clock is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}: run 'systemctl "
            "restart chronyd' there (or ntpd, or timesyncd)"
        )
    shm = _SHM * host.slots
    if report.shm < shm:
        yield (
            f"/dev/shm has {report.shm / 1e6:.0f} MB, but {shm / 1e6:.0f} MB are needed: run "
            "'mount -o remount,size=8G /dev/shm', or docker run --shm-size=8g"
        )
    if report.files < _FILES:
        yield f"only {report.files} files may be open: run 'ulimit -n 65536'"
    if report.infiniband and report.locked != -1:
        yield "memory for InfiniBand may not be locked: run 'ulimit -l unlimited'"
    busy = [device for device in report.usage[: host.slots] if device.used > _BUSY]
    if busy:
        used = sum(device.used for device in busy) / _GB
        yield (
            f"{len(busy)} of its GPUs are in use ({used:.0f} GB): see 'nvidia-smi' or 'rocm-smi' "
            "there"
        )


def crowding_of(host: Host, report: HostReport) -> str:
    """Return that a host has more CPU ranks than cores, which is no fault; else nothing."""
    if report.device != "cpu" or host.slots <= report.cores:
        return ""
    return (
        f"{host.slots} CPU ranks share {report.cores} cores: more ranks than cores make no step "
        "faster"
    )


def differences(reports: Sequence[HostReport]) -> Iterator[str]:
    """Yield, a sentence each, in what the hosts differ from the first and must not."""
    first, *others = reports
    for other in others:
        yield from _differences(first, other)


def _differences(first: HostReport, other: HostReport) -> Iterator[str]:
    name = other.host
    if other.device != first.device:
        yield (
            f"{name} has ranks of kind {other.device}, but {first.host} has "
            f"{first.device}: leave one of the two out of the hostfile"
        )
    if other.python != first.python:
        yield (
            f"{name} has Python {other.python}, but {first.host} has {first.python}: "
            "use the same environment on every host"
        )
    for package, version in first.packages.items():
        if other.packages[package] != version:
            yield (
                f"{name} has {package} {other.packages[package]}, but {first.host} has "
                f"{version}: on {name}, run '{other.executable} -m pip install "
                f"{package}=={version}'"
            )
    if other.code != first.code:
        yield (
            f"{name} has other code of anyrank ({other.code}) than {first.host} "
            f"({first.code}): put the checkout on a folder that all hosts share, or rsync it"
        )


def _reason(name: str, connection: str) -> str:
    host = name.rpartition("@")[2]
    said = f" ({connection})" if connection else ""
    if "ermission denied" in connection:
        return f"{said}: run 'ssh-copy-id {name}', so that ssh asks for no password"
    if "ost key" in connection:
        return f"{said}: run 'ssh {name}' once and compare the key that it shows"
    if "resolve" in connection:
        return f"{said}: add {host} to /etc/hosts, or correct its name in the hostfile"
    if (
        "cd:" in connection
        or "No module named" in connection
        or "no such file" in connection.lower()
    ):
        return f"{said}: the checkout, Python and this folder must be at the same paths there"
    return f"{said}: try 'ssh {name} true', and leave the host out if it is down"
