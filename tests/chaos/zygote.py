"""A process that has imported torch and forks starts of a run from itself.

It reads one JSON object a line: ranks, argv, log, code (a file for the exit code), and perhaps
`harm`: what to do at a named point of a save. It answers with the process id of the start, whose
session holds all of its processes. The start behaves as DeepSpeed's launcher does: a rank that
fails takes the others down, by SIGTERM, and by SIGKILL after 30 s.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import torch

from train import main as entry
from train.checkpoint import folder as checkpoints
from train.checkpoint import slices
from train.engine import saver
from train.engine.huggingface import open_exporter  # noqa: F401
from train.run import finishing, joining, session  # noqa: F401

GRACE = 30.0


def main() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            lead(order)
        print(f"pid {pid}", flush=True)


def lead(order: dict[str, Any]) -> NoReturn:
    """Be the launcher: fork the ranks, and end them all when one fails."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    ranks: dict[int, int] = {}
    for rank in range(order["ranks"]):
        pid = os.fork()
        if pid == 0:
            serve(rank, order)
        ranks[pid] = rank
    code, deadline = 0, float("inf")
    while ranks:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            ranks.pop(pid)
            if status and not code:
                code = os.waitstatus_to_exitcode(status) & 255
                deadline = time.monotonic() + GRACE
                signal_all(ranks, signal.SIGTERM)
        elif time.monotonic() > deadline:
            signal_all(ranks, signal.SIGKILL)
        else:
            time.sleep(0.02)
    Path(order["code"]).write_text(str(code))
    os._exit(0)


def signal_all(ranks: dict[int, int], number: int) -> None:
    for pid in ranks:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def serve(rank: int, order: dict[str, Any]) -> NoReturn:
    """Be a rank: run train/main.py as it stands."""
    size = order["ranks"]
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
        "LOCAL_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(order["port"]),
    }  # fmt: skip
    (Path(order["code"]).with_suffix(f".{rank}")).write_text(str(os.getpid()))
    harm = order.get("harm")
    if harm and harm["rank"] == rank:
        arm(harm)
    sys.argv = ["train/main.py", *order["argv"]]
    entry.main()
    sys.stdout.flush()
    os._exit(0)


def arm(harm: dict[str, Any]) -> None:
    """Put a deed in the place of the named points of a save."""
    passed = {"times": 0}

    def failpoint(point: str) -> None:
        if point == harm["point"]:
            passed["times"] += 1
            if passed["times"] == harm["time"]:
                Path(harm["done"]).write_text(point)
                kill() if harm["deed"] == "kill" else fill(Path(harm["disk"]), harm["leave"])

    slices.failpoint = checkpoints.failpoint = saver.failpoint = failpoint


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill(disk: Path, leave: int) -> None:
    """Use up a file system but for `leave` bytes."""
    with (disk / "filler").open("wb") as file, suppress(OSError):
        while os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize > leave:
            file.write(bytes(1 << 14))
            file.flush()


if __name__ == "__main__":
    main()
