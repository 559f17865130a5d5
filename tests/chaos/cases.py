"""What is done to runs: killed, their checkpoints damaged, their disk filled; and what is checked.

Every check compares with facts found independently: the step that a start goes on from with the
newest checkpoint whose every byte verifies, the curve with that of a run that nothing happened to.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.forked import Start, Zygote
from tests.chaos.launches import difference, steps
from train.checkpoint.failpoint import POINTS
from train.checkpoint.folder import complete, step_of, survey

TOTAL, EVERY = 40, 5
RANKS = (1, 2, 3, 4)


@dataclass
class Tally:
    """The counts of the whole run of the harness."""

    kills: dict[str, int] = field(default_factory=dict)
    damages: dict[str, int] = field(default_factory=dict)
    runs: int = 0
    starts: int = 0
    wrong_resumes: int = 0
    silent_restarts: int = 0
    orphans: int = 0
    most_lost: int = 0
    largest_difference: float = 0.0
    faults: list[str] = field(default_factory=list)


@dataclass
class Bench:
    """What every case needs."""

    zygote: Zygote
    folder: Path
    words: Sequence[str]
    reference: Path
    dice: random.Random
    tally: Tally

    def start(self, run: Path, harm: dict[str, Any] | None = None, ranks: int = 0) -> Start:
        """Start on a random number of ranks at a random stage."""
        size = ranks or self.dice.choice(RANKS)
        words = [*self.words, f"zero={self.dice.randrange(4)}"]
        self.tally.starts += 1
        return self.zygote.start(size, run, words, harm)

    def settle(self, start: Start, expected: int, timeout: float = 240) -> None:
        """Wait for a start's end; check that nothing is left, and where it had gone on from."""
        if not start.wait(timeout):
            self.tally.orphans += len(start.pids())
            self.error(start, f"processes were left: {start.pids()}")
            start.end()
        self.check_resume(start, expected)

    def check_resume(self, start: Start, expected: int) -> None:
        text = start.text()
        if "Resuming from step_" in text:
            found = int(text.split("Resuming from step_")[1][:8])
        elif "starting from step 0" in text:
            found = 0
        else:
            return  # it ended before it came to that
        if found != expected:
            self.tally.wrong_resumes += 1
            self.tally.silent_restarts += found == 0
            self.error(start, f"went on from {found} instead of {expected}")

    def finish(self, run: Path) -> None:
        """Let a run come to its end, unhurt, and compare its whole curve."""
        good = newest_good(run)
        start = self.start(run)
        self.settle(start, good)
        if start.code() != 0:
            self.error(start, f"ended with {start.code()}: {start.text()[-600:]}")
            return
        try:
            found = difference(run, self.reference)
        except AssertionError as error:
            self.tally.wrong_resumes += 1
            self.error(start, f"another curve: {error}")
            return
        self.tally.runs += 1
        self.tally.largest_difference = max(self.tally.largest_difference, found)
        if found > 1e-6:
            self.tally.wrong_resumes += 1
            self.error(start, f"a loss differs by {found:.1e}")
        shutil.rmtree(run, ignore_errors=True)

    def fault(self, start: Start, text: str) -> None:
        self.tally.faults.append(f"{start.stem.name}: {text}")
        print(f"FAULT {start.stem.name}: {text}", flush=True)


def newest_good(run: Path) -> int:
    """The step of the newest checkpoint of which every byte verifies."""
    return max((one.step for one in survey(run) if one.error is None), default=0)


def kill_until_done(bench: Bench, run: Path, kills: int) -> int:
    """Kill a run up to `kills` times, each time resuming it elsewhere; return how many it were."""
    done = 0
    for _ in range(kills + 6):
        if done == kills or (run / "DONE").exists():
            break
        good = newest_good(run)
        kind = bench.dice.choice(["rank", "ranks", "launcher", "point", "point"])
        size = bench.dice.choice(RANKS)
        harm = None
        if kind == "point":
            kind = bench.dice.choice(POINTS)
            main = kind in ("begun", "indexed", "renamed", "completed", "pruned")
            victim = 0 if main else bench.dice.randrange(size)
            harm = {"rank": victim, "point": kind, "time": bench.dice.randint(1, 4), "deed": "kill"}
        start = bench.start(run, harm, size)
        hurt = bench_hurts(bench, start, kind, harm)
        bench.settle(start, good)
        if hurt:
            done += 1
            bench.tally.kills[kind] = bench.tally.kills.get(kind, 0) + 1
            made = steps(run)
            lost = (made[-1]["step"] if made else 0) - newest_good(run)
            bench.tally.most_lost = max(bench.tally.most_lost, lost)
    bench.finish(run)
    return done


def bench_hurts(bench: Bench, start: Start, kind: str, harm: dict[str, Any] | None) -> bool:
    """Kill at the point, or at a random moment between the start and about its end."""
    if harm is not None:
        start.wait()
        return start.harmed()
    wait_for_rank(start)
    moment = time.monotonic() + bench.dice.uniform(0, 1.5 + 2.5 * start.size)
    while time.monotonic() < moment and start.running():
        time.sleep(0.01)
    if not start.running() or (start.run / "DONE").exists():
        return False
    if kind == "launcher":
        return signalled(start.pid)
    ranks = bench.dice.sample(range(start.size), 1 if kind == "rank" else (start.size + 1) // 2)
    return sum(signalled(start.rank(rank)) for rank in ranks) > 0


def wait_for_rank(start: Start) -> None:
    deadline = time.monotonic() + 30
    while any(start.rank(n) is None for n in range(start.size)) and time.monotonic() < deadline:
        time.sleep(0.01)


def signalled(pid: int | None) -> bool:
    try:
        os.kill(pid or 0, signal.SIGKILL) if pid else None
    except ProcessLookupError:
        return False
    return pid is not None


DAMAGES = ("truncated", "flipped", "removed", "emptied", "index", "mark", "all")


def damage_and_resume(bench: Bench, template: Path, run: Path, kind: str) -> None:
    """Damage the newest checkpoint of an unfinished run, or all; resume it elsewhere."""
    shutil.copytree(template, run)
    folders = complete(run)
    victims = folders if kind == "all" else folders[:1]
    for folder in victims:
        damage(folder, bench.dice.choice(DAMAGES[:4]) if kind == "all" else kind, bench.dice)
    bench.tally.damages[kind] = bench.tally.damages.get(kind, 0) + 1
    if kind != "all":
        told = kind != "mark"  # without its mark the folder does not exist
        start = bench.start(run)
        bench.settle(start, step_of(folders[1]))
        if told and f"The checkpoint {folders[0].name} is damaged" not in start.text():
            bench.error(start, f"{kind}: passed over without a word")
        bench.finish(run)
        return
    start = bench.start(run)
    bench.settle(start, -1)
    if start.code() != 2 or "--resume never" not in start.text():
        bench.tally.silent_restarts += start.code() == 0
        bench.error(start, f"all checkpoints damaged, and it ended with {start.code()}")
    shutil.rmtree(run)


def damage(folder: Path, kind: str, dice: random.Random) -> None:
    """Do one thing to a checkpoint's files."""
    files = sorted(folder.glob("slices_*"))
    chosen = dice.choice(files)
    size = chosen.stat().st_size
    if kind == "truncated":
        os.truncate(chosen, dice.randrange(size))
    elif kind == "flipped":
        with chosen.open("r+b") as file:
            place = dice.randrange(size)
            file.seek(place)
            value = file.read(1)[0]
            file.seek(place)
            file.write(bytes([value ^ (1 << dice.randrange(8))]))
    elif kind == "removed":
        chosen.unlink()
    elif kind == "emptied":
        chosen.write_bytes(b"")
    elif kind == "index":
        text = (folder / "index.json").read_bytes()
        (folder / "index.json").write_bytes(text[: dice.randrange(len(text))])
    else:
        (folder / "COMPLETE").unlink()


def fill_disk_and_resume(bench: Bench, disk: Path, size: int) -> None:
    """Fill a small disk in the middle of a save, make room again, and resume elsewhere."""
    mount(disk, 12 * size)
    try:
        run = disk / "run"
        point = bench.dice.choice(["begun", "opened", "copied", "halfway", "agreed"])
        ranks = bench.dice.choice(RANKS)
        harm = {
            "rank": 0, "point": point, "time": bench.dice.randint(2, 4), "deed": "fill",
            "disk": str(disk), "leave": bench.dice.randrange(size // 2),
        }  # fmt: skip
        start = bench.start(run, harm, ranks)
        bench.settle(start, 0)
        if not start.harmed():
            bench.error(start, f"the disk was never filled: {start.text()[-500:]}")
        elif start.code() not in (0, 2) or (start.code() == 2 and "free" not in start.text()):
            bench.error(start, f"a full disk ended it with {start.code()}: {start.text()[-500:]}")
        (disk / "filler").unlink(missing_ok=True)
        bench.tally.damages["full disk"] = bench.tally.damages.get("full disk", 0) + 1
        bench.finish(run)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def mount(disk: Path, size: int) -> None:
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)], check=True)
