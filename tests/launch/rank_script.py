"""A rank that counts steps into a run folder, and has at a step the accident it is told of.

    rank_script.py --run-dir D --steps N [--opening SECONDS] [--accident RANK:STEP:KIND] ...

`--opening` is how long the data is opened, before there is a run folder; `--unready` a rank that
ends then; `--unfit` a number of ranks that have no plan; `--tell` a variable whose value rank 0
appends to the file `told`; `--busy WHAT:STEP` a step at which rank 0 loads, saves or evaluates for
two seconds, once for each run folder. An accident happens once for each run
folder. The ranks wait for one another at each step.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from train.config import World
from train.launch import heartbeat
from train.launch.stopping import StopRequests

STEP = 0.05  # seconds


def main() -> None:
    stop = StopRequests(World.from_env(os.environ), leave)
    stop.watch(launched=False)
    heartbeat.enter(os.environ)
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--accident", action="append", default=[])
    parser.add_argument("--checkpoints", action="store_true")
    parser.add_argument("--opening", type=float, default=0.0)
    parser.add_argument("--unready", type=int)
    parser.add_argument("--unfit", type=int)
    parser.add_argument("--tell")
    parser.add_argument("--busy", action="append", default=[])
    known, _ = parser.parse_known_args()
    run_dir, own, size = known.run_dir, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    time.sleep(known.opening)
    if own == known.unready:
        print("unready, as this test wants", file=sys.stderr)
        leave(1)
    heartbeat.await_turn(os.environ)
    if size == known.unfit:
        print(f"[error] {size} ranks are unfit", file=sys.stderr)
        leave(2)
    run_dir.mkdir(parents=True, exist_ok=True)
    stop.follow(run_dir, supervised=heartbeat.supervised(os.environ))
    if own == 0 and known.tell:
        with (run_dir / "told").open("a") as file:
            file.write(os.environ.get(known.tell, "-") + "\n")
    busy(known, "loading", own, 0)
    with stop.deferred():
        train(known, run_dir, own, size, stop)
    if own == 0:
        (run_dir / "DONE").touch()


def train(
    known: argparse.Namespace, run_dir: Path, own: int, size: int, stop: StopRequests
) -> None:
    first = max((int(p.name[5:]) for p in run_dir.glob("checkpoints/step_*")), default=0)
    print(f"rank {own} of {size} from step {first}", flush=True)
    meeting = Meeting(run_dir / f"meeting-{os.environ['MASTER_PORT']}", own, size, first)
    for step in range(first + 1, known.steps + 1):
        for accident in known.accident:
            who, when, kind = accident.split(":")
            if (int(who), int(when)) == (own, step):
                happen(kind, run_dir / f"accident-{who}-{when}-{kind}")
        agreed = meeting.folder / f"stop-{step}"
        if stop.asked():
            agreed.touch()
        meeting.wait(step)
        time.sleep(STEP)
        if own == 0:
            save(run_dir, step, size)
            busy(known, "saving", own, step)
            if known.checkpoints:
                commit(run_dir, step)
            busy(known, "evaluating", own, step)
        if agreed.exists():
            leave(75)


def leave(code: int) -> None:
    heartbeat.leave(os.environ, code)
    os._exit(code)


class Meeting:
    """Waits for the other ranks as a collective does: blocked in the kernel, until a peer dies.

    Each rank holds a lock for the step that it is in; who waits for it waits for that lock.
    """

    def __init__(self, folder: Path, own: int, size: int, first: int) -> None:
        self.folder, self.own, self.size = folder, own, size
        folder.mkdir(exist_ok=True)
        self.held = self.hold(first + 1)

    def hold(self, step: int) -> int:
        draft = self.folder / f"draft-{step}-{self.own}"
        lock = os.open(draft, os.O_RDWR | os.O_CREAT)
        fcntl.flock(lock, fcntl.LOCK_EX)
        draft.rename(self.folder / f"{step}-{self.own}")
        return lock

    def wait(self, step: int) -> None:
        following = self.hold(step + 1)
        (self.folder / f"done-{step}-{self.own}").touch()
        os.close(self.held)
        self.held = following
        for other in range(self.size):
            path = self.folder / f"{step}-{other}"
            while not path.exists():
                time.sleep(0.01)
            with path.open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH)
            if not (self.folder / f"done-{step}-{other}").exists():
                raise ConnectionError("Connection reset by peer")


def busy(known: argparse.Namespace, what: str, own: int, step: int) -> None:
    """Do for two seconds what is asked for at this step, having said so in a file."""
    mark = known.run_dir / f"busy-{what}"
    if own == 0 and f"{what}:{step}" in known.busy and not mark.exists():
        mark.touch()
        time.sleep(2.0)


def save(run_dir: Path, step: int, size: int) -> None:
    with (run_dir / "metrics.jsonl").open("a") as file:
        record = {"step": step, "seconds": STEP, "time": time.time(), "world_size": size}
        file.write(json.dumps(record) + "\n")


def commit(run_dir: Path, step: int) -> None:
    folder = run_dir / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "COMPLETE").touch()


def happen(kind: str, mark: Path) -> None:
    if mark.exists() and kind not in ("always", "kills"):
        return
    mark.touch()
    if kind in ("kill", "kills"):
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind in ("error", "always"):
        raise RuntimeError("the accident of this test")
    print(f"[error] exit {kind} was asked for", file=sys.stderr, flush=True)
    leave(int(kind))


if __name__ == "__main__":
    main()
