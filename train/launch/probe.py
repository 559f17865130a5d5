"""Facts of one host, gathered on that host by the standard library alone, in well under a second.

`python -m train.launch.probe` prints them as JSON; an agent says them when it starts.

    probe look [FOLDER TOKEN]      facts; whether FOLDER is here the folder that has TOKEN in it
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
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from train.errors import ConfigError
from train.launch import devices, gauge, network
from train.launch.memory import memory
from train.launch.sharing import sees

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "peft", "sentencepiece", "numpy")
_SIOCGIFADDR = 0x8915  # <linux/sockios.h>


def look(env: Mapping[str, str], folder: Path = ROOT) -> dict[str, Any]:
    """Return this host's facts; `folder` is the run's, for free disk. Bytes and seconds."""
    try:
        found = devices.find(env)
        ids, kind, fault = list(found.ids), found.kind, ""
        cards = gauge.gpus(env) if ids else ()
    except ConfigError as error:
        ids, kind, fault, cards = [], "cpu", str(error), ()
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": {name: version(name) for name in PACKAGES},
        "code": code_digest(ROOT),
        "device": kind,
        "gpus": ids,
        "devices": [asdict(cards[number]) for number in ids if number < len(cards)],
        "restricted": bool(env.get("CUDA_VISIBLE_DEVICES")) and kind != "cpu",
        "fault": fault,
        "time": time.time(),
        "port": network.free_port(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": memory(),
        "shm": shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0,
        "disk": shutil.disk_usage(folder if folder.is_dir() else ROOT).free,
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "locked": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        "infiniband": any(Path("/sys/class/infiniband").glob("*")),
    }


def version(package: str) -> str | None:
    """Return an installed package's version without importing it; None where it is missing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def code_digest(root: Path) -> str:
    """Return a digest of every source file of the package, so that two checkouts compare."""
    digest = hashlib.sha256()
    for path in sorted((root / "train").rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
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
        return {"fault": str(error.strerror or error)}
    return {"fault": "", "interface": interface_towards(address)}


def main(argv: Sequence[str]) -> int:
    """Do what the words say and print one line of JSON."""
    match list(argv):
        case ["look", folder, token]:
            seen = sees(Path(folder) / token)
            print(json.dumps(look(os.environ, Path(folder)) | {"shared": seen}))
        case ["listen", seconds]:
            listen(float(seconds))
        case ["connect", address, port]:
            print(json.dumps(connect(address, int(port))))
        case _:
            print(json.dumps(look(os.environ)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
