"""Tables for people, JSON for machines: hardware, versions, date and commit beside every result."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from train.hosts.usage import gpus as gpu_usage

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "deepspeed", "transformers", "peft")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a table with one column for each key of the first."""
    names = list(rows[0])
    cells = [names, *([_cell(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    )


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write(name: str, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> Path:
    """Write `bench/results/<name>.json`; return its path."""
    content = {
        "bench": name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _commit(),
        "hardware": _hardware(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "summary": dict(summary),
        "rows": [dict(row) for row in rows],
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def _hardware() -> str:
    """Name the processors and the GPUs."""
    text = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    cpu = f"{os.cpu_count()} x {model[1] if model else platform.machine()}"
    gpus = [device.name for device in gpu_usage(os.environ)]
    return ", ".join([cpu, *(f"{n} x {name}" for name, n in Counter(gpus).items())])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _commit() -> str:
    """Return the commit, with `-dirty` where other files than results are no longer those of it."""
    found = _git("describe", "--always", "--exclude=*")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", f":!{RESULTS}")
    return (found or "none") + "-dirty" * bool(changed)


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", "-C", RESULTS.parent, *words], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()
