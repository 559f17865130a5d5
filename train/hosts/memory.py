"""This host's memory: what there is, what is free, who was killed for want of it. Bytes.

Where a container or a batch system limits this process by a cgroup (version 2), the limit counts.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path


def memory(root: Path = Path("/")) -> dict[str, int]:
    """Return the memory that this process's host, or its cgroup, has: total and available."""
    found = _fields(root / "proc/meminfo", ("MemTotal:", "MemAvailable:"), 1024)
    total, available = found["MemTotal:"], found["MemAvailable:"]
    for group in _groups(root):
        text = _text(group / "memory.max").strip()
        if not text.isdecimal():  # "max"
            continue
        # What the kernel keeps of files is given back before anyone is killed.
        used = int(_text(group / "memory.current").strip() or 0)
        used -= _fields(group / "memory.stat", ("inactive_file",))["inactive_file"]
        total, available = min(total, int(text)), min(available, max(0, int(text) - used))
    return {"total": total, "available": available}


def allocatable() -> int:
    """Return how many bytes this process could still have: the host's memory, or its own limits."""
    return min(memory()["available"], left_by_limits())


def left_by_limits() -> int:
    """Return how many bytes this process's own limits (`ulimit -v`, `-d`) leave it.

    Without a limit it is more than any host has.
    """
    held = _fields(Path("/proc/self/status"), ("VmSize:", "VmData:"), 1024)
    found = [sys.maxsize]
    for kind, key in ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:")):
        most = resource.getrlimit(kind)[0]
        if most != resource.RLIM_INFINITY:
            found.append(max(0, most - held[key]))
    return min(found)


def oom_kills() -> int:
    """Return how many processes the kernel has killed for want of memory, here and in our group."""
    groups = [group / "memory.events" for group in _groups(Path("/"))]
    paths = (Path("/proc/vmstat"), *groups)
    return sum(_fields(path, ("oom_kill",))["oom_kill"] for path in paths)


def _groups(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's cgroup and of those around it."""
    base = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        if line.startswith("0::/"):
            own = base / line.removeprefix("0::/")
            yield from (own, *(outer for outer in own.parents if outer.is_relative_to(base)))


def _fields(path: Path, keys: tuple[str, ...], unit: int = 1) -> dict[str, int]:
    """Return the numbers that follow some words at the beginnings of a file's lines; 0 if none."""
    found = dict.fromkeys(keys, 0)
    for line in _text(path).splitlines():
        words = line.split()
        if len(words) > 1 and words[0] in found:
            found[words[0]] = int(words[1]) * unit
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
