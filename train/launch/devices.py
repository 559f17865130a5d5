"""This machine's accelerators, counted as torch would count them, without importing torch."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from train.errors import ConfigError

_PATIENCE = 20.0  # seconds; nvidia-smi without the persistence daemon wakes every GPU first


@dataclass(frozen=True)
class Devices:
    """What ranks can run on: `kind` is nvidia, amd or cpu; `ids` are the visible GPUs' numbers."""

    kind: str
    ids: tuple[int, ...] = ()
    restricted: bool = False

    @property
    def count(self) -> int:
        """The number of visible GPUs; 0 on a machine that has none."""
        return len(self.ids)


def find(env: Mapping[str, str], root: Path = Path("/")) -> Devices:
    """Count the GPUs that `env` leaves visible; `root` is where /proc and /sys lie.

    Raises:
        ConfigError: CUDA_VISIBLE_DEVICES holds something else than numbers of present GPUs.
    """
    nvidia, amd = count_nvidia(env, root), count_amd(root)
    if nvidia:
        return _visible("nvidia", nvidia, env, ("CUDA_VISIBLE_DEVICES",))
    if amd:
        names = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
        return _visible("amd", amd, env, names)
    return Devices("cpu")


def count_nvidia(env: Mapping[str, str], root: Path = Path("/")) -> int:
    """Count NVIDIA GPUs by nvidia-smi, which knows what a container may see, or by the driver."""
    if not (root / "proc/driver/nvidia").is_dir():
        return 0
    tool = shutil.which("nvidia-smi", path=env.get("PATH"))
    if tool is not None:
        try:
            listing = subprocess.run(
                [tool, "-L"], capture_output=True, text=True, timeout=_PATIENCE, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return 0
        return len(re.findall(r"^GPU \d+:", listing.stdout, re.MULTILINE))
    return len(list((root / "proc/driver/nvidia/gpus").glob("*")))


def count_amd(root: Path = Path("/")) -> int:
    """Count AMD GPUs as the kernel does: one node with compute units for each die."""
    if not (root / "dev/kfd").exists():
        return 0
    nodes = (root / "sys/class/kfd/kfd/topology/nodes").glob("*/properties")
    return sum(bool(re.search(r"^simd_count [1-9]", _text(node), re.MULTILINE)) for node in nodes)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # a node that a container may not see
        return ""


def _visible(kind: str, present: int, env: Mapping[str, str], names: tuple[str, ...]) -> Devices:
    name = next((name for name in names if name in env), None)
    if name is None:
        return Devices(kind, tuple(range(present)))
    words = [word.strip() for word in env[name].split(",") if word.strip()]
    if not words or words == ["-1"]:
        return Devices("cpu")
    if not all(word.isdecimal() and int(word) < present for word in words):
        raise ConfigError(
            f"{name} must list numbers of this machine's {present} GPUs (0 to {present - 1}), but "
            f"is '{env[name]}' instead: write for example {name}=0, or unset it"
        )
    ids = tuple(dict.fromkeys(int(word) for word in words))
    return Devices(kind, ids, restricted=True)
