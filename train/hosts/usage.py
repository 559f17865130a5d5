"""`python -m train.hosts.usage`: what this host's devices hold and do, as JSON.

NVIDIA's numbers come from nvidia-smi, AMD's from the kernel driver's files (which rocm-smi reads,
too); a host without either is shown as its processors. Bytes, shares of 1, watts.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from train.errors import ConfigError
from train.hosts import devices
from train.hosts.memory import memory

_QUERY = "name,memory.used,memory.total,utilization.gpu,power.draw,driver_version"
# Seconds: without the persistence daemon nvidia-smi wakes every GPU first.
_PATIENCE = 20.0
_MIB = 2**20


@dataclass(frozen=True)
class DeviceUsage:
    """One device: bytes used and there in all, the share of time it is busy, watts.

    A number that its driver does not tell is None; an empty `driver`, its version, or
    `architecture`, the compiler's name of an AMD GPU, is not known.
    """

    name: str
    used: float
    total: float
    busy: float | None
    power: float | None
    driver: str = ""
    architecture: str = ""


def read(env: Mapping[str, str], root: Path = Path("/")) -> tuple[DeviceUsage, ...]:
    """Return the usage of every GPU of this host, or of its processors as one device.

    Where one MIG slice is chosen it is the device.
    """
    found = gpus(env, root)
    if env.get("CUDA_VISIBLE_DEVICES", "").startswith("MIG-"):
        with suppress(ConfigError):  # no such slice: a run says so
            chosen = devices.find(env, root)
            found = tuple(sliced(found[n], chosen.slice) for n in chosen.ids if n < len(found))
    return found or (processors(),)


def sliced(device: DeviceUsage, profile: str) -> DeviceUsage:
    """Return a GPU as its MIG slice: what the slice uses and draws is not told."""
    size = re.search(r"(\d+)gb", profile)
    total = float(size[1]) * 1e9 if size else device.total
    name = f"{device.name} MIG {profile}"
    return DeviceUsage(name, 0.0, total, None, None, device.driver)


def gpus(env: Mapping[str, str], root: Path = Path("/")) -> tuple[DeviceUsage, ...]:
    """Return the usage of every GPU of this host, in the order of their numbers."""
    return nvidia(env) or amd(root)


def nvidia(env: Mapping[str, str]) -> tuple[DeviceUsage, ...]:
    """Ask nvidia-smi, if there is one."""
    argv = ("nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits")
    try:
        shown = subprocess.run(
            argv, capture_output=True, text=True, timeout=_PATIENCE, env=dict(env), check=False
        )
    except subprocess.TimeoutExpired:
        silent = f"NVIDIA GPUs (nvidia-smi took over {_PATIENCE:.0f} s)"
        return (DeviceUsage(silent, 0.0, 0.0, None, None),)
    except OSError:
        return ()
    return tuple(_nvidia_row(line) for line in shown.stdout.splitlines() if line.count(",") >= 4)


def amd(root: Path) -> tuple[DeviceUsage, ...]:
    """Read the files that the amdgpu driver keeps for every die."""
    found = []
    totals = root.glob("sys/class/drm/card*/device/mem_info_vram_total")
    for total in sorted(totals, key=lambda path: (len(str(path)), path)):  # card10 after card9
        card = total.parent
        name = _text(card / "product_name") or "AMD GPU"
        busy, power = _number(card / "gpu_busy_percent"), None
        for sensor in ("power1_input", "power1_average"):  # not every card averages
            for path in sorted(card.glob(f"hwmon/hwmon*/{sensor}")):
                told = _number(path)
                power = power if told is None else told
        found.append(
            DeviceUsage(
                name,
                _number(card / "mem_info_vram_used") or 0.0,
                _number(total) or 0.0,
                None if busy is None else busy / 100,
                None if power is None else power / 1e6,
            )
        )
    return tuple(found)


def processors() -> DeviceUsage:
    """Return the host's processors as one device."""
    held, before = memory(), _jiffies()
    time.sleep(0.2)
    after = _jiffies()
    spent = after[0] - before[0]
    busy = 1 - (after[1] - before[1]) / spent if spent else 0.0
    name = f"CPU ({os.cpu_count()} cores)"
    return DeviceUsage(name, held["total"] - held["available"], held["total"], max(0.0, busy), None)


def jobs(root: Path = Path("/")) -> tuple[str, ...]:
    """Return the run folders of the training processes on this host."""
    found = set()
    for path in root.glob("proc/[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(word.endswith("train/main.py") for word in words[1:4]) and "--run-dir" in words:
            folder = words[len(words) - 1 - words[::-1].index("--run-dir") + 1 :]
            found |= {Path(name).name for name in folder[:1]}
    return tuple(sorted(found))


def main(_argv: Sequence[str] = ()) -> int:
    """Print this host's devices and jobs as one line of JSON."""
    used = [asdict(device) for device in read(os.environ)]
    print(json.dumps({"host": socket.gethostname(), "devices": used, "jobs": jobs()}))
    return 0


def _nvidia_row(line: str) -> DeviceUsage:
    name, used, total, busy, power, *driver = (word.strip() for word in line.split(","))
    share = _float(busy)
    return DeviceUsage(
        name,
        (_float(used) or 0.0) * _MIB,
        (_float(total) or 0.0) * _MIB,
        None if share is None else share / 100,
        _float(power),
        *driver[:1],
    )


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]"
        return None


def _number(path: Path) -> float | None:
    return _float(_text(path))


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _jiffies() -> tuple[int, int]:
    fields: list[Any] = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    numbers = [int(word) for word in fields]
    return sum(numbers), numbers[3] + numbers[4]


if __name__ == "__main__":
    sys.exit(main())
