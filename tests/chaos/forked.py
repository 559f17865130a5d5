"""Starts of a run that are forked from one process, so that a hundred take minutes, not hours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.launches import ROOT
from tests.support.launching import free_port


class Zygote:
    """The process that starts are forked from."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.zygote"], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def start(
        self, ranks: int, run: Path, args: Sequence[str], harm: dict[str, Any] | None = None
    ) -> Start:
        """Start the run on `ranks` ranks."""
        self.count += 1
        stem = self.folder / f"start{self.count:04d}"
        order = {
            "ranks": ranks, "argv": ["--run-dir", str(run), *args], "log": f"{stem}.log",
            "code": f"{stem}.code", "port": free_port(),
        }  # fmt: skip
        if harm:
            order["harm"] = harm | {"done": f"{stem}.done"}
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        while not answer.startswith("pid "):  # libraries print while they are imported
            assert answer, "the zygote has ended"
            answer = self.process.stdout.readline()
        return Start(int(answer.removeprefix("pid ")), stem, run, ranks)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


@dataclass(frozen=True)
class Start:
    """One start: the launcher's process id, which is the session of all its processes."""

    pid: int
    stem: Path
    run: Path
    size: int

    def pids(self) -> list[int]:
        """Every living process of this start."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            # The launcher is not yet its session's leader in its first moments.
            own = int(fields[3]) == self.pid or int(path.parent.name) == self.pid
            if own and fields[0] not in "ZX":
                found.append(int(path.parent.name))
        return found

    def rank(self, number: int) -> int | None:
        """The process id of a rank; None before it has begun."""
        try:
            return int(self.stem.with_suffix(f".{number}").read_text())
        except (OSError, ValueError):
            return None

    def running(self) -> bool:
        return bool(self.pids())

    def code(self) -> int | None:
        """The launcher's exit code; None when it was killed."""
        path = self.stem.with_suffix(".code")
        return int(path.read_text()) if path.exists() else None

    def wait(self, timeout: float = 240) -> bool:
        """Wait until nothing is left; False if something is after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.running() and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self.running()

    def text(self) -> str:
        path = self.stem.with_suffix(".log")
        return path.read_text(errors="replace") if path.exists() else ""

    def harmed(self) -> bool:
        """Whether the named point was reached."""
        return self.stem.with_suffix(".done").exists()

    def end(self) -> None:
        """Kill what is left, for the harness's own tidiness."""
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
