"""Runs as they stand in their folders, to be compared: steps, starts, what happened to them.

Nothing here needs the run to be finished, or to be alone: a folder is read as it is, and what a
crash left half written is left out.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from train.errors import ConfigError
from train.launch.arguments import TOKENIZED
from train.output.metrics import read_metrics

TOLERANCE = {
    "fp32": 1e-6,
    "bf16": 2e-3,
    "fp16": 2e-3,
}  # promised largest relative difference of two runs' losses
STEP = re.compile(r"\[Step (\d+)/\d+\]")
BEGIN = re.compile(r"(?:: starting from step |Resuming from step_)(\d+)")
SAME = ("sample_hash", "lr", "tokens", "loss_tokens")


@dataclass(frozen=True)
class Start:
    """One start of a run; times are seconds since the epoch, `steps` first and last."""

    number: int
    folder: Path
    began: float
    ended: float
    gpus: int
    devices: tuple[str, ...]
    plan: Mapping[str, Any]
    config: Mapping[str, Any]
    steps: tuple[int, int] | None
    last_line: str


@dataclass(frozen=True)
class Event:
    """A line of the launcher's log: `time` in seconds since the epoch."""

    time: float
    text: str


@dataclass(frozen=True)
class Run:
    """One run folder; `steps`, `evals` and `restarts` are lines of metrics.jsonl, in order.

    `notice` says which of its lines do not count; empty: all do. `last` is the newest start that
    trained: one that was refused has a folder, too. `config` and `arguments` are its own;
    `parameters` of the model, None where its folder does not tell.
    """

    name: str
    path: Path
    precision: str
    steps: tuple[Mapping[str, Any], ...]
    evals: tuple[Mapping[str, Any], ...]
    restarts: tuple[Mapping[str, Any], ...]
    starts: tuple[Start, ...]
    events: tuple[Event, ...]
    done: bool
    notice: str = ""
    last: Start | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    parameters: int | None = None

    @property
    def gpus(self) -> tuple[int, ...]:
        """The GPU counts in the order in which they were used, repetitions left out."""
        counts = [int(step["world_size"]) for step in self.steps]
        return tuple(n for i, n in enumerate(counts) if i == 0 or counts[i - 1] != n)

    @property
    def on_cpu(self) -> bool:
        """Whether its last start ran on CPU ranks."""
        devices = self.last.devices if self.last else ()
        return any(device.partition(": ")[2].lower().startswith("cpu") for device in devices)

    def lossless(self, start: Start) -> bool:
        """Whether a start is known to have repeated no step of those before."""
        return any(r["restart"] == start.number and r["lost"] == 0 for r in self.restarts)

    def predicted(self, what: str) -> Mapping[str, float]:
        """Return the last plan's `memory` (bytes) or `time` (seconds) by part; {}: not kept."""
        return dict(self.last.plan.get(what, {})) if self.last else {}

    def usual(self, key: str) -> float | None:
        """Return the median of a step's value, without the first of each start; None: unknown."""
        begins = {start.steps[0] for start in self.starts if start.steps}
        settled = [s for s in self.steps if s["step"] not in begins] or self.steps
        values = [float(step[key]) for step in settled if step.get(key) is not None]
        return median(values) if values else None


@dataclass(frozen=True)
class Difference:
    """Two runs' losses over the steps that both have.

    `relative` is the largest |a - b| / |a|, at `step`; `apart` the first step whose samples,
    learning rate or token counts differ (None: never).
    """

    common: int
    relative: float
    step: int
    apart: int | None


def read_runs(paths: Sequence[Path]) -> tuple[Run, ...]:
    """Read run folders; each is named by as little of its path as tells it from the others.

    Raises:
        ConfigError: a path is no run folder, or has no finished step.
    """
    whole = [path.expanduser().resolve() for path in paths]
    depth = 1
    while len({path.parts[-depth:] for path in whole}) < len(set(whole)):
        depth += 1
    return tuple(read_run(path, "/".join(path.parts[-depth:])) for path in whole)


def read_run(path: Path, name: str) -> Run:
    """Read one run folder.

    Raises:
        ConfigError: it is no run folder, or has no finished step.
    """
    metrics = read_metrics(path / "metrics.jsonl")
    if not metrics.steps:
        raise ConfigError(
            f"{path} has no metrics.jsonl with a finished step: name a run's folder (--run-dir), "
            "such as runs/20260131-120000-mistral"
        )
    starts = _starts(path / "attempts", [float(step["time"]) for step in metrics.steps])
    last = next((s for s in starts[::-1] if s.steps or (s.folder / TOKENIZED).exists()), None)
    config = last.config if last else {}
    told = _json(last.folder / "environment.json") if last else {}
    return Run(
        name=name,
        path=path,
        precision=str(config.get("model", {}).get("precision", "fp32")),
        steps=metrics.steps,
        evals=metrics.evals,
        restarts=metrics.restarts,
        notice=metrics.notice,
        starts=starts,
        last=last,
        events=tuple(_events(path / "launch.log")),
        done=(path / "DONE").exists(),
        config=config,
        arguments=tuple(map(str, told.get("arguments", ()))),
        parameters=told.get("parameters"),
    )


def compare(base: Run, other: Run) -> Difference | None:
    """Compare two runs' losses; None where they have no step in common."""
    ours = {step["step"]: step for step in base.steps}
    pairs = [(ours[step["step"]], step) for step in other.steps if step["step"] in ours]
    if not pairs:
        return None
    apart = [a["step"] for a, b in pairs if any(a.get(key) != b.get(key) for key in SAME)]
    sizes = [(abs(a["loss"] - b["loss"]) / (abs(a["loss"]) or 1.0), a["step"]) for a, b in pairs]
    relative, step = max(sizes)
    return Difference(len(pairs), relative, int(step), min(apart, default=None))


def curves(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs in groups that are one curve each: all are, with the first of their group."""
    found: list[list[Run]] = []
    for run in runs:
        home = next((group for group in found if _alike(group[0], run)), None)
        if home is None:
            found.append([run])
        else:
            home.append(run)
    return found


def _alike(base: Run, run: Run) -> bool:
    difference = compare(base, run)
    return (
        difference is not None
        and difference.apart is None
        and difference.relative <= limit_of((base, run))
    )


def limit_of(runs: Sequence[Run]) -> float:
    """Return the largest relative difference of losses that is promised for runs' precisions."""
    return max(TOLERANCE.get(run.precision, 1e-6) for run in runs)


def ranks(*counts: int) -> str:
    """Say how many ranks, one count after the other: `4 → 2 ranks`."""
    return f"{' → '.join(map(str, counts))} rank{'' if counts == (1,) else 's'}"


def _starts(folder: Path, times: Sequence[float]) -> tuple[Start, ...]:
    names = sorted(path for path in folder.glob("*") if path.name.isdigit())
    began = [_began(path) for path in names]
    bounds = zip(began, [*began[1:], math.inf], strict=False)
    return tuple(_start(path, *bound, times) for path, bound in zip(names, bounds, strict=True))


def _began(folder: Path) -> float:
    """When a start began: as it says, or else when its folder was first written to."""
    told = _json(folder / "environment.json").get("started")
    return float(told or min((path.stat().st_mtime for path in folder.iterdir()), default=0.0))


def _start(folder: Path, began: float, following: float, times: Sequence[float]) -> Start:
    plan = _json(folder / "plan.json")
    degrees = plan.get("plan", {})
    log = folder / "log.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    steps = [int(match[1]) for line in lines if (match := STEP.search(line))]
    begins = [int(match[1]) + 1 for line in lines if (match := BEGIN.search(line))]
    written = [*times, log.stat().st_mtime] if log.exists() else times
    return Start(
        number=int(folder.name),
        folder=folder,
        began=began,
        ended=max((t for t in written if began <= t < following), default=began),
        gpus=sum(map(int, filter(None, degrees.get("replicas", "").split("+"))))
        or math.prod(int(degrees.get(key, 1)) for key in ("dp", "tp", "pp", "sp")),
        devices=tuple(_json(folder / "environment.json").get("hosts", ())),
        plan=plan,
        config=_json(folder / "config.json"),
        steps=((begins or steps)[0], steps[-1]) if steps else None,
        last_line=lines[-1] if lines else "",
    )


def _events(path: Path) -> list[Event]:
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            stamp = time.mktime(time.strptime(line[:19], "%Y-%m-%d %H:%M:%S"))
        except ValueError:  # the next line of a longer message
            continue
        found.append(Event(stamp, line[20:]))
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a start that ended before it had written this
        return {}
    return value if isinstance(value, dict) else {}
