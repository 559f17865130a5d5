"""Start a run under the real DeepSpeed launcher, and look for what is left of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.launching import free_port

ROOT = Path(__file__).resolve().parents[2]
MARK = "ANYRANK_TEST"  # an environment variable that names a start in all of its processes


@dataclass
class Launch:
    """One start of a run, with its console in `log`."""

    process: subprocess.Popen[bytes]
    mark: str
    log: Path
    run: Path

    def pids(self) -> list[int]:
        """Every living process of this start."""
        return [pid for pid in marked(self.mark) if pid != os.getpid()]

    def ranks(self) -> dict[int, int]:
        """Process ids by rank; what a rank has started itself does not count."""
        named = {pid: environment(pid).get("RANK") for pid in self.pids()}
        return {
            int(rank): pid
            for pid, rank in named.items()
            if rank is not None and named.get(parent(pid)) is None
        }

    def wait(self, timeout: float = 240) -> int:
        """Return the launcher's exit code."""
        return self.process.wait(timeout)

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def orphans(self, patience: float = 20) -> list[int]:
        """What is left of this start `patience` seconds after its launcher has gone."""
        return left(self.mark, patience)

    def end(self) -> None:
        """Kill what is left; for the tests' own tidiness."""
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(30)


def launch(ranks: int, run: Path, args: Sequence[str], log: Path) -> Launch:
    """Start `train/main.py` on `ranks` ranks."""
    mark = uuid.uuid4().hex
    runner = Path(sys.executable).with_name("deepspeed")
    words = [str(runner), "--num_gpus", str(ranks), "--master_port", str(free_port())]
    words += [str(ROOT / "train" / "main.py"), "--run-dir", str(run)]
    with log.open("ab") as file:
        process = subprocess.Popen(
            [*words, *args], cwd=ROOT, stdout=file, stderr=file, start_new_session=True,
            env=os.environ | {MARK: mark, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    return Launch(process, mark, log, run)


def marked(mark: str) -> list[int]:
    """Every living process that was started with this mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            content = (path / "environ").read_bytes()
            dead = (path / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            continue
        if f"{MARK}={mark}".encode() in content and not dead:
            found.append(int(path.name))
    return found


def left(mark: str, patience: float = 20) -> list[int]:
    """What still lives of the processes with this mark after `patience` seconds."""
    deadline = time.monotonic() + patience
    while (found := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def environment(pid: int) -> dict[str, str]:
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(word.split("=", 1) for word in content.split("\0") if "=" in word)


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def metrics(run: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def steps(run: Path) -> list[dict[str, Any]]:
    return [line for line in metrics(run) if "loss" in line]


def wait_for_step(launch: Launch, step: int, timeout: float = 240) -> None:
    """Return once `step` has been recorded by this start."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        done = steps(launch.run)
        if done and done[-1]["step"] >= step:
            return
        assert launch.process.poll() is None, launch.text()[-3000:]
        time.sleep(0.02)
    raise AssertionError(f"no step {step}: {launch.text()[-3000:]}")


def difference(run: Path, reference: Path) -> float:
    """The largest relative difference of a loss between two runs, each step standing once."""
    one, other = steps(run), steps(reference)
    assert [line["step"] for line in one] == [line["step"] for line in other]
    for left, right in zip(one, other, strict=True):
        for key in ("sample_hash", "lr", "tokens", "loss_tokens", "samples"):
            assert left[key] == right[key], f"step {left['step']}: {key} differs"
    evals = [
        [line["step"] for line in metrics(path) if "eval_loss" in line] for path in (run, reference)
    ]
    assert evals[0] == evals[1], f"evaluations after {evals[0]}, expected after {evals[1]}"
    return max(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(one, other, strict=True))
