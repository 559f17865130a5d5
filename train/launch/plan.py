"""`anyrank plan`: the planner's command, with hostfiles and with what was measured here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from train.errors import FaultError
from train.launch import hostfile
from train.planning.calibration import calibrated
from train.planning.command import Hosts, run

PATIENCE = 300.0  # seconds; measuring takes under 30, importing torch from a cold disk may add


def command(argv: Sequence[str]) -> int:
    """Plan for a hostfile's hosts, print, and return the exit code.

    Raises:
        UserError: an argument, pin, GPU, model or hostfile that cannot be.
        FaultError: measuring failed.
    """
    folder = calibrations()
    words = [word for word in argv if word != "--calibrate"]
    if len(words) < len(argv):
        measure(folder)
        if not words:
            return 0
    try:
        return run(words, _hosts, partial(calibrated, folder=folder))
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def measure(folder: Path) -> None:
    """Measure this machine, in a process of its own, because that needs torch.

    Raises:
        FaultError: it failed or took too long.
    """
    words = [sys.executable, "-m", "train.engine.calibrate", str(folder)]
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(words, cwd=root, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise FaultError(f"measuring took more than {PATIENCE:.0f} s: is a GPU in use?") from None
    if done.returncode:
        raise FaultError(f"measuring failed with exit code {done.returncode}: see above")


def calibrations() -> Path:
    """Return the folder of what this user has measured."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base, "anyrank", "calibration")


def _hosts(path: str | None) -> Hosts | None:
    if path is None:
        return None
    found = hostfile.read(path)
    return [(host.name, host.slots) for host in found.hosts], found.hardware
