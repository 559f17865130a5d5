"""Two ranks, one held at half the CPU: a step's time with speeds told, measured, or unknown.

    sudo python bench/mixed.py [--rounds R] [--first]

Needs root, and a `cpu` controller of control groups, version 1 or 2: the second rank's quota is
half a core. Each rank has a core for itself. The cases take every step one after the other, in
turning order, each with an engine of its own, so that a slow minute slows all of them alike and
losses can be compared step by step: `free` without the quota and with equal shares; `equal`, `told`
and `measured` with it. The ideal is the time of `free` over the sum of the speeds, 2 / (1 + 0.5) of
it. `busy` is what a step takes by CPU seconds alone, the largest of a rank's over its speed: a busy
machine moves it less. `--first` gives the ranks a hundred times the usual weight against all else.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import json
import os
import subprocess
import tempfile
import time
from dataclasses import replace
from statistics import median
from typing import Any

from bench import record

SPEEDS = (1.0, 0.5)
PERIOD = 20_000  # microseconds in which a quota is given out: a short one is an even one
CASES = ("free", "equal", "told", "measured")
V1, V2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
SIZES = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 3,
         "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 4096,
         "max_position_embeddings": 4096}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description="one rank of two at half its speed")
    parser.add_argument("--rounds", type=int, default=10, help="timed steps of each case")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--first", action="store_true", help="before all else that runs here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given, json.loads(given.worker))
        return 0
    before = os.getloadavg()[0]
    found = measured(given)
    found["first"] = given.first
    found["load average"] = [before, os.getloadavg()[0]]
    rows = found.pop("rows")
    print(record.table(rows), json.dumps(found, indent=1), sep="\n")
    print(f"written to {record.write('mixed', rows, found)}")
    return 0


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """Train all cases on two ranks; return what they wrote."""
    from bench.peers import free_port
    from bench.rig import preset_data, random_model

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random_model(folder / "model", "fp32", **SIZES)
        task = {"model": str(folder / "model"), "data": str(preset_data()),
                "out": str(folder / "out.json")}  # fmt: skip
        words = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2"]
        words += ["--master_port", str(free_port()), __file__, "--worker", json.dumps(task)]
        words += ["--rounds", str(given.rounds), "--batch", str(given.batch)]
        words += ["--first"] * given.first
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
        return dict(json.loads(Path(task["out"]).read_text()))


class Group:
    """A control group of this process alone, which holds it at a share of a core."""

    def __init__(self, *, first: bool) -> None:
        self._old = not (V2 / "cgroup.controllers").exists()
        self.path = (V1 if self._old else V2) / f"anyrank-mixed-{os.getpid()}"
        if not self._old:
            (V2 / "cgroup.subtree_control").write_text("+cpu")
        self.path.mkdir()
        if first:
            name, weight = ("cpu.shares", "102400") if self._old else ("cpu.weight", "10000")
            (self.path / name).write_text(weight)
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def hold(self, share: float) -> None:
        """Let the process have `share` of a core; 1: as much as it likes."""
        quota = int(PERIOD * share)
        if self._old:
            (self.path / "cpu.cfs_period_us").write_text(str(PERIOD))
            (self.path / "cpu.cfs_quota_us").write_text(str(quota if share < 1 else -1))
        else:
            (self.path / "cpu.max").write_text(f"{quota if share < 1 else 'max'} {PERIOD}")

    def leave(self) -> None:
        """Put the process back where all groups begin, and remove this one."""
        (self.path.parent / "cgroup.procs").write_text(str(os.getpid()))
        self.path.rmdir()


def work(given: argparse.Namespace, task: dict[str, str]) -> None:
    """Train every case on the two ranks that the launcher started; rank 0 writes the figures."""
    rank = int(os.environ["RANK"])
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    group = Group(first=given.first)
    try:
        _train(given, task, group, rank)
    finally:
        group.leave()


def _train(given: argparse.Namespace, task: dict[str, str], group: Group, rank: int) -> None:
    from bench.rig import join, rig
    from train.data.feed import AHEAD
    from train.planning.balance import EVERY, is_weighed
    from train.planning.shares import Share
    from train.run.balancing import loads

    gang = join()
    warm = EVERY + AHEAD - 1  # from then on `measured` has its shares
    steps = warm + given.rounds
    words = f"--model-name-or-path {task['model']} --dataset-name-or-path {task['data']} "
    words += f"--batch-size {given.batch} --block-size 128 --max-steps {steps} --lr 1e-3 "
    words += "--precision fp32 --ds-config ds_configs/auto.json "
    words += "--pin zero=1 recompute=none offload=none micro_tokens=2048"
    run = rig(gang, words.split())
    cases = {name: Case(run) for name in CASES}
    capacity = cases["told"].placement.capacity
    told = loads(run.planned.plan, capacity, [Share(capacity, speed) for speed in SPEEDS])
    cases["told"].placement = replace(cases["told"].placement, loads=told)
    said = ""
    for step in range(steps):
        for turn in range(len(CASES)):
            name = CASES[(step + turn) % len(CASES)]
            group.hold(1.0 if name == "free" else SPEEDS[rank])
            cases[name].step(step, timed=step >= warm)
            if name == "measured" and is_weighed(step):
                said = cases[name].weigh() or said
    group.hold(1.0)
    spent = gang.gather({name: case.cpu for name, case in cases.items()})
    if gang.world.is_main:
        Path(task["out"]).write_text(json.dumps(figures(cases, spent) | {"said": said}))
    gang.close()


class Case:
    """One way to divide the work, with an engine of its own; seconds by step."""

    def __init__(self, run: Any) -> None:
        self.engine = run.engine()
        self.job = run.job(self.engine)
        self.placement = self.job.placement
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.cpu: list[float] = []

    def step(self, step: int, *, timed: bool) -> None:
        """Take a step, and note how long it took on the slower rank."""
        from train.data.feed import step_batch

        batch = step_batch(self.job.train, 0, self.job.config.data.batch_size, step, self.placement)
        gang = self.engine.gang
        gang.barrier()
        began, spent = time.perf_counter(), time.process_time()
        found = self.engine.step(step, batch.micros, batch.loss_tokens, 1e-3)
        cpu = time.process_time() - spent
        gang.barrier()
        self.losses.append(found.loss)
        if timed:
            self.seconds.append(time.perf_counter() - began)
            self.cpu.append(cpu)

    def weigh(self) -> str:
        """Divide the work as measured, and return what is told of it."""
        self.placement, said = self.job.balanced(self.placement, self.engine.paces())
        return str(said)


def figures(cases: dict[str, Case], spent: list[dict[str, list[float]]]) -> dict[str, Any]:
    """Return a row for each case, and what they come to."""
    ideal = median(cases["free"].seconds) * 2 / sum(SPEEDS)
    rows = []
    for name, case in cases.items():
        held = (1.0, 1.0) if name == "free" else SPEEDS
        busy = max(median(cpu[name]) / speed for cpu, speed in zip(spent, held, strict=True))
        pairs = zip(case.losses, cases["free"].losses, strict=True)
        rows.append({
            "case": name, "seconds": median(case.seconds),
            "of_ideal": median(case.seconds) / ideal, "busy": busy,
            "loss_difference": max(abs(one - other) / other for one, other in pairs),
        })  # fmt: skip
    seconds = {row["case"]: row["seconds"] for row in rows}
    busy = {row["case"]: row["busy"] for row in rows}
    return {
        "rows": rows,
        "ideal": ideal,
        "ideal_busy": busy["free"] * 2 / sum(SPEEDS),
        "faster_than_equal": {n: seconds["equal"] / seconds[n] for n in ("told", "measured")},
        "faster_by_cpu": {n: busy["equal"] / busy[n] for n in ("told", "measured")},
        "shares": {n: [load.speed for load in cases[n].placement.loads]
                   for n in ("told", "measured")},
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
