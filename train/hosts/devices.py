"""This machine's accelerators, counted as torch would count them, without importing torch."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from train.errors import ConfigError

# What torch is built for on ROCm: of processors with graphics, the largest only.
TRAINED_ON = {
    *(f"gfx{name}" for name in ("908", "90a", "942", "950", "1030", "1100", "1101", "1102")),
    *(f"gfx{name}" for name in ("1150", "1151", "1200", "1201")),
}
_PATIENCE = 20.0  # seconds; nvidia-smi without the persistence daemon wakes every GPU first


@dataclass(frozen=True)
class Devices:
    """What ranks can run on: `kind` is nvidia, amd or cpu; `ids` are the visible GPUs' numbers.

    `restricted` says that variables hide others; `unfit` are the architectures of GPUs that are
    there, but that nobody builds torch for, such as a laptop processor's own. `slice` is the
    profile of the one MIG slice that is visible, such as 1g.10gb.
    """

    kind: str
    ids: tuple[int, ...] = ()
    restricted: bool = False
    unfit: tuple[str, ...] = ()
    slice: str = ""

    @property
    def count(self) -> int:
        """The number of visible GPUs; 0 on a machine that has none."""
        return len(self.ids)


def find(env: Mapping[str, str], root: Path = Path("/")) -> Devices:
    """Count the GPUs that `env` leaves visible; `root` is where /proc and /sys lie.

    Raises:
        ConfigError: CUDA_VISIBLE_DEVICES holds something else than numbers of present GPUs, or
            there is an NVIDIA driver but its tool fails.
    """
    if env.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):  # CPU ranks are wanted
        return Devices("cpu")
    word = env.get("CUDA_VISIBLE_DEVICES", "").strip()
    if word.startswith("MIG-"):
        return _find_slice(word, env)
    nvidia, amd = find_nvidia(env, root), find_amd(root)
    if nvidia:
        return _visible("nvidia", nvidia, env, ("CUDA_VISIBLE_DEVICES",))
    unfit = tuple(name for name in amd if name and name not in TRAINED_ON)
    if len(amd) == len(unfit):
        return Devices("cpu", unfit=unfit)
    names = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
    seen = _visible("amd", amd_uuids(root), env, names)
    fit = tuple(number for number in seen.ids if amd[number] not in unfit)
    return replace(seen, ids=fit, unfit=unfit)


def find_nvidia(env: Mapping[str, str], root: Path = Path("/")) -> tuple[str, ...]:
    """Return the UUID of every NVIDIA GPU, empty where it is not known.

    nvidia-smi is believed, which knows what a container may see; without it the driver's files.

    Raises:
        ConfigError: it fails though a driver is there, as when a GPU has fallen off the bus.
    """
    said = _listing(env)
    driver = root / "proc/driver/nvidia"
    if said is None:
        return ("",) * len(list((driver / "gpus").glob("*")))
    lines = re.findall(r"^GPU \d+:.*$", said, re.MULTILINE)
    if not lines and driver.is_dir():
        raise ConfigError(
            f"nvidia-smi finds no GPU ({' '.join(said.split())[:200]}): reset or replace it, or "
            "set CUDA_VISIBLE_DEVICES= for CPU ranks"
        )
    return tuple(line.partition("(UUID: ")[2].rstrip(") ") for line in lines)


def _listing(env: Mapping[str, str]) -> str | None:
    """Return what `nvidia-smi -L` prints; None where there is no such tool.

    Raises:
        ConfigError: it does not answer.
    """
    tool = shutil.which("nvidia-smi", path=env.get("PATH"))
    if tool is None:
        return None
    try:
        shown = subprocess.run(
            [tool, "-L"], capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"nvidia-smi did not answer within {_PATIENCE:.0f} s: run 'nvidia-smi -pm 1' as root, "
            "so that the GPUs stay awake, or set CUDA_VISIBLE_DEVICES= for CPU ranks"
        ) from None
    except OSError as error:
        return str(error)
    return shown.stdout


def _find_slice(word: str, env: Mapping[str, str]) -> Devices:
    """Return the one MIG slice that is visible, by its GPU's number.

    Raises:
        ConfigError: there is no such slice, or several are named, which NCCL does not join.
    """
    found, gpu = {}, 0
    for line in (_listing(env) or "").splitlines():
        if told := re.match(r"GPU (\d+):", line):
            gpu = int(told[1])
        elif told := re.match(r"\s+MIG (\S+) .*\(UUID: (MIG-[^)]+)\)", line):
            found[told[2]] = (gpu, told[1])
    if word not in found:
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES is '{word}', but a run takes one MIG slice, named by its UUID: "
            f"{', '.join(found) or 'nvidia-smi -L shows none'}"
        )
    gpu, profile = found[word]
    return Devices("nvidia", (gpu,), restricted=True, slice=profile)


def driver_version(root: Path = Path("/")) -> str:
    """Return the version of the NVIDIA driver as the kernel tells it; empty if it does not."""
    text = _text(root / "proc/driver/nvidia/version")
    told = re.search(r"Kernel Module\s.*?(\d+\.\d+[.\d]*)", text)
    return told[1] if told else ""


def find_amd(root: Path = Path("/")) -> tuple[str, ...]:
    """Return the architecture of every AMD GPU, in the kernel's order; empty where not known.

    The kernel writes gfx942 as 90402.
    """
    return tuple(_gfx(text) for text in _amd_nodes(root))


def amd_uuids(root: Path = Path("/")) -> tuple[str, ...]:
    """Return the UUID of every AMD GPU as ROCm's variables take it, empty where it is not known."""
    numbers = (re.search(r"^unique_id ([1-9]\d*)", text, re.M) for text in _amd_nodes(root))
    return tuple(f"GPU-{int(told[1]):016x}" if told else "" for told in numbers)


def _amd_nodes(root: Path) -> list[str]:
    """Return the properties of every die, in the kernel's order: of nodes with compute units."""
    if not (root / "dev/kfd").exists():
        return []
    folder = root / "sys/class/kfd/kfd/topology/nodes"
    nodes = sorted(folder.glob("*/properties"), key=lambda path: int(path.parent.name))
    texts = [_text(node) for node in nodes]
    return [text for text in texts if re.search(r"^simd_count [1-9]", text, re.M)]


def _gfx(properties: str) -> str:
    told = re.search(r"^gfx_target_version (\d+)", properties, re.M)
    number = int(told[1]) if told else 0
    return f"gfx{number // 10000}{number // 100 % 100:x}{number % 100:x}" if number else ""


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # a node that a container may not see
        return ""


def _visible(
    kind: str, uuids: tuple[str, ...], env: Mapping[str, str], names: tuple[str, ...]
) -> Devices:
    """Return the devices that are present, as far as the first of the variables leaves them."""
    name = next((name for name in names if name in env), None)
    if name is None:
        return Devices(kind, tuple(range(len(uuids))))
    words = [word.strip() for word in env[name].split(",") if word.strip()]
    if not words or words == ["-1"]:
        return Devices("cpu")
    found = [_number(word, uuids) for word in words]
    if None in found:
        raise ConfigError(
            f"{name} must list numbers of this machine's {len(uuids)} GPUs (0 to "
            f"{len(uuids) - 1}) or their UUIDs, but is '{env[name]}' instead: write for example "
            f"{name}=0, or unset it"
        )
    return Devices(kind, tuple(dict.fromkeys(one for one in found if one is not None)), True)


def _number(word: str, uuids: tuple[str, ...]) -> int | None:
    """Return the number of a GPU that is named by it, or by the beginning of its UUID."""
    if word.isdecimal():
        return int(word) if int(word) < len(uuids) else None
    alike = [number for number, uuid in enumerate(uuids) if uuid.startswith(word)]
    return alike[0] if len(alike) == 1 else None
