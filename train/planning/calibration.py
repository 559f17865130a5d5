"""What was measured on a machine, kept in the user's cache, in place of the table's figures."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from train.planning.hardware import Gpu

# The share of a data sheet's bandwidth that a copy reaches, reads and writes both counted.
COPIED = 0.88


@dataclass(frozen=True)
class Calibration:
    """Rates of one device: large products in FLOP/s, memory and the host's links in bytes/s.

    `link` is of one GPU in one direction in a collective over its host; 0: there was one device.
    """

    device: str
    achievable: float
    bandwidth: float
    link: float


def path_of(folder: Path, device: str) -> Path:
    """Return where the calibration of a device (as torch or our table names it) is kept."""
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"


def write_calibration(folder: Path, found: Calibration) -> Path:
    """Write it for this user only; return the file."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = path_of(folder, found.device)
    path.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    return path


def calibrated(gpu: Gpu, folder: Path) -> Gpu:
    """Return the GPU with what was measured on one of its name; a broken file is not used.

    The table's terms are kept: its rate of products is what a whole step holds, its bandwidth the
    data sheet's.
    """
    try:
        content = json.loads(path_of(folder, gpu.name).read_text(encoding="utf-8"))
        found = Calibration(**content)
        link = float(found.link) or gpu.link
        achievable, bandwidth = float(found.achievable), float(found.bandwidth)
    except (OSError, ValueError, TypeError):
        return gpu
    if not gpu.is_cpu:
        achievable, bandwidth = achievable * gpu.power_limited_fraction, bandwidth / COPIED
    return replace(gpu, achievable_flops=achievable, bandwidth=bandwidth, link=link, assumed="")
