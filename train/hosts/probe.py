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
from train.hosts import devices, network
from train.hosts.memory import memory
from train.hosts.shared_folder import sees
from train.hosts.usage import DeviceUsage
from train.hosts.usage import gpus as gpu_usage
from train.paths import PACKAGE, ROOT

PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "peft", "sentencepiece", "numpy")
_SIOCGIFADDR = 0x8915  # <linux/sockios.h>


@dataclass(frozen=True)
class HostReport:
    """What a host says of itself; sizes in bytes, `time` in seconds since the epoch.

    `device` is nvidia, amd or cpu; `gpus` the numbers of the visible ones, and `restricted` says
    that variables hide others; `usage` is of the visible GPUs. `error`: why it cannot take part.
    `port` is free there; `shm` and `disk` are free bytes; `files` and `locked` are this user's
    limits of open files and of locked memory (-1: none). `shared`: whether it sees the run folder,
    None before it has looked.
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

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> HostReport:
        """Read what `asdict` and JSON have made of a report."""
        usage = tuple(DeviceUsage(**device) for device in content["usage"])
        return cls(**{**content, "gpus": tuple(content["gpus"]), "usage": usage})


def look(env: Mapping[str, str], folder: Path = ROOT) -> HostReport:
    """Return this host's report; `folder` is the run's, for its free disk."""
    try:
        found = devices.find(env)
        usage, wrong = gpu_usage(env) if found.ids else (), ""
    except ConfigError as error:
        found, usage, wrong = devices.Devices("cpu"), (), str(error)
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
    )


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

    Left to themselves they take the address of the host's name, or the first interface, which on
    many hosts is the loopback or a bridge. What `env` says already is left as it is.
    """
    face = interface_towards(master)
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")[: 1 if master.startswith("127.") else 2]
    return {} if face is None else {name: face for name in names if name not in env}


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
