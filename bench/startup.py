"""How long until the first step: wall and CPU seconds from the command to each of its milestones.

    python bench/startup.py [--rounds 3] [--against OTHER_CHECKOUT]

Runs `python train/main.py --max-steps 1` and `./launch.sh 2 --max-steps 1` on the embedded preset,
which is built first if it is not cached. CPU seconds are of the whole tree of processes. Another
checkout is run in turn with this one, by the same interpreter, so that a slow minute slows both.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import record

ROOT = Path(__file__).resolve().parents[1]
# What a run's console says when it has reached a milestone.
MILESTONES = {
    "hello": "[1/8]",
    "data open": "[3/8]",
    "joined": "[4/8]",
    "planned": "[5/8]",
    "loaded": "[6/8]",
    "first step": "[Step 1/1]",
}
COMMANDS = {
    "python train/main.py": [sys.executable, "train/main.py"],
    "./launch.sh 2": ["./launch.sh", "2"],
}
TICKS = os.sysconf("SC_CLK_TCK")


def processes() -> dict[int, tuple[int, float]]:
    """Return parent and CPU seconds, those of ended children included, of every process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found[int(path.parent.name)] = (int(fields[1]), sum(map(int, fields[11:15])) / TICKS)
    return found


def cpu_seconds(root: int) -> float:
    """Return the CPU seconds of a process and of all below it."""
    known, inside = processes(), {root}
    before = 0
    while len(inside) > before:
        before = len(inside)
        inside |= {pid for pid, (parent, _) in known.items() if parent in inside}
    return sum(known[pid][1] for pid in inside if pid in known)


def run(words: list[str], checkout: Path) -> dict[str, tuple[float, float]]:
    """Run a command to its first step; return wall and CPU seconds at each milestone."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [*words, "--max-steps", "1", "--run-dir", f"{folder}/run"]
        env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        began = time.perf_counter()
        with subprocess.Popen(
            argv, cwd=checkout, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        ) as process:  # fmt: skip
            try:
                return dict(reached(process, began))
            finally:
                os.killpg(process.pid, signal.SIGTERM)
                process.communicate(timeout=120)


def reached(
    process: subprocess.Popen[str], began: float
) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield each milestone as it comes, with wall and CPU seconds."""
    assert process.stdout is not None
    waiting = dict(MILESTONES)
    said = []
    for line in process.stdout:
        said.append(line)
        for name, mark in list(waiting.items()):
            if mark in line:
                del waiting[name]
                yield name, (time.perf_counter() - began, cpu_seconds(process.pid))
        if not waiting:
            return
    raise RuntimeError(f"the run ended before {', '.join(waiting)}: {''.join(said[-5:])}")


def main() -> None:
    """Measure, print, and write bench/results/startup.json."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", type=Path, help="another checkout, run in turn with this one")
    given = parser.parse_args()
    sides = {"here": ROOT} | ({"there": given.against.resolve()} if given.against else {})
    rows = []
    for command, words in COMMANDS.items():
        found: dict[str, list[dict[str, tuple[float, float]]]] = {side: [] for side in sides}
        for number in range(given.rounds + 1):
            for side, checkout in sides.items():
                times = run(words, checkout)
                if number:  # the first fills caches
                    found[side].append(times)
        for side, runs in found.items():
            for name in MILESTONES:
                wall, cpu = (statistics.median(one[name][i] for one in runs) for i in (0, 1))
                rows.append(
                    {"command": command, "checkout": side, "milestone": name,
                     "wall": round(wall, 2), "cpu": round(cpu, 2)}
                )  # fmt: skip
                print(f"{command:<22}{side:<7}{name:<12}{wall:>7.2f} s wall {cpu:>7.2f} s CPU")
    record.write("startup", rows, {"rounds": given.rounds})


if __name__ == "__main__":
    main()
