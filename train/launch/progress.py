"""How far a run has come, read from its folder."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_WINDOW = 1 << 16  # bytes of the end of metrics.jsonl


@dataclass(frozen=True)
class Steps:
    """The last finished step (0: none yet), when it was written, and how long steps take.

    `first`: when the first one was written; times are since the epoch.
    """

    last: int = 0
    written: float = 0.0
    usual: float | None = None
    first: float = 0.0


def steps(run_dir: Path, since: float) -> Steps:
    """Return the steps that were finished after `since` (seconds since the epoch)."""
    path = run_dir / "metrics.jsonl"
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _WINDOW))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return Steps()
    found = [step for line in lines if (step := _step(line)) and step[2] >= since]
    if not found:
        return Steps()
    usual = statistics.median(seconds for _, seconds, _ in found)
    return Steps(found[-1][0], found[-1][2], usual, found[0][2])


def saving(run_dir: Path, since: float) -> bool:
    """Whether a checkpoint or the final model has been begun after `since`, and is not whole."""
    for pattern in ("checkpoints/*.incomplete", "*.incomplete", "*/checkpoints/*.incomplete"):
        for path in run_dir.glob(pattern):
            with suppress(OSError):
                if path.stat().st_mtime >= since:
                    return True
    return False


def newest_start(run_dir: Path, env: Mapping[str, str]) -> int:
    """Return the number of a run's newest start before this job's, 0 where there is none.

    A Slurm job that was queued again has made starts before: what it began is not begun again.
    """
    starts = {int(path.name): path for path in run_dir.glob("attempts/*") if path.name.isdigit()}
    if env.get("SLURM_RESTART_COUNT", "0") != "0":
        own = [number for number, path in starts.items() if _job(path) == env.get("SLURM_JOB_ID")]
        return min(own, default=max(starts, default=0) + 1) - 1
    return max(starts, default=0)


def _job(start: Path) -> str | None:
    try:
        told = json.loads((start / "environment.json").read_text(encoding="utf-8"))
        job = told["variables"].get("SLURM_JOB_ID")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return str(job) if job else None


def total(run_dir: Path) -> int | None:
    """Return the steps of the whole run, as its newest start that trained has said."""
    for log in sorted(run_dir.glob("attempts/*/log.txt"), reverse=True):
        text = log.read_text(encoding="utf-8", errors="replace")
        if said := re.search(r"^\[info\] \[6/8\] Training (\d+) steps", text, re.MULTILINE):
            return int(said[1])
    return None


def newest_checkpoint(run_dir: Path) -> int:
    """Return the step of the newest complete checkpoint; 0 if there is none."""
    found = (run_dir / "checkpoints").glob("step_*/COMPLETE")
    numbers = [re.fullmatch(r"step_(\d+)", path.parent.name) for path in found]
    return max((int(number[1]) for number in numbers if number), default=0)


def _step(line: str) -> tuple[int, float, float] | None:
    try:
        record = json.loads(line)
        return int(record["step"]), float(record["seconds"]), float(record["time"])
    except (ValueError, KeyError, TypeError):  # an evaluation's line, or one half written
        return None
