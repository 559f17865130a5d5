"""What the installed torch was built for, read without importing it, against a machine's GPUs."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from train.planning.hardware import find_gpu

# By CUDA's first number: the oldest driver that runs it (its release notes' table of minor version
# compatibility), and the oldest architecture that it still compiles for.
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
OLDEST_ARCHITECTURE = {11: 35, 12: 50, 13: 75}
HOW = (
    "by 'python -m pip install torch --index-url INDEX' (pytorch.org names the index of every "
    "build), or set ANYRANK_TORCH_INDEX to it, remove .venv and run ./launch.sh again"
)


@dataclass(frozen=True)
class TorchBuild:
    """Versions of torch, and of CUDA or ROCm that it was built for; empty where it was not."""

    version: str = ""
    cuda: str = ""
    hip: str = ""

    def __str__(self) -> str:
        """Return it in words, such as `torch 2.13.0, built for CUDA 13.0`."""
        made = f"CUDA {self.cuda}" if self.cuda else f"ROCm {self.hip}" if self.hip else ""
        return f"torch {self.version}, built {f'for {made}' if made else 'without GPUs'}"


def installed() -> TorchBuild | None:
    """Return this Python's torch; None if it has none."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    try:
        return read(Path(found.origin).with_name("version.py").read_text())
    except OSError:
        return None


def read(text: str) -> TorchBuild:
    """Read the text of torch/version.py, which assigns a string or None to each name."""
    values = dict(re.findall(r"^(__version__|cuda|hip)\b[^=\n]*= *'([^']+)'", text, re.MULTILINE))
    return TorchBuild(values.get("__version__", "?"), values.get("cuda", ""), values.get("hip", ""))


def mismatch(kind: str, names: tuple[str, ...], driver: str, build: TorchBuild | None) -> str:
    """Return why torch cannot use this machine's GPUs, with what to install; empty if it can.

    Args:
        kind: nvidia or amd.
        names: what the driver calls the GPUs, one each.
        driver: the NVIDIA driver's version; empty if it is not known.
    """
    if build is None:
        return ""
    vendor, hide, wanted = {
        "nvidia": ("NVIDIA", "CUDA_VISIBLE_DEVICES", "CUDA"),
        "amd": ("AMD", "HIP_VISIBLE_DEVICES", "ROCm"),
    }[kind]
    what = f"{len(names)} {vendor} GPU{'s' if len(names) > 1 else ''}"
    rest = f"or set {hide}= for CPU ranks"
    if not (build.cuda if kind == "nvidia" else build.hip):
        return (
            f"this machine has {what}, which {build}, cannot use: install a torch for {wanted} "
            f"{HOW}; {rest}"
        )
    if kind == "amd":
        return ""
    major = int(build.cuda.partition(".")[0])
    needed = OLDEST_DRIVER.get(major, 0)
    have = int(driver.partition(".")[0]) if driver else needed
    if have < needed:
        older = max((cuda for cuda, least in OLDEST_DRIVER.items() if least <= have), default=0)
        instead = f", or a torch for CUDA {older} {HOW}" if older else ""
        return (
            f"this machine has {what} with driver {driver}, but {build}, needs driver {needed} or "
            f"newer: install that driver{instead}; {rest}"
        )
    return _too_old(names, build, major, rest)


def _too_old(names: tuple[str, ...], build: TorchBuild, major: int, rest: str) -> str:
    """Return which GPU is too old for what torch was built for, if one is."""
    oldest = OLDEST_ARCHITECTURE.get(major, 0)
    for name in names:
        word = find_gpu(name, 1.0).architecture
        if word.startswith("sm_") and int(word[3:]) < oldest:
            return (
                f"{build}, has no kernels for the {name} ({word}), only from sm_{oldest} on: "
                f"install a torch for CUDA {major - 1} {HOW}; {rest}"
            )
    return ""
