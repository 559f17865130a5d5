"""The batch script on a real Slurm: several nodes, preemption, a smaller size on return."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.ranks


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder whose launch.sh supervises counting ranks instead of a training."""
    supervised = ROOT / "tests" / "launch" / "supervised.py"
    script = f'#!/bin/sh\nshift; dir=$1; shift\nexec {sys.executable} {supervised} - "$dir" "$@"\n'
    (tmp_path / "launch.sh").write_text(script)
    (tmp_path / "launch.sh").chmod(0o755)
    return tmp_path


def submit(checkout: Path, env: dict[str, str], *words: str) -> str:
    shown = subprocess.run(
        ["sbatch", "--parsable", *words[:2], ROOT / "slurm" / "train.sbatch", *words[2:]],
        cwd=checkout, env=env, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return shown.stdout.strip()


def call(env: dict[str, str], *words: str) -> str:
    shown = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=True)
    return shown.stdout


def wait_for(path: Path, lines: int, patience: float) -> None:
    deadline = time.monotonic() + patience
    while not path.exists() or path.read_text().count("\n") < lines:
        assert time.monotonic() < deadline, f"{path} was not written in {patience} s"
        time.sleep(0.1)


def wait_for_end(env: dict[str, str], job: str) -> None:
    deadline = time.monotonic() + 30
    while call(env, "squeue", "-h", "-o", "%i").split():
        assert time.monotonic() < deadline, f"job {job} does not end"
        time.sleep(0.2)


def test_a_job_of_two_nodes_runs_unedited(checkout: Path, slurm: dict[str, str]) -> None:
    job = submit(checkout, slurm, "-N2", "--gpus-per-node=2", "--steps", "3")
    wait_for(checkout / "runs" / job / "DONE", 0, 60)
    wait_for_end(slurm, job)
    log = (checkout / f"anyrank-{job}.log").read_text()
    assert "4 CPU ranks" in log and "s1 x 2, s2 x 2" in log
    assert "rank 0 of 4 from step 0" in log


def test_a_preempted_job_comes_back_on_one_node_and_ends_with_the_same_curve(
    checkout: Path, slurm: dict[str, str]
) -> None:
    words = ("-N1-2", "--gpus-per-node=2", "--steps", "150", "--checkpoints")
    job = submit(checkout, slurm, *words)
    metrics = checkout / "runs" / job / "metrics.jsonl"
    wait_for(metrics, 10, 60)
    call(slurm, "scontrol", "update", "NodeName=s2", "State=DRAIN", "Reason=test")
    try:
        call(slurm, "scancel", "--signal=USR1", "--batch", job)
        deadline = time.monotonic() + 60
        while "PENDING" not in call(slurm, "squeue", "-h", "-j", job, "-o", "%T"):
            assert time.monotonic() < deadline, "the job was not queued again"
            time.sleep(0.2)
        call(slurm, "scontrol", "update", f"JobId={job}", "StartTime=now")
        wait_for(checkout / "runs" / job / "DONE", 0, 120)
        wait_for_end(slurm, job)
    finally:
        call(slurm, "scontrol", "update", "NodeName=s2", "State=RESUME")
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 151))
    assert {record["world_size"] for record in records} == {4, 2}
    assert "SIGUSR1: saving and stopping" in (checkout / f"anyrank-{job}.log").read_text()
