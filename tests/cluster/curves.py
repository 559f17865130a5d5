"""What a run folder says of a run that goes on while it is being watched."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


def records(run_dir: Path) -> list[dict[str, Any]]:
    """Return the steps that have been recorded so far; a line that is half written is left out."""
    path = run_dir / "metrics.jsonl"
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [record for record in found if not {"eval_loss", "restart"} & record.keys()]


def wait_for_step(run_dir: Path, step: int, patience: float = 30, ranks: int | None = None) -> None:
    """Return once a step, made by so many ranks, has been recorded."""
    deadline = time.monotonic() + patience
    while not any(
        record["step"] >= step and ranks in (None, record["world_size"])
        for record in records(run_dir)[-1:]
    ):
        assert time.monotonic() < deadline, f"step {step} was not reached in {patience} s"
        time.sleep(0.05)


def went_on(run_dir: Path, since: float, until: float) -> float:
    """Return the longest time without a step, in seconds, between two moments.

    A run that goes on from a checkpoint writes anew what it repeats, so the gap is seen.
    """
    times = [record["time"] for record in records(run_dir) if since < record["time"] < until]
    gaps = [after - before for before, after in zip([since, *times], times, strict=False)]
    return max(gaps)


def check_curve(run_dir: Path, steps: int) -> None:
    """Every step stands there once, in order."""
    assert [record["step"] for record in records(run_dir)] == list(range(1, steps + 1))
