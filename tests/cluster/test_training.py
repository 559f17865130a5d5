"""Real trainings over several hosts: as a user starts them, and what happens to their hosts."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.launches import difference, environment, parent
from tests.cluster.conftest import ROOT, Lab, finish, left_of
from tests.cluster.curves import check_curve, records, wait_for_step, went_on

STEPS = 60
WORDS = f"--batch-size 12 --block-size 96 --max-steps {STEPS} --save-step 10 --lr 2e-3 "
WORDS += "--lr-schedule linear --precision fp32 --ds-config ds_configs/auto.json "
WORDS += "--pin micro_tokens=400"
# A batch of one micro-batch a rank: of the plan, only recomputation is left to be chosen.
BIG = "--batch-size 240 --block-size 512 --max-steps 2 --lr 2e-3 --precision fp32 "
BIG += "--ds-config ds_configs/auto.json --pin zero=1 micro_tokens=24576"
# KB that a process may have beside what it has before the first step: the plans, from the one that
# keeps everything to the one that recomputes everything, need about 1100, 700 and 230 thousand.
ROOM = 850_000
IMPORTED = "import train.run.finishing, train.run.session; print(open('/proc/self/status').read())"


@pytest.fixture(scope="module")
def words(tiny: Path, ragged: Path) -> list[str]:
    named = ["--model-name-or-path", str(tiny), "--dataset-name-or-path", str(ragged)]
    return [*named, *WORDS.split()]


@pytest.fixture(scope="module")
def whole(lab: Lab, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on one rank of this machine, which nothing happens to."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    finish(lab.start([ROOT / "launch.sh", "1", "--run-dir", run_dir, *words]))
    return run_dir


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_text("".join(f"node{i} slots=2\n" for i in range(1, 5)))
    return path


def process_of(rank: int, run_dir: Path) -> int:
    """The process of a rank; what it has started itself has a rank for its parent."""
    named = {
        pid: environment(pid).get("RANK")
        for path in Path("/proc").glob("[0-9]*/cmdline")
        for pid in [int(path.parent.name)]
        if str(run_dir) in command_line(path)
    }
    (found,) = [
        pid for pid, own in named.items() if own == str(rank) and named.get(parent(pid)) is None
    ]
    return found


def command_line(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def test_a_training_on_four_hosts_outlives_a_dead_host_a_lost_one_and_a_stopped_rank(
    lab: Lab, hosts: Path, words: list[str], whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = hosts.parent / "run"
    bystander = subprocess.Popen(["ip", "netns", "exec", "node4", "sleep", "900"])
    argv = [ROOT / "launch.sh", "8", "--hostfile", hosts, "--run-dir", run_dir, *words, "zero=3"]
    process = lab.start(argv)
    since = []
    try:
        wait_for_step(run_dir, 13, 200)
        since.append(time.time())
        lab.act("kill", "3")
        wait_for_step(run_dir, 23, 200, ranks=6)
        since.append(time.time())
        lab.act("cut", "4")
        wait_for_step(run_dir, 21, 200, ranks=4)
        # The lease ends the ranks of a host that nobody can reach: it returns with none.
        assert left_of(run_dir, 30, lab.pids("node4")) == []
        wait_for_step(run_dir, 33, 200, ranks=4)
        since.append(time.time())
        os.kill(process_of(2, run_dir), signal.SIGSTOP)
        out = finish(process)
    finally:
        lab.act("mend", "4")
        lab.act("serve", "3")
        process.kill()
    assert left_of(run_dir) == []
    assert "node1 x 2, node2 x 2, node3 x 2, node4 x 2" in out
    assert "Found 4 hosts x 2 = 8 ranks" in out
    assert "host node3 is lost" in out and "leaving out host node3" in out
    assert "host node4 is lost" in out and "leaving out host node4" in out
    assert "the run hangs: no step for" in out
    assert "rank 2: stopped by a signal" in out
    assert re.search(r"in (all_reduce|all_gather\w*|reduce_scatter\w*|wait)\b", out)
    assert {record["world_size"] for record in records(run_dir)} == {8, 6, 4}
    check_curve(run_dir, STEPS)
    ends = [*since[1:], float("inf")]
    gaps = [went_on(run_dir, *moments) for moments in zip(since, ends, strict=True)]
    found = difference(run_dir, whole)
    with capsys.disabled():
        paused = ", ".join(f"{gap:.0f} s" for gap in gaps)
        print(f"\n\n8 ranks, a host killed: 6, one cut off: 4, a rank stopped; paused {paused}; ")
        print(f"against 1 rank, {STEPS} steps: {found:.1e}")
    assert found <= 1e-6
    assert max(gaps) < 90
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def imported() -> int:
    """KB of memory that `ulimit -d` counts of a process that has imported what a rank does."""
    found = subprocess.run(
        [sys.executable, "-c", IMPORTED], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return int(re.search(r"VmData:\s+(\d+) kB", found.stdout)[1])


def test_a_rank_whose_memory_is_exhausted_is_planned_again_smaller(
    lab: Lab, tmp_path: Path, deep: Path, ragged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second host gives no process more memory than recomputing everything needs."""
    run_dir, hosts = tmp_path / "run", tmp_path / "hosts"
    hosts.write_text("node1 slots=1\nnode2 slots=1\n")
    words = ["--model-name-or-path", deep, "--dataset-name-or-path", ragged, *BIG.split()]
    lab.act("kill", "2")
    lab.act("serve", "2", str(ROOM + imported()))
    try:
        argv = [ROOT / "launch.sh", "2", "--hostfile", hosts, "--run-dir", run_dir, *words]
        out = finish(lab.start(argv))
    finally:
        lab.act("kill", "2")
        lab.act("serve", "2")
    assert "[rank 1] [error] out of host memory: " in out and "available on node2" in out
    assert "rank 1 on node2 ended with exit code 77, out of memory" in out
    assert "did not fit: the next one will be smaller" in out
    assert "A plan of this run ran out of memory: planning below" in out
    check_curve(run_dir, 2)
    assert left_of(run_dir) == []
