"""`anyrank runs`: what runs and what ran, a line for each run folder."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from train.arguments import Parser
from train.errors import AnyrankError, ConfigError, ExitCode
from train.launch import progress
from train.launch.owner import owner_of
from train.output.metrics import read_metrics
from train.text import duration, laid_out, terminal_width

FOLDER = Path("runs")  # where launch.sh puts them; it makes it with the first
HEADS = ("RUN", "STATE", "STEP", "LOSS", "GPUS", "TOKENS/S", "LEFT", "LAST FAULT")
FAULT = re.compile(r"rank \d+ on |host \S+ is lost|the run hangs|giving up|leaving out ")
_EVERY = 2.0  # seconds between two looks
_LATEST = 20  # steps whose time and speed count


@dataclass(frozen=True)
class RunState:
    """How a run stands: `left` in seconds, `fault` with its time; None where it is not known."""

    name: str
    state: str
    step: int = 0
    total: int | None = None
    loss: float | None = None
    gpus: int | None = None
    tokens_per_s: float | None = None
    left: float | None = None
    fault: str = ""

    def cells(self) -> tuple[str, ...]:
        """Return the row of the table."""
        known = {
            "step": f"{self.step}/{self.total}" if self.total else str(self.step),
            "loss": "-" if self.loss is None else f"{self.loss:.4f}",
            "gpus": "-" if self.gpus is None else str(self.gpus),
            "speed": "-" if self.tokens_per_s is None else f"{self.tokens_per_s:,.0f}",
            "left": "-" if self.left is None else duration(self.left),
        }
        return (self.name, self.state, *known.values(), self.fault or "-")


def command(argv: Sequence[str]) -> int:
    """Print the table, once or until Ctrl-C; return the exit code.

    Raises:
        ConfigError: there is no such folder.
    """
    parser = Parser("anyrank runs", str(__doc__), "anyrank runs: ")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="default: runs")
    parser.add_argument("--watch", action="store_true", help="show them anew every 2 s")
    given = parser.parse_args(list(argv))
    if given.folder != FOLDER and not given.folder.is_dir():
        raise ConfigError(
            f"there is no folder '{given.folder}' here: name the folder that the runs are in"
        )
    try:
        while True:
            cleared = "\x1b[H\x1b[J" if given.watch and sys.stdout.isatty() else ""
            print(cleared + table(survey(given.folder), terminal_width()), flush=True)
            if not given.watch:
                break
            time.sleep(_EVERY)
    except KeyboardInterrupt:
        pass
    return ExitCode.DONE


def survey(folder: Path) -> list[RunState]:
    """Return the state of every run in a folder, or of the run that it is; running ones last."""
    inside = [folder, *(path for path in folder.glob("*") if path.is_dir())]
    runs = [path for path in inside if (path / "attempts").is_dir() or (path / "OWNER").is_file()]
    found = [(path.stat().st_mtime, state_of(path)) for path in runs]
    return [
        state for _, state in sorted(found, key=lambda one: (one[1].state == "running", one[0]))
    ]


def state_of(run: Path) -> RunState:
    """Return how a run stands, as far as its folder says."""
    name = run.resolve().name
    running = owner_of(run) is not None
    state = "running" if running else "done" if (run / "DONE").exists() else "stopped"
    try:
        metrics = read_metrics(run / "metrics.jsonl")
    except AnyrankError as error:
        return RunState(name, state, fault=str(error))
    if not metrics.steps:
        return RunState(name, state, fault=last_fault(run / "launch.log"))
    last = metrics.steps[-1]
    total = progress.total(run)
    latest = [s for s in metrics.steps[-_LATEST:] if s["world_size"] == last["world_size"]]
    settled = latest[1:] or latest
    seconds = sum(float(step["seconds"]) for step in settled)
    return RunState(
        name,
        state,
        step=int(last["step"]),
        total=total,
        loss=float(last["loss"]),
        gpus=int(last["world_size"]),
        tokens_per_s=sum(int(step["tokens"]) for step in settled) / seconds if seconds else None,
        left=_left(int(last["step"]), total, seconds / len(settled)) if running else None,
        fault=last_fault(run / "launch.log"),
    )


def _left(step: int, total: int | None, seconds: float) -> float | None:
    return None if total is None else max(0, total - step) * seconds


def last_fault(log: Path) -> str:
    """Return the last line of a launcher's log that tells of a fault, with its time; else ""."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    faults = [line for line in lines if FAULT.search(line)]
    return faults[-1] if faults else ""


def table(states: Sequence[RunState], width: int | None = None) -> str:
    """Lay the runs out for a terminal of that width; in a narrow one faults stand below."""
    if not states:
        return "No run here."
    left = [head in ("RUN", "STATE", "LAST FAULT") for head in HEADS]
    return "\n".join(laid_out([HEADS, *(state.cells() for state in states)], left, width))
