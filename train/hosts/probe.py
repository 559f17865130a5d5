"""What one host is and has, gathered there by the standard library alone, in under a second.

`python -m train.hosts.probe` prints it as JSON; an agent sends it when it starts.

    probe look [FOLDER TOKEN]      the report; whether FOLDER, here, has TOKEN in it
    probe listen SECONDS           print a port and accept connections on it
    probe connect ADDRESS PORT     say whether that port can be reached, and by which interface
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import resource
import shutil
import socket
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from train.errors import ConfigError
from train.hosts import devices, network, torch_build
from train.hosts.memory import memory
from train.hosts.shared_folder import sees
from train.hosts.usage import DeviceUsage, sliced
from train.hosts.usage import gpus as gpu_usage
from train.paths import PACKAGE, ROOT

PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "peft", "sentencepiece", "numpy")
# Interfaces that lead to no other host: bridges of containers and machines inside, and tunnels.
_VIRTUAL = "virbr|br-|veth|cni|flannel|cali|tun|tap|tailscale|wg|podman|lxc|vxlan|kube"
_SIOCGIFADDR = 0x8915  # <linux/sockios.h>


@dataclass(frozen=True)
class HostReport:
    """What a host says of itself; sizes in bytes, `time` in seconds since the epoch.

    `device` is nvidia, amd or cpu; `gpus` the numbers of the visible ones, and `restricted` says
    that variables hide others; `usage` is of the visible GPUs, `unfit` the architectures of those
    that no torch is built for. `error`: why it cannot take part. `port` is free there; `shm` and
    `disk` are free bytes; `files` and `locked` are this user's limits of open files and of locked
    memory (-1: none). `shared`: whether it sees the run folder, None before it has looked. `held`:
    which GPUs were taken out of it because others use them, in words.
    """

    host: str
    python: str
    executable: str
    packages: Mapping[str, str | None]
    code: str
    device: str
    gpus: tuple[int, ...]
    usage: tuple[DeviceUsage, ...]
    restricted: bool
    error: str
    time: float
    port: int
    cores: int
    memory: int
    available: int
    shm: int
    disk: int
    files: int
    locked: int
    infiniband: bool
    shared: bool | None = None
    unfit: tuple[str, ...] = ()
    held: str = ""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> HostReport:
        """Read what `asdict` and JSON have made of a report."""
        usage = tuple(DeviceUsage(**device) for device in content["usage"])
        lists = {key: tuple(content[key]) for key in ("gpus", "unfit")}
        return cls(**{**content, **lists, "usage": usage})


def look(env: Mapping[str, str], folder: Path = ROOT) -> HostReport:
    """Return this host's report; `folder` is the run's, for its free disk."""
    found, usage, wrong = _gpus(env)
    host_memory = memory()
    return HostReport(
        host=socket.gethostname(),
        python=platform.python_version(),
        executable=sys.executable,
        packages={name: version(name) for name in PACKAGES},
        code=code_digest(PACKAGE),
        device=found.kind,
        gpus=found.ids,
        usage=tuple(usage[number] for number in found.ids if number < len(usage)),
        restricted=bool(env.get("CUDA_VISIBLE_DEVICES")) and found.kind != "cpu",
        error=wrong or network.loopback_error(),
        time=time.time(),
        port=network.free_port(),
        cores=len(os.sched_getaffinity(0)),
        memory=host_memory["total"],
        available=host_memory["available"],
        shm=shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0,
        disk=shutil.disk_usage(folder if folder.is_dir() else ROOT).free,
        files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        locked=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        infiniband=any(Path("/sys/class/infiniband").glob("*")),
        unfit=found.unfit,
    )


def gpus_here(env: Mapping[str, str]) -> tuple[int, str]:
    """Return how many GPUs `env` leaves visible, and why they cannot be used, if they cannot."""
    found, _, wrong = _gpus(env)
    return found.count, wrong


def _gpus(env: Mapping[str, str]) -> tuple[devices.Devices, tuple[DeviceUsage, ...], str]:
    try:
        found = devices.find(env)
        usage = gpu_usage(env) if found.ids else ()
        if found.slice:
            usage = tuple(sliced(device, found.slice) for device in usage)
        if found.kind == "amd":
            known = zip(usage, devices.find_amd(), strict=False)
            usage = tuple(replace(device, architecture=name) for device, name in known)
        return found, usage, _unusable(found, usage)
    except ConfigError as error:
        return devices.Devices("cpu"), (), str(error)


def _unusable(found: devices.Devices, usage: Sequence[DeviceUsage]) -> str:
    """Return why the installed torch cannot use the visible GPUs; empty if it can."""
    if not found.ids:
        return ""
    seen = [usage[number] for number in found.ids if number < len(usage)]
    names = tuple(device.name for device in seen) or found.ids
    driver = next((device.driver for device in seen), "") or devices.driver_version()
    return torch_build.mismatch(found.kind, tuple(map(str, names)), driver, torch_build.installed())


def version(package: str) -> str | None:
    """Return an installed package's version without importing it; None where it is missing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def code_digest(package: Path) -> str:
    """Return a digest of every source file of the package, so that two checkouts compare."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def interface_towards(address: str) -> str | None:
    """Return the name of the network interface that leads to an address; None if unknown."""
    own = network.route_to(address)
    if own is None:
        return None
    for _, name in socket.if_nameindex():
        if own == interface_address(name):
            return name
    return None


def interface_variables(env: Mapping[str, str], master: str) -> dict[str, str]:
    """Return what makes gloo and NCCL use the interface that leads to the master.

    Left to itself gloo takes the address of the host's name, which on many hosts is the loopback's.
    NCCL takes every interface but those of loopback and docker, and is told one only where there
    are other bridges and tunnels: one alone would cost it the rest. What `env` says already is left
    as it is.
    """
    face = interface_towards(master)
    if face is None:
        return {}
    wanted = {"GLOO_SOCKET_IFNAME": face}
    others = [name for _, name in socket.if_nameindex() if name != face]
    if not master.startswith("127.") and any(re.match(_VIRTUAL, name) for name in others):
        wanted["NCCL_SOCKET_IFNAME"] = f"={face}"  # without = it is a prefix: eth1 also means eth10
    return {name: value for name, value in wanted.items() if name not in env}


def interface_address(name: str) -> str | None:
    """Return an interface's IPv4 address; None if it has none."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        request = struct.pack("256s", name.encode()[:15])
        try:
            return socket.inet_ntoa(fcntl.ioctl(probe, _SIOCGIFADDR, request)[20:24])
        except OSError:
            return None


def listen(patience: float) -> None:
    """Print a free port and accept connections on it for `patience` seconds."""
    with closing(socket.create_server(("", 0))) as server:
        print(json.dumps({"port": server.getsockname()[1]}), flush=True)
        deadline = time.monotonic() + patience
        while (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                server.accept()[0].close()
            except TimeoutError:
                return


def connect(address: str, port: int) -> dict[str, Any]:
    """Return by which interface a port is reached, or why it is not."""
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError as error:
        return {"error": str(error.strerror or error)}
    return {"error": "", "interface": interface_towards(address)}


def main(argv: Sequence[str]) -> int:
    """Do what the words say and print one line of JSON."""
    match list(argv):
        case ["look", folder, token]:
            seen = sees(Path(folder) / token)
            report = replace(look(os.environ, Path(folder)), shared=seen)
            print(json.dumps(asdict(report)))
        case ["listen", seconds]:
            listen(float(seconds))
        case ["connect", address, port]:
            print(json.dumps(connect(address, int(port))))
        case _:
            print(json.dumps(asdict(look(os.environ))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
