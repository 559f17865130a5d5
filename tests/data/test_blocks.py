"""Samples are the same whichever processes make them, and what is made is not made again."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from train.config import DataConfig, ModelConfig
from train.data.open import opening
from train.data.rows import ROWS as BLOCK
from train.data.workers import shared_out
from train.errors import DataError, FaultError

CORES = sorted(os.sched_getaffinity(0))
ROWS = [
    {"prompt": f"hello {n} " * (n % 7), "completion": f"world {n}", "n": n} for n in range(3500)
]


@contextmanager
def on(cores):
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, CORES)


def stored(cache):
    (index,) = cache.rglob("index.json")
    return {p.name: p.read_bytes() for p in index.parent.iterdir()}


@pytest.mark.skipif(len(CORES) < 2, reason="one core")
def test_several_processes_make_what_one_makes(opened, write, chatml, tmp_path):
    path = write([*ROWS[:1800], {"prompt": "a", "completion": "", "m": 1}, *ROWS[1800:]])
    with on(CORES[:1]):
        one = opened(path, chatml, cache=tmp_path / "one", block_size=30)
    two = opened(path, chatml, cache=tmp_path / "two", block_size=30)
    assert stored(tmp_path / "one") == stored(tmp_path / "two")
    assert one.notices == two.notices
    told = "\n".join(two.notices)
    assert "line 1801" in told and "not used: n, m" in told and "of 3501 samples" in told
    bad = write([*ROWS[:2200], {"prompt": "a"}, *ROWS, {"prompt": 1, "completion": "b"}], "b.jsonl")
    for cores in (CORES[:1], CORES):
        with on(cores), pytest.raises(DataError, match="line 2201: column 'completion' is missing"):
            opened(bad, chatml, cache=tmp_path / "bad")
    assert not list((tmp_path / "bad").rglob("*.parts"))


@pytest.mark.parametrize("name", ["rows.csv", "rows.json", "rows.txt"])
def test_blocks_are_of_the_same_rows_in_every_format(opened, write, pieces, tmp_path, name):
    rows = [{"text": f"hello world {n}"} for n in range(2100)]
    lines = [row["text"] for row in rows]
    text = json.dumps(rows) if "json" in name else "\n".join(["text"] * ("csv" in name) + lines)
    data = opened(write(text, name), pieces)
    assert data.fingerprint == opened(write(rows), pieces).fingerprint


def test_interrupted_work_is_kept(write, chatml, tmp_path):
    path, cache = write(ROWS), tmp_path / "cache"
    config = DataConfig(str(path), None, False, 4, 64, 0)
    model = ModelConfig(None, str(chatml), "fp32", None, False)
    begun = opening(config, model, cache)
    shares = [next(begun).share, next(begun).share]
    begun.close()  # as an interrupt ends it
    assert 0 < shares[0] < shares[1] < 1
    (parts,) = cache.rglob("*.parts")
    made = {p.name: p.stat().st_ino for p in parts.glob("*.npz")}
    assert {"0.npz", "1.npz"} <= made.keys()
    (parts / "1.npz").write_bytes(b"half of it")
    kept = opening(config, model, cache)
    progress = [next(kept) for _ in range(0, len(ROWS), BLOCK)]
    assert (parts / "0.npz").stat().st_ino == made["0.npz"]
    assert progress[-1].share == 1
    with pytest.raises(StopIteration) as ended:
        next(kept)
    data = ended.value.value
    assert data.fingerprint == whole(opening(config, model, tmp_path / "other")).fingerprint
    assert not list(cache.rglob("*.parts"))


def whole(steps):
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def slowly(task):
    time.sleep(0.05 * (task % 3))
    if task == 11:
        raise DataError(f"task {task}")
    if task == 22:
        os.kill(os.getpid(), signal.SIGKILL)
    return task, os.getpid()


def test_results_come_in_order_from_several_processes():
    found = list(shared_out(slowly, range(10), 3))
    assert [task for task, _ in found] == list(range(10))
    assert len({pid for _, pid in found}) == 3
    assert list(shared_out(slowly, [], 3)) == []


def test_an_error_comes_in_its_turn_and_leaves_no_process():
    seen = []
    with pytest.raises(DataError, match="task 11"):
        for task, pid in shared_out(slowly, range(8, 20), 3):
            seen.append((task, pid))
    assert [task for task, _ in seen] == [8, 9, 10]
    assert not any(Path(f"/proc/{pid}").exists() for _, pid in seen)
    with pytest.raises(FaultError, match="was killed, as where memory runs out: what was made is"):
        list(shared_out(slowly, [20, 21, 22], 2))


FORKING = """
import time
from train.data.workers import shared_out
def work(task):
    time.sleep(0 if task < 2 else 60)
    return open("/proc/self/stat").read().split()[0]
for pid in shared_out(work, range(4), 2):
    print(pid, flush=True)
"""


def test_the_processes_end_with_the_one_that_began_them():
    began = subprocess.Popen([sys.executable, "-c", FORKING], stdout=subprocess.PIPE, text=True)
    pids = {began.stdout.readline().strip() for _ in range(2)}
    began.kill()
    began.communicate()
    until = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] not in "ZX"
    except OSError:
        return False
